"""DeltaZUNet: a U-Net with a correction head and an optional confidence head."""

from typing import NamedTuple, cast

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
        The memory layout is that of the weights. The heads work in float32, also under autocast.
        """
        size = (x.shape[-2], x.shape[-1])
        patches = F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch)
        features = self._features(patches)
        # In float32 under autocast too: bfloat16 has 8 bits, and what the heads say is multiplied by a depth.
        with torch.autocast(features.device.type, enabled=False):
            return self._answer(features.float(), size)

    def _answer(self, features: Float[Tensor, "n c h2 w2"], size: tuple[int, int]) -> Answer:
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
            x = _decode(level, x, skip)
        return x


def _decode(
    level: nn.Module, x: Float[Tensor, "n c h w"], skip: Float[Tensor, "n c2 h w"]
) -> Float[Tensor, "n c2 h w"]:
    """`level` of `x` and `skip` stacked, its first convolution taken of each and summed.

    Same as of their concatenation, without that copy and those of its gradient: an eighth of a training step.
    """
    first, rest = cast(tuple[ConvBlock, ResidualBlock], tuple(level.children()))
    of_x, of_skip = first.conv.weight.tensor_split([x.shape[1]], dim=1)
    joined = F.conv2d(x, of_x, padding=1) + F.conv2d(skip, of_skip, padding=1)
    refined: Tensor = rest(F.relu(first.norm(joined), inplace=True))
    return refined


def _level(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(in_channels, out_channels), ResidualBlock(out_channels))


def _head(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 1, 3, padding=1)


def _zero(head: nn.Conv2d) -> None:
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
