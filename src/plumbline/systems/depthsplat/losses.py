"""What DepthSplat learns from, as functions of tensors that return a scalar.

Image terms compare what is rendered with what was seen; depth terms compare inverse depths, in 1 / metre. With a mask,
pixels outside it count nowhere, and without any pixel inside a term is 0 with a gradient of 0.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Scalar = Float[Tensor, ""]
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
# Probabilities below this are taken for it: a logarithm stays finite.
_LEAST = 1e-8


def image_error(
    rendered: Float[Tensor, "*n 3 h w"],
    seen: Float[Tensor, "*n 3 h w"],
    mask: Bool[Tensor, "*n h w"] | None = None,
    *,
    norm: Literal["mse", "l1"] = "mse",
) -> Scalar:
    """Mean squared, or absolute, difference over pixels and channels."""
    difference = rendered - seen
    error = difference.square() if norm == "mse" else difference.abs()
    return _mean(error.mean(dim=-3), mask)


def ssim_error(
    rendered: Float[Tensor, "*n 3 h w"], seen: Float[Tensor, "*n 3 h w"], mask: Bool[Tensor, "*n h w"] | None = None
) -> Scalar:
    """1 - the mean structural similarity (see `ssim_map`), at pixels whose window lies within the image.

    Outside the mask both images are made black first, so that nothing there counts in windows half outside it.
    """
    edge = _WINDOW // 2
    inner = None if mask is None else mask[..., edge:-edge, edge:-edge]
    return _mean(1 - ssim_map(only_where(rendered, mask), only_where(seen, mask)).mean(dim=-3), inner)


def ssim_map(one: Float[Tensor, "*n c h w"], other: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h2 w2"]:
    """Structural similarity (Wang et al. 2004) around each pixel that is 5 or more from the border, images in [0, 1].

    Gaussian windows of 11x11 pixels (sigma 1.5) and sample covariances, as skimage's `structural_similarity` has it with
    `gaussian_weights=True`. ValueError for images smaller than a window.
    """
    if min(one.shape[-2:]) < _WINDOW:
        raise ValueError(f"ssim: images of {tuple(one.shape[-2:])}; expected at least {_WINDOW} pixels a side")
    x, y = (image.reshape(-1, 1, *image.shape[-2:]) for image in (one, other))
    mean_x, mean_y, xx, yy, xy = (_blur(value) for value in (x, y, x * x, y * y, x * y))
    samples = _WINDOW**2
    sample = samples / (samples - 1)
    var_x, var_y = sample * (xx - mean_x.square()), sample * (yy - mean_y.square())
    cov = sample * (xy - mean_x * mean_y)
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * cov + _C2)) / (
        (mean_x.square() + mean_y.square() + _C1) * (var_x + var_y + _C2)
    )
    return similarity.reshape(*one.shape[:-2], *similarity.shape[-2:])


def inverse_depth_error(
    depth: Float[Tensor, "*n h w"], truth: Float[Tensor, "*n h w"], mask: Bool[Tensor, "*n h w"]
) -> Scalar:
    """Mean |1 / depth - 1 / truth| over measured pixels (UniMatch's depth loss without its factor of 20), 1 / metre."""
    return _mean((1 / depth - _inverse(truth, mask)).abs(), mask)


def likelihood_error(
    probability: Float[Tensor, "*n d h2 w2"],
    depth: Float[Tensor, "*n h w"],
    mask: Bool[Tensor, "*n h w"],
    depth_range: Float[Tensor, "*n 2"],
    *,
    stride: int,
) -> Scalar:
    """Minus the logarithm of the probability of the true inverse depth, mean over the measured ones of every `stride`-th pixel.

    `probability` is that of candidates evenly spaced in inverse depth over the range, farthest first, at every `stride`-th
    pixel from the first one on. A truth between two candidates counts for both, the more the nearer it is; one outside the
    range counts for the last.
    """
    truth, mask = depth[..., ::stride, ::stride], mask[..., ::stride, ::stride]
    last = probability.shape[-3] - 1
    near, far = depth_range[..., 0, None, None], depth_range[..., 1, None, None]
    place = (_inverse(truth, mask) - 1 / far) / (1 / near - 1 / far) * last
    below = place.clamp(0, last - 1).floor()
    part = (place - below).clamp(0, 1)
    index = below.long().unsqueeze(-3)
    inside = probability[..., : truth.shape[-2], : truth.shape[-1]].clamp(min=_LEAST).log()
    lower, upper = (inside.gather(-3, index + k).squeeze(-3) for k in (0, 1))
    return _mean(-torch.lerp(lower, upper, part), mask)


def inverse_gradient_error(
    depth: Float[Tensor, "*n h w"], truth: Float[Tensor, "*n h w"], mask: Bool[Tensor, "*n h w"]
) -> Scalar:
    """How much steps of inverse depth to the right and down differ in size from the true ones, where both ends are measured.

    The mean over steps to the right plus that over steps down, as in UniMatch.
    """
    ours, theirs = 1 / depth, _inverse(truth, mask)
    total = depth.new_zeros(())
    for axis in (-1, -2):
        error = (_steps(ours, axis).abs() - _steps(theirs, axis).abs()).abs()
        total = total + _mean(error, _both(mask, axis))
    return total


def smoothness(
    depth: Float[Tensor, "*n h w"], image: Float[Tensor, "*n 3 h w"], mask: Bool[Tensor, "*n h w"] | None = None
) -> Scalar:
    """Edge-aware smoothness of inverse depth over its mean (Godard et al. 2017): |step| exp(-|step of the image|)."""
    inverse = 1 / depth
    inverse = inverse / inverse.mean(dim=(-2, -1), keepdim=True)
    total = depth.new_zeros(())
    for axis in (-1, -2):
        edges = _steps(image, axis).abs().mean(dim=-3)
        total = total + _mean(_steps(inverse, axis).abs() * (-edges).exp(), None if mask is None else _both(mask, axis))
    return total


def intermediate_weights(count: int, decay: float = 0.9) -> list[float]:
    """Weights of `count` predictions, the last of which counts 1 and each one before it `decay` times the next."""
    return [decay ** (count - 1 - index) for index in range(count)]


def only_where(image: Float[Tensor, "*n 3 h w"], mask: Bool[Tensor, "*n h w"] | None) -> Float[Tensor, "*n 3 h w"]:
    """`image` inside the mask and black outside, for terms that look at neighbourhoods."""
    return image if mask is None else torch.where(mask[..., None, :, :], image, 0.0)


def _mean(x: Float[Tensor, "*n h w"], mask: Bool[Tensor, "*n h w"] | None) -> Scalar:
    if mask is None:
        return x.mean()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def _inverse(truth: Float[Tensor, "*n h w"], mask: Bool[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
    """1 / truth where it is measured, else 1."""
    return 1 / torch.where(mask, truth, 1.0)


def _steps(x: Float[Tensor, "*n h w"], axis: int) -> Float[Tensor, "*n h2 w2"]:
    """From each pixel to the next along `axis`."""
    return x.diff(dim=axis)


def _both(mask: Bool[Tensor, "*n h w"], axis: int) -> Bool[Tensor, "*n h2 w2"]:
    """Where both ends of a step are inside the mask."""
    count = mask.shape[axis]
    return mask.narrow(axis, 0, count - 1) & mask.narrow(axis, 1, count - 1)


def _blur(x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h2 w2"]:
    offset = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (offset / _SIGMA).square())
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(x, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))
