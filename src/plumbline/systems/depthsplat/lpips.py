"""LPIPS, the perceptual distance of Zhang et al. (CVPR 2018), on weights that the user brings.

No weights come with this project, and without the true ones there is no LPIPS: it is then reported as unavailable.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from plumbline import checkpoint
from plumbline.errors import ConfigError, DataError

# Convolutions of VGG-16 by their index in `features`, block by block; after each block but the last the size is halved.
BLOCKS: tuple[tuple[int, ...], ...] = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
UNAVAILABLE = (
    "LPIPS unavailable (no VGG-16 weights): set lpips_trunk (torchvision's vgg16-397923af.pth) and lpips_heads (vgg.pth of "
    "the lpips package) to score and train with it; the term is left out."
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10
_log = logging.getLogger("plumbline")
Picture = UInt8[np.ndarray, "h w 3"]


class Lpips(nn.Module):
    """The distance; its weights are no parameters, and no part of a checkpoint."""

    def __init__(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in (*trunk.items(), *heads.items()):
            self.register_buffer(name.replace(".", "_"), value.detach().float().clone(), persistent=False)

    def forward(self, one: Float[Tensor, "n 3 h w"], other: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Distance of each pair of images in [0, 1]: 0 for equal ones. Sides must be at least 16 pixels."""
        total = one.new_zeros(len(one))
        for block, (x, y) in enumerate(zip(self.features(one), self.features(other), strict=True)):
            difference = (_normalised(x) - _normalised(y)).square()
            head = self.get_buffer(f"lin{block}_model_1_weight")
            total = total + F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return total

    def features(self, image: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """What VGG-16 has at the end of each of its five blocks, after the ReLU."""
        shift, scale = (image.new_tensor(x)[:, None, None] for x in (_SHIFT, _SCALE))
        x, found = (2 * image - 1 - shift) / scale, []
        for number, block in enumerate(BLOCKS):
            if number:
                x = F.max_pool2d(x, 2)
            for index in block:
                weight, bias = (self.get_buffer(f"features_{index}_{kind}") for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(x)
        return found


def load(trunk: Path | None, heads: Path | None) -> Lpips | None:
    """LPIPS from a file of VGG-16 (`features.*`; its classifier is not used) and one of heads (`lin*.model.1.weight`).

    None, with one line in the log, when neither is given. ConfigError when one alone is; DataError when a file is absent or
    lacks an entry.
    """
    if trunk is None and heads is None:
        _log.warning(UNAVAILABLE)
        return None
    if trunk is None or heads is None:
        raise ConfigError(
            f"lpips_{'trunk' if trunk is None else 'heads'}: not set, but the other file is. Set both, or none."
        )
    return _read(trunk, heads)


def scorer(trunk: Path, heads: Path) -> Callable[[Picture, Picture], float]:
    """LPIPS as a function of two pictures, for evaluation; the errors of `load`."""
    distance = _read(trunk, heads)

    def score(one: Picture, other: Picture) -> float:
        images = (torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255 for x in (one, other))
        with torch.no_grad():
            return float(distance(*images)[0])

    return score


def _read(trunk: Path, heads: Path) -> Lpips:
    return Lpips(_entries(trunk, _trunk_shapes()), _entries(heads, _head_shapes()))


def _trunk_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    entered = 3
    for block, width in zip(BLOCKS, WIDTHS, strict=True):
        for index in block:
            shapes[f"features.{index}.weight"], shapes[f"features.{index}.bias"] = (width, entered, 3, 3), (width,)
            entered = width
    return shapes


def _head_shapes() -> dict[str, tuple[int, ...]]:
    return {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(WIDTHS)}


def _entries(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    state = checkpoint.load(path)
    wrong = [
        name for name, shape in shapes.items() if not torch.is_tensor(state.get(name)) or state[name].shape != shape
    ]
    if wrong:
        raise DataError(
            f"{path}: no weights for LPIPS: {len(wrong)} of {len(shapes)} entries are absent or have another shape, the first "
            f"{wrong[0]} {shapes[wrong[0]]}. Expected torchvision's VGG-16 as trunk and the lpips package's vgg.pth as heads."
        )
    return {name: state[name] for name in shapes}


def _normalised(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    # The sum's root, not a norm: its gradient where all channels are 0 must be finite, so nothing is rooted at 0.
    square = x.square().sum(dim=1, keepdim=True)
    length = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    return x / (length + _EPS)
