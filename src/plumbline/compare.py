"""Experiments side by side: the params that differ between them, and the metrics they gave.

An experiment is whatever `dvc exp show` lists (DVC keeps each as a commit under refs/exps), any git revision, or
`workspace`. All that is shown was committed with it, so git alone is read: nothing is checked out, DVC's cache is not needed.
"""

import difflib
import json
import math
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from plumbline.config import parse_value
from plumbline.errors import DataError
from plumbline.files import atomic_path
from plumbline.metrics import is_better_higher, is_share

if TYPE_CHECKING:
    from rich.table import Table

PARAMS, METRICS, LOCK = "params.yaml", "reports/metrics.json", "dvc.lock"
WORKSPACE = "workspace"
_SHOWN = 5
# What stands for a suite in headline.json; a suite has one or the other.
DEFAULT_METRICS = ("abs_rel", "abs_rel_median")
# DVC's own bookkeeping stands beside the experiments.
_NO_EXPERIMENTS = ("exec", "stash", "celery", "apply", "branch", "init")
# What decides a suite's samples, which of their truth counts and how they are averaged; all else changes methods only.
_OF_SUITE = frozenset({"dataset", "split", "sources", "max_samples", "depth_min", "depth_max"})
_OF_DATASET = frozenset({"format", "source", "image_size", "split", "options", "resize", "quarantine"})
_OF_ALL = frozenset({"average", "batch_size"})
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Experiment:
    """Params by dotted key, metrics by (suite, method, metric), and the params that the metrics were not made with."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[Key, float | None]
    stale: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is about, a text for each experiment, and the place of the best one (None: no best)."""

    label: tuple[str, ...]
    cells: tuple[str, ...]
    best: int | None = None


@dataclass(frozen=True)
class Comparison:
    """The two tables, a column an experiment, and what must be said below them."""

    names: tuple[str, ...]
    params: tuple[Row, ...]
    metrics: tuple[Row, ...]
    notes: tuple[str, ...]


def compare_command(
    names: Sequence[str],
    repo: Path,
    *,
    metrics: Sequence[str] = (),
    suites: Sequence[str] = (),
    methods: Sequence[str] = (),
    out: Path | None = None,
) -> None:
    """Print the comparison of the named experiments and, with `out`, write it there as markdown."""
    from rich.console import Console

    found = compare(read_experiments(repo, names), metrics=metrics, suites=suites, methods=methods)
    # A log has no width of its own: wide enough for every column.
    console = Console(width=None if sys.stdout.isatty() else 60 + 24 * len(names))
    for table in (_drawn(found, "params that differ", found.params), _drawn(found, "results", found.metrics)):
        console.print(table)
        console.print()
    for note in found.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(markdown(found), encoding="utf-8")
        console.print(f"written: {out}", highlight=False, soft_wrap=True)


def read_experiments(repo: Path, names: Sequence[str]) -> list[Experiment]:
    """The named experiments, read from git; DataError, with the nearest names, for one that is not there."""
    if _git(repo, "rev-parse", "--git-dir") is None:
        raise DataError(f"{repo}: not a git repository, so there are no experiments. Run from the project's root.")
    return [_read(repo, name) for name in names]


def compare(
    experiments: Sequence[Experiment],
    *,
    metrics: Sequence[str] = (),
    suites: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> Comparison:
    """The tables of some experiments; `metrics`, `suites` and `methods` (default: all) choose the rows.

    Without `metrics` these are abs_rel and abs_rel_median. Changes are told against the first experiment. DataError for a
    suite, method or metric that none of them has.
    """
    known = list(dict.fromkeys(key for experiment in experiments for key in experiment.metrics))
    chosen = [suites, methods, metrics]
    for place, what in enumerate(("suite", "method", "metric")):
        _require(chosen[place], list(dict.fromkeys(key[place] for key in known)), what)
    chosen[2] = metrics or DEFAULT_METRICS
    keys = [key for key in known if all(not wanted or part in wanted for part, wanted in zip(key, chosen))]
    changed = _changed([experiment.params for experiment in experiments])
    return Comparison(
        names=tuple(experiment.name for experiment in experiments),
        params=tuple(_params_row(key, experiments) for key in changed),
        metrics=tuple(_metrics_row(key, experiments) for key in keys),
        notes=(
            *_other_tests(changed, list(dict.fromkeys(key[0] for key in keys)), experiments),
            *_stale_notes(experiments),
        ),
    )


def markdown(comparison: Comparison) -> str:
    """The comparison as a markdown page."""
    parts = [
        "# " + " · ".join(_escaped(name) for name in comparison.names),
        "## Params that differ",
        _markdown_table(("param",), comparison.names, comparison.params) if comparison.params else "None.",
        "## Results",
        _markdown_table(("suite", "method", "metric"), comparison.names, comparison.metrics),
        *(_escaped(note) for note in comparison.notes),
    ]
    return "\n\n".join(parts) + "\n"


# --- reading ------------------------------------------------------------------------------------------------------


def _read(repo: Path, name: str) -> Experiment:
    commit = None if name == WORKSPACE else _commit(repo, name)
    params = parse_value(_file(repo, commit, PARAMS, name))
    lock = parse_value(_file(repo, commit, LOCK, name, required=False)) or {}
    metrics = _metrics(_file(repo, commit, METRICS, name), f"{METRICS} of {name}")
    return Experiment(name, dict(_flat(params)), metrics, tuple(_not_made_with(params, lock)))


def _commit(repo: Path, name: str) -> str:
    """The commit of an experiment's name or of a git revision."""
    experiments = _experiments(repo)
    commits = experiments.get(name, {})
    head = _git(repo, "rev-parse", "HEAD") or ""
    if head in commits:
        return commits[head]
    if len(commits) > 1:
        listed = ", ".join(f"{commit[:7]} (of {baseline[:7]})" for baseline, commit in commits.items())
        raise DataError(f"{name}: {len(commits)} experiments have this name: {listed}. Give the commit of one instead.")
    if commits:
        return next(iter(commits.values()))
    commit = _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit is None:
        raise DataError(f"{name}: no such experiment or git revision.{_hint(name, [*experiments, *_names(repo)])}")
    return commit


def _experiments(repo: Path) -> dict[str, dict[str, str]]:
    """The commits of DVC's experiments: {name: {baseline: commit}}. Their refs are refs/exps/<2>/<38 of baseline>/<name>."""
    listed = _git(repo, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    found: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        commit, ref = line.split(" ", 1)
        parts = PurePosixPath(ref).parts[2:]
        if len(parts) == 3 and parts[0] not in _NO_EXPERIMENTS:
            found.setdefault(parts[2], {})[parts[0] + parts[1]] = commit
    return found


def _names(repo: Path) -> list[str]:
    listed = _git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or ""
    return [WORKSPACE, "HEAD", *listed.splitlines()]


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" There is: {', '.join(known)}. `dvc exp show` lists experiments."


def _file(repo: Path, commit: str | None, path: str, name: str, *, required: bool = True) -> str:
    if commit is not None:
        text = _git(repo, "show", f"{commit}:{path}")
    else:
        text = (repo / path).read_text(encoding="utf-8") if (repo / path).is_file() else None
    if text is None and required:
        raise DataError(f"{name} has no {path}, so there is nothing to compare. Run it to its end: `dvc repro` there.")
    return text or ""


def _metrics(text: str, where: str) -> dict[Key, float | None]:
    try:
        return {
            (suite, method, name): None if value is None else float(value)
            for suite, methods in json.loads(text).items()
            for method, values in methods.items()
            for name, value in values.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not JSON of the form suite, method, metric, number ({error}).") from error


def _not_made_with(params: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which `params` differs from what dvc.lock says the metrics were made with: they are of another run."""
    stages = lock.get("stages", {}).values()
    makers = (stage for stage in stages if any(out["path"] == METRICS for out in stage.get("outs", [])))
    used: Mapping[str, Any] = next((stage.get("params", {}).get(PARAMS, {}) for stage in makers), {})
    now, then = dict(_flat(params)), dict(_flat(used))
    below = tuple(f"{key}." for key in used)
    judged = [key for key in dict.fromkeys([*now, *then]) if key in used or key.startswith(below)]
    return [key for key in judged if now.get(key) != then.get(key)]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, child in node.items():
        if isinstance(child, Mapping) and child:
            yield from _flat(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _git(repo: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=repo, capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()


# --- comparing ----------------------------------------------------------------------------------------------------


def _require(wanted: Collection[str], known: Sequence[str], what: str) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There is: {', '.join(known) or 'none'}."
            raise DataError(f"none of the experiments has a {what} {name!r}. {hint}")


def _changed(params: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for of_one in params for key in of_one)
    absent = object()
    return [key for key in keys if any(p.get(key, absent) != params[0].get(key, absent) for p in params)]


def _params_row(key: str, experiments: Sequence[Experiment]) -> Row:
    texts = (json.dumps(e.params[key], default=str) if key in e.params else "–" for e in experiments)
    return Row((key,), tuple(text.strip('"') for text in texts))


def _metrics_row(key: Key, experiments: Sequence[Experiment]) -> Row:
    values = [experiment.metrics.get(key) for experiment in experiments]
    cells = (_metric_text(key[2], value, values[0] if place else None) for place, value in enumerate(values))
    return Row(key, tuple(cells), _best(key[2], values))


def _metric_text(name: str, value: float | None, first: float | None) -> str:
    """The number and, where it differs from the first experiment's, by how much: points of a share, percent of an error."""
    share = is_share(name)
    if value is None:
        return "–"
    text = f"{value:.1%}" if share else f"{value:.4f}"
    if first is None or value == first or not math.isfinite(value) or (not share and first == 0):
        return text
    return f"{text} ({100 * (value - first):+.1f})" if share else f"{text} ({value / first - 1:+.1%})"


def _best(name: str, values: Sequence[float | None]) -> int | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if len(set(finite)) < 2:
        return None
    return values.index(max(finite) if is_better_higher(name) else min(finite))


def _other_tests(changed: Sequence[str], suites: Sequence[str], experiments: Sequence[Experiment]) -> list[str]:
    """A note for each suite that may not be the same test in all experiments."""
    notes = []
    for suite in suites:
        reasons = [key for key in changed if any(_decides(key, suite, experiment.params) for experiment in experiments)]
        if reasons:
            notes.append(f"{suite} may not be the same test in all columns: they differ in {_some(reasons)}.")
    return notes


def _decides(key: str, suite: str, params: Mapping[str, Any]) -> bool:
    """Whether the param can change the samples of a suite, their truth or how they are averaged."""
    section, name, option, part = [*key.split("."), "", "", ""][:4]
    if section == "evaluation":
        return name in _OF_ALL
    if section == "suites":
        return name == suite and option in _OF_SUITE
    if section != "datasets" or name != params.get(f"suites.{suite}.dataset"):
        return False
    # A list of training scenes is none of a test's business.
    other_split = option == "split" and part not in ("", params.get(f"suites.{suite}.split", "test"))
    return option in _OF_DATASET and not other_split


def _stale_notes(experiments: Sequence[Experiment]) -> list[str]:
    return [
        f"{e.name}: its metrics were made with other params than it has now ({_some(e.stale)}). Run it to its end."
        for e in experiments
        if e.stale
    ]


def _some(keys: Sequence[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# --- drawing ------------------------------------------------------------------------------------------------------


def _drawn(comparison: Comparison, title: str, rows: Sequence[Row]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for _ in rows[0].label if rows else ():
        table.add_column("", no_wrap=True)
    for name in comparison.names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for row in rows:
        cells = [f"[bold]{escape(c)}[/]" if place == row.best else escape(c) for place, c in enumerate(row.cells)]
        table.add_row(*map(escape, row.label), *cells)
    return table


def _markdown_table(heads: Sequence[str], names: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [[*heads, *names], ["---"] * len(heads) + ["---:"] * len(names)]
    lines += [[*row.label, *(f"**{c}**" if i == row.best else c for i, c in enumerate(row.cells))] for row in rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
