"""The rasteriser compiled by numba, on the CPU: the optional extra `compiled`."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plumbline.rendering import kernels
from plumbline.rendering.compositing import Bins, Engine, by_depth
from plumbline.rendering.compositing import composite as composite_with
from plumbline.rendering.projection import Splats
from plumbline.rendering.rules import ALPHA_MIN, Rules


def composite(splats: Splats, size: tuple[int, int], rules: Rules) -> Float[Tensor, "b v 5 h w"]:
    """The features of all splats, composited front to back at every pixel; a channel of ones gives alpha."""
    return composite_with(splats, size, rules, Engine(_bins, _forward, _backward))


def _bins(z: Float[Tensor, " n"], drawn: Bool[Tensor, " n"], box: Int[Tensor, "n 4"], size: tuple[int, int]) -> Bins:
    rows, columns = (-(-length // kernels.SIDE) for length in size)
    order, boxes = by_depth(z, drawn).numpy(), box.contiguous().numpy()
    starts = np.zeros(rows * columns + 1, np.int64)
    kernels.tile_counts(order, boxes, columns, starts[1:])
    np.cumsum(starts, out=starts)
    splats = np.empty(starts[-1], np.int32)
    kernels.fill_tiles(order, boxes, columns, starts[:-1].copy(), splats)
    return Bins(torch.from_numpy(splats), torch.from_numpy(starts), kernels.SIDE, columns)


def _limits(rules: Rules, like: Tensor) -> np.ndarray:
    return like.new_tensor([ALPHA_MIN, rules.alpha_max, rules.stop, float(rules.gradient_at_cap)]).numpy()


def _forward(packed: Float[Tensor, "n 11"], bins: Bins, size: tuple[int, int], rules: Rules) -> Float[Tensor, "5 h w"]:
    picture = packed.new_empty(5, *size)
    kernels.forward(
        packed.contiguous().numpy(),
        bins.splats.numpy(),
        bins.starts.numpy(),
        bins.columns,
        _limits(rules, packed),
        picture.numpy(),
    )
    return picture


def _backward(
    packed: Float[Tensor, "n 11"],
    bins: Bins,
    picture: Float[Tensor, "5 h w"],
    gradient: Float[Tensor, "5 h w"],
    rules: Rules,
) -> Float[Tensor, "n 11"]:
    found = torch.zeros_like(packed)
    kernels.backward(
        packed.contiguous().numpy(),
        bins.splats.numpy(),
        bins.starts.numpy(),
        bins.columns,
        _limits(rules, packed),
        picture.contiguous().numpy(),
        gradient.numpy(),
        found.numpy(),
    )
    return found
