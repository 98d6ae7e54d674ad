"""Solids that a ray meets in closed form: boxes, ellipsoids and frustums (cylinders and cones), each in its own frame.

A shape answers two questions: where along a ray it is met (`intersect`), and what its skin is like at a point
(`surface`: unit normal, texture coordinates in metres, face number). Rays are `origin + t * direction`, `direction` a
triple of arrays that broadcast, so that a full image and a list of rays take the same code. Axes as everywhere: y down.
"""

from dataclasses import dataclass, replace

import numpy as np

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
# Whole numbers are as good as floats; the type checker in the tests tells them apart.
Number = float | int
Origin = tuple[Number, Number, Number]
Surface = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_TINY = np.float32(1e-9)
# A ray that starts on a surface must not meet that surface again.
_NEAR = 1e-4


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of half sizes `half`. `inside`: a room, whose far walls are met instead of its near ones.

    Faces: 0 and 1 are -x and +x, 2 and 3 are top and bottom (-y, +y), 4 and 5 are -z and +z.
    """

    half: Origin
    inside: bool = False

    def intersect(self, origin: Origin, direction: Triple) -> np.ndarray:
        """Smallest t > 0 at which each ray meets the box; infinity where it does not."""
        near: np.ndarray = np.asarray(-np.inf, np.float32)
        far: np.ndarray = np.asarray(np.inf, np.float32)
        for o, d, half in zip(origin, direction, self.half):
            inverse = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
            a, b = (-half - o) * inverse, (half - o) * inverse
            near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
        met = far if self.inside else np.where(near > _NEAR, near, far)
        return np.where((far >= near) & (met > _NEAR), met, np.float32(np.inf))

    def surface(self, points: np.ndarray) -> Surface:
        """Normal (3, n), u and v in metres (n,), face (n,) at points (3, n) on the box."""
        half = np.asarray(self.half, np.float32)[:, None]
        axis = np.argmax(np.abs(points) / half, axis=0)
        columns = np.arange(points.shape[1])
        positive = points[axis, columns] > 0
        normals = np.zeros_like(points)
        normals[axis, columns] = np.where(positive, 1, -1) * (-1 if self.inside else 1)
        shifted = points + half
        u = np.where(axis == 0, shifted[2], shifted[0])
        v = np.where(axis == 1, shifted[2], shifted[1])
        return normals, u, v, axis * 2 + positive

    def extent(self, face: int) -> tuple[float, float]:
        """Width and height of a face in metres, as u and v run."""
        x, y, z = (2 * half for half in self.half)
        return ((z, y), (x, z), (x, y))[face // 2]

    def bounds(self) -> Origin:
        """Half sizes of the axis-aligned bounding box."""
        return self.half

    def scaled(self, factor: Number) -> "Box":
        """The same box, `factor` times as large."""
        return replace(self, half=_times(self.half, factor))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid of semi-axes `radii`, one face; u runs around the y axis and v along it."""

    radii: Origin

    def intersect(self, origin: Origin, direction: Triple) -> np.ndarray:
        """Smallest t > 0 at which each ray meets the ellipsoid; infinity where it does not."""
        unit_o = [o / r for o, r in zip(origin, self.radii)]
        unit_d = [d / np.float32(r) for d, r in zip(direction, self.radii)]
        start, closest, squared = _closest(unit_o, unit_d)
        under = 1 - sum(c * c for c in closest)
        t = start - np.sqrt(np.maximum(under, 0) / squared)
        return np.where((under > 0) & (t > _NEAR), t, np.float32(np.inf))

    def surface(self, points: np.ndarray) -> Surface:
        """Normal (3, n), u and v in metres (n,), face (n,) at points (3, n) on the ellipsoid."""
        radii = np.asarray(self.radii, np.float32)[:, None]
        unit = points / radii
        normals = unit / radii
        normals /= np.linalg.norm(normals, axis=0)
        radius = float(np.mean(self.radii))
        u = np.arctan2(unit[0], -unit[2]) * radius
        v = np.arcsin(np.clip(unit[1], -1, 1)) * radius
        return normals, u, v, np.zeros(points.shape[1], np.int64)

    def extent(self, face: int) -> tuple[float, float]:
        """Length around and along, in metres, of the mean sphere."""
        radius = float(np.mean(self.radii))
        return 2 * np.pi * radius, np.pi * radius

    def bounds(self) -> Origin:
        """Half sizes of the axis-aligned bounding box."""
        return self.radii

    def scaled(self, factor: Number) -> "Ellipsoid":
        """The same ellipsoid, `factor` times as large."""
        return Ellipsoid(_times(self.radii, factor))


@dataclass(frozen=True)
class Frustum:
    """A capped cone section about the y axis, `height` tall; radii at its top (-y) and bottom. Equal: a cylinder.

    Faces: 0 the side, 1 the top, 2 the bottom.
    """

    top: Number
    bottom: Number
    height: Number

    def intersect(self, origin: Origin, direction: Triple) -> np.ndarray:
        """Smallest t > 0 at which each ray meets the frustum; infinity where it does not."""
        start, (x, y, z), _ = _closest(list(origin), list(direction))
        dx, dy, dz = direction
        slope = (self.bottom - self.top) / self.height
        radius = (self.top + self.bottom) / 2 + slope * y
        a = dx * dx + dz * dz - slope * slope * dy * dy
        a = np.where(np.abs(a) < _TINY, _TINY, a)
        b = x * dx + z * dz - slope * dy * radius
        under = b * b - a * (x * x + z * z - radius * radius)
        root = np.sqrt(np.maximum(under, 0))
        best = np.full(np.broadcast(dx, dy, dz).shape, np.inf, np.float32)
        for sign in (-1, 1):
            t = (-b + sign * root) / a
            on_side = (under > 0) & (np.abs(y + t * dy) <= self.height / 2) & (radius + slope * t * dy > 0)
            best = np.minimum(best, np.where(on_side & (start + t > _NEAR), start + t, np.inf))
        return np.minimum(best, self._caps(start, (x, y, z), direction)).astype(np.float32)

    def _caps(self, start: np.ndarray, closest: Triple, direction: Triple) -> np.ndarray:
        x, y, z = closest
        dx, dy, dz = direction
        inverse = 1 / np.where(np.abs(dy) < _TINY, _TINY, dy)
        best: np.ndarray = np.full(np.broadcast(dx, dy, dz).shape, np.inf, np.float32)
        for level, radius in ((-self.height / 2, self.top), (self.height / 2, self.bottom)):
            t = (level - y) * inverse
            on_cap = (x + t * dx) ** 2 + (z + t * dz) ** 2 <= radius * radius
            best = np.minimum(best, np.where(on_cap & (start + t > _NEAR), start + t, np.inf))
        return best

    def surface(self, points: np.ndarray) -> Surface:
        """Normal (3, n), u and v in metres (n,), face (n,) at points (3, n) on the frustum."""
        x, y, z = points
        slope = (self.bottom - self.top) / self.height
        middle = (self.top + self.bottom) / 2
        distance = np.maximum(np.hypot(x, z), _TINY)
        to_side = np.abs(distance - (middle + slope * y))
        to_cap = self.height / 2 - np.abs(y)
        face = np.where(to_side <= to_cap, 0, np.where(y < 0, 1, 2))
        side = face == 0
        normals = np.stack(
            [np.where(side, x / distance, 0), np.where(side, -slope, np.sign(y)), np.where(side, z / distance, 0)]
        )
        normals = (normals / np.linalg.norm(normals, axis=0)).astype(np.float32)
        u = np.where(side, np.arctan2(x, -z) * middle, x + middle)
        v = np.where(side, y + self.height / 2, z + middle)
        return normals, u, v, face

    def extent(self, face: int) -> tuple[float, float]:
        """Length around and height of the side; width and depth of a cap; metres."""
        middle = (self.top + self.bottom) / 2
        return (2 * np.pi * middle, self.height) if face == 0 else (2 * middle, 2 * middle)

    def bounds(self) -> Origin:
        """Half sizes of the axis-aligned bounding box."""
        radius = max(self.top, self.bottom)
        return radius, self.height / 2, radius

    def scaled(self, factor: Number) -> "Frustum":
        """The same frustum, `factor` times as large."""
        return Frustum(self.top * factor, self.bottom * factor, self.height * factor)


Shape = Box | Ellipsoid | Frustum


def _times(values: Origin, factor: Number) -> Origin:
    return values[0] * factor, values[1] * factor, values[2] * factor


def _closest(origin: list[float], direction: list[np.ndarray]) -> tuple[np.ndarray, Triple, np.ndarray]:
    """t of the ray point nearest to the shape's centre, that point, and |direction|^2.

    Solving from there keeps float32 exact to about 1e-7 of the distance, where the textbook quadratic loses half its digits.
    """
    squared = sum(d * d for d in direction)
    start = -sum(o * d for o, d in zip(origin, direction)) / squared
    x, y, z = (o + start * d for o, d in zip(origin, direction))
    return start, (x, y, z), squared
