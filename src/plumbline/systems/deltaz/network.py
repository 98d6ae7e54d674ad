"""DeltaZUNet: a U-Net with a correction head and an optional confidence head."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.blocks import ConvBlock, ResidualBlock, pad_to_multiple


class Answer(NamedTuple):
    """What the heads say of each pixel: a correction and, with their heads, a confidence in [0, 1] and a target."""

    correction: Float[Tensor, "n h w"]
    confidence: Float[Tensor, "n h w"] | None
    target: Float[Tensor, "n h w"] | None


class DeltaZUNet(nn.Module):
    """A residual U-Net of `depth` levels; level i has `base_channels` * 2^i channels (a multiple of 8).

    With `patch` above 1 its finest level works on patches of patch x patch pixels, whose channels are stacked, and what
    the heads answer for a patch is enlarged bilinearly: about 1 / patch^2 of the cost. The correction and
    target heads start at zero, so that an untrained network leaves the initial depth as it is.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        base_channels: int = 32,
        depth: int = 4,
        out_confidence: bool = False,
        out_target: bool = False,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(depth + 1)]
        before = [in_channels * patch**2, *widths]
        self.encoder = nn.ModuleList(_level(before[level], widths[level]) for level in range(depth))
        self.bottleneck = _level(widths[-2], widths[-1])
        self.decoder = nn.ModuleList(
            _level(widths[level + 1] + widths[level], widths[level]) for level in reversed(range(depth))
        )
        self.correction_head = _head(base_channels)
        self.confidence_head = _head(base_channels) if out_confidence else None
        self.target_head = _head(base_channels) if out_target else None
        for head in (self.correction_head, self.target_head):
            if head is not None:
                _zero(head)
        self.patch = patch
        self.multiple = patch * 2**depth

    def forward(self, x: Float[Tensor, "n c h w"]) -> Answer:
        """What the heads answer, at the size of `x`.

        Sizes that patch * 2^depth does not divide are padded by repeating the last row and column, and cropped back.
        """
        size = (x.shape[-2], x.shape[-1])
        patches = F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch)
        features = self._features(patches.contiguous(memory_format=torch.channels_last))
        return Answer(
            correction=self._pixels(self.correction_head, features, size),
            confidence=None
            if self.confidence_head is None
            else self._pixels(self.confidence_head, features, size).sigmoid(),
            target=None if self.target_head is None else self._pixels(self.target_head, features, size),
        )

    def _pixels(
        self, head: nn.Conv2d, features: Float[Tensor, "n c h2 w2"], size: tuple[int, int]
    ) -> Float[Tensor, "n h w"]:
        answer = head(features)
        if self.patch > 1:
            answer = F.interpolate(answer, scale_factor=self.patch, mode="bilinear", align_corners=False)
        return answer[:, 0, : size[0], : size[1]]

    def _features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        skips = []
        for level in self.encoder:
            skips.append(level(x))
            x = F.avg_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level, skip in zip(self.decoder, reversed(skips)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = level(torch.cat([x, skip], dim=1))
        return x


def _level(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(in_channels, out_channels), ResidualBlock(out_channels))


def _head(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 1, 3, padding=1)


def _zero(head: nn.Conv2d) -> None:
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
