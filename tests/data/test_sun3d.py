"""SUN3D sequences: the right reading, every known misreading, and the message of every kind of broken folder."""

import logging
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from data.raw_folders import capture, write_sun3d, write_text
from plumbline.data import sun3d
from plumbline.data.canonical import validate_view, write_scene
from plumbline.data.sun3d import Options
from plumbline.errors import DataError

SCENE = "mit_x/seq"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_sun3d(tmp_path / SCENE, capture())
    return tmp_path


def read(raw: Path, options: Options | None = None, scene: str = SCENE) -> list:
    views = list(sun3d.views(raw, scene, options or Options()))
    for view in views:
        validate_view(view, scene)
    return views


def test_views_are_what_was_written(raw):
    truth, views = capture(), read(raw)
    assert sun3d.scenes(raw, Options()) == [SCENE]
    assert [view.name for view in views][:2] == ["0000001-000000000000", "0000002-000000033516"]
    for view, image, depth, T in zip(views, truth.images, truth.depths_mm, truth.world_T_cams, strict=True):
        assert np.abs(view.image.astype(int) - image).max() <= 3
        np.testing.assert_array_equal(view.depth, depth.astype(np.float32) / np.float32(1000))
        np.testing.assert_allclose(view.world_T_cam, T, atol=1e-15)
        np.testing.assert_array_equal(view.K, truth.K)
        assert view.depth_K is None and view.depth.dtype == np.float32
    assert sun3d.pairs(raw, SCENE, Options()) is None


def test_depth_beyond_8_metres_keeps_its_low_bits():
    stored = np.array([[(8849 << 3 | 8849 >> 13) & 0xFFFF, 8, 0]], np.uint16)
    assert stored[0, 0] & 7 == 1
    np.testing.assert_allclose(sun3d.decode(stored, "rotated"), [[8.849, 0.001, 0]], rtol=1e-6)
    np.testing.assert_allclose(sun3d.decode(stored, "shifted")[0, 0], 0.657, rtol=1e-6)


def test_raw_bits_are_eight_times_too_far(raw):
    near = capture().depths_mm[0] < 8192
    right, wrong = read(raw)[0], read(raw, Options(depth_coding="raw"))[0]
    np.testing.assert_allclose(wrong.depth[near], 8 * right.depth[near], rtol=1e-6)


def test_extrinsics_last_by_name_or_as_named(raw):
    moved = [T.copy() for T in capture().world_T_cams]
    for T in moved:
        T[:3, 3] += 5
    write_text(raw / SCENE / "extrinsics" / "20151202163427.txt", np.concatenate([T[:3] for T in moved]))
    np.testing.assert_allclose(read(raw)[2].world_T_cam, moved[2], atol=1e-12)
    old = Options(extrinsics="20140112151017.txt")
    np.testing.assert_allclose(read(raw, old)[2].world_T_cam, capture().world_T_cams[2], atol=1e-12)
    assert ("extrinsics 20140112151017.txt", old) in sun3d.alternatives(raw, SCENE, Options())
    with pytest.raises(DataError, match=r"mit_x/seq: no extrinsics/2000\.txt\. There are 20140112151017\.txt, 2015"):
        read(raw, Options(extrinsics="2000.txt"))


def test_pose_blocks_follow_the_name_order_of_images_not_their_ids(tmp_path):
    write_sun3d(tmp_path / SCENE, capture(), image_ids=[1, 2, 5, 6])
    np.testing.assert_allclose(read(tmp_path)[2].world_T_cam, capture().world_T_cams[2], atol=1e-12)


def test_a_subset_of_the_images_takes_poses_by_id(raw):
    sorted((raw / SCENE / "image").iterdir())[1].unlink()
    with pytest.raises(DataError, match=r"4 poses for 3 images.*options.pose_index: id"):
        read(raw)
    views = read(raw, Options(pose_index="id"))
    np.testing.assert_allclose(views[1].world_T_cam, capture().world_T_cams[2], atol=1e-12)


def test_ids_beyond_the_poses_are_an_error(tmp_path):
    write_sun3d(tmp_path / SCENE, capture(), image_ids=[1, 2, 5, 6])
    with pytest.raises(DataError, match="4 poses, but image ids run from 1 to 6"):
        read(tmp_path, Options(pose_index="id"))


def test_depth_belongs_to_the_nearest_time(tmp_path):
    # Depth frame 2 was dropped, so that ids and places of the later ones disagree with the images'.
    truth = capture(5)
    times = [33_000 * i for i in range(5)]
    write_sun3d(tmp_path / SCENE, truth, image_times=times, depth_times=[0, 61_000, 97_000, 128_000, 900_000])
    views = read(tmp_path, Options(max_time_gap_ms=10))
    kept = [0, 2, 3, 4]
    assert [int(view.name[:7]) - 1 for view in views] == kept
    for view, depth_place, place in zip(views, [0, 1, 2, 3], kept, strict=True):
        np.testing.assert_allclose(view.depth, truth.depths_mm[depth_place] / 1000, rtol=1e-6)
        np.testing.assert_allclose(view.world_T_cam, truth.world_T_cams[place], atol=1e-12)


def test_the_three_pairings_differ_under_drift(tmp_path):
    truth = capture()
    write_sun3d(tmp_path / SCENE, truth, depth_ids=[2, 3, 4, 5], depth_times=[34_000, 67_000, 101_000, 134_000])

    def partners(way: str) -> list[int]:
        frames = sun3d.frames(tmp_path, SCENE, Options(association=way))
        return [int(frame.depth.name[:7]) for frame in frames]

    # The image at 0 ms lies 34 ms from the first depth frame: further than a frame period.
    assert partners("time") == [2, 3, 4]
    assert partners("index") == [2, 3, 4, 5]
    assert partners("id") == [2, 3, 4]
    labels = [label for label, _ in sun3d.alternatives(tmp_path, SCENE, Options())]
    assert "frames paired by index" in labels and "frames paired by id" not in labels


def test_frames_without_depth_are_counted_in_the_log(tmp_path, caplog):
    write_sun3d(tmp_path / SCENE, capture(), depth_times=[0, 33_000, 67_000, 500_000])
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        assert len(read(tmp_path)) == 3
    assert "mit_x/seq: 1 of 4 frames left out: they have no depth file within 33.5 ms" in caplog.text


def test_losing_more_than_half_is_an_error(tmp_path):
    write_sun3d(tmp_path / SCENE, capture(), depth_times=[0, 400_000, 500_000, 600_000])
    with pytest.raises(DataError, match=r"3 of 4 frames have no depth file within 33\.5 ms\. Fetch the depth"):
        read(tmp_path)


def test_poses_read_in_fours_are_no_rotations(raw):
    views = list(sun3d.views(raw, SCENE, Options(pose_rows=4)))
    assert len(views) == 3
    with pytest.raises(DataError, match="not a rotation"):
        validate_view(views[1], SCENE)


def test_inverted_poses(raw):
    inverted = read(raw, Options(pose_direction="world_to_camera"))
    for view, T in zip(inverted, capture().world_T_cams, strict=True):
        np.testing.assert_allclose(view.world_T_cam @ T, np.eye(4), atol=1e-12)


def test_alternatives_name_what_they_change_and_leave_out_the_present(raw):
    labels = [label for label, _ in sun3d.alternatives(raw, SCENE, Options())]
    assert labels == [
        "depth shifted right by 3 bits (beyond 8.191 m wraps)",
        "depth bits not rotated (raw value as mm)",
        "poses read 4 rows at a time",
        "poses read as world-to-camera",
    ]
    wrong = Options(depth_coding="raw", pose_rows=4, pose_direction="world_to_camera")
    repaired = dict(sun3d.alternatives(raw, SCENE, wrong))
    assert repaired["depth rotated right by 3 bits"] == wrong.model_copy(update={"depth_coding": "rotated"})
    assert "poses read 3 rows at a time" in repaired and "poses read as camera-to-world" in repaired


def test_a_coding_that_changes_nothing_is_no_alternative(tmp_path):
    truth = capture()
    for depth in truth.depths_mm:
        depth[depth > 8000] = 1000
    write_sun3d(tmp_path / SCENE, truth)
    labels = [label for label, _ in sun3d.alternatives(tmp_path, SCENE, Options())]
    assert not any("shifted" in label for label in labels)


def test_stride_count_and_selection(raw):
    assert [v.name[:7] for v in read(raw, Options(stride=2))] == ["0000001", "0000003"]
    assert [v.name[:7] for v in read(raw, Options(max_frames=3))] == ["0000001", "0000002", "0000003"]
    assert [v.name[:7] for v in sun3d.views(raw, SCENE, Options(), select=[3, 1])] == ["0000004", "0000002"]
    with pytest.raises(DataError, match=r"mit_x/seq: view 4 was asked for, but the scene has views 0\.\.3"):
        next(sun3d.views(raw, SCENE, Options(), select=[4]))


def test_a_raw_folder_that_is_the_sequence_itself(raw):
    assert sun3d.scenes(raw / SCENE, Options()) == ["seq"]
    assert len(read(raw / SCENE, scene="seq")) == 4


def test_listing_pages_are_no_frames(raw):
    for name in ("index.html", "index.html@C=D;O=A", "0000009-000000000001.jpg.part"):
        (raw / SCENE / "image" / name).write_text("<html>")
    assert len(read(raw)) == 4


def test_smoothed_depth_has_its_own_folder(tmp_path):
    write_sun3d(tmp_path / SCENE, capture(), depth_folder="depthTSDF")
    with pytest.raises(DataError, match=r"there is no depth/, only depthTSDF/. Set options.depth_folder: depthTSDF"):
        read(tmp_path)
    assert len(read(tmp_path, Options(depth_folder="depthTSDF"))) == 4


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError):
        Options(depth_codng="raw")


def first(raw: Path, folder: str) -> Path:
    return sorted((raw / SCENE / folder).iterdir())[0]


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def other_depth_size(raw: Path) -> None:
    small = capture(1, size=(12, 16))
    write_sun3d(raw / "small", small)
    first(raw, "depth").write_bytes(next((raw / "small" / "depth").iterdir()).read_bytes())


def spoil_pose(raw: Path, value: float, index: int) -> None:
    rows = np.loadtxt(first(raw, "extrinsics")).reshape(-1, 12)
    rows[2, index] = value
    write_text(first(raw, "extrinsics"), rows.reshape(-1, 4))


def mirror_pose(raw: Path) -> None:
    rows = np.loadtxt(first(raw, "extrinsics")).reshape(-1, 3, 4)
    rows[1, :, 0] *= -1
    write_text(first(raw, "extrinsics"), rows.reshape(-1, 4))


BROKEN = {
    "poses cut at a row": (
        lambda raw: write_text(first(raw, "extrinsics"), np.loadtxt(first(raw, "extrinsics"))[:-1]),
        r"^mit_x/seq/extrinsics/20140112151017\.txt: 44 numbers do not make whole poses.*download",
    ),
    "a pose too few": (
        lambda raw: write_text(first(raw, "extrinsics"), np.loadtxt(first(raw, "extrinsics"))[:-3]),
        r"^mit_x/seq/extrinsics/20140112151017\.txt: 3 poses for 4 images\. The file may be cut: download it again",
    ),
    "NaN pose": (lambda raw: spoil_pose(raw, np.nan, 5), r"pose 3 holds NaN or infinity \(1 such poses\)"),
    "-inf pose": (lambda raw: spoil_pose(raw, -np.inf, 3), "pose 3 holds NaN or infinity"),
    "no rotation": (lambda raw: spoil_pose(raw, 3.0, 0), "not a rotation with a translation"),
    "left-handed": (mirror_pose, "left-handed"),
    "words for poses": (
        lambda raw: first(raw, "extrinsics").write_text("<html> 404"),
        "could not convert string to float",
    ),
    "no poses": (lambda raw: first(raw, "extrinsics").unlink(), "no poses: extrinsics/ has no .txt file"),
    "no intrinsics": (
        lambda raw: (raw / SCENE / "intrinsics.txt").unlink(),
        r"^mit_x/seq/intrinsics\.txt: no such file",
    ),
    "cut intrinsics": (
        lambda raw: (raw / SCENE / "intrinsics.txt").write_text("570 0 320\n0 570"),
        "intrinsics.txt: 5 numbers, expected a matrix of 3x3 or 4x4",
    ),
    "intrinsics that are none": (
        lambda raw: write_text(raw / SCENE / "intrinsics.txt", np.ones((3, 3))),
        "no camera matrix",
    ),
    "intrinsics of another resolution": (
        lambda raw: write_text(raw / SCENE / "intrinsics.txt", [[570, 0, 320], [0, 570, 240], [0, 0, 1]]),
        "K of the image cannot fit a 24x32 image",
    ),
    "cut depth": (lambda raw: cut(first(raw, "depth"), 0.5), "depth/.*png: not a readable PNG. The file may be cut"),
    "empty depth": (lambda raw: first(raw, "depth").write_bytes(b""), "the file is empty"),
    "cut image": (lambda raw: cut(first(raw, "image"), 0.9), "image/.*jpg: (the picture is cut|not a readable)"),
    "depth of another size": (other_depth_size, "16x12 depth for a 32x24 image"),
    "no image": (
        lambda raw: [path.unlink() for path in (raw / SCENE / "image").iterdir()],
        "^mit_x/seq/image: no frame in it; expected files named like",
    ),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_each_defect_has_its_message(raw, defect):
    spoil, message = BROKEN[defect]
    spoil(raw)
    with pytest.raises(DataError, match=message) as caught:
        read(raw)
    assert str(raw) not in str(caught.value)


def test_a_scene_without_a_measured_pixel_is_an_error(tmp_path):
    truth = capture()
    for depth in truth.depths_mm:
        depth[:] = 0
    write_sun3d(tmp_path / SCENE, truth)
    views = sun3d.views(tmp_path, SCENE, Options())
    with pytest.raises(DataError, match="not one depth pixel of 4 views is measured"):
        write_scene(tmp_path / "out", dataset="sun3d", name=SCENE, views=views, depth_range=(0.5, 10.0))


def test_no_sequence_and_no_such_scene(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no SUN3D sequence below it"):
        sun3d.scenes(tmp_path / "empty", Options())
    with pytest.raises(DataError, match="mit_y: no such scene"):
        read(raw, scene="mit_y")
