"""The residual encoder that DELTAS uses twice, for images and for sparse depth, and recomputation of activations.

Names and layout are torchvision's ResNet-50 ("v1.5": the stride is on the 3x3 convolution), so that its weights fit.
He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, said to be dilated on a CPU: that changes nothing for a kernel of one pixel.

    Without, torch on one thread takes MKL's matrix product, which is half as fast as oneDNN's convolution on some CPUs.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=bias)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """As of any convolution."""
        dilation = 2 if input.device.type == "cpu" else 1
        return F.conv2d(input, self.weight, self.bias, stride=self.stride, dilation=dilation)


class Bottleneck(nn.Module):
    """ReLU(shortcut + branch), the branch 1x1, 3x3 and 1x1 convolutions, each with a batch norm."""

    def __init__(self, in_channels: int, width: int, *, expansion: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        out_channels = expansion * width
        self.conv1 = Pointwise(in_channels, width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Pointwise(width, out_channels, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride) if project else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Features with `expansion` * `width` channels, smaller by the stride (rounded up)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def stage(in_channels: int, width: int, blocks: int, *, expansion: int, stride: int) -> nn.Sequential:
    """`blocks` bottlenecks; the first has the stride and a projection on its shortcut."""
    first = Bottleneck(in_channels, width, expansion=expansion, stride=stride, project=True)
    rest = (Bottleneck(expansion * width, width, expansion=expansion) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def stages(in_channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], expansion: int) -> list[nn.Sequential]:
    """The stages of an encoder after its stem: strides 1, 2, 2, 2."""
    inputs = [in_channels, *(expansion * width for width in widths)]
    return [
        stage(inputs[i], width, count, expansion=expansion, stride=1 if i == 0 else 2)
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True))
    ]


def run(function: Callable[..., Tensor], *inputs: Tensor, owner: nn.Module, recompute: bool) -> Tensor:
    """`function(*inputs)`; with `recompute` its activations are not kept but computed again by the backward pass.

    The batch norms of `owner` count a batch once, as without: their running statistics are left alone the second time.
    """
    if not (recompute and torch.is_grad_enabled()):
        return function(*inputs)
    again = lambda: (nullcontext(), _running_statistics_kept(owner))  # noqa: E731
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=again)
    return result


@contextmanager
def _running_statistics_kept(owner: nn.Module) -> Iterator[None]:
    norms = [norm for norm in owner.modules() if isinstance(norm, nn.BatchNorm2d) and norm.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = Pointwise(in_channels, out_channels, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
