"""How VGGT's training prepares an image: cropped around the principal point, resized, cropped to a common size. In numpy.

The principal point ends up in the middle to within a pixel, as the encoding of cameras assumes. Image, depth and K change
together. Images are resized as Pillow does it, so that the network sees the pixels it was trained on.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from scipy import sparse

from plumbline.errors import DataError

Size = tuple[int, int]


@dataclass(frozen=True)
class Framed:
    """An image with its depth (metres, 0 = not measured) and K (the centre of the top-left pixel is (0, 0)), of one size."""

    image: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"]
    K: Float[np.ndarray, "3 3"]

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.depth.shape[0], self.depth.shape[1]


def target_size(aspect: float, *, width: int = 518, patch: int = 14) -> Size:
    """The size of all images of a batch whose height over width is `aspect`: rounded down to whole patches."""
    return int(width * aspect) // patch * patch, width


def prepare(view: Framed, target: Size, *, crop: Size | None = None, margin: float = 4.0) -> Framed:
    """`view` at `target`: cropped around the principal point, resized to cover target + `margin` pixels, cropped to it.

    A `crop` (pixels) other than the whole image is zooming in; more `margin` as well. DataError when `target` is larger
    than what can be cut out.
    """
    centred = crop_centred(view, crop or view.size)
    return crop_exactly(resize_to_cover(centred, target, margin=margin), target)


def crop_centred(view: Framed, size: Size) -> Framed:
    """The largest part of `view` that has the principal point in its middle and is no larger than `size`."""
    middle, whole = _principal_point(view), np.asarray(view.size)
    half = np.minimum(np.minimum(np.asarray(size) / 2, middle), whole - middle)
    start = np.floor(middle).astype(int) - np.floor(half).astype(int)
    return _cut(view, start, start + 2 * np.floor(half).astype(int))


def crop_exactly(view: Framed, size: Size) -> Framed:
    """The part of `view` of `size` around the principal point; what is missing below and to the right is 0.

    DataError when `view` is smaller than `size`.
    """
    if view.size[0] < size[0] or view.size[1] < size[1]:
        raise DataError(
            f"vggt: an image of {view.size} is smaller than the crop {size}; expected at least that. "
            "Use larger images, a smaller width, or no zoom."
        )
    middle = _principal_point(view)
    half = np.minimum(np.asarray(size) / 2, middle)
    start = np.floor(middle).astype(int) - np.floor(half).astype(int)
    cut = _cut(view, start, start + size)
    missing = [(0, size[0] - cut.size[0]), (0, size[1] - cut.size[1])]
    return Framed(np.pad(cut.image, [*missing, (0, 0)]), np.pad(cut.depth, missing), cut.K)


def resize_to_cover(view: Framed, target: Size, *, margin: float) -> Framed:
    """`view` resized, its proportions kept, to cover `target` + `margin` pixels.

    The image is filtered (Lanczos when it shrinks, else bicubic), depth is that of the source pixel at floor(i old / new).
    """
    scale = max((wanted + margin) / had for wanted, had in zip(target, view.size, strict=True))
    height, width = (int(np.floor(had * scale)) for had in view.size)
    rows = (np.arange(height) * (view.size[0] / height)).astype(int)
    columns = (np.arange(width) * (view.size[1] / width)).astype(int)
    K = view.K.copy()
    K[:2, 2] += 0.5
    K[:2] *= max(height / view.size[0], width / view.size[1])
    K[:2, 2] -= 0.5
    image = resample(view.image, (height, width), "lanczos" if scale < 1 else "bicubic")
    return Framed(image, view.depth[np.ix_(rows, columns)], K)


def without_outliers(
    depth: Shaped[np.ndarray, "h w"],
    *,
    high: float = 98.0,
    low: float = 0.0,
    farthest: float = np.inf,
    over: Literal["all", "measured"] = "all",
) -> Shaped[np.ndarray, "h w"]:
    """`depth` with 0 beyond `farthest` (metres), then above percentile `high` and below percentile `low`.

    Percentiles are taken over `all` pixels, those not measured included, as in the training code, or over `measured` ones,
    if there are more than 100.
    """
    near = np.where(depth > farthest, 0, depth)
    among = near if over == "all" else near[near > 0]
    if over == "measured" and among.size <= 100:
        return near
    lowest, highest = np.percentile(among, [low, high]) if low > 0 else (0.0, np.percentile(among, high))
    return np.where((near > highest) | (near < lowest), 0, near)


def resample(
    image: UInt8[np.ndarray, "h w c"], size: Size, kind: Literal["lanczos", "bicubic"]
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """`image` at `size`, by filters that widen as it shrinks; columns first, rounded in between, as Pillow does it."""
    height, width, channels = image.shape
    across = image.transpose(1, 0, 2).reshape(width, -1).astype(np.float32)
    narrowed = _rounded(_filters(width, size[1], kind) @ across).reshape(size[1], height, channels)
    down = narrowed.transpose(1, 0, 2).reshape(height, -1)
    return _rounded(_filters(height, size[0], kind) @ down).reshape(*size, channels).astype(np.uint8)


@lru_cache(maxsize=64)
def _filters(old: int, new: int, kind: Literal["lanczos", "bicubic"]) -> sparse.csr_array:
    """A row for each new pixel: the weights of the old ones, summing to 1."""
    support, weigh = (3.0, _lanczos) if kind == "lanczos" else (2.0, _bicubic)
    scale = old / new
    stretch = max(scale, 1.0)
    centre = (np.arange(new) + 0.5)[:, None] * scale
    pixel = np.arange(old)
    weights = weigh((pixel + 0.5 - centre) / stretch)
    first, last = (np.floor(centre + sign * support * stretch + 0.5) for sign in (-1, 1))
    weights[(pixel < first) | (pixel >= last)] = 0
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _lanczos(x: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _bicubic(x: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Keys' cubic with a = -1/2."""
    x = np.abs(x)
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _rounded(x: Float32[np.ndarray, "n m"]) -> Float32[np.ndarray, "n m"]:
    return np.clip(np.floor(x + 0.5), 0, 255)


def _principal_point(view: Framed) -> Float[np.ndarray, " 2"]:
    """(row, column)."""
    return view.K[[1, 0], 2]


def _cut(view: Framed, start: Shaped[np.ndarray, " 2"], end: Shaped[np.ndarray, " 2"]) -> Framed:
    rows, columns = slice(int(start[0]), int(end[0])), slice(int(start[1]), int(end[1]))
    K = view.K.copy()
    K[:2, 2] -= start[::-1]
    return Framed(view.image[rows, columns], view.depth[rows, columns], K)
