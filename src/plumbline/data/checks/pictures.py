"""The picture of a check: views, their depth, and where depth moved from another view disagrees; on one colour scale each."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
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
# Inches.
_TILE, _GAP, _LEFT, _RIGHT, _HEAD, _FOOT, _MIN_WIDTH = 2.0, 0.06, 0.45, 1.0, 0.75, 2.7, 10.0


def draw_sheet(scene: Scene, check: SceneCheck, path: Path, *, views: int) -> None:
    """Write the contact sheet of a checked scene as PNG: up to `views` views in columns, and what was measured below.

    Rows: image; depth in metres; relative depth error of that view moved into its partner. Depth and error have one
    colour scale over all views. A scene that could not be judged shows its images and what depth there is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = _shown(scene, check, views)
    height, width = np.asarray(scene.images[0]).shape[:2]
    tile = _TILE * height / width
    size = (max(_LEFT + len(shown) * (_TILE + _GAP) + _RIGHT, _MIN_WIDTH), _HEAD + 3 * (tile + 0.25) + _FOOT)
    figure = Figure(figsize=size, dpi=_DPI)
    title = "\n".join(textwrap.fill(line, int(size[0] * 13)) for line in _title(check))
    figure.text(_LEFT / size[0], 1 - 0.1 / size[1], title, fontsize=10, color=_COLOURS[check.verdict], va="top")
    _draw_views(_Page(figure, size), scene, shown, tile)
    _draw_measures(_Page(figure, size), scene, check)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encoded(FigureCanvasAgg(figure)))


@dataclass(frozen=True)
class _Page:
    """A figure with places in inches from its lower left corner: one axes a row is four times faster than one a view."""

    figure: Any
    size: tuple[float, float]

    def axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        across, up = self.size
        return self.figure.add_axes((left / across, bottom / up, width / across, height / up))


def _encoded(canvas: Any) -> bytes:
    from PIL import Image

    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    # A palette of 256 colours: a quarter of the size, no visible difference at this scale.
    image = Image.fromarray(np.ascontiguousarray(picture)).quantize(256, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _title(check: SceneCheck) -> list[str]:
    return [f"{check.verdict.upper()}   {check.diagnosis}", *check.remarks]


def _shown(scene: Scene, check: SceneCheck, count: int) -> list[tuple[int, int | None]]:
    """View and partner of each column, spread over the pairs; single views where there are no pairs."""
    if not check.pairs:
        total = len(scene.view_names)
        few = min(count, total)
        return [(round(i * (total - 1) / max(few - 1, 1)), None) for i in range(few)]
    directed: dict[int, int] = {}
    for first, second in check.pairs:
        directed.setdefault(first, second)
        directed.setdefault(second, first)
    order = sorted(directed)
    picked = sorted({round(i * (len(order) - 1) / max(count - 1, 1)) for i in range(count)})
    return [(order[i], directed[order[i]]) for i in picked]


def _draw_views(page: _Page, scene: Scene, shown: Sequence[tuple[int, int | None]], tile: float) -> None:
    low, high = _depth_limits(scene, shown)
    strips = [np.asarray(scene.images[view]) for view, _ in shown]
    names = [_short(scene.view_names[view]) for view, _ in shown]
    _strip(page, 0, tile, strips, names, "image")
    if scene.depth is None:
        return
    depth = [np.where(scene.depth[view] > 0, scene.depth[view], np.nan) for view, _ in shown]
    image = _strip(page, 1, tile, depth, [], "depth z", cmap="viridis", vmin=low, vmax=high)
    _bar(page, 1, tile, image, "depth z (m)\ngrey: not measured")
    if any(partner is None for _, partner in shown):
        return
    maps = [error_map(scene, view, partner) for view, partner in shown if partner is not None]
    errors = [100 * np.where(hidden, np.nan, error) for error, hidden in maps]
    names = [f"into {_short(scene.view_names[partner])}" for _, partner in shown if partner is not None]
    image = _strip(page, 2, tile, errors, names, "depth error", cmap="inferno", vmin=0, vmax=_ERROR_SHOWN)
    _bar(page, 2, tile, image, "relative depth error (%)\nblue: hidden there; grey: unseen")
    image.axes.imshow(_mosaic([hidden[..., None] * np.array(_HIDDEN) for _, hidden in maps], fill=0.0))


def _strip(
    page: _Page, row: int, tile: float, pictures: Sequence[np.ndarray], names: Sequence[str], label: str, **style: Any
) -> Any:
    """Draw pictures of one size side by side as one image, with a name above each; the image artist."""
    plain = pictures[0].ndim == 3
    mosaic = _mosaic(pictures, fill=255.0 if plain else np.nan)
    height, width = pictures[0].shape[:2]
    axes = page.axes(_LEFT, _bottom(page, row, tile), _TILE * mosaic.shape[1] / width, tile)
    axes.set_facecolor(_UNKNOWN)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel(label, fontsize=9)
    pitch = mosaic.shape[1] / len(pictures)
    for i in range(len(pictures)):
        axes.axvspan(i * pitch + width - 0.5, (i + 1) * pitch - 0.5, color="white", linewidth=0)
    for i, name in enumerate(names):
        axes.text((i + 0.5) * pitch, -0.02 * height, name, fontsize=7, ha="center", va="bottom")
    return axes.imshow(mosaic, aspect="auto", **style)


def _bottom(page: _Page, row: int, tile: float) -> float:
    return page.size[1] - _HEAD - tile - row * (tile + 0.25)


def _mosaic(pictures: Sequence[np.ndarray], *, fill: float) -> np.ndarray:
    gap = round(_GAP / _TILE * pictures[0].shape[1])
    pad = ((0, 0), (0, gap), *(((0, 0),) if pictures[0].ndim == 3 else ()))
    return np.concatenate([np.pad(picture, pad, constant_values=fill) for picture in pictures], axis=1)


def _bar(page: _Page, row: int, tile: float, image: Any, label: str) -> None:
    left = image.axes.get_position().x1 * page.size[0] + 0.08
    axes = page.axes(left, _bottom(page, row, tile), 0.12, tile)
    page.figure.colorbar(image, cax=axes).set_label(label, fontsize=7)
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


def _draw_measures(page: _Page, scene: Scene, check: SceneCheck) -> None:
    across = page.size[0]
    _draw_histogram(page.axes(0.75, 0.5, 0.28 * across, 1.8), scene, check)
    bars = page.axes(0.28 * across + 4.3, 0.5, 0.72 * across - 4.6, 1.8)
    readings = [*([check.as_read] if check.as_read else []), *_best(check.others), *check.nulls]
    readings = [found for found in readings if found.error is not None]
    if readings:
        _draw_bars(bars, readings, _COLOURS[check.verdict])
        return
    bars.set_axis_off()
    bars.text(0.5, 0.5, "no pair of views to measure", ha="center", fontsize=9)


def _draw_bars(bars: Any, readings: Sequence[Found], colour: str) -> None:
    values = [max(100 * (found.error or 0), 1e-3) for found in readings]
    colours = [colour if found.label == "as read" else "#8c959f" for found in readings]
    bars.barh([found.label for found in readings], values, color=colours)
    for i, found in enumerate(readings):
        text = f" {percent(found.error)}, texture {found.photometric or 0:.2f}"
        bars.text(values[i], i, text, va="center", fontsize=6.5)
    bars.set_xscale("log")
    bars.set_xlim(min(values) / 2, max(values) * 30)
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
