"""DTU: the training and the test layout, K and its resolutions, pair lists, and the message of each kind of broken folder."""

import hashlib
import logging
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.raw_folders import (
    DTU_K,
    DTU_TRAIN_K,
    Capture,
    cam_text,
    camera,
    dtu_capture,
    visible,
    write_dtu_cameras,
    write_dtu_scan,
    write_dtu_test,
    write_pair_file,
)
from plumbline.data import dtu
from plumbline.data.canonical import fit, validate_view
from plumbline.data.dtu import Options
from plumbline.data.mvsnet_text import depth_range, read_camera, read_pairs
from plumbline.errors import DataError
from plumbline.files import write_pfm, write_png


@pytest.fixture(scope="module")
def truth() -> Capture:
    return dtu_capture()


@pytest.fixture
def raw(tmp_path: Path, truth: Capture) -> Path:
    write_dtu_cameras(tmp_path, truth)
    write_dtu_scan(tmp_path, 2, truth)
    return tmp_path


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    write_dtu_test(tmp_path / "dtu", 1, full_size())
    return tmp_path


def full_size(count: int = 2) -> Capture:
    images = [np.full((1200, 1600, 3), 60 + 40 * i, np.uint8) for i in range(count)]
    return Capture(images, [], [camera(i) for i in range(count)], DTU_K)


def read(raw: Path, scene: str = "scan2", options: Options | None = None) -> list:
    views = list(dtu.views(raw, scene, options or Options()))
    for view in views:
        validate_view(view, scene)
    return views


# --- training layout ----------------------------------------------------------------------------------------------


def test_training_views_are_what_was_written(raw, truth):
    assert dtu.scenes(raw, Options()) == ["scan2"]
    views = read(raw)
    assert [view.name for view in views] == ["00000000", "00000001", "00000002"]
    for view, image, depth, T in zip(views, truth.images, truth.depths_mm, truth.world_T_cams, strict=True):
        # Image names count from 1, depth and camera names from 0: the red channel tells the view.
        assert (view.image[..., 0] == image[0, 0, 0]).all()
        np.testing.assert_allclose(view.depth, depth / 1000, rtol=1e-6)
        np.testing.assert_array_equal(view.mask, visible(depth) > 0)
        np.testing.assert_allclose(view.world_T_cam, T, atol=1e-12)


def test_training_k_is_that_of_the_depth_grid_and_times_four_for_the_image(raw):
    view = read(raw)[0]
    np.testing.assert_array_equal(view.depth_K, DTU_TRAIN_K)
    np.testing.assert_array_equal(view.K[:2], 4 * DTU_TRAIN_K[:2])
    fitted = fit(view, (128, 160))
    np.testing.assert_array_equal(fitted.K, DTU_TRAIN_K)
    np.testing.assert_array_equal(fitted.depth, view.depth)


def test_early_archives_without_train_cameras(tmp_path, truth):
    write_dtu_cameras(tmp_path, truth, train=False)
    write_dtu_scan(tmp_path, 2, truth)
    view = read(tmp_path)[0]
    np.testing.assert_allclose(view.depth_K, DTU_TRAIN_K, rtol=1e-12)
    np.testing.assert_allclose(view.K[:2], 4 * DTU_TRAIN_K[:2], rtol=1e-12)


def test_no_cameras_at_all(tmp_path, truth):
    write_dtu_scan(tmp_path, 2, truth)
    with pytest.raises(DataError, match=r"no camera files; expected Cameras/train/00000000_cam\.txt"):
        read(tmp_path)


@pytest.mark.parametrize("root", ["mvs_training/dtu", "dtu", "."])
def test_the_folder_the_archive_unpacks_to_is_found(tmp_path, truth, root):
    write_dtu_cameras(tmp_path / root, truth)
    write_dtu_scan(tmp_path / root, 10, truth)
    write_dtu_scan(tmp_path / root, 9, truth)
    assert dtu.scenes(tmp_path, Options()) == ["scan9", "scan10"]
    assert len(read(tmp_path, "scan9")) == 3


def test_lights_are_scenes_of_their_own(tmp_path, truth):
    write_dtu_cameras(tmp_path, truth)
    write_dtu_scan(tmp_path, 2, truth, lights=(0, 3, 5))
    assert (read(tmp_path)[0].image[..., 1] == 3).all()
    several = Options(lights=(0, 5))
    assert dtu.scenes(tmp_path, several) == ["scan2_light0", "scan2_light5"]
    assert (read(tmp_path, "scan2_light5", several)[1].image[..., 1] == 5).all()
    with pytest.raises(DataError, match=r"no image of light 6; expected rect_001_6_r5000\.png"):
        read(tmp_path, options=Options(lights=(6,)))


def test_without_depth(raw):
    view = read(raw, options=Options(depths="none"))[0]
    assert view.depth is None and view.mask is None and view.depth_K is None


def test_raw_depth_is_halved_then_cropped_onto_the_image(raw, tmp_path):
    rows, columns = np.indices((1200, 1600))
    full = (500 + 0.25 * rows + columns / 16).astype(np.float32)
    full[600, 800], full[700, 800] = np.nan, np.inf
    for view in range(3):
        write_pfm(tmp_path / f"Depths_raw/scan2/depth_map_{view:04d}.pfm", full)
        write_png(tmp_path / f"Depths_raw/scan2/depth_visual_{view:04d}.png", (columns > 400).astype(np.uint8) * 255)
    view = next(dtu.views(raw, "scan2", Options(depths="raw"), select=[1]))
    validate_view(view, "scan2")
    assert view.depth.shape == view.image.shape[:2] == (512, 640) and view.depth_K is None
    np.testing.assert_allclose(view.depth[100, 200], full[2 * (100 + 44), 2 * (200 + 80)] / 1000, rtol=1e-6)
    assert view.depth[300 - 44, 400 - 80] == view.depth[350 - 44, 400 - 80] == 0
    assert not view.mask[0, 400 // 2 - 80] and view.mask[0, 402 // 2 - 80]
    # The pixel that was taken lies on the same ray: K of the image says what K of the full-size image says.
    ray = np.linalg.inv(view.K) @ [200, 100, 1]
    np.testing.assert_allclose(ray, np.linalg.inv(DTU_K) @ [2 * (200 + 80), 2 * (100 + 44), 1], atol=1e-12)


def test_pairs_by_name_best_first_without_the_view_itself(raw, caplog):
    pairs = {0: [(1, 5.0), (2, 9.0), (0, 0.0)], 1: [(0, 3.5)], 2: [(0, 4.0), (7, 2.0)]}
    write_pair_file(raw / "Cameras" / "pair.txt", pairs)
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        got = dtu.pairs(raw, "scan2", Options())
    assert got == {
        "00000000": [("00000002", 9.0), ("00000001", 5.0)],
        "00000001": [("00000000", 3.5)],
        "00000002": [("00000000", 4.0)],
    }
    assert "scan2: pair.txt names 1 views that are not there, first 7" in caplog.text


def test_training_misreadings(raw, truth):
    changed = dict(dtu.alternatives(raw, "scan2", Options()))
    assert list(changed) == [
        "K of the 160x128 depth used for the 640x512 image",
        "K of the 640x512 image used for the 160x128 depth",
        "K of the full-size image used as it is",
        "K of the full-size image halved, the crop left out",
        "poses read as camera-to-world",
        "image names counted from 0",
    ]

    def first(label: str):
        return next(dtu.views(raw, "scan2", changed[label]))

    np.testing.assert_array_equal(first("K of the 160x128 depth used for the 640x512 image").K, DTU_TRAIN_K)
    np.testing.assert_array_equal(
        first("K of the 640x512 image used for the 160x128 depth").depth_K[:2], 4 * DTU_TRAIN_K[:2]
    )
    np.testing.assert_array_equal(first("K of the full-size image used as it is").K, DTU_K)
    np.testing.assert_allclose(first("K of the full-size image halved, the crop left out").K[0, 2], DTU_K[0, 2] / 2)
    inverted = list(dtu.views(raw, "scan2", changed["poses read as camera-to-world"]))[1]
    np.testing.assert_allclose(inverted.world_T_cam @ truth.world_T_cams[1], np.eye(4), atol=1e-12)
    shifted = first("image names counted from 0")
    assert shifted.name == "00000001" and (shifted.image[..., 0] == truth.images[0][0, 0, 0]).all()


def test_alternatives_leave_out_the_present_and_offer_the_documented(raw):
    wrong = Options(camera_scale=1.0, cameras="train", poses="camera_to_world")
    changed = dict(dtu.alternatives(raw, "scan2", wrong))
    assert "K of the 160x128 depth used for the 640x512 image" not in changed
    assert changed["K as documented"].camera_scale is None
    assert changed["poses read as world-to-camera"].poses == "world_to_camera"


# --- test layout --------------------------------------------------------------------------------------------------


def test_the_test_set_has_full_size_k_and_no_depth(test_set):
    assert dtu.scenes(test_set, Options()) == ["scan1"]
    views = read(test_set, "scan1")
    assert [view.name for view in views] == ["00000000", "00000001"]
    np.testing.assert_array_equal(views[1].K, DTU_K)
    np.testing.assert_allclose(views[1].world_T_cam, camera(1), atol=1e-12)
    assert views[0].depth is None and views[0].image.shape == (1200, 1600, 3)
    assert dtu.pairs(test_set, "scan1", Options())["00000000"] == [("00000001", 10.0)]


def test_a_k_of_another_resolution_is_refused_in_the_test_set(tmp_path):
    small = Capture([np.zeros((512, 640, 3), np.uint8)], [], [camera(0)], DTU_K)
    write_dtu_test(tmp_path, 1, small)
    with pytest.raises(
        DataError, match=r"^scan1/cams/00000000_cam\.txt: its K gives the 640x512 image a principal point of"
    ):
        read(tmp_path, "scan1")
    write_dtu_test(tmp_path, 4, full_size(1), K=DTU_TRAIN_K)
    with pytest.raises(
        DataError, match=r"the 1600x1200 image a principal point of \(83, 66\), so it is of another resolution"
    ):
        read(tmp_path, "scan4")


def test_test_set_misreadings(test_set):
    changed = dict(dtu.alternatives(test_set, "scan1", Options()))
    assert list(changed) == ["K of a quarter-size image used for the full-size one", "poses read as camera-to-world"]
    view = next(dtu.views(test_set, "scan1", changed["K of a quarter-size image used for the full-size one"]))
    np.testing.assert_allclose(view.K[:2], DTU_K[:2] / 4)


def test_later_camera_folders(test_set):
    (test_set / "dtu/scan1/cams").rename(test_set / "dtu/scan1/cams_1")
    with pytest.raises(DataError, match=r"^dtu/scan1/cams/00000000_cam\.txt: no such file"):
        read(test_set, "scan1")
    assert len(read(test_set, "scan1", Options(cams_folder="cams_1"))) == 2


# --- broken folders -----------------------------------------------------------------------------------------------


def cam(raw: Path, text: str) -> None:
    (raw / "Cameras/train/00000001_cam.txt").write_text(text)


def flip(T: np.ndarray) -> np.ndarray:
    return T @ np.diag([-1.0, 1, 1, 1])


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


DEPTHS, RECTIFIED = "Depths/scan2_train", "Rectified/scan2_train"
TEXT = cam_text(camera(1), DTU_TRAIN_K)
BROKEN = {
    "no camera": (
        lambda raw: (raw / "Cameras/train/00000001_cam.txt").unlink(),
        r"^Cameras/train/00000001_cam\.txt: no such",
    ),
    "cut camera": (
        lambda raw: cam(raw, TEXT[: TEXT.index("intrinsic") + 40]),
        "16 numbers under 'extrinsic' and [0-8] under",
    ),
    "camera without words": (lambda raw: cam(raw, "1 2 3"), "no 'extrinsic' and 'intrinsic' lines"),
    "camera of words": (
        lambda raw: cam(raw, TEXT.replace("425.0", "near")),
        "could not convert string to float: 'near'",
    ),
    "NaN camera": (lambda raw: cam(raw, TEXT.replace("0 0 1 ", "0 nan 1 ", 1)), r"no camera \(NaN, or a last row"),
    "no rotation": (
        lambda raw: cam(raw, cam_text(2 * camera(1) - np.diag([0, 0, 0, 1]), DTU_TRAIN_K)),
        "not a rotation",
    ),
    "left-handed": (lambda raw: cam(raw, cam_text(flip(camera(1)), DTU_TRAIN_K)), "left-handed"),
    "full-size K among the small": (
        lambda raw: cam(raw, cam_text(camera(1), DTU_K)),
        r"^Cameras/train/00000001_cam\.txt: its K gives the 640x512 image a principal point of \(3293, 2476\)",
    ),
    "no depth": (
        lambda raw: (raw / DEPTHS / "depth_map_0001.pfm").unlink(),
        "3 images of light 3 for 2 depth maps; view 1 has no depth map, only the image",
    ),
    "no image": (
        lambda raw: (raw / RECTIFIED / "rect_002_3_r5000.png").unlink(),
        "2 images of light 3 for 3 depth maps; view 1 has no image, only the depth map",
    ),
    "no mask": (lambda raw: (raw / DEPTHS / "depth_visual_0001.png").unlink(), r"depth_visual_0001\.png: no such file"),
    "cut depth": (
        lambda raw: cut(raw / DEPTHS / "depth_map_0001.pfm", 0.6),
        r"depth_map_0001\.pfm: \d+ bytes, but a 160x128",
    ),
    "depth of another size": (
        lambda raw: write_pfm(raw / DEPTHS / "depth_map_0001.pfm", np.ones((600, 800), np.float32)),
        r"^Depths/scan2_train/depth_map_0001\.pfm: 800x600, expected 160x128.*options\.depths: raw",
    ),
    "negative depth": (
        lambda raw: write_pfm(raw / DEPTHS / "depth_map_0001.pfm", np.full((128, 160), -500, np.float32)),
        "negative depth",
    ),
    "image of another size": (
        lambda raw: write_png(raw / RECTIFIED / "rect_002_3_r5000.png", np.zeros((128, 160, 3), np.uint8)),
        r"rect_002_3_r5000\.png: 160x128, expected 640x512. This is another preparation",
    ),
    "cut image": (
        lambda raw: cut(raw / RECTIFIED / "rect_002_3_r5000.png", 0.7),
        r"rect_002_3_r5000\.png: (the pict|not a)",
    ),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_each_defect_has_its_message(raw, defect):
    spoil, message = BROKEN[defect]
    spoil(raw)
    with pytest.raises(DataError, match=message) as caught:
        read(raw)
    assert str(raw) not in str(caught.value)


def test_absent_depth_folder_names_the_other_kind(raw):
    with pytest.raises(DataError, match=r"^Depths_raw/scan2: no depth_map_0000\.pfm.*options\.depths: train or none"):
        read(raw, options=Options(depths="raw"))


def test_unknown_folders_and_scenes(raw, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no DTU \(auto layout\) in it; expected Rectified/scanN_train/"):
        dtu.scenes(tmp_path / "empty", Options())
    with pytest.raises(DataError, match=r"no DTU \(test layout\) in it"):
        dtu.scenes(raw, Options(layout="test"))
    with pytest.raises(DataError, match="scene0: not a DTU scene name"):
        read(raw, "scene0")
    with pytest.raises(DataError, match="scan3_train: no image of light 3"):
        read(raw, "scan3")


# --- MVSNet's text files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tail", ["", "0 0", "425.0 2.5", "425.0 2.5 ", "425 2.5 192", "425 2.5 192 935", "0.0 0.0 0.0 0.0"]
)
def test_depth_lines_of_every_length(tmp_path, tail):
    path = tmp_path / "00000000_cam.txt"
    path.write_text(cam_text(camera(1), DTU_K, tail=tail))
    read_back = read_camera(path)
    np.testing.assert_array_equal(read_back.K, DTU_K)
    assert read_back.depth_line == tuple(float(token) for token in tail.split())


def test_a_depth_line_of_one_or_five_numbers_is_refused(tmp_path):
    for tail in ("425", "425 2.5 192 935 1"):
        (tmp_path / "a_cam.txt").write_text(cam_text(camera(1), DTU_K, tail=tail))
        with pytest.raises(DataError, match=r"0, 2, 3 or 4 of the depth line"):
            read_camera(tmp_path / "a_cam.txt")


def test_what_a_depth_line_states():
    assert depth_range((425.0, 2.5), planes=192) == (425.0, 425.0 + 2.5 * 191)
    assert depth_range((425.0, 935.0), planes=192) == (425.0, 935.0)
    assert depth_range((10.0, 0.1, 257.0), planes=192) == (10.0, pytest.approx(35.6))
    assert depth_range((10.0, 0.1, 256.0, 35.6), planes=192) == (10.0, 35.6)
    assert depth_range((), planes=192) is None
    assert depth_range((0.0, 0.0, 0.0, 0.0), planes=192) is None
    assert depth_range((-1.0, 2.5), planes=192) is None


def test_pair_files_with_counts_that_vary(tmp_path):
    write_pair_file(
        tmp_path / "pair.txt", {0: [(j, 50.0 - j) for j in range(1, 41)] + [(0, 0.0)], 5: [(0, 1.5)], 7: []}
    )
    pairs = read_pairs(tmp_path / "pair.txt")
    assert len(pairs[0]) == 40 and pairs[0][0] == (1, 49.0)
    assert pairs[5] == [(0, 1.5)] and pairs[7] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("2\n0\n1 1 5.0\n", "not a whole pair.txt"),
        ("1\n0\n2 1 5.0\n", "fewer than its 2 sources"),
        ("2\n0\n1 1 5.0\n0\n1 1 4.0\n", "view 0 is described twice"),
        ("1\n0\n1 one 5.0\n", "could not convert string"),
        ("1\n0\n1 1 5.0\n1\n1 0 5.0\n", "4 values follow the 1 views"),
    ],
)
def test_broken_pair_files(tmp_path, text, message):
    (tmp_path / "pair.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "pair.txt")


# SHA-256 of the published lists (MVSNet's scans, one name a line), first 16 digits.
PUBLISHED_LISTS = {"train": "bc811e4a9b058cbe", "val": "23ea4f65ade1a9ee", "test": "ae1050f2d83040ca"}


def test_mvsnet_split_is_the_published_one():
    split = yaml.safe_load((resources.files("plumbline.data") / "splits/dtu_mvsnet.yaml").read_text())
    train, val, test = (set(split[part]) for part in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (79, 18, 22) == tuple(len(split[p]) for p in ("train", "val", "test"))
    assert not train & val and not train & test and not val & test
    # DTU has scans 1-77 and 82-128; MVSNet leaves five out.
    assert {*range(1, 78), *range(82, 129)} - train - val - test == {25, 26, 27, 54, 73}
    for part, digest in PUBLISHED_LISTS.items():
        names = "\n".join(f"scan{number}" for number in split[part])
        assert hashlib.sha256(names.encode()).hexdigest()[:16] == digest
