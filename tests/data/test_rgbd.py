"""RGB-D captures: the right reading of each layout, its known misreadings, and the message of each kind of broken folder."""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from data.raw_folders import (
    SIZE,
    Capture,
    K,
    camera,
    capture,
    write_demon,
    write_scannet,
    write_scannet_intrinsics,
    write_sens,
    write_seven_scenes,
    write_text,
    write_tum,
)
from plumbline.data import rgbd
from plumbline.data.canonical import validate_view
from plumbline.data.rgbd import Options
from plumbline.errors import DataError

# 7-Scenes' own sizes, so that its own cameras fit.
FULL = (480, 640)
SEVEN_K = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
COLOUR_K = np.array([[60.0, 0, 33], [0, 61, 25], [0, 0, 1]])
TUM_K = (30.0, 31.0, 16.0, 12.0)


def read(raw: Path, scene: str, options: Options | None = None) -> list:
    views = list(rgbd.views(raw, scene, options or Options()))
    for view in views:
        validate_view(view, scene)
    return views


def assert_matches(views: list, truth: Capture, *, tolerance: float = 1e-9) -> None:
    for view, image, depth, T in zip(views, truth.images, truth.depths_mm, truth.world_T_cams, strict=True):
        assert np.abs(view.image.astype(int) - image).max() <= 3
        np.testing.assert_allclose(view.depth, depth / 1000, rtol=1e-6)
        np.testing.assert_allclose(view.world_T_cam, T, atol=tolerance)


# --- 7-Scenes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    write_seven_scenes(tmp_path / "redkitchen" / "seq-01", capture(), K=K)
    return tmp_path


def test_seven_scenes_layout(seven):
    assert rgbd.scenes(seven, Options()) == ["redkitchen/seq-01"]
    views = read(seven, "redkitchen/seq-01")
    assert_matches(views, capture())
    assert [view.name for view in views][:2] == ["frame-000000", "frame-000001"]
    assert views[0].depth_K is None
    np.testing.assert_array_equal(views[0].K, K)
    assert rgbd.pairs(seven, "redkitchen/seq-01", Options()) is None


def test_seven_scenes_invalid_is_65535_as_well_as_0(tmp_path):
    write_seven_scenes(tmp_path / "a" / "seq-01", capture(), K=K, invalid=65535)
    views = read(tmp_path, "a/seq-01")
    assert_matches(views, capture())
    assert (views[0].depth == 0).sum() == 2 * SIZE[1]


def test_seven_scenes_colour_has_its_own_camera(tmp_path):
    write_seven_scenes(tmp_path / "seq-01", capture(1, size=FULL), K=SEVEN_K)
    (view,) = read(tmp_path, "seq-01")
    np.testing.assert_array_equal(view.depth_K, SEVEN_K)
    np.testing.assert_array_equal(view.K, [[532.6, 0, 320], [0, 532.6, 240], [0, 0, 1]])
    (view,) = read(tmp_path, "seq-01", Options(colour_focal=525))
    assert view.K[0, 0] == view.K[1, 1] == 525 and view.depth_K[0, 0] == 585
    labels = dict(rgbd.alternatives(tmp_path, "seq-01", Options()))
    (misread,) = read(tmp_path, "seq-01", labels["depth read with the colour camera's intrinsics"])
    assert misread.depth_K is None and misread.K[0, 0] == 532.6
    (misread,) = read(tmp_path, "seq-01", labels["colour read with the depth camera's intrinsics"])
    assert misread.depth_K is None and misread.K[0, 0] == 585


def test_intrinsics_may_come_from_the_options(tmp_path):
    write_seven_scenes(tmp_path / "seq-01", capture(), K=K)
    (tmp_path / "camera-intrinsics.txt").unlink()
    with pytest.raises(
        DataError, match=r"seq-01: no intrinsics; expected camera-intrinsics\.txt.*options\.depth_intrinsics"
    ):
        read(tmp_path, "seq-01")
    (view, *_) = read(
        tmp_path, "seq-01", Options(depth_intrinsics=(30, 31, 16, 12), colour_intrinsics=(28, 29, 15, 11))
    )
    np.testing.assert_array_equal(view.depth_K, K)
    np.testing.assert_array_equal(view.K, [[28, 0, 15], [0, 29, 11], [0, 0, 1]])
    (view, *_) = read(tmp_path, "seq-01", Options(depth_intrinsics=(30, 31, 16, 12)))
    np.testing.assert_array_equal(view.K, K)


def test_lost_poses_are_dropped_and_counted_or_refused(seven, caplog):
    pose_file = seven / "redkitchen/seq-01/frame-000002.pose.txt"
    write_text(pose_file, np.full((4, 4), -np.inf))
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        views = read(seven, "redkitchen/seq-01")
    assert [view.name for view in views] == ["frame-000000", "frame-000001", "frame-000003"]
    assert "1 of 4 frames left out: they have a pose of NaN or infinity" in caplog.text
    with pytest.raises(DataError, match="1 of 4 poses hold NaN or infinity, first that of frame-000002"):
        read(seven, "redkitchen/seq-01", Options(lost_poses="error"))
    pose_file.write_text("-1.#IND " * 16)
    assert len(read(seven, "redkitchen/seq-01")) == 3


def test_all_poses_lost_is_an_error(seven):
    for path in (seven / "redkitchen/seq-01").glob("*.pose.txt"):
        write_text(path, np.full((4, 4), np.nan))
    with pytest.raises(DataError, match="4 of 4 frames have a pose of NaN or infinity"):
        read(seven, "redkitchen/seq-01")


def test_frames_with_a_file_missing_are_refused_or_dropped(seven):
    (seven / "redkitchen/seq-01/frame-000001.depth.png").unlink()
    with pytest.raises(DataError, match="frame 1 has no depth file; 1 of 4 frames are incomplete"):
        read(seven, "redkitchen/seq-01")
    views = read(seven, "redkitchen/seq-01", Options(missing_files="drop"))
    assert [view.name for view in views] == ["frame-000000", "frame-000002", "frame-000003"]
    np.testing.assert_allclose(views[1].world_T_cam, camera(2), atol=1e-12)


def test_stride_count_and_selection(seven):
    def names(options: Options, select: list[int] | None = None) -> list[str]:
        return [view.name[-1] for view in rgbd.views(seven, "redkitchen/seq-01", options, select=select)]

    assert names(Options(stride=3)) == ["0", "3"]
    assert names(Options(max_frames=2)) == ["0", "1"]
    assert names(Options(), [2, 0]) == ["2", "0"]
    assert [frame.name for frame in rgbd.frames(seven, "redkitchen/seq-01", Options(stride=3))] == [
        "frame-000000",
        "frame-000003",
    ]
    with pytest.raises(DataError, match="view -1 was asked for"):
        names(Options(), [-1])


def test_misreadings_of_poses_and_units(seven):
    changed = dict(rgbd.alternatives(seven, "redkitchen/seq-01", Options()))
    assert list(changed) == ["poses read as world-to-camera", "depth read in units of 1/5000 m"]
    inverted, scaled = (read(seven, "redkitchen/seq-01", options)[1] for options in changed.values())
    np.testing.assert_allclose(inverted.world_T_cam @ camera(1), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(scaled.depth, capture().depths_mm[1] / 5000, rtol=1e-6)
    back = dict(rgbd.alternatives(seven, "redkitchen/seq-01", Options(poses="inverted", depth_scale=5000)))
    assert list(back) == ["poses read as camera-to-world", "depth read in units of 1/1000 m"]


# --- ScanNet ------------------------------------------------------------------------------------------------------


def scannet_truth() -> Capture:
    return capture(size=(50, 66), depth_size=SIZE)


def test_scannet_export(tmp_path):
    write_scannet(tmp_path / "scans" / "scene0707_00", scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    assert rgbd.scenes(tmp_path, Options()) == ["scans/scene0707_00"]
    views = read(tmp_path, "scans/scene0707_00")
    assert_matches(views, scannet_truth())
    np.testing.assert_array_equal(views[0].K, COLOUR_K)
    np.testing.assert_array_equal(views[0].depth_K, K)


def test_scannet_frames_are_in_number_order(tmp_path):
    truth = capture(12)
    write_scannet(tmp_path / "scene", truth, colour_K=K, depth_K=K)
    views = read(tmp_path, "scene")
    assert [view.name for view in views] == [str(i) for i in range(12)]
    np.testing.assert_allclose(views[10].world_T_cam, truth.world_T_cams[10], atol=1e-12)


def test_scannet_unscaled_colour_intrinsics_on_the_depth_grid(tmp_path):
    write_scannet(tmp_path / "scene", scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    changed = dict(rgbd.alternatives(tmp_path, "scene", Options()))
    view = next(rgbd.views(tmp_path, "scene", changed["depth read with the colour camera's intrinsics"]))
    np.testing.assert_array_equal(view.depth_K, COLOUR_K)
    with pytest.raises(DataError, match="K of the depth cannot fit a 24x32 image"):
        validate_view(view, "scene")


SCENE_TXT = "fx_color = 59.5\nfx_depth = 28\nfy_color=60.5\nmx_color = 32.5\nmy_color = 24.5\nsceneType = Apartment\n"


@pytest.mark.parametrize("packed", [False, True])
def test_scannet_with_the_colour_camera_of_its_text_file(tmp_path, packed):
    folder = tmp_path / "scene0707_00"
    if packed:
        write_sens(folder / "scene0707_00.sens", scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    else:
        write_scannet(folder, scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    (folder / "scene0707_00.txt").write_text(SCENE_TXT)
    options = Options(cameras="scene_txt")
    view = read(tmp_path, "scene0707_00", options)[0]
    np.testing.assert_allclose(view.K, [[59.5, 0, 32.5], [0, 60.5, 24.5], [0, 0, 1]])
    # The picture is 50x66 and the depth 24x32: the edges of both are taken to coincide.
    sx, sy = 32 / 66, 24 / 50
    np.testing.assert_allclose(view.depth_K, [[59.5 * sx, 0, 33 * sx - 0.5], [0, 60.5 * sy, 25 * sy - 0.5], [0, 0, 1]])
    assert [label for label, _ in rgbd.alternatives(tmp_path, "scene0707_00", options)] == [
        "poses read as world-to-camera",
        "depth read in units of 1/5000 m",
    ]
    (folder / "scene0707_00.txt").write_text(SCENE_TXT.replace("my_color", "my"))
    with pytest.raises(DataError, match=r"^scene0707_00/scene0707_00\.txt: no my_color; expected lines fx_color"):
        read(tmp_path, "scene0707_00", options)


def test_frames_are_numbered_before_any_is_left_out(tmp_path):
    truth = capture(7)
    truth.world_T_cams[2][:] = -np.inf
    write_scannet(tmp_path / "scene", truth, colour_K=K, depth_K=K)
    assert [view.frame for view in read(tmp_path, "scene")] == [(i, 7) for i in (0, 1, 3, 4, 5, 6)]
    assert [view.frame for view in read(tmp_path, "scene", Options(stride=2))] == [(0, 7), (4, 7), (6, 7)]
    assert next(rgbd.views(tmp_path, "scene", Options(), select=[3])).frame == (4, 7)


def test_a_list_of_scenes_chooses_among_those_that_are_there(tmp_path):
    for name in ("scene0000_00", "scene0001_00", "scene0002_00"):
        write_scannet(tmp_path / "scans" / name, capture(1), colour_K=K, depth_K=K)
    (tmp_path / "list.txt").write_text("scene0002_00\nscene0000_00")
    options = Options(scene_list="list.txt")
    assert rgbd.scenes(tmp_path, options) == ["scans/scene0000_00", "scans/scene0002_00"]
    (tmp_path / "list.txt").write_text("scene0002_00\nscene0003_00\n\n")
    with pytest.raises(DataError, match=r"list\.txt: names 1 scenes that are not there, first scene0003_00"):
        rgbd.scenes(tmp_path, options)


def test_scannet_as_simplerecon_names_it(tmp_path):
    write_seven_scenes(tmp_path / "scene0000_00" / "sensor_data", scannet_truth(), K=K)
    (tmp_path / "scene0000_00" / "camera-intrinsics.txt").unlink()
    write_scannet_intrinsics(tmp_path / "scene0000_00", COLOUR_K, K)
    assert rgbd.scenes(tmp_path, Options()) == ["scene0000_00"]
    views = read(tmp_path, "scene0000_00")
    assert_matches(views, scannet_truth())
    np.testing.assert_array_equal(views[0].K, COLOUR_K)


def test_depth_that_changes_size_is_refused(tmp_path):
    write_scannet(tmp_path / "scene", scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    write_scannet(tmp_path / "other", capture(), colour_K=COLOUR_K, depth_K=K)
    write_scannet(tmp_path / "small", capture(depth_size=(22, 30)), colour_K=COLOUR_K, depth_K=K)
    (tmp_path / "scene/depth/2.png").write_bytes((tmp_path / "small/depth/2.png").read_bytes())
    with pytest.raises(DataError, match=r"^scene/depth/2\.png: depth of size \(22, 30\), but \(24, 32\)"):
        read(tmp_path, "scene")


def test_scannet_without_intrinsics(tmp_path):
    write_scannet(tmp_path / "scene", scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    (tmp_path / "scene/intrinsic/intrinsic_depth.txt").unlink()
    with pytest.raises(DataError, match=r"^scene/intrinsic/intrinsic_depth\.txt: no such file"):
        read(tmp_path, "scene")


@pytest.fixture
def sens_file(tmp_path: Path) -> Path:
    path = tmp_path / "scene0707_00" / "scene0707_00.sens"
    write_sens(path, scannet_truth(), colour_K=COLOUR_K, depth_K=K)
    return path


def test_sens(tmp_path, sens_file):
    assert rgbd.scenes(tmp_path, Options()) == ["scene0707_00"]
    views = read(tmp_path, "scene0707_00")
    assert_matches(views, scannet_truth(), tolerance=1e-6)
    np.testing.assert_allclose(views[0].K, COLOUR_K)
    np.testing.assert_allclose(views[0].depth_K, K)
    selected = next(rgbd.views(tmp_path, "scene0707_00", Options(), select=[3]))
    np.testing.assert_array_equal(selected.depth, views[3].depth)


def test_sens_with_lost_tracking(tmp_path):
    truth = scannet_truth()
    truth.world_T_cams[1][:] = -np.inf
    write_sens(tmp_path / "scene" / "a.sens", truth, colour_K=COLOUR_K, depth_K=K)
    assert [view.name for view in read(tmp_path, "scene")] == ["000000", "000002", "000003"]


def patch(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


# Where the header's fields lie, given the nine bytes of the sensor's name.
_CODECS_AT = 4 + 8 + 9 + 256
_DEPTH_WIDTH_AT = _CODECS_AT + 8 + 8
BROKEN_SENS = {
    "version": (lambda path: patch(path, 0, struct.pack("<I", 3)), r"scene0707_00\.sens: \.sens version 3, expected 4"),
    "codec": (
        lambda path: patch(path, _CODECS_AT + 4, struct.pack("<i", 2)),
        "colour codec 2, depth codec 2; readable are",
    ),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "ends within frame [0-3] of the 4"),
    "cut header": (lambda path: path.write_bytes(path.read_bytes()[:100]), r"ends within its header \(100 bytes\)"),
    "depth size": (lambda path: patch(path, _DEPTH_WIDTH_AT, struct.pack("<I", 31)), "depth of frame 0 is not 31x24"),
    "colour": (
        lambda path: patch(path, _CODECS_AT + 36 + 96, b"\0" * 200),
        "colour image of frame 0 cannot be decoded",
    ),
    "two files": (lambda path: path.with_name("b.sens").write_bytes(b""), r"2 \.sens files; expected one a folder"),
}


@pytest.mark.parametrize("defect", BROKEN_SENS)
def test_each_broken_sens_file_has_its_message(tmp_path, sens_file, defect):
    spoil, message = BROKEN_SENS[defect]
    spoil(sens_file)
    with pytest.raises(DataError, match=message):
        read(tmp_path, "scene0707_00")


# --- TUM ----------------------------------------------------------------------------------------------------------

TUM = Options(colour_intrinsics=TUM_K)


@pytest.fixture
def tum(tmp_path: Path) -> Path:
    truth = capture()
    for depth in truth.depths_mm:
        depth[depth > 8000] = 0
    write_tum(tmp_path / "seq", truth)
    return tmp_path


def test_tum_lists(tum):
    truth = capture()
    views = read(tum, "seq", TUM)
    assert rgbd.scenes(tum, TUM) == ["seq"]
    for view, depth, T in zip(views, truth.depths_mm, truth.world_T_cams, strict=True):
        np.testing.assert_allclose(view.depth, np.where(depth > 8000, 0, depth) / 1000, rtol=1e-6)
        np.testing.assert_allclose(view.world_T_cam, T, atol=1e-9)
        np.testing.assert_array_equal(view.K, K)


def test_tum_cameras_are_known_by_name(tmp_path):
    write_tum(tmp_path / "rgbd_dataset_freiburg3_cabinet", capture(1, size=FULL))
    (view,) = read(tmp_path, "rgbd_dataset_freiburg3_cabinet")
    np.testing.assert_array_equal(view.K, [[535.4, 0, 320.1], [0, 539.2, 247.6], [0, 0, 1]])


def test_tum_unknown_camera_needs_the_option(tum):
    with pytest.raises(DataError, match="seq: no intrinsics"):
        read(tum, "seq")


def test_tum_pairs_by_time(tum, caplog):
    lines = (tum / "seq/depth.txt").read_text().splitlines()
    (tum / "seq/depth.txt").write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        views = read(tum, "seq", TUM)
    assert "1 of 4 frames left out: they have no depth or no pose within 20 ms" in caplog.text
    np.testing.assert_allclose(views[1].world_T_cam, camera(2), atol=1e-9)
    changed = dict(rgbd.alternatives(tum, "seq", TUM))
    assert set(changed) == {
        "poses read as world-to-camera",
        "depth read in units of 1/1000 m",
        "quaternions read with qw first",
        "frames paired by index",
    }
    shifted = read(tum, "seq", changed["frames paired by index"])
    np.testing.assert_array_equal(shifted[1].depth, views[1].depth)
    np.testing.assert_allclose(shifted[1].world_T_cam, camera(1), atol=1e-9)


def test_tum_quaternion_order(tum):
    wrong = read(tum, "seq", TUM.model_copy(update={"quaternion": "qw_first"}))
    assert np.abs(wrong[1].world_T_cam[:3, :3] - camera(1)[:3, :3]).max() > 0.1


def test_tum_lists_that_name_absent_files(tum):
    sorted((tum / "seq/rgb").iterdir())[0].unlink()
    with pytest.raises(DataError, match=r"^seq/rgb\.txt: 1 of the 4 files it names are absent, first rgb/1341841278"):
        read(tum, "seq", TUM)
    views = read(tum, "seq", TUM.model_copy(update={"missing_files": "drop"}))
    np.testing.assert_allclose(views[0].world_T_cam, camera(1), atol=1e-9)


def test_tum_with_another_clock_is_an_error(tmp_path):
    write_tum(tmp_path / "seq", capture(), depth_delay=30.0)
    with pytest.raises(DataError, match="4 of 4 frames have no depth or no pose within 20 ms"):
        read(tmp_path, "seq", TUM)


def test_tum_broken_poses(tum):
    text = (tum / "seq/groundtruth.txt").read_text()
    (tum / "seq/groundtruth.txt").write_text(text + "1341841279.0 0 0 0 0 0 0 0.5\n")
    with pytest.raises(
        DataError, match=r"groundtruth\.txt: '1\.34184e\+09 0 0 0 0 0 0 0\.5' is no pose.*unit quaternion"
    ):
        read(tum, "seq", TUM)
    (tum / "seq/groundtruth.txt").write_text(text.rsplit(" ", 1)[0])
    with pytest.raises(DataError, match=r"groundtruth\.txt: line '.*'; expected lines of 8 values"):
        read(tum, "seq", TUM)
    (tum / "seq/groundtruth.txt").write_text("now 0 0 0 0 0 0 1\n")
    with pytest.raises(DataError, match=r"^seq/groundtruth\.txt: could not convert string to float: 'now'"):
        read(tum, "seq", TUM)


# --- DeMoN --------------------------------------------------------------------------------------------------------


def test_demon_pair(tmp_path):
    write_demon(tmp_path / "test" / "sun3d_00000", capture(2))
    assert rgbd.scenes(tmp_path, Options()) == ["test/sun3d_00000"]
    assert_matches(read(tmp_path, "test/sun3d_00000"), capture(2), tolerance=1e-9)
    changed = dict(rgbd.alternatives(tmp_path, "test/sun3d_00000", Options()))
    assert list(changed) == ["poses read as camera-to-world"]
    inverted = read(tmp_path, "test/sun3d_00000", changed["poses read as camera-to-world"])
    np.testing.assert_allclose(inverted[1].world_T_cam @ camera(1), np.eye(4), atol=1e-9)


def test_demon_rows_follow_the_views_not_their_numbers(tmp_path):
    write_demon(tmp_path / "a", capture(3), numbers=[0, 2, 5])
    assert_matches(read(tmp_path, "a"), capture(3), tolerance=1e-9)


def test_demon_rows_that_do_not_count_the_views(tmp_path):
    write_demon(tmp_path / "a", capture(3))
    for suffix in ("jpg", "npy"):
        (tmp_path / f"a/0001.{suffix}").unlink()
    with pytest.raises(DataError, match=r"^a/poses\.txt: 36 numbers for 2 views; expected 12 a view, in name order"):
        read(tmp_path, "a")


def test_demon_depth_that_is_not_finite_counts_as_not_measured(tmp_path):
    write_demon(tmp_path / "a", capture(2))
    depth = np.load(tmp_path / "a/0000.npy")
    depth[5, 5], depth[6, 6] = np.nan, np.inf
    np.save(tmp_path / "a/0000.npy", depth)
    view = read(tmp_path, "a")[0]
    assert view.depth[5, 5] == view.depth[6, 6] == 0 and view.depth[7, 7] > 0


def test_demon_depth_of_another_size(tmp_path):
    write_demon(tmp_path / "a", capture(2, depth_size=(12, 16)))
    with pytest.raises(DataError, match="K of the depth cannot fit a 12x16 image"):
        read(tmp_path, "a")


# --- all ----------------------------------------------------------------------------------------------------------


def test_layouts_side_by_side_and_one_asked_for(tmp_path):
    write_demon(tmp_path / "demon", capture(2))
    write_tum(tmp_path / "tum", capture(2))
    write_seven_scenes(tmp_path / "seven" / "seq-01", capture(2), K=K)
    assert rgbd.scenes(tmp_path, Options()) == ["demon", "seven/seq-01", "tum"]
    assert rgbd.scenes(tmp_path, Options(layout="tum")) == ["tum"]
    assert rgbd.scenes(tmp_path / "demon", Options()) == ["demon"]
    assert len(read(tmp_path / "demon", "demon")) == 2


def test_no_capture_says_what_was_looked_for(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no capture of layout auto below it\. Looked for frame-NNNNNN"):
        rgbd.scenes(tmp_path, Options())
    with pytest.raises(DataError, match=r"^a: no known layout\. Looked for frame-NNNNNN"):
        read(tmp_path, "a")


def spoil(path: Path, defect: str) -> None:
    if defect == "cut pose":
        write_text(path / "frame-000001.pose.txt", np.eye(4)[:3])
    elif defect == "no rotation":
        write_text(path / "frame-000001.pose.txt", np.diag([2.0, 1, 1, 1]))
    elif defect == "left-handed":
        write_text(path / "frame-000001.pose.txt", np.diag([-1.0, 1, 1, 1]))
    elif defect == "absurd focal":
        write_text(path.parent / "camera-intrinsics.txt", np.diag([5000.0, 5000, 1]) + np.eye(3, k=1) * 12)
    elif defect == "cut depth":
        file = path / "frame-000001.depth.png"
        file.write_bytes(file.read_bytes()[:300])
    else:
        file = path / "frame-000001.color.png"
        file.write_bytes(file.read_bytes()[:-20])


MESSAGES = {
    "cut pose": r"^redkitchen/seq-01/frame-000001\.pose\.txt: 12 numbers, expected a matrix of 4x4",
    "no rotation": "not a rotation with a translation",
    "left-handed": "left-handed",
    "absurd focal": "K of the image cannot fit a 24x32 image",
    "cut depth": r"^redkitchen/seq-01/frame-000001\.depth\.png: not a readable PNG",
    "cut colour": r"^redkitchen/seq-01/frame-000001\.color\.png: (the picture is cut|not a readable image)",
}


@pytest.mark.parametrize("defect", MESSAGES)
def test_each_defect_has_its_message(seven, defect):
    spoil(seven / "redkitchen/seq-01", defect)
    with pytest.raises(DataError, match=MESSAGES[defect]):
        read(seven, "redkitchen/seq-01")
