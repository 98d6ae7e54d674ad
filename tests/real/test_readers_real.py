"""The readers on real captures: what is on disk there, and that only the right reading keeps geometry together."""

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from plumbline.data import dtu, rgbd, sun3d
from plumbline.data.canonical import fit, validate_view
from plumbline.data.geometry import backproject, invert, project, rotation_angle, transform
from plumbline.data.mvsnet_text import depth_range, read_camera, read_pairs
from plumbline.data.reading import read_numbers
from plumbline.errors import DataError
from plumbline.files import read_pfm, read_png16, write_png16

FITTED = (120, 160)


def valid_views(module, raw: Path, scene: str, options, select: list[int] | None = None) -> list:
    views = list(module.views(raw, scene, options, select=select))
    for view in views:
        validate_view(view, scene)
    return views


def disagreement(a, b) -> float:
    """Median of |z moved from a to b - z measured in b| / z, over pixels measured in both; views at their own size."""
    a, b = fit(a, FITTED), fit(b, FITTED)
    points_b = transform(invert(b.world_T_cam) @ a.world_T_cam, backproject(a.depth, a.K)[a.depth > 0])
    uv, z = project(points_b, b.K)
    ahead = z > 0
    columns, rows = np.rint(uv[ahead]).astype(int).T
    inside = (columns >= 0) & (columns < FITTED[1]) & (rows >= 0) & (rows < FITTED[0])
    measured = b.depth[rows[inside], columns[inside]]
    moved = z[ahead][inside]
    both = measured > 0
    assert both.sum() > 1000
    return float(np.median(np.abs(moved[both] - measured[both]) / measured[both]))


def median_disagreement(views: list, pairs: list[tuple[int, int]]) -> float:
    return float(np.median([disagreement(views[i], views[j]) for i, j in pairs]))


# --- SUN3D --------------------------------------------------------------------------------------------------------


def test_tum_cabinet_as_sun3d(real_data):
    raw, scene = real_data / "sun3d_tum_cabinet", "tum/cabinet"
    assert sun3d.scenes(raw, sun3d.Options()) == [scene]
    views = valid_views(sun3d, raw, scene, sun3d.Options())
    assert len(views) == 58
    np.testing.assert_allclose(views[0].K, [[535.4, 0, 320.1], [0, 539.2, 247.6], [0, 0, 1]])
    # Three keyframes apart: the wrong scale of raw bits shows only against a baseline in metres.
    select = [i for start in range(0, 40, 5) for i in (start, start + 3)]
    pairs = [(i, i + 1) for i in range(0, len(select), 2)]
    assert median_disagreement([views[i] for i in select], pairs) < 0.02
    for label, options in sun3d.alternatives(raw, scene, sun3d.Options()):
        others = list(sun3d.views(raw, scene, options, select=select))
        if "4 rows" in label:
            with pytest.raises(DataError, match="not a rotation"):
                validate_view(others[2], label)
        else:
            assert median_disagreement(others, pairs) > 0.06, label


def test_tum_cabinet_misreadings_are_those_that_apply(real_data):
    labels = [label for label, _ in sun3d.alternatives(real_data / "sun3d_tum_cabinet", "tum/cabinet", sun3d.Options())]
    assert labels == [
        "depth bits not rotated (raw value as mm)",
        "poses read 4 rows at a time",
        "poses read as world-to-camera",
    ]


HARVARD = [("harvard_c11/hv_c11_2", "depthTSDF", 14, 8.0), ("harvard_tea_2/hv_tea2_2", "depth", 24, 3.3)]


@pytest.mark.parametrize(("scene", "folder", "count", "farthest"), HARVARD)
def test_harvard_depth_coding(real_data, scene, folder, count, farthest):
    files = sorted((real_data / "sun3d_harvard" / scene / folder).glob("*.png"))
    assert len(files) == count
    stored = np.stack([read_png16(path) for path in files])
    assert not (stored & 7).any()
    depth = np.stack([sun3d.decode(values, "rotated") for values in stored])
    assert depth.max() < farthest and 0.4 < np.percentile(depth[depth > 0], 1) < np.percentile(depth[depth > 0], 50) < 3


@pytest.mark.parametrize(("scene", "folder", "count", "farthest"), HARVARD)
def test_harvard_pairs_by_time_although_ids_drift(real_data, tmp_path, scene, folder, count, farthest):
    raw = with_poses(real_data / "sun3d_harvard", tmp_path, scene, count)
    options = sun3d.Options(depth_folder=folder, max_time_gap_ms=40)
    frames = sun3d.frames(raw, scene, options)
    partner = {int(frame.name[:7]): int(frame.depth.name[:7]) for frame in frames}
    assert len(frames) == count and len(set(partner.values())) == count
    if "c11" in scene:
        assert partner[871] == 874 and partner[1] == 2 and partner[51] == 51
    else:
        assert partner[2] == 1 and partner[580] == 582
    by_id = options.model_copy(update={"association": "id"})
    assert ("frames paired by id", by_id) in sun3d.alternatives(raw, scene, options)


def with_poses(real: Path, out: Path, scene: str, count: int) -> Path:
    """The real sequence by symbolic links, with a pose file beside it, which the capture at hand lacks."""
    (out / scene / "extrinsics").mkdir(parents=True)
    for path in (real / scene).iterdir():
        (out / scene / path.name).symlink_to(path)
    np.savetxt(out / scene / "extrinsics" / "20140101000000.txt", np.tile(np.eye(4)[:3], (count, 1)))
    return out


@pytest.mark.parametrize(("scene", "folder", "count", "farthest"), HARVARD)
def test_harvard_without_poses_says_so(real_data, scene, folder, count, farthest):
    with pytest.raises(DataError, match=rf"^{scene}: no poses: extrinsics/ has no \.txt file"):
        list(sun3d.views(real_data / "sun3d_harvard", scene, sun3d.Options(depth_folder=folder)))


@pytest.fixture
def maryland(real_data: Path, tmp_path: Path) -> Path:
    """maryland_hotel3 with its real pose files and frame names; no pictures are at hand, so the files are blank."""
    real, folder = real_data / "sun3d_maryland_hotel3", tmp_path / "hotel_umd" / "maryland_hotel3"
    for name in ("image", "depth"):
        (folder / name).mkdir(parents=True)
    blank = tmp_path / "blank.png"
    write_png16(blank, np.full((2, 2), 8, np.uint16))
    for image, depth in zip(*[iter((real / "derived_image_depth_pairs.tsv").read_text().split())] * 2, strict=True):
        (folder / "image" / image).touch()
        (folder / "depth" / depth).hardlink_to(blank)
    (folder / "extrinsics").symlink_to(real / "data" / "extrinsics")
    (folder / "intrinsics.txt").symlink_to(real / "a.txt")
    return tmp_path


def test_maryland_poses_and_pairs(real_data, maryland):
    scene = "hotel_umd/maryland_hotel3"
    frames = sun3d.frames(maryland, scene, sun3d.Options())
    assert len(frames) == 1869
    table = (real_data / "sun3d_maryland_hotel3" / "derived_image_depth_pairs.tsv").read_text().split()
    assert [name for frame in frames for name in (frame.image.name, frame.depth.name)] == table
    rows = read_numbers(maryland / scene / "extrinsics" / "20140112151017.txt").reshape(-1, 3, 4)
    np.testing.assert_array_equal(np.stack([frame.world_T_cam[:3] for frame in frames]), rows)


def test_maryland_versions_agree_but_for_the_world_frame(maryland):
    scene = "hotel_umd/maryland_hotel3"
    last = np.stack([frame.world_T_cam for frame in sun3d.frames(maryland, scene, sun3d.Options())])
    labels = [label for label, _ in sun3d.alternatives(maryland, scene, sun3d.Options())]
    assert labels[-1] == "extrinsics 20131202163427.txt" and len([x for x in labels if x.startswith("extrinsics")]) == 5
    older = sun3d.Options(extrinsics="20131202163427.txt")
    other = np.stack([frame.world_T_cam for frame in sun3d.frames(maryland, scene, older)])
    steps = [invert(T[:-50]) @ T[50:] for T in (last, other)]
    angles = np.degrees(rotation_angle(invert(steps[0])[:, :3, :3] @ steps[1][:, :3, :3]))
    assert np.median(angles) < 3
    assert np.abs(last - other).max() > 0.05


# --- RGB-D --------------------------------------------------------------------------------------------------------


def check_poses(raw: Path, scene: str, count: int, gap: int, right: float, wrong: float) -> None:
    with pytest.raises(DataError, match=rf"views 0\.\.{count - 1}"):
        next(rgbd.views(raw, scene, rgbd.Options(), select=[count]))
    select = [i for start in range(0, count - gap, max(count // 8, 1)) for i in (start, start + gap)]
    pairs = [(i, i + 1) for i in range(0, len(select), 2)]
    assert median_disagreement(valid_views(rgbd, raw, scene, rgbd.Options(), select), pairs) < right
    changed = dict(rgbd.alternatives(raw, scene, rgbd.Options()))
    inverse = next(options for label, options in changed.items() if label.startswith("poses read as"))
    assert median_disagreement(valid_views(rgbd, raw, scene, inverse, select), pairs) > wrong


def test_seven_scenes(real_data):
    raw = real_data / "seven_scenes"
    assert rgbd.scenes(raw, rgbd.Options()) == ["redkitchen/seq-01"]
    check_poses(raw, "redkitchen/seq-01", 200, 20, right=0.015, wrong=0.1)


def test_seven_scenes_depth_needs_its_own_intrinsics(real_data):
    raw, scene = real_data / "seven_scenes" / "redkitchen", "seq-01"
    changed = dict(rgbd.alternatives(raw, scene, rgbd.Options()))
    pairs = [(i, i + 1) for i in range(0, 10, 2)]
    select = [i for start in range(0, 160, 32) for i in (start, start + 40)]
    right = valid_views(rgbd, raw, scene, rgbd.Options(), select)
    assert right[0].K[0, 0] == 532.6 and right[0].depth_K[0, 0] == 585
    wrong = valid_views(rgbd, raw, scene, changed["depth read with the colour camera's intrinsics"], select)
    assert median_disagreement(right, pairs) < 0.7 * median_disagreement(wrong, pairs)


def test_rgbd_objects(real_data):
    raw = real_data / "rgbd_objects"
    assert rgbd.scenes(raw, rgbd.Options()) == ["data/sample"]
    views = valid_views(rgbd, raw, "data/sample", rgbd.Options(), [0])
    assert views[0].depth_K is None and views[0].K[0, 0] == pytest.approx(615.195, abs=1e-3)
    check_poses(raw, "data/sample", 50, 8, right=0.02, wrong=0.1)


def test_scannet_sample(real_data):
    raw, scene = real_data / "scannet_sample", "scannet_sample/scans_test/scene0707_00"
    assert rgbd.scenes(raw, rgbd.Options()) == [scene]
    views = valid_views(rgbd, raw, scene, rgbd.Options())
    assert [view.name for view in views] == ["0", "1", "2"]
    assert views[0].image.shape == (968, 1296, 3) and views[0].depth.shape == (480, 640)
    scaled = np.diag([640 / 1296, 480 / 968, 1]) @ views[0].K
    assert np.abs(scaled - views[0].depth_K).max() < 0.6
    assert disagreement(views[0], views[2]) < 0.005


def test_demon_pairs(real_data):
    raw = real_data / "demon_pairs"
    scenes = ["test/mvs_test_00000", "train/sun3d_train_0.1m_to_0.2m_00000"]
    assert rgbd.scenes(raw, rgbd.Options()) == scenes
    for scene, right in zip(scenes, (0.005, 0.01), strict=True):
        views = valid_views(rgbd, raw, scene, rgbd.Options())
        assert disagreement(*views) < right
        ((label, options),) = rgbd.alternatives(raw, scene, rgbd.Options())
        assert label == "poses read as camera-to-world"
        assert disagreement(*valid_views(rgbd, raw, scene, options)) > 0.1


# --- DTU and MVSNet's text files ----------------------------------------------------------------------------------


def test_dtu_pair_list(real_data):
    pairs = read_pairs(real_data / "dtu_pair_lists" / "dtu_pairs.txt")
    assert sorted(pairs) == list(range(49)) and {len(others) for others in pairs.values()} == {10}
    assert pairs[0][:2] == [(10, 2346.41), (1, 2036.53)]
    assert all(list(scores) == sorted(scores, reverse=True) for scores in ([s for _, s in o] for o in pairs.values()))


def test_dtu_pfm_is_upright_and_in_range(real_data):
    path = real_data / "dtu_pair_lists" / "depth_map_0000.pfm"
    depth = read_pfm(path)
    assert depth.shape == dtu.DEPTH_SIZE
    np.testing.assert_array_equal(depth[-1], np.frombuffer(path.read_bytes()[-160 * 128 * 4 :][: 160 * 4], "<f4"))
    assert 0.3 < (depth == 0).mean() < 0.34
    assert 508 < depth[depth > 0].min() < depth.max() < 761


def test_the_other_dtu_split_shares_test_scans_with_training(real_data):
    lists = real_data / "dtu_pair_lists" / "lists"
    theirs = {int(name.removeprefix("scan")) for name in (lists / "dtu_train_all.txt").read_text().split()}
    assert len(theirs & set(mvsnet_split()["test"])) == 17


def mvsnet_split() -> dict[str, list[int]]:
    return yaml.safe_load((Path(dtu.__file__).parent / "splits" / "dtu_mvsnet.yaml").read_text())


def test_cameras_without_and_with_zero_depth_lines(real_data):
    files = sorted((real_data / "mvsnet_cams_b").rglob("*_cam.txt"))
    assert len(files) == 90
    lines = []
    for path in files:
        camera = read_camera(path)
        R = camera.cam_T_world[:3, :3]
        assert np.abs(R @ R.T - np.eye(3)).max() < 1e-5 and np.linalg.det(R) > 0
        lines.append(camera.depth_line)
    assert {len(line) for line in lines} == {0, 4}
    assert all(depth_range(line, planes=192) is None for line in lines)


def test_cameras_with_four_depth_values(real_data):
    files = sorted((real_data / "mvsnet_cams_c" / "demo").glob("*_cam.txt"))
    assert [depth_range(read_camera(path).depth_line, planes=192) for path in files] == [(10.0, 35.6)] * 3


def test_readers_log_nothing_on_whole_captures(real_data, caplog):
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        next(rgbd.views(real_data / "seven_scenes", "redkitchen/seq-01", rgbd.Options()))
        next(sun3d.views(real_data / "sun3d_tum_cabinet", "tum/cabinet", sun3d.Options()))
    assert caplog.text == ""
