"""Network blocks and strict weight loading shared by the learned systems."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputing

from plumbline import checkpoint
from plumbline.errors import DataError

NORM_GROUPS = 8
_LISTED = 6


class ConvBlock(nn.Module):
    """Convolution with same padding and no bias, GroupNorm of 8 groups, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        """Features of the same size as `x`."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ResidualBlock(nn.Module):
    """ReLU(x + branch), the branch a ConvBlock followed by a convolution and a GroupNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = ConvBlock(channels, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features of the same shape as `x`."""
        return F.relu(x + self.norm(self.conv(self.block(x))))


def pad_to_multiple(x: Float[Tensor, "n c h w"], multiple: int) -> Float[Tensor, "n c h2 w2"]:
    """`x` with its last row and column repeated until `multiple` divides both sizes; crop with `[..., :h, :w]`."""
    height, width = x.shape[-2:]
    missing = (0, -width % multiple, 0, -height % multiple)
    return F.pad(x, missing, mode="replicate") if any(missing) else x


def run(block: Callable[..., Tensor], *arguments: Any, checkpointing: bool) -> Tensor:
    """`block` of `arguments`; with `checkpointing` its activations are computed again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        result: Tensor = recomputing(block, *arguments, use_reentrant=False)
        return result
    return block(*arguments)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint into `module`, strictly: every name must be there, and nothing else, in the same shape.

    The file is a plain state dict or a mapping that holds one under "model". DataError names the file and the
    missing, unexpected and mis-shaped entries.
    """
    module.load_state_dict(_matching_state(module, read_state(path), path))


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, read without running any code it may contain; DataError when there is none."""
    content = checkpoint.load(path)
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise DataError(f'{path}: expected a state dict (names to tensors), or one under "model"; got another layout.')
    return dict(state)


def differences(problems: Mapping[str, Sequence[str]]) -> str:
    """Names of entries by what is wrong with them, in words; of a long list the first few and how many more there are."""
    listed = {
        kind: [*names[:_LISTED], *([f"{len(names) - _LISTED} more"] if len(names) > _LISTED else [])]
        for kind, names in problems.items()
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in listed.items() if names)


def _matching_state(module: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    expected = module.state_dict()
    shared = sorted(expected.keys() & state.keys())
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "mis-shaped": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in shared
            if state[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        raise DataError(
            f"{path}: does not fit {type(module).__module__}.{type(module).__name__}: {differences(problems)}. "
            "Use the checkpoint's own configuration, or train again."
        )
    return state
