"""Textures that live on surfaces: bitmaps made from a seed, with a pyramid so that no view sees aliasing.

A texture is a modulator of a surface's colour (mean about 1) or a print (its colours as they are). Patterns are periodic,
so that a surface of any size is covered without a seam.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32

SIDE = 512
_ROW = 1024
_WORDS = [
    "OATS",
    "TEA",
    "MILK",
    "SALT",
    "RICE",
    "SOAP",
    "CORN",
    "BLUE",
    "MAP",
    "FIG",
    "NO",
    "7",
    "42",
    "LAB",
    "BOOK",
    "VOL",
    "LEMON",
    "PLUM",
    "NORTH",
]

Bitmap = Float32[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Texture:
    """A bitmap and its halvings, float32 RGB reflectance, down to 2x2 texels."""

    levels: tuple[np.ndarray, ...]


def pyramid(bitmap: Bitmap) -> Texture:
    """A texture of a square bitmap with a power of two as its side."""
    levels: list[np.ndarray] = [np.ascontiguousarray(bitmap, np.float32)]
    while levels[-1].shape[0] > 2:
        side = levels[-1].shape[0] // 2
        levels.append(np.asarray(cv2.resize(levels[-1], (side, side), interpolation=cv2.INTER_AREA), np.float32))
    return Texture(tuple(levels))


def sample(texture: Texture, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> Float32[np.ndarray, "n 3"]:
    """Colours at (u, v) in periods of the texture, filtered to `level` (0: one texel a pixel; 1: two; trilinear)."""
    level = np.clip(level, 0, len(texture.levels) - 1.001)
    lower = level.astype(np.int32)
    part = (level - lower).astype(np.float32)[:, None]
    colours = np.empty((len(u), 3), np.float32)
    for k in np.unique(lower):
        chosen = np.flatnonzero(lower == k)
        fine, coarse = (_periodic(texture.levels[n], u[chosen], v[chosen]) for n in (k, k + 1))
        colours[chosen] = fine + part[chosen] * (coarse - fine)
    return colours


def _periodic(bitmap: Bitmap, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    side = bitmap.shape[0]
    return lookup(bitmap, (u % 1) * side - 0.5, (v % 1) * side - 0.5, border=cv2.BORDER_WRAP)


def lookup(bitmap: np.ndarray, x: np.ndarray, y: np.ndarray, *, border: int) -> np.ndarray:
    """Bilinear values (n, c) of a bitmap (h, w, c) at lists of pixels; `border` is OpenCV's code for what lies outside."""
    # cv2.remap wants maps of less than 32768 rows and columns: the list is folded into rows.
    count = len(x)
    rows = -(-count // _ROW)
    if rows == 0:
        return np.empty((0, bitmap.shape[2]), bitmap.dtype)
    maps = np.zeros((2, rows * _ROW), np.float32)
    maps[0, :count], maps[1, :count] = x, y
    folded = maps.reshape(2, rows, _ROW)
    values = cv2.remap(bitmap, folded[0], folded[1], cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(values.reshape(-1, bitmap.shape[2])[:count])


def fractal(rng: np.random.Generator, *, slope: float, stretch: float = 1.0, side: int = SIDE) -> np.ndarray:
    """Periodic noise (side, side) of mean 0 and deviation 1 with amplitude ~ frequency^-slope; `stretch` > 1: grain along x."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    frequency = np.hypot(rows, columns * stretch)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), np.float32)) * (frequency**-slope).astype(np.float32)
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return np.asarray(noise / noise.std(), np.float32)


def mottled(rng: np.random.Generator) -> Bitmap:
    """Stains and grain at all scales, as on stone, plaster and cardboard; deviation 0.25."""
    grey = 0.7 * fractal(rng, slope=rng.uniform(0.9, 1.5)) + 0.3 * fractal(rng, slope=0.4)
    tone = fractal(rng, slope=1.4)
    return _grey(1 + 0.25 * grey) + 0.06 * tone[..., None] * _direction(rng)


def wood(rng: np.random.Generator) -> Bitmap:
    """Boards with grain along u and seams between boards."""
    warp = fractal(rng, slope=1.8, stretch=6.0)
    rows = np.linspace(0, 1, SIDE, endpoint=False, dtype=np.float32)[:, None]
    rings = np.sin(2 * np.pi * (rng.integers(5, 14) * rows + 0.5 * warp))
    grain = fractal(rng, slope=0.8, stretch=14.0)
    boards = int(rng.integers(2, 6))
    tones = np.repeat(rng.normal(0, 0.10, boards), -(-SIDE // boards))[:SIDE, None]
    seam = np.where((np.arange(SIDE) % (SIDE // boards)) < 3, 0.55, 1.0)[:, None]
    return _grey((1 + 0.10 * rings + 0.10 * grain + tones) * seam)


def speckle(rng: np.random.Generator) -> Bitmap:
    """Fine grains of two tones on a third, as granite, terrazzo or carpet."""
    fine, coarse = fractal(rng, slope=rng.uniform(0.4, 0.8)), fractal(rng, slope=0.9)
    grains = np.where(fine > 0.9, 0.5, 0.0) - np.where(fine < -0.9, 0.45, 0.0)
    return _grey(1 + grains + 0.08 * coarse)


def tiles(rng: np.random.Generator) -> Bitmap:
    """Square tiles with joints and tones of their own: a repeated pattern."""
    count = int(rng.choice([4, 8, 16]))
    tones = rng.normal(1, rng.choice([0.02, 0.15]), (count, count)).astype(np.float32)
    bitmap = np.kron(tones, np.ones((SIDE // count,) * 2, np.float32))
    along = (np.arange(SIDE) % (SIDE // count)) < max(2, SIDE // count // 14)
    joint = rng.choice([0.5, 1.25])
    bitmap[along[:, None] | along[None, :]] = joint
    return _grey(bitmap + 0.02 * fractal(rng, slope=1.0))


def bricks(rng: np.random.Generator) -> Bitmap:
    """Courses of bricks, every second one shifted by half a brick."""
    rows, columns = 16, 6
    height, width = SIDE // rows, SIDE // columns + 1
    y, x = np.mgrid[:SIDE, :SIDE]
    course = y // height
    shifted = x + (course % 2) * width // 2
    tones = rng.normal(1, 0.16, (rows, columns + 2)).astype(np.float32)
    bitmap = tones[course % rows, (shifted // width) % columns]
    bitmap = np.where((y % height < 3) | (shifted % width < 3), 1.35, bitmap)
    return _grey(bitmap + 0.10 * fractal(rng, slope=0.7))


def stripes(rng: np.random.Generator) -> Bitmap:
    """Stripes of random widths and colours along u, as cloth and carpet."""
    edges = np.sort(rng.choice(np.arange(4, SIDE, 4), int(rng.integers(10, 60)), replace=False))
    colours = rng.normal(1, 0.3, (len(edges) + 1, 1)) + rng.normal(0, 0.12, (len(edges) + 1, 3))
    rows = colours[np.searchsorted(edges, np.arange(SIDE))]
    weave = 0.08 * fractal(rng, slope=0.3)
    return np.clip(rows[:, None] + weave[..., None], 0.1, 2).astype(np.float32)


def checks(rng: np.random.Generator) -> Bitmap:
    """A chequered cloth: a strictly repeated pattern."""
    count = int(rng.choice([8, 16]))
    y, x = np.mgrid[:SIDE, :SIDE] * count // SIDE
    level = np.where((x + y) % 2, 1.25, 0.6) if rng.random() < 0.4 else 1.2 - 0.35 * (x % 2) - 0.35 * (y % 2)
    return _grey(level + 0.04 * fractal(rng, slope=0.6))


def blotches(rng: np.random.Generator) -> Bitmap:
    """Coloured patches with sharp borders, as camouflage, leaves or wrapping paper."""
    half = np.stack([fractal(rng, slope=1.1, side=SIDE // 2) for _ in range(4)], axis=-1)
    fields = cv2.resize(half, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    colours = np.clip(rng.normal(1, 0.4, (4, 3)), 0.15, 1.9)
    return (colours[np.argmax(fields, axis=-1)] + 0.08 * fractal(rng, slope=0.5)[..., None]).astype(np.float32)


def packaging(rng: np.random.Generator) -> Bitmap:
    """A printed face of a box, can or book: a ground, panels, a picture and lettering. Colours as they are."""
    canvas = np.full((SIDE, SIDE, 3), 0, np.float32) + rng.uniform(0.05, 0.9, 3).astype(np.float32)
    for _ in range(int(rng.integers(2, 7))):
        corner, size = rng.integers(0, SIDE - 60, 2), rng.integers(40, 300, 2)
        cv2.rectangle(canvas, _pair(corner), _pair(corner + size), _colour(rng), -1)
    for _ in range(int(rng.integers(0, 5))):
        cv2.circle(
            canvas, _pair(rng.integers(40, SIDE - 40, 2)), int(rng.integers(12, 110)), _colour(rng), -1, cv2.LINE_AA
        )
    _picture(rng, canvas)
    for _ in range(int(rng.integers(1, 5))):
        word, place = str(rng.choice(_WORDS)), _pair(rng.integers(10, SIDE - 150, 2))
        cv2.putText(
            canvas,
            word,
            place,
            cv2.FONT_HERSHEY_DUPLEX,
            rng.uniform(1.2, 4.5),
            _colour(rng),
            int(rng.integers(3, 12)),
            cv2.LINE_AA,
        )
    _paragraph(rng, canvas, rows=int(rng.integers(0, 9)))
    return np.clip(canvas + 0.015 * fractal(rng, slope=0.8)[..., None], 0.02, 0.95)


def sheet(rng: np.random.Generator) -> Bitmap:
    """A printed page: mostly white, lines of text, sometimes a figure. Colours as they are."""
    canvas = np.full((SIDE, SIDE, 3), rng.uniform(0.7, 0.9), np.float32)
    if rng.random() < 0.6:
        _picture(rng, canvas)
    _paragraph(rng, canvas, rows=int(rng.integers(6, 20)))
    return np.clip(canvas, 0.02, 0.95)


def facade(rng: np.random.Generator) -> Bitmap:
    """A wall of a house: windows in rows, frames and sills. Colours as they are."""
    canvas = np.full((SIDE, SIDE, 3), 0, np.float32) + rng.uniform(0.35, 0.85, 3).astype(np.float32)
    canvas *= 1 + 0.08 * fractal(rng, slope=0.7)[..., None]
    rows, columns = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    glass, frame = rng.uniform(0.03, 0.2, 3), tuple(rng.uniform(0.6, 0.95, 3).tolist())
    for row in range(rows):
        for column in range(columns):
            top, left = int((row + 0.25) * SIDE / rows), int((column + 0.25) * SIDE / columns)
            bottom, right = top + SIDE // rows // 2, left + SIDE // columns // 2
            cv2.rectangle(canvas, (left, top), (right, bottom), (glass * rng.uniform(0.6, 1.8)).tolist(), -1)
            cv2.rectangle(canvas, (left, top), (right, bottom), frame, 6)
            cv2.line(canvas, ((left + right) // 2, top), ((left + right) // 2, bottom), frame, 4)
    return np.clip(canvas, 0.02, 0.95)


KINDS: dict[str, Callable[[np.random.Generator], Bitmap]] = {
    "mottled": mottled,
    "wood": wood,
    "speckle": speckle,
    "tiles": tiles,
    "bricks": bricks,
    "stripes": stripes,
    "checks": checks,
    "blotches": blotches,
    "packaging": packaging,
    "sheet": sheet,
    "facade": facade,
}
PRINTS = ("packaging", "sheet", "facade")


def _grey(values: np.ndarray) -> Bitmap:
    return np.repeat(np.clip(values, 0.1, 2.2).astype(np.float32)[..., None], 3, axis=2)


def _direction(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 1, 3).astype(np.float32)


def _colour(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(rng.uniform(0.03, 0.92, 3).tolist())


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _picture(rng: np.random.Generator, canvas: Bitmap) -> None:
    height, width = (int(x) for x in rng.integers(100, 256, 2))
    top, left = int(rng.integers(0, SIDE - height)), int(rng.integers(0, SIDE - width))
    shades = np.clip(
        0.45 + 0.25 * np.stack([fractal(rng, slope=1.1, side=SIDE // 2) for _ in range(3)], axis=-1), 0.03, 0.95
    )
    canvas[top : top + height, left : left + width] = shades[:height, :width]


def _paragraph(rng: np.random.Generator, canvas: Bitmap, *, rows: int) -> None:
    ink, left = _dark(rng), int(rng.integers(20, 120))
    pitch = int(rng.integers(14, 26))
    top = int(rng.integers(20, max(21, SIDE - rows * pitch - 20)))
    for row in range(rows):
        x = left
        while x < SIDE - 60:
            length = int(rng.integers(8, 46))
            y = top + row * pitch
            cv2.rectangle(canvas, (x, y), (min(x + length, SIDE - 30), y + pitch // 3), ink, -1)
            x += length + int(rng.integers(6, 14))


def _dark(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(rng.uniform(0.02, 0.25, 3).tolist())
