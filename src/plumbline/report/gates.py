"""The overfit gates in the page and in metrics.json: can each system fit one sample? Read from `runs/overfit/<system>`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.curve import read_curve
from plumbline.errors import ConfigError
from plumbline.evaluation import OVERFIT
from plumbline.files import read_json
from plumbline.overfit_record import read_verdict
from plumbline.overfit_verdict import Outcome, numbers
from plumbline.report.figures import Chart, curve
from plumbline.report.numbers import Number, pointer
from plumbline.report.pictures import thumbnail

_PRECISION = ".4g"
# The guide's record has a row for each of these steps; here as far as they were evaluated, and the last.
STEPS = (1, 10, 50, 100)
# Shown before the components of the loss, under these names.
_LEADING = {
    "train/loss": "training loss",
    "val/loss": "loss after",
    "val/depth_error": "depth error",
    "val/psnr": "PSNR, dB",
}
# Charts of the record: column, its label, the title, and whether it is drawn logarithmically.
_CHARTS = (
    ("train/loss", "training loss", "loss", True),
    ("val/depth_error", "after the step", "depth error", True),
    ("val/psnr", "after the step", "PSNR, dB", False),
)


@dataclass(frozen=True)
class Criterion:
    """One line of a verdict: what was measured, what was asked for."""

    name: str
    value: Number | None
    expected: str
    met: bool
    remark: str


@dataclass(frozen=True)
class Gate:
    """The verdict on one system, and what its record shows: tables, the loss curve, the picture of the last step."""

    system: str
    passed: bool
    conclusion: str
    criteria: tuple[Criterion, ...]
    diagnosis: tuple[str, ...]
    guide: tuple[Criterion, ...]
    columns: tuple[str, ...]
    steps: tuple[tuple[Number, tuple[Number | None, ...]], ...]
    charts: tuple[Chart, ...]
    picture: tuple[int, str] | None


def read_gates(root: Path, methods: Sequence[str]) -> list[Gate]:
    """The gates of those `methods` that have a record below `root`/runs/overfit, in their order."""
    return [_gate(root, method) for method in methods if _has_record(root, method)]


def gate_metrics(root: Path, methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """{system: {criterion: value}} for metrics.json, `passed` (1 or 0) among them; a criterion without a value is absent."""
    return {
        method: {
            name.removeprefix("overfit/"): value for name, value in numbers(read_verdict(_folder(root, method))).items()
        }
        for method in methods
        if _has_record(root, method)
    }


def refuse_name(suites: Sequence[str]) -> None:
    """ConfigError when a suite has the name that the gates have in metrics.json."""
    if OVERFIT in suites:
        raise ConfigError(f"suites.{OVERFIT}: metrics.json keeps this name for the overfit gates. Rename the suite.")


def _folder(root: Path, method: str) -> Path:
    return root / "runs/overfit" / method


def _has_record(root: Path, method: str) -> bool:
    return (_folder(root, method) / "verdict.json").is_file()


def _gate(root: Path, system: str) -> Gate:
    folder, where = _folder(root, system), f"runs/overfit/{system}"
    verdict, file = read_verdict(folder), f"{where}/verdict.json"
    rows = read_curve(folder / "curve.csv") if (folder / "curve.csv").is_file() else []
    columns = _columns(rows)
    return Gate(
        system=system,
        passed=verdict.passed,
        conclusion=verdict.conclusion,
        criteria=_criteria(verdict.criteria, file, "criteria"),
        diagnosis=verdict.diagnosis,
        guide=_criteria(verdict.guide, file, "guide"),
        columns=tuple(columns.values()),
        steps=tuple(_step(row, columns, f"{where}/curve.csv") for row in _chosen(rows, _logged(folder))),
        charts=_charts(system, rows),
        picture=_last_picture(folder),
    )


def _criteria(outcomes: Sequence[Outcome], file: str, key: str) -> tuple[Criterion, ...]:
    found = []
    for place, outcome in enumerate(outcomes):
        source = pointer(file, key, str(place), "value")
        value = None if outcome.value is None else Number(outcome.value, source, _PRECISION)
        found.append(Criterion(outcome.name, value, outcome.expected, outcome.met, outcome.remark))
    return tuple(found)


def _logged(folder: Path) -> Sequence[int]:
    content: Mapping[str, Any] = read_json(folder / "verdict.json")
    steps: Sequence[int] = content.get("configuration", {}).get("log_steps", STEPS)
    return steps


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Columns of the table of steps: what every system has, then the components of its loss, after a step's update."""
    known = list(dict.fromkeys(name for row in rows for name in row))
    leading = {name: label for name, label in _LEADING.items() if name in known}
    rest = [name for name in known if name.startswith("val/") and name not in leading]
    return {**leading, **{name: name.removeprefix("val/").replace("_", " ") for name in rest}}


def _chosen(rows: Sequence[Mapping[str, float]], logged: Sequence[int]) -> list[Mapping[str, float]]:
    return [row for row in rows if int(row["step"]) in logged or row is rows[-1]]


def _step(row: Mapping[str, float], columns: Mapping[str, str], file: str) -> tuple[Number, tuple[Number | None, ...]]:
    step = f"{row['step']:.0f}"
    cells = (Number(row[name], pointer(file, step, name), _PRECISION) if name in row else None for name in columns)
    return Number(int(row["step"]), pointer(file, step, "step"), "d"), tuple(cells)


def _charts(system: str, rows: Sequence[Mapping[str, float]]) -> tuple[Chart, ...]:
    return tuple(
        curve(rows, {column: label}, title=f"{system}: {title}, one sample", ylabel=title, logarithmic=logarithmic)
        for column, label, title, logarithmic in _CHARTS
        if any(column in row for row in rows)
    )


def _last_picture(folder: Path) -> tuple[int, str] | None:
    """The picture of the last logged step, with that step."""
    pictures = {int(path.stem.removeprefix("step_")): path for path in folder.glob("step_*.png")}
    return (max(pictures), thumbnail(pictures[max(pictures)])) if pictures else None
