"""Canonical scenes: the one resampling function, validation by message, and the format on disk."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from plumbline.data import canonical
from plumbline.data.geometry import pixel_grid
from plumbline.errors import DataError
from plumbline.records import View

K = np.array([[100.0, 0, 31.5], [0, 100, 23.5], [0, 0, 1]])
SIZE = (48, 64)


def ramp(size: tuple[int, int], K: np.ndarray, *, slope: float = 100.0) -> np.ndarray:
    """An image that is linear in the ray's x: its value at a pixel says where the pixel looks."""
    x = (pixel_grid(size)[..., 0] - K[0, 2]) / K[0, 0]
    return np.repeat(np.clip(np.round(128 + slope * x), 0, 255)[..., None], 3, -1).astype(np.uint8)


def view(**changes: object) -> View:
    depth = 2 + 0.01 * pixel_grid(SIZE)[..., 0].astype(np.float32)
    plain = View("a", ramp(SIZE, K), K, np.eye(4), depth.astype(np.float32))
    return replace(plain, **changes)


@pytest.mark.parametrize("size", [(24, 32), (12, 16), (96, 128), (30, 40), (48, 40)])
def test_fit_moves_image_depth_and_K_together(size: tuple[int, int]) -> None:
    fitted = canonical.fit(view(), size)
    assert fitted.image.shape == (*size, 3)
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(fitted.image[inner].astype(float), ramp(size, fitted.K)[inner].astype(float), atol=1.01)
    x = (pixel_grid(size)[..., 0] - fitted.K[0, 2]) / fitted.K[0, 0]
    expected = 2 + 0.01 * (x * 100 + 31.5)
    assert fitted.depth is not None
    # The nearest source pixel is at most half a pixel away: half of 0.01 per pixel.
    np.testing.assert_allclose(fitted.depth[inner], expected[inner], atol=0.0051)


def test_half_pixel_convention() -> None:
    halved = canonical.fit(view(), (24, 32)).K
    # The image's left edge is at -0.5 before and after; centre c goes to (c + 0.5) / 2 - 0.5.
    np.testing.assert_allclose(halved, [[50, 0, 15.5], [0, 50, 11.5], [0, 0, 1]])
    cropped = canonical.fit(view(), (48, 32)).K
    np.testing.assert_allclose(cropped[:, 2], [15.5, 23.5, 1])


def test_halving_averages_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    halved = canonical.fit(view(image=image), (24, 32)).image.astype(float)
    mean = image.reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert abs(halved - mean).max() <= 0.51


def test_images_come_to_a_depth_grid_of_the_target_size() -> None:
    # DTU: the image's K is exactly four times the depth's, without the half pixel of a resize.
    image_K = K.copy()
    image_K[:2] *= 4
    depth = np.random.default_rng(0).random(SIZE).astype(np.float32) + 1
    large = view(image=ramp((192, 256), image_K), K=image_K, depth=depth, depth_K=K)
    fitted = canonical.fit(large, SIZE)
    np.testing.assert_array_equal(fitted.K, K)
    np.testing.assert_array_equal(fitted.depth, depth)
    assert abs(fitted.image.astype(float) - ramp(SIZE, K))[2:-2, 2:-2].max() <= 1


def test_depth_of_another_camera_is_brought_into_the_image() -> None:
    # A wider image than depth camera (7-Scenes): depth is 0 where the depth camera saw nothing.
    depth_K = np.array([[120.0, 0, 31.5], [0, 120, 23.5], [0, 0, 1]])
    fitted = canonical.resample(view(depth_K=depth_K, depth=np.full(SIZE, 2, np.float32)), K, SIZE)
    assert fitted.depth is not None
    seen = abs(pixel_grid(SIZE) - [31.5, 23.5]) <= np.array([32, 24]) * 100 / 120
    np.testing.assert_array_equal(fitted.depth > 0, seen.all(-1))


@pytest.mark.parametrize("size", [(24, 32), (20, 30), (17, 23), (60, 70)])
def test_bilinear_stretches_as_opencv_does(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, depth = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8), rng.random((24, 32)).astype(np.float32)
    depth_K = np.array([[50.0, 0, 15.5], [0, 50, 11.5], [0, 0, 1]])
    fitted = canonical.fit(view(image=image, depth=depth, depth_K=depth_K), size, resize="bilinear")
    assert fitted.depth is not None
    expected = cv2.resize(image.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(fitted.image, expected, atol=0.5001)  # rounded to 8 bits
    np.testing.assert_allclose(fitted.depth, cv2.resize(depth, size[::-1], interpolation=cv2.INTER_LINEAR), atol=1e-6)
    # Each axis has its own factor, and the image's edges stay where they are.
    sx, sy = size[1] / 64, size[0] / 48
    np.testing.assert_allclose(fitted.K, [[100 * sx, 0, 32 * sx - 0.5], [0, 100 * sy, 24 * sy - 0.5], [0, 0, 1]])


def test_bilinear_mixes_holes_into_depth() -> None:
    depth = np.full(SIZE, 2, np.float32)
    depth[10, 10] = 0
    fitted = canonical.fit(view(depth=depth), (24, 32), resize="bilinear")
    assert fitted.depth is not None
    assert fitted.depth[5, 5] == 1.5
    assert np.count_nonzero(fitted.depth != 2) == 1


def test_holes_and_masks_are_never_mixed_into_depth() -> None:
    depth = np.full(SIZE, 3, np.float32)
    depth[:, ::2] = 0
    fitted = canonical.fit(view(depth=depth, mask=depth > 0), (24, 32))
    assert set(np.unique(fitted.depth)) <= {0.0, 3.0}
    assert fitted.mask is not None
    np.testing.assert_array_equal(fitted.mask, fitted.depth > 0)


BAD_ROTATION = np.diag([1.0, 1.0, 2.0, 1.0])
LEFT_HANDED = np.diag([1.0, 1.0, -1.0, 1.0])
LOST = np.full((4, 4), -np.inf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_T_cam": LOST}, "tracking was lost"),
        ({"world_T_cam": BAD_ROTATION}, "wrong stride"),
        ({"world_T_cam": LEFT_HANDED}, "left-handed"),
        ({"depth": np.ones((24, 32), np.float32)}, "depth is 24x32, the image 48x64"),
        ({"depth": np.full(SIZE, np.nan, np.float32)}, "unmeasured pixels are 0"),
        ({"depth": np.full(SIZE, -1, np.float32)}, "negative depth"),
        ({"K": K * [[4], [4], [1]]}, "cannot fit a 48x64 image"),
        ({"K": np.eye(3)}, "cannot fit"),
        ({"K": K.T.copy()}, "not an upper triangular"),
    ],
)
def test_each_defect_has_its_own_message(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        canonical.validate_view(view(**changes), "sun3d/x view 3")
    assert "sun3d/x view 3" in str(error.value)


def write(folder: Path, views: list[View], **options: object) -> None:
    canonical.write_scene(folder, dataset="dtu", name="s", views=views, depth_range=(1.0, 4.0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", ["raw", "png"])
def test_a_scene_comes_back_as_written(tmp_path: Path, storage: str) -> None:
    views = [view(name=name, mask=np.ones(SIZE, np.bool_)) for name in "abc"]
    write(tmp_path / "s", views, storage=storage, pairs={"a": [("c", 2.0), ("b", 1.0), ("gone", 1.0)]})
    scene = canonical.read_scene(tmp_path / "s")
    assert scene.images.shape == (3, *SIZE, 3)
    assert scene.pairs == (((2, 2.0), (1, 1.0)), (), ())
    assert scene.depth_range == (1.0, 4.0)
    for got, expected in zip(canonical.views_of(scene), views, strict=True):
        np.testing.assert_array_equal(got.image, expected.image)
        np.testing.assert_array_equal(got.depth, expected.depth)
        np.testing.assert_array_equal(got.world_T_cam, expected.world_T_cam)
    assert canonical.list_scenes(tmp_path) == ["s"]


def test_frame_numbers_come_back_where_there_are_some(tmp_path: Path) -> None:
    written = [view(name="4", frame=(4, 90)), view(name="7", frame=(7, 90))]
    canonical.write_scene(tmp_path / "s", dataset="x", name="s", views=written, depth_range=(1.0, 5.0))
    scene = canonical.read_scene(tmp_path / "s")
    assert (scene.frames, scene.frame_count) == ((4, 7), 90)
    assert [got.frame for got in canonical.views_of(scene)] == [(4, 90), (7, 90)]
    canonical.write_scene(tmp_path / "t", dataset="x", name="t", views=[view()], depth_range=(1.0, 5.0))
    assert "frame" not in (tmp_path / "t/scene.json").read_text()
    assert canonical.read_scene(tmp_path / "t").frames is None


def test_depth_and_poses_may_be_absent(tmp_path: Path) -> None:
    write(tmp_path / "s", [view(depth=None, world_T_cam=None)])
    scene = canonical.read_scene(tmp_path / "s")
    assert scene.depth is None
    assert scene.world_T_cam is None
    assert scene.mask is None


def test_a_view_without_depth_is_unmeasured_in_a_scene_that_has_some(tmp_path: Path) -> None:
    write(tmp_path / "s", [view(), view(name="b", depth=None)])
    depth = canonical.read_scene(tmp_path / "s").depth
    assert depth is not None
    assert (depth[0] > 0).all()
    assert (depth[1] == 0).all()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "no views"),
        ([view(), view()], "occurs twice"),
        ([view(), view(name="b", world_T_cam=None)], "1 of 2 views have a camera pose"),
        ([view(depth=np.zeros(SIZE, np.float32))], "not one depth pixel"),
        ([view(), canonical.fit(view(name="b"), (24, 32))], "expected \\(48, 64\\) as in the first view"),
    ],
)
def test_a_broken_scene_leaves_nothing_behind(tmp_path: Path, views: list[View], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "s", views)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_fails_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    def views() -> Iterator[View]:
        yield view()
        raise DataError("frame 2 is cut")

    with pytest.raises(DataError, match="frame 2"):
        canonical.write_scene(tmp_path / "s", dataset="d", name="s", views=views(), depth_range=(1.0, 2.0))
    assert list(tmp_path.iterdir()) == []


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", [view()])
    text = (tmp_path / "s/scene.json").read_text()
    (tmp_path / "s/scene.json").write_text(text.replace('"format_version": 1', '"format_version": 0'))
    with pytest.raises(DataError, match="scene format 0, expected 1"):
        canonical.read_scene(tmp_path / "s")
