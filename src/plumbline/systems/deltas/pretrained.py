"""DELTAS' published checkpoint: a dictionary with the state dict of each net under a key of its own, read and written.

Other keys, such as the arguments of the training run, are ignored. Nothing in a file is executed: besides tensors and
plain values, numpy scalars and `argparse.Namespace` are let in, as such files often hold them.
"""

import _codecs
import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plumbline import checkpoint
from plumbline.errors import DataError
from plumbline.systems.blocks import differences, load_weights

KEYS = {"front": "state_dict", "tri": "state_dict_tri", "dense": "state_dict_depth"}


def load(system: nn.Module, path: Path) -> None:
    """Fill `system` from the published checkpoint or from this project's, strictly.

    Every entry must be there, and no other, in the same shape; else a DataError lists what is missing, unexpected and
    mis-shaped, by the file's own names, and nothing is loaded.
    """
    content = read(path)
    if not KEYS.values() & content.keys():
        load_weights(system, path)
        return
    absent = [key for key in KEYS.values() if not _is_state(content.get(key))]
    if absent:
        raise DataError(
            f"{path}: holds no state dict under {', '.join(absent)}; a DELTAS checkpoint has {', '.join(KEYS.values())}. "
            "Is this the whole file?"
        )
    _refuse_mismatch(system, content, path)
    for name, key in KEYS.items():
        system.get_submodule(name).load_state_dict(content[key])


def to_official(system: nn.Module, path: Path) -> None:
    """Write the weights of `system` as the published checkpoint holds them; with the `full` preset its users can load it."""
    state = {key: checkpoint.to_cpu(system.get_submodule(name).state_dict()) for name, key in KEYS.items()}
    checkpoint.save(
        path, {key: {name: value.contiguous() for name, value in net.items()} for key, net in state.items()}
    )


def from_official(system: nn.Module, source: Path, path: Path, *, params: Mapping[str, Any]) -> None:
    """Write the checkpoint `source` as training would, with the section of params.yaml that `system` was built from.

    `system` is filled with its weights; DataError, and no file, when it does not fit.
    """
    load(system, source)
    weights = {"model": checkpoint.to_cpu(system.state_dict()), "system": "deltas", "params": dict(params), "step": 0}
    checkpoint.save(path, weights)


def read(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, on the CPU. DataError when it is absent, broken or would have to run code."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. Expected DELTAS' pretrained_checkpoint.pth.tar or a model.pt of a training."
        )
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: not a readable checkpoint ({_reason(error)}). Get or make the file again.") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}; expected a dictionary with {', '.join(KEYS.values())}."
        )
    return content


def _reason(error: Exception) -> str:
    """What torch says is wrong, without its advice to load the file by running what is in it."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return said[0] if said else type(error).__name__


def _allowed() -> list[Any]:
    """What a checkpoint may hold besides tensors and plain values. numpy 1 and 2 name its scalars differently."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    return [
        argparse.Namespace,
        _codecs.encode,
        np.dtype,
        *sorted(kinds, key=lambda kind: kind.__name__),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(torch.is_tensor(entry) for entry in value.values())


def _refuse_mismatch(system: nn.Module, content: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    expected = {
        f"{key}/{n}": v for name, key in KEYS.items() for n, v in system.get_submodule(name).state_dict().items()
    }
    given = {f"{key}/{n}": v for key in KEYS.values() for n, v in content[key].items()}
    shared = [name for name in expected if name in given]
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "mis-shaped": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in shared
            if given[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        raise DataError(
            f"{path}: does not fit this DELTAS: {differences(problems)}. The published checkpoint needs "
            "systems.deltas.preset=full, a converted one the configuration it was trained with."
        )
