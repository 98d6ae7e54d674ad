"""Depth hypotheses, and how well the views' features agree under each (a plane sweep on learnt features)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from plumbline import geometry
from plumbline.systems.blocks import run

_MIN_Z = 1e-3
_FIRST, _LAST = -16, 15
_FINE = 32
_OUTSIDE = 2.0


def even_candidates(
    smallest: Float[Tensor, "*n 1 h w"], largest: Float[Tensor, "*n 1 h w"], count: int
) -> Float[Tensor, "*n d h w"]:
    """`count` values from `smallest` to `largest`, both included, evenly spaced."""
    steps = torch.linspace(0, 1, count, dtype=smallest.dtype, device=smallest.device)[:, None, None]
    return smallest + (largest - smallest) * steps


def refined_candidates(
    centre: Float[Tensor, "*n 1 h w"],
    smallest: Float[Tensor, "*n 1 1 1"],
    largest: Float[Tensor, "*n 1 1 1"],
    *,
    coarse: int,
    count: int,
) -> Float[Tensor, "*n d h w"]:
    """`count` inverse depths around `centre`, half as far apart as `coarse` values over the whole range are.

    They reach count / 2 steps below the centre and one less above; an end beyond the range is moved to it, and the values
    lie closer then. They carry no gradient.
    """
    centre = centre.detach()
    step = (largest - smallest) / (coarse - 1) / 2
    below = torch.maximum(centre - count // 2 * step, smallest)
    above = torch.minimum(centre + (count // 2 - 1) * step, largest)
    return even_candidates(below, above, count)


def cost_volume(
    features: Float[Tensor, "b v c h w"],
    candidates: Float[Tensor, "b v d h2 w2"],
    K: Float[Tensor, "b v 3 3"],
    world_T_cam: Float[Tensor, "b v 4 4"],
    neighbours: Int[Tensor, "b v m"],
    *,
    quirk: bool,
    block_elements: int = 2**27,
    checkpointing: bool = False,
) -> Float[Tensor, "b v d h w"]:
    """For each view, pixel and candidate (inverse depth) how much its features agree with its neighbours': the mean of
    their dot products over the square root of their number of channels.

    K are in feature pixels. Candidates may be the same all over a view (h2 = w2 = 1). Only features carry gradients.
    Official quirk: a point is projected into a neighbour with the reference's K, not with the neighbour's own, and points
    behind a neighbour are not left out.
    """
    b, v, c, h, w = features.shape
    total = features.new_zeros(b * v, candidates.shape[2], h, w)
    reference = features.flatten(0, 1)
    block = max(1, block_elements // (b * v * c * h * w))
    batch = torch.arange(b, device=features.device)[:, None]
    for index in neighbours.unbind(dim=-1):
        source = features[batch, index].flatten(0, 1)
        # A bfloat16 product of poses would be off by pixels.
        with torch.autocast(features.device.type, enabled=False):
            src_T_ref = geometry.invert(world_T_cam[batch, index]) @ world_T_cam
            P = geometry.compose(K, K if quirk else K[batch, index], src_T_ref).flatten(0, 1)
        parts = []
        for some in torch.split(candidates.flatten(0, 1), block, dim=1):
            grid = sampling_grid(P, some, (h, w), behind=quirk)
            parts.append(run(agreement, reference, source, grid, checkpointing=checkpointing))
        total = total + torch.cat(parts, dim=1)
    return torch.unflatten(total / neighbours.shape[-1], 0, (b, v))


def agreement(
    reference: Float[Tensor, "n c h w"], source: Float[Tensor, "n c h w"], grid: Float[Tensor, "n d h w 2"]
) -> Float[Tensor, "n d h w"]:
    """Dot products of each reference feature with the source's, bilinear at `grid` and 0 outside, over sqrt(c)."""
    c, d, h = source.shape[1], grid.shape[1], grid.shape[2]
    warped = F.grid_sample(source, grid.flatten(1, 2), align_corners=True)
    return torch.einsum("nchw,ncdhw->ndhw", reference, torch.unflatten(warped, 2, (d, h))) / c**0.5


@torch.no_grad()
def sampling_grid(
    P: Float[Tensor, "n 3 4"], candidates: Float[Tensor, "n d h2 w2"], size: tuple[int, int], *, behind: bool
) -> Float[Tensor, "n d h w 2"]:
    """Where each pixel of `size`, at each inverse depth, lies in the source: x and y in [-1, 1] from first to last pixel.

    P is `geometry.compose`'s matrix in the source's pixels. A point nearer than 1e-3 to the source's plane or behind it is
    outside, unless `behind`: then it is projected as if it were at 1e-3.
    """
    depth = 1 / candidates
    x, y, z = (ray[:, None] * depth + P[:, i, 3, None, None, None] for i, ray in enumerate(geometry.rays(P, size)))
    safe = z.clamp(min=_MIN_Z)
    grid = torch.stack([2 * x / safe / (size[1] - 1) - 1, 2 * y / safe / (size[0] - 1) - 1], dim=-1)
    return grid if behind else torch.where((z > _MIN_Z)[..., None], grid, _OUTSIDE)
