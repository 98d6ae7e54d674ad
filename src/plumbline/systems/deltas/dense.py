"""DELTAS' last net: dense depth from a sparse depth image and the anchor's image features.

Parameter names are the published checkpoint's (`state_dict_depth`). Sinha et al., DELTAS, ECCV 2020, section 3.3; the
up-projections with a side input follow Laina et al. 2016, the dilated layers DenseASPP (Yang et al. 2018).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.front import FrontFeatures, encoder_channels
from plumbline.systems.deltas.resnet import Pointwise, run, stages

# Entries of a kernel up to which two convolutions over one map are run as one: beyond, copying kernels costs what it saves.
LARGEST_MERGED = 40_000


class DenseDepth(NamedTuple):
    """Depth at four sizes (rounded up), linear and unclamped, in the unit of the sparse depth."""

    full: Float[Tensor, "b 1 h w"]
    half: Float[Tensor, "b 1 h2 w2"]
    quarter: Float[Tensor, "b 1 h4 w4"]
    eighth: Float[Tensor, "b 1 h8 w8"]


class SparseToDense(nn.Module):
    """A narrow ResNet over the sparse depth, joined with image features at each scale, and five up-projections."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.recompute = config.checkpointing
        image = encoder_channels(config)
        own = [config.depth_stem, *(config.expansion * width for width in config.depth_widths)]
        half, quarter, eighth, sixteenth, deepest = (a + b for a, b in zip(image, own, strict=True))
        one, two, three, four, five = config.decoder_widths
        self.conv1 = nn.Conv2d(1, config.depth_stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.depth_stem)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(
            config.depth_stem, config.depth_widths, config.depth_blocks, config.expansion
        )
        self.gud_up_proj_layer1 = UpProjection(deepest, one, side_channels=sixteenth)
        self.gud_up_proj_layer2 = UpProjection(one, two, side_channels=eighth)
        self.ASPP = DenseASPP(two, config.aspp_width, config.aspp_dilations)
        self.gud_up_proj_layer3 = UpProjection(two, three, side_channels=quarter)
        self.gud_up_proj_layer4 = UpProjection(three, four, side_channels=half)
        self.gud_up_proj_layer5 = UpProjection(four, five)
        self.conv_final = nn.Conv2d(five, 1, 3, padding=1)
        self.conv_scale8 = Pointwise(two, 1)
        self.conv_scale4 = Pointwise(three, 1)
        self.conv_scale2 = Pointwise(four, 1)

    def forward(self, sparse: Float[Tensor, "b 1 h w"], image: FrontFeatures) -> DenseDepth:
        """Depth of the images whose features are `image`; height and width must be multiples of 8."""
        half, quarter, eighth, sixteenth, deepest = self.encode(sparse)
        # Here image features come first, at all other scales the depth's: the checkpoint's order.
        x = torch.cat([image.features, deepest], dim=1)
        x = self._run(self.gud_up_proj_layer1, x, sixteenth, image.skip_sixteenth)
        x = self._run(self.gud_up_proj_layer2, x, eighth, image.skip_eighth)
        at_eighth = self._run(self.ASPP, x)
        at_quarter = self._run(self.gud_up_proj_layer3, at_eighth, quarter, image.skip_quarter)
        at_half = self._run(self.gud_up_proj_layer4, at_quarter, half, image.skip_half)
        x = self._run(self.gud_up_proj_layer5, at_half)
        return DenseDepth(
            full=_depth(self.conv_final, x),
            half=_depth(self.conv_scale2, at_half),
            quarter=_depth(self.conv_scale4, at_quarter),
            eighth=_depth(self.conv_scale8, at_eighth),
        )

    def encode(self, sparse: Float[Tensor, "b 1 h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Five maps of the sparse depth, 1/2 to 1/32 of its size."""
        maps = [F.relu(self.bn1(self.conv1(sparse)), inplace=True)]
        x = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = self._run(layer, x)
            maps.append(x)
        return tuple(maps)

    def start_at(self, depth: float) -> None:
        """Make fresh weights answer about `depth` everywhere, so that training does not begin at 0."""
        for head in (self.conv_final, self.conv_scale8, self.conv_scale4, self.conv_scale2):
            nn.init.constant_(head.get_parameter("bias"), depth)

    def _run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return run(module, *inputs, owner=module, recompute=self.recompute)


class UpProjection(nn.Module):
    """Twice the size: ReLU(branch + shortcut) of an enlarged map, the branch joined with side features when it has any."""

    def __init__(self, in_channels: int, channels: int, *, side_channels: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        if side_channels:
            self.conv1_1 = nn.Conv2d(channels + side_channels, channels, 3, padding=1, bias=False)
            self.bn1_1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.sc_conv1 = nn.Conv2d(in_channels, channels, 5, padding=2, bias=False)
        self.sc_bn1 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "b c h w"], *side: Float[Tensor, "b _ h2 w2"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Features of twice the size, or of the size of the `side` maps when there are any."""
        size = (2 * x.shape[-2], 2 * x.shape[-1]) if not side else (side[0].shape[-2], side[0].shape[-1])
        y, shortcut = self._enlarged(x, size)
        y = F.relu(self.bn1(y), inplace=True)
        if side:
            y = F.relu(self.bn1_1(self.conv1_1(torch.cat([y, *side], dim=1))), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.sc_bn1(shortcut), inplace=True)

    def _enlarged(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """What the branch's and the shortcut's first convolutions answer."""
        weights = [self.conv1.weight, self.sc_conv1.weight]
        if weights[0].numel() > LARGEST_MERGED:
            return tuple(enlarge_and_convolve(x, weight, size) for weight in weights)
        return enlarge_and_convolve(x, torch.cat(weights), size).chunk(2, dim=1)


class DenseASPP(nn.Module):
    """Dilated layers, each over all before it, and a convolution over all of them; as many channels out as in."""

    def __init__(self, channels: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.names = [f"daspp_{i + 1}" for i in range(len(dilations))]
        for i, (name, dilation) in enumerate(zip(self.names, dilations, strict=True)):
            self.add_module(name, _Dilated(channels + i * width, width, dilation))
        self.convf = nn.Conv2d(channels + len(dilations) * width, channels, 3, padding=1, bias=False)
        self.bnf = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features with a wide view."""
        for name in self.names:
            x = torch.cat([x, self.get_submodule(name)(x)], dim=1)
        return F.relu(self.bnf(self.convf(x)), inplace=True)


class _Dilated(nn.Module):
    def __init__(self, in_channels: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = Pointwise(in_channels, channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


def inserts_zeros(height: int, side_height: int) -> bool:
    """Whether a map of `height` rows is enlarged by zeros, as the published network decides: by heights alone."""
    return side_height % height == 0


def enlarge(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """`x` at twice its size, cropped to `size`: between zeros, each value the top left of four, or by nearest pixels."""
    if not inserts_zeros(x.shape[-2], size[0]):
        return F.interpolate(x, size=size, mode="nearest")
    larger = x.new_zeros(*x.shape[:2], 2 * x.shape[-2], 2 * x.shape[-1])
    larger[..., ::2, ::2] = x
    return larger[..., : size[0], : size[1]]


def enlarge_and_convolve_reference(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "c2 c 5 5"], size: tuple[int, int]
) -> Float[Tensor, "b c2 h2 w2"]:
    """The readable reference of `enlarge_and_convolve`."""
    return F.conv2d(enlarge(x, size), weight, padding=2)


def enlarge_and_convolve(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "c2 c 5 5"], size: tuple[int, int]
) -> Float[Tensor, "b c2 h2 w2"]:
    """A 5x5 convolution over `enlarge(x, size)`, without the products with inserted zeros, three quarters of all.

    Even rows of the answer see the kernel's rows 0, 2 and 4, odd ones its rows 1 and 3, and so do columns: four small
    convolutions over `x` itself. Together they are a strided transposed convolution with the kernel turned round.
    """
    if not inserts_zeros(x.shape[-2], size[0]):
        return enlarge_and_convolve_reference(x, weight, size)
    missing = (size[0] - 2 * x.shape[-2] + 1, size[1] - 2 * x.shape[-1] + 1)
    turned = weight.flip(-2, -1).transpose(0, 1)
    return F.conv_transpose2d(x, turned, stride=2, padding=2, output_padding=missing)


def spread_depth(sparse: Float[Tensor, "b h w"], weight: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """The sparse depth (0: unknown) over the whole image; 0 where nothing is known at all.

    A pyramid of sums: each pixel takes the mean inverse depth, by `weight`, of what is known in its cell, with a weight of 1
    for what the coarser cells around it say. Means of inverse depth, for that is what a match's error is proportional
    to. Ours, not the paper's.
    """
    known = torch.where(sparse > 0, weight, 0.0)[:, None]
    inverse = known / torch.where(sparse > 0, sparse, 1.0)[:, None]
    levels = [(inverse, known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append((_sum_of_cells(levels[-1][0]), _sum_of_cells(levels[-1][1])))
    total, count = levels.pop()
    mean = total / count.clamp(min=1e-6)
    for total, count in reversed(levels):
        size = (2 * mean.shape[-2], 2 * mean.shape[-1])
        around = F.interpolate(mean, size=size, mode="bilinear", align_corners=False)
        mean = (total + around[..., : total.shape[-2], : total.shape[-1]]) / (count + 1)
    return torch.where(mean > 0, 1 / mean.clamp(min=1e-6), 0.0)[:, 0]


def _sum_of_cells(x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 _ _"]:
    """Sums of 2x2 pixels; an odd last row or column stands alone."""
    return 4 * F.avg_pool2d(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)), 2)


def sparse_depth_image(
    keypoints: Float[Tensor, "b n 2"],
    z: Float[Tensor, "b n"],
    known: Bool[Tensor, "b n"],
    size: tuple[int, int],
) -> Float[Tensor, "b h w"]:
    """`z` at each keypoint's pixel, 0 where it is not `known` and at all other pixels; differentiable in `z`.

    Where keypoints share a pixel the last one counts, known or not.
    """
    height, width = size
    n = keypoints.shape[1]
    pixel = (keypoints[..., 1].long() * width + keypoints[..., 0].long()).clamp(0, height * width - 1)
    order = torch.arange(n, device=z.device).expand_as(pixel)
    last = torch.full((len(z), height * width), -1, device=z.device).scatter_reduce(1, pixel, order, "amax")
    values = torch.where(known, z, torch.zeros_like(z)).gather(1, last.clamp(min=0))
    return values.masked_fill(last < 0, 0.0).reshape(len(z), height, width)


def _depth(head: nn.Conv2d, x: Tensor) -> Tensor:
    """The head's answer in float32: bfloat16 has three digits, too few for a depth."""
    with torch.autocast(x.device.type, enabled=False):
        return head(x.float())
