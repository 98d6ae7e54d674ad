"""DeltaZUNet: a U-Net with a correction head and an optional confidence head."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.blocks import ConvBlock, ResidualBlock, pad_to_multiple


class DeltaZUNet(nn.Module):
    """A residual U-Net of `depth` levels; level i has `base_channels` * 2^i channels (a multiple of 8).

    The correction head starts at zero, so that an untrained network leaves the initial depth as it is.
    """

    def __init__(
        self, in_channels: int = 1, *, base_channels: int = 32, depth: int = 4, out_confidence: bool = False
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            _level(before, width) for before, width in zip([in_channels, *widths], widths[:-1])
        )
        self.bottleneck = _level(widths[-2], widths[-1])
        self.decoder = nn.ModuleList(
            _level(widths[level + 1] + widths[level], widths[level]) for level in reversed(range(depth))
        )
        self.correction_head = nn.Conv2d(base_channels, 1, 3, padding=1)
        self.confidence_head = nn.Conv2d(base_channels, 1, 3, padding=1) if out_confidence else None
        nn.init.zeros_(self.correction_head.weight)
        nn.init.constant_(self.correction_head.bias, 0.0)  # type: ignore[arg-type]
        self.multiple = 2**depth

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"] | None]:
        """The correction and, with its head, the confidence in [0, 1] (higher = surer), at the size of `x`.

        Sizes that 2^depth does not divide are padded by repeating the last row and column, and cropped back.
        """
        height, width = x.shape[-2:]
        features = self._features(pad_to_multiple(x, self.multiple))
        correction = self.correction_head(features)[:, 0, :height, :width]
        if self.confidence_head is None:
            return correction, None
        return correction, torch.sigmoid(self.confidence_head(features)[:, 0, :height, :width])

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
