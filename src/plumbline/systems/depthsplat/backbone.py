"""The CNN that looks at each image on its own. Module names are those of the published checkpoints."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.depthsplat.config import Config


class Pyramid(NamedTuple):
    """Features at 1/2, at 1/2 (stride 4) or 1/4 (stride 8), and at 1/stride of the image's size."""

    fine: Float[Tensor, "n _ _ _"]
    middle: Float[Tensor, "n _ _ _"]
    coarse: Float[Tensor, "n _ _ _"]


class ResidualBlock(nn.Module):
    """Two convolutions with instance norms around a skip."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride != 1 or in_channels != channels
        self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride)) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Features, smaller by the stride."""
        y = F.relu(F.instance_norm(self.conv1(x)))
        y = F.relu(F.instance_norm(self.conv2(y)))
        kept = x if self.downsample is None else F.instance_norm(self.downsample(x))
        return F.relu(kept + y)


class Backbone(nn.Module):
    """A stem and three stages of two residual blocks each, as in UniMatch (Xu et al. 2023)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third = config.backbone_widths
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.layer1 = _stage(first, first, stride=1)
        self.layer2 = _stage(first, second, stride=config.stride // 4)
        self.layer3 = _stage(second, third, stride=2)
        self.conv2 = nn.Conv2d(third, third, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Pyramid:
        """Features of normalised images."""
        fine = self.layer1(F.relu(F.instance_norm(self.conv1(images))))
        middle = self.layer2(fine)
        return Pyramid(fine, middle, self.conv2(self.layer3(middle)))


def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, channels, stride=stride), ResidualBlock(channels, channels, stride=1)
    )
