"""Dense heads that fuse features of the CNN, the transformer and the ViT at full resolution (after Ranftl et al. 2021).

Module names are those of the published checkpoints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.depthsplat.backbone import Pyramid
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.unet import zeroed
from plumbline.systems.vit.dense import Fusion, resize_layers

_HIDDEN = 16
_STRIDES = (2, 4, 8)


class Features(NamedTuple):
    """What the branches say of n images: the CNN's pyramid, matched features coarse to fine, four maps of the ViT at 1/8."""

    cnn: Pyramid
    matched: Sequence[Float[Tensor, "n _ _ _"]]
    mono: Sequence[Float[Tensor, "n _ _ _"]]


class Scratch(Fusion):
    """Four maps fused; with `readout` to so many channels, which start at 0."""

    def __init__(self, widths: Sequence[int], features: int, *, readout: int) -> None:
        super().__init__(widths, features, rectified=False)
        self.output_conv = None
        if readout:
            self.output_conv = nn.Sequential(
                nn.Conv2d(features, features // 2, 3, padding=1, padding_mode="replicate"),
                nn.GELU(),
                nn.Conv2d(features // 2, _HIDDEN, 3, padding=1, padding_mode="replicate"),
                nn.GELU(),
                zeroed(nn.Conv2d(_HIDDEN, readout, 1)),
            )

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        """Maps from fine to coarse, fused at twice the finest one's size."""
        x = super().forward(maps)
        return x if self.output_conv is None else self.output_conv(x)


class DenseHead(nn.Module):
    """A map at the image's size: with `depth` what enlarges inverse depth, which is then an input; else features.

    That is a correction of it, or, `guided`, logits of the swept depths around a pixel.
    """

    def __init__(self, config: Config, *, depth: bool) -> None:
        super().__init__()
        widths = config.dpt_widths
        self.config, self.depth = config, depth
        self.projects = nn.ModuleList(nn.Conv2d(config.vit_width, width, 1) for width in widths)
        self.resize_layers = resize_layers(widths)
        joined = (sum(channels.values()) for channels in _channels(config, depth=depth))
        self.concat_projects = nn.ModuleList(
            nn.Conv2d(n, width, 1) for n, width in zip(joined, widths[: len(_STRIDES)], strict=True)
        )
        features = config.depth_features if depth else config.gaussian_features
        self.scratch = Scratch(widths, features, readout=config.enlarged_by if depth else 0)

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
