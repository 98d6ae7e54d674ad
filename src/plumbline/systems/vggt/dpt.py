"""VGGT's dense heads: maps of several rounds, fused from coarse to fine (Ranftl et al. 2021), a frame at a time.

Module names are those of the published checkpoints.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.vggt.config import Config
from plumbline.systems.vit.dense import Fusion, enlarge, resize_layers

_HIDDEN = 32
_POSITION_STRENGTH = 0.1
_POSITION_BASE = 100.0


class Scratch(Fusion):
    """The maps of four rounds, fused and read out."""

    def __init__(self, widths: Sequence[int], features: int, out: int) -> None:
        super().__init__(widths, features, rectified=True)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, _HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(_HIDDEN, out, 1)
        )

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        """The fused map, to be read out by `output_conv2` at the image's size."""
        return self.output_conv1(super().forward(maps))


class DenseHead(nn.Module):
    """`out` channels for each pixel of each frame, from the patch tokens of four rounds."""

    def __init__(self, config: Config, *, out: int) -> None:
        super().__init__()
        self.patch, self.layers, self.chunk = config.patch, config.dpt_layers, config.dpt_chunk
        widths = config.dpt_widths
        self.norm = nn.LayerNorm(2 * config.width)
        self.projects = nn.ModuleList(nn.Conv2d(2 * config.width, width, 1) for width in widths)
        self.resize_layers = resize_layers(widths)
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
