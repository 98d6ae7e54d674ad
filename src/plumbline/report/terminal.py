"""The result table on a terminal, with the path of the report."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from plumbline.metrics import HIGHER_IS_BETTER

_SHOWN = ("abs_rel", "abs_diff", "rmse", "log10", "delta105", "delta1", "coverage")
Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]


def print_results(metrics: Metrics, *, report: Path, oracles: Collection[str] = ("perturbed",)) -> None:
    """Print a table for each suite of `metrics` ({suite: {method: {metric: value}}}), then the path of the `report`.

    The lowest abs_rel is bold; `oracles` are marked and never bold.
    """
    from rich.console import Console
    from rich.table import Table

    # A log has no width of its own: wide enough for every column.
    console = Console(width=None if sys.stdout.isatty() else 120)
    for suite, methods in metrics.items():
        table = Table(title=suite, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("method", no_wrap=True)
        for name in _SHOWN:
            table.add_column(name, justify="right")
        known = {
            method: values["abs_rel"]
            for method, values in methods.items()
            if "abs_rel" in values and method not in oracles
        }
        best = min(known, key=lambda method: known[method], default=None)
        for method, values in methods.items():
            cells = [_text(name, values.get(name)) for name in _SHOWN]
            name = f"{method} (oracle)" if method in oracles else method
            table.add_row(name, *cells, style="bold" if method == best else None)
        console.print(table)
        console.print()
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if name in HIGHER_IS_BETTER else f"{value:.4f}"
