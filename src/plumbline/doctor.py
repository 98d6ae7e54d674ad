"""`plumbline doctor`: what a system is given, what it loses, and what its first training steps will do to it.

`examine` takes seconds and trains nothing that is kept: the losses of the network as it is, what each component weighs, the
gradient of every module, and a few optimiser steps as `plumbline.training` takes them. `plumbline.doctor_show` draws it.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from plumbline import systems
from plumbline.config import DatasetConfig, SuiteConfig, load_params, section, sections, value
from plumbline.data.pair import PairConfig, extract_pair, read_pair
from plumbline.distributed import join
from plumbline.errors import ConfigError, DataError
from plumbline.overfit import OverfitConfig, Renders, blank_inputs, covering, evaluate, renders, unexpectedly_frozen
from plumbline.overfit_stage import sample_batch
from plumbline.prediction import open_suite, training_feed
from plumbline.progress import memory_gb
from plumbline.systems.records import LABELS, Batch
from plumbline.training import (
    NonFiniteError,
    Share,
    TrainConfig,
    Trainer,
    check_config,
    cpu_threads,
    forward,
    initialise,
    make_plan,
    optimise,
    prepare,
    step_size,
    uses_bf16,
)

# A head that starts from zeros lets gradients through from the second step on.
_STEPS = 4
_MOST_MODULES = 26
_CURVE_POINTS = 48
_MOST_STEPS = 20_000
# A principal point further from the middle than this part of the image is usually one of another resolution.
_OFF_CENTRE = 0.25
_NEGLIGIBLE = 1e-4
_NEVER_MISSED = frozenset({"constant_depth", "constant_pose", "initial_confidence"})


@dataclass(frozen=True)
class Subject:
    """A system as its training would start it, and a batch to try it on.

    `allowed` are patterns of modules that are meant to rest; `given` and `weights` say in words where the batch and the
    weights are from. `names` are the views of the batch's first sample.
    """

    name: str
    system: Any  # nn.Module with the contract of plumbline.systems
    batch: Batch
    config: TrainConfig
    lr: float
    seed: int
    given: str = "a batch"
    weights: str = "untrained"
    params: Mapping[str, Any] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    gate: OverfitConfig | None = None


@dataclass(frozen=True)
class Finding:
    """Something to act on: `broken` stops a training or makes it worthless, a `note` may be meant."""

    kind: Literal["broken", "note"]
    text: str


@dataclass(frozen=True)
class Entry:
    """One part of the batch: what it is, its finite values' range, how many are not, and who looks at it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None
    non_finite: int
    seen_by: str


@dataclass(frozen=True)
class ViewDepth:
    """A view's true depth over the batch: the share of pixels that have it, and its values in metres."""

    name: str
    share: float
    values: Float32[np.ndarray, " n"]


@dataclass(frozen=True)
class Component:
    """A loss as training has it and as inference has it, and its weight in the total (None: the total does not contain it).

    `part_of` names the component that contains this one, whose contribution is then counted there.
    """

    name: str
    training: float
    inference: float | None
    weight: float | None
    part_of: str | None

    @property
    def contribution(self) -> float:
        """What the total gets of it; 0 where that is counted elsewhere."""
        return 0.0 if self.weight is None or self.part_of is not None else self.weight * self.training


@dataclass(frozen=True)
class Module:
    """A part of the network: its weights, how many of them are trained, their norm, and that of the first gradient."""

    name: str
    parameters: int
    trained: int
    weight: float
    gradient: float
    state: str = ""


@dataclass(frozen=True)
class Rates:
    """The step size over the run: at the first, highest (and when, from 1) and last step, and a curve of it."""

    start: float
    peak: float
    peak_step: int
    end: float
    curve: tuple[float, ...]


@dataclass(frozen=True)
class StepCost:
    """Median seconds of an optimiser step of `batch` samples, and the peak memory of the process (of the GPU) in GB."""

    seconds: float
    batch: int
    memory_gb: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Examination:
    """All that was found; later parts are missing where an earlier one is broken. `depth_error` and `psnr` are the gate's."""

    subject: Subject
    device: str
    precision: str
    entries: tuple[Entry, ...] = ()
    views: tuple[ViewDepth, ...] = ()
    components: tuple[Component, ...] = ()
    total: float | None = None
    depth_error: float | None = None
    rotation_deg: float | None = None
    psnr: float | None = None
    modules: tuple[Module, ...] = ()
    gradient_norm: float | None = None
    rates: Rates | None = None
    cost: StepCost | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether there is something that a training must not start with."""
        return any(finding.kind == "broken" for finding in self.findings)


# --- what is examined ------------------------------------------------------------------------------------------------


def open_subject(name: str, root: Path, *, weights: Path | None = None, suite: str | None = None) -> Subject:
    """The system `name` of the project at `root`, with the sample of its gate or the first batch that `suite` gives.

    ConfigError when no such system is trained; DataError when data are missing, saying what makes them.
    """
    params = load_params(root / "params.yaml")
    if name not in (params.get("train") or {}):
        raise ConfigError(
            f"doctor: {name!r} is not trained here; expected one of {', '.join(params.get('train') or {})}."
        )
    config, own = section(params, f"train.{name}", TrainConfig), value(params, f"systems.{name}") or {}
    torch.manual_seed(params["seed"])
    system = systems.build(name, own)
    said = _load(system, config, weights, seed=params["seed"])
    given = _suite_batch if suite is not None else _gate_batch
    batch, source, names = given(name, suite or "", system, config, params, root)
    gated = name in (params.get("overfit") or {})
    gate = section(params, f"overfit.{name}", OverfitConfig) if gated else None
    return Subject(
        name,
        system,
        batch,
        config,
        lr=params["lr"],
        seed=params["seed"],
        given=source,
        weights=said,
        params=own,
        allowed=_resting(system, gate),
        names=names,
        gate=gate,
    )


def _load(system: nn.Module, config: TrainConfig, weights: Path | None, *, seed: int) -> str:
    """Load the weights that are asked for, else those that training starts from; which those are, in words."""
    if weights is not None:
        system.load_pretrained(weights / "model.pt" if weights.is_dir() else weights)  # type: ignore[operator]
        return f"weights of {weights}"
    initialise(system, config)
    return f"untrained, seed {seed}" if config.init_from is None else f"weights of {config.init_from}"


def _resting(system: Any, gate: OverfitConfig | None) -> tuple[str, ...]:
    """Patterns of modules that are meant to rest and do: the gate's and the system's own."""
    patterns = [*(gate.frozen if gate else ()), *(getattr(getattr(system, "config", None), "frozen", None) or ())]
    kept = []
    for pattern in patterns:
        try:
            unexpectedly_frozen(system, [pattern], name="doctor")
        except ConfigError:
            continue
        kept.append(pattern)
    return tuple(kept)


def _gate_batch(
    name: str, _: str, system: Any, config: TrainConfig, params: Mapping[str, Any], root: Path
) -> tuple[Batch, str, tuple[str, ...]]:
    """The sample that the overfit gate uses, extracted for the moment where it has not been yet."""
    with _extracted(name, params, root) as (folder, words):
        pair = read_pair(folder)
        labels = root / "data/pseudo_labels" if getattr(system, "labels", None) else None
        batch = sample_batch(pair, frozenset(system.inputs), labels=labels)
    views = tuple(pair.scene.view_names[view] for view in pair.only("context").views)
    return batch, f"{words}: {pair.scene.dataset}/{pair.scene.name}", views


@contextmanager
def _extracted(name: str, params: Mapping[str, Any], root: Path) -> Iterator[tuple[Path, str]]:
    folder = root / "data/pair" / name
    if (folder / "sample").is_dir():
        yield folder, str(Path("data/pair") / name)
        return
    if name not in (params.get("pair") or {}):
        raise ConfigError(f"params.yaml has no pair.{name}: choose a batch with --suite.")
    config = section(params, f"pair.{name}", PairConfig)
    scenes = root / "data/scenes"
    if not (scenes / config.dataset).is_dir():
        raise DataError(
            f"{folder} and {scenes / config.dataset} are not there; expected the gate's sample, or scenes to take it from. "
            f"Make it with: dvc repro extract_pair@{name}"
        )
    datasets = sections(params, "datasets", DatasetConfig)
    with tempfile.TemporaryDirectory(prefix="plumbline-doctor-") as temporary:
        extract_pair(config, datasets=datasets, scenes=scenes, out=Path(temporary) / name)
        yield Path(temporary) / name, f"pair.{name}, extracted for now"


def _suite_batch(
    name: str, suite: str, system: Any, config: TrainConfig, params: Mapping[str, Any], root: Path
) -> tuple[Batch, str, tuple[str, ...]]:
    """The first batch of a training on `suite` alone, as it is before augmentation."""
    own, datasets = value(params, f"systems.{name}") or {}, sections(params, "datasets", DatasetConfig)
    opened = open_suite(
        suite, section(params, f"suites.{suite}", SuiteConfig), datasets=datasets, scenes=root / "data/scenes"
    )
    initial = root / "predictions" / own["initial"] if "initial" in own else None
    labels = root / "data/pseudo_labels" if getattr(system, "labels", None) else None
    feed = training_feed(opened, initial, labels)
    chosen = [int(index) for index in make_plan(feed, config, seed=params["seed"]).batch(0)]
    first = opened.samples[chosen[0]]
    views = tuple(opened.scenes[first.scene].view_names[view] for view in first.given)
    named = len(chosen) == 1 and feed.clip is None
    scenes = ", ".join(sorted({opened.samples[index].scene for index in chosen}))
    return feed.load(chosen), f"suite {suite}, first batch: {scenes}", views if named else ()


# --- examination -----------------------------------------------------------------------------------------------------


def examine(subject: Subject) -> Examination:
    """Look at the batch, evaluate the network, take the first gradient and a few training steps; the network is used up.

    ConfigError when it cannot be trained as configured.
    """
    check_config(subject.config, lr=subject.lr)
    with cpu_threads(subject.config.threads), join(subject.config.device) as group:
        device = group.device.type
        precision = "bfloat16" if uses_bf16(subject.config.precision, device) else "float32"
        found = Examination(
            subject, device, precision, **_of_batch(subject), rates=rates(subject.config, lr=subject.lr)
        )
        findings = [*batch_findings(subject), *frozen_findings(subject), *schedule_findings(subject, found.rates)]
        trained = any(parameter.requires_grad for parameter in subject.system.parameters())
        if trained and (_has_truth(subject.batch) or renders(subject.system, subject.batch)):
            try:
                found, more = _of_network(found, group)
            except DataError as error:
                more = [Finding("broken", str(error))]
            findings += more
        return replace(found, findings=tuple(findings))


def _has_truth(batch: Batch) -> bool:
    return batch.depth is not None and batch.mask is not None


def _of_batch(subject: Subject) -> dict[str, Any]:
    return {"entries": tuple(entries(subject.batch, subject.system)), "views": tuple(view_depths(subject))}


def _of_network(found: Examination, group: Any) -> tuple[Examination, list[Finding]]:
    subject = found.subject
    batch = tiled(subject.batch, subject.config.batch_size).to(group.device)
    subject.system.to(group.device)
    state, _ = evaluate(subject.system, batch.rows(slice(0, len(subject.batch.image))))
    error = None if math.isnan(state.depth_error) else state.depth_error
    found = replace(found, depth_error=error, rotation_deg=state.rotation_deg, psnr=state.psnr)
    with tempfile.TemporaryDirectory(prefix="plumbline-doctor-") as scratch:
        settings: dict[str, Any] = {"lr": subject.lr, "seed": subject.seed, "run": "doctor", "params": subject.params}
        trainer = prepare(subject.system, subject.config, group, name=subject.name, scratch=Path(scratch), **settings)
        components, total = first_losses(trainer, batch, state.losses)
        findings = loss_findings(components, total)
        norms = {name: _norm(parameter.grad) for name, parameter in subject.system.named_parameters()}
        found = replace(
            found, components=components, total=float(total.detach()), gradient_norm=_length(norms.values())
        )
        cost, reached, more = _take_steps(trainer, batch, norms) if not findings else (None, set[str](), [])
    reached |= {name for name, norm in norms.items() if norm > 0}
    found = replace(found, modules=module_rows(subject.system, norms, reached), cost=cost)
    # What is said already, by a loss or an input, is the cause and not another fault.
    said = not total.requires_grad or blank_inputs(batch, frozenset(subject.system.inputs))
    return found, [*findings, *more, *([] if said else gradient_findings(subject.system, norms, reached))]


def tiled(batch: Batch, count: int) -> Batch:
    """The batch with its samples repeated to `count`, so that a step costs what it will cost in training."""
    size = len(batch.image)
    rows = torch.arange(max(count, 1)) % size
    named = {f.name: getattr(batch, f.name) for f in fields(batch)}
    repeated: dict[str, Any] = {name: x[rows] for name, x in named.items() if torch.is_tensor(x)}
    return replace(batch, **repeated)


def first_losses(
    trainer: Trainer, batch: Batch, inference: Mapping[str, float]
) -> tuple[tuple[Component, ...], Tensor]:
    """The losses in training mode of the part of the batch that is computed at once, and gradients of their total.

    Nothing is updated, though batch norms see the batch once. `inference` has the same losses in inference, by name.
    """
    trainer.model.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    part = batch.rows(slice(0, len(batch.image) // trainer.config.accumulate))
    _, losses = forward(trainer.system, trainer, part)
    components = tuple(breakdown(losses, inference))
    if losses["total"].requires_grad:
        losses["total"].backward()  # type: ignore[no-untyped-call]
    return components, losses["total"]


def breakdown(losses: Mapping[str, Tensor], inference: Mapping[str, float]) -> Iterator[Component]:
    """Each component with its weight, which is the derivative of the total by it: no system has to tell."""
    named = {name: value for name, value in losses.items() if name != "total"}
    for name, value_ in named.items():
        wholes = (other for other, whole in named.items() if other != name and _slope(whole, value_) is not None)
        yield Component(
            name,
            float(value_.detach()),
            inference.get(name),
            _slope(losses["total"], value_),
            next(wholes, None),
        )


def _slope(whole: Tensor, part: Tensor) -> float | None:
    """The derivative of a loss by another; None when it was not computed from it."""
    if not (whole.requires_grad and part.requires_grad):
        return None
    (slope,) = torch.autograd.grad(whole, part, retain_graph=True, allow_unused=True)
    return None if slope is None else float(slope)


def _take_steps(
    trainer: Trainer, batch: Batch, norms: Mapping[str, float]
) -> tuple[StepCost | None, set[str], list[Finding]]:
    """A few steps of the training, as it begins: their cost, and the parameters that got a gradient in one of them."""
    seconds: list[float] = []
    losses: list[float] = []
    reached = set[str]()
    share = Share(batch, list(range(len(batch.image))), "doctor")
    for step in range(_STEPS):
        began = time.perf_counter()
        try:
            values, _ = optimise(trainer, share, step=step, stop=False)
        except NonFiniteError as error:
            # The rest of the message names files that are kept by a training, and not here.
            said = str(error).split(". The batch")[0].partition("): ")[2]
            return None, reached, [Finding("broken", f"Not finite at step {step + 1}, as configured: {said}.")]
        seconds.append(time.perf_counter() - began)
        losses.append(values["loss"])
        named = trainer.system.named_parameters()
        reached |= {name for name, parameter in named if _norm(parameter.grad) > 0}
    return StepCost(statistics.median(seconds[1:]), len(batch.image), memory_gb(), tuple(losses)), reached, []


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.detach().float().norm())


def _length(norms: Any) -> float:
    return math.sqrt(math.fsum(norm * norm for norm in norms))


# --- the batch -------------------------------------------------------------------------------------------------------


def entries(batch: Batch, system: Any) -> Iterator[Entry]:
    """Every part of the batch that is there."""
    for name in (f.name for f in fields(batch)):
        x = getattr(batch, name)
        if not torch.is_tensor(x):
            continue
        finite = x[x.isfinite()].double() if x.is_floating_point() else x.double()
        low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (None, None)
        dtype = str(x.dtype).removeprefix("torch.")
        yield Entry(name, tuple(x.shape), dtype, low, high, x.numel() - finite.numel(), _seen_by(name, system))


def _seen_by(name: str, system: Any) -> str:
    if name in system.inputs:
        return "network"
    if name in {"target_image", "target_mask"}:
        return "loss" if isinstance(system, Renders) else ""
    return "loss" if name in {"depth", "mask", "K", "cam0_T_cam", *LABELS} else ""


def view_depths(subject: Subject) -> Iterator[ViewDepth]:
    """The true depth of each view, over all samples of the batch."""
    batch = subject.batch
    if batch.depth is None or batch.mask is None:
        return
    for view in range(batch.depth.shape[1]):
        measured = batch.mask[:, view] & batch.depth[:, view].isfinite() & (batch.depth[:, view] > 0)
        name = subject.names[view] if view < len(subject.names) else f"view {view}"
        yield ViewDepth(name, float(measured.float().mean()), batch.depth[:, view][measured].numpy())


def batch_findings(subject: Subject) -> Iterator[Finding]:
    """What is wrong with the batch before any network sees it."""
    batch, inputs = subject.batch, frozenset(subject.system.inputs)
    for name in blank_inputs(batch, inputs):
        yield Finding("broken", f"The input is blank: {name} has the same value everywhere. Look at how it is loaded.")
    for name in sorted(name for name in inputs - _NEVER_MISSED if getattr(batch, name) is None):
        yield Finding("note", f"{name} is among the system's inputs, and this batch has none.")
    for entry in entries(batch, subject.system):
        if entry.non_finite:
            yield Finding("broken", f"{entry.name} holds {entry.non_finite} values that are not finite.")
    if batch.image.isfinite().all() and (batch.image.min() < 0 or batch.image.max() > 1):
        yield Finding("broken", "image leaves [0, 1]: systems normalise images themselves.")
    if batch.depth is not None or not renders(subject.system, batch):
        yield from _truth_findings(batch)
    height, width = batch.image.shape[-2:]
    centre = batch.K[..., :2, 2] / torch.tensor([width, height]) - 0.5
    if bool((centre.abs() > _OFF_CENTRE).any()):
        yield Finding("note", "A principal point is far from the middle of its image: is K of another resolution?")


def _truth_findings(batch: Batch) -> Iterator[Finding]:
    if batch.depth is None or batch.mask is None or not batch.mask.any():
        yield Finding("broken", "The batch has no true depth: there is nothing to learn from.")
        return
    empty = [i for i in range(batch.mask.shape[1]) if not batch.mask[:, i].any()]
    if empty:
        yield Finding("note", f"No measured depth in view {', '.join(map(str, empty))}.")
    if batch.depth_range is not None:
        low, high = (batch.depth_range[:, i, None, None, None] for i in (0, 1))
        outside = float(((batch.depth < low) | (batch.depth > high))[batch.mask].float().mean())
        if outside > 0.01:
            yield Finding(
                "note", f"{outside:.1%} of the true depth lies outside depth_range: correct datasets.*.depth_range."
            )


# --- losses and gradients --------------------------------------------------------------------------------------------


def loss_findings(components: Sequence[Component], total: Tensor) -> list[Finding]:
    """Losses that are not finite, and losses that no weight can change."""
    values = {**{c.name: c.training for c in components}, "total": float(total.detach())}
    bad = [f"{name} is {found}" for name, found in values.items() if not math.isfinite(found)]
    if bad:
        return [Finding("broken", f"Not finite before any update: {', '.join(bad)}. Check the data and the loss.")]
    if not total.requires_grad:
        return [Finding("broken", "Detached: the total does not depend on any trainable weight.")]
    return []


def module_rows(system: nn.Module, norms: Mapping[str, float], reached: set[str]) -> tuple[Module, ...]:
    """The network in as many parts as fit a screen, in order, with what reached each of them."""
    parameters = dict(system.named_parameters())
    groups: dict[str, list[str]] = {}
    for name, part in zip(parameters, _parts(parameters), strict=True):
        groups.setdefault(part, []).append(name)
    return tuple(_module(part, {key: parameters[key] for key in own}, norms, reached) for part, own in groups.items())


def _module(name: str, own: Mapping[str, nn.Parameter], norms: Mapping[str, float], reached: set[str]) -> Module:
    trained = [key for key, parameter in own.items() if parameter.requires_grad]
    state = ""
    if len(trained) < len(own):
        state = f"{len(own) - len(trained)} of {len(own)} tensors frozen" if trained else "frozen"
    idle = [key for key in trained if key not in reached]
    if idle:
        state = "no gradient" if len(idle) == len(trained) else f"no gradient in {len(idle)} of {len(own)} tensors"
    elif trained and not any(norms[key] > 0 for key in trained):
        state = "from step 2 on"
    if any(not math.isfinite(norms[key]) for key in trained):
        state = "not finite"
    return Module(
        name,
        sum(parameter.numel() for parameter in own.values()),
        sum(own[key].numel() for key in trained),
        _length(float(parameter.detach().float().norm()) for parameter in own.values()),
        _length(norms[key] for key in trained),
        state,
    )


def _parts(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The part of the network that each parameter is counted in: the largest top-level modules are cut finest."""
    sizes: dict[str, int] = {}
    for name, parameter in parameters.items():
        sizes[name.split(".")[0]] = sizes.get(name.split(".")[0], 0) + parameter.numel()
    depths = dict.fromkeys(sizes, 1)
    open_ = sorted(sizes, key=lambda top: -sizes[top])
    while open_:
        for top in list(open_):
            finer = depths | {top: depths[top] + 1}
            rows = len(set(_cut(parameters, finer)))
            if rows > _MOST_MODULES or rows == len(set(_cut(parameters, depths))):
                open_.remove(top)
            else:
                depths = finer
    return _cut(parameters, depths)


def _cut(names: Iterable[str], depths: Mapping[str, int]) -> list[str]:
    """Each parameter's module, cut off at the depth of its top-level one; a parameter at the top is its own part."""
    parts = (name.split(".") for name in names)
    return [".".join(own[: min(depths[own[0]], max(len(own) - 1, 1))]) for own in parts]


def gradient_findings(system: nn.Module, norms: Mapping[str, float], reached: set[str]) -> list[Finding]:
    """Trainable modules whose gradient is not finite, or that none reached in a few steps."""
    trained = [name for name, parameter in system.named_parameters() if parameter.requires_grad]
    every = [name for name, _ in system.named_parameters()]
    broken = covering({name for name in trained if not math.isfinite(norms[name])}, every)
    if broken:
        return [Finding("broken", f"The gradient of {_some(broken)} is not finite.")]
    alive = {name.rpartition(".")[0] for name in reached}
    idle = covering({name for name in trained if name.rpartition(".")[0] not in alive}, every)
    if not idle:
        return []
    return [
        Finding("broken", f"No gradient reaches {_some(idle)}: no loss depends on it, or its path to the loss is cut.")
    ]


def frozen_findings(subject: Subject) -> Iterator[Finding]:
    """Modules that rest: all of them, those that nobody said should, and those that should."""
    every = [name for name, _ in subject.system.named_parameters()]
    frozen = {name for name, parameter in subject.system.named_parameters() if not parameter.requires_grad}
    unexpected = unexpectedly_frozen(subject.system, subject.allowed, name=subject.name)
    if every and len(frozen) == len(every):
        yield Finding("broken", "The whole network is frozen: nothing would be trained.")
    elif unexpected:
        yield Finding(
            "broken",
            f"Frozen: {_some(unexpected)} has requires_grad off and stays as it is. Unfreeze it, or name it in "
            f"overfit.{subject.name}.frozen if it is meant to rest.",
        )
    elif frozen:
        yield Finding("note", f"Frozen, as configured: {_some(covering(frozen, every))}.")


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- schedule --------------------------------------------------------------------------------------------------------


def rates(config: TrainConfig, *, lr: float) -> Rates:
    """The step sizes that a training with `lr` will have; the peak is found to a step in runs of up to 20,000."""
    peak, steps = lr * config.lr_scale, config.steps
    places = np.unique(np.linspace(0, steps - 1, min(steps, _MOST_STEPS)).round().astype(int))
    sizes = [step_size(int(step), peak=peak, steps=steps, schedule=config.schedule) for step in places]
    top = int(np.argmax(sizes))
    shown = np.linspace(0, len(sizes) - 1, min(_CURVE_POINTS, len(sizes))).round().astype(int)
    return Rates(sizes[0], sizes[top], int(places[top]) + 1, sizes[-1], tuple(sizes[i] for i in shown))


def schedule_findings(subject: Subject, found: Rates | None) -> Iterator[Finding]:
    """What a training would do otherwise than its parameters seem to say."""
    config = subject.config
    peak = subject.lr * config.lr_scale
    if found is not None and found.peak < 0.99 * peak:
        yield Finding("note", f"The step size never reaches lr * lr_scale = {peak:g}: {found.peak:.3g} is the highest.")
    if config.val_every > config.steps:
        yield Finding(
            "note", f"val_every {config.val_every} is above steps {config.steps}: one validation, at the end."
        )
