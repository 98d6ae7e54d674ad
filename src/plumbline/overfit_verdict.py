"""Can a system fit one sample? The criteria, the verdict, and what an unmet criterion most likely comes from.

Numbers in, words out: nothing here trains, reads or writes. See `plumbline.overfit` for how the numbers are measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from plumbline.data.checks.records import SceneCheck
from plumbline.errors import PlumblineError

# Weights of a network that is trained on one sample grow by a few ten percent; at a step size that is far too large by orders.
_GROWTH = 4.0
_ROSE = 2.0
# A loss that still fell by this factor over the last tenth of the steps has not been given enough of them.
_STILL_FALLING = 0.8
_ENOUGH_STEPS = 20
# The median depth error and the texture correlation from which a reading of a sample is taken to be the true one.
_CONSISTENT = 0.03
_FOLLOWS = 0.3


PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    # Its total counts what it gains on the initial depth, and so goes below zero.
    "deltaz": {"input_losses": ("depth",)},
    # Its total keeps the entropy of its labels and of its matches; batch norm and random keypoints tell its modes apart.
    "deltas": {"input_losses": ("depth_full",), "same_loss": 0.05},
    "vggt": {
        "depth_reduction": None,
        "losses": {"camera": 1e-3, "depth_regression": 0.01},
        "abs_rel": 0.02,
        "rotation_deg": 0.5,
        "input_losses": ("camera", "depth_regression"),
    },
    # Colours come with the images whatever the network does; its depth it has to find.
    "depthsplat": {"depth_reduction": 10.0, "psnr": 30.0, "input_losses": ("depth",)},
}


class Criteria(BaseModel):
    """What must hold; null: not asked for. `preset` fills what PRESETS lists for it; a value given beside it wins.

    Losses are named as the system names them, "loss" being their weighted total.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["plain", "deltaz", "deltas", "vggt", "depthsplat"] = "plain"
    data: bool = Field(default=True, description="the sample's geometry must be shown to be true, first of all")
    depth_reduction: float | None = Field(
        default=20.0, gt=1, description="depth error of the untrained network over that of the trained one, at least"
    )
    losses: dict[str, PositiveFloat] = Field(default={}, description="what these must end below, in their own units")
    abs_rel: PositiveFloat | None = Field(
        default=None, description="what the depth error must end below, depth in metres"
    )
    rotation_deg: PositiveFloat | None = Field(default=None, description="of the worst predicted rotation")
    psnr: PositiveFloat | None = Field(
        default=None, description="dB that rendered target views must reach, in their mean"
    )
    input_ratio: float | None = Field(
        default=10.0, gt=1, description="with another sample's images the loss must be this many times higher"
    )
    input_losses: tuple[str, ...] = Field(
        default=("loss",), min_length=1, description="whose sum that is; a total that goes below 0 has no ratio"
    )
    same_loss: PositiveFloat = Field(
        default=1e-5,
        description="largest difference of a loss in training and in inference on equal weights (relative above 1)",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset", "plain"), {}), **values}


@dataclass(frozen=True)
class Threshold:
    """A rule of the single-pair guide: the sum of `components` below `limit`; without any, that training is stable."""

    name: str
    components: tuple[str, ...]
    limit: float | None
    remark: str


GUIDE = (
    Threshold(
        "loss_objective",
        ("loss",),
        0.01,
        "Necessary, and no sign of convergence: the confidence term e c - alpha ln c has no lower bound (for an error e "
        "below alpha its best value is alpha - alpha ln(alpha / e)), so the objective passes 0 half-way and goes on to "
        "about -0.5 to -1 instead of to zero.",
    ),
    Threshold("loss_camera", ("camera",), 0.001, "The same as ours."),
    Threshold(
        "loss_depth",
        ("depth_confidence", "depth_regression", "depth_gradient"),
        0.01,
        "No trainer logs this name. Shown is the sum of the three depth terms, which goes below zero with its confidence "
        "term; ours is the regression term, in units of the scene.",
    ),
    Threshold(
        "stable training",
        (),
        None,
        "Finite values and gradients are ours too; a loss that falls at every step is not: confidence overshoots, and its "
        "term rises for a while in runs that converge.",
    ),
)


@dataclass(frozen=True)
class State:
    """A network in inference on its sample: each loss, the mean relative depth error (NaN without true depth), the worst
    rotation (degrees) and the mean PSNR of what it renders (dB), None where there is no such thing.
    """

    losses: Mapping[str, float]
    depth_error: float
    rotation_deg: float | None = None
    psnr: float | None = None

    @property
    def further(self) -> dict[str, float]:
        """What only some systems are measured by, by the name of its criterion."""
        found = {"rotation_error_deg": self.rotation_deg, "psnr": self.psnr}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class NonFinite:
    """Where a run met a value that is not finite: the step (from 1), and which loss or gradient it was."""

    step: int
    what: str


@dataclass(frozen=True)
class Run:
    """What a fit on one sample showed.

    `curve` has a row a step, losses before its update. `training_losses` are those of the trained network in training mode,
    `swapped_losses` those with another sample's images. Modules by name: `frozen` without being meant to, `idle` that no
    gradient reached, `broken` whose gradient was not finite. `unconnected` losses do not depend on the network, `blank`
    inputs show nothing. `unit` says what depth was compared in.
    """

    lr: float
    steps: int
    curve: tuple[Mapping[str, float], ...]
    untrained: State
    trained: State
    training_losses: Mapping[str, float]
    swapped_losses: Mapping[str, float]
    inputs: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    unconnected: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    non_finite: NonFinite | None = None
    unit: str = "metres"
    parameters: int = 0
    seconds: float = 0.0
    device: str = "cpu"


class Outcome(BaseModel):
    """One criterion: what was measured (None: nothing finite), what was asked for, in words, and whether it is met."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | None = None
    expected: str
    met: bool
    remark: str = ""


class Verdict(BaseModel):
    """Whether a system fits its sample, by criteria, and what is wrong where one is not met."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    passed: bool
    criteria: tuple[Outcome, ...]
    diagnosis: tuple[str, ...] = ()
    guide: tuple[Outcome, ...] = ()
    observations: tuple[str, ...] = ()
    conclusion: str


def judge(name: str, criteria: Criteria, *, check: SceneCheck | None, run: Run | None, guide: bool = False) -> Verdict:
    """The verdict on system `name`, from the check of its sample and the fit to it (None: not run, the data are not true).

    With `guide` the single-pair guide's thresholds stand beside, without a say.
    """
    data = _data(check) if criteria.data else []
    trained = [] if run is None else _trained(run, criteria)
    outcomes = (*data, *trained)
    failed = [outcome for outcome in outcomes if not outcome.met]
    passed = run is not None and not failed
    diagnosis = [*_of_data(check, data), *([] if run is None or passed else diagnose(run, outcomes))]
    return Verdict(
        system=name,
        passed=passed,
        criteria=outcomes,
        diagnosis=tuple(diagnosis),
        guide=() if run is None or not guide else tuple(_beside(threshold, run) for threshold in GUIDE),
        observations=() if run is None else observations(run),
        conclusion=_conclusion(name, passed=passed, failed=failed, run=run),
    )


def data_is_true(check: SceneCheck) -> bool:
    """Whether the sample's geometry was shown to be true: one that cannot be judged was not."""
    return check.verdict == "ok"


def require_passed(verdict: Verdict, *, record: str) -> None:
    """PlumblineError with the diagnosis when the verdict is not passed; `record` is where to read more."""
    if not verdict.passed:
        lines = "\n".join(f"  - {line}" for line in verdict.diagnosis)
        raise PlumblineError(f"{verdict.conclusion}\n{lines}\nAll that was measured is in {record}.")


def summary(verdict: Verdict) -> str:
    """The verdict in lines for a terminal: the conclusion, then each criterion with what was measured."""
    lines = [
        f"  {o.name}: {_text(o.value)}, expected {o.expected}{'' if o.met else ' (not met)'}" for o in verdict.criteria
    ]
    return "\n".join([verdict.conclusion, *lines])


def numbers(verdict: Verdict) -> dict[str, float]:
    """What is logged of a verdict: every criterion that has a finite value by name, and whether it passed (1) or not (0)."""
    measured = {o.name.replace(" ", "_"): o.value for o in verdict.criteria if o.value is not None}
    return {f"overfit/{name}": value for name, value in {**measured, "passed": float(verdict.passed)}.items()}


# --- criteria --------------------------------------------------------------------------------------------------------


def _data(check: SceneCheck | None) -> list[Outcome]:
    error = None if check is None or check.as_read is None else check.as_read.error
    met = check is not None and data_is_true(check)
    expected = "verdict ok, poses, depth, K and images agreeing"
    return [
        Outcome(name="data", value=error, expected=expected, met=met, remark=check.verdict if check else "not checked")
    ]


def _trained(run: Run, criteria: Criteria) -> list[Outcome]:
    return [
        _none_of("finite", [] if run.non_finite is None else [run.non_finite.what], "every loss and gradient finite"),
        _none_of("input", run.blank, "inputs that show something"),
        _none_of("connected", run.unconnected, "every loss depends on the network"),
        _none_of("trainable", run.frozen, "no module frozen unless said so"),
        _none_of("gradients", [*run.idle, *run.broken], "finite and not zero in every trainable module"),
        *_depth(run, criteria),
        *(_below(f"loss {name}", _sum(run.trained.losses, (name,)), limit) for name, limit in criteria.losses.items()),
        *_cameras(run, criteria),
        *_pictures(run, criteria),
        *_looks(run, criteria),
        _same(run, criteria),
    ]


def _none_of(name: str, found: Sequence[str], expected: str) -> Outcome:
    return Outcome(name=name, value=float(len(found)), expected=expected, met=not found, remark=_some(found))


def _depth(run: Run, criteria: Criteria) -> list[Outcome]:
    found = []
    if criteria.depth_reduction is not None:
        reduction = run.untrained.depth_error / max(run.trained.depth_error, 1e-12)
        found.append(_at_least("depth_reduction", reduction, criteria.depth_reduction))
    if criteria.abs_rel is not None:
        found.append(_below("abs_rel", run.trained.depth_error, criteria.abs_rel))
    return found


def _cameras(run: Run, criteria: Criteria) -> list[Outcome]:
    if criteria.rotation_deg is None:
        return []
    error = run.trained.rotation_deg
    return [_below("rotation_error_deg", math.nan if error is None else error, criteria.rotation_deg)]


def _pictures(run: Run, criteria: Criteria) -> list[Outcome]:
    if criteria.psnr is None:
        return []
    found = run.trained.psnr
    return [_at_least("psnr", math.nan if found is None else found, criteria.psnr)]


def _looks(run: Run, criteria: Criteria) -> list[Outcome]:
    if criteria.input_ratio is None:
        return []
    own, other = (_sum(losses, criteria.input_losses) for losses in (run.trained.losses, run.swapped_losses))
    names = " + ".join(criteria.input_losses)
    outcome = _at_least("input_ratio", other / own if own > 0 else math.nan, criteria.input_ratio)
    return [outcome.model_copy(update={"remark": f"{names}: {own:.3g}, with another sample's images {other:.3g}"})]


def _same(run: Run, criteria: Criteria) -> Outcome:
    gaps = {name: _gap(value, run.trained.losses.get(name, math.nan)) for name, value in run.training_losses.items()}
    worst = max(gaps, key=lambda name: gaps[name] if math.isfinite(gaps[name]) else math.inf, default="")
    outcome = _below("train_validation_gap", gaps.get(worst, math.nan), criteria.same_loss)
    return outcome.model_copy(update={"remark": f"largest in {worst}" if worst else ""})


def _gap(training: float, inference: float) -> float:
    return abs(training - inference) / max(1.0, abs(training), abs(inference))


def _sum(losses: Mapping[str, float], names: Sequence[str]) -> float:
    return math.fsum(losses.get(name, math.nan) for name in names)


def _below(name: str, value: float, limit: float) -> Outcome:
    return Outcome(name=name, value=_finite(value), expected=f"below {limit:g}", met=value < limit)


def _at_least(name: str, value: float, limit: float) -> Outcome:
    return Outcome(name=name, value=_finite(value), expected=f"at least {limit:g}", met=value >= limit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _beside(threshold: Threshold, run: Run) -> Outcome:
    if threshold.limit is None:
        rises = _rises(run.curve)
        stable = run.non_finite is None and not run.broken and not rises
        expected = "no NaN, normal gradients, monotone loss"
        return Outcome(
            name=threshold.name, value=float(len(rises)), expected=expected, met=stable, remark=threshold.remark
        )
    outcome = _below(threshold.name, _sum(run.trained.losses, threshold.components), threshold.limit)
    return outcome.model_copy(update={"remark": threshold.remark})


# --- diagnosis -------------------------------------------------------------------------------------------------------


def diagnose(run: Run, outcomes: Sequence[Outcome]) -> list[str]:
    """Why criteria are not met, the likeliest root first. What is shown by more than one sign is said once."""
    roots = [*_structure(run), *_step_size(run)]
    unmet = {outcome.name: outcome for outcome in outcomes if not outcome.met}
    found = [*roots, *_outcome_lines(run, unmet)]
    if not roots and unmet and _still_falling(run.curve):
        found.append("The loss was still falling at the last step: give it more steps.")
    return found or [
        f"{outcome.name} is {_text(outcome.value)}, expected {outcome.expected}." for outcome in unmet.values()
    ]


def _structure(run: Run) -> list[str]:
    found = []
    if run.blank:
        found.append(
            f"The input is blank: {_some(run.blank)} has the same value everywhere. Look at how the sample is loaded."
        )
    if run.unconnected:
        found.append(
            f"Detached: loss {_some(run.unconnected)} does not depend on any trainable weight. Look for detach(), no_grad() "
            "or a copy through numpy between the network and the loss."
        )
    if run.frozen:
        found.append(
            f"Frozen: {_some(run.frozen)} has requires_grad off and stays as it was drawn. Unfreeze it, or name it in "
            "`frozen` if it is meant to rest."
        )
    if run.idle and not (run.unconnected or run.blank):
        found.append(f"No gradient reaches {_some(run.idle)}: no loss depends on it, or its path to the loss is cut.")
    return found


def _step_size(run: Run) -> list[str]:
    signs = []
    if run.non_finite is not None:
        signs.append(f"{run.non_finite.what} at step {run.non_finite.step}")
    losses, norms = ([row[name] for row in run.curve if name in row] for name in ("train/loss", "train/weight_norm"))
    growth = max(norms) / max(norms[0], 1e-12) if norms else 1.0
    rose = max(losses) / losses[0] if losses and losses[0] > 0 else 1.0
    if growth > _GROWTH:
        signs.append(f"the weights grew to {growth:.3g} times their norm")
    if rose > _ROSE:
        signs.append(f"the loss rose to {rose:.3g} times its first value")
    if run.non_finite is not None and run.non_finite.step == 1:
        return [
            f"Not finite from the start: {run.non_finite.what} at step 1, before any update. Check the data and the loss."
        ]
    if growth > _GROWTH or (run.non_finite is not None) or (rose > _ROSE and not run.blank):
        return [f"The step size is too large (lr {run.lr:g}): {'; '.join(signs)}. Try a tenth of it."]
    return []


def _outcome_lines(run: Run, unmet: Mapping[str, Outcome]) -> list[str]:
    found = []
    if {"depth_reduction", "abs_rel"} & unmet.keys() and math.isnan(run.untrained.depth_error):
        found.append(
            "The sample has no true depth to compare with: choose one of a data set that has, or set depth_reduction and abs_rel "
            "to null and ask for psnr."
        )
    elif "depth_reduction" in unmet:
        found.append(
            f"The depth error went from {run.untrained.depth_error:.3g} to {run.trained.depth_error:.3g} only "
            f"(relative, {run.unit}): {_text(unmet['depth_reduction'].value)} times less, "
            f"expected {unmet['depth_reduction'].expected}."
        )
    if "psnr" in unmet:
        found.append(_poor_pictures(run, unmet["psnr"]))
    if "input_ratio" in unmet:
        found.append(_not_looking(run, unmet["input_ratio"]))
    if "train_validation_gap" in unmet:
        gap = unmet["train_validation_gap"]
        found.append(
            f"Training and inference disagree on equal weights by {_text(gap.value)} ({gap.remark}), expected "
            f"{gap.expected}: something differs between train() and eval(), such as batch norm, dropout, random draws or "
            "the views that are predicted."
        )
    others = {"abs_rel", "rotation_error_deg", *(name for name in unmet if name.startswith("loss "))}
    return found + [
        f"{name} is {_text(unmet[name].value)}, expected {unmet[name].expected}." for name in unmet if name in others
    ]


def _poor_pictures(run: Run, outcome: Outcome) -> str:
    if run.trained.psnr is None or run.untrained.psnr is None:
        return (
            "Nothing was rendered: the sample has no target views (target in its pair section), or the system renders none. "
            "Without either there is no psnr to ask for."
        )
    return (
        f"What target cameras see went from {run.untrained.psnr:.3g} to {run.trained.psnr:.3g} dB only, expected "
        f"{outcome.expected}: its pictures show what is wrong. Where no context view looks nothing can be known: choose targets "
        "between them."
    )


def _not_looking(run: Run, outcome: Outcome) -> str:
    if outcome.value is None:
        return (
            f"Whether it looks at its input cannot be told ({outcome.remark}): a ratio needs a finite loss above 0. Name "
            "such losses in `input_losses`."
        )
    if outcome.value > 2:
        return (
            f"With another sample's images the loss is {outcome.value:.3g} times as high ({outcome.remark}), expected "
            f"{outcome.expected}: the fit is poor, or a loss that no image can change outweighs it."
        )
    return (
        f"It does not look at its input: with another sample's images the loss is {outcome.value:.3g} times as high "
        f"({outcome.remark}), expected {outcome.expected}. Of the batch it is given {', '.join(run.inputs)}."
    )


def _still_falling(curve: Sequence[Mapping[str, float]]) -> bool:
    losses = [row["train/loss"] for row in curve]
    tenth = max(len(losses) // 10, 1)
    if len(losses) < _ENOUGH_STEPS or losses[-1] <= 0:
        return len(losses) < _ENOUGH_STEPS
    before = math.fsum(losses[-2 * tenth : -tenth]) / tenth
    return math.fsum(losses[-tenth:]) / tenth < _STILL_FALLING * before


def _of_data(check: SceneCheck | None, outcomes: Sequence[Outcome]) -> list[str]:
    if all(outcome.met for outcome in outcomes):
        return []
    if check is None:
        return ["The sample was not checked: nothing shows that its poses, depth, K and images belong together."]
    parts = [f"The data are not shown to be true: {check.diagnosis}."]
    if not _explained(check):
        parts.append("No usual misreading makes them true: depth, poses or images may be of another sample.")
    if check.verdict == "cannot tell":
        parts.append("Choose a sample whose views see the same surface from places further apart.")
    return [" ".join([*parts, "One sample can be memorised with any labels, so nothing was trained."])]


def _explained(check: SceneCheck) -> bool:
    """Whether the sample is consistent as read, or would be under one of the readings that were tried."""
    tried = [found for found in (check.as_read, *check.others) if found is not None]
    return any(
        found.error is not None and found.error < _CONSISTENT and (found.photometric or 0.0) > _FOLLOWS
        for found in tried
    )


# --- words -----------------------------------------------------------------------------------------------------------


def observations(run: Run) -> tuple[str, ...]:
    """What the guide asks to be written down: is the loss monotone, its final values, the first that is not finite."""
    losses = [row["train/loss"] for row in run.curve if math.isfinite(row.get("train/loss", math.nan))]
    if not losses:
        return ("No step gave a finite loss.",)
    rises = _rises(run.curve)
    lowest = min(range(len(losses)), key=losses.__getitem__)
    monotone = "The loss fell at every step."
    if rises:
        often = f"{len(rises)} of {max(len(losses) - 1, 1)} steps"
        monotone = f"The loss is not monotone: it rose at {often}, first at step {rises[0]}."
    final = ", ".join(f"{name} {value:.3g}" for name, value in run.trained.losses.items())
    non_finite = run.non_finite
    return (
        monotone,
        f"The loss went from {losses[0]:.4g} to {losses[-1]:.4g}; its lowest value is {losses[lowest]:.4g}, at step "
        f"{lowest + 1}.",
        f"Final values, in inference: {final}.",
        *(
            []
            if math.isnan(run.trained.depth_error)
            else [
                f"Depth error (relative, {run.unit}): {run.untrained.depth_error:.4g} untrained, "
                f"{run.trained.depth_error:.4g} trained."
            ]
        ),
        *(
            []
            if run.trained.rotation_deg is None
            else [f"Largest rotation error: {run.trained.rotation_deg:.3g} degrees."]
        ),
        *(
            []
            if run.trained.psnr is None or run.untrained.psnr is None
            else [f"Target views (PSNR): {run.untrained.psnr:.4g} dB untrained, {run.trained.psnr:.4g} dB trained."]
        ),
        "Every value was finite."
        if non_finite is None
        else f"First value that was not finite: {non_finite.what}, at step {non_finite.step}.",
    )


def _rises(curve: Sequence[Mapping[str, float]]) -> list[int]:
    """The steps (from 1) whose loss is above the one before."""
    losses = [row.get("train/loss", math.nan) for row in curve]
    return [i + 1 for i in range(1, len(losses)) if losses[i] > losses[i - 1]]


def _conclusion(name: str, *, passed: bool, failed: Sequence[Outcome], run: Run | None) -> str:
    if passed and run is not None:
        return f"{name} fits its sample: all criteria are met after {run.steps} steps."
    if run is None:
        return f"{name} was not trained: its sample is not shown to be true."
    return f"{name} does not fit its sample: {', '.join(outcome.name for outcome in failed)} not met."


def _text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
