"""The systems, imported by name: a module `plumbline.systems.<name>` exports `Config` and `System`. There is no registry."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from plumbline.config import parse
from plumbline.errors import ConfigError

# Trivial methods share a module.
_BASELINES = {
    "constant": "Constant",
    "median_plane": "MedianPlane",
    "identity": "Identity",
    "mean_pose": "MeanPose",
    "mean_colour": "MeanColour",
    "nearest_view": "NearestView",
}
# What predicts cameras, or renders novel views, and has no depth to show.
CAMERAS_ONLY = frozenset({"identity", "mean_pose"})
VIEWS_ONLY = frozenset({"mean_colour", "nearest_view", "warped_view"})


def load(name: str) -> ModuleType:
    """The module of the system `name`; ConfigError listing what there is when there is none."""
    try:
        return importlib.import_module(f"plumbline.systems.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"plumbline.systems.{name}":
            raise
        raise ConfigError(f"no system {name!r}. There is: {', '.join(names())}.") from error


def names() -> list[str]:
    """The names of all systems, from the files beside this one."""
    helpers = {"__init__", "records", "blocks", "vit", "baselines", "augment", "superpoint"}
    found = {
        path.stem for path in Path(__file__).parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    return sorted((found - helpers) | set(_BASELINES))


def build(name: str, params: Mapping[str, Any]) -> Any:
    """The system `name` with its section of params.yaml (`systems.<name>`), checked; weights are fresh."""
    if name in _BASELINES:
        return getattr(load("baselines"), _BASELINES[name])()
    module = load(name)
    return module.System(parse(params, module.Config, where=f"systems.{name}"))
