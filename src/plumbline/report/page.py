"""Build the report from files: reports/{report.html, report.md, metrics.json, headline.json}."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.config import DatasetConfig, EvaluationConfig, ReportConfig, SuiteConfig
from plumbline.curve import read_curve as read_training_curve
from plumbline.evaluation import OVERFIT, assemble_metrics, headline, read_curve, read_scene_means, read_summary
from plumbline.files import atomic_path, read_json, write_json
from plumbline.report import published
from plumbline.report.chosen import RULE, Chosen, choose
from plumbline.report.datasets import DatasetVerdict, read_datasets
from plumbline.report.figures import Chart, Strip, curve, sparsification, strips
from plumbline.report.gates import Gate, gate_metrics, read_gates, refuse_name
from plumbline.report.novel import (
    VIEW_COLUMNS,
    NovelSuite,
    Sweep,
    ViewVerdict,
    read_novel,
    read_sweeps,
    rendered_suites,
    view_verdicts,
)
from plumbline.report.novel_samples import BESIDE, Orbit, ViewChosen, choose_views, read_orbit
from plumbline.report.novel_samples import RULE as VIEW_RULE
from plumbline.report.numbers import COUNT, SECONDS, Number, lookup
from plumbline.report.pictures import gradient
from plumbline.report.provenance import Provenance, collect
from plumbline.report.results import (
    CAMERA_COLUMNS,
    COLUMNS,
    CameraVerdict,
    Comparison,
    SuiteResult,
    Tally,
    camera_verdicts,
    compare,
    read_results,
    tally,
)

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class MethodFacts:
    """What a method may look at, what it ran on, and what it took: weights, the process's peak memory in GB."""

    method: str
    inputs: tuple[str, ...]
    oracle: bool
    parameters: Number | None
    memory: Number | None
    device: str
    notes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Training:
    """A trained system: facts by name, and charts of its curve."""

    system: str
    facts: tuple[tuple[str, Number | str], ...]
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class NovelViews:
    """The section on novel views: tables, verdicts and sweeps; by system and suite, pictures and an orbit."""

    suites: tuple[NovelSuite, ...]
    verdicts: tuple[ViewVerdict, ...]
    sweeps: tuple[Sweep, ...]
    chosen: Mapping[tuple[str, str], Sequence[ViewChosen]]
    orbits: Mapping[tuple[str, str], Orbit]


@dataclass(frozen=True)
class Page:
    """All that the templates show."""

    title: str
    systems: tuple[str, ...]
    seed: int
    methods: tuple[MethodFacts, ...]
    results: tuple[SuiteResult, ...]
    comparisons: tuple[Comparison, ...]
    tallies: tuple[Tally, ...]
    cameras: tuple[CameraVerdict, ...]
    novel: NovelViews
    gates: tuple[Gate, ...]
    charts: Mapping[str, Chart]
    uncertainty: Mapping[str, Chart]
    chosen: Mapping[str, Mapping[str, Sequence[Chosen]]]
    training: tuple[Training, ...]
    datasets: tuple[DatasetVerdict, ...]
    provenance: Provenance
    average: str

    @property
    def is_generated(self) -> bool:
        """Whether any data set consists of generated scenes."""
        return any(dataset.is_generated for dataset in self.datasets)

    @property
    def depth_methods(self) -> tuple[MethodFacts, ...]:
        """The methods that have a row of depth metrics in some suite."""
        return tuple(m for m in self.methods if any(result.line(m.method) for result in self.results))


def build_report(
    root: Path,
    *,
    methods: Sequence[str],
    suites: Mapping[str, SuiteConfig],
    datasets: Mapping[str, DatasetConfig],
    report: ReportConfig,
    evaluation: EvaluationConfig,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Write the four report files to `out` (default: root/reports) and return the content of metrics.json.

    Reads, below `root`: scores/, predictions/, data/scenes/, data/checks/, runs/train/, runs/overfit/, params.yaml, dvc.lock,
    src/ and stages/. `methods` are the rows of the tables, in this order; `suites` the test suites. Raises DataError when
    scores are missing; checks, gates and training curves that do not exist are left out, and the page says so.
    """
    refuse_name(list(suites))
    out = root / "reports" if out is None else out
    metrics = assemble_metrics(root / "scores", methods)
    gates = gate_metrics(root, methods)
    metrics |= {OVERFIT: gates} if gates else {}
    page = collect_page(
        root, methods=methods, suites=suites, datasets=datasets, report=report, evaluation=evaluation, seed=seed
    )
    for name in ("report.html", "report.md"):
        text = render(page, name)
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(out / "metrics.json", metrics)
    write_json(out / "headline.json", headline(metrics))
    return metrics


def collect_page(
    root: Path,
    *,
    methods: Sequence[str],
    suites: Mapping[str, SuiteConfig],
    datasets: Mapping[str, DatasetConfig],
    report: ReportConfig,
    evaluation: EvaluationConfig,
    seed: int,
) -> Page:
    """Gather everything the page shows."""
    everything = read_results(root, methods, list(suites))
    # Suites of rendered views have a section of their own, their depth included.
    elsewhere = rendered_suites(root, methods)
    results = [result for result in everything if result.name not in elsewhere]
    rendered = [result for result in everything if result.name in elsewhere]
    others = [method for method in ("plane_sweep", "median_plane", "constant") if method in methods]
    shown = tuple(system for system in report.systems if system in methods)
    comparisons = compare(root, results, shown, others, bootstrap=evaluation.bootstrap, seed=evaluation.seed)
    return Page(
        title=report.title,
        systems=shown,
        seed=seed,
        methods=tuple(_facts(root, method) for method in methods),
        results=tuple(results),
        comparisons=tuple(comparisons),
        tallies=tuple(tally(comparisons)),
        cameras=tuple(camera_verdicts(results, shown)),
        novel=_novel_views(root, rendered, methods, suites, systems=shown, evaluation=evaluation),
        gates=tuple(read_gates(root, methods)),
        charts={result.name: _strip_chart(root, result, methods) for result in results},
        uncertainty=_uncertainty(root, results, methods),
        chosen={system: _chosen(root, system, results, suites) for system in shown},
        training=tuple(_training(root, method) for method in methods if _is_trained(root, method)),
        datasets=tuple(read_datasets(root, datasets)),
        provenance=collect(root),
        average=_average(evaluation),
    )


def _chosen(
    root: Path, system: str, results: Sequence[SuiteResult], suites: Mapping[str, SuiteConfig]
) -> dict[str, Sequence[Chosen]]:
    """The samples of every suite in which the system has a row."""
    return {
        result.name: choose(root, system, result.name, suites[result.name], alignment=result.alignment)
        for result in results
        if result.line(system) is not None
    }


def _novel_views(
    root: Path,
    results: Sequence[SuiteResult],
    methods: Sequence[str],
    suites: Mapping[str, SuiteConfig],
    *,
    systems: Sequence[str],
    evaluation: EvaluationConfig,
) -> NovelViews:
    """The section on novel views; pictures and orbits are of the suites that stand alone."""
    novel = read_novel(root, results, methods, suites, systems=systems)
    alone, sweeps = read_sweeps(novel, suites, methods)
    pairs = [(system, suite) for system in systems for suite in alone if system in suite.rendering]
    chosen = {
        (system, suite.name): choose_views(
            root, system, suite.name, suites[suite.name], [m for m in BESIDE if m in suite.rendering and m != system]
        )
        for system, suite in pairs
    }
    orbits = {(system, suite.name): read_orbit(root, system, suite.name) for system, suite in pairs}
    return NovelViews(
        suites=tuple(alone),
        verdicts=tuple(view_verdicts(root, alone, systems, bootstrap=evaluation.bootstrap, seed=evaluation.seed)),
        sweeps=tuple(sweeps),
        chosen=chosen,
        orbits={pair: orbit for pair, orbit in orbits.items() if orbit is not None},
    )


def _average(evaluation: EvaluationConfig) -> str:
    if evaluation.average == "scenes":
        return "Mean over the samples of a scene, then over scenes"
    return f"Mean over batches of {evaluation.batch_size} samples, then over batches"


def render(page: Page, name: str) -> str:
    """Return the text of `report.html` or `report.md`. HTML is escaped by the template engine, numbers carry their sources."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    is_html = name.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    constants: dict[str, Any] = {"columns": COLUMNS, "rule": RULE, "published": published, "gradient": gradient}
    constants |= {"camera_columns": CAMERA_COLUMNS, "view_columns": VIEW_COLUMNS}
    constants["view_rule"] = VIEW_RULE
    return environment.get_template(f"{name}.jinja").render(page=page, **constants)


def _facts(root: Path, method: str) -> MethodFacts:
    content, file = read_summary(root / "scores" / method), f"scores/{method}/summary.json"
    abouts = [summary["about"] for summary in content["suites"].values()]
    notes = {f"{key}: {value}" for about in abouts for key, value in about["notes"].items()}
    pairs = sorted(tuple(note.split(": ", 1)) for note in notes)
    return MethodFacts(
        method=method,
        inputs=tuple(abouts[0]["inputs"]),
        oracle=abouts[0]["oracle"],
        parameters=lookup(content, file, "parameters", spec=","),
        memory=lookup(content, file, "peak_memory_gb", spec=SECONDS),
        device=abouts[0]["device"],
        notes=tuple((key, value) for key, value in pairs),
    )


def _strip_chart(root: Path, result: SuiteResult, methods: Sequence[str]) -> Chart:
    rows = []
    for line in result.lines:
        file = root / "scores" / line.method / f"{result.name}_scenes.csv"
        by_scene = read_scene_means(file, alignment=result.alignment)
        values = [scene["abs_rel"] for scene in by_scene.values() if "abs_rel" in scene]
        mean = line.cells[0].number
        if mean is not None:
            ends = [None if end is None else end.value for end in (line.low, line.high)]
            rows.append(Strip(line.method, values, mean.value, ends[0], ends[1]))
    return strips(result.name, rows, methods, metric=result.metric)


def _uncertainty(root: Path, results: Sequence[SuiteResult], methods: Sequence[str]) -> dict[str, Chart]:
    charts = {}
    for result in results:
        files = {method: root / "scores" / method / f"{result.name}_sparsification.csv" for method, _ in result.area}
        curves = {method: read_curve(file) for method, file in files.items()}
        if curves:
            charts[result.name] = sparsification(result.name, curves, methods)
    return charts


def _is_trained(root: Path, method: str) -> bool:
    return (root / "runs/train" / method / "curve.csv").is_file()


def _training(root: Path, system: str) -> Training:
    folder = root / "runs/train" / system
    rows = read_training_curve(folder / "curve.csv")
    columns = {name for row in rows for name in row}
    charts = []
    losses = {
        name: label for name, label in (("train/loss", "training"), ("val/loss", "validation")) if name in columns
    }
    if losses:
        charts.append(curve(rows, losses, title=f"{system}: loss", ylabel="loss"))
    # A system whose predictions are in no known unit is validated after median alignment, under the other name.
    for error in ("abs_rel", "abs_rel_median"):
        if f"val/{error}" in columns:
            charts.append(curve(rows, {f"val/{error}": "validation"}, title=f"{system}: {error}", ylabel=error))
    if "val/psnr" in columns:
        known = {"val/psnr": "validation"}
        charts.append(curve(rows, known, title=f"{system}: rendered views", ylabel="PSNR, dB", logarithmic=False))
    return Training(system, _training_facts(folder, system), tuple(charts))


def _training_facts(folder: Path, system: str) -> tuple[tuple[str, Number | str], ...]:
    if not (folder / "summary.json").is_file():
        return ()
    content, file = read_json(folder / "summary.json"), f"runs/train/{system}/summary.json"
    listed = (
        ("steps", "steps", COUNT),
        ("best step", "best_step", COUNT),
        ("best validation value", "best", ".4f"),
        ("seconds", "seconds", SECONDS),
        ("samples per second", "samples_per_second", SECONDS),
        ("peak memory, GB", "peak_memory_gb", SECONDS),
        ("parameters", "parameters", COUNT),
    )
    numbers = [(label, lookup(content, file, key, spec=spec)) for label, key, spec in listed]
    facts: list[tuple[str, Number | str]] = [(label, number) for label, number in numbers if number is not None]
    return (*facts, ("device", str(content.get("device", "unknown"))))
