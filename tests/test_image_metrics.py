"""PSNR and SSIM, by numbers worked by hand and against the torch twin that systems learn from."""

import math

import numpy as np
import pytest
import torch

from plumbline.image_metrics import BEST_PSNR, psnr, ssim
from plumbline.systems.depthsplat.losses import ssim_map


def pictures(size=(24, 31), noise=20, seed=0):
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return np.clip(seen + rng.normal(0, noise, seen.shape), 0, 255).astype(np.uint8), seen


def test_psnr_is_that_of_the_mean_squared_error():
    seen = np.full((12, 12, 3), 100, np.uint8)
    rendered = seen.copy()
    rendered[:, :6] += 51
    # Half of the pixels are off by 0.2.
    assert psnr(rendered, seen) == psnr(seen, rendered) == pytest.approx(-10 * math.log10(0.02))
    assert psnr(np.zeros_like(seen), np.full_like(seen, 255)) == 0


def test_equal_pictures_have_the_best_psnr_and_one_level_less():
    _, seen = pictures((128, 160))
    other = seen.copy()
    other[0, 0, 0] ^= 1
    assert psnr(seen, seen) == BEST_PSNR > psnr(other, seen) > 95
    assert ssim(seen, seen) == 1 > ssim(other, seen)


@pytest.mark.parametrize("size", [(11, 11), (24, 31), (40, 17)])
@pytest.mark.parametrize("noise", [1, 20, 200])
def test_ssim_is_that_of_the_loss(size, noise):
    rendered, seen = pictures(size, noise)
    one, other = (torch.from_numpy(x).permute(2, 0, 1).double() / 255 for x in (rendered, seen))
    assert ssim(rendered, seen) == pytest.approx(float(ssim_map(one, other).mean()), abs=1e-9)


def test_ssim_of_flat_pictures_is_the_luminance_term():
    dark, light = np.full((16, 16, 3), 51, np.uint8), np.full((16, 16, 3), 102, np.uint8)
    assert ssim(dark, light) == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rel=1e-9)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="at least 11 pixels a side"):
        ssim(*pictures((10, 40)))
