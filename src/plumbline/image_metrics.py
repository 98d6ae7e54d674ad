"""Metrics of rendered pictures against what was seen, in numpy: PSNR and SSIM of images in [0, 1], whole images, no mask."""

import math

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

# Higher is better; LPIPS, a distance, is lower.
VIEW_METRICS = ("psnr", "ssim", "lpips")
# Equal pictures have no finite PSNR. This is more than 8-bit pictures of up to 150,000 values that differ at all can have.
BEST_PSNR = 100.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2

Picture = UInt8[np.ndarray, "h w 3"]


def psnr(rendered: Picture, seen: Picture) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1, from the mean squared error of all pixels and channels.

    Held to `BEST_PSNR`, which equal pictures have: an infinite one would make every mean infinite.
    """
    error = float(np.mean((_in_unit_range(rendered) - _in_unit_range(seen)) ** 2))
    return BEST_PSNR if error == 0 else min(BEST_PSNR, -10 * math.log10(error))


def ssim(rendered: Picture, seen: Picture) -> float:
    """Structural similarity (Wang et al. 2004), the mean over channels and over pixels whose window lies within the image.

    Gaussian windows of 11x11 pixels (sigma 1.5) and sample covariances, as skimage's `structural_similarity` has it with
    `gaussian_weights=True`. ValueError for pictures smaller than a window.
    """
    if min(seen.shape[:2]) < _WINDOW:
        raise ValueError(f"ssim: pictures of {seen.shape[:2]}; expected at least {_WINDOW} pixels a side")
    x, y = _in_unit_range(rendered), _in_unit_range(seen)
    mean_x, mean_y, xx, yy, xy = (_blur(value) for value in (x, y, x * x, y * y, x * y))
    sample = _WINDOW**2 / (_WINDOW**2 - 1)
    var_x, var_y = sample * (xx - mean_x**2), sample * (yy - mean_y**2)
    cov = sample * (xy - mean_x * mean_y)
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * cov + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    )
    return float(similarity.mean())


def _in_unit_range(picture: Picture) -> Float64[np.ndarray, "h w 3"]:
    return picture.astype(np.float64) / 255


def _blur(image: Float64[np.ndarray, "h w 3"]) -> Float64[np.ndarray, "h2 w2 3"]:
    edge = _WINDOW // 2
    weights = _weights()
    return np.asarray(cv2.sepFilter2D(image, cv2.CV_64F, weights, weights)[edge:-edge, edge:-edge])


def _weights() -> Float[np.ndarray, " k"]:
    offset = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-0.5 * (offset / _SIGMA) ** 2)
    return weights / weights.sum()
