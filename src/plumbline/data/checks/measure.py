"""How well depth, intrinsics, poses and images of a scene agree, measured on pairs of views.

The depth of view A is lifted, moved into view B and compared there with B's own depth (relative error of z) and, through
the same warp, A's image with B's (normalised correlation). The depth error alone does not arbitrate between readings:
depth that is far too large is nearly self-consistent, since parallax vanishes. Images do not scale, so the correlation
of their texture is an independent witness.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8

from plumbline.data.geometry import invert

# Scales of the texture: fine enough to tell a shift of a few pixels, coarse enough for sensors whose colour and depth
# are registered to a few pixels only.
_FINE_SIGMA = 1.0
_COARSE_SIGMA = 6.0
_MIN_SAMPLES = 50


@dataclass(frozen=True)
class Reading:
    """Some views of a scene under one reading, at one size: texture, depth (metres, 0 = not measured), cameras."""

    texture: Float32[np.ndarray, "v h w"]
    depth: Float32[np.ndarray, "v h w"]
    K: Float64[np.ndarray, "v 3 3"]
    world_T_cam: Float64[np.ndarray, "v 4 4"]


@dataclass(frozen=True)
class Score:
    """One reading, measured. Ratios are in [0, 1]; `error` and `photometric` are None when nothing overlaps.

    error: median over samples of |z moved - z measured| / z measured; inliers: share of samples below the threshold;
    overlap: mean over pairs of the share of measured pixels that land on measured depth of the other view;
    photometric: mean correlation of texture in [-1, 1]; pairs: directed pairs with enough overlap.
    """

    error: float | None
    inliers: float
    overlap: float
    photometric: float | None
    pairs: int


@dataclass(frozen=True)
class Landing:
    """Where samples of the first view of each directed pair come to lie in the second one."""

    uv: Float64[np.ndarray, "p n 2"]
    z: Float64[np.ndarray, "p n"]
    measured: Bool[np.ndarray, "p n"]  # the sample has depth in its own view
    inside: Bool[np.ndarray, "p n"]  # measured, in front of the second camera and within its image


def texture_of(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """Grey values less their surroundings, over the local contrast: insensitive to exposure and shading."""
    grey = image.astype(np.float32).mean(axis=-1)
    detail = cv2.GaussianBlur(grey, (0, 0), _FINE_SIGMA) - cv2.GaussianBlur(grey, (0, 0), _COARSE_SIGMA)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), _COARSE_SIGMA))
    return np.asarray(detail / (contrast + 2.0), np.float32)


def sample_pixels(size: tuple[int, int], count: int) -> Int[np.ndarray, "n 2"]:
    """About `count` pixels (u, v) on a regular grid over an image of `size` (height, width)."""
    step = max(1, round(np.sqrt(size[0] * size[1] / count)))
    v, u = np.meshgrid(np.arange(step // 2, size[0], step), np.arange(step // 2, size[1], step), indexing="ij")
    return np.stack([u.ravel(), v.ravel()], axis=-1)


def lift(
    uv: Int[np.ndarray, "p n 2"], z: Float[np.ndarray, "p n"], K: Float64[np.ndarray, "p 3 3"]
) -> Float64[np.ndarray, "p n 3"]:
    """Points in the camera frame of pixels `uv` at depth `z`, one camera per row."""
    y = (uv[..., 1] - K[:, None, 1, 2]) / K[:, None, 1, 1]
    x = (uv[..., 0] - K[:, None, 0, 2] - K[:, None, 0, 1] * y) / K[:, None, 0, 0]
    return np.stack([x * z, y * z, z], axis=-1)


def _move(b_T_a: Float64[np.ndarray, "p 4 4"], points_a: Float64[np.ndarray, "p n 3"]) -> Float64[np.ndarray, "p n 3"]:
    return points_a @ np.swapaxes(b_T_a[:, :3, :3], -1, -2) + b_T_a[:, None, :3, 3]


def _project(
    points: Float64[np.ndarray, "p n 3"], K: Float64[np.ndarray, "p 3 3"]
) -> tuple[Float64[np.ndarray, "p n 2"], Float64[np.ndarray, "p n"]]:
    z = points[..., 2]
    safe = np.where(z > 1e-9, z, np.inf)
    x, y = points[..., 0] / safe, points[..., 1] / safe
    u = K[:, None, 0, 0] * x + K[:, None, 0, 1] * y + K[:, None, 0, 2]
    return np.stack([u, K[:, None, 1, 1] * y + K[:, None, 1, 2]], axis=-1), z


def _within(uv: Float64[np.ndarray, "p n 2"], size: tuple[int, int]) -> Bool[np.ndarray, "p n"]:
    u, v = uv[..., 0], uv[..., 1]
    return (u >= 0) & (u <= size[1] - 1) & (v >= 0) & (v <= size[0] - 1)


def _nearest(uv: Float64[np.ndarray, "p n 2"], size: tuple[int, int]) -> Int[np.ndarray, "p n 2"]:
    return np.rint(np.clip(uv, 0, [size[1] - 1, size[0] - 1])).astype(np.intp)


def _pick(maps: Float32[np.ndarray, "v h w"], views: Int[np.ndarray, " p"], uv: Int[np.ndarray, "p n 2"]) -> np.ndarray:
    return maps[views[:, None], uv[..., 1], uv[..., 0]]


def land(
    reading: Reading, first: Int[np.ndarray, " p"], second: Int[np.ndarray, " p"], uv: Int[np.ndarray, "p n 2"]
) -> Landing:
    """Move samples `uv` of views `first` with their depth into views `second`."""
    size = reading.depth.shape[1:]
    z = _pick(reading.depth, first, uv).astype(np.float64)
    second_T_first = invert(reading.world_T_cam[second]) @ reading.world_T_cam[first]
    landed, z_landed = _project(_move(second_T_first, lift(uv, z, reading.K[first])), reading.K[second])
    measured = z > 0
    inside = measured & (z_landed > 1e-9) & _within(landed, (size[0], size[1]))
    return Landing(uv=landed, z=z_landed, measured=measured, inside=inside)


def occluded(
    reading: Reading, first: Int[np.ndarray, " p"], second: Int[np.ndarray, " p"], landing: Landing, *, tolerance: float
) -> Bool[np.ndarray, "p n"]:
    """Samples that lie behind a surface of the second view which the first view confirms.

    Being behind is no excuse by itself, or every reading with too large depth would be excused: the surface in front,
    moved back into the first view, must be met there at its depth.
    """
    size = (reading.depth.shape[1], reading.depth.shape[2])
    pixel = _nearest(np.where(landing.inside[..., None], landing.uv, 0), size)
    z_front = np.where(landing.inside, _pick(reading.depth, second, pixel), 0).astype(np.float64)
    behind = (z_front > 0) & (landing.z > z_front * (1 + tolerance))
    back = land(reading, second, first, pixel)
    own = _pick(reading.depth, first, _nearest(np.where(back.inside[..., None], back.uv, 0), size))
    met = back.inside & (own > 0) & (np.abs(back.z - own) <= tolerance * own)
    return behind & met


def relative_errors(
    reading: Reading, second: Int[np.ndarray, " p"], landing: Landing
) -> tuple[Float64[np.ndarray, "p n"], Bool[np.ndarray, "p n"]]:
    """|z moved - z measured| / z measured of each sample, and where the second view has depth to compare with."""
    size = (reading.depth.shape[1], reading.depth.shape[2])
    met = _pick(reading.depth, second, _nearest(np.where(landing.inside[..., None], landing.uv, 0), size))
    compared = landing.inside & (met > 0)
    safe = np.where(compared, met, 1).astype(np.float64)
    return np.where(compared, np.abs(landing.z - safe) / safe, 0), compared


def _bilinear(
    maps: Float32[np.ndarray, "v h w"], views: Int[np.ndarray, " p"], uv: Float64[np.ndarray, "p n 2"]
) -> Float64[np.ndarray, "p n"]:
    height, width = maps.shape[1:]
    corner = np.clip(np.floor(uv), 0, [width - 2, height - 2]).astype(np.intp)
    a = uv - corner
    right, below = np.array([1, 0]), np.array([0, 1])
    top = _pick(maps, views, corner) * (1 - a[..., 0]) + _pick(maps, views, corner + right) * a[..., 0]
    low = _pick(maps, views, corner + below) * (1 - a[..., 0])
    low = low + _pick(maps, views, corner + below + right) * a[..., 0]
    return np.asarray(top * (1 - a[..., 1]) + low * a[..., 1])


def correlations(
    reading: Reading,
    first: Int[np.ndarray, " p"],
    second: Int[np.ndarray, " p"],
    uv: Int[np.ndarray, "p n 2"],
    landing: Landing,
    seen: Bool[np.ndarray, "p n"],
) -> Float64[np.ndarray, " p"]:
    """Correlation of the first view's texture with the second's where its samples land; 0 where too few are `seen`."""
    ours = _pick(reading.texture, first, uv).astype(np.float64)
    theirs = _bilinear(reading.texture, second, np.where(seen[..., None], landing.uv, 0))
    count = np.maximum(seen.sum(axis=1), 1)
    ours, theirs = (
        np.where(seen, values - (np.where(seen, values, 0).sum(axis=1) / count)[:, None], 0)
        for values in (ours, theirs)
    )
    scale = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum(axis=1))
    together = (ours * theirs).sum(axis=1) / np.maximum(scale, 1e-9)
    return np.where(seen.sum(axis=1) >= _MIN_SAMPLES, together, 0)


def score(
    reading: Reading, pairs: Sequence[tuple[int, int]], *, samples: int, tolerance: float, min_overlap: float
) -> Score:
    """Measure a reading on pairs of its views (indices into the reading), each pair in both directions."""
    directed = np.array([*pairs, *((b, a) for a, b in pairs)], np.intp)
    first, second = directed[:, 0], directed[:, 1]
    pixels = sample_pixels((reading.depth.shape[1], reading.depth.shape[2]), samples)
    uv = np.broadcast_to(pixels, (len(directed), *pixels.shape))
    landing = land(reading, first, second, uv)
    errors, compared = relative_errors(reading, second, landing)
    hidden = occluded(reading, first, second, landing, tolerance=tolerance)
    overlap = compared.sum(axis=1) / np.maximum(landing.measured.sum(axis=1), 1)
    enough = (overlap >= min_overlap) & (compared.sum(axis=1) >= _MIN_SAMPLES)
    counted = compared & ~hidden & enough[:, None]
    if not counted.any():
        return Score(error=None, inliers=0.0, overlap=float(overlap.mean()), photometric=None, pairs=0)
    photometric = correlations(reading, first, second, uv, landing, landing.inside & ~hidden)
    return Score(
        error=float(np.median(errors[counted])),
        inliers=float((errors[counted] < tolerance).mean()),
        overlap=float(overlap.mean()),
        photometric=float(photometric[enough].mean()),
        pairs=int(enough.sum()),
    )
