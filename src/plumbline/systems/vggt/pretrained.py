"""VGGT's published checkpoints, such as the 1B model's model.pt: a state dict of the names used here, read and written."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plumbline import checkpoint
from plumbline.errors import DataError
from plumbline.systems.blocks import differences, read_state

# Heads that a file may hold and a network may lack; the track head is never built.
HEADS = ("camera_head", "depth_head", "point_head", "track_head")
_log = logging.getLogger("plumbline")


def load(system: nn.Module, path: Path) -> None:
    """Fill `system` from a published checkpoint or from this project's, strictly.

    Entries of a head that `system` is configured without are left out, and one line in the log names the head. Beside them
    every entry must be there, and no other, in the same shape; else a DataError lists what is missing, unexpected and
    mis-shaped, and nothing is loaded.
    """
    state, left_out = without_absent_heads(read_state(path), system)
    _refuse_mismatch(system.state_dict(), state, path)
    system.load_state_dict(state)
    for head, count in left_out.items():
        _log.info("vggt: %s: left out the %d entries of %s, which this network is built without", path, count, head)


def without_absent_heads(state: Mapping[str, Tensor], system: nn.Module) -> tuple[dict[str, Tensor], dict[str, int]]:
    """`state` without the heads that `system` lacks, and how many entries of each were left out."""
    absent = {head for head in HEADS if getattr(system, head, None) is None}
    heads = [name.split(".")[0] for name in state]
    kept = {name: value for head, (name, value) in zip(heads, state.items(), strict=True) if head not in absent}
    return kept, {head: heads.count(head) for head in sorted(absent) if head in heads}


def to_official(system: nn.Module, path: Path) -> None:
    """Write the weights of `system` as a published checkpoint holds them: the plain state dict, contiguous."""
    state = checkpoint.to_cpu(system.state_dict())
    checkpoint.save(path, {name: value.contiguous() for name, value in state.items()})


def from_official(system: nn.Module, source: Path, path: Path, *, params: Mapping[str, Any]) -> None:
    """Write the checkpoint `source` as training would, with the section of params.yaml that `system` was built from.

    `system` is filled with its weights; DataError, and no file, when it does not fit.
    """
    load(system, source)
    weights = {"model": checkpoint.to_cpu(system.state_dict()), "system": "vggt", "params": dict(params), "step": 0}
    checkpoint.save(path, weights)


def _refuse_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "mis-shaped": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in given and given[name].shape != value.shape
        ],
    }
    if any(problems.values()):
        raise DataError(
            f"{path}: does not fit this VGGT: {differences(problems)}. The published 1B checkpoint needs "
            "systems.vggt.preset=full (camera: false or point: false leave out that head), this project's own the "
            "configuration it was trained with."
        )
