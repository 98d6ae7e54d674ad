"""Published checkpoints: DepthSplat's own, strictly, and those it starts from, by name.

| file | layout | names here |
|---|---|---|
| DepthSplat, Gaussians | state dict, plain or under "state_dict" | `encoder.` + name |
| DepthSplat, depth alone | under "model" | names of `encoder.depth_predictor` |
| this project's | under "model" | `encoder.` + name |
| Depth-Anything-V2 | plain state dict | `pretrained.*` of `encoder.depth_predictor` (its own head is not used) |
| DINOv2 | plain state dict | `encoder.depth_predictor.pretrained` |
| UniMatch | under "model" | `backbone.*` and `transformer.*` of `encoder.depth_predictor` |
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from plumbline import checkpoint
from plumbline.errors import DataError
from plumbline.systems.blocks import differences

ENCODER = "encoder."
PREDICTOR = "encoder.depth_predictor."
_VIT = PREDICTOR + "pretrained."
_GAUSSIANS = ("feature_upsampler", "gaussian_regressor", "gaussian_head")
_log = logging.getLogger("plumbline")


@dataclass(frozen=True)
class InitReport:
    """What a partial start took from a file, by entry."""

    path: Path
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One line: how much was taken, which parts still have their first weights, what in the file had no use."""
        parts = sorted({_part(name) for name in self.fresh})
        unused = sorted({_part(name) for name in self.unused})
        return (
            f"depthsplat: {self.path}: took {len(self.taken)} of {len(self.taken) + len(self.fresh)} entries; "
            f"first weights remain in: {', '.join(parts) or 'nothing'}; not used of the file: {', '.join(unused) or 'nothing'}"
        )


def load(system: nn.Module, path: Path) -> None:
    """Fill `system` (its encoder's names start with `encoder.`) from a DepthSplat checkpoint, strictly.

    A model without Gaussians leaves those of a file out, with a line in the log. Beside them every entry must be there, and
    no other, in the same shape; else a DataError lists what is missing, unexpected and mis-shaped, and nothing is loaded.
    """
    expected, given = system.state_dict(), read(path)
    left_out: list[str] = []
    if not any(_part(name) in _GAUSSIANS for name in expected):
        left_out = [name for name in given if _part(name) in _GAUSSIANS]
        given = {name: value for name, value in given.items() if _part(name) not in _GAUSSIANS}
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "mis-shaped": _misshaped(expected, given),
    }
    if any(problems.values()):
        raise DataError(
            f"{path}: does not fit this DepthSplat: {differences(problems)}. Published models need systems.depthsplat.preset "
            "small, base or large, stride 8 if they are for images larger than 256x256, and gaussians: false if they give "
            "depth alone; this project's own the configuration they were trained with. To take what fits, use init_from."
        )
    system.load_state_dict(given)
    if left_out:
        _log.info("depthsplat: %s: left out %d entries of Gaussians; this model gives depth alone", path, len(left_out))


def init_from(system: nn.Module, path: Path) -> InitReport:
    """Take from a file what has the same name here, and leave all else as it is; logs and returns what was taken.

    DataError when nothing has, or when something has but in another shape (the file is of another size of model).
    """
    expected, given = system.state_dict(), read(path)
    shared = {name: value for name, value in given.items() if name in expected}
    if wrong := _misshaped(expected, given):
        raise DataError(
            f"{path}: is of another size of model: {differences({'mis-shaped': wrong})}. "
            "Take the file that fits systems.depthsplat.preset: ViT-S for small, ViT-B for base, ViT-L for large."
        )
    if not shared:
        raise DataError(
            f"{path}: none of its {len(given)} entries has a name of this DepthSplat: {', '.join(list(given)[:4])}, ... "
            "Expected a file of Depth-Anything-V2, DINOv2, UniMatch or DepthSplat."
        )
    with torch.no_grad():
        for name, value in shared.items():
            expected[name].copy_(value)
    fresh = tuple(name for name in expected if name not in shared)
    report = InitReport(path, tuple(shared), fresh, tuple(name for name in given if name not in expected))
    _log.info("%s", report)
    return report


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, read without running any code it may contain, with the names a System gives."""
    content = checkpoint.load(path)
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, Mapping) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise DataError(
            f'{path}: expected a state dict (names to tensors), or one under "state_dict" or "model"; got another layout.'
        )
    prefix = _prefix(state)
    return {prefix + name: value for name, value in state.items()}


def _prefix(names: Mapping[str, Tensor]) -> str:
    """What a layout leaves out in front of its names."""
    if any(name.startswith(ENCODER) for name in names):
        return ""
    if "cls_token" in names:
        return _VIT
    return ENCODER if any(name.startswith("depth_predictor.") for name in names) else PREDICTOR


def _part(name: str) -> str:
    """The module an entry belongs to, as a reader names it."""
    parts = name.removeprefix(ENCODER).split(".")
    return ".".join(parts[:2]) if parts[0] == "depth_predictor" else parts[0]


def _misshaped(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
