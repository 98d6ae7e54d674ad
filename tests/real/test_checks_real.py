"""Data checks on real captures: true as read, and each misreading planted in a copy refused and named."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from plumbline.data.canonical import read_scene
from plumbline.data.checks import CheckConfig, check_folder, check_scene
from plumbline.data.checks.raw import raw_data, rereader, write_raw_scene
from plumbline.files import read_png16, write_png16

SETS = {
    "seven_scenes": ("rgbd", "seven_scenes", {"stride": 2}),
    "rgbd_objects": ("rgbd", "rgbd_objects", {}),
    "sun3d_tum_cabinet": ("sun3d", "sun3d_tum_cabinet", {}),
    "demon_sun3d": ("rgbd", "demon_pairs/train", {}),
    "demon_mvs": ("rgbd", "demon_pairs/test", {}),
}
# Every set but the MVS pair, whose depth reaches 22 m, is indoors.
RANGES = {"demon_mvs": (1.0, 30.0)}
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def scenes(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    found = {}
    for name, (kind, path, options) in SETS.items():
        raw = raw_data(kind, real_data / path, options, size=(144, 192))
        (scene,) = raw.reader.scenes(raw.path, raw.options)
        write_raw_scene(folder / name, raw, scene, depth_range=RANGES.get(name, (0.15, 6.0)))
        found[name] = read_scene(folder / name), rereader(raw, scene)
    return found


@pytest.mark.parametrize("name", SETS)
def test_every_posed_set_is_true_as_read(scenes, name):
    scene, reread = scenes[name]
    found = check_scene(scene, CheckConfig(), reread=reread)
    assert found.verdict == "ok", found.diagnosis
    assert found.as_read.error < 0.012
    assert found.remarks == ()
    assert all(null.error > 2 * found.as_read.error for null in found.nulls)


def of_K(scene, factor):
    wrong = scene.K.copy()
    wrong[:, :2, 2] += 0.5
    wrong[:, :2] *= factor
    wrong[:, :2, 2] -= 0.5
    return replace(scene, K=wrong)


def fx_for_cx(scene):
    wrong = scene.K.copy()
    wrong[:, 0, [0, 2]] = wrong[:, 0, [2, 0]]
    return replace(scene, K=wrong)


def cy_from_fy(scene):
    wrong = scene.K.copy()
    wrong[:, 1, 2] = wrong[:, 1, 1]
    return replace(scene, K=wrong)


def deeper(scene, factor):
    return replace(scene, depth=np.asarray(scene.depth * np.float32(factor)))


PLANTED = {
    "poses inverted": lambda s: replace(s, world_T_cam=np.linalg.inv(s.world_T_cam)),
    "camera y and z axes flipped (OpenGL)": lambda s: replace(s, world_T_cam=s.world_T_cam @ FLIP),
    "depth divided by 8": lambda s: deeper(s, 8),
    "depth multiplied by 8": lambda s: deeper(s, 1 / 8),
    "depth divided by 1000": lambda s: deeper(s, 1000),
    "depth multiplied by 1000": lambda s: deeper(s, 0.001),
    "depth divided by 5": lambda s: deeper(s, 5),
    "depth multiplied by 5": lambda s: deeper(s, 0.2),
    "K divided by 2": lambda s: of_K(s, 2),
    "K divided by 4": lambda s: of_K(s, 4),
    "K multiplied by 2": lambda s: of_K(s, 0.5),
    "K multiplied by 4": lambda s: of_K(s, 0.25),
    "fx and cx exchanged": fx_for_cx,
    "cy at the image centre": cy_from_fy,
    "depth rows in the opposite order": lambda s: replace(s, depth=s.depth[:, ::-1].copy()),
    "the depth of the previous view": lambda s: replace(s, depth=np.roll(s.depth, -1, axis=0)),
}
# A pair of views has no view before its first, and the depth of the next one is that of both.
CASES = [
    (name, label) for name in SETS for label in PLANTED if not (name.startswith("demon") and label.endswith("view"))
]


@pytest.mark.parametrize(("name", "label"), CASES)
def test_each_planted_misreading_is_refused_and_named(scenes, name, label):
    scene, _ = scenes[name]
    # Factors between depth and translations are blamed on depth when its range is open.
    found = check_scene(PLANTED[label](replace(scene, depth_range=(1e-6, 1e6))), CheckConfig())
    assert found.verdict == "wrong", found.diagnosis
    assert f"with {label}" in found.diagnosis, found.diagnosis


def test_sixteen_millimetres_of_movement_cannot_tell(real_data):
    found = check_folder("rgbd", real_data / "scannet_sample")
    assert [scene.verdict for scene in found.scenes] == ["cannot tell"]
    assert "the cameras span 17 mm" in found.scenes[0].diagnosis


def test_with_no_limit_on_the_baseline_the_unmoved_camera_says_the_same(real_data):
    found = check_folder("rgbd", real_data / "scannet_sample", config=CheckConfig(min_baseline=0.003))
    assert [scene.verdict for scene in found.scenes] == ["cannot tell"]
    assert "no motion" in found.scenes[0].diagnosis or "no translation" in found.scenes[0].diagnosis


@pytest.fixture(scope="module")
def misread(real_data, tmp_path_factory):
    """A copy of the cabinet sequence whose depth files hold plain millimetres, as a converter would leave them."""
    copy = tmp_path_factory.mktemp("misread") / "tum" / "cabinet"
    shutil.copytree(real_data / "sun3d_tum_cabinet/tum/cabinet", copy, copy_function=shutil.copyfile)
    for path in (copy / "depth").glob("*.png"):
        stored = read_png16(path)
        write_png16(path, (stored >> 3) | (stored << 13))
    return copy.parents[1]


def test_depth_that_was_never_rotated_is_named(misread):
    (found,) = check_folder("sun3d", misread).scenes
    assert found.verdict == "wrong"
    assert "with depth bits not rotated" in found.diagnosis


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"depth_coding": "raw"}, "depth rotated right by 3 bits"),
        ({"pose_direction": "world_to_camera"}, "poses read as camera-to-world"),
        ({"pose_rows": 4}, "poses read 3 rows at a time"),
    ],
)
def test_the_readers_own_misreadings_are_named(real_data, options, label):
    (found,) = check_folder("sun3d", real_data / "sun3d_tum_cabinet", options=options).scenes
    assert found.verdict == "wrong"
    assert f"with {label}" in found.diagnosis


def test_seven_scenes_colour_with_the_depth_cameras_focal_length_is_seen(real_data):
    options = {"stride": 4, "colour_camera": "depth"}
    (found,) = check_folder("rgbd", real_data / "seven_scenes", options=options).scenes
    said = " ".join([found.diagnosis, *found.remarks])
    assert "colour read with its own intrinsics" in said


def test_sequences_without_poses_are_refused_with_the_readers_words(real_data):
    found = check_folder("sun3d", real_data / "sun3d_harvard/harvard_tea_2")
    assert [scene.verdict for scene in found.scenes] == ["wrong"]
    assert "no poses" in found.scenes[0].diagnosis
