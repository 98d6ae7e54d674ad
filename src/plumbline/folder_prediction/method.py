"""A method as it is run on a folder: a system with its weights, and the method whose depth it refines."""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from plumbline import checkpoint, systems
from plumbline.errors import ConfigError, DataError
from plumbline.files import sha256_file
from plumbline.systems.records import Batch, Prediction, Rendered

_MODEL = "model.pt"
_BASELINES = ("constant", "median_plane")


@dataclass(frozen=True)
class Method:
    """A system in inference mode on its device. `settings` built it; `initial` predicts the depth that it refines."""

    name: str
    system: Any
    device: torch.device
    settings: Mapping[str, Any]
    weights: Path | None = None
    initial: "Method | None" = None

    @property
    def oracle(self) -> bool:
        """Whether the truth is among what this method, or the one it refines, looks at."""
        return "depth" in self.system.inputs or (self.initial is not None and self.initial.oracle)

    @property
    def reads(self) -> frozenset[str]:
        """What this method and the one it refines look at, by the names of a Batch."""
        own: frozenset[str] = self.system.inputs
        return own if self.initial is None else own | self.initial.reads

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of this system and of the one it refines, by name."""
        return (type(self.system).__module__, *(() if self.initial is None else self.initial.modules))

    def describe(self) -> dict[str, Any]:
        """What makes its answers: name, settings, and the hash of its weights' file."""
        return {
            "system": self.name,
            "settings": dict(self.settings),
            "weights": None
            if self.weights is None
            else {"file": self.weights.name, "sha256": sha256_file(self.weights)},
            "initial": None if self.initial is None else self.initial.describe(),
        }

    @property
    def makes_gaussians(self) -> bool:
        """Whether its predictions hold Gaussians, which can be written and rendered."""
        return hasattr(self.system, "novel_views") and bool(getattr(self.system.config, "gaussians", True))

    def predict(self, batch: Batch) -> Prediction:
        """Depth of view 0 of each sample of `batch`, which is on the CPU; DataError when it lacks something that is read.

        A folder has no training split: a method that answers a constant gets the geometric mean of the depth range.
        """
        return self.answer(batch)[0]

    @torch.inference_mode()
    def answer(self, batch: Batch) -> tuple[Prediction, Rendered | None]:
        """What `predict` gives, and what the batch's target cameras see of it where there are any and Gaussians to see."""
        seen = self._given(batch.to(self.device)).select(self.system.inputs)
        prediction: Prediction = self.system(seen)
        if seen.target_K is None or not self.makes_gaussians:
            return prediction, None
        rendered: Rendered = self.system.novel_views(prediction, seen)
        return prediction, rendered

    def _given(self, batch: Batch) -> Batch:
        if self.initial is not None:
            first = self.initial.predict(batch)
            batch = replace(batch, initial_depth=first.depth, initial_confidence=first.confidence)
        if "constant_depth" in self.system.inputs and batch.depth_range is not None:
            batch = replace(batch, constant_depth=batch.depth_range.log().mean(dim=1).exp())
        return batch


def load_method(
    name: str,
    *,
    weights: Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    initial: str | None = None,
    initial_weights: Path | None = None,
    device: str = "auto",
) -> Method:
    """The system `name` with its weights: a file, or the folder of a finished training (runs/train/<system>).

    Weights that training wrote bring the settings they were trained with; `preset` and `settings` are for others. `initial`
    names the method whose depth it refines (default: the one it was set up with). Errors: an unknown name, weights that are
    missing, not asked for, of another system or of another preset; each says what to give instead.
    """
    known = systems.names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no system {name!r}.{hint} There is: {', '.join(known)}.")
    if name in systems.CAMERAS_ONLY | systems.VIEWS_ONLY:
        what = "predicts cameras" if name in systems.CAMERAS_ONLY else "renders novel views"
        raise ConfigError(f"{name} {what} and no depth, so there are no depth maps to write. Name another system.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch finds no GPU here. Leave --device out, or check the driver and torch's build."
        )
    chosen = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    path = _weights_file(name, weights)
    content = None if path is None else _content(path)
    own = _settings(name, _stored(content, name, path), preset, settings or {}, path)
    with _said_by_command_line(name):
        system = systems.build(name, own)
    if path is not None:
        _load(system, name, own, path)
    start = _initial(name, system, initial, initial_weights, device)
    return Method(name, system.to(chosen).eval(), chosen, own, path, start)


def _weights_file(name: str, weights: Path | None) -> Path | None:
    """The file with the weights of a system that has any."""
    trains = name not in _BASELINES and hasattr(systems.load(name).System, "load_pretrained")
    if weights is None:
        if trains:
            trained = Path("runs/train") / name
            here = " (they are there)" if (trained / _MODEL).is_file() else ""
            raise ConfigError(
                f"{name} needs weights: give --weights, the folder of a finished training, {trained}{here}, or a file of weights."
            )
        return None
    if not trains:
        raise ConfigError(f"{name} has no weights: leave --weights out.")
    if weights.is_dir():
        if not (weights / _MODEL).is_file():
            raise DataError(
                f"{weights}: holds no {_MODEL}, which a finished training writes. Give another folder, or the weights' file."
            )
        return weights / _MODEL
    if not weights.is_file():
        raise DataError(
            f"{weights}: no such file or folder. Give the weights' file, or the folder of a finished training."
        )
    return weights


def _content(path: Path) -> Mapping[str, Any] | None:
    """What a weights' file holds; None when it is not a plain one: then the system's own loader may know its authors' format."""
    try:
        return checkpoint.load(path)
    except DataError:
        return None


def _stored(content: Mapping[str, Any] | None, name: str, path: Path | None) -> Mapping[str, Any]:
    """The settings that training wrote beside the weights; none for a file of another origin. ConfigError: another system's."""
    if content is None or not isinstance(content.get("params"), Mapping):
        return {}
    if content.get("system") != name:
        raise ConfigError(f"{path}: these are weights of {content.get('system')}, not of {name}.")
    return dict(content["params"])


def _settings(
    name: str, stored: Mapping[str, Any], preset: str | None, settings: Mapping[str, Any], path: Path | None
) -> dict[str, Any]:
    if name in _BASELINES:
        if preset or settings:
            raise ConfigError(f"{name} has no settings; leave --preset and --set out.")
        return {}
    if preset is not None and "preset" not in systems.load(name).Config.model_fields:
        raise ConfigError(f"{name} has no presets: leave --preset out.")
    asked = {**settings} if preset is None else {"preset": preset, **settings}
    clash = sorted(key for key in asked if key in stored and stored[key] != asked[key])
    if clash and preset is not None and clash[0] == "preset":
        raise ConfigError(f"{path}: these weights are of preset {stored['preset']!r}. Leave --preset out.")
    return {**stored, **asked}


@contextmanager
def _said_by_command_line(name: str) -> Iterator[None]:
    """Settings are checked as those of params.yaml are; here they come from the command line."""
    try:
        yield
    except ConfigError as error:
        message = str(error).replace("params.yaml: ", "").replace(f"systems.{name}.preset", "--preset")
        raise ConfigError(message.replace(f"systems.{name}.", "--set ")) from error


def _load(system: Any, name: str, settings: Mapping[str, Any], path: Path) -> None:
    try:
        system.load_pretrained(path)
    except DataError as error:
        if "not a readable checkpoint" in str(error):
            raise DataError(
                f"{path}: holds no weights that can be read. Give the {_MODEL} of a training, or the file that the authors of "
                f"{name} published, whole."
            ) from error
        raise DataError(f"{error}{_fitting(name, settings, path)}") from error


def _fitting(name: str, settings: Mapping[str, Any], path: Path) -> str:
    """Advice when the weights fit the system in another size; nothing when they fit none."""
    module = systems.load(name)
    for changes in _variants(module.Config):
        try:
            # Shapes alone count, so nothing is allocated, and copying into nothing warns.
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                module.System(module.Config(**{**settings, **changes})).load_pretrained(path)
        except DataError:
            continue
        preset, *others = (f"{key}={str(x).lower()}" for key, x in changes.items())
        words = " ".join(f"--set {other}" for other in others)
        return (
            f"\nThey fit preset {changes['preset']!r}: add --preset {preset.partition('=')[2]} {words}".rstrip() + "."
        )
    return ""


def _variants(config: Any) -> Iterator[dict[str, Any]]:
    """The published sizes of a system, the likeliest first: presets, and what DepthSplat's differ in besides."""
    fields = config.model_fields
    presets = get_args(fields["preset"].annotation) if "preset" in fields else ()
    extras: list[dict[str, Any]] = [{}]
    if {"stride", "gaussians"} <= fields.keys():
        extras += [{"stride": 8}, {"gaussians": False}, {"stride": 8, "gaussians": False}]
    for extra in extras:
        yield from ({"preset": preset, **extra} for preset in presets)


def _initial(name: str, system: Any, initial: str | None, weights: Path | None, device: str) -> Method | None:
    if "initial_depth" not in system.inputs:
        if initial is not None:
            raise ConfigError(f"{name} starts from images, not from another method's depth: leave --initial out.")
        return None
    start = initial or system.config.initial
    if start == name:
        raise ConfigError(
            f"{name} cannot start from its own depth: give --initial another method, such as plane_sweep."
        )
    if start == "file":
        raise ConfigError(f"{name} was set up to start from depth files; name a method instead: --initial plane_sweep.")
    try:
        return load_method(start, weights=weights, device=device)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--weights", "--initial-weights")) from error
