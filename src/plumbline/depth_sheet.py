"""A contact sheet of predicted depth: image, prediction, truth and error of each view, on one stated scale.

Views that were rendered follow with what was to be seen, what was rendered, and the error of its colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from plumbline.files import write_jpg, write_png

# Relative depth error, and error of colours in [0, 1], at the upper end: one for all pictures, so that they can be compared.
ERROR_SHOWN = 0.2
COLOUR_MAPS = {"depth": cv2.COLORMAP_VIRIDIS, "error": cv2.COLORMAP_INFERNO}
# Not measured, or abstained: a grey that neither colour map contains.
_NOTHING = (128, 128, 128)
_TILE, _GAP, _HEAD, _FOOT, _BAR = 320, 8, 46, 36, 12
_TEXT, _SMALL = 13, 12
_INK, _PALE = (31, 35, 40), (101, 109, 118)
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_NAMED = {"abs_rel": "abs_rel {:.4f}", "delta1": "delta1 {:.0%}", "coverage": "covered {:.0%}"}


@dataclass(frozen=True)
class SheetRow:
    """One view. Depth in metres: 0 where nothing is predicted, in `truth` also where it does not count; None: no truth."""

    title: str
    sources: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    prediction: Float32[np.ndarray, "h w"]
    truth: Float32[np.ndarray, "h w"] | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RenderedRow:
    """One view that was rendered from others: what is seen there, the colours in [0, 1] and depth (metres, 0: none) found."""

    title: str
    sources: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    rendered: Float32[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"] | None


Row = SheetRow | RenderedRow


def draw_sheet(rows: Sequence[Row], path: Path, *, method: str) -> None:
    """Write the sheet as PNG or JPEG (by the name). Depth has one scale over all rows, that of the truth where there is any."""
    limits = depth_limits([row for row in rows if isinstance(row, SheetRow)])
    columns = 4 if any(isinstance(row, RenderedRow) or row.truth is not None for row in rows) else 2
    height = max(1, round(rows[0].image.shape[0] * _TILE / rows[0].image.shape[1]))
    canvas = np.full((len(rows) * (_HEAD + height) + _FOOT, columns * (_TILE + _GAP) + _GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        top = i * (_HEAD + height) + _HEAD
        for j, tile in enumerate(_tiles(row, limits)):
            left = _GAP + j * (_TILE + _GAP)
            smooth = j == 0 or (j == 1 and isinstance(row, RenderedRow))
            canvas[top : top + height, left : left + _TILE] = _fit(tile, height, smooth=smooth)
    _draw_bars(canvas, columns)
    write = write_png if path.suffix == ".png" else write_jpg
    write(path, _labelled(canvas, rows, limits, height, method))


def depth_limits(rows: Sequence[SheetRow]) -> tuple[float, float]:
    """The depth scale in metres: the 2nd and 98th percentile of all truth, or of the predictions where there is none."""
    known = [row.truth[row.truth > 0] for row in rows if row.truth is not None]
    if not any(len(values) for values in known):
        known = [row.prediction[row.prediction > 0] for row in rows]
    values = np.concatenate([np.zeros(0, np.float32), *known])
    if not len(values):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (2, 98)))
    return low, max(high, 1.02 * low)


def coloured(
    values: Float32[np.ndarray, "h w"], shown: Bool[np.ndarray, "h w"], limits: tuple[float, float], kind: str
) -> UInt8[np.ndarray, "h w 3"]:
    """`values` between `limits` (beyond: the end colours) in the colours of `kind`, RGB; grey where not `shown`."""
    low, high = limits
    level = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    painted = cv2.applyColorMap((255 * level).astype(np.uint8), COLOUR_MAPS[kind])[..., ::-1]
    return np.where(shown[..., None], painted, np.array(_NOTHING, np.uint8)).astype(np.uint8)


def _tiles(row: Row, limits: tuple[float, float]) -> list[UInt8[np.ndarray, "h w 3"]]:
    if isinstance(row, RenderedRow):
        return _rendered_tiles(row, limits)
    predicted = row.prediction > 0
    tiles = [row.image, coloured(row.prediction, predicted, limits, "depth")]
    if row.truth is None:
        return tiles
    known = row.truth > 0
    error = np.abs(row.prediction - row.truth) / np.where(known, row.truth, np.float32(1))
    compared = known & predicted
    return [*tiles, coloured(row.truth, known, limits, "depth"), coloured(error, compared, (0.0, ERROR_SHOWN), "error")]


def _rendered_tiles(row: RenderedRow, limits: tuple[float, float]) -> list[UInt8[np.ndarray, "h w 3"]]:
    depth = np.zeros(row.image.shape[:2], np.float32) if row.depth is None else row.depth
    everywhere = np.ones(depth.shape, bool)
    return [
        row.image,
        np.rint(255 * np.clip(row.rendered, 0, 1)).astype(np.uint8),
        coloured(depth, depth > 0, limits, "depth"),
        coloured(_colour_error(row), everywhere, (0.0, ERROR_SHOWN), "error"),
    ]


def _colour_error(row: RenderedRow) -> Float32[np.ndarray, "h w"]:
    return np.abs(row.rendered - row.image.astype(np.float32) / 255).mean(axis=-1)


def _captions(row: Row, method: str) -> list[str]:
    if isinstance(row, RenderedRow):
        error = np.square(row.rendered - row.image / 255, dtype=np.float64).mean()
        return [
            "to be seen",
            f"rendered: {method}",
            "depth: rendered",
            f"error: {-10 * np.log10(max(error, 1e-12)):.2f} dB",
        ]
    if row.truth is None:
        return ["image", f"depth: {method}"]
    numbers = [text.format(row.metrics[name]) for name, text in _NAMED.items() if name in row.metrics]
    return ["image", f"depth: {method}", "depth: truth", f"error: {', '.join(numbers) or 'nothing to compare'}"]


def _fit(tile: UInt8[np.ndarray, "h w 3"], height: int, *, smooth: bool) -> UInt8[np.ndarray, "h2 w2 3"]:
    # Maps keep their own values: an average of two depths is one that nothing has.
    smaller = cv2.INTER_AREA if smooth else cv2.INTER_NEAREST
    larger = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    way = smaller if tile.shape[1] > _TILE else larger
    return np.asarray(cv2.resize(tile, (_TILE, height), interpolation=way))


def _draw_bars(canvas: UInt8[np.ndarray, "h w 3"], columns: int) -> None:
    ramp = np.tile(np.linspace(0, 1, _TILE, dtype=np.float32), (_BAR, 1))
    top = canvas.shape[0] - _FOOT + 4
    for column, kind in ((1, "depth"), (3, "error"))[: columns // 2]:
        left = _GAP + column * (_TILE + _GAP)
        canvas[top : top + _BAR, left : left + _TILE] = coloured(ramp, ramp >= 0, (0.0, 1.0), kind)


def _labelled(
    canvas: UInt8[np.ndarray, "h w 3"], rows: Sequence[Row], limits: tuple[float, float], height: int, method: str
) -> UInt8[np.ndarray, "h w 3"]:
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    text, small = ImageFont.load_default(_TEXT), ImageFont.load_default(_SMALL)
    for i, row in enumerate(rows):
        top = i * (_HEAD + height) + 8
        draw.text((_GAP, top), row.title, fill=_INK, font=text)
        left = 3 * _GAP + int(draw.textlength(row.title, font=text))
        draw.text((left, top + 1), _sources(row, draw, small, canvas.shape[1] - _GAP - left), fill=_PALE, font=small)
        for j, caption in enumerate(_captions(row, method)):
            draw.text((_GAP + j * (_TILE + _GAP), top + 20), caption, fill=_PALE, font=small)
    foot = canvas.shape[0] - _FOOT + 4 + _BAR + 2
    _draw_scale(draw, 1, foot, (f"{limits[0]:.3g} m", "grey: none", f"{limits[1]:.3g} m"), small)
    if canvas.shape[1] > 3 * (_TILE + _GAP):
        of = "" if any(isinstance(row, RenderedRow) for row in rows) else " of the depth"
        _draw_scale(draw, 3, foot, ("0", "grey: not compared", f"{ERROR_SHOWN:.0%}{of} and more"), small)
    return np.asarray(picture)


def _sources(row: Row, draw: ImageDraw.ImageDraw, font: _Font, width: int) -> str:
    """The names of a row's sources, as many as fit into `width` pixels."""
    for shown in range(len(row.sources), -1, -1):
        more = [] if shown == len(row.sources) else [f"{len(row.sources) - shown} more"]
        line = "from " + ", ".join([*row.sources[:shown], *more])
        if draw.textlength(line, font=font) <= width:
            break
    return line


def _draw_scale(draw: ImageDraw.ImageDraw, column: int, top: int, texts: tuple[str, str, str], font: _Font) -> None:
    left = _GAP + column * (_TILE + _GAP)
    middle = left + (_TILE // 3 if column > 1 else _TILE // 2)
    for text, (x, anchor) in zip(texts, ((left, "la"), (middle, "ma"), (left + _TILE, "ra")), strict=True):
        draw.text((x, top), text, fill=_PALE, font=font, anchor=anchor)
