"""What the tiled rasterisers share: splats packed in rows, sorted into tiles, and one step of autograd for both.

Neither keeps what it computes for a pixel: the backward pass goes over the same tiles again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plumbline.rendering.projection import Splats
from plumbline.rendering.rules import ALPHA_MIN, Rules

# Columns of a packed splat: centre, conic, logarithm of the opacity, features.
CENTRE, CONIC, LOG_OPACITY, FEATURES = slice(0, 2), slice(2, 5), 5, slice(6, 11)
COLUMNS = 11
_LOW = (1 << 32) - 1


@dataclass(frozen=True)
class Bins:
    """Which splats reach each tile of a picture, front to back (equal depths by index), tiles row by row.

    `splats[starts[i]:starts[i + 1]]` are those of tile i. `tile` is its side in pixels, `columns` the tiles in a row.
    """

    splats: Int[Tensor, " p"]
    starts: Int[Tensor, " tiles_and_one"]
    tile: int
    columns: int


@dataclass(frozen=True)
class Engine:
    """One way to composite a view: into tiles, forward to a picture, and back from its gradient to the splats'."""

    bins: Callable[[Float[Tensor, " n"], Bool[Tensor, " n"], Int[Tensor, "n 4"], tuple[int, int]], Any]
    forward: Callable[[Float[Tensor, "n 11"], Any, tuple[int, int], Rules], Float[Tensor, "5 h w"]]
    backward: Callable[
        [Float[Tensor, "n 11"], Any, Float[Tensor, "5 h w"], Float[Tensor, "5 h w"], Rules], Float[Tensor, "n 11"]
    ]


def composite(splats: Splats, size: tuple[int, int], rules: Rules, engine: Engine) -> Float[Tensor, "b v 5 h w"]:
    """The features of all splats, composited front to back at every pixel; a channel of ones gives alpha."""
    opacities = splats.opacities.clamp(min=ALPHA_MIN).log()[:, None, :, None].expand(*splats.conic.shape[:3], 1)
    packed = torch.cat([splats.centre, splats.conic, opacities, splats.features], dim=-1)
    return _Composite.apply(packed, splats, size, rules, engine)  # type: ignore[no-untyped-call]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, packed: Tensor, splats: Splats, size: tuple[int, int], rules: Rules, engine: Engine
    ) -> Float[Tensor, "b v 5 h w"]:
        b, v = packed.shape[:2]
        pictures, views = packed.new_empty(b, v, 5, *size), [(i, j) for i in range(b) for j in range(v)]
        bins = [engine.bins(splats.z[at], splats.drawn[at], splats.box[at], size) for at in views]
        for at, own in zip(views, bins, strict=True):
            pictures[at] = engine.forward(packed[at], own, size, rules)
        ctx.views, ctx.bins, ctx.rules, ctx.engine = views, bins, rules, engine
        ctx.save_for_backward(packed, pictures)
        return pictures

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        packed, pictures = ctx.saved_tensors
        found = torch.empty_like(packed)
        for at, own in zip(ctx.views, ctx.bins, strict=True):
            found[at] = ctx.engine.backward(packed[at], own, pictures[at], gradient[at].contiguous(), ctx.rules)
        return found, None, None, None, None


def by_depth(z: Float[Tensor, " n"], drawn: Bool[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Indices of the drawn splats, nearest first, equal depths in the order of their indices."""
    index = drawn.nonzero()[:, 0]
    near = z[index]
    if near.dtype == torch.float32:
        # Positive floats sort as their bits do; the index below them breaks ties.
        return sort((near.view(torch.int32).long() << 32) | index) & _LOW
    return index[near.argsort(stable=True)]


def sort(keys: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
    """`keys` in ascending order."""
    # numpy sorts integers several times faster than torch does on the CPU.
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values


def into_tiles(
    z: Float[Tensor, " n"], drawn: Bool[Tensor, " n"], box: Int[Tensor, "n 4"], size: tuple[int, int], *, tile: int
) -> Bins:
    """The splats of every tile of side `tile`."""
    rows, columns = -(-size[0] // tile), -(-size[1] // tile)
    order = by_depth(z, drawn)
    left, top, right, bottom = box.index_select(0, order).unbind(-1)
    left, top = left // tile, top // tile
    across, down = (right + tile - 1) // tile - left, (bottom + tile - 1) // tile - top
    counts = across * down
    rank = torch.repeat_interleave(counts)
    # Position of a pair within its splat's rectangle of tiles, then its tile.
    position = torch.arange(len(rank), device=z.device) - (counts.cumsum(0) - counts).index_select(0, rank)
    wide = across.index_select(0, rank)
    row = torch.div(position.int(), wide, rounding_mode="floor")
    corner = (top * columns + left).index_select(0, rank)
    number = corner + row * columns + (position.int() - row * wide)
    sorted_rank = sort((number.long() << 32) | rank) & _LOW
    starts = torch.zeros(rows * columns + 1, dtype=torch.long, device=z.device)
    torch.cumsum(torch.bincount(number, minlength=rows * columns), 0, out=starts[1:])
    return Bins(order.index_select(0, sorted_rank), starts, tile, columns)
