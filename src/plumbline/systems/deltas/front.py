"""DELTAS' first net: image features, descriptors of all views and a keypoint detector for the anchor.

Parameter names are the published checkpoint's (`state_dict`). Sinha et al., DELTAS, ECCV 2020, section 3.1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.resnet import Pointwise, run, stages

# The encoder's own normalisation, which the published network applies to images that are already in [-1, 1].
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
CELL = 8  # pixels along the side of a detector cell; one more channel says that a cell holds no keypoint


class FrontFeatures(NamedTuple):
    """What the image encoder knows of n images; the sizes of coarse maps are rounded up."""

    skip_half: Float[Tensor, "n c1 h2 w2"]
    skip_quarter: Float[Tensor, "n c2 h4 w4"]
    skip_eighth: Float[Tensor, "n c3 h8 w8"]
    skip_sixteenth: Float[Tensor, "n c4 h16 w16"]
    features: Float[Tensor, "n c5 h32 w32"]
    descriptors: Float[Tensor, "n d _ _"]

    def rows(self, rows: Tensor | slice) -> "FrontFeatures":
        """The same of the images `rows`."""
        return FrontFeatures(*(maps[rows] for maps in self))


class Front(nn.Module):
    """A ResNet with a detector head and a descriptor head; heights and widths must be multiples of 8."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.recompute = config.checkpointing
        self.descriptor_cell = config.descriptor_cell
        _, quarter, eighth, _, deepest = self.channels = encoder_channels(config)
        self.conv1 = nn.Conv2d(3, config.encoder_stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.encoder_stem)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(
            config.encoder_stem, config.encoder_widths, config.encoder_blocks, config.expansion
        )
        self._add_detector(deepest, *config.detector_widths)
        first, second, third = config.descriptor_widths
        self.convDa = nn.Conv2d(deepest, first, 3, padding=1)
        self.bnDa = nn.BatchNorm2d(first)
        self.convDb = Pointwise(first + eighth, second)
        self.bnDb = nn.BatchNorm2d(second)
        self.convDc = nn.Conv2d(second, third, 3, padding=1)
        self.bnDc = nn.BatchNorm2d(third)
        self.convDd = Pointwise(third + quarter + config.encoder_stem, config.descriptor_channels)
        self.register_buffer("scale", torch.tensor([2 / s for s in DEVIATION]).reshape(3, 1, 1), persistent=False)
        shift = [(1 + m) / s for m, s in zip(MEAN, DEVIATION)]
        self.register_buffer("shift", torch.tensor(shift).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> FrontFeatures:
        """Features and unit descriptors of images in [0, 1]."""
        half, quarter, eighth, sixteenth, deepest = self.encode(images)
        descriptors = run(self.describe, half, quarter, eighth, deepest, owner=self, recompute=self.recompute)
        return FrontFeatures(half, quarter, eighth, sixteenth, deepest, descriptors)

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """Five maps, 1/2 to 1/32 of the size, of images in [0, 1], which are brought to [-1, 1] and normalised on top."""
        half = F.relu(self.bn1(self.conv1(images * self.scale - self.shift)), inplace=True)
        maps = [half]
        x = F.max_pool2d(half, 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run(layer, x, owner=layer, recompute=self.recompute)
            maps.append(x)
        return tuple(maps)

    def detect(self, maps: FrontFeatures) -> Float[Tensor, "n 65 h8 w8"]:
        """Logits: channel 8 r + s of a cell is its pixel in row r and column s, channel 64 that it has no keypoint."""
        x = F.relu(self.bnPa(self.convPa(maps.features)), inplace=True)
        x = F.interpolate(x, size=maps.skip_eighth.shape[-2:], mode="bilinear", align_corners=False)
        x = F.relu(self.bnPb(self.convPb(x)), inplace=True)
        return self.convPc(x).float()

    def describe(
        self,
        half: Float[Tensor, "n c1 h2 w2"],
        quarter: Float[Tensor, "n c2 h4 w4"],
        eighth: Float[Tensor, "n c3 h8 w8"],
        deepest: Float[Tensor, "n c5 h32 w32"],
    ) -> Float[Tensor, "n d _ _"]:
        """Unit descriptors, float32, from four scales, at 1/8 of the size, or 1/4 where a descriptor's cell has 4 pixels."""
        x = F.relu(self.bnDa(self.convDa(deepest)), inplace=True)
        x = F.interpolate(x, size=eighth.shape[-2:], mode="bilinear", align_corners=False)
        x = F.relu(self.bnDb(self.convDb(torch.cat([x, eighth], dim=1))), inplace=True)
        x = F.relu(self.bnDc(self.convDc(x)), inplace=True)
        if self.descriptor_cell == CELL:
            fine = F.avg_pool2d(quarter, 2), middle_quarter(half)
        else:
            x = F.interpolate(x, size=quarter.shape[-2:], mode="bilinear", align_corners=False)
            fine = quarter, F.avg_pool2d(half, 2)
        x = self.convDd(torch.cat([x, *fine], dim=1))
        return F.normalize(x.float(), dim=1, eps=1e-12)

    def _add_detector(self, in_channels: int, first: int, second: int) -> None:
        self.convPa = nn.Conv2d(in_channels, first, 3, padding=1)
        self.bnPa = nn.BatchNorm2d(first)
        self.convPb = nn.Conv2d(first, second, 3, padding=1)
        self.bnPb = nn.BatchNorm2d(second)
        self.convPc = Pointwise(second, CELL**2 + 1)


def middle_quarter(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h4 w4"]:
    """A quarter of the size: the mean of the middle 2x2 of each 4x4, as bilinear resizing without antialiasing gives."""
    return F.avg_pool2d(x[..., 1:, 1:], kernel_size=2, stride=4)


def encoder_channels(config: Config) -> tuple[int, int, int, int, int]:
    """Channels of the encoder's maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
    one, two, three, four = (config.expansion * width for width in config.encoder_widths)
    return config.encoder_stem, one, two, three, four
