"""The record of an overfit gate, as the single-pair guide asks its user to keep one: record.md, verdict.json, curve.csv."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.curve import Curve
from plumbline.errors import DataError
from plumbline.files import atomic_folder, read_json, write_json
from plumbline.overfit_verdict import Outcome, Run, State, Verdict
from plumbline.records import Scene

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ViewFacts:
    """Measured depth of one view: the share of its pixels, and (nearest, farthest) in metres, None without any."""

    name: str
    valid: float
    pixels: int
    depth_range: tuple[float, float] | None


@dataclass(frozen=True)
class SampleFacts:
    """What a system is to fit: where it is from, its size (height, width), and its views, the reference first."""

    dataset: str
    scene: str
    size: tuple[int, int]
    depth_range: tuple[float, float]
    views: tuple[ViewFacts, ...]


def sample_facts(scene: Scene) -> SampleFacts:
    """The facts of a sample that is given as a scene of its views alone."""
    height, width = scene.images.shape[1:3]
    views = tuple(_view_facts(scene, index) for index in range(len(scene.view_names)))
    return SampleFacts(scene.dataset, scene.name, (height, width), scene.depth_range, views)


def _view_facts(scene: Scene, index: int) -> ViewFacts:
    name = scene.view_names[index]
    if scene.depth is None:
        return ViewFacts(name, 0.0, 0, None)
    depth = np.asarray(scene.depth[index])
    valid = depth > 0 if scene.mask is None else (depth > 0) & np.asarray(scene.mask[index])
    measured = depth[valid]
    extent = (float(measured.min()), float(measured.max())) if measured.size else None
    return ViewFacts(name, measured.size / depth.size, int(measured.size), extent)


def write_record(
    out: Path,
    verdict: Verdict,
    *,
    run: Run | None,
    facts: SampleFacts,
    configuration: Mapping[str, Any],
    log_steps: Sequence[int],
) -> None:
    """Write `out` at once: record.md, verdict.json and, where something was trained, curve.csv with a row a step."""
    with atomic_folder(out) as folder:
        if run is not None:
            _write_curve(folder / "curve.csv", run)
        content = {
            "format": FORMAT_VERSION,
            **verdict.model_dump(mode="json"),
            "sample": asdict(facts),
            "configuration": dict(configuration),
            "run": None if run is None else _numbers(run),
        }
        write_json(folder / "verdict.json", content)
        text = markdown(verdict, run=run, facts=facts, configuration=configuration, log_steps=log_steps)
        (folder / "record.md").write_text(text, encoding="utf-8")


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
    return None if isinstance(value, float) and not np.isfinite(value) else value


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(
    verdict: Verdict,
    *,
    run: Run | None,
    facts: SampleFacts,
    configuration: Mapping[str, Any],
    log_steps: Sequence[int],
) -> str:
    """The record in words and tables: verdict, data, configuration, steps, observations, conclusion."""
    parts = [
        f"# Overfit gate: {verdict.system}\n\n**{'Passed' if verdict.passed else 'Failed'}.** {verdict.conclusion}",
        _list(verdict.diagnosis),
        "## Criteria\n\n" + _outcomes(verdict.criteria),
        "## Data\n\n" + _data(facts),
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


def _data(facts: SampleFacts) -> str:
    height, width = facts.size
    low, high = facts.depth_range
    head = (
        f"{facts.dataset}/{facts.scene}, {len(facts.views)} views of {height}x{width}; methods may look from {low:g} to "
        f"{high:g} m."
    )
    rows = [
        (
            view.name,
            f"{view.pixels} / {height * width} ({100 * view.valid:.1f} %)",
            "–" if view.depth_range is None else f"{view.depth_range[0]:.2f} to {view.depth_range[1]:.2f}",
        )
        for view in facts.views
    ]
    return f"{head}\n\n{_table(('view', 'measured pixels', 'depth, m'), rows)}"


def _configuration(configuration: Mapping[str, Any], run: Run | None) -> str:
    rows = [(name, f"`{value}`") for name, value in configuration.items()]
    if run is not None:
        rows += [("trainable weights", f"{run.parameters}"), ("device", run.device), ("seconds", f"{run.seconds:.1f}")]
    return _table(("", "value"), rows)


def _steps(run: Run, log_steps: Sequence[int]) -> str:
    """Rows before and after training and at `log_steps`: the training loss is of before a step, the rest of after it."""
    names = [name for name in run.untrained.losses if name != "loss"]
    extra = [] if run.untrained.rotation_deg is None else ["rotation, degrees"]
    header = ("step", "training loss", "loss after", *names, "depth error", *extra)
    rows = [("untrained", "–", *_cells(run.untrained, names))]
    for row in run.curve:
        if int(row["step"]) in log_steps or row is run.curve[-1]:
            rows.append((f"{row['step']:.0f}", _number(row.get("train/loss")), *_row_cells(row, names, bool(extra))))
    note = (
        "The training loss is taken before a step's update, all else after it, in inference. Depth error: mean of "
        f"|predicted - true| / true over measured pixels, 1 where nothing is predicted; {run.unit}."
    )
    return f"{_table(header, rows)}\n\n{note} Every step is in `curve.csv`."


def _cells(state: State, names: Sequence[str]) -> list[str]:
    values = [state.losses.get("loss"), *(state.losses.get(name) for name in names), state.depth_error]
    return [_number(value) for value in (values if state.rotation_deg is None else [*values, state.rotation_deg])]


def _row_cells(row: Mapping[str, float], names: Sequence[str], cameras: bool) -> list[str]:
    keys = ["loss", *names, "depth_error", *(["rotation_error_deg"] if cameras else [])]
    return [_number(row.get(f"val/{key}")) for key in keys]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
