"""One training loop for all systems: same-scene batches, exact resume, validation, best weights, curve.csv.

`fit` is the recipe, read from top to bottom; what it calls does one thing each.
"""

import contextlib
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float64
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from plumbline import checkpoint
from plumbline.curve import Curve
from plumbline.distributed import Group, join
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.feed import Feed
from plumbline.files import atomic_folder, sha256_file, write_json
from plumbline.process import StopRequest, only_one, stop_on_signal
from plumbline.progress import Show, memory_gb, progress
from plumbline.systems.records import Batch, Prediction

PATIENCE_S = 60.0
GRAD_NORM = "grad_norm"


class Schedule(BaseModel):
    """How the step size changes with the optimiser step; `plumbline.training.step_size` defines each kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cosine_restarts", "cosine", "onecycle", "constant"] = "cosine_restarts"
    warm_up: int = Field(default=0, ge=0, description="steps of linear warm-up, not for onecycle")
    t0: PositiveInt = Field(default=1000, description="steps of the first cosine cycle")
    t_mult: PositiveInt = Field(default=1, description="each cycle is this many times the one before")
    eta_min: float = Field(default=1e-6, ge=0, description="step size at the end of a cosine cycle")
    pct_start: float = Field(default=0.3, gt=0, lt=1, description="part of onecycle that rises")


class TrainConfig(BaseModel):
    """Section `train.<system>` of params.yaml. All intervals are in optimiser steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt = 1000
    batch_size: PositiveInt = Field(default=4, description="samples an optimiser step sees, over all processes")
    same_scene: bool = Field(
        default=True,
        description="batches come from one scene; a net with batch norm needs false, or it never learns a scene's scale",
    )
    sampling: Literal["uniform", "score"] = Field(
        default="uniform",
        description="uniform: every sample once an epoch; score: drawn, its chance proportional to its pair score",
    )
    accumulate: PositiveInt = Field(default=1, description="parts a process computes its share of a batch in")
    lr_scale: PositiveFloat = Field(default=1.0, description="the system's step size is lr times this")
    lr_scales: dict[str, PositiveFloat] = Field(
        default={}, description="part of a parameter's name -> lr_scale of all that have it, in place of the system's"
    )
    optimizer: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-6, ge=0)
    clip: PositiveFloat | None = Field(default=1.0, description="largest norm of the gradient; null = no limit")
    clip_groups: dict[str, PositiveFloat] = Field(
        default={},
        description="in place of clip: part of a parameter's name -> largest norm of the gradient of all that have it",
    )
    schedule: Schedule = Schedule()
    val_every: PositiveInt = 200
    checkpoint_every: PositiveInt = 200
    log_every: PositiveInt = 10
    select: Literal["abs_rel", "loss"] = Field(
        default="abs_rel",
        description="validation value that picks the best weights; abs_rel is abs_rel_median (each sample's median depth "
        "brought to the true one) for a system whose predictions are in no known unit; loss needs no measured depth",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: fp32 on the CPU, bf16 on a GPU; bf16 needs a CPU that computes in it"
    )
    channels_last: bool = True
    threads: PositiveInt | None = Field(
        default=None, description="CPU threads an operation may use; null: all. Small networks are faster with 1"
    )
    loaders: int | None = Field(default=None, ge=0, description="threads that load ahead; null: 4 on a GPU, else none")
    train_suites: tuple[str, ...] = Field(default=("dtu_train",), min_length=1, description="suites to learn from")
    val_suite: str = "dtu_val"
    init_partly: tuple[Path, ...] = Field(
        default=(),
        description="files that a fresh network takes what fits from, by name, one after another; for a system that knows "
        "such files: DepthSplat starts from Depth-Anything-V2 and UniMatch",
    )
    init_from: Path | None = Field(
        default=None,
        description="weights to start from, to fine-tune: a model.pt or the authors' file; null: fresh ones. A system may "
        "then keep a part as it is: VGGT its aggregator, unless systems.vggt.frozen says otherwise",
    )


class NonFiniteError(PlumblineError):
    """A loss or a gradient is not finite; the message names the saved batch."""


@dataclass
class RunState:
    """What changes as a run goes on, besides weights and moments."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    validated_at: int = 0


@dataclass(frozen=True)
class Trainer:
    """What stays: the network, its optimiser, the process group, and where things are kept."""

    name: str
    system: Any  # nn.Module with the contract of plumbline.systems
    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    lr: float
    seed: int
    group: Group
    fingerprint: str
    params: Mapping[str, Any]
    scratch: Path
    clip_groups: Mapping[str, Sequence[nn.Parameter]] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.scratch / "checkpoint.pt"

    @property
    def best(self) -> Path:
        """The best weights so far."""
        return self.scratch / "best.pt"

    @property
    def depth_error(self) -> str:
        """The name of the validation's depth error: `abs_rel_median` for predictions in no known unit."""
        return "abs_rel" if in_metres(self.system) else "abs_rel_median"

    @property
    def select(self) -> str:
        """The name of the validation value that picks the best weights."""
        return self.depth_error if self.config.select == "abs_rel" else self.config.select


def fit(
    system: nn.Module,
    feed: Feed,
    val_feed: Feed | None,
    config: TrainConfig,
    *,
    name: str,
    lr: float,
    seed: int,
    params: Mapping[str, Any],
    out: Path,
    scratch: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train `system` for `config.steps` steps and write `out` once, at the end; returns what summary.json holds.

    `out` gets model.pt (best weights by validation, or the last without `val_feed`), curve.csv and summary.json.
    `params` are the system's own, kept in model.pt; `identity` is whatever else makes this run another one. State is kept
    in `scratch` (default `$DVC_ROOT/.resume/train-<name>-<fingerprint>`): a run that was stopped goes on from there.
    SystemExit(128 + signal) after SIGTERM or SIGINT, with the state saved. ConfigError when the checkpoint in `scratch`
    is of another run; NonFiniteError when a loss or gradient is not finite.
    """
    check_config(config, lr=lr)
    also = {**(identity or {}), **initialise(system, config)}
    run = run_fingerprint(system, feed, val_feed, config, name=name, lr=lr, seed=seed, params=params, also=also)
    scratch = scratch or checkpoint.scratch_folder("train", name, run)
    with (
        cpu_threads(config.threads),
        join(config.device) as group,
        locked(scratch, group),
        stop_on_signal() as request,
    ):
        trainer = prepare(system, config, group, name=name, lr=lr, seed=seed, run=run, params=params, scratch=scratch)
        state = resume(trainer)
        plan = make_plan(feed, config, seed=seed)
        curve = Curve(scratch / "curve.csv", after=state.step) if group.is_main else None
        with loading(trainer, feed, plan) as share_of, showing(trainer, state) as show:
            while state.step < config.steps:
                began = time.monotonic()
                share = share_of(state.step).to(group.device)
                losses, stop = optimise(trainer, share, step=state.step, stop=bool(request.signum))
                advance(state, losses)
                improved = due(state.step, config.val_every, config.steps) and check(trainer, val_feed, state)
                state.seconds += time.monotonic() - began
                record(trainer, state, curve, show, has_validation=val_feed is not None)
                if stop or improved or due(state.step, config.checkpoint_every, config.steps):
                    save(trainer, state)
                if stop and state.step < config.steps:
                    leave(trainer, state, request)
        return publish(trainer, state, out) if group.is_main else {}


# --- what a run is ---------------------------------------------------------------------------------------------------


def check_config(config: TrainConfig, *, lr: float) -> None:
    """ConfigError when the schedule's lowest step size is above the peak, or all of the run is warm-up."""
    peak = lr * config.lr_scale
    if config.schedule.kind == "cosine" and config.schedule.warm_up >= config.steps:
        raise ConfigError(
            f"train: schedule.warm_up {config.schedule.warm_up} is not below steps {config.steps}; the peak would never be "
            "reached. Lower warm_up (5 % of the steps is usual) or raise steps."
        )
    if config.schedule.kind == "cosine_restarts" and config.schedule.eta_min > peak:
        raise ConfigError(
            f"train: schedule.eta_min {config.schedule.eta_min:g} is above the step size lr * lr_scale = {peak:g}; "
            "expected it below. Lower eta_min or raise lr."
        )


def initialise(system: nn.Module, config: TrainConfig) -> dict[str, str]:
    """Load the weights of `config.init_from` into `system`, strictly; returns their hash, which tells such runs apart.

    Moments and step sizes begin anew. A system with a method `fine_tune` is asked to keep what it does not relearn from
    such a start. Of each file of `init_partly` it takes what fits. DataError when a file is absent or does not fit.
    """
    if config.init_partly and (config.init_from is not None or not hasattr(system, "init_from")):
        why = "init_from gives all weights already" if config.init_from else "this system takes no part of a file"
        raise ConfigError(
            f"train: init_partly {', '.join(map(str, config.init_partly))}: {why}. Leave one of them out."
        )
    for path in config.init_partly:
        system.init_from(path)  # type: ignore[operator]
    if config.init_from is None:
        return {f"init_partly_{i}": sha256_file(path) for i, path in enumerate(config.init_partly)}
    system.load_pretrained(config.init_from)  # type: ignore[operator]
    fine_tune = getattr(system, "fine_tune", None)
    if fine_tune is not None:
        fine_tune()
    return {"init_from": sha256_file(config.init_from)}


def run_fingerprint(
    system: nn.Module,
    feed: Feed,
    val_feed: Feed | None,
    config: TrainConfig,
    *,
    name: str,
    lr: float,
    seed: int,
    params: Mapping[str, Any],
    also: Mapping[str, Any] | None,
) -> str:
    """16 hex digits over what determines the result: parameters, the system's code, the samples and their data."""
    settings = config.model_dump(exclude={"device", "checkpoint_every"})
    data = [feed.identity, val_feed.identity if val_feed else None]
    code = checkpoint.code_digest(type(system).__module__, __name__)
    return checkpoint.fingerprint(name, settings, lr, seed, params, code, data, also)


@contextlib.contextmanager
def locked(scratch: Path, group: Group) -> Iterator[None]:
    """Hold `scratch` for this run alone. Waits a minute for a run that is just ending, then PlumblineError."""
    if not group.is_main:
        group.barrier()
        yield
        return
    scratch.mkdir(parents=True, exist_ok=True)
    what = f"{scratch}: this very run (same parameters, code and data) is being trained"
    with only_one(scratch.with_name(f"{scratch.name}.lock"), what, patience=PATIENCE_S):
        group.barrier()
        yield


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Within the block operations use `count` threads; None leaves the number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(
    system: nn.Module,
    config: TrainConfig,
    group: Group,
    *,
    name: str,
    lr: float,
    seed: int,
    run: str,
    params: Mapping[str, Any],
    scratch: Path,
) -> Trainer:
    """The network on its device with its optimiser; ConfigError when that cannot be trained as configured."""
    parts = group.size * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"train.{name}: batch_size {config.batch_size} is no multiple of {group.size} processes x accumulate "
            f"{config.accumulate} = {parts}. Choose a multiple, so that every sample weighs the same."
        )
    check_precision(config.precision, group.device.type, name=name)
    checkpoint.seed_everything(seed + group.rank)
    system.to(group.device)
    if config.channels_last:
        to_channels_last(system)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    groups = step_groups(system, config, name=name)
    optimizer = kind(groups, lr=lr * config.lr_scale, betas=config.betas, weight_decay=config.weight_decay)
    clipped = clip_groups(system, config.clip_groups, name=name)
    model, peak = group.wrap(system), lr * config.lr_scale
    return Trainer(name, system, model, optimizer, config, peak, seed, group, run, params, scratch, clipped)


def step_groups(system: nn.Module, config: TrainConfig, *, name: str) -> list[dict[str, Any]]:
    """The trained parameters as the optimiser takes them, with the `share` of the step size that each group has.

    The system's own come first, then those of each key of `train.<name>.lr_scales` (the first key that is in a parameter's
    name counts). ConfigError for a key that is in no trained parameter's name.
    """
    shares = {"": 1.0, **{key: scale / config.lr_scale for key, scale in config.lr_scales.items()}}
    groups: dict[str, list[nn.Parameter]] = {key: [] for key in shares}
    for parameter_name, parameter in system.named_parameters():
        if parameter.requires_grad:
            groups[next((key for key in config.lr_scales if key in parameter_name), "")].append(parameter)
    empty = [key for key in config.lr_scales if not groups[key]]
    if empty:
        modules = ", ".join(child for child, _ in system.named_children())
        raise ConfigError(
            f"train.{name}.lr_scales: {empty[0]!r} is in no trained parameter's name. The modules are {modules}."
        )
    return [{"params": found, "share": shares[key]} for key, found in groups.items() if found]


def clip_groups(system: nn.Module, limits: Mapping[str, float], *, name: str) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of each group of `train.<name>.clip_groups`; no group at all without `limits`.

    A parameter is in the group whose key stands first in its name: aggregator.camera_token is the aggregator's.
    ConfigError for a trained parameter in no group, and for a key that is in no parameter's name, frozen ones included.
    """
    if not limits:
        return {}
    groups: dict[str, list[nn.Parameter]] = {key: [] for key in limits}
    unused = set(limits)
    for parameter_name, parameter in system.named_parameters():
        found = [key for key in limits if key in parameter_name]
        unused -= set(found)
        if not parameter.requires_grad:
            continue
        if not found:
            raise ConfigError(
                f"train.{name}.clip_groups: parameter {parameter_name} is in no group; expected one of "
                f"{', '.join(limits)} in its name. Add a group for it, or freeze it."
            )
        groups[min(found, key=parameter_name.index)].append(parameter)
    if unused:
        modules = ", ".join(child for child, _ in system.named_children())
        raise ConfigError(
            f"train.{name}.clip_groups: {sorted(unused)[0]!r} is in no parameter's name. The modules are {modules}."
        )
    return groups


def check_precision(precision: str, device: str, *, name: str) -> None:
    """ConfigError when bfloat16 is asked of a CPU that would only imitate it, slower than float32."""
    if precision == "bf16" and device == "cpu" and not cpu_has_bf16():
        raise ConfigError(
            f"train.{name}: precision bf16, but this CPU has no bfloat16 arithmetic (expected avx512_bf16, amx_bf16 or "
            "Arm's bf16); it would imitate it, slower than float32. Set precision: fp32, or train elsewhere."
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 itself."""
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def to_channels_last(system: nn.Module) -> None:
    """Lay out the 2-D convolutions' weights channels-last, in place; their outputs follow."""
    for parameter in system.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


# --- which samples, which step size ----------------------------------------------------------------------------------


def make_plan(feed: Feed, config: TrainConfig, *, seed: int) -> "Plan":
    """The plan of a training: batches from one scene or from all of a part, by score if so configured."""
    groups_of = feed.scenes_of if config.same_scene else feed.parts_of
    scores = feed.scores() if config.sampling == "score" else None
    return Plan(groups_of, batch_size=config.batch_size, seed=seed, scores=scores)


class Plan:
    """Which samples each optimiser step sees: batches of one group, shuffled anew each epoch from (seed, epoch).

    `groups_of` names each sample's group: its scene, or its part of the feed. Every sample is seen each epoch. A group's
    last batch is filled up with others of its samples, so that all batches have one size. With `scores` batches of an epoch,
    as many, are drawn instead, with replacement: a sample's chance is proportional to its score, over all groups. DataError
    when there is no sample, and for a score that is not above 0.
    """

    def __init__(
        self, groups_of: Sequence[str], *, batch_size: int, seed: int, scores: Sequence[float] | None = None
    ) -> None:
        if not groups_of:
            raise DataError("training: the suite has no samples. Check its split and its sources in params.yaml.")
        groups: dict[str, list[int]] = {}
        for index, group in enumerate(groups_of):
            groups.setdefault(group, []).append(index)
        self._groups = [np.asarray(group) for group in groups.values()]
        self._batch_size, self._seed = batch_size, seed
        self._scores = None if scores is None else _positive(scores)
        self.batches = sum(-(-len(group) // batch_size) for group in self._groups)
        # Threads that load ahead may ask for two epochs in turn.
        self._epoch = lru_cache(maxsize=2)(self._shuffled if scores is None else self._drawn)

    def batch(self, step: int) -> np.ndarray:
        """The indices of the batch of optimiser step `step` (from 0)."""
        epoch, position = divmod(step, self.batches)
        return self._epoch(epoch)[position]

    def _shuffled(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng((self._seed, epoch))
        rows = []
        for group in self._groups:
            order = generator.permutation(group)
            rows.append(np.resize(order, (-(-len(group) // self._batch_size), self._batch_size)))
        return generator.permutation(np.concatenate(rows))

    def _drawn(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng((self._seed, epoch))
        weights = [self._scores[group] for group in self._groups]  # type: ignore[index]  # drawn with scores alone
        totals = np.array([weight.sum() for weight in weights])
        chosen = generator.choice(len(totals), self.batches, p=totals / totals.sum())
        rows = [generator.choice(self._groups[g], self._batch_size, p=weights[g] / totals[g]) for g in chosen]
        return np.stack(rows)


def _positive(scores: Sequence[float]) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise DataError(
            f"training: sample {bad[0]} has the pair score {values[bad[0]]}, {len(bad)} of {len(values)} are not above 0. "
            "A chance cannot follow from that: set sampling: uniform."
        )
    return values


def step_size(step: int, *, peak: float, steps: int, schedule: Schedule) -> float:
    """The step size of optimiser step `step` (from 0) of `steps`.

    cosine_restarts: warm restarts as in Loshchilov and Hutter, 2017, per step; cosine: half a wave from the peak to 0 over
    all that follows the warm-up, so that `peak` alone scales it; onecycle: Smith and Topin, 2018, both halves cosine, from
    peak / 25 to peak to peak / 250000. A pure function, so that a resumed run needs no state for it.
    """
    if schedule.kind == "onecycle":
        return _one_cycle(step, peak=peak, steps=steps, rise=schedule.pct_start)
    if step < schedule.warm_up:
        return peak * (step + 1) / (schedule.warm_up + 1)
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "cosine":
        return _cosine(peak, 0.0, (step - schedule.warm_up) / (steps - schedule.warm_up))
    position, length = step - schedule.warm_up, schedule.t0
    while position >= length:
        position, length = position - length, length * schedule.t_mult
    return _cosine(peak, schedule.eta_min, position / length)


def _one_cycle(step: int, *, peak: float, steps: int, rise: float) -> float:
    top = max(rise * steps - 1, 0.0)
    if step < top:
        return _cosine(peak / 25, peak, step / top)
    return _cosine(peak, peak / 25e4, (step - top) / max(steps - 1 - top, 1e-9))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps, and at the last, is done after `step` steps."""
    return step % every == 0 or step == last


# --- one step --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """This process's part of a batch, and where it came from."""

    batch: Batch
    indices: list[int]
    scene: str

    def to(self, device: torch.device) -> "Share":
        """The same share with its batch on `device`."""
        return replace(self, batch=self.batch.to(device))


def load_share(trainer: Trainer, feed: Feed, plan: Plan, *, step: int) -> Share:
    """This process's part of the batch of `step`, on the CPU, augmented where the system does so.

    A system's `augment` draws from the generator it is handed alone, which is made from (seed, step, rank): a resumed
    run, or one that loads ahead, sees the same batches.
    """
    indices = plan.batch(step)
    own = [int(index) for index in indices[trainer.group.share(len(indices))]]
    batch = feed.load(own, step=step)
    augment = getattr(trainer.system, "augment", None)
    if augment is not None:
        entropy = np.random.SeedSequence((trainer.seed, step, trainer.group.rank)).generate_state(1, np.uint64)
        batch = augment(batch, torch.Generator().manual_seed(int(entropy[0] >> 1)))
    return Share(batch, own, feed.scenes_of[own[0]])


@contextlib.contextmanager
def loading(trainer: Trainer, feed: Feed, plan: Plan) -> Iterator[Callable[[int], Share]]:
    """Yields `share_of(step)`, to be asked step by step; threads load the next steps' shares meanwhile."""
    threads = trainer.config.loaders
    if threads is None:
        threads = 4 if trainer.group.device.type == "cuda" else 0
    if not threads:
        yield lambda step: load_share(trainer, feed, plan, step=step)
        return
    pool, waiting = ThreadPoolExecutor(threads), dict[int, Future[Share]]()

    def share_of(step: int) -> Share:
        """The share of `step`, when it is there; sets the threads on those that follow."""
        for ahead in range(step, min(step + threads + 1, trainer.config.steps)):
            if ahead not in waiting:
                waiting[ahead] = pool.submit(load_share, trainer, feed, plan, step=ahead)
        return waiting.pop(step).result()

    try:
        yield share_of
    finally:
        pool.shutdown(cancel_futures=True)


def optimise(trainer: Trainer, share: Share, *, step: int, stop: bool) -> tuple[dict[str, float], bool]:
    """One optimiser step. Returns the losses over the whole batch (with `grad_norm`, before clipping, of all and of each
    clipping group), and whether any process must stop.
    """
    trainer.model.train()
    for group in trainer.optimizer.param_groups:
        peak = group["share"] * trainer.lr
        group["lr"] = step_size(step, peak=peak, steps=trainer.config.steps, schedule=trainer.config.schedule)
    trainer.optimizer.zero_grad(set_to_none=True)
    losses = backward(trainer, share.batch)
    trained = trained_parameters(trainer)
    norms = gradient_norms(trainer, trained)
    names = [*losses, *norms]
    stopping = norms[GRAD_NORM].new_tensor(float(stop))
    values = torch.stack([*losses.values(), *norms.values(), stopping]).double()
    # One exchange and one wait for the device a step: every process sees the same numbers and takes the same way.
    *numbers, stops = trainer.group.mean(values).tolist()
    means = dict(zip(names, numbers, strict=True))
    if not all(math.isfinite(value) for value in numbers):
        refuse(trainer, share, means, step=step)
    clip(trainer, trained, norms)
    trainer.optimizer.step()
    return means, stops > 0


def gradient_norms(trainer: Trainer, trained: Sequence[Tensor]) -> dict[str, Tensor]:
    """The norm of the gradient of all `trained` parameters, "grad_norm", and of each clipping group's."""
    groups: dict[str, Sequence[Tensor]] = {GRAD_NORM: trained}
    groups |= {f"{GRAD_NORM}_{key}": parameters for key, parameters in trainer.clip_groups.items() if parameters}
    return {
        name: nn.utils.get_total_norm(parameter.grad for parameter in parameters if parameter.grad is not None)
        for name, parameters in groups.items()
    }


def clip(trainer: Trainer, trained: list[Tensor], norms: Mapping[str, Tensor]) -> None:
    """Scale gradients down to the largest norm allowed: of each clipping group, or, without groups, of all together."""
    for key, parameters in trainer.clip_groups.items():
        if parameters:
            limit = trainer.config.clip_groups[key]
            nn.utils.clip_grads_with_norm_(parameters, limit, norms[f"{GRAD_NORM}_{key}"])
    if not trainer.clip_groups and trainer.config.clip is not None:
        nn.utils.clip_grads_with_norm_(trained, trainer.config.clip, norms[GRAD_NORM])


def backward(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the mean loss over `batch`, computed in `accumulate` parts; returns each component's mean, detached."""
    parts = trainer.config.accumulate
    size = len(batch.image) // parts
    sums: dict[str, Tensor] = {}
    for part in range(parts):
        rows = batch.rows(slice(part * size, (part + 1) * size))
        last = part == parts - 1
        with contextlib.nullcontext() if last or trainer.model is trainer.system else trainer.model.no_sync():  # type: ignore[operator]
            _, losses = forward(trainer.model, trainer, rows)
            (losses["total"] / parts).backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / parts
    return {"loss" if name == "total" else name: value for name, value in sums.items()}


def forward(model: nn.Module, trainer: Trainer, batch: Batch) -> tuple[Prediction, dict[str, Tensor]]:
    """The prediction from what the system may see, and its losses, those in full precision."""
    device = trainer.group.device.type
    with torch.autocast(device, torch.bfloat16, enabled=uses_bf16(trainer.config.precision, device)):
        prediction = model(batch.select(trainer.system.inputs))
    prediction = in_float32(prediction)
    return prediction, trainer.system.loss(prediction, batch)


def uses_bf16(precision: str, device: str) -> bool:
    """Whether the network runs in bfloat16: as said, and by default on a GPU."""
    return precision == "bf16" or (precision == "auto" and device == "cuda")


def in_float32(prediction: Prediction) -> Prediction:
    """The prediction with every floating-point tensor in float32: distances in bfloat16 would be good to 1 % only."""

    def widen(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    return replace(
        prediction,
        depth=widen(prediction.depth),
        confidence=None if prediction.confidence is None else widen(prediction.confidence),
        internals={name: widen(tensor) for name, tensor in prediction.internals.items()},
    )


def trained_parameters(trainer: Trainer) -> list[Tensor]:
    """The parameters that the optimiser changes."""
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def advance(state: RunState, losses: Mapping[str, float]) -> None:
    """Count the step and add its losses to those since the last row of the curve."""
    state.step += 1
    state.summed += 1
    for name, value in losses.items():
        state.sums[name] = state.sums.get(name, 0.0) + value


def refuse(trainer: Trainer, share: Share, means: Mapping[str, float], *, step: int) -> NoReturn:
    """Save the batch and the weights before the step, and stop the run with a message that names them."""
    path = trainer.scratch / f"nonfinite-step{step}-rank{trainer.group.rank}.pt"
    tensors = {f.name: getattr(share.batch, f.name) for f in fields(share.batch)}
    kept = {name: value.cpu() if torch.is_tensor(value) else value for name, value in tensors.items()}
    state = {"batch": kept, "indices": share.indices, "scene": share.scene, "step": step, "losses": dict(means)}
    checkpoint.save(path, {**state, **weights(trainer, step)})
    raise NonFiniteError(
        f"train {trainer.name}: step {step} (scene {share.scene}, samples {share.indices}): {_culprit(trainer, means)}. "
        f"The batch and the weights before the step are in {path}; see each sample's losses with "
        f"python -m plumbline.replay {path}"
    )


def _culprit(trainer: Trainer, means: Mapping[str, float]) -> str:
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    losses = [name for name in bad if not name.startswith(GRAD_NORM)]
    components = [name for name in losses if name != "loss"] or losses
    if components:
        return "loss component " + ", ".join(f"'{name}' is {means[name]}" for name in components)
    grads = {name: parameter.grad for name, parameter in trainer.system.named_parameters()}
    names = [name for name, grad in grads.items() if grad is not None and not torch.isfinite(grad).all()]
    return (
        f"the losses are finite, but not the gradient of {', '.join(names[:3]) or 'the whole network (norm overflow)'}"
    )


# --- validation ------------------------------------------------------------------------------------------------------


def check(trainer: Trainer, val_feed: Feed | None, state: RunState) -> bool:
    """Validate and keep the weights if they are the best so far; whether they are. Nothing without `val_feed`."""
    if val_feed is None:
        return False
    state.validation, state.validated_at = validate(trainer, val_feed), state.step
    value = state.validation[trainer.select]
    if value >= state.best:
        return False
    state.best, state.best_step = value, state.step
    if trainer.group.is_main:
        checkpoint.save(trainer.best, weights(trainer, state.step))
    return True


@torch.no_grad()
def validate(trainer: Trainer, feed: Feed) -> dict[str, float]:
    """Each loss (mean over samples), the depth error and `coverage`, and the PSNR of target views, over all of `feed`.

    Changes nothing in the network. Where nothing is measured there is no depth error: DataError then, unless weights are
    selected by their loss. NonFiniteError when a value is not finite.
    """
    trainer.system.eval()
    totals: dict[str, list[float]] = {}
    size, count = trainer.config.batch_size, len(feed.scenes_of)
    for start in list(range(0, count, size))[trainer.group.rank :: trainer.group.size]:
        batch = feed.load(range(start, min(start + size, count))).to(trainer.group.device)
        prediction, losses = forward(trainer.system, trainer, batch)
        values = {
            "loss" if name == "total" else name: (float(value), float(len(batch.image)))
            for name, value in losses.items()
        }
        if trainer.config.select == "abs_rel" or batch.depth is not None:
            values |= depth_errors(prediction, batch, aligned=not in_metres(trainer.system))
        add_weighted(totals, values | view_errors(trainer.system, prediction, batch))
    merged: dict[str, list[float]] = {}
    for part in trainer.group.gather(totals):
        add_weighted(merged, {name: (total / max(weight, 1e-9), weight) for name, (total, weight) in part.items()})
    return _means(merged, trainer.name, needed=trainer.select)


def add_weighted(totals: dict[str, list[float]], values: Mapping[str, tuple[float, float]]) -> None:
    """Add each (mean, weight) to the running [sum, weight] of its name."""
    for name, (mean, weight) in values.items():
        total = totals.setdefault(name, [0.0, 0.0])
        total[0] += mean * weight
        total[1] += weight


def _means(totals: Mapping[str, list[float]], name: str, *, needed: str) -> dict[str, float]:
    if not totals or totals[needed][1] == 0:
        raise DataError(
            f"train {name}: no validation sample has measured depth where it was predicted. Check val_suite, or set "
            f"train.{name}.select: loss."
        )
    means = {key: total / weight for key, (total, weight) in totals.items() if weight}
    bad = {key: value for key, value in means.items() if not math.isfinite(value)}
    if bad:
        raise NonFiniteError(
            f"train {name}: validation gave {bad}; expected finite values. Lower lr or check the data."
        )
    return means


def in_metres(system: Any) -> bool:
    """Whether a system's depth is in metres: all do but those that say `metric` is False, as VGGT without poses."""
    return bool(getattr(system, "metric", True))


def depth_errors(prediction: Prediction, batch: Batch, *, aligned: bool = False) -> dict[str, tuple[float, float]]:
    """`abs_rel` (over measured and predicted pixels) and `coverage`, each as (mean over samples, number of samples).

    Samples without measured depth count in neither, samples without any prediction only in coverage. With `aligned` each
    sample's depth is first brought to the true median, and the error is named `abs_rel_median`. DataError when the batch has
    no truth.
    """
    if batch.depth is None or batch.mask is None:
        raise DataError(
            "validation needs measured depth to select weights by, and the suite has none. Set select: loss in this "
            "system's section of train, or choose another val_suite."
        )
    views = prediction.depth.shape[1]
    truth, mask = batch.depth[:, :views].double(), batch.mask[:, :views]
    covered = mask & (prediction.depth > 0)
    depth = prediction.depth.double()
    if aligned:
        depth = depth * median_ratio(truth, depth, covered)[:, None, None, None]
    error = ((depth - truth).abs() / torch.where(mask, truth, 1.0)).where(covered, 0.0)
    measured, found = mask.flatten(1).sum(1), covered.flatten(1).sum(1)
    rel = (error.flatten(1).sum(1) / found)[found > 0]
    coverage = (found / measured)[measured > 0]
    return {
        key: (float(v.mean()) if len(v) else 0.0, float(len(v)))
        for key, v in (("abs_rel_median" if aligned else "abs_rel", rel), ("coverage", coverage))
    }


def view_errors(system: Any, prediction: Prediction, batch: Batch) -> dict[str, tuple[float, float]]:
    """`psnr` in dB of the target views' pictures, as (mean over samples, their number); nothing where none are rendered."""
    if batch.target_image is None or not renders_views(system):
        return {}
    seen = system.novel_views(prediction, batch.select(system.inputs)).image
    error = (seen - batch.target_image).double().square().flatten(2).mean(dim=2)
    # A perfect picture has no error to take the logarithm of: 8 bits end at about 60 dB.
    return {"psnr": (float(-10 * error.clamp(min=1e-6).log10().mean()), float(len(error)))}


def renders_views(system: Any) -> bool:
    """Whether a system, as it is configured, can render views that were not given."""
    return hasattr(system, "novel_views") and bool(getattr(system.config, "gaussians", True))


def median_ratio(
    truth: Float64[Tensor, "b p h w"], depth: Float64[Tensor, "b p h w"], where: Bool[Tensor, "b p h w"]
) -> Float64[Tensor, " b"]:
    """Each sample's median true depth over its median predicted one, over the pixels `where` it has both; 1 without any."""
    medians = [x.where(where, torch.nan).flatten(1).nanquantile(0.5, dim=1) for x in (truth, depth)]
    return torch.nan_to_num(medians[0] / medians[1], nan=1.0)


# --- state, files ----------------------------------------------------------------------------------------------------


def weights(trainer: Trainer, step: int) -> dict[str, Any]:
    """What model.pt holds: the weights on the CPU, whose they are, and after how many steps."""
    state = checkpoint.to_cpu(trainer.system.state_dict())
    return {"model": state, "system": trainer.name, "params": dict(trainer.params), "step": step}


def save(trainer: Trainer, state: RunState) -> None:
    """Write all that an exact resume needs; every process hands in its generators' state."""
    generators = trainer.group.gather(checkpoint.rng_state())
    if trainer.group.is_main:
        content = {
            "fingerprint": trainer.fingerprint,
            "run": asdict(state),
            "model": trainer.system.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "generators": generators,
        }
        checkpoint.save(trainer.checkpoint, content)


def resume(trainer: Trainer) -> RunState:
    """Put the trainer where the checkpoint in its scratch folder left off; a fresh state when there is none."""
    content = checkpoint.load_run(trainer.checkpoint, trainer.fingerprint)
    if content is None:
        return RunState()
    trainer.system.load_state_dict(content["model"])
    trainer.optimizer.load_state_dict(content["optimizer"])
    generators = content["generators"]
    if trainer.group.rank < len(generators):
        checkpoint.set_rng_state(generators[trainer.group.rank])
    state = RunState(**content["run"])
    if trainer.group.is_main:
        print(f"train {trainer.name}: going on from step {state.step} ({trainer.checkpoint})", file=sys.stderr)
    return state


def showing(trainer: Trainer, state: RunState) -> contextlib.AbstractContextManager[Show]:
    """The progress display, of the main process alone."""
    if not trainer.group.is_main:
        return contextlib.nullcontext(lambda step, values: None)
    return progress(f"train {trainer.name}", total=trainer.config.steps, start=state.step)


def record(trainer: Trainer, state: RunState, curve: Curve | None, show: Show, *, has_validation: bool) -> None:
    """Add a row to the curve when one is due (always after a validation), and show where the run is."""
    means = {name: total / state.summed for name, total in state.sums.items()}
    validated = state.validated_at == state.step
    best = {f"best {trainer.select}": state.best} if math.isfinite(state.best) else {}
    show(state.step, {"loss": means["loss"], **best})
    if not validated and not due(state.step, trainer.config.log_every, trainer.config.steps):
        return
    state.sums, state.summed = {}, 0
    if curve is None:
        return
    row = {"step": float(state.step), "lr": trainer.optimizer.param_groups[0]["lr"], "seconds": state.seconds}
    row |= {f"train/{name}": value for name, value in means.items()}
    losses = [name for name in means if not name.startswith(GRAD_NORM)]
    views = ["psnr"] if renders_views(trainer.system) else []
    val_names = [*losses, trainer.depth_error, "coverage", *views] if has_validation else []
    columns = [*row, *(f"val/{name}" for name in val_names)]
    values = {f"val/{name}": value for name, value in state.validation.items()} if validated else {}
    curve.append(row | values, columns=columns)


def leave(trainer: Trainer, state: RunState, request: StopRequest) -> NoReturn:
    """Say how to go on and end the process with 128 + signal: with 0, DVC would take the run for finished."""
    signum = request.signum or signal.SIGTERM
    if trainer.group.is_main:
        print(
            f"train {trainer.name}: stopped by {signal.Signals(signum).name} after step {state.step} of "
            f"{trainer.config.steps}, saved in {trainer.checkpoint}. Run the same command again to go on from there.",
            file=sys.stderr,
        )
    trainer.group.barrier()
    raise SystemExit(128 + signum)


def publish(trainer: Trainer, state: RunState, out: Path) -> dict[str, Any]:
    """Write the declared folder at once, then drop the scratch folder; returns the summary."""
    if not trainer.best.is_file():
        checkpoint.save(trainer.best, weights(trainer, state.step))
    facts = summary(trainer, state)
    with atomic_folder(out) as folder:
        shutil.copyfile(trainer.best, folder / "model.pt")
        shutil.copyfile(trainer.scratch / "curve.csv", folder / "curve.csv")
        write_json(folder / "summary.json", facts)
    shutil.rmtree(trainer.scratch)
    return facts


def summary(trainer: Trainer, state: RunState) -> dict[str, Any]:
    """The facts of a finished run: steps, best value, time, memory, device."""
    config = trainer.config
    return {
        "system": trainer.name,
        "steps": state.step,
        "best_step": state.best_step or state.step,
        "select": trainer.select,
        "best": state.best if math.isfinite(state.best) else None,
        "validation": state.validation,
        "seconds": round(state.seconds, 3),
        "samples_per_second": round(state.step * config.batch_size / max(state.seconds, 1e-9), 3),
        "peak_memory_gb": round(memory_gb(), 3),
        "device": trainer.group.device.type,
        "processes": trainer.group.size,
        "parameters": sum(parameter.numel() for parameter in trained_parameters(trainer)),
        "fingerprint": trainer.fingerprint,
    }
