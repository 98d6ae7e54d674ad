"""MVSNet's text files: one camera a file (`*_cam.txt`) and the scored source views of a scene (`pair.txt`).

Yao et al., ECCV 2018. Other data sets use the same files with more or fewer numbers in the depth line, so that line is
kept as found; `depth_range` reads it with the meaning its length and size allow.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from plumbline.data.reading import read_text, to_numbers
from plumbline.errors import DataError


@dataclass(frozen=True)
class MvsnetCamera:
    """A cam.txt: `cam_T_world` in the file's own unit (DTU: mm), K in pixels of the file's own resolution, the depth line."""

    cam_T_world: Float64[np.ndarray, "4 4"]
    K: Float64[np.ndarray, "3 3"]
    depth_line: tuple[float, ...]


def read_camera(path: Path) -> MvsnetCamera:
    """A cam.txt; the depth line may hold 0, 2, 3 or 4 numbers, and blanks may trail.

    Errors: absent or cut file, words where numbers belong, NaN, a last row that is not 0 0 0 1 or 0 0 1.
    """
    extrinsic, intrinsic = _sections(path)
    if len(extrinsic) != 16 or len(intrinsic) < 9 or len(intrinsic) - 9 not in (0, 2, 3, 4):
        raise DataError(
            f"{path}: {len(extrinsic)} numbers under 'extrinsic' and {len(intrinsic)} under 'intrinsic'; expected 16, and 9 "
            "with 0, 2, 3 or 4 of the depth line. The file may be cut: fetch it again."
        )
    cam_T_world = np.array(extrinsic, np.float64).reshape(4, 4)
    K = np.array(intrinsic[:9], np.float64).reshape(3, 3)
    finite = np.isfinite(cam_T_world).all() and np.isfinite(K).all()
    if not finite or not np.array_equal(cam_T_world[3], [0, 0, 0, 1]) or not np.array_equal(K[2], [0, 0, 1]):
        raise DataError(f"{path}: no camera (NaN, or a last row other than 0 0 0 1 and 0 0 1). Fetch the file again.")
    return MvsnetCamera(cam_T_world, K, tuple(intrinsic[9:]))


def _sections(path: Path) -> tuple[list[float], list[float]]:
    match = re.fullmatch(r"\s*extrinsic\s(.*)\sintrinsic\s(.*)", read_text(path), re.DOTALL)
    if match is None:
        raise DataError(
            f"{path}: no 'extrinsic' and 'intrinsic' lines; expected MVSNet's cam.txt. Fetch the file again."
        )
    extrinsic, intrinsic = (to_numbers(group.split(), path).tolist() for group in match.groups())
    return extrinsic, intrinsic


def depth_range(line: tuple[float, ...], *, planes: int) -> tuple[float, float] | None:
    """(nearest, farthest) depth a camera's depth line states, in the file's unit; None when it states none.

    MIN INTERVAL (MVSNet, `planes` planes), MIN MAX (PatchmatchNet: told by a second value above the first),
    MIN INTERVAL COUNT, or MIN INTERVAL COUNT MAX. Lines that are empty, all zero, or have MIN <= 0 state nothing.
    """
    if len(line) < 2 or line[0] <= 0 or line[1] <= 0:
        return None
    if len(line) == 4:
        return line[0], line[3]
    if len(line) == 2 and line[1] > line[0]:
        return line[0], line[1]
    count = line[2] if len(line) == 3 else planes
    return line[0], line[0] + line[1] * (count - 1)


def read_pairs(path: Path) -> dict[int, list[tuple[int, float]]]:
    """Per view number, the (other view's number, score), best first; a view listed as its own source is left out.

    The number of sources may differ from view to view. Errors: absent or cut file, words, a view described twice.
    """
    tokens = read_text(path).split()
    if not tokens:
        raise DataError(f"{path}: the file is empty. Fetch it again.")
    pairs: dict[int, list[tuple[int, float]]] = {}
    position = 1
    try:
        for _ in range(int(tokens[0])):
            view, count = int(tokens[position]), int(tokens[position + 1])
            values = [float(token) for token in tokens[position + 2 : position + 2 + 2 * count]]
            if view in pairs or len(values) < 2 * count:
                raise ValueError(f"view {view} is described twice or has fewer than its {count} sources")
            others = [
                (int(other), score) for other, score in zip(values[::2], values[1::2], strict=True) if other != view
            ]
            pairs[view] = sorted(others, key=lambda item: -item[1])
            position += 2 + 2 * count
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: not a whole pair.txt ({error}). Fetch the file again.") from error
    if position != len(tokens):
        raise DataError(
            f"{path}: {len(tokens) - position} values follow the {tokens[0]} views its first line states. Fetch it again."
        )
    return pairs
