"""Loader geometry: what it keeps in the middle, and what image, depth and K agree on."""

import numpy as np
import pytest

from plumbline.errors import DataError
from plumbline.systems.vggt.loader import (
    Framed,
    crop_centred,
    crop_exactly,
    prepare,
    resample,
    resize_to_cover,
    target_size,
    without_outliers,
)


def view(height: int = 60, width: int = 90, *, middle: tuple[float, float] | None = None) -> Framed:
    """A view whose depth tells the column and whose green channel tells the row."""
    cx, cy = middle or (width / 2, height / 2)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 1] = np.arange(height)[:, None]
    depth = np.tile(np.arange(1, width + 1, dtype=np.float32), (height, 1))
    return Framed(image, depth, np.array([[80.0, 0, cx], [0, 80, cy], [0, 0, 1]]))


@pytest.mark.parametrize(("aspect", "height"), [(0.92, 476), (0.46, 238), (0.37, 182), (1.0, 518)])
def test_sizes_are_whole_patches(aspect: float, height: int) -> None:
    assert target_size(aspect) == (height, 518)


def test_a_crop_moves_the_principal_point_to_its_middle() -> None:
    cropped = crop_centred(view(middle=(30.4, 35.0)), (60, 90))
    # 30.4 to the left and 25 below are all there is: 2 x 30 columns, 2 x 25 rows.
    assert cropped.size == (50, 60)
    np.testing.assert_allclose(cropped.K[:2, 2], [30.4, 25.0])
    assert cropped.depth[0, 0] == 1 and cropped.image[0, 0, 1] == 10


def test_an_exact_crop_fills_what_is_missing_below_and_to_the_right() -> None:
    cropped = crop_exactly(view(middle=(80.0, 30.0)), (40, 40))
    assert cropped.size == (40, 40) and cropped.depth[0, 0] == 61
    assert not cropped.depth[:, 30:].any() and not cropped.image[:, 30:].any() and cropped.depth[:, :30].all()
    with pytest.raises(DataError, match=r"an image of \(60, 90\) is smaller than the crop \(70, 40\)"):
        crop_exactly(view(), (70, 40))


def test_a_resized_view_sees_the_same_rays() -> None:
    small = resize_to_cover(view(), (26, 41), margin=4.0)
    assert small.size == (30, 45)
    # Pixel centres: (u + 1/2) / 2 - 1/2, so that the middle of the image stays the middle.
    np.testing.assert_allclose(small.K, [[40, 0, 22.25], [0, 40, 14.75], [0, 0, 1]])
    np.testing.assert_array_equal(small.depth[0], view().depth[0, ::2])
    middle = small.image[3:-3, 20, 1].astype(float)
    np.testing.assert_allclose(middle, 2 * np.arange(3, 27) + 0.5, atol=1)


def test_a_prepared_view_has_its_size_and_its_principal_point_in_the_middle() -> None:
    prepared = prepare(view(120, 200, middle=(104.3, 55.2)), (70, 98))
    assert prepared.size == (70, 98) and prepared.image.shape == (70, 98, 3)
    assert np.abs(prepared.K[:2, 2] - [49, 35]).max() <= 1
    zoomed = prepare(view(120, 200, middle=(104.3, 55.2)), (70, 98), crop=(80, 120))
    assert zoomed.K[0, 0] > prepared.K[0, 0]


@pytest.mark.parametrize("kind", ["lanczos", "bicubic"])
@pytest.mark.parametrize("size", [(20, 31), (55, 77)])
def test_resampling_keeps_what_is_even_and_is_symmetric(kind: str, size: tuple[int, int]) -> None:
    even = np.full((33, 47, 3), 117, np.uint8)
    assert (resample(even, size, kind) == 117).all()
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    turned = resample(noise[::-1, ::-1], size, kind)[::-1, ::-1]
    assert np.abs(turned.astype(int) - resample(noise, size, kind)).max() <= 1
    assert np.array_equal(resample(noise, (33, 47), kind), noise)


def test_a_wide_filter_keeps_no_pattern_finer_than_a_pixel() -> None:
    stripes = np.zeros((8, 240, 1), np.uint8)
    stripes[:, ::2] = 200
    narrow = resample(stripes, (8, 30), "lanczos")[:, 4:-4].astype(int)
    assert np.abs(narrow - 100).max() <= 2


def test_outliers_by_both_rules() -> None:
    depth = np.arange(400, dtype=np.float32).reshape(20, 20)
    depth[0, :] = 0
    # 98th percentile of 20 zeros and 20...399: index 0.98 x 399 = 391.02.
    assert without_outliers(depth).max() == 391
    # Of 380 measured ones: 20 + 0.98 x 379 = 391.4 and 20 + 0.02 x 379 = 27.6.
    measured = without_outliers(depth, low=2.0, over="measured")
    assert measured.max() == 391 and measured[measured > 0].min() == 28
    # Far ones go first, so that they do not move the percentile: 20 + 0.98 x 130 = 147.4.
    assert without_outliers(depth, farthest=150.0, over="measured").max() == 147
    few = np.zeros((20, 20), np.float32)
    few[0] = 7
    np.testing.assert_array_equal(without_outliers(few, low=2.0, over="measured"), few)
