"""Data checks on an analytic scene: true as it is, and refused by name for each planted misreading."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from plumbline.data import checks, sun3d
from plumbline.data.canonical import write_scene
from plumbline.data.checks import CheckConfig, check_folder, check_scene, verdict_table
from plumbline.data.checks.dataset import require_true
from plumbline.data.checks.measure import Reading, land, occluded, sample_pixels, score
from plumbline.data.checks.pairs import choose_pairs
from plumbline.data.checks.records import DatasetCheck, Found
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import write_jpg, write_png16
from plumbline.records import Scene, View

SIZE = (96, 128)
K = np.array([[116.0, 0, 66.0], [0, 118.0, 45.0], [0, 0, 1]])
VIEWS = 12
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def cameras(count=VIEWS):
    """An arc of cameras that look at a point 2 m ahead, tilted and bobbing, so that every axis is exercised."""
    found = []
    for i in range(count):
        s = (i - count / 2) / count
        centre = np.array([1.8 * s, 0.35 * np.sin(9 * s) - 0.1, 0.5 * s * s])
        forward = np.array([0.1, 0.25, 2.2]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross([0.25 * s, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        world_T_cam = np.eye(4)
        world_T_cam[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        world_T_cam[:3, 3] = centre
        found.append(world_T_cam)
    return np.stack(found)


def hit(origin, rays):
    """Distance factors along `rays` (z = 1 in the camera) to a back wall, a floor and two balls; the nearest one."""
    far = np.full(rays.shape[:2], np.inf)
    for normal, offset in (((0.15, 0.0, 1.0), 3.0), ((0.0, 1.0, 0.1), 1.0), ((0.9, 0.0, 0.45), 2.6)):
        normal = np.array(normal)
        along = rays @ normal
        t = (offset - origin @ normal) / np.where(np.abs(along) < 1e-9, 1e-9, along)
        far = np.where((t > 0) & (t < far), t, far)
    for centre, radius in (((-0.35, 0.45, 2.0), 0.4), ((0.55, 0.1, 2.3), 0.45)):
        a = (rays**2).sum(-1)
        b = rays @ (origin - np.array(centre))
        c = ((origin - np.array(centre)) ** 2).sum() - radius**2
        square = b * b - a * c
        t = (-b - np.sqrt(np.maximum(square, 0))) / a
        far = np.where((square > 0) & (t > 0) & (t < far), t, far)
    return far


def paint(points):
    """A texture in space: waves of many directions and lengths."""
    rng = np.random.default_rng(4)
    value = np.zeros(points.shape[:-1])
    for length in (0.08, 0.13, 0.21, 0.34, 0.55):
        for direction in rng.normal(size=(3, 3)):
            wave = 2 * np.pi * direction / np.linalg.norm(direction) / length
            value += np.sin(points @ wave + rng.uniform(0, 6)) * (length / 0.55) ** 0.3
    return value


def rendered(poses, size=SIZE, camera=K):
    """Images and exact depth of the analytic scene, float64 metres."""
    v, u = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    rays = np.stack([(u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1], np.ones(size)], -1)
    images, depths = [], []
    for world_T_cam in poses:
        rays_world = rays @ world_T_cam[:3, :3].T
        depth = hit(world_T_cam[:3, 3], rays_world)
        grey = 128 + 26 * paint(world_T_cam[:3, 3] + depth[..., None] * rays_world)
        images.append(np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, -1))
        depths.append(depth)
    return np.stack(images), np.stack(depths)


@pytest.fixture(scope="module")
def truth():
    poses = cameras()
    images, depth = rendered(poses)
    return Scene(
        dataset="analytic",
        name="room",
        view_names=tuple(f"{i:02d}" for i in range(VIEWS)),
        images=images,
        K=np.repeat(K[None], VIEWS, 0),
        depth_range=(0.5, 6.0),
        depth=depth.astype(np.float32),
        world_T_cam=poses,
    )


def scaled_K(scene, factor):
    wrong = scene.K.copy()
    wrong[:, :2, 2] += 0.5
    wrong[:, :2] *= factor
    wrong[:, :2, 2] -= 0.5
    return replace(scene, K=wrong)


def entry_of_K(scene, change):
    wrong = scene.K.copy()
    for matrix in wrong:
        change(matrix)
    return replace(scene, K=wrong)


def swap_fx_cx(matrix):
    matrix[0, 0], matrix[0, 2] = matrix[0, 2], matrix[0, 0]


def cy_is_fy(matrix):
    matrix[1, 2] = matrix[1, 1]


def deeper(scene, factor):
    return replace(scene, depth=(scene.depth * factor).astype(np.float32))


def posed(scene, poses):
    return replace(scene, world_T_cam=poses)


def along_rays(scene):
    v, u = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    lengths = np.sqrt(1 + ((u - K[0, 2]) / K[0, 0]) ** 2 + ((v - K[1, 2]) / K[1, 1]) ** 2)
    return replace(scene, depth=(scene.depth * lengths).astype(np.float32))


def moved_apart(scene, factor):
    poses = scene.world_T_cam.copy()
    poses[:, :3, 3] *= factor
    return posed(scene, poses)


def transposed(scene):
    poses = scene.world_T_cam.copy()
    poses[:, :3, :3] = np.swapaxes(poses[:, :3, :3], 1, 2)
    return posed(scene, poses)


PLANTED = {
    "inverted poses": (lambda s: posed(s, np.linalg.inv(s.world_T_cam)), "poses inverted"),
    "OpenGL axes": (lambda s: posed(s, s.world_T_cam @ FLIP), "camera y and z axes flipped (OpenGL)"),
    "OpenGL world-to-camera": (
        lambda s: posed(s, FLIP @ np.linalg.inv(s.world_T_cam)),
        "poses inverted and camera y and z axes flipped (OpenGL)",
    ),
    "transposed rotations": (transposed, "rotations transposed"),
    "negated translations": (lambda s: moved_apart(s, -1), "translations negated"),
    "depth in mm": (lambda s: deeper(s, 1000), "depth divided by 1000"),
    "depth in km": (lambda s: deeper(s, 0.001), "depth multiplied by 1000"),
    "undecoded bits": (lambda s: deeper(s, 8), "depth divided by 8"),
    "over-decoded bits": (lambda s: deeper(s, 1 / 8), "depth multiplied by 8"),
    "TUM units as mm": (lambda s: deeper(s, 5), "depth divided by 5"),
    "mm as TUM units": (lambda s: deeper(s, 0.2), "depth multiplied by 5"),
    "translations in mm": (lambda s: moved_apart(s, 1000), "translations divided by 1000"),
    "distance along the ray": (along_rays, "depth taken as the distance along the ray"),
    "upside-down depth": (lambda s: replace(s, depth=s.depth[:, ::-1].copy()), "depth rows in the opposite order"),
    "K of half the size": (lambda s: scaled_K(s, 0.5), "K multiplied by 2"),
    "K of a quarter": (lambda s: scaled_K(s, 0.25), "K multiplied by 4"),
    "K of twice the size": (lambda s: scaled_K(s, 2), "K divided by 2"),
    "K of four times": (lambda s: scaled_K(s, 4), "K divided by 4"),
    "fx for cx": (lambda s: entry_of_K(s, swap_fx_cx), "fx and cx exchanged"),
    "cy = fy": (lambda s: entry_of_K(s, cy_is_fy), "cy at the image centre"),
    "depth of the next frame": (
        lambda s: replace(s, depth=np.concatenate([s.depth[1:], s.depth[-1:]])),
        "the depth of the previous view",
    ),
    "images of the next frame": (
        lambda s: replace(s, images=np.roll(s.images, -1, axis=0)),
        "the image of the previous view",
    ),
}


def test_the_true_scene_is_ok_and_its_error_is_that_of_the_pixel_grid(truth):
    found = check_scene(truth, CheckConfig())
    assert found.verdict == "ok", found.diagnosis
    assert found.as_read.error < 0.01
    assert found.as_read.photometric > 0.8
    assert found.as_read.inliers > 0.9
    assert found.depth.coverage == 1
    assert found.diagnosis.startswith("analytic/room: 0.")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_misreading_is_refused_and_named(truth, name):
    plant, expected = PLANTED[name]
    found = check_scene(plant(truth), CheckConfig())
    assert found.verdict == "wrong"
    assert f" with {expected} (" in f"{found.diagnosis} (", found.diagnosis
    named = next(other for other in found.others if other.label == expected)
    assert named.error < 0.015
    assert f"{100 * named.error:.1f} %" in found.diagnosis or f"{100 * named.error:.2f} %" in found.diagnosis


def test_depth_eight_times_too_far_looks_consistent_but_is_not_believed(truth):
    """The trap of SUN3D: the relative error of undecoded depth is small by itself, since parallax vanishes."""
    found = check_scene(deeper(truth, 8), CheckConfig())
    assert found.as_read.error < CheckConfig().max_error
    assert found.verdict == "wrong"


def test_the_nulls_never_look_as_good_as_the_truth(truth):
    found = check_scene(truth, CheckConfig())
    assert all(null.error > 2 * found.as_read.error for null in found.nulls)
    assert {null.label for null in found.nulls} == {"no translation", "no motion"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: replace(s, depth=None), "no depth"),
        (lambda s: replace(s, world_T_cam=None), "no camera poses"),
        (lambda s: moved_apart(posed(s, np.tile(np.eye(4), (VIEWS, 1, 1))), 1), "the cameras span 0 mm"),
    ],
)
def test_what_cannot_be_judged_is_said_and_not_failed(truth, change, reason):
    found = check_scene(change(truth), CheckConfig())
    assert found.verdict == "cannot tell"
    assert reason in found.diagnosis


def test_a_still_camera_that_passes_the_baseline_limit_cannot_tell(truth):
    """Baselines of centimetres before things at metres: unmoved cameras explain the depth as well."""
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 0.02, VIEWS)
    _, depth = rendered(poses)
    images, _ = rendered(poses)
    noisy = depth * np.random.default_rng(0).normal(1, 0.02, depth.shape)
    still = replace(truth, images=images, depth=noisy.astype(np.float32), world_T_cam=poses)
    found = check_scene(still, CheckConfig(min_baseline=0.005))
    assert found.verdict == "cannot tell"
    assert "no translation" in found.diagnosis or "no motion" in found.diagnosis


def test_poses_that_are_simply_wrong_are_refused_without_a_name(truth):
    rng = np.random.default_rng(3)
    poses = truth.world_T_cam.copy()
    for world_T_cam in poses:
        world_T_cam[:3, :3] = cv2.Rodrigues(rng.normal(0, 0.15, 3))[0] @ world_T_cam[:3, :3]
        world_T_cam[:3, 3] += rng.normal(0, 0.8, 3)
    found = check_scene(posed(truth, poses), CheckConfig(max_error=0.05))
    assert found.verdict == "wrong"
    assert "no usual misreading explains it" in found.diagnosis


def test_a_scene_in_millimetres_throughout_is_refused_by_its_depth_range(truth):
    found = check_scene(deeper(moved_apart(truth, 1000), 1000), CheckConfig())
    assert found.verdict == "wrong"
    assert "units?" in found.diagnosis
    assert "0.5 to 6 m" in found.diagnosis


def test_images_of_another_scene_are_refused(truth):
    images = np.random.default_rng(0).integers(0, 255, truth.images.shape).astype(np.uint8)
    found = check_scene(replace(truth, images=images), CheckConfig())
    assert found.verdict == "wrong"
    assert "images do not follow" in found.diagnosis


def test_the_mask_takes_pixels_out(truth):
    depth, mask = truth.depth.copy(), np.ones(truth.depth.shape, bool)
    depth[:, : SIZE[0] // 2] *= 3
    mask[:, : SIZE[0] // 2] = False
    plain = check_scene(replace(truth, depth=depth), CheckConfig())
    masked = check_scene(replace(truth, depth=depth, mask=mask), CheckConfig())
    assert plain.as_read.inliers < 0.9 < masked.as_read.inliers
    assert masked.verdict == "ok"
    assert (plain.depth.coverage, masked.depth.coverage) == (1, 0.5)


def two_walls(first, second):
    """Two views of the same place, each with a wall at its own depth."""
    depth = np.stack([np.full(SIZE, first, np.float32), np.full(SIZE, second, np.float32)])
    return Reading(np.zeros_like(depth), depth, np.repeat(K[None], 2, 0), np.repeat(np.eye(4)[None], 2, 0))


def test_the_error_of_two_walls_is_worked_by_hand():
    # 2 m in one view and 2.5 m in the other: 0.5/2.5 one way, 0.5/2 the other; the median of both halves is their mean.
    found = score(two_walls(2.0, 2.5), [(0, 1)], samples=400, tolerance=0.01, min_overlap=0.1)
    assert found.error == pytest.approx((0.2 + 0.25) / 2)
    assert found.overlap == 1
    assert found.inliers == 0
    assert found.pairs == 2


def test_being_behind_a_surface_is_no_excuse_unless_the_first_view_confirms_it():
    pixels = sample_pixels(SIZE, 400)[None]
    first, second = np.array([1]), np.array([0])
    reading = two_walls(2.0, 2.5)
    landing = land(reading, first, second, pixels)
    assert (landing.z > 2.4).all()
    assert not occluded(reading, first, second, landing, tolerance=0.05).any()


def test_a_thing_in_front_hides_what_the_other_view_sees_behind_it():
    depth = np.full((2, *SIZE), 4.0, np.float32)
    poses = np.repeat(np.eye(4)[None], 2, 0)
    poses[1, 0, 3] = 1.0
    shift = 116.0 / 2 - 116.0 / 4
    depth[0, 30:60, 70:100] = 2.0
    depth[1, 30:60, 12:42] = 2.0  # the same square, 58 pixels to the left at 2 m
    reading = Reading(np.zeros_like(depth), depth, np.repeat(K[None], 2, 0), poses)
    pixels = sample_pixels(SIZE, SIZE[0] * SIZE[1])[None]
    first, second = np.array([0]), np.array([1])
    hidden = occluded(reading, first, second, land(reading, first, second, pixels), tolerance=0.05).reshape(SIZE)
    expected = np.zeros(SIZE, bool)
    expected[30:60, 12 + 29 : 42 + 29] = True  # the wall at 4 m moves by 29 pixels only
    expected[30:60, 70:100] = False
    assert shift == 29
    assert (hidden == expected).all()


def test_pairs_have_a_baseline_or_an_angle_and_prefer_the_listed_ones():
    poses = cameras()
    limits = {"count": 4, "min_baseline": 0.1, "min_angle": 2.0, "max_angle": 40.0}
    for first, second in choose_pairs(poses, None, **limits):
        assert np.linalg.norm(poses[first, :3, 3] - poses[second, :3, 3]) >= 0.1
    listed = tuple(((11 - i, 1.0),) for i in range(VIEWS))
    chosen = choose_pairs(poses, listed, **{**limits, "max_angle": 180.0})
    assert any(first + second == 11 for first, second in chosen)


def test_an_unknown_key_and_a_bad_value_are_refused():
    with pytest.raises(ValueError, match="min_base"):
        CheckConfig(min_base=0.1)
    with pytest.raises(ValueError, match="ratio"):
        CheckConfig(ratio=0.5)


# --- raw folders ---------------------------------------------------------------------------------------------------

RAW_K = np.array([[290.0, 0, 160.0], [0, 290.0, 120.0], [0, 0, 1]])
RAW_SIZE = (240, 320)


@pytest.fixture(scope="module")
def captured():
    poses = cameras()
    return poses, *rendered(poses, RAW_SIZE, RAW_K)


def write_sequence(folder, captured, *, rotate=True, skip=(), rows=3, extra=None):
    """A SUN3D sequence of the analytic scene; `skip`: depth files that were dropped; `extra`: another extrinsics file."""
    poses, images, depths = captured
    for i, (image, depth) in enumerate(zip(images, depths)):
        write_jpg(folder / "image" / f"{i + 1:07d}-{33_516 * i:012d}.jpg", image)
        if i not in skip:
            millimetres = np.rint(1000 * depth).astype(np.uint16)
            stored = (millimetres << 3) | (millimetres >> 13) if rotate else millimetres
            number = i + 1 - sum(s < i for s in skip)
            write_png16(folder / "depth" / f"{number:07d}-{33_516 * i + 4000:012d}.png", stored)
    (folder / "extrinsics").mkdir(parents=True)
    np.savetxt(folder / "intrinsics.txt", RAW_K)
    np.savetxt(folder / "extrinsics" / "20140101000000.txt", np.concatenate([T[:rows] for T in poses]))
    if extra is not None:
        np.savetxt(folder / "extrinsics" / "20150101000000.txt", np.concatenate([T[:3] for T in extra]))
    return folder


def test_a_good_raw_folder_is_ok_and_everything_is_written(tmp_path, captured):
    folder = write_sequence(tmp_path / "raw" / "home" / "room", captured)
    found = check_folder("sun3d", folder.parents[1], out=tmp_path / "out")
    assert [scene.verdict for scene in found.scenes] == ["ok"], verdict_table(found)
    summary = json.loads((tmp_path / "out/checks.json").read_text())
    assert summary["verdicts"] == {"ok": 1, "wrong": 0, "cannot tell": 0}
    assert summary["scenes"]["home/room"]["as_read"]["error"] < 0.01
    picture = cv2.imread(str(tmp_path / "out/home/room.png"))
    assert picture.shape[1] > 600
    assert (tmp_path / "out/home/room.png").stat().st_size < 400_000
    assert (tmp_path / "out/home/room.ply").read_bytes().startswith(b"ply\n")
    stored = json.loads((tmp_path / "out/home/room.json").read_text())
    assert {"poses inverted", "depth divided by 8"} <= {other["label"] for other in stored["others"]}
    require_true(found)


MISREAD = {
    "bits as stored": ({}, {"depth_coding": "raw"}, "depth rotated right by 3 bits"),
    "bits never rotated": ({"rotate": False}, {}, "depth bits not rotated"),
    "world-to-camera": ({}, {"pose_direction": "world_to_camera"}, "poses read as camera-to-world"),
    "paired by index": ({"skip": (1, 4)}, {"association": "index"}, "frames paired by nearest time"),
    "paired by id": ({"skip": (1, 4)}, {"association": "id"}, "frames paired by nearest time"),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_misreading_of_raw_files_is_named_by_the_reader(tmp_path, captured, name):
    written, options, expected = MISREAD[name]
    folder = write_sequence(tmp_path / "home" / "room", captured, **written)
    (found,) = check_folder("sun3d", folder.parents[1], options=options).scenes
    assert found.verdict == "wrong"
    assert f"with {expected}" in found.diagnosis, found.diagnosis
    assert "median error as read" in found.diagnosis


def test_another_extrinsics_file_is_named(tmp_path, captured):
    rng = np.random.default_rng(0)
    poor = captured[0].copy()
    poor[:, :3, 3] += rng.normal(0, 0.15, (len(poor), 3))
    folder = write_sequence(tmp_path / "home" / "room", captured, extra=poor)
    (found,) = check_folder("sun3d", folder.parents[1]).scenes
    assert found.verdict == "wrong"
    assert "with extrinsics 20140101000000.txt" in found.diagnosis


def test_pose_rows_in_fours_make_the_folder_unreadable_and_the_right_reading_is_named(tmp_path, captured):
    folder = write_sequence(tmp_path / "home" / "room", captured, rows=4)
    (found,) = check_folder("sun3d", folder.parents[1]).scenes
    assert found.verdict == "wrong"
    assert "cannot be read" in found.diagnosis
    assert "poses read 4 rows at a time" in found.diagnosis
    (misread,) = check_folder(
        "sun3d", write_sequence(tmp_path / "b/home/room", captured).parents[1], options={"pose_rows": 4}
    ).scenes
    assert "poses read 3 rows at a time" in misread.diagnosis


def test_a_broken_file_is_reported_with_the_readers_words(tmp_path, captured):
    folder = write_sequence(tmp_path / "home" / "room", captured)
    picture = sorted((folder / "image").iterdir())[3]
    picture.write_bytes(picture.read_bytes()[:500])
    found = check_folder("sun3d", folder.parents[1])
    assert picture.name in found.scenes[0].diagnosis
    with pytest.raises(PlumblineError, match="1 of 1 scenes are not true as read"):
        require_true(found)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ConfigError, match="There is: dtu, sun3d, rgbd, aerialmd, re10k"):
        check_folder("nerf", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        check_folder("sun3d", tmp_path / "absent")
    with pytest.raises(ConfigError, match="depth_codin"):
        check_folder("sun3d", tmp_path, options={"depth_codin": "raw"})


# --- data sets -----------------------------------------------------------------------------------------------------


def views_of(scene):
    return [
        View(name, scene.images[i], scene.K[i], scene.world_T_cam[i], scene.depth[i])
        for i, name in enumerate(scene.view_names)
    ]


def test_a_wrong_scene_fails_the_data_set_after_everything_is_written(tmp_path, truth, captured):
    from plumbline.config import DatasetConfig

    raw = tmp_path / "raw"
    write_sequence(raw / "good", captured)
    config = DatasetConfig(
        format="sun3d",
        source={"kind": "folder", "path": str(raw)},
        image_size=(96, 128),
        depth_range=(0.5, 6.0),
        split="seeded",
    )
    for name, scene in (("bad", posed(truth, np.linalg.inv(truth.world_T_cam))), ("good", truth)):
        write_scene(
            tmp_path / "scenes/sun3d" / name, dataset="sun3d", name=name, views=views_of(scene), depth_range=(0.5, 6.0)
        )
    write_sequence(raw / "bad", captured)
    with pytest.raises(PlumblineError, match=r"sun3d/bad: .*poses inverted") as raised:
        checks.check_dataset(
            tmp_path / "scenes/sun3d", CheckConfig(), out=tmp_path / "out", dataset=config, raw=raw, workers=1
        )
    assert "datasets.sun3d.quarantine" in str(raised.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "checks.json", "bad.json", "bad.png", "bad.ply", "good.json", "good.png", "good.ply",
    }  # fmt: skip
    assert json.loads((tmp_path / "out/checks.json").read_text())["scenes"]["good"]["verdict"] == "ok"


def test_the_table_puts_wrong_scenes_first(truth):
    good, bad = check_scene(truth, CheckConfig()), check_scene(deeper(truth, 8), CheckConfig())
    table = verdict_table(DatasetCheck(dataset="analytic", scenes=(good, bad))).splitlines()
    assert table[0].split() == ["verdict", "error", "inliers", "overlap", "texture", "pairs"]
    assert table[1].split()[0] == "wrong"
    assert table[2].split()[0] == "ok"


def test_options_of_the_reader_reach_the_check(tmp_path, captured):
    folder = write_sequence(tmp_path / "home" / "room", captured)
    assert sun3d.Options().stride == 1
    (found,) = check_folder("sun3d", folder.parents[1], options={"max_frames": 5}).scenes
    assert found.views == 5


def test_readings_without_overlap_have_no_error():
    assert Found(label="x", error=None).photometric is None


def test_a_sheet_is_drawn_without_pairs_without_depth_and_with_two_views(tmp_path, truth):
    still = replace(truth, world_T_cam=np.tile(np.eye(4), (VIEWS, 1, 1)), name="still")
    bare = replace(truth, depth=None, world_T_cam=None, name="bare")
    pair = replace(
        truth,
        name="pair",
        view_names=truth.view_names[:2],
        images=truth.images[:2],
        depth=truth.depth[:2],
        K=truth.K[:2],
        world_T_cam=truth.world_T_cam[:2],
    )
    for scene, verdict in ((still, "cannot tell"), (bare, "cannot tell"), (pair, "ok")):
        found = check_scene(scene, CheckConfig())
        assert found.verdict == verdict
        checks.write_check(scene, found, tmp_path, CheckConfig())
    assert {path.name for path in tmp_path.iterdir()} == {
        "still.json", "still.png", "still.ply", "bare.json", "bare.png", "pair.json", "pair.png", "pair.ply",
    }  # fmt: skip
