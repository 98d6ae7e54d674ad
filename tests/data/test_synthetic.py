"""The generated data set: exact geometry, the formats' own facts, and the same bytes for the same seed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from plumbline.data.geometry import backproject, invert, project, transform
from plumbline.data.synthetic import Config, generate, paths, write
from plumbline.data.synthetic.raycast import depth_map, prepare, render
from plumbline.data.synthetic.scenes import ARRANGEMENTS, arrangement, room
from plumbline.data.synthetic.sensor import Sensor, measure, photograph
from plumbline.data.synthetic.shapes import Box, Ellipsoid, Frustum
from plumbline.data.synthetic.world import Camera, look_at
from plumbline.files import read_image, read_pfm, read_png8, read_png16

SCAN = {"layout": "dtu", "scenes": ["scan2", "scan1"], "views": 12, "image_size": [64, 80], "seed": 3}
SEQUENCE = {"layout": "sun3d", "scenes": ["house/one", "house/two"], "views": 16, "image_size": [48, 64], "seed": 3}


@pytest.fixture(scope="module")
def dtu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dtu")
    generate(Config.model_validate(SCAN), out, workers=1)
    return out


@pytest.fixture(scope="module")
def sun3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sun3d")
    generate(Config.model_validate(SEQUENCE), out, workers=1)
    return out


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def moved_depth_errors(depths: list[np.ndarray], Ks: list[np.ndarray], places: list[np.ndarray]) -> np.ndarray:
    """Relative differences of view 0's depth moved into view 1 and view 1's depth there, at the nearest pixel."""
    valid = depths[0] > 0
    points = transform(invert(places[1]) @ places[0], backproject(depths[0], Ks[0])[valid])
    uv, z = project(points, Ks[1])
    height, width = depths[1].shape
    u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
    seen = (z > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    other = depths[1][v[seen].astype(int), u[seen].astype(int)]
    return np.abs(other - z[seen])[other > 0] / z[seen][other > 0]


def read_cam(path: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    lines = path.read_text().splitlines()
    assert (lines[0], lines[5], lines[6], lines[10]) == ("extrinsic", "", "intrinsic", "")
    cam_T_world = np.array([[float(x) for x in line.split()] for line in lines[1:5]])
    K = np.array([[float(x) for x in line.split()] for line in lines[7:10]])
    return cam_T_world, K, [float(x) for x in lines[11].split()]


# --- shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [Box((0.3, 0.2, 0.4)), Box((3.0, 2.0, 2.5), inside=True), Ellipsoid((0.3, 0.2, 0.4)), Frustum(0.1, 0.3, 0.5)],
    ids=["box", "room", "ellipsoid", "frustum"],
)
def test_points_met_by_rays_lie_on_the_surface_and_face_the_ray(shape: Box | Ellipsoid | Frustum) -> None:
    rng = np.random.default_rng(0)
    origin = (0.2, -0.5, -2.0)
    aims = rng.uniform(-0.5, 0.5, (3, 4000)) - np.array(origin)[:, None]
    x, y, z = aims.astype(np.float32)
    t = shape.intersect(origin, (x, y, z))
    met = np.isfinite(t)
    assert met.mean() > 0.15
    points = (np.array(origin)[:, None] + t[met] * np.stack([x, y, z])[:, met]).astype(np.float32)
    normals, _, _, faces = shape.surface(points)
    assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
    assert np.all(np.sum(normals * np.stack([x, y, z])[:, met], axis=0) < 1e-3)
    assert np.abs(residual(shape, points, faces)).max() < 2e-5


def residual(shape: Box | Ellipsoid | Frustum, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    x, y, z = points
    if isinstance(shape, Box):
        return np.max(np.abs(points) - np.asarray(shape.half)[:, None], axis=0)
    if isinstance(shape, Ellipsoid):
        return np.linalg.norm(points / np.asarray(shape.radii)[:, None], axis=0) - 1
    radius = (shape.top + shape.bottom) / 2 + (shape.bottom - shape.top) / shape.height * y
    return np.where(faces == 0, np.hypot(x, z) - radius, np.abs(y) - shape.height / 2)


def test_a_box_is_met_at_its_near_face_and_a_room_at_its_far_wall() -> None:
    straight = (np.zeros(1, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32))
    assert Box((1.0, 1.0, 0.5)).intersect((0.0, 0.0, -3.0), straight) == pytest.approx(2.5)
    assert Box((1.0, 1.0, 4.0), inside=True).intersect((0.0, 0.0, -3.0), straight) == pytest.approx(7.0)
    assert np.isinf(Box((1.0, 1.0, 0.5)).intersect((5.0, 0.0, -3.0), straight)).all()
    assert np.isinf(Box((1.0, 1.0, 0.5)).intersect((0.0, 0.0, 3.0), straight)).all()


# --- rendering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(ARRANGEMENTS))
def test_depth_of_two_views_agrees(kind: str) -> None:
    stage = prepare(arrangement(kind, np.random.default_rng(5)))
    K = np.array([[361.5, 0, 82.9], [0, 360.4, 66.4], [0, 0, 1.0]])
    places = list(paths.rig(12)[[5, 6]])
    depths = [depth_map(stage, Camera(K, place, (128, 160))) for place in places]
    errors = moved_depth_errors(depths, [K, K], places)
    assert len(errors) > 5000
    assert np.median(errors) < 1.5e-3
    assert np.mean(errors < 0.02) > 0.8


def test_images_show_the_same_surface_in_two_views() -> None:
    """Colours warped by exact depth match far better than colours at the same pixel."""
    stage = prepare(arrangement("table_top", np.random.default_rng(8)))
    K = np.array([[361.5, 0, 79.5], [0, 361.5, 63.5], [0, 0, 1.0]])
    places = paths.rig(12)[[5, 6]]
    (left, depth), (right, _) = (render(stage, Camera(K, place, (128, 160))) for place in places)
    valid = depth > 0
    uv, _ = project(transform(invert(places[1]) @ places[0], backproject(depth, K)[valid]), K)
    u, v = np.rint(uv[:, 0]).astype(int), np.rint(uv[:, 1]).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < 160) & (v < 128)
    warped = np.abs(left[valid][inside] - right[v[inside], u[inside]]).mean()
    unmoved = np.abs(left - right)[valid].mean()
    assert warped < 0.35 * unmoved


def test_rendered_depth_equals_the_cast_depth_and_the_picture_has_range() -> None:
    rng = np.random.default_rng(1)
    world, size = room(rng)
    stage, camera = prepare(world), Camera(np.diag([60.0, 60.0, 1.0]), paths.walk(rng, size)(0.5), (48, 64))
    light, depth = render(stage, camera)
    assert np.array_equal(depth, depth_map(stage, camera))
    assert depth.min() > 0.2 and depth.max() < 9
    picture = photograph(light, Sensor(), rng)
    assert picture.std() > 15 and 30 < picture.mean() < 225


def test_sensor_cuts_the_range_and_leaves_holes_behind_edges() -> None:
    depth = np.full((40, 80), 3.0, np.float32)
    depth[:, 40:60] = 1.5
    depth[:3] = 9.0
    rng = np.random.default_rng(0)
    exact = measure(depth, 285.0, Sensor(), rng)
    assert np.array_equal(exact[5:], depth[5:]) and not exact[:3].any()
    noisy = measure(depth, 285.0, Sensor(depth_noise=0.002, holes=True), rng)
    assert 0.02 < np.mean(noisy[5:] == 0) < 0.4
    far, near = noisy[10:, 5:35], noisy[10:, 45:55]
    assert far[far > 0].std() == pytest.approx(0.018, rel=0.2)
    assert near[near > 0].std() == pytest.approx(0.0045, rel=0.2)


def test_look_at_puts_the_target_in_the_middle_and_stays_upright() -> None:
    place = look_at(np.array([1.0, -2.0, 0.5]), np.array([-1.0, 0.0, 3.0]))
    seen = transform(invert(place), np.array([-1.0, 0.0, 3.0]))
    assert np.allclose(seen[:2], 0, atol=1e-12) and seen[2] == pytest.approx(np.sqrt(4 + 4 + 6.25))
    assert place[1, 0] == pytest.approx(0) and place[1, 1] > 0
    assert np.linalg.det(place[:3, :3]) == pytest.approx(1)


# --- DTU layout -------------------------------------------------------------------------------------------------


def test_dtu_files_have_the_published_names_and_counts(dtu: Path) -> None:
    for scan in ("scan1", "scan2"):
        pictures = sorted(path.name for path in (dtu / "Rectified" / f"{scan}_train").iterdir())
        assert pictures == [f"rect_{view:03d}_3_r5000.png" for view in range(1, 13)]
        depths = sorted(path.name for path in (dtu / "Depths" / f"{scan}_train").iterdir())
        assert depths == sorted(
            f"depth_{kind}" for v in range(12) for kind in (f"map_{v:04d}.pfm", f"visual_{v:04d}.png")
        )
    for folder in (dtu / "Cameras", dtu / "Cameras" / "train"):
        assert len(list(folder.glob("*_cam.txt"))) == 12


def test_dtu_depth_file_is_a_bottom_up_pfm_of_the_published_size(tmp_path: Path) -> None:
    depth = np.linspace(425, 935, 128 * 160, dtype=np.float32).reshape(128, 160)
    write.dtu_view(tmp_path, "scan7", 4, 3, np.zeros((512, 640, 3), np.uint8), depth)
    raw = (tmp_path / "Depths" / "scan7_train" / "depth_map_0004.pfm").read_bytes()
    assert len(raw) == 81_941
    assert raw.startswith(b"Pf\n160 128\n-1.000000\n")
    assert np.frombuffer(raw[-640:], "<f4").tolist() == depth[0].tolist()


def test_dtu_depth_is_in_millimetres_inside_the_range_and_its_mask_is_smaller(dtu: Path) -> None:
    depth = read_pfm(dtu / "Depths" / "scan2_train" / "depth_map_0003.pfm")
    visual = read_png8(dtu / "Depths" / "scan2_train" / "depth_visual_0003.png")
    assert depth.shape == visual.shape == (16, 20)
    measured = depth[depth > 0]
    assert measured.size > 50 and measured.min() >= 425 and measured.max() <= 935
    assert not visual[depth == 0].any() and (visual > 0).sum() <= (depth > 0).sum()


def test_dtu_depth_moves_between_views_with_the_written_cameras(dtu: Path) -> None:
    cams = [read_cam(dtu / "Cameras" / "train" / f"{view:08d}_cam.txt") for view in (5, 6)]
    depths = [read_pfm(dtu / "Depths" / "scan2_train" / f"depth_map_{view:04d}.pfm") for view in (5, 6)]
    errors = moved_depth_errors(depths, [cam[1] for cam in cams], [invert(cam[0]) for cam in cams])
    assert np.median(errors) < 0.01
    swapped = moved_depth_errors(depths, [cam[1] for cam in cams], [cam[0] for cam in cams])
    assert swapped.size == 0 or np.median(swapped) > 0.03


def test_dtu_full_size_intrinsics_follow_the_published_resize_and_cut(tmp_path: Path) -> None:
    train_K = np.array([[361.54125, 0, 82.900625], [0, 360.3975, 66.383875], [0, 0, 1]])
    write.dtu_cameras(tmp_path, train_K, (512, 640), paths.rig(2), 425.0)
    _, full_K, tail = read_cam(tmp_path / "Cameras" / "00000000_cam.txt")
    assert np.allclose(full_K, [[2892.33, 0, 823.205], [0, 2883.18, 619.071], [0, 0, 1]], atol=1e-4)
    assert tail == [425.0, 2.5]
    assert (tmp_path / "Cameras" / "train" / "00000001_cam.txt").read_text().endswith("\n425.0 2.5\n")


def test_dtu_image_and_depth_share_rays(dtu: Path) -> None:
    """Depth pixel (u, v) is image pixel (4u, 4v): the K of the image is four times the depth's, pixel centres whole."""
    config = Config.model_validate(SCAN)
    _, K, _ = read_cam(dtu / "Cameras" / "train" / "00000005_cam.txt")
    kind = next(iter(ARRANGEMENTS))
    rng = np.random.default_rng([config.seed, 0x2B7F8351])
    stage = prepare(arrangement(kind, rng))
    image_K = np.diag([4.0, 4.0, 1.0]) @ K
    fine = depth_map(stage, Camera(image_K, paths.rig(12)[5], config.image_size))
    coarse = depth_map(stage, Camera(K, paths.rig(12)[5], (16, 20)))
    assert np.allclose(fine[::4, ::4], coarse, rtol=1e-5)


def test_dtu_pair_file_lists_the_best_sources_first(dtu: Path) -> None:
    lines = (dtu / "Cameras" / "pair.txt").read_text().splitlines()
    assert lines[0] == "12" and len(lines) == 1 + 2 * 12
    for view in range(12):
        assert lines[1 + 2 * view] == str(view)
        tokens = lines[2 + 2 * view].split()
        others, scores = [int(x) for x in tokens[1::2]], [float(x) for x in tokens[2::2]]
        assert int(tokens[0]) == 10 == len(others) == len(set(others))
        assert view not in others and set(others) <= set(range(12))
        assert scores == sorted(scores, reverse=True) and scores[-1] > 0


def test_pair_scores_prefer_five_degrees() -> None:
    places = np.stack([look_at(np.array([np.sin(a), 0, -np.cos(a)]), np.zeros(3)) for a in np.radians([0, 1, 5, 30])])
    scores = paths.pair_scores(places, np.zeros((1, 3)))
    assert scores[0] == pytest.approx([0, np.exp(-8), 1, np.exp(-(25**2) / 200)], rel=1e-6)


# --- SUN3D layout -----------------------------------------------------------------------------------------------


def stamps(folder: Path) -> np.ndarray:
    """(n, 2): number and microsecond of each file, in name order."""
    return np.array([[int(part) for part in path.stem.split("-")] for path in sorted(folder.iterdir())])


def poses(path: Path) -> np.ndarray:
    rows = np.loadtxt(path).reshape(-1, 3, 4)
    return np.concatenate([rows, np.tile([[[0, 0, 0, 1.0]]], (len(rows), 1, 1))], axis=1)


def metres(path: Path) -> np.ndarray:
    stored = read_png16(path)
    return (((stored >> 3) | (stored << 13)) / 1000.0).astype(np.float32)


def test_sun3d_names_are_counted_from_one_in_microseconds(sun3d: Path) -> None:
    for sequence in ("one", "two"):
        for path in (sun3d / "house" / sequence).glob("*/*-*.*"):
            assert len(path.stem) == 20 and path.stem[7] == "-"
        numbers = stamps(sun3d / "house" / sequence / "image")
        assert numbers[:, 0].tolist() == list(range(1, 17))
        assert set(np.diff(numbers[:, 1])) == {33_516}


def test_sun3d_depth_is_rotated_by_three_bits(sun3d: Path) -> None:
    path = min((sun3d / "house" / "one" / "depth").iterdir())
    stored = read_png16(path)
    assert not (stored & 7).any() and stored.max() > 8000
    assert 0.3 < np.median(metres(path)[metres(path) > 0]) < 8
    assert write.rotated(np.array([[8849]], np.uint16)).tolist() == [[(8849 << 3) % 65536 + 1]]


def test_sun3d_depth_stream_drops_frames_and_only_time_pairs_it(sun3d: Path) -> None:
    colour, depth = (stamps(sun3d / "house" / "two" / kind) for kind in ("image", "depth"))
    assert len(set(range(1, depth[-1, 0] + 1)) - set(depth[:, 0])) > 0
    nearest = np.abs(colour[:, 1][:, None] - depth[:, 1][None]).min(axis=1)
    assert np.median(nearest) < 17_000 and nearest.max() <= 33_500
    by_place = np.abs(colour[:, 1] - depth[: len(colour), 1])
    numbered = dict(depth.tolist())
    by_number = [abs(time - numbered[number]) for number, time in colour.tolist() if number in numbered]
    assert by_place.min() > 100_000 and min(by_number) > 100_000


def test_sun3d_poses_are_camera_to_world_and_agree_with_depth(sun3d: Path) -> None:
    root = sun3d / "house" / "two"
    colour, depth = stamps(root / "image"), stamps(root / "depth")
    K = np.loadtxt(root / "intrinsics.txt")
    versions = sorted((root / "extrinsics").iterdir())
    assert [len(poses(path)) for path in versions] == [16, 16]
    files = sorted((root / "depth").iterdir())
    chosen = [int(np.abs(depth[:, 1] - colour[k, 1]).argmin()) for k in (2, 13)]
    depths = [metres(files[k]) for k in chosen]
    by_version = [poses(path) for path in versions]
    right = np.median(moved_depth_errors(depths, [K, K], [by_version[-1][2], by_version[-1][13]]))
    inverted = np.median(moved_depth_errors(depths, [K, K], list(invert(by_version[-1][[2, 13]]))))
    assert right < 0.015 and inverted > 2 * right
    assert np.abs(by_version[0] - by_version[1]).max() > 0.5


def test_sun3d_pictures_are_colour_of_the_asked_size(sun3d: Path) -> None:
    image = read_image(min((sun3d / "house" / "one" / "image").iterdir()))
    assert image.shape == (48, 64, 3) and image.std() > 10


def test_sun3d_walk_moves_one_to_three_centimetres_a_frame() -> None:
    for seed in range(8):
        path = paths.walk(np.random.default_rng(seed), (5.0, 2.6, 4.5))
        places = np.stack([path(k * 0.033516) for k in range(80)])
        steps = np.linalg.norm(np.diff(places[:, :3, 3], axis=0), axis=1)
        assert 0.004 < np.median(steps) < 0.03 and steps.max() < 0.06
        gaps = np.linalg.norm(places[20:, :3, 3] - places[:-20, :3, 3], axis=1)
        assert np.median(gaps) > 0.1


# --- determinism and configuration ------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_processes_change_nothing(tmp_path: Path) -> None:
    finished: list[str] = []
    config = Config.model_validate({**SCAN, "views": 2, "image_size": [32, 40]})
    generate(config, tmp_path / "here", workers=1)
    generate(config, tmp_path / "processes", workers=2, progress=finished.append)
    assert digest(tmp_path / "processes") == digest(tmp_path / "here")
    assert sorted(finished) == ["scan1", "scan2"]


@pytest.mark.parametrize(("base", "made"), [(SCAN, "dtu"), (SEQUENCE, "sun3d")], ids=["dtu", "sun3d"])
def test_another_seed_gives_other_pictures(
    base: dict[str, object], made: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = Config.model_validate({**base, "scenes": base["scenes"][:1], "views": 2, "seed": 4})
    generate(config, tmp_path, workers=1)
    name = next(
        p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*")) if p.suffix == ".jpg" or p.name.startswith("rect_")
    )
    assert (tmp_path / name).read_bytes() != (request.getfixturevalue(made) / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [511, 640]}, "multiples of 4"),
        ({"scenes": ["scan1", "scan1"]}, "stands twice"),
        ({"scenes": []}, "at least 1"),
        ({"colour": 1}, "Extra inputs"),
        ({"sensor": {"noise": -1}}, "greater than or equal"),
    ],
)
def test_config_refuses_what_cannot_be_made(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({**SCAN, **change})
