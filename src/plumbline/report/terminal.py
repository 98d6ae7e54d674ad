"""The result tables on a terminal, with the path of the report."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.camera_metrics import CAMERA_METRICS
from plumbline.evaluation import OVERFIT, headline_metric, oracles_in
from plumbline.metrics import MEDIAN, is_share

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = ("abs_rel", "abs_diff", "rmse", "log10", "delta105", "delta1", "coverage")
_ALIGNED = (*(f"{name}{MEDIAN}" for name in ("abs_rel", "rmse", "delta1")), "coverage")
_CAMERAS = ("rotation_error_deg", "translation_error_deg", "auc30")
_VIEWS = ("psnr", "ssim", "lpips")
_SHORT = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "rotation_error_deg": "rotation °",
    "translation_error_deg": "translation °",
}
Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]


def print_results(metrics: Metrics, *, report: Path, oracles: Collection[str] = ("perturbed",)) -> None:
    """Print a table for each suite of `metrics` ({suite: {method: {metric: value}}}), then the path of the `report`.

    The lowest abs_rel (under median alignment in a suite in which a method does not know the scale), or the highest PSNR where
    views are rendered, is bold; `oracles` are marked and never bold. What the overfit gates say comes last.
    """
    from rich.console import Console

    # A log has no width of its own: wide enough for every column.
    console = Console(width=None if sys.stdout.isatty() else 120)
    for suite, methods in metrics.items():
        if suite != OVERFIT:
            console.print(_suite_table(suite, methods, oracles))
            console.print()
    for system, values in metrics.get(OVERFIT, {}).items():
        console.print(f"one sample: {system} {'passed' if values.get('passed') else 'FAILED'}", highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


def _suite_table(suite: str, methods: Mapping[str, Mapping[str, float]], oracles: Collection[str]) -> "Table":
    from rich.table import Table

    headline, columns = headline_metric(methods), _columns(methods)
    hidden = oracles_in(methods, oracles)
    table = Table(title=suite, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in columns:
        table.add_column(_SHORT.get(name, name), justify="right")
    best = _best(methods, headline, hidden)
    for method, values in methods.items():
        cells = [_text(name, values.get(name)) for name in columns]
        name = f"{method} (oracle)" if method in hidden else method
        table.add_row(name, *cells, style="bold" if method == best else None)
    return table


def _best(methods: Mapping[str, Mapping[str, float]], headline: str, hidden: Collection[str]) -> str | None:
    """The method with the highest PSNR, or with the lowest headline where nothing is rendered."""
    contending = {method: values for method, values in methods.items() if method not in hidden}
    rendered = {method: values["psnr"] for method, values in contending.items() if "psnr" in values}
    known = {method: values[headline] for method, values in contending.items() if headline in values}
    if rendered:
        return max(rendered, key=lambda method: rendered[method])
    return min(known, key=lambda method: known[method], default=None)


def _columns(methods: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    depth = _ALIGNED if headline_metric(methods).endswith(MEDIAN) else _SHOWN
    cameras = any(name in values for values in methods.values() for name in CAMERA_METRICS)
    views = [name for name in _VIEWS if any(name in values for values in methods.values())]
    return (*views, *depth, *(_CAMERAS if cameras else ()))


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in _VIEWS:
        return f"{value:.2f}" if name == "psnr" else f"{value:.3f}"
    return f"{value:.1%}" if is_share(name) else f"{value:.4f}"
