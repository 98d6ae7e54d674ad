"""Result tables and the verdict, from `scores/<method>/summary.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from plumbline.camera_metrics import CAMERA_METRICS, HEADLINES
from plumbline.errors import DataError
from plumbline.evaluation import REGION, Interval, paired, read_scene_means, read_summary, scale_free
from plumbline.metrics import ERRORS, HIGHER_IS_BETTER, MEDIAN, METRICS, is_share
from plumbline.report.numbers import COUNT, LARGE, SECONDS, SHARE, SIGNED_SHARE, Number, lookup

# Coverage from which a method counts as dense; below, it is compared on the pixels of the reference method.
DENSE = 0.9995
COLUMNS = ("abs_rel", "coverage", *ERRORS[1:6], "delta105", "delta1", "delta2", "delta3")
CAPTIONS = {
    "none": "No alignment, all valid pixels",
    "median": "Median alignment: each map times median(truth) / median(prediction)",
    "scale_shift": "Scale and shift: least squares in depth, for each map",
}
# What a camera metric is called on the page, and how it is written.
CAMERA_COLUMNS = {
    "rotation_error_deg": ("rotation, °", ".2f"),
    "translation_error_deg": ("translation, °", ".2f"),
    "auc5": ("AUC@5", SHARE),
    "auc10": ("AUC@10", SHARE),
    "auc30": ("AUC@30", SHARE),
    "focal_error": ("focal length", SHARE),
}


@dataclass(frozen=True)
class Cell:
    """One metric of one method; `best` among the dense methods that do not read the truth."""

    metric: str
    number: Number | None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One method in a result table. `low` and `high` bound abs_rel (95 % over scenes)."""

    method: str
    oracle: bool
    sparse: bool
    cells: tuple[Cell, ...]
    low: Number | None
    high: Number | None
    seconds: Number | None


@dataclass(frozen=True)
class CameraLine:
    """One method's cameras in a suite: medians of angles and focal error, areas under the recall curve."""

    method: str
    cells: tuple[Cell, ...]
    seconds: Number | None

    def number(self, metric: str) -> Number | None:
        """The number of one metric."""
        return next((cell.number for cell in self.cells if cell.metric == metric), None)


@dataclass(frozen=True)
class CameraVerdict:
    """A system's cameras in one suite: its medians, then those of every other method, as (method, rotation, translation).

    `outcome`: better where both medians are below those of all others, worse where one is above one of them.
    """

    system: str
    suite: str
    outcome: str
    rows: tuple[tuple[str, Number | None, Number | None], ...]


@dataclass(frozen=True)
class SuiteResult:
    """Everything about one suite: facts, the headline table, the common-region table, and the other alignments.

    `alignment` is that of the headline: "none", or "median" where a method does not know the scale (those are `unscaled`).
    `cameras` has a line for each method that predicts them. `parts` holds, for each method that measures its own parts, the
    median of each measure over the samples.
    """

    name: str
    dataset: str
    samples: Number
    scenes: Number
    depth_min: Number
    depth_max: Number | None
    alignment: str
    unscaled: tuple[str, ...]
    lines: tuple[Line, ...]
    common_with: str | None
    common: tuple[Line, ...]
    aligned: tuple[tuple[str, tuple[Line, ...]], ...]
    cameras: tuple[CameraLine, ...]
    dropped: tuple[tuple[str, str, str], ...]
    area: tuple[tuple[str, Number], ...]
    parts: tuple[tuple[str, tuple[tuple[str, Number], ...]], ...]

    def cell(self, method: str) -> Cell:
        """The headline abs_rel of a method; an empty cell where it has none."""
        return next((line.cells[0] for line in self.lines if line.method == method), Cell("abs_rel", None))

    @property
    def metric(self) -> str:
        """What its headline is called in metrics.json: abs_rel or abs_rel_median."""
        return "abs_rel" + (MEDIAN if self.alignment == "median" else "")

    @property
    def caption(self) -> str:
        """What the headline table shows."""
        if self.alignment == "none":
            return CAPTIONS["none"]
        return f"{CAPTIONS['median']}; {', '.join(self.unscaled)} does not know the scale. All valid pixels"

    def line(self, method: str) -> Line | None:
        """The headline row of a method, None where it has none."""
        return next((line for line in self.lines if line.method == method), None)

    def camera_line(self, method: str) -> CameraLine | None:
        """The row of a method's cameras, None where it has none."""
        return next((line for line in self.cameras if line.method == method), None)

    def is_sparse(self, method: str) -> bool:
        """Whether a method abstains on some valid pixels."""
        return any(line.sparse for line in self.lines if line.method == method)


@dataclass(frozen=True)
class Comparison:
    """A trained system against one other method in one suite, in words with numbers. `outcome`: better, worse, open."""

    system: str
    suite: str
    metric: str
    other: str
    outcome: str
    region: str
    ours: Number
    theirs: Number
    change: Number
    low: Number | None
    high: Number | None
    scenes: Number


@dataclass(frozen=True)
class Tally:
    """In how many suites a system is better, worse, or neither, against one method."""

    system: str
    other: str
    better: int
    worse: int
    open: int

    @property
    def total(self) -> int:
        """The number of suites compared."""
        return self.better + self.worse + self.open


def read_results(root: Path, methods: Sequence[str], suites: Sequence[str]) -> list[SuiteResult]:
    """The tables of every suite, methods in the given order; DataError for a suite that no method answers."""
    summaries = {method: read_summary(root / "scores" / method)["suites"] for method in methods}
    loose = scale_free(summaries)
    found = []
    for name in suites:
        answers = {m: s[name] for m, s in summaries.items() if name in s}
        if not answers:
            raise DataError(
                f"suites.{name}: no method answers this suite. Name one in its methods, or take the suite out."
            )
        found.append(_suite_result(name, answers, "median" if name in loose else "none"))
    return found


def compare(
    root: Path,
    results: Sequence[SuiteResult],
    systems: Sequence[str],
    others: Sequence[str],
    *,
    bootstrap: int,
    seed: int,
) -> list[Comparison]:
    """Each system against each of `others` in every suite, dense with dense: on the common region where one abstains."""
    found = []
    for system, result in product(systems, results):
        lines = {line.method: line for line in result.lines}
        for other in others:
            if other != system and {system, other} <= lines.keys():
                pair = _compare_pair(root, result, lines[system], lines[other], bootstrap=bootstrap, seed=seed)
                found += [pair] if pair is not None else []
    return found


def tally(comparisons: Sequence[Comparison]) -> list[Tally]:
    """How often each outcome happened, one `Tally` for each system and other method."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    for c in comparisons:
        outcomes.setdefault((c.system, c.other), []).append(c.outcome)
    return [Tally(*pair, got.count("better"), got.count("worse"), got.count("open")) for pair, got in outcomes.items()]


def camera_verdicts(results: Sequence[SuiteResult], systems: Sequence[str]) -> list[CameraVerdict]:
    """The cameras of each system beside those of all other methods, in every suite in which it predicts them."""
    return [
        _camera_verdict(result, own)
        for system, result in product(systems, results)
        if (own := result.camera_line(system)) is not None
    ]


def _camera_verdict(result: SuiteResult, own: CameraLine) -> CameraVerdict:
    angles = ("rotation_error_deg", "translation_error_deg")
    lines = [own, *(line for line in result.cameras if line is not own)]
    values = [[getattr(line.number(angle), "value", 180.0) for angle in angles] for line in lines]
    others = values[1:]
    below = all(ours < theirs for row in others for ours, theirs in zip(values[0], row, strict=True))
    rows = tuple((line.method, line.number(angles[0]), line.number(angles[1])) for line in lines)
    return CameraVerdict(own.method, result.name, ("better" if below else "worse") if others else "open", rows)


def _suite_result(name: str, summaries: Mapping[str, Mapping[str, Any]], alignment: str) -> SuiteResult:
    first_method, first = next(iter(summaries.items()))
    file, prefix = f"scores/{first_method}/summary.json", ("suites", name)
    content = {"suites": {name: first}}
    lines = _lines(name, summaries, REGION, alignment)
    common = _lines(name, summaries, "common", alignment) if any(line.sparse for line in lines) else ()
    others = [kind for kind in CAPTIONS if kind != alignment]
    return SuiteResult(
        name=name,
        dataset=first["about"]["dataset"],
        samples=Number(first["samples"], f"{file}#suites/{name}/samples", COUNT),
        scenes=Number(first["scenes"], f"{file}#suites/{name}/scenes", COUNT),
        depth_min=Number(first["caps"]["depth_min"], f"{file}#suites/{name}/caps/depth_min", "g"),
        depth_max=lookup(content, file, *prefix, "caps", "depth_max", spec="g"),
        alignment=alignment,
        unscaled=tuple(method for method, summary in summaries.items() if summary["alignment"] == "median"),
        lines=lines,
        common_with=next((s["common_with"] for s in summaries.values() if s["common_with"]), None),
        common=common,
        aligned=tuple((CAPTIONS[kind], _lines(name, summaries, REGION, kind)) for kind in others),
        cameras=_camera_lines(name, summaries),
        dropped=_dropped(summaries),
        area=_areas(name, summaries),
        parts=_parts(name, summaries),
    )


def _lines(name: str, summaries: Mapping[str, Mapping[str, Any]], region: str, kind: str) -> tuple[Line, ...]:
    numbers = {
        m: _numbers(m, name, s, region, kind) for m, s in summaries.items() if kind in s["regions"].get(region, {})
    }
    best = _best(numbers, {m for m in numbers if _reads_truth(summaries[m]["about"], kind)})
    return tuple(_line(m, name, summaries[m], numbers[m], best, region, kind) for m in numbers)


def _reads_truth(about: Mapping[str, Any], kind: str) -> bool:
    """Whether a row is an oracle's: it sees the truth, or it is one depth for all, which alignment makes the true median."""
    return bool(about["oracle"]) or (kind != "none" and set(about["inputs"]) == {"constant_depth"})


def _camera_lines(name: str, summaries: Mapping[str, Mapping[str, Any]]) -> tuple[CameraLine, ...]:
    rows: dict[str, tuple[dict[str, Number | None], Number | None]] = {}
    for method, summary in summaries.items():
        content, file = {"suites": {name: summary}}, f"scores/{method}/summary.json"
        place = ("suites", name, "cameras")
        numbers = {
            metric: lookup(content, file, *place, metric, HEADLINES[metric], spec=CAMERA_COLUMNS[metric][1])
            for metric in CAMERA_METRICS
        }
        seconds = lookup(content, file, "suites", name, "seconds", spec=SECONDS)
        rows |= {method: (numbers, seconds)} if summary["cameras"] else {}
    best = _best_texts([numbers for numbers, _ in rows.values()], CAMERA_METRICS)
    return tuple(
        CameraLine(
            method, tuple(Cell(m, n, n is not None and str(n) == best.get(m)) for m, n in numbers.items()), seconds
        )
        for method, (numbers, seconds) in rows.items()
    )


def _numbers(method: str, suite: str, summary: Mapping[str, Any], region: str, kind: str) -> dict[str, Number | None]:
    content, file = {"suites": {suite: summary}}, f"scores/{method}/summary.json"
    keys = ("suites", suite, "regions", region, kind)
    specs = dict.fromkeys(METRICS, ".4f") | dict.fromkeys(HIGHER_IS_BETTER, SHARE)
    return {name: lookup(content, file, *keys, name, "mean", spec=specs[name]) for name in COLUMNS}


def _best(numbers: Mapping[str, Mapping[str, Number | None]], oracles: set[str]) -> dict[str, str]:
    """Return {metric: the text of the best value} among methods that are dense and no oracles; equal texts are equally good."""
    eligible = [cells for method, cells in numbers.items() if method not in oracles and not _is_sparse(cells)]
    return _best_texts(eligible, ERRORS)


def _best_texts(eligible: Sequence[Mapping[str, Number | None]], metrics: Sequence[str]) -> dict[str, str]:
    best = {}
    for metric in metrics:
        known = [number for cells in eligible if (number := cells[metric]) is not None]
        pick = max if is_share(metric) else min
        if len({str(number) for number in known}) > 1:
            best[metric] = str(pick(known, key=lambda number: number.value))
    return best


def _is_sparse(cells: Mapping[str, Number | None]) -> bool:
    coverage = cells["coverage"]
    return coverage is None or coverage.value < DENSE


def _line(
    method: str,
    suite: str,
    summary: Mapping[str, Any],
    numbers: Mapping[str, Number | None],
    best: Mapping[str, str],
    region: str,
    kind: str,
) -> Line:
    content, file = {"suites": {suite: summary}}, f"scores/{method}/summary.json"
    oracle, sparse = _reads_truth(summary["about"], kind), _is_sparse(numbers)
    contends = not (oracle or sparse)
    cells = tuple(Cell(name, number, contends and str(number) == best.get(name)) for name, number in numbers.items())
    place = ("suites", suite, "regions", region, kind, "abs_rel")
    low, high = (lookup(content, file, *place, end) for end in ("low", "high"))
    return Line(
        method, oracle, sparse, cells, low, high, lookup(content, file, "suites", suite, "seconds", spec=SECONDS)
    )


def _dropped(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str, str], ...]:
    """Return (method, sample, reason) for every sample without error metrics."""
    rows = [(method, row) for method, summary in summaries.items() for row in summary["dropped"]]
    return tuple((method, f"{row['scene']} {row['views']}", row["reason"]) for method, row in rows)


def _areas(name: str, summaries: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, Number], ...]:
    found = {}
    for method, summary in summaries.items():
        place = ("suites", name, "regions", REGION, summary["alignment"] or "none", "ause", "mean")
        found[method] = lookup({"suites": {name: summary}}, f"scores/{method}/summary.json", *place)
    return tuple((method, number) for method, number in found.items() if number is not None)


def _parts(
    name: str, summaries: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, tuple[tuple[str, Number], ...]], ...]:
    """Return (method, ((measure, median), ...)) for every method that measures its own parts."""
    found = []
    for method, summary in summaries.items():
        content, file = {"suites": {name: summary}}, f"scores/{method}/summary.json"
        place = ("suites", name, "diagnostics")
        specs = {measure: _measure_spec(measure, value) for measure, value in summary["diagnostics"].items()}
        numbers = [(measure, lookup(content, file, *place, measure, spec=spec)) for measure, spec in specs.items()]
        if numbers:
            found.append((method, tuple((measure, number) for measure, number in numbers if number is not None)))
    return tuple(found)


def _measure_spec(measure: str, value: float) -> str:
    if measure.endswith("_share"):
        return SHARE
    return LARGE if value >= 1000 else SECONDS


def _compare_pair(
    root: Path, result: SuiteResult, ours: Line, theirs: Line, *, bootstrap: int, seed: int
) -> Comparison | None:
    region = "common" if (ours.sparse or theirs.sparse) and result.common else "all"
    chosen = {line.method: line for line in (result.common if region == "common" else result.lines)}
    first, second = chosen[ours.method].cells[0].number, chosen[theirs.method].cells[0].number
    if first is None or second is None:
        return None
    files = [f"scores/{line.method}/{result.name}_scenes.csv" for line in (ours, theirs)]
    means = [read_scene_means(root / file, region, result.alignment) for file in files]
    difference = paired(means[0], means[1], "abs_rel", bootstrap=bootstrap, seed=seed)
    sources = " ".join(f"{file}#{region}/{result.alignment}/abs_rel" for file in files)
    low, high = (
        None if end is None else Number(end, sources, "+.4f", f"paired.{name}")
        for name, end in (("low", difference.low), ("high", difference.high))
    )
    ratio = first.value / second.value - 1 if second.value else 0.0
    change = Number(ratio, f"{first.source} {second.source}", SIGNED_SHARE, "change")
    return Comparison(
        system=ours.method,
        suite=result.name,
        metric=result.metric,
        other=theirs.method,
        outcome=_outcome(difference),
        region=region,
        ours=first,
        theirs=second,
        change=change,
        low=low,
        high=high,
        scenes=result.scenes,
    )


def _outcome(difference: Interval) -> str:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "open"
    return "better" if difference.high < 0 else "worse"
