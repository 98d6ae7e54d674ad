"""The record of an overfit gate, as the single-pair guide asks its user to keep one: words, numbers, curve and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from plumbline.curve import Curve
from plumbline.data.canonical import validity
from plumbline.data.pair import Pair, ViewFacts, facts
from plumbline.depth_sheet import RenderedRow, Row, SheetRow, draw_sheet
from plumbline.errors import DataError
from plumbline.files import atomic_folder, read_json, write_json
from plumbline.overfit_verdict import Outcome, Run, State, Verdict

FORMAT_VERSION = 1
PASSED = "passed.json"
_FURTHER = {"rotation_error_deg": "rotation, degrees", "psnr": "PSNR of targets, dB"}


@dataclass(frozen=True)
class SampleFacts:
    """What a system is to fit: where it is from, the range a method may look in (metres), and its views, the reference first."""

    dataset: str
    scene: str
    depth_range: tuple[float, float]
    views: tuple[ViewFacts, ...]
    other: str


def sample_facts(pair: Pair, *, other: str) -> SampleFacts:
    """The facts of an extracted sample; `other` says in words what its system's input was exchanged for."""
    scene = pair.scene
    return SampleFacts(scene.dataset, scene.name, scene.depth_range, tuple(facts(pair)), other)


def write_record(
    out: Path,
    verdict: Verdict,
    *,
    run: Run | None,
    sample: SampleFacts,
    configuration: Mapping[str, Any],
    log_steps: Sequence[int],
    sheets: Mapping[int, Sequence[Row]] | None = None,
) -> None:
    """Write `out` at once: record.md, verdict.json, passed.json and, of a training, curve.csv and step_<n>.png.

    curve.csv has a row a step, a picture shows the rows of `sheets` for its step. passed.json says no more than the name and
    whether the gate passed: a gate that runs again with the same answer then gives nobody cause to train again.
    """
    with atomic_folder(out) as folder:
        if run is not None:
            _write_curve(folder / "curve.csv", run)
        for step, rows in (sheets or {}).items():
            draw_sheet(rows, folder / f"step_{step}.png", method=f"{verdict.system}, step {step}")
        write_json(folder / PASSED, {"system": verdict.system, "passed": verdict.passed})
        content = {
            "format": FORMAT_VERSION,
            **verdict.model_dump(mode="json"),
            "sample": asdict(sample),
            "configuration": dict(configuration),
            "run": None if run is None else _numbers(run),
        }
        write_json(folder / "verdict.json", content)
        text = markdown(verdict, run=run, sample=sample, configuration=configuration, log_steps=log_steps)
        (folder / "record.md").write_text(text, encoding="utf-8")


def sheet(pair: Pair, depth: Float32[np.ndarray, "p h w"]) -> list[SheetRow]:
    """A row for each view that a system is given: its image, the depth predicted for the leading ones (metres), the truth."""
    scene, views = pair.scene, pair.only("context").views
    rows = []
    for place, view in enumerate(views):
        image = np.asarray(scene.images[view])
        predicted = depth[place] if place < len(depth) else np.zeros(image.shape[:2], np.float32)
        others = tuple(scene.view_names[other] for other in views if other != view)
        truth = _truth(pair, view)
        metrics = {} if truth is None or place >= len(depth) else {"abs_rel": _abs_rel(predicted, truth)}
        rows.append(SheetRow(scene.view_names[view], others, image, predicted, truth, metrics))
    return rows


def rendered_sheet(
    pair: Pair, colours: Float32[np.ndarray, "t h w 3"], depth: Float32[np.ndarray, "t h w"] | None
) -> list[RenderedRow]:
    """A row for each view that was rendered: what is to be seen there, the colours in [0, 1] and depth (metres) found."""
    scene, given = pair.scene, pair.only("context").views
    names = tuple(scene.view_names[view] for view in given)
    return [
        RenderedRow(
            scene.view_names[view],
            names,
            np.asarray(scene.images[view]),
            colours[place],
            None if depth is None else depth[place],
        )
        for place, view in enumerate(pair.only("target").views)
    ]


def _truth(pair: Pair, view: int) -> Float32[np.ndarray, "h w"] | None:
    scene = pair.scene
    if scene.depth is None:
        return None
    depth = np.asarray(scene.depth[view])
    known = validity(depth, None if scene.mask is None else np.asarray(scene.mask[view]))
    return np.where(known, depth, np.float32(0))


def _abs_rel(predicted: Float32[np.ndarray, "h w"], truth: Float32[np.ndarray, "h w"]) -> float:
    """The gate's depth error of one view; NaN where nothing is measured."""
    known = truth > 0
    return float(np.mean(np.abs(predicted[known] - truth[known]) / truth[known])) if known.any() else math.nan


def record_files(folder: Path) -> dict[str, Any]:
    """What is to be logged of a gate's folder: its curve, its pictures by step, and the folder itself."""
    curve = folder / "curve.csv"
    pictures = {int(path.stem.removeprefix("step_")): path for path in folder.glob("step_*.png")}
    return {
        "curve": curve if curve.is_file() else None,
        "pictures": dict(sorted(pictures.items())),
        "artifacts": [folder],
    }


def read_verdict(folder: Path) -> Verdict:
    """The verdict in a gate's folder; DataError when it is absent or of another format."""
    content = read_json(folder / "verdict.json")
    if content.get("format") != FORMAT_VERSION:
        raise DataError(
            f"{folder}/verdict.json has format {content.get('format')}; expected {FORMAT_VERSION}. Run the gate again: "
            f"dvc repro -f overfit_pair@{folder.name}"
        )
    return Verdict(**{name: content[name] for name in Verdict.model_fields})


def _write_curve(path: Path, run: Run) -> None:
    columns = list(dict.fromkeys(name for row in run.curve for name in row)) or ["step"]
    curve = Curve(path, after=0)
    for row in run.curve:
        curve.append(row, columns=columns)
    if not run.curve:
        path.write_text(",".join(columns) + "\n", encoding="utf-8")


def _numbers(run: Run) -> dict[str, Any]:
    """What was measured, less the curve; what is not finite becomes null."""
    kept = {name: value for name, value in asdict(run).items() if name != "curve"}
    return {name: _plain(value) for name, value in kept.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(
    verdict: Verdict,
    *,
    run: Run | None,
    sample: SampleFacts,
    configuration: Mapping[str, Any],
    log_steps: Sequence[int],
) -> str:
    """The record in words and tables: verdict, data, configuration, steps, observations, conclusion."""
    parts = [
        f"# Overfit gate: {verdict.system}\n\n**{'Passed' if verdict.passed else 'Failed'}.** {verdict.conclusion}",
        _list(verdict.diagnosis),
        "## Criteria\n\n" + _outcomes(verdict.criteria),
        "## Data\n\n" + _data(sample),
        "## Configuration\n\n" + _configuration(configuration, run),
    ]
    if run is not None:
        parts += ["## Steps\n\n" + _steps(run, log_steps), "## Observations\n\n" + _list(verdict.observations)]
    if verdict.guide:
        about = "The single-pair guide's own thresholds, for comparison; they have no say.\n\n"
        parts.append("## The guide's thresholds\n\n" + about + _outcomes(verdict.guide))
    parts.append("## Conclusion\n\n" + verdict.conclusion)
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcomes(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (o.name, "–" if o.value is None else f"{o.value:.4g}", o.expected, "yes" if o.met else "**no**", o.remark)
        for o in outcomes
    ]
    return _table(("criterion", "value", "expected", "met", "remark"), rows)


def _data(sample: SampleFacts) -> str:
    low, high = sample.depth_range
    head = (
        f"{sample.dataset}/{sample.scene}, {len(sample.views)} views; methods may look from {low:g} to {high:g} m. To learn "
        f"whether it looks, the system was also shown {sample.other}."
    )
    rows = [
        (
            view.name,
            f"{view.size[0]}x{view.size[1]}",
            f"{view.measured} / {view.pixels} ({100 * view.share:.1f} %)",
            "–" if view.nearest is None else f"{view.nearest:.2f} to {view.farthest:.2f}",
        )
        for view in sample.views
    ]
    return f"{head}\n\n{_table(('view', 'size', 'measured pixels', 'depth, m'), rows)}"


def _configuration(configuration: Mapping[str, Any], run: Run | None) -> str:
    rows = [(name, f"`{value}`") for name, value in configuration.items()]
    if run is not None:
        rows += [("trainable weights", f"{run.parameters}"), ("device", run.device), ("seconds", f"{run.seconds:.1f}")]
    return _table(("", "value"), rows)


def _steps(run: Run, log_steps: Sequence[int]) -> str:
    """Rows before and after training and at `log_steps`: the training loss is of before a step, the rest of after it."""
    names = [name for name in run.untrained.losses if name != "loss"]
    further = list(run.untrained.further)
    header = ("step", "training loss", "loss after", *names, "depth error", *(_FURTHER[name] for name in further))
    rows = [("untrained", "–", *_cells(run.untrained, names))]
    for row in run.curve:
        if int(row["step"]) in log_steps or row is run.curve[-1]:
            rows.append((f"{row['step']:.0f}", _number(row.get("train/loss")), *_row_cells(row, names, further)))
    note = (
        "The training loss is taken before a step's update, all else after it, in inference. Depth error: mean of "
        f"|predicted - true| / true over measured pixels, 1 where nothing is predicted; {run.unit}."
    )
    return f"{_table(header, rows)}\n\n{note} Every step is in `curve.csv`."


def _cells(state: State, names: Sequence[str]) -> list[str]:
    values = [state.losses.get("loss"), *(state.losses.get(name) for name in names), state.depth_error]
    return [_number(value) for value in [*values, *state.further.values()]]


def _row_cells(row: Mapping[str, float], names: Sequence[str], further: Sequence[str]) -> list[str]:
    keys = ["loss", *names, "depth_error", *further]
    return [_number(row.get(f"val/{key}")) for key in keys]


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
