"""What a prediction of a folder says on a terminal: what it is about to do, and what came of it."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from plumbline.config import ByBaseline, ByGap, ByIndex, BySequence, ByTarget
from plumbline.evaluation import Scored, scene_means
from plumbline.folder_prediction.method import Method
from plumbline.folder_prediction.output import FARTHEST, OVERVIEW, SCORES, VIEW_SCORES
from plumbline.folder_prediction.run import FolderResult
from plumbline.folder_prediction.samples import RawSamples, Rule
from plumbline.folder_prediction.views import ViewScore
from plumbline.metrics import HIGHER_IS_BETTER, METRICS

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = ("abs_rel", "abs_diff", "rmse", "log10", "delta105", "delta1", "coverage")
_MOST_SCENES = 20


def plan_text(method: Method, chosen: RawSamples) -> str:
    """One line on what is predicted from what; a second one names scenes that have no sample."""
    scenes = len({sample.scene for sample in chosen.samples})
    refines = "" if method.initial is None else f" from the depth of {method.initial.name}"
    height, width = chosen.raw.size
    one = chosen.samples[0]
    renders = f" and {_count(len(one.targets), 'view')} to render" if one.targets else ""
    first = (
        f"{method.name}{refines}: {_count(len(chosen.samples), 'view')} of {_count(scenes, 'scene')}, each with "
        f"{_count(len(one.given) - 1, 'source')}{renders} ({_rule_text(chosen.choice.rule)}), {height}x{width} pixels, "
        f"on {method.device.type}"
    )
    left = f"\nToo few views for a sample, left out: {', '.join(chosen.left_out)}" if chosen.left_out else ""
    return first + left


def show_result(result: FolderResult, method: Method, chosen: RawSamples) -> None:
    """Print the table of metrics, or why there is none, and where everything is."""
    from rich.console import Console

    # A log has no width of its own: wide enough for every column.
    console = Console(width=None if sys.stdout.isatty() else 120)
    if any("abs_rel" in scored.row.values for scored in result.rows):
        console.print(score_table(result.rows, title=_title(method)))
    for line in remarks(result, method, chosen):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def remarks(result: FolderResult, method: Method, chosen: RawSamples) -> list[str]:
    """What the table does not say: what was compared, what was not, and where the files are."""
    low, high = chosen.depth_range
    lines = []
    if not result.rows:
        lines.append("No true depth in this folder: nothing to compare with, so there are no metrics.")
    else:
        lines.append(
            f"Compared with depth of {low:g} to {high:g} m, not aligned; coverage: share of it that has a prediction."
        )
    silent = [scored.row.reason for scored in result.rows if scored.row.reason]
    if silent:
        lines.append(
            f"Not in the means: {_count(len(silent), 'view')} ({silent[0]}{', ...' if len(set(silent)) > 1 else ''})."
        )
    if result.far:
        beyond = f"depth beyond {FARTHEST:g} m, which a 16-bit PNG cannot hold: 0 there, kept in the .npy"
        lines.append(f"{_count(result.far, 'view')} with {beyond}.")
    if "constant_depth" in method.system.inputs:
        lines.append(f"The constant is {(low * high) ** 0.5:.3g} m, the geometric mean of the depth range.")
    if result.rendered:
        mean = np.mean([np.mean(of_scene) for of_scene in _by_scene(result.rendered).values()])
        lines.append(f"{_count(len(result.rendered), 'view')} rendered: PSNR {mean:.2f} dB, the mean of the scenes.")
    kept = f", {result.kept} of them from before" if result.kept else ""
    scores = (f", {SCORES}" if result.rows else "") + (f", {VIEW_SCORES}" if result.rendered else "")
    lines.append(f"{_count(result.finished, 'view')}{kept}: {result.out} ({OVERVIEW}{scores})")
    return lines


def _by_scene(scores: Sequence[ViewScore]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for score in scores:
        found.setdefault(score.scene, []).append(score.psnr)
    return found


def score_table(rows: Sequence[Scored], *, title: str) -> "Table":
    """A row for each scene, the mean of its views, and one for the mean of the scenes, as the report counts."""
    from rich.table import Table

    means = scene_means(rows).get(("all", "none"), {})
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("scene", no_wrap=True)
    for name in ("views", *_SHOWN):
        table.add_column(name, justify="right")
    for scene in list(means)[:_MOST_SCENES]:
        count = sum(scored.scene == scene for scored in rows)
        table.add_row(scene, str(count), *(_text(name, means[scene].get(name)) for name in _SHOWN))
    if len(means) > _MOST_SCENES:
        table.add_row(f"… {len(means) - _MOST_SCENES} more")
    if len(means) > 1:
        overall = mean_of_scenes(means)
        texts = (_text(name, overall.get(name)) for name in _SHOWN)
        table.add_row(f"mean of {len(means)} scenes", str(len(rows)), *texts, style="bold")
    return table


def mean_of_scenes(means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the scenes that have it: a long scene weighs no more than a short one."""
    found = {name: [values[name] for values in means.values() if name in values] for name in METRICS}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _title(method: Method) -> str:
    return f"{method.name} (oracle: it reads the truth)" if method.oracle else method.name


def _rule_text(rule: Rule) -> str:
    if isinstance(rule, ByGap):
        return f"{rule.gap} frames away"
    if isinstance(rule, BySequence):
        return f"a window of {rule.length} frames, {rule.gap} apart"
    if isinstance(rule, ByBaseline):
        return f"{rule.min_baseline:g} to {rule.max_baseline:g} m away"
    if isinstance(rule, ByTarget):
        return f"{rule.gap} frames from the rendered one"
    if isinstance(rule, ByIndex):
        return f"as {rule.path} lists"
    return "by pair list"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if name in HIGHER_IS_BETTER else f"{value:.4f}"
