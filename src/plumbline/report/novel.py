"""Novel views in the report: tables, the verdict and the sweep over given views, from score files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from plumbline.config import ByTarget, SuiteConfig
from plumbline.evaluation import Interval, paired, read_summary
from plumbline.files import read_json
from plumbline.report.figures import Chart, Point, sweep
from plumbline.report.numbers import LARGE, MILLISECONDS, SECONDS, Number, lookup
from plumbline.report.results import Cell, Line, SuiteResult
from plumbline.view_scores import read_view_rows, scene_means

# What a metric of rendered views is called on the page, how it is written, and whether higher is better.
VIEW_COLUMNS = {"psnr": ("PSNR, dB", ".2f", True), "ssim": ("SSIM", ".3f", True), "lpips": ("LPIPS", ".3f", False)}
# What any method must beat: one colour for all pixels, and the given view that is nearest, as it is.
TRIVIAL = ("mean_colour", "nearest_view")
# What a method that learns should beat: the given views, moved by depth that is not learnt.
CLASSICAL = ("warped_view",)


@dataclass(frozen=True)
class ViewCell:
    """One metric of one method with its 95 % interval over scenes; `best` among methods that do not read the truth."""

    metric: str
    number: Number | None
    low: Number | None
    high: Number | None
    best: bool


@dataclass(frozen=True)
class ViewLine:
    """One method in a table of novel views: rendered views, depth of the given ones, and what both take."""

    method: str
    oracle: bool
    cells: tuple[ViewCell, ...]
    depth: Cell
    network: Number | None
    rendering: Number | None
    gaussians: Number | None

    def number(self, metric: str) -> Number | None:
        """The number of one metric of rendered views."""
        return next((cell.number for cell in self.cells if cell.metric == metric), None)


@dataclass(frozen=True)
class NovelSuite:
    """A suite in which views are rendered that nobody was given; `result` has the depth of the given ones."""

    name: str
    given: int | None
    result: SuiteResult
    lines: tuple[ViewLine, ...]
    metrics: tuple[str, ...]

    def line(self, method: str) -> ViewLine | None:
        """The row of a method, None where it has none."""
        return next((line for line in self.lines if line.method == method), None)

    @property
    def rendering(self) -> tuple[str, ...]:
        """The methods that render."""
        return tuple(line.method for line in self.lines if line.number("psnr") is not None)

    @property
    def has_perceptual(self) -> bool:
        """Whether any method has LPIPS, which needs weights."""
        return "lpips" in self.metrics

    @property
    def has_depth(self) -> bool:
        """Whether any method has depth of the given views."""
        return any(line.depth.number is not None for line in self.lines)


@dataclass(frozen=True)
class ViewComparison:
    """A system's PSNR against one other method's; the interval is that of the paired difference over scenes, in dB."""

    system: str
    suite: str
    other: str
    outcome: str
    ours: Number
    theirs: Number
    difference: Number
    low: Number | None
    high: Number | None


@dataclass(frozen=True)
class ViewVerdict:
    """A system in one suite. `outcome`: good above all others, bad where a trivial one is not beaten, else open."""

    system: str
    suite: str
    outcome: str
    ours: Number
    comparisons: tuple[ViewComparison, ...]

    def of(self, outcome: str) -> tuple[ViewComparison, ...]:
        """The other methods against which the outcome is better, worse or open."""
        return tuple(c for c in self.comparisons if c.outcome == outcome)

    @property
    def headline(self) -> str:
        """The outcome in words, without numbers."""
        beaten = " and ".join(c.other for c in self.of("better"))
        others = " and ".join(c.other for c in self.comparisons if c.outcome != "better")
        if not others:
            return "Better than every other method." if beaten else "Nothing to compare with."
        return f"Better than {beaten}, not than {others}." if beaten else f"Not better than {others}."


@dataclass(frozen=True)
class Sweep:
    """One suite asked with more and more given views: a suite for each number of them, and charts over it."""

    name: str
    steps: tuple[tuple[int, NovelSuite], ...]
    methods: tuple[str, ...]
    charts: tuple[Chart, ...]

    @property
    def metric(self) -> str:
        """What the depth of its table is called."""
        return self.steps[0][1].result.metric

    def has_depth(self, method: str) -> bool:
        """Whether a method has depth of the given views in any of its suites."""
        lines = [suite.line(method) for _, suite in self.steps]
        return any(line is not None and line.depth.number is not None for line in lines)


def rendered_suites(root: Path, methods: Sequence[str]) -> frozenset[str]:
    """The suites of which some method renders views."""
    summaries = [read_summary(root / "scores" / method)["suites"] for method in methods]
    return frozenset(name for suites in summaries for name, summary in suites.items() if summary.get("views"))


def read_novel(
    root: Path,
    results: Sequence[SuiteResult],
    methods: Sequence[str],
    suites: Mapping[str, SuiteConfig],
    *,
    systems: Sequence[str],
) -> list[NovelSuite]:
    """The tables of `results`, which are of suites with rendered views: baselines first, then `systems`."""
    ordered = [*(m for m in methods if m not in systems), *(m for m in methods if m in systems)]
    return [_novel_suite(root, result, ordered, suites[result.name]) for result in results]


def find_sweeps(suites: Mapping[str, SuiteConfig]) -> dict[str, dict[int, str]]:
    """{sweep: {given views: suite}}: suites by the rule `target` that are named after their count, two or more of a name."""
    found: dict[str, dict[int, str]] = {}
    for name, suite in suites.items():
        base, _, count = name.rpartition("_")
        if isinstance(suite.sources, ByTarget) and count == str(suite.sources.count):
            found.setdefault(base, {})[suite.sources.count] = name
    return {base: dict(sorted(members.items())) for base, members in found.items() if len(members) > 1}


def read_sweeps(
    novel: Sequence[NovelSuite], suites: Mapping[str, SuiteConfig], methods: Sequence[str]
) -> tuple[list[NovelSuite], list[Sweep]]:
    """The suites that stand alone, and the sweeps that the others make."""
    by_name = {suite.name: suite for suite in novel}
    sweeps = []
    for base, members in find_sweeps(suites).items():
        steps = tuple((count, by_name[name]) for count, name in members.items() if name in by_name)
        if len(steps) > 1:
            sweeps.append(_sweep(base, steps, methods))
    taken = {suite.name for found in sweeps for _, suite in found.steps}
    return [suite for suite in novel if suite.name not in taken], sweeps


def view_verdicts(
    root: Path, novel: Sequence[NovelSuite], systems: Sequence[str], *, bootstrap: int, seed: int
) -> list[ViewVerdict]:
    """Each system that renders against the trivial and classical answers, in every suite."""
    found = []
    for system, suite in product(systems, novel):
        ours = None if (line := suite.line(system)) is None else line.number("psnr")
        if ours is not None:
            others = [m for m in (*TRIVIAL, *CLASSICAL) if m in suite.rendering and m != system]
            pairs = [_compare(root, suite, system, other, bootstrap=bootstrap, seed=seed) for other in others]
            found.append(ViewVerdict(system, suite.name, _outcome(pairs), ours, tuple(pairs)))
    return found


def views_file(method: str, suite: str) -> str:
    """The file with a method's row for each rendered view, below the root."""
    return f"scores/{method}/{suite}_views.csv"


def _novel_suite(root: Path, result: SuiteResult, methods: Sequence[str], suite: SuiteConfig) -> NovelSuite:
    summaries = {method: read_summary(root / "scores" / method)["suites"].get(result.name) for method in methods}
    answers = {method: summary for method, summary in summaries.items() if summary is not None}
    renders = {method: summary for method, summary in answers.items() if summary.get("views")}
    numbers = {method: _view_numbers(method, result.name, summary) for method, summary in renders.items()}
    best = _best([numbers[method] for method, summary in renders.items() if not summary["about"]["oracle"]])
    return NovelSuite(
        name=result.name,
        given=suite.sources.count if isinstance(suite.sources, ByTarget) else None,
        result=result,
        lines=tuple(
            _line(root, method, result, summary, numbers.get(method, {}), best) for method, summary in answers.items()
        ),
        metrics=tuple(name for name in VIEW_COLUMNS if any(name in found for found in numbers.values())),
    )


def _view_numbers(method: str, suite: str, summary: Mapping[str, Any]) -> dict[str, tuple[Number, ...]]:
    """Return {metric: (mean,) or (mean, low, high)} of those metrics that the method has."""
    content, file = {"suites": {suite: summary}}, f"scores/{method}/summary.json"
    found = {}
    for name, (_, spec, _) in VIEW_COLUMNS.items():
        ends = (
            lookup(content, file, "suites", suite, "views", name, end, spec=spec) for end in ("mean", "low", "high")
        )
        if numbers := tuple(number for number in ends if number is not None):
            found[name] = numbers
    return found


def _best(contending: Sequence[Mapping[str, tuple[Number, ...]]]) -> dict[str, str]:
    """Return {metric: the text of the best value}; nothing where all are equal."""
    best = {}
    for name, (_, _, is_higher_better) in VIEW_COLUMNS.items():
        known = [numbers[name][0] for numbers in contending if name in numbers]
        if len({str(number) for number in known}) > 1:
            best[name] = str((max if is_higher_better else min)(known, key=lambda number: number.value))
    return best


def _line(
    root: Path,
    method: str,
    result: SuiteResult,
    summary: Mapping[str, Any],
    numbers: Mapping[str, tuple[Number, ...]],
    best: Mapping[str, str],
) -> ViewLine:
    oracle = bool(summary["about"]["oracle"])
    cells = []
    for name in VIEW_COLUMNS:
        mean, low, high = (*numbers.get(name, ()), None, None, None)[:3]
        cells.append(ViewCell(name, mean, low, high, not oracle and mean is not None and str(mean) == best.get(name)))
    content, file = {"suites": {result.name: summary}}, f"scores/{method}/summary.json"
    place = ("suites", result.name)
    network = lookup(content, file, *place, "seconds", spec=SECONDS)
    return ViewLine(
        method=method,
        oracle=oracle,
        cells=tuple(cells),
        depth=result.cell(method),
        network=_milliseconds(network),
        rendering=_milliseconds(_render_seconds(root, method, result.name)) if numbers else None,
        gaussians=lookup(content, file, *place, "diagnostics", "gaussians", spec=LARGE),
    )


def _render_seconds(root: Path, method: str, suite: str) -> Number | None:
    file = f"predictions/{method}/cost.json"
    return lookup(read_json(root / file), file, "render_seconds", suite)


def _milliseconds(seconds: Number | None) -> Number | None:
    return None if seconds is None else Number(1000 * seconds.value, seconds.source, SECONDS, MILLISECONDS)


def _compare(root: Path, suite: NovelSuite, system: str, other: str, *, bootstrap: int, seed: int) -> ViewComparison:
    numbers = [line.number("psnr") for m in (system, other) if (line := suite.line(m)) is not None]
    ours, theirs = (number for number in numbers if number is not None)
    files = [views_file(method, suite.name) for method in (system, other)]
    means = [scene_means(read_view_rows(root / file)) for file in files]
    found = paired(means[0], means[1], "psnr", bootstrap=bootstrap, seed=seed)
    sources = " ".join(f"{file}#psnr" for file in files)
    low, high = (
        None if end is None else Number(end, sources, "+.2f", f"paired.{name}")
        for name, end in (("low", found.low), ("high", found.high))
    )
    difference = Number(ours.value - theirs.value, f"{ours.source} {theirs.source}", "+.2f", "difference")
    return ViewComparison(system, suite.name, other, _verdict(found), ours, theirs, difference, low, high)


def _verdict(difference: Interval) -> str:
    """The outcome of a paired difference of a metric that is better when higher."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "open"
    return "better" if difference.low > 0 else "worse"


def _outcome(comparisons: Sequence[ViewComparison]) -> str:
    if any(c.outcome != "better" for c in comparisons if c.other in TRIVIAL):
        return "bad"
    return "good" if comparisons and all(c.outcome == "better" for c in comparisons) else "open"


def _sweep(base: str, steps: Sequence[tuple[int, NovelSuite]], methods: Sequence[str]) -> Sweep:
    rendering = tuple(dict.fromkeys(method for _, suite in steps for method in suite.rendering))
    psnr = {method: _psnr_points(steps, method) for method in rendering}
    depth = {method: points for method in rendering if (points := _depth_points(steps, method))}
    charts = [sweep(f"{base}: rendered views", psnr, methods, ylabel="PSNR, dB (higher is better)")]
    if depth:
        charts.append(sweep(f"{base}: depth", depth, methods, ylabel=f"{steps[0][1].result.metric} (lower is better)"))
    return Sweep(base, tuple(steps), rendering, tuple(charts))


def _psnr_points(steps: Sequence[tuple[int, NovelSuite]], method: str) -> list[Point]:
    lines = [(count, line) for count, suite in steps if (line := suite.line(method)) is not None]
    cells = [(count, line.cells[0]) for count, line in lines]
    return [Point(count, cell.number.value, *_ends(cell)) for count, cell in cells if cell.number is not None]


def _depth_points(steps: Sequence[tuple[int, NovelSuite]], method: str) -> list[Point]:
    lines = [(count, line) for count, suite in steps if (line := suite.result.line(method)) is not None]
    return [
        Point(count, number.value, *_ends(line))
        for count, line in lines
        if (number := line.cells[0].number) is not None
    ]


def _ends(bounded: ViewCell | Line) -> tuple[float | None, float | None]:
    low, high = (None if end is None else float(end.value) for end in (bounded.low, bounded.high))
    return low, high
