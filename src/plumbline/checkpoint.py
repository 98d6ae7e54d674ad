"""Exact resume: what a training run was made of, where its state lives, and the state itself, written atomically."""

import hashlib
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plumbline.errors import ConfigError, DataError
from plumbline.files import atomic_path
from plumbline.process import dvc_root


def fingerprint(*parts: object) -> str:
    """16 hex digits that change when any of `parts` (JSON values) changes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_digest(*modules: str) -> str:
    """A hash over the source of these loaded modules and of all they import from their own package, however deep."""
    sources = {name: file for module in modules for name, file in _modules(sys.modules[module]).items()}
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + Path(sources[name]).read_bytes())
    return digest.hexdigest()


def _modules(module: ModuleType) -> dict[str, str]:
    root = module.__name__.split(".")[0]
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current.__name__ in found or not getattr(current, "__file__", None):
            continue
        found[current.__name__] = str(current.__file__)
        for value in list(vars(current).values()):
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name.split(".")[0] == root and name in sys.modules:
                waiting.append(sys.modules[name])
    return found


def scratch_folder(stage: str, system: str, print_of: str, *, root: Path | None = None) -> Path:
    """Where a run keeps its state until it is done: `$DVC_ROOT/.resume/<stage>-<system>-<fingerprint>`."""
    return (root or dvc_root()) / ".resume" / f"{stage}-{system}-{print_of}"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically; equal states give equal bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        # Through a stream: given a path, torch writes that path's name into the file.
        torch.save(dict(state), stream)


def load(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote. DataError when the file is absent or broken."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. It is written by training: run that first.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: not a readable checkpoint ({error}). Delete it and train again.") from error
    if not isinstance(state, dict):
        raise DataError(
            f"{path}: holds a {type(state).__name__}, expected a dictionary. Is this a Plumbline checkpoint?"
        )
    return state


def load_run(path: Path, print_of: str) -> dict[str, Any] | None:
    """The state of an interrupted run, None when there is none; ConfigError when it is of another run."""
    if not path.is_file():
        return None
    state = load(path)
    if state.get("fingerprint") != print_of:
        raise ConfigError(
            f"{path}: the checkpoint is of a run with fingerprint {state.get('fingerprint')}, this one is {print_of}: "
            "parameters, the system's code or the data differ, so going on would mix two runs. "
            f"Undo the change, or delete {path.parent} to start from step 0."
        )
    return state


def rng_state() -> dict[str, Any]:
    """The state of every generator that code may draw from: python, numpy, torch on the CPU and on the GPU."""
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # systems may use the old interface
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(key).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch. Call before a system is built, since its first weights are drawn then."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def to_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dictionary on the CPU, detached."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
