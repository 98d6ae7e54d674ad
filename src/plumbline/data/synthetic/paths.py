"""Where the cameras stand: a DTU-like rig that is the same for all scans, and a walk through a room. Metres, y down."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64

from plumbline.data.synthetic.world import look_at

_RADIUS = 0.65
_PITCH = 22.0
# Angles between neighbours of the rig, seen from its centre: 0.09 m across and 0.07 m up at 0.65 m.
_STEP_ACROSS, _STEP_UP = 8.0, 6.0
_COLUMNS = 4


def rig(count: int) -> Float64[np.ndarray, "v 4 4"]:
    """`world_T_cam` of `count` cameras on a sphere around the origin, rows of four walked to and fro as DTU's arm does."""
    rng = np.random.default_rng(1618)
    rows = -(-count // _COLUMNS)
    places = []
    for index in range(count):
        row, column = divmod(index, _COLUMNS)
        column = column if row % 2 == 0 else _COLUMNS - 1 - column
        across = (column - (_COLUMNS - 1) / 2) * _STEP_ACROSS + rng.normal(0, 0.4)
        up = _PITCH + (row - (rows - 1) / 2) * _STEP_UP + rng.normal(0, 0.4)
        radius = _RADIUS * (1 + rng.normal(0, 0.006))
        target = np.array([0.0, -0.05, 0.0]) + rng.normal(0, 0.003, 3)
        a, b = np.radians(across), np.radians(up)
        offset = radius * np.array([np.sin(a) * np.cos(b), -np.sin(b), -np.cos(a) * np.cos(b)])
        places.append(look_at(target + offset, target, roll=float(rng.normal(0, 0.5))))
    return np.stack(places)


def walk(rng: np.random.Generator, size: tuple[float, float, float]) -> Callable[[float], Float64[np.ndarray, "4 4"]]:
    """A hand-held path through the free middle of a room of `size` (width, height, depth): seconds -> `world_T_cam`.

    The hand sways on a few slow sines (0.3 to 0.9 m/s, a shake of millimetres on top) while the gaze follows the walls.
    """
    reach = np.array([max(0.25, size[0] / 2 - 1.5), 0.18, max(0.25, size[2] / 2 - 1.4)])
    middle = np.array([0.0, -rng.uniform(1.35, 1.55), 0.0])
    speed, phase = rng.uniform([0.3, 0.04, 0.3], [0.6, 0.12, 0.6]), rng.uniform(0, 2 * np.pi, (4, 3))
    heading, turning = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1]) * rng.uniform(0.1, 0.22)
    look = rng.uniform(0.5, 0.9)

    def at(seconds: float) -> Float64[np.ndarray, "4 4"]:
        sway = np.sin(speed / reach * seconds + phase[0]) * reach
        shake = 0.004 * np.sin(7.0 * seconds + phase[1]) + 0.0015 * np.sin(19.0 * seconds + phase[2])
        position = middle + sway + shake
        gaze = heading + turning * seconds + 0.18 * np.sin(0.9 * seconds + phase[3, 0])
        away = np.array([np.sin(gaze) * size[0], 0.0, np.cos(gaze) * size[2]]) / 2
        target = np.array([away[0], -look + 0.15 * np.sin(0.8 * seconds + phase[3, 1]), away[2]])
        return look_at(position, target, roll=float(2.5 * np.sin(1.1 * seconds + phase[3, 2])))

    return at


def pair_scores(
    world_T_cam: Float64[np.ndarray, "v 4 4"], points_world: Float[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "v v"]:
    """How well each pair of views triangulates the points, as MVSNet scores them: the sum over points of G(angle).

    G is a bell of deviation 1 degree below 5 degrees and 10 degrees above (Yao et al. 2018, section 4.1). The diagonal is 0.
    """
    rays = points_world[None] - world_T_cam[:, None, :3, 3]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip(np.einsum("ank,bnk->abn", rays, rays), -1, 1)))
    width = np.where(angles <= 5, 1.0, 10.0)
    scores = np.exp(-((angles - 5) ** 2) / (2 * width**2)).sum(axis=-1)
    np.fill_diagonal(scores, 0)
    return scores
