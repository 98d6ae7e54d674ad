"""The overfit gate: can a system fit one sample, and does it do so by looking at it?

`overfit_pair` is the gate from the data check to the record on disk; `fit_sample` is the training part, a fixed number of
optimiser steps on one batch with everything measured that `plumbline.overfit_verdict` judges. A gate is no training run:
nothing is augmented, resumed or kept but the record.
"""

import fnmatch
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from plumbline import checkpoint
from plumbline.camera_metrics import camera_errors
from plumbline.data.checks import CheckConfig, check_scene
from plumbline.data.pair import Pair
from plumbline.depth_sheet import Row
from plumbline.errors import ConfigError, DataError
from plumbline.overfit_record import rendered_sheet, sample_facts, sheet, write_record
from plumbline.overfit_verdict import Criteria, NonFinite, Run, State, Verdict, data_is_true, judge
from plumbline.systems.records import Batch, Prediction, Rendered
from plumbline.training import Schedule, cpu_threads, median_ratio, step_size

# What a system sees of a scene, as opposed to its cameras: exchanged to learn whether it looks.
EVIDENCE = ("image", "initial_depth", "initial_confidence")
ONE_CYCLE = Schedule(kind="onecycle", pct_start=0.05)


class OverfitConfig(BaseModel):
    """Section `overfit.<system>` of params.yaml: how the gate trains, and what it asks. Nothing of `train` or `lr` acts here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: dict[str, Any] = Field(
        default={},
        description="what the gate builds otherwise than systems.<system> says; a key given here replaces that one",
    )
    steps: PositiveInt = 300
    lr: PositiveFloat = 1e-3
    criteria: Criteria = Criteria()
    log_steps: tuple[PositiveInt, ...] = Field(
        default=(1, 10, 50, 100), description="steps after which the network is evaluated and shown; the last always is"
    )
    optimizer: Literal["adam", "adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: PositiveFloat | None = Field(default=1.0, description="largest norm of the gradient; null = no limit")
    schedule: Schedule = ONE_CYCLE
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = Field(default=None, description="CPU threads an operation may use; null: all")
    frozen: tuple[str, ...] = Field(default=(), description="patterns of modules that are meant to rest")
    guide: bool = Field(default=False, description="show the single-pair guide's four thresholds beside ours")


@runtime_checkable
class Unscaled(Protocol):
    """A system that answers in a unit of its own, and knows what that is in metres where the truth is known."""

    def in_metres(self, prediction: Prediction, batch: Batch) -> Prediction:
        """The prediction in metres, by the true scale of `batch`."""


@runtime_checkable
class Renders(Protocol):
    """A system whose predictions can be seen from other cameras."""

    def novel_views(self, prediction: Prediction, batch: Batch) -> Rendered:
        """What the target cameras of `batch` see of the prediction."""


@dataclass(frozen=True)
class Answer:
    """A system's answer on its sample, and what its target cameras see of it (None: no targets, or nothing that renders)."""

    prediction: Prediction
    rendered: Rendered | None


@dataclass(frozen=True)
class Overfit:
    """A finished fit: what was measured, and by logged step the predicted depth (b, p, h, w), in the unit of `run`, and what
    target cameras see.
    """

    run: Run
    depth: Mapping[int, Float32[np.ndarray, "b p h w"]]
    rendered: Mapping[int, Rendered]


def overfit_pair(
    system: nn.Module,
    batch: Batch,
    other: Batch | None,
    pair: Pair,
    config: OverfitConfig,
    checks: CheckConfig,
    *,
    name: str,
    seed: int,
    out: Path,
    notes: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge `system` on its sample and write the record into `out` (see `write_record`); returns the verdict.

    `pair` is the sample that `batch` was made of. It is checked first: when its geometry is not shown to be true nothing is
    trained. `other` is a sample of the same shape that shows something else; None: the sample's own images, mirrored.
    `notes` stand in the record beside the configuration.
    """
    # The limit on angles picks telling pairs of a long capture; these views are given together, whichever way they look.
    limits = checks.model_copy(update={"max_angle": 180.0})
    check = check_scene(pair.scene, limits) if config.criteria.data else None
    fitted = None
    if check is None or data_is_true(check):
        fitted = fit_sample(system, batch, other or mirrored(batch), config, name=name, seed=seed)
    run = None if fitted is None else fitted.run
    verdict = judge(name, config.criteria, check=check, run=run, guide=config.guide)
    write_record(
        out,
        verdict,
        run=run,
        sample=sample_facts(pair, other="its own images, mirrored" if other is None else "another sample's images"),
        configuration={**config.model_dump(mode="json"), "seed": seed, **(notes or {})},
        log_steps=config.log_steps,
        sheets={} if fitted is None else sheets(pair, fitted),
    )
    return verdict


def sheets(pair: Pair, fitted: Overfit) -> dict[int, list[Row]]:
    """The rows of each logged step's picture: views that were given, then what was rendered."""
    found: dict[int, list[Row]] = {}
    for step, depth in fitted.depth.items():
        found[step] = [*sheet(pair, depth[0])]
        if step in fitted.rendered:
            seen = fitted.rendered[step]
            colours = seen.image[0].movedim(1, -1).cpu().numpy()
            found[step] += rendered_sheet(pair, colours, None if seen.depth is None else seen.depth[0].cpu().numpy())
    return found


def fit_sample(
    system: nn.Module, batch: Batch, other: Batch, config: OverfitConfig, *, name: str, seed: int
) -> Overfit:
    """Train `system`, in place, on `batch` for `config.steps` steps in float32, and measure it before, meanwhile and after.

    Stops early where a value is not finite or no loss depends on the network. DataError when `other` has another shape or
    the same images, or `batch` has no truth; ConfigError when a pattern of `config.frozen` matches nothing.
    """
    check_other(batch, other, name=name)
    frozen = unexpectedly_frozen(system, config.frozen, name=name)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    checkpoint.seed_everything(seed)
    system.to(device)
    batch, other, began = batch.to(device), other.to(device), time.monotonic()
    with cpu_threads(config.threads):
        untrained, _ = evaluate(system, batch)
        log = _Log(system, untrained)
        _train(system, batch, config, log)
        trained, answer = evaluate(system, batch)
        return Overfit(
            Run(
                lr=config.lr,
                steps=config.steps,
                curve=tuple(log.rows),
                untrained=untrained,
                trained=trained,
                training_losses=training_losses(system, batch),
                swapped_losses=losses_of_swapped(system, batch, other),
                inputs=tuple(sorted(_inputs(system))),
                frozen=frozen,
                idle=() if log.stopped_early else log.gradients.idle(),
                broken=log.gradients.broken(),
                unconnected=log.unconnected,
                blank=blank_inputs(batch, _inputs(system)),
                non_finite=log.non_finite,
                unit=_unit(system, answer.prediction),
                parameters=sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad),
                seconds=time.monotonic() - began,
                device=device.type,
            ),
            log.depth,
            log.rendered,
        )


# --- training --------------------------------------------------------------------------------------------------------


class _Gradients:
    """What reached each trainable parameter over a run, kept on its device until it is asked for."""

    def __init__(self, system: nn.Module) -> None:
        named = [(name, parameter) for name, parameter in system.named_parameters() if parameter.requires_grad]
        self._every = [name for name, _ in system.named_parameters()]
        self.names, self.parameters = [name for name, _ in named], [parameter for _, parameter in named]
        device = self.parameters[0].device if self.parameters else None
        self._reached = torch.zeros(len(named), dtype=torch.bool, device=device)
        self._broken = torch.zeros(len(named), dtype=torch.bool, device=device)

    def add(self) -> Float[Tensor, ""]:
        """Note the present gradients; their total norm."""
        norms = torch.stack([_norm(parameter.grad, parameter) for parameter in self.parameters])
        self._reached |= norms > 0
        self._broken |= ~norms.isfinite()
        return norms.norm()

    def weight_norm(self) -> Float[Tensor, ""]:
        """Norm of all trainable weights."""
        return torch.stack([parameter.detach().float().norm() for parameter in self.parameters]).norm()

    def idle(self) -> tuple[str, ...]:
        """Trainable modules none of whose own parameters ever had a gradient other than 0."""
        reached = (self._reached | self._broken).tolist()
        alive = {_owner(name) for name, was in zip(self.names, reached, strict=True) if was}
        return covering({name for name in self.names if _owner(name) not in alive}, self.names)

    def broken(self) -> tuple[str, ...]:
        """Modules whose gradient was once not finite."""
        return covering({name for name, was in zip(self.names, self._broken.tolist(), strict=True) if was}, self.names)


@dataclass
class _Log:
    """What a fit leaves behind."""

    system: nn.Module
    untrained: State
    rows: list[dict[str, float]] = field(default_factory=list)
    depth: dict[int, Float32[np.ndarray, "b p h w"]] = field(default_factory=dict)
    rendered: dict[int, Rendered] = field(default_factory=dict)
    unconnected: tuple[str, ...] = ()
    non_finite: NonFinite | None = None
    stopped_early: bool = False

    def __post_init__(self) -> None:
        self.gradients = _Gradients(self.system)


def _train(system: nn.Module, batch: Batch, config: OverfitConfig, log: _Log) -> None:
    """All steps of the fit, or as many as are of use, into `log`."""
    parameters = log.gradients.parameters
    if not parameters:
        log.stopped_early = True
        return
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    for step in range(1, config.steps + 1):
        rate = step_size(step - 1, peak=config.lr, steps=config.steps, schedule=config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        row = _step(system, batch, optimizer, log, step=step, clip=config.clip)
        log.rows.append({"step": float(step), "lr": rate, **row})
        if log.stopped_early:
            return
        if step in config.log_steps or step == config.steps:
            state, answer = evaluate(system, batch)
            log.rows[-1] |= _columns(state)
            log.depth[step] = in_metres(system, answer.prediction, batch).depth.cpu().numpy()
            if answer.rendered is not None:
                log.rendered[step] = answer.rendered


def _step(
    system: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, log: _Log, *, step: int, clip: float | None
) -> dict[str, float]:
    """One optimiser step; losses and norms before it. Sets `log.stopped_early` instead where no step can be taken."""
    system.train()
    optimizer.zero_grad(set_to_none=True)
    losses = _losses(system, system(batch.select(_inputs(system))), batch)
    if step == 1 and losses["loss"].isfinite():
        log.unconnected = _unconnected(losses)
    log.stopped_early = not losses["loss"].requires_grad
    if not log.stopped_early:
        losses["loss"].backward()  # type: ignore[no-untyped-call]
    values = torch.stack(
        [*(value.detach() for value in losses.values()), log.gradients.add(), log.gradients.weight_norm()]
    )
    row = dict(zip([*losses, "grad_norm", "weight_norm"], values.double().tolist(), strict=True))
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        log.non_finite, log.stopped_early = NonFinite(step, _culprit(bad, row, log.gradients)), True
    if not log.stopped_early:
        if clip is not None:
            nn.utils.clip_grads_with_norm_(log.gradients.parameters, clip, values[-2])
        optimizer.step()
    return {f"train/{name}": value for name, value in row.items()}


def _unconnected(losses: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Losses that are something and cannot be lowered by training; the total alone when that is so of all."""
    if not losses["loss"].requires_grad:
        return ("loss",)
    return tuple(name for name, value in losses.items() if not value.requires_grad and value.item() != 0)


def _culprit(bad: Sequence[str], row: Mapping[str, float], gradients: _Gradients) -> str:
    components = [name for name in bad if name not in {"loss", "grad_norm", "weight_norm"}] or list(bad)
    if components == ["grad_norm"]:
        return f"the gradient of {', '.join(gradients.broken()[:3]) or 'the whole network (norm overflow)'}"
    return ", ".join(f"{name} is {row[name]}" for name in components)


def _columns(state: State) -> dict[str, float]:
    found = {f"val/{name}": value for name, value in state.losses.items()}
    if not math.isnan(state.depth_error):
        found["val/depth_error"] = state.depth_error
    return found | {f"val/{name}": value for name, value in state.further.items()}


# --- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(system: nn.Module, batch: Batch) -> tuple[State, Answer]:
    """The system in inference on `batch`: losses, depth and rotation error, what its pictures are worth, and its answer."""
    system.eval()
    prediction = system(batch.select(_inputs(system)))
    pictures, whole = renders(system, batch), not non_finite_parts(prediction)
    rendered = system.novel_views(prediction, batch) if pictures and whole else None  # type: ignore[operator]
    losses = {name: float(value) for name, value in _losses(system, prediction, batch).items()}
    # What is to be seen is enough to be trained on; without that nothing but depth is.
    judged = batch.depth is not None or not pictures
    state = State(
        losses,
        depth_error(in_metres(system, prediction, batch), batch) if judged else math.nan,
        rotation_error(prediction, batch),
        math.nan if pictures and not whole else None if rendered is None else psnr(rendered, batch),
    )
    return state, Answer(prediction, rendered)


def renders(system: nn.Module, batch: Batch) -> bool:
    """Whether the system can be held to pictures: it renders, and the batch has views that it is to render."""
    return isinstance(system, Renders) and batch.target_image is not None


@torch.no_grad()
def training_losses(system: nn.Module, batch: Batch) -> dict[str, float]:
    """Losses in training mode; buffers, such as the statistics of batch norm, are left as they were."""
    before = [(buffer, buffer.clone()) for buffer in system.buffers()]
    system.train()
    losses = _losses(system, system(batch.select(_inputs(system))), batch)
    for buffer, value in before:
        buffer.copy_(value)
    system.eval()
    return {name: float(value) for name, value in losses.items()}


@torch.no_grad()
def losses_of_swapped(system: nn.Module, batch: Batch, other: Batch) -> dict[str, float]:
    """Losses against the truth of `batch` of what the system predicts from what is to be seen in `other`."""
    system.eval()
    seen = {name: getattr(other, name) for name in EVIDENCE if name in _inputs(system)}
    prediction = system(replace(batch, **seen).select(_inputs(system)))
    return {name: float(value) for name, value in _losses(system, prediction, batch).items()}


def in_metres(system: nn.Module, prediction: Prediction, batch: Batch) -> Prediction:
    """The prediction in metres: by the system's own rule where it does not know the scale, else by the median.

    Bringing each sample's depth to the true median is a kindness that hides a wrong scale; the record says so.
    """
    if not _lacks_scale(prediction):
        return prediction
    if isinstance(system, Unscaled):
        return system.in_metres(prediction, batch)
    depth, mask = _truth(batch, prediction)
    factor = median_ratio(depth, prediction.depth.double(), mask & (prediction.depth > 0))
    return replace(prediction, depth=prediction.depth * factor[:, None, None, None])


def depth_error(prediction: Prediction, batch: Batch) -> float:
    """Mean of |predicted - true| / true over measured pixels of the predicted views; 1 where the system abstains."""
    depth, mask = _truth(batch, prediction)
    if not mask.any():
        raise DataError(
            "overfit: the sample has no measured depth in the views that are predicted. Choose another one."
        )
    error = (prediction.depth.double() - depth).abs() / depth.where(mask, 1.0)
    return float(error[mask].mean())


def rotation_error(prediction: Prediction, batch: Batch) -> float | None:
    """Largest angle (degrees) between predicted and true relative rotations of two views; None without cameras."""
    if prediction.cameras is None or batch.cam0_T_cam is None:
        return None
    pairs = zip(prediction.cameras.cam0_T_cam.cpu().numpy(), batch.cam0_T_cam.cpu().numpy(), strict=True)
    return max(float(camera_errors(predicted, true).rotation.max()) for predicted, true in pairs)


def psnr(rendered: Rendered, batch: Batch) -> float:
    """Peak signal-to-noise ratio in dB of what the target cameras see, colours in [0, 1], the mean over the target views.

    All pixels of a view count. DataError when nobody knows what was to be seen.
    """
    if batch.target_image is None:
        raise DataError("overfit: the sample has no target views to compare with. Set target in its pair section.")
    error = (rendered.image.double() - batch.target_image).square().mean(dim=(-3, -2, -1))
    return float((-10 * error.clamp(min=1e-12).log10()).mean())


def blank_inputs(batch: Batch, inputs: frozenset[str]) -> tuple[str, ...]:
    """Inputs that show nothing of the scene: images of one colour, another method's depth without a value."""
    found = []
    if "image" in inputs and bool((batch.image.flatten(1).amax(1) <= batch.image.flatten(1).amin(1)).any()):
        found.append("image")
    if "initial_depth" in inputs and batch.initial_depth is not None and not batch.initial_depth.gt(0).any():
        found.append("initial_depth")
    return tuple(found)


def check_other(batch: Batch, other: Batch, *, name: str) -> None:
    """DataError when `other` cannot stand in for `batch`, or shows the same."""
    for part in EVIDENCE:
        own, its = getattr(batch, part), getattr(other, part)
        if (own is None) != (its is None) or (own is not None and own.shape != its.shape):
            shapes = [None if x is None else tuple(x.shape) for x in (own, its)]
            raise DataError(
                f"overfit {name}: the other sample has {part} {shapes[1]}; expected {shapes[0]}, as this one. Take it from "
                "the same suite."
            )
    if torch.equal(batch.image, other.image):
        raise DataError(f"overfit {name}: the other sample shows the same images. Choose one of another scene.")


def mirrored(batch: Batch) -> Batch:
    """The batch with what is to be seen in it mirrored: a stand-in for another sample where a data set has but one."""
    seen = {name: getattr(batch, name) for name in EVIDENCE}
    return replace(batch, **{name: x.flip(-1) for name, x in seen.items() if x is not None})


def non_finite_parts(prediction: Prediction) -> list[str]:
    """The parts of a prediction that hold values which are not finite."""
    parts = {"predicted depth": prediction.depth, **prediction.internals}
    return [
        name for name, x in parts.items() if torch.is_tensor(x) and x.is_floating_point() and not x.isfinite().all()
    ]


def _losses(system: Any, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
    """Every loss by name, the total as "loss". Of a prediction that cannot be rendered, being NaN, they are not asked for."""
    if renders(system, batch) and (bad := non_finite_parts(prediction)):
        return dict.fromkeys([bad[0], "loss"], prediction.depth.new_tensor(math.nan))
    losses: dict[str, Tensor] = system.loss(prediction, batch)
    return {"loss" if name == "total" else name: value for name, value in losses.items()}


def _inputs(system: Any) -> frozenset[str]:
    return frozenset(system.inputs)


def _truth(batch: Batch, prediction: Prediction) -> tuple[Tensor, Tensor]:
    if batch.depth is None or batch.mask is None:
        raise DataError("overfit: the sample has no true depth to fit. Extract one of a data set that has depth.")
    views = prediction.depth.shape[1]
    return batch.depth[:, :views].double(), batch.mask[:, :views]


def _lacks_scale(prediction: Prediction) -> bool:
    known = prediction.internals.get("scale_known")
    return known is not None and not bool(known.all())


def _unit(system: nn.Module, prediction: Prediction) -> str:
    if not _lacks_scale(prediction):
        return "metres"
    return "metres, by the true scale of the scene" if isinstance(system, Unscaled) else "after alignment by the median"


# --- modules ---------------------------------------------------------------------------------------------------------


def unexpectedly_frozen(system: nn.Module, allowed: Sequence[str], *, name: str) -> tuple[str, ...]:
    """Modules with requires_grad off that no pattern of `allowed` names; ConfigError when a pattern names none that rest."""
    every = [key for key, _ in system.named_parameters()]
    frozen = {key for key, parameter in system.named_parameters() if not parameter.requires_grad}
    for pattern in allowed:
        matched = {key for key in frozen if any(fnmatch.fnmatchcase(part, pattern) for part in _prefixes(key))}
        if not matched:
            rests = ", ".join(covering(frozen, every)) or "none"
            raise ConfigError(
                f"overfit.{name}.frozen: {pattern!r} matches no module that rests; those are: {rests}. Take the pattern out."
            )
        frozen -= matched
    return covering(frozen, every)


def covering(chosen: set[str], every: Sequence[str]) -> tuple[str, ...]:
    """The outermost modules whose parameters are all among `chosen`, and the parameters of no such module."""
    total, hit = Counter[str](), Counter[str]()
    for name in every:
        total.update(_prefixes(name))
        if name in chosen:
            hit.update(_prefixes(name))
    outermost = (next(part for part in _prefixes(name) if hit[part] == total[part]) for name in every if name in chosen)
    return tuple(dict.fromkeys(part or "the whole network" for part in outermost))


def _prefixes(name: str) -> Iterator[str]:
    """ "", "a", "a.b" of the parameter "a.b", outermost first."""
    parts = name.split(".")
    for count in range(len(parts) + 1):
        yield ".".join(parts[:count])


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _norm(grad: Tensor | None, parameter: Tensor) -> Float[Tensor, ""]:
    return parameter.new_zeros((), dtype=torch.float32) if grad is None else grad.float().norm()
