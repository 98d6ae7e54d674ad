"""Dense heads that fuse features of the CNN, the transformer and the ViT at full resolution (after Ranftl et al. 2021).

Module names are those of the published checkpoints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.depthsplat.backbone import Pyramid
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.unet import zeroed

_HIDDEN = 16
_STRIDES = (2, 4, 8)


class Features(NamedTuple):
    """What the branches say of n images: the CNN's pyramid, matched features coarse to fine, four maps of the ViT at 1/8."""

    cnn: Pyramid
    matched: Sequence[Float[Tensor, "n _ _ _"]]
    mono: Sequence[Float[Tensor, "n _ _ _"]]


class ResidualUnit(nn.Module):
    """Two convolutions, each after a ReLU, around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """A map of the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


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
    """Four maps brought to one width and fused; with `readout` to one channel, which starts at 0."""

    def __init__(self, widths: Sequence[int], features: int, *, readout: bool) -> None:
        super().__init__()
        for k, width in enumerate(widths, start=1):
            setattr(self, f"layer{k}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{k}", Refinement(features, coarsest=k == len(widths)))
        self.output_conv = None
        if readout:
            self.output_conv = nn.Sequential(
                nn.Conv2d(features, features // 2, 3, padding=1, padding_mode="replicate"),
                nn.GELU(),
                nn.Conv2d(features // 2, _HIDDEN, 3, padding=1, padding_mode="replicate"),
                nn.GELU(),
                zeroed(nn.Conv2d(_HIDDEN, 1, 1)),
            )

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        """Maps from fine to coarse, fused at twice the finest one's size."""
        narrow = [getattr(self, f"layer{k}_rn")(m) for k, m in enumerate(maps, start=1)]
        sizes = [(2 * maps[0].shape[-2], 2 * maps[0].shape[-1])] + [(m.shape[-2], m.shape[-1]) for m in maps[:-1]]
        x = getattr(self, f"refinenet{len(maps)}")(narrow[-1], None, sizes[-1])
        for k in range(len(maps) - 1, 0, -1):
            x = getattr(self, f"refinenet{k}")(x, narrow[k - 1], sizes[k - 1])
        return x if self.output_conv is None else self.output_conv(x)


class DenseHead(nn.Module):
    """A map at the image's size: with `depth` a correction of inverse depth, which is then an input; else features."""

    def __init__(self, config: Config, *, depth: bool) -> None:
        super().__init__()
        widths = config.dpt_widths
        self.config, self.depth = config, depth
        self.projects = nn.ModuleList(nn.Conv2d(config.vit_width, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        joined = (sum(channels.values()) for channels in _channels(config, depth=depth))
        self.concat_projects = nn.ModuleList(nn.Conv2d(n, width, 1) for n, width in zip(joined, widths, strict=False))
        features = config.depth_features if depth else config.gaussian_features
        self.scratch = Scratch(widths, features, readout=depth)

    def forward(
        self, features: Features, inverse_depth: Float[Tensor, "n 1 h2 w2"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """The map; `inverse_depth` is that of the finest swept scale, and needed by a head for depth only."""
        maps = [
            resize(project(tap))
            for tap, project, resize in zip(features.mono, self.projects, self.resize_layers, strict=True)
        ]
        parts = self._parts(features, maps, inverse_depth)
        levels = _channels(self.config, depth=self.depth)
        for k, (names, project) in enumerate(zip(levels, self.concat_projects, strict=True)):
            maps[k] = project(torch.cat([parts[name] for name in names], dim=1))
        return self.scratch(maps)

    def _parts(self, features: Features, maps: Sequence[Tensor], inverse_depth: Tensor | None) -> dict[str, Tensor]:
        parts = {f"cnn{k}": x for k, x in enumerate(features.cnn)}
        parts |= {f"matched{k}": x for k, x in enumerate(features.matched)}
        parts |= {f"mono{k}": x for k, x in enumerate(maps)}
        return parts if inverse_depth is None else {**parts, "depth": inverse_depth}


def _channels(config: Config, *, depth: bool) -> list[dict[str, int]]:
    """What is joined at 1/2, 1/4 and 1/8 of the image's size, in order, and how many channels each has.

    The order is part of the published weights. It has one exception: where matched features meet two maps of the CNN, the
    ViT's come last.
    """
    cnn_strides = (2, config.stride // 2, config.stride)
    levels = []
    for k, stride in enumerate(_STRIDES):
        cnn = {f"cnn{i}": config.backbone_widths[i] for i in range(3) if cnn_strides[i] == stride}
        mono = {f"mono{k}": config.dpt_widths[k]}
        matched = {f"matched{s}": config.width // 2**s for s in range(config.scales) if config.stride // 2**s == stride}
        if depth and config.upsampling == stride:
            matched["depth"] = 1
        levels.append({**cnn, **matched, **mono} if len(cnn) == 2 and matched else {**cnn, **mono, **matched})
    return levels


def enlarge(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """`x` at `size`, bilinear, corners on corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
