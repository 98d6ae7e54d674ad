"""VGGT's dense heads: maps of several rounds, fused from coarse to fine (Ranftl et al. 2021), a frame at a time.

Module names are those of the published checkpoints.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.vggt.config import Config

_HIDDEN = 32
_POSITION_STRENGTH = 0.1
_POSITION_BASE = 100.0


class ResidualUnit(nn.Module):
    """Two convolutions beside a skip.

    The skip carries relu(x), not x: the published networks were trained with a ReLU that overwrote its input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """A map of the same shape."""
        kept = x.relu()
        return self.conv2(self.conv1(kept).relu()) + kept


class Refinement(nn.Module):
    """Adds a finer map to the one so far, and enlarges the sum. The coarsest has nothing to add to."""

    def __init__(self, channels: int, *, coarsest: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        if not coarsest:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(
        self, x: Float[Tensor, "n c h w"], finer: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "n c h2 w2"]:
        """The fused map at `size`."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        return self.out_conv(enlarge(self.resConfUnit2(x), size))


class Scratch(nn.Module):
    """The maps of four rounds brought to one width, fused, and read out."""

    def __init__(self, widths: Sequence[int], features: int, out: int) -> None:
        super().__init__()
        for k, width in enumerate(widths, start=1):
            setattr(self, f"layer{k}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{k}", Refinement(features, coarsest=k == len(widths)))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, _HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(_HIDDEN, out, 1)
        )

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        """Maps from fine to coarse, fused at twice the finest one's size."""
        x: Tensor | None = None
        narrow = [getattr(self, f"layer{k}_rn")(m) for k, m in enumerate(maps, start=1)]
        sizes = [(2 * maps[0].shape[-2], 2 * maps[0].shape[-1])] + [(m.shape[-2], m.shape[-1]) for m in maps[:-1]]
        for k in range(len(maps), 0, -1):
            refine, finer = getattr(self, f"refinenet{k}"), narrow[k - 1]
            x = refine(finer, None, sizes[k - 1]) if x is None else refine(x, finer, sizes[k - 1])
        return self.output_conv1(x)


class DenseHead(nn.Module):
    """`out` channels for each pixel of each frame, from the patch tokens of four rounds."""

    def __init__(self, config: Config, *, out: int) -> None:
        super().__init__()
        self.patch, self.layers, self.chunk = config.patch, config.dpt_layers, config.dpt_chunk
        widths = config.dpt_widths
        self.norm = nn.LayerNorm(2 * config.width)
        self.projects = nn.ModuleList(nn.Conv2d(2 * config.width, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(widths, config.dpt_features, out)

    def forward(
        self, tokens: Mapping[int, Float[Tensor, "b s p c"]], size: tuple[int, int], *, special: int
    ) -> Float[Tensor, "b s k h w"]:
        """The raw channels at `size` (height, width); a frame's first `special` tokens are no patches."""
        b, s = next(iter(tokens.values())).shape[:2]
        patches = [tokens[layer][:, :, special:].flatten(0, 1) for layer in self.layers]
        chunks = [
            self._frames([p[start : start + self.chunk] for p in patches], size)
            for start in range(0, b * s, self.chunk)
        ]
        return torch.unflatten(torch.cat(chunks), 0, (b, s))

    def _frames(self, patches: Sequence[Float[Tensor, "n t c"]], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        aspect = size[1] / size[0]
        maps = []
        for tokens, project, resize in zip(patches, self.projects, self.resize_layers, strict=True):
            grid = torch.unflatten(self.norm(tokens).transpose(1, 2), 2, (size[0] // self.patch, size[1] // self.patch))
            maps.append(resize(add_positions(project(grid), aspect)))
        return self.scratch.output_conv2(add_positions(enlarge(self.scratch(maps), size), aspect))


def enlarge(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """`x` at `size`, bilinear, corners on corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def add_positions(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """`x` plus a faint trace of where each pixel lies in an image of `aspect` (width over height).

    The first half of the channels follows the column, the second the row, so neither need be spread over the map.
    """
    c, h, w = x.shape[-3:]
    u, v = (sinusoids(p.to(x.device), c // 2).to(x.dtype) for p in axes((h, w), aspect))
    columns, rows = u.T[:, None, :].expand(-1, h, -1), v.T[:, :, None].expand(-1, -1, w)
    return x + _POSITION_STRENGTH * torch.cat([columns, rows])


def axes(size: tuple[int, int], aspect: float) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
    """Where columns and rows of a map of `size` lie, in half diagonals of an image of `aspect`: its middle is 0. float64."""
    diagonal = (aspect**2 + 1) ** 0.5
    ends = (aspect / diagonal * (size[1] - 1) / size[1], 1 / diagonal * (size[0] - 1) / size[0])
    u, v = (torch.linspace(-end, end, count, dtype=torch.float64) for end, count in zip(ends, reversed(size)))
    return u, v


def sinusoids(p: Float[Tensor, " n"], channels: int) -> Float[Tensor, "n c"]:
    """Sines, then cosines, of `p` at channels / 2 frequencies from 1 down to almost 1 / 100."""
    count = channels // 2
    frequencies = _POSITION_BASE ** (-torch.arange(count, dtype=torch.float64, device=p.device) / count)
    angles = p[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
