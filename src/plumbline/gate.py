"""The regression gate: results of the work tree against those of an earlier commit, metric by metric.

`dvc metrics diff` supplies the numbers but no verdict: it has no tolerances and exits with 0 on a NaN, on a metric that is
gone and on a file it could not read. So both sides are also read from git and the disk, and every verdict is made here.
"""

import fnmatch
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from plumbline.config import Section, load_params
from plumbline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.table import Table

METRICS = Path("reports/metrics.json")
TOLERANCES = Path("reports/tolerances.yaml")
Key = tuple[str, str, str]
Side = dict[Key, float | None]
Verdict = Literal["same", "within", "better", "worse", "missing", "retired", "not finite", "no rule", "new"]
FAILING: frozenset[Verdict] = frozenset({"worse", "missing", "not finite", "no rule"})
STYLES: Mapping[Verdict, str] = {"better": "green", "new": "cyan", "retired": "yellow", "within": "dim", "same": "dim"}


class Pattern(Section):
    """Which metrics a rule is about; each field is a glob, such as `sun3d_*`."""

    suite: str = "*"
    method: str = "*"
    metric: str = "*"
    source: Annotated[str, Field(min_length=1)]

    def fits(self, key: Key) -> bool:
        """True when suite, method and metric match."""
        globs = (self.suite, self.method, self.metric)
        return all(fnmatch.fnmatchcase(name, glob) for name, glob in zip(key, globs, strict=True))


class Rule(Pattern):
    """How far a metric may move the wrong way: `absolute + relative * |before|`. `source` says where that comes from."""

    direction: Literal["lower", "higher", "either"] = Field(
        description="which way is better; either: any move is worse"
    )
    absolute: float = Field(default=0.0, ge=0)
    relative: float = Field(default=0.0, ge=0)


class Tolerances(Section):
    """Rules of which the first that fits counts, and metrics that may be gone."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    retired: tuple[Pattern, ...] = ()


@dataclass(frozen=True)
class Line:
    """One metric on both sides. `change` is after - before; `allowed` how much of it in the wrong direction is slack."""

    suite: str
    method: str
    metric: str
    before: float | None
    after: float | None
    change: float | None
    allowed: float | None
    verdict: Verdict
    source: str


@dataclass(frozen=True)
class GateReport:
    """The verdicts against `base`. `problem` says why the comparison as a whole is worth nothing, "" when it is sound."""

    base: str
    lines: tuple[Line, ...]
    problem: str = ""

    @property
    def failures(self) -> tuple[Line, ...]:
        """The lines that fail the gate."""
        return tuple(line for line in self.lines if line.verdict in FAILING)

    @property
    def passed(self) -> bool:
        """True when nothing failed and there was something to compare."""
        return not self.failures and not self.problem


def run_gate(
    repo: Path,
    *,
    base: str | None = None,
    tolerances: Path | None = None,
    metrics: Path = METRICS,
    first: bool = False,
) -> GateReport:
    """Compare the work tree's metrics with those at `base`.

    `base` defaults to the merge base with main, or to HEAD~1 where HEAD is on main. With `first` a base without any
    metrics passes as long as the new ones are finite and have rules. DataError when a side cannot be read.
    """
    if base and not _git(repo, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"):
        raise DataError(f"{base}: no such commit in {repo}. In CI, fetch the whole history (fetch-depth: 0).")
    revision = base or base_revision(repo)
    rules = read_tolerances(tolerances or repo / TOLERANCES)
    before, after = _sides(repo, revision, metrics)
    name = f"{revision} ({_git(repo, 'rev-parse', '--short', revision) or 'no such commit'})"
    lines = compare(before, after, rules)
    compared = any(line.before is not None and line.after is not None for line in lines)
    if compared or (first and not before and lines):
        return GateReport(name, lines)
    return GateReport(name, lines, _nothing_compared(name, metrics, before=before, after=after))


def gate_command(
    repo: Path, *, base: str | None = None, first: bool = False, all_rows: bool = False, as_json: bool = False
) -> int:
    """Run the gate, print its table (or JSON) and verdict, and return the exit status: 0 passed, 1 failed."""
    from rich.console import Console

    report = run_gate(repo, base=base, first=first)
    if as_json:
        print(json.dumps(to_json(report), indent=1))
    else:
        # A log has no width of its own: wide enough for every number.
        console = Console(width=None if sys.stdout.isatty() else 140)
        drawn = table(report, all_rows=all_rows)
        if drawn.row_count:
            console.print(drawn)
        console.print(summary(report), highlight=False, markup=False)
    return 0 if report.passed else 1


def base_revision(repo: Path) -> str:
    """The commit to compare with: the merge base with main, or HEAD~1 where HEAD is on main or main is not there."""
    merge_bases = (_git(repo, "merge-base", "HEAD", main) for main in ("main", "origin/main"))
    merge_base = next((found for found in merge_bases if found), None)
    return merge_base if merge_base and merge_base != _git(repo, "rev-parse", "HEAD") else "HEAD~1"


def read_tolerances(path: Path) -> Tolerances:
    """The rules of a tolerances file; ConfigError naming the key of a wrong entry."""
    try:
        return Tolerances.model_validate(load_params(path))
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {told}.") from error


def compare(before: Side, after: Side, tolerances: Tolerances) -> tuple[Line, ...]:
    """A line for each metric of either side, in the order of suites, methods and metrics as they first appear.

    None stands for "has no value"; a side without the key and a side with None are the same.
    """
    keys = list(dict.fromkeys([*after, *before]))
    pairs = ((key, before.get(key), after.get(key)) for key in keys)
    return tuple(_judge(key, old, new, tolerances) for key, old, new in pairs if old is not None or new is not None)


def _judge(key: Key, before: float | None, after: float | None, tolerances: Tolerances) -> Line:
    rule = next((rule for rule in tolerances.rules if rule.fits(key)), None)
    if after is None:
        retired = next((pattern for pattern in tolerances.retired if pattern.fits(key)), None)
        return Line(
            *key, before, None, None, None, "retired" if retired else "missing", retired.source if retired else ""
        )
    if not math.isfinite(after):
        return Line(*key, before, after, None, None, "not finite", rule.source if rule else "")
    if rule is None:
        return Line(*key, before, after, None, None, "no rule", "")
    if before is None or not math.isfinite(before):
        return Line(*key, before, after, None, None, "new", rule.source)
    allowed = rule.absolute + rule.relative * abs(before)
    return Line(*key, before, after, after - before, allowed, _verdict(after - before, allowed, rule), rule.source)


def _verdict(change: float, allowed: float, rule: Rule) -> Verdict:
    worse = {"lower": change, "higher": -change, "either": abs(change)}[rule.direction]
    if change == 0:
        return "same"
    if worse > allowed:
        return "worse"
    return "better" if worse < -allowed else "within"


def table(report: GateReport, *, all_rows: bool = False) -> "Table":
    """A rich table of what moved beyond its slack, is new or failed, or of every metric."""
    from rich.table import Table

    shown = [line for line in report.lines if all_rows or line.verdict not in {"same", "within"}]
    drawn = Table(title=f"against {report.base}", title_justify="left", header_style="bold")
    for name in ("suite", "method", "metric"):
        drawn.add_column(name)
    for name in ("before", "after", "change", "allowed"):
        drawn.add_column(name, justify="right")
    drawn.add_column("verdict")
    for line in shown:
        numbers = (line.before, line.after, line.change, line.allowed)
        style = STYLES.get(line.verdict, "bold red")
        cells = [_shown(number, signed=number is line.change) for number in numbers]
        drawn.add_row(line.suite, line.method, line.metric, *cells, f"[{style}]{line.verdict}[/]")
    return drawn


def summary(report: GateReport) -> str:
    """The verdict in a sentence or two, with what to do about a failure."""
    counted = Counter(line.verdict for line in report.lines)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items()) or "no metrics"
    if report.passed:
        return f"PASS: {counts}."
    advice = {
        "worse": "find out why, or raise the slack in reports/tolerances.yaml and say there where it comes from",
        "missing": "bring the metric back, or list it under `retired` in reports/tolerances.yaml",
        "not finite": "find the sample that gives it in scores/<method>/<suite>.csv",
        "no rule": "add a rule to reports/tolerances.yaml",
    }
    steps = [f"{verdict}: {advice[verdict]}" for verdict in dict.fromkeys(line.verdict for line in report.failures)]
    return "\n".join([f"FAIL: {report.problem or counts + '.'}", *(f"  {step}." for step in steps)])


def to_json(report: GateReport) -> dict[str, Any]:
    """The report as JSON values; a number that is not finite becomes its name."""

    def plain(value: object) -> object:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    lines = [{name: plain(value) for name, value in asdict(line).items()} for line in report.lines]
    return {"base": report.base, "passed": report.passed, "problem": report.problem, "lines": lines}


def _shown(number: float | None, *, signed: bool) -> str:
    return "-" if number is None else f"{number:+.4g}" if signed else f"{number:.4g}"


def _nothing_compared(name: str, metrics: Path, *, before: Side, after: Side) -> str:
    if not after:
        return f"{metrics} is absent or holds no metrics: nothing compared. Run make repro first."
    if not before:
        return f"no metrics at {name}: nothing compared. When this commit brings the first ones, say --first."
    return f"no metric is in both {name} and the work tree: nothing compared."


def _sides(repo: Path, revision: str, metrics: Path) -> tuple[Side, Side]:
    """Metrics at the revision and in the work tree, from DVC where it shows just what git and the disk hold."""
    path = repo / metrics
    before = _flatten(_git(repo, "show", f"{revision}:{metrics.as_posix()}"), f"{metrics} at {revision}")
    after = _flatten(path.read_text(encoding="utf-8") if path.exists() else None, str(path))
    shown = _dvc_diff(repo, revision, metrics)
    for key, sides in shown.items():
        stored = (before.get(key), after.get(key))
        if not all(_equal(*pair) for pair in zip(sides, stored, strict=True)):
            raise DataError(
                f"{metrics}: dvc metrics diff shows {'.'.join(key)} as {sides[0]} -> {sides[1]}, the files hold "
                f"{stored[0]} -> {stored[1]}. Is the file changed but not saved, or kept in DVC's cache? Commit it to git."
            )
    return before, after


def _equal(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return first == second or (math.isnan(first) and math.isnan(second))


def _dvc_diff(repo: Path, revision: str, metrics: Path) -> dict[Key, tuple[float | None, float | None]]:
    """What `dvc metrics diff --all` shows of the file; empty where DVC cannot show it, which is no verdict yet."""
    if not (repo / ".dvc").is_dir():
        return {}
    command = [sys.executable, "-m", "dvc", "metrics", "diff", "--all", "--json", revision]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    try:
        entries = json.loads(done.stdout).get(metrics.as_posix(), {})
    except (json.JSONDecodeError, AttributeError):
        return {}
    keys = {name: name.split(".") for name in entries}
    return {
        (parts[0], parts[1], parts[2]): (_number(entries[name].get("old")), _number(entries[name].get("new")))
        for name, parts in keys.items()
        if len(parts) == 3
    }


def _flatten(text: str | None, where: str) -> Side:
    """Metrics of {suite: {method: {metric: number}}} by key; empty without a text. DataError for any other shape."""
    if text is None:
        return {}
    try:
        return {
            (suite, method, metric): _number(value)
            for suite, methods in json.loads(text).items()
            for method, metrics in methods.items()
            for metric, value in metrics.items()
        }
    except (json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{where}: not JSON of the form suite, method, metric, number ({error}).") from error


def _number(value: object) -> float | None:
    """A number as float, None as None, and anything else as NaN, which fails the gate."""
    if value is None:
        return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _git(repo: Path, *arguments: str) -> str | None:
    """What git prints, or None where it has no such thing. DataError when `repo` is no repository."""
    done = subprocess.run(["git", *arguments], cwd=repo, capture_output=True, text=True, check=False)
    if done.returncode and "not a git repository" in done.stderr:
        raise DataError(f"{repo}: not a git repository, so there is no earlier commit to compare with.")
    return None if done.returncode else done.stdout.strip()
