"""Charts in the page: small, one idea each, drawn for a light and a dark page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from plumbline.report.pictures import encode_webp

# Okabe and Ito's colours, which stay apart for colour-blind readers; one method keeps its colour in all charts.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C"),
    # further ones for long lists of methods, apart in lightness
    *("#B5A300", "#8C6BD1", "#A65628", "#44AA99", "#C2185B"),
)
_THEMES = {"light": ("#ffffff", "#24292f", "#d8dee4"), "dark": ("#1b2129", "#dbe2ea", "#3a434e")}
_WIDTH = 4.4
_DPI = 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.98, 0.12, 0.34, 0.5


@dataclass(frozen=True)
class Chart:
    """One chart as data URIs, with what it shows in words for those who cannot see it."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """One method's abs_rel: of each scene, and the mean with its interval."""

    method: str
    scenes: Sequence[float]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A mean over scenes at `x`, with its interval where there is one."""

    x: int
    y: float
    low: float | None
    high: float | None


def colour_of(method: str, methods: Sequence[str]) -> str:
    """The method's colour: its place in the list of all methods decides."""
    return _COLOURS[list(methods).index(method) % len(_COLOURS)]


def strips(suite: str, rows: Sequence[Strip], methods: Sequence[str], *, metric: str = "abs_rel") -> Chart:
    """`metric` of every scene as dots, the mean as a diamond with its 95 % interval; logarithmic, a line a method."""

    def draw(axes: Any, ink: str) -> None:
        for place, row in enumerate(rows):
            colour = colour_of(row.method, methods)
            jitter = np.linspace(-0.2, 0.2, len(row.scenes)) if len(row.scenes) > 1 else np.zeros(1)
            axes.plot(row.scenes, place + jitter, "o", color=colour, markersize=3.5, alpha=0.5, markeredgewidth=0)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], "-", color=ink, linewidth=1.6)
            axes.plot([row.mean], [place], "D", color=colour, markersize=7, markeredgecolor=ink, markeredgewidth=1)
        axes.set_yticks(range(len(rows)), [row.method for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, [value for row in rows for value in (*row.scenes, row.mean)])
        axes.set_xlabel(f"{metric} of a scene (lower is better)")

    words = ", ".join(f"{row.method} {row.mean:.4f}" for row in rows)
    return _chart(
        draw, f"{metric} for each scene of {suite}; means: {words}", title=suite, height=0.95 + 0.38 * len(rows)
    )


def curve(
    rows: Sequence[Mapping[str, float]],
    columns: Mapping[str, str],
    *,
    title: str,
    ylabel: str,
    logarithmic: bool = True,
) -> Chart:
    """Columns of a training curve over the optimiser step; `columns` maps a column to its label.

    Logarithmic where all values are positive, unless that is not asked for (decibels are logarithms already).
    """

    def draw(axes: Any, ink: str) -> None:
        for place, (column, label) in enumerate(columns.items()):
            points = [(row["step"], row[column]) for row in rows if column in row]
            marker = "o" if len(points) < 30 else ""
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker=marker, markersize=3, linewidth=1.4, color=_COLOURS[place], label=label)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(ylabel)
        everything = [row[column] for row in rows for column in columns if column in row]
        if logarithmic and min(everything) > 0:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis, everything)
        axes.legend(frameon=False, labelcolor=ink, fontsize=9)

    return _chart(draw, f"{title}: {', '.join(columns.values())} over the optimiser step", title=title, height=2.8)


def sparsification(suite: str, curves: Mapping[str, Float64[np.ndarray, "k 3"]], methods: Sequence[str]) -> Chart:
    """Error left after the least sure pixels are removed (full line), and after the worst are (dotted), for each method."""

    def draw(axes: Any, ink: str) -> None:
        for method, values in curves.items():
            colour = colour_of(method, methods)
            axes.plot(values[:, 0], values[:, 1], color=colour, linewidth=1.6, label=method)
            axes.plot(values[:, 0], values[:, 2], ":", color=colour, linewidth=1.2, label=f"{method}, by true error")
        axes.set_xlabel("share of pixels removed")
        axes.set_ylabel("abs_rel left, relative")
        axes.set_ylim(0, None)
        axes.legend(frameon=False, labelcolor=ink, fontsize=9)

    return _chart(draw, f"sparsification curves of {', '.join(curves)} in {suite}", title=suite, height=2.8)


def sweep(title: str, curves: Mapping[str, Sequence[Point]], methods: Sequence[str], *, ylabel: str) -> Chart:
    """A line for each method over the number of given views, its 95 % interval as a pale band."""

    def draw(axes: Any, ink: str) -> None:
        for method, points in curves.items():
            colour = colour_of(method, methods)
            places = [point.x for point in points]
            axes.plot(
                places, [point.y for point in points], "o-", color=colour, markersize=4, linewidth=1.6, label=method
            )
            ends = [(point.x, point.low, point.high) for point in points if None not in (point.low, point.high)]
            if ends:
                axes.fill_between(*zip(*ends, strict=True), color=colour, alpha=0.16, linewidth=0)
        axes.set_xticks(sorted({point.x for points in curves.values() for point in points}))
        axes.set_xlabel("given views")
        axes.set_ylabel(ylabel)
        axes.legend(frameon=False, labelcolor=ink, fontsize=9)

    words = "; ".join(f"{m} {', '.join(f'{p.y:.4g}' for p in points)}" for m, points in curves.items())
    return _chart(draw, f"{title}, {ylabel}, over the number of given views: {words}", title=title, height=2.8)


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Log ticks at 1, 2, 5 with plain numbers, few enough to read on a phone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [value for value in values if value > 0]
    decades = np.log10(max(positive) / min(positive)) if positive else 1
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades < 2 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _chart(draw: Callable[[Any, str], None], alt: str, *, title: str, height: float) -> Chart:
    images = {theme: _render(draw, theme, title, height) for theme in _THEMES}
    return Chart(images["light"], images["dark"], alt)


def _render(draw: Callable[[Any, str], None], theme: str, title: str, height: float) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paper, ink, grid = _THEMES[theme]
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor=paper)
    axes = figure.add_subplot(facecolor=paper)
    draw(axes, ink)
    # margins in inches, set by hand: matplotlib's own layout draws everything twice to find them
    figure.subplots_adjust(_LEFT / _WIDTH, _BOTTOM / height, 1 - _RIGHT / _WIDTH, 1 - _TOP / height)
    axes.set_title(title, loc="left", color=ink, fontsize=11, fontweight="bold")
    axes.grid(visible=True, color=grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=ink, labelsize=9, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=ink, fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return encode_webp(np.asarray(canvas.buffer_rgba())[..., :3], quality=85)
