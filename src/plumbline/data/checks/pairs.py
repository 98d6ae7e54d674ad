"""Which pairs of views test a scene's geometry: cameras far enough apart to see scale, near enough to see the same."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from plumbline.data.geometry import invert, rotation_angle
from plumbline.records import Pairs


def choose_pairs(
    world_T_cam: Float64[np.ndarray, "v 4 4"],
    listed: Pairs | None,
    *,
    count: int,
    min_baseline: float,
    min_angle: float,
    max_angle: float,
) -> list[tuple[int, int]]:
    """Up to 2 `count` pairs of views (indices, smaller first): half under the poses as read, half under their inverses.

    Views are taken evenly over the scene; each is paired with its best listed view, or else the nearest one in order,
    whose baseline reaches three (every second view: six) times `min_baseline` (metres); failing that `min_baseline`
    itself, or `min_angle` (degrees) between the cameras. Views turned by more than `max_angle` degrees are left out.
    Under poses read the wrong way round baselines mean nothing, hence the second half: a scene must not go unjudged
    because of the very misreading that is sought.
    """
    found: dict[tuple[int, int], None] = {}
    for poses in (world_T_cam, invert(world_T_cam)):
        for i, anchor in enumerate(_anchors(len(world_T_cam), count)):
            reach = (3, 1, 0) if i % 2 == 0 else (6, 3, 1, 0)
            apart = _Apart(*_apart(anchor, poses), min_baseline, min_angle, max_angle)
            other = _partner(_order(anchor, len(world_T_cam), listed), apart, reach)
            if other is not None:
                found[min(anchor, other), max(anchor, other)] = None
    return list(found)


def _anchors(views: int, count: int) -> list[int]:
    # Mid-cell: another association of frames may have fewer of them, and would miss the last ones.
    chosen = min(count, views)
    return [int((i + 0.5) * views / chosen) for i in range(chosen)]


@dataclass(frozen=True)
class _Apart:
    """How far all views are from an anchor (metres, degrees), and the limits."""

    baselines: Float64[np.ndarray, " v"]
    angles: Float64[np.ndarray, " v"]
    min_baseline: float
    min_angle: float
    max_angle: float

    def usable(self, reach: int) -> Bool[np.ndarray, " v"]:
        """Views at least `reach` times the smallest baseline away; for 0, apart by the angle instead."""
        enough = self.baselines >= reach * self.min_baseline if reach else self.angles >= self.min_angle
        return np.asarray(enough & (self.angles <= self.max_angle))


def _partner(order: list[int], apart: _Apart, reaches: tuple[int, ...]) -> int | None:
    for reach in reaches:
        usable = apart.usable(reach)
        first = next((other for other in order if usable[other]), None)
        if first is not None:
            return first
    return None


def _apart(
    anchor: int, world_T_cam: Float64[np.ndarray, "v 4 4"]
) -> tuple[Float64[np.ndarray, " v"], Float64[np.ndarray, " v"]]:
    anchor_T_cam = invert(world_T_cam[anchor]) @ world_T_cam
    return np.linalg.norm(anchor_T_cam[:, :3, 3], axis=1), np.degrees(rotation_angle(anchor_T_cam[:, :3, :3]))


def _order(anchor: int, views: int, listed: Pairs | None) -> list[int]:
    preferred = [other for other, _ in listed[anchor]] if listed is not None else []
    nearest = np.argsort(np.abs(np.arange(views) - anchor), kind="stable").tolist()
    return [other for other in (*preferred, *nearest) if other != anchor]
