"""Matching cost of a sweep over fronto-parallel planes of the reference (Collins 1996), in vectorised torch.

Volumes are (n, d, h, w): n items, d planes of constant inverse depth ascending from the farthest, at the reference's pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline import geometry

# Elements of one (sources, planes, h, w) block. On a CPU a block and its few temporaries stay in the second-level cache,
# which makes the sweep of a sample twice as fast as one block for all planes; on a GPU larger blocks hide the launches.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
LUMINANCE = (0.299, 0.587, 0.114)

Cost = Literal["ncc", "census"]
Aggregation = Literal["mean", "best_half"]


def inverse_depth_planes(depth_range: Float[Tensor, "n 2"], count: int) -> Float[Tensor, "n d"]:
    """`count` inverse depths, evenly spaced from 1 / farthest to 1 / nearest, both included (in 1 / metres).

    Even in inverse depth means even along epipolar lines, to first order.
    """
    far, near = 1 / depth_range[:, 1:], 1 / depth_range[:, :1]
    steps = torch.linspace(0, 1, count, dtype=depth_range.dtype, device=depth_range.device)
    return torch.lerp(far, near, steps)


def luminance(image: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n h w"]:
    """Grey levels (ITU-R BT.601 luma) in the image's range."""
    return torch.einsum("...chw,c->...hw", image, image.new_tensor(LUMINANCE))


def box_mean(x: Float[Tensor, "*n h w"], radius: int) -> Float[Tensor, "*n h w"]:
    """Mean over the window of 2 radius + 1 pixels a side, edges replicated: shifted sums, one axis after the other."""
    height, width = x.shape[-2:]
    x = F.pad(x.reshape(-1, 1, height, width), (radius,) * 4, mode="replicate").reshape(
        *x.shape[:-2], height + 2 * radius, -1
    )
    rows = x[..., :height, :].clone()
    for i in range(1, 2 * radius + 1):
        rows += x[..., i : height + i, :]
    total = rows[..., :width].clone()
    for i in range(1, 2 * radius + 1):
        total += rows[..., i : width + i]
    return total.mul_(1 / (2 * radius + 1) ** 2)


def ncc_cost(
    reference: Float[Tensor, "n 1 h w"], warped: Float[Tensor, "n d h w"], *, radius: int, contrast_floor: float
) -> Float[Tensor, "n d h w"]:
    """1 - zero-mean normalised cross-correlation over a window: in [0, 2], 1 where nothing can be said.

    A gain and an offset of a window's grey levels cancel. `contrast_floor` (standard deviation, in grey levels) damps
    windows with less contrast than the noise towards 1, where plain correlation would be as loud as on true texture.
    """
    mean_ref, mean = box_mean(reference, radius), box_mean(warped, radius)
    floor = contrast_floor**2
    variance_ref = (
        box_mean(reference * reference, radius).addcmul_(mean_ref, mean_ref, value=-1).clamp_(min=0).add_(floor)
    )
    variance = box_mean(warped * warped, radius).addcmul_(mean, mean, value=-1).clamp_(min=0).add_(floor)
    covariance = box_mean(warped * reference, radius).addcmul_(mean, mean_ref, value=-1)
    return covariance.mul_(variance.mul_(variance_ref).rsqrt_()).neg_().add_(1).clamp_(0, 2)


def census_cost(
    reference: Float[Tensor, "n 1 h w"], warped: Float[Tensor, "n d h w"], *, radius: int, contrast_floor: float
) -> Float[Tensor, "n d h w"]:
    """Share of a window's pixels whose order relative to the centre differs, times 2: in [0, 2], 1 by chance.

    Zabih and Woodfill 1994, with three states: brighter, darker, or within `contrast_floor` of the centre, which
    counts half against either of the others.
    """
    height, width = reference.shape[-2:]
    padded = [F.pad(x, (radius,) * 4, mode="replicate") for x in (reference, warped)]
    total = torch.zeros_like(warped)
    offsets = [(y, x) for y in range(2 * radius + 1) for x in range(2 * radius + 1) if (y, x) != (radius, radius)]
    for y, x in offsets:
        ref, src = (
            _order(image[..., y : height + y, x : width + x] - centre, contrast_floor)
            for image, centre in zip(padded, (reference, warped), strict=True)
        )
        total += (ref - src).abs_()
    return total.mul_(1 / len(offsets))


def _order(difference: Tensor, floor: float) -> Tensor:
    return torch.sign(torch.where(difference.abs() > floor, difference, 0.0))


def sweep(
    reference: Float[Tensor, "n h w"],
    sources: Float[Tensor, "n s hs ws"],
    projections: Float[Tensor, "n s 3 4"],
    planes: Float[Tensor, "n d"],
    *,
    cost: Cost,
    radius: int,
    contrast_floor: float,
    aggregation: Aggregation,
) -> Float[Tensor, "n d h w"]:
    """Cost volume in [0, 2] of grey images against all sources; 1 where no source sees the point.

    `projections` are `geometry.compose(K_ref, K_src, src_T_ref)`. Planes are taken a few at a time, so that memory
    beyond the volume itself stays bounded.
    """
    function = {"ncc": ncc_cost, "census": census_cost}[cost]
    n, s = sources.shape[:2]
    size = (int(reference.shape[-2]), int(reference.shape[-1]))
    repeated = reference[:, None].expand(n, s, *size).reshape(n * s, 1, *size)
    block = max(1, BLOCK_ELEMENTS.get(planes.device.type, BLOCK_ELEMENTS["cuda"]) // (n * s * size[0] * size[1]))
    parts = []
    for chunk in torch.split(planes, block, dim=1):
        warped, valid = _warp_to_planes(sources, projections, chunk, size)
        costs = function(repeated, warped.flatten(0, 1), radius=radius, contrast_floor=contrast_floor)
        parts.append(_over_sources(costs.view(n, s, -1, *size), valid, aggregation))
    return torch.cat(parts, dim=1)


def _warp_to_planes(
    sources: Float[Tensor, "n s hs ws"],
    projections: Float[Tensor, "n s 3 4"],
    planes: Float[Tensor, "n d"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "n s d h w"], Bool[Tensor, "n s d h w"]]:
    n, s, *source_size = sources.shape
    P = geometry.normalise(projections, (source_size[0], source_size[1]))
    inverse = planes[:, None, :, None, None]
    x, y, z = (
        torch.addcmul(ray[:, :, None], P[..., i, 3, None, None, None], inverse)
        for i, ray in enumerate(geometry.rays(P, size))
    )
    scale = z.clamp(min=geometry.MIN_Z).reciprocal_()
    grid = torch.stack([x.mul_(scale), y.mul_(scale)], dim=2).view(n * s, 2, -1, size[1]).movedim(1, -1)
    valid = (x.abs_() <= 1) & (y.abs_() <= 1) & (z > geometry.MIN_Z)
    warped = F.grid_sample(sources.flatten(0, 1)[:, None], grid, padding_mode="border", align_corners=False)
    return warped.view(n, s, -1, *size), valid


def _over_sources(
    costs: Float[Tensor, "n s d h w"], valid: Bool[Tensor, "n s d h w"], aggregation: Aggregation
) -> Float[Tensor, "n d h w"]:
    """One cost from all sources that see the point: their mean, or the mean of the better half (against occlusion)."""
    if aggregation == "best_half":
        keep = (costs.shape[1] + 1) // 2
        return costs.where(valid, 1.0).topk(keep, dim=1, largest=False, sorted=False).values.mean(dim=1)
    seen = valid.sum(dim=1)
    return (costs - 1).mul_(valid).sum(dim=1).div_(seen.clamp(min=1)).add_(1)
