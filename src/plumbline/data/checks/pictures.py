"""The picture of a check: views, their depth, and where depth moved from another view disagrees; on one colour scale each."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from plumbline.data.checks.measure import land, occluded, relative_errors, sample_pixels
from plumbline.data.checks.records import Found, SceneCheck
from plumbline.data.checks.scene import read_views
from plumbline.data.checks.verdict import percent
from plumbline.files import atomic_path
from plumbline.records import Scene

_ERROR_SHOWN = 10.0
_DPI = 75
_SHOWN_READINGS = 7
_UNKNOWN = "#d0d7de"
_HIDDEN = (0.33, 0.6, 0.9, 1.0)
_COLOURS = {"ok": "#1a7f37", "wrong": "#c62828", "cannot tell": "#9a6700"}


def draw_sheet(scene: Scene, check: SceneCheck, path: Path, *, views: int) -> None:
    """Write the contact sheet of a checked scene as PNG: up to `views` views in columns, and what was measured below.

    Rows: image; depth in metres; relative depth error of that view moved into its partner. Depth and error have one
    colour scale over all views. A scene that could not be judged shows its images and what depth there is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = _shown(scene, check, views)
    figure = Figure(figsize=(2.05 * max(len(shown), 4) + 1.2, 9.2), dpi=_DPI, layout="constrained")
    figure.suptitle(_title(check), fontsize=10, color=_COLOURS[check.verdict], x=0.01, ha="left", wrap=True)
    rows: Any = figure.subfigures(2, 1, height_ratios=[2.3, 1.0])
    _draw_views(rows[0], scene, shown)
    _draw_measures(rows[1], scene, check)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encoded(FigureCanvasAgg(figure)))


def _encoded(canvas: Any) -> bytes:
    from PIL import Image

    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    # A palette of 256 colours: a quarter of the size, no visible difference at this scale.
    image = Image.fromarray(np.ascontiguousarray(picture)).quantize(256, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _title(check: SceneCheck) -> str:
    return "\n".join([f"{check.verdict.upper()}   {check.diagnosis}", *check.remarks])


def _shown(scene: Scene, check: SceneCheck, count: int) -> list[tuple[int, int | None]]:
    """View and partner of each column, spread over the pairs; single views where there are no pairs."""
    if not check.pairs:
        total = len(scene.view_names)
        return [(round(i * (total - 1) / max(count - 1, 1)), None) for i in range(min(count, total))]
    directed: dict[int, int] = {}
    for first, second in check.pairs:
        directed.setdefault(first, second)
        directed.setdefault(second, first)
    order = sorted(directed)
    picked = sorted({round(i * (len(order) - 1) / max(count - 1, 1)) for i in range(count)})
    return [(order[i], directed[order[i]]) for i in picked]


def _draw_views(figure: Any, scene: Scene, shown: Sequence[tuple[int, int | None]]) -> None:
    # The colour bars have a column of their own, so that the views of all rows stay one below the other.
    grid = figure.subplots(3, len(shown) + 1, squeeze=False, width_ratios=[1.0] * len(shown) + [0.07])
    low, high = _depth_limits(scene, shown)
    depth_image = error_image = None
    for column, (view, partner) in enumerate(shown):
        grid[0, column].imshow(np.asarray(scene.images[view]))
        grid[0, column].set_title(_short(scene.view_names[view]), fontsize=7)
        if scene.depth is not None:
            depth = np.asarray(scene.depth[view])
            depth_image = grid[1, column].imshow(np.where(depth > 0, depth, np.nan), "viridis", vmin=low, vmax=high)
        if partner is not None:
            error_image = _draw_errors(grid[2, column], scene, view, partner)
    for axes in grid[:, :-1].ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor(_UNKNOWN)
    for row, name in enumerate(("image", "depth z", "depth error")):
        grid[row, 0].set_ylabel(name, fontsize=9)
    for axes, image, label in zip(
        grid[:, -1],
        (None, depth_image, error_image),
        ("", "depth z (m)\ngrey: not measured", "relative depth error (%)\nblue: hidden there; grey: unseen"),
    ):
        _bar(figure, axes, image, label)


def _draw_errors(axes: Any, scene: Scene, view: int, partner: int) -> Any:
    errors, hidden = error_map(scene, view, partner)
    image = axes.imshow(100 * np.where(hidden, np.nan, errors), "inferno", vmin=0, vmax=_ERROR_SHOWN)
    cover = np.zeros((*hidden.shape, 4), np.float32)
    cover[hidden] = _HIDDEN
    axes.imshow(cover)
    axes.set_title(f"into {_short(scene.view_names[partner])}", fontsize=7)
    return image


def _bar(figure: Any, axes: Any, image: Any, label: str) -> None:
    if image is None:
        axes.set_axis_off()
        return
    bar = figure.colorbar(image, cax=axes)
    bar.set_label(label, fontsize=7)
    axes.tick_params(labelsize=7)


def _depth_limits(scene: Scene, shown: Sequence[tuple[int, int | None]]) -> tuple[float, float]:
    measured = np.ones(1) if scene.depth is None else _measured(scene, shown)
    low, high = np.percentile(measured, [2, 98]) if measured.size else (0.0, 1.0)
    return float(low), float(high)


def _measured(scene: Scene, shown: Sequence[tuple[int, int | None]]) -> np.ndarray:
    stack = np.stack([np.asarray(scene.depth[view])[::2, ::2] for view, _ in shown if scene.depth is not None])
    return np.asarray(stack[stack > 0])


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def error_map(scene: Scene, first: int, second: int) -> tuple[Float64[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Relative depth error of each pixel of one view, moved into another (NaN: not seen there), and what is hidden there."""
    pair = read_views(scene, [first, second])
    height, width = pair.depth.shape[1:]
    pixels = sample_pixels((height, width), height * width)[None]
    source, target = np.array([0]), np.array([1])
    landing = land(pair, source, target, pixels)
    errors, compared = relative_errors(pair, target, landing)
    hidden = occluded(pair, source, target, landing, tolerance=_ERROR_SHOWN / 200)
    return np.where(compared, errors, np.nan).reshape(height, width), hidden.reshape(height, width)


def _draw_measures(figure: Any, scene: Scene, check: SceneCheck) -> None:
    histogram, bars = figure.subplots(1, 2, width_ratios=[1, 1.6])
    _draw_histogram(histogram, scene, check)
    readings = [*([check.as_read] if check.as_read else []), *_best(check.others), *check.nulls]
    readings = [found for found in readings if found.error is not None]
    if not readings:
        bars.set_axis_off()
        bars.text(0.5, 0.5, "no pair of views to measure", ha="center", fontsize=9)
        return
    values = [max(100 * (found.error or 0), 1e-3) for found in readings]
    colours = [_COLOURS[check.verdict] if i == 0 else "#8c959f" for i in range(len(readings))]
    bars.barh([found.label for found in readings], values, color=colours)
    for i, found in enumerate(readings):
        text = f" {percent(found.error)}, texture {found.photometric or 0:.2f}"
        bars.text(values[i], i, text, va="center", fontsize=6.5)
    bars.set_xscale("log")
    bars.set_xlim(min(values) / 2, max(values) * 12)
    bars.invert_yaxis()
    bars.set_xlabel("median relative depth error (%), log scale", fontsize=8)
    bars.tick_params(labelsize=7)


def _best(found: Sequence[Found]) -> list[Found]:
    return sorted((f for f in found if f.error is not None), key=lambda f: f.error or 0.0)[:_SHOWN_READINGS]


def _draw_histogram(axes: Any, scene: Scene, check: SceneCheck) -> None:
    step = max(len(scene.view_names) // 16, 1)
    sampled = None if scene.depth is None else np.asarray(scene.depth[::step, ::4, ::4])
    measured = np.zeros(0) if sampled is None else sampled[sampled > 0]
    if sampled is None or measured.size == 0:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no depth", ha="center", fontsize=9)
        return
    high = float(np.percentile(measured, 99.5))
    axes.hist(measured[measured <= high], bins=60, color="#57606a")
    for limit in scene.depth_range:
        if limit <= 1.2 * high:
            axes.axvline(limit, color="#c62828", linestyle="--", linewidth=1)
    share = measured.size / sampled.size
    axes.set_title(f"{100 * share:.0f} % of pixels measured; dashed: depth range", fontsize=8)
    axes.set_xlabel("depth z (m)", fontsize=8)
    axes.set_ylabel("pixels (sampled)", fontsize=8)
    axes.tick_params(labelsize=7)
