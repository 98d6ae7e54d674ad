"""The trunk of dense heads: maps of several layers brought to one width and fused from coarse to fine (Ranftl et al. 2021).

Module names are those of the published checkpoints.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResidualUnit(nn.Module):
    """Two convolutions, each after a ReLU, beside a skip.

    With `rectified` the skip carries relu(x), not x: some published networks were trained with a ReLU that overwrote its
    input.
    """

    def __init__(self, channels: int, *, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """A map of the same shape."""
        positive = x.relu()
        return self.conv2(self.conv1(positive).relu()) + (positive if self.rectified else x)


class Refinement(nn.Module):
    """Adds a finer map to the one so far, and enlarges the sum. The coarsest has nothing to add to."""

    def __init__(self, channels: int, *, coarsest: bool, rectified: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        if not coarsest:
            self.resConfUnit1 = ResidualUnit(channels, rectified=rectified)
        self.resConfUnit2 = ResidualUnit(channels, rectified=rectified)

    def forward(
        self, x: Float[Tensor, "n c h w"], finer: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "n c h2 w2"]:
        """The fused map at `size`."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        return self.out_conv(enlarge(self.resConfUnit2(x), size))


class Fusion(nn.Module):
    """Maps of `widths` channels, brought to `features` channels and fused."""

    def __init__(self, widths: Sequence[int], features: int, *, rectified: bool) -> None:
        super().__init__()
        self.levels = len(widths)
        for k, width in enumerate(widths, start=1):
            setattr(self, f"layer{k}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{k}", Refinement(features, coarsest=k == self.levels, rectified=rectified))

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        """Maps from fine to coarse, fused at twice the finest one's size."""
        narrow = [getattr(self, f"layer{k}_rn")(m) for k, m in enumerate(maps, start=1)]
        sizes = [(2 * maps[0].shape[-2], 2 * maps[0].shape[-1])] + [(m.shape[-2], m.shape[-1]) for m in maps[:-1]]
        x: Tensor = getattr(self, f"refinenet{self.levels}")(narrow[-1], None, sizes[-1])
        for k in range(self.levels - 1, 0, -1):
            x = getattr(self, f"refinenet{k}")(x, narrow[k - 1], sizes[k - 1])
        return x


def resize_layers(widths: Sequence[int]) -> nn.ModuleList:
    """Layers that bring four maps of one size to 4 times, 2 times, 1 time and half of it."""
    return nn.ModuleList(
        [
            nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
            nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
            nn.Identity(),
            nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
        ]
    )


def enlarge(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """`x` at `size`, bilinear, corners on corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
