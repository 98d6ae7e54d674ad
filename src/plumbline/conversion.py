"""Weights from one file format to another: a training's model.pt and the checkpoint that DELTAS' authors published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from plumbline import systems
from plumbline.errors import ConfigError, DataError
from plumbline.systems.deltas import Config, pretrained

_MODEL = "model.pt"


def convert(source: Path, target: Path) -> str:
    """Write the DELTAS weights in `source` to `target` in the other format, and return what was done in words.

    `source` is a training's folder or model.pt, which becomes a checkpoint of the published layout, or such a checkpoint, which
    becomes a model.pt with the preset that it fits. Every entry is kept. Errors: a file that is not there or is no DELTAS
    checkpoint, another system's weights, a checkpoint that fits no preset, a target that is there already.
    """
    if target.exists():
        raise ConfigError(f"{target}: is there already. Give another name, or delete it first.")
    path = source / _MODEL if source.is_dir() else source
    content = pretrained.read(path)
    if set(pretrained.KEYS.values()) <= content.keys():
        return _from_published(path, target, content)
    if content.get("system") != "deltas" or not isinstance(content.get("params"), Mapping):
        raise DataError(
            f"{path}: expected DELTAS' published checkpoint ({', '.join(pretrained.KEYS.values())}) or the {_MODEL} of a DELTAS "
            f"training; this holds {', '.join(map(str, list(content)[:4]))}."
        )
    return _to_published(path, target, content["params"])


def _to_published(path: Path, target: Path, params: Mapping[str, Any]) -> str:
    system = systems.build("deltas", params)
    system.load_pretrained(path)
    pretrained.to_official(system, target)
    if _shapes(system) == _shapes(_without_memory("full")):
        return f"{target}: written as the published checkpoint."
    return (
        f"{target}: written in the published checkpoint's layout. Its sizes are not the published ones "
        f"(preset {params.get('preset', 'full')}), so that the authors' own code cannot load it."
    )


def _from_published(path: Path, target: Path, content: Mapping[str, Any]) -> str:
    presets = get_args(Config.model_fields["preset"].annotation)
    stored = {
        f"{name}.{entry}": value for name, key in pretrained.KEYS.items() for entry, value in content[key].items()
    }
    shapes = {name: tuple(value.shape) for name, value in stored.items()}
    fitting = [preset for preset in presets if _shapes(_without_memory(preset)) == shapes]
    params = {"preset": fitting[0] if fitting else presets[0]}
    try:
        pretrained.from_official(systems.build("deltas", params), path, target, params=params)
    except DataError as error:
        raise DataError(f"{error}\nIt fits no other preset either ({', '.join(presets)}).") from error
    return f"{target}: written as a training's {_MODEL}, preset {params['preset']}."


def _without_memory(preset: str) -> nn.Module:
    """DELTAS of a preset, with sizes and no values."""
    with torch.device("meta"):
        system: nn.Module = systems.build("deltas", {"preset": preset})
    return system


def _shapes(system: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry.shape) for name, entry in system.state_dict().items()}
