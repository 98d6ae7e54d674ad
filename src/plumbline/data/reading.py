"""What the dataset readers share: numbers from text, whole images, time association, frame selection."""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from plumbline.errors import DataError
from plumbline.files import read_image

_log = logging.getLogger("plumbline")

# End markers lie in the last bytes; writers may pad behind them.
_TAIL_BYTES = 1024


_Item = TypeVar("_Item")


@contextlib.contextmanager
def located(raw: Path) -> Iterator[None]:
    """Name files relative to `raw` in the DataErrors raised inside, which carry full paths."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(f"{raw}/", "")) from error


def place(raw: Path, path: Path) -> str:
    """`path` relative to the raw folder, with forward slashes; the folder's own name for the folder itself."""
    relative = path.relative_to(raw).as_posix()
    return raw.name if relative == "." else relative


def scene_folder(raw: Path, scene: str) -> Path:
    """The folder of a scene named by `place`: below `raw`, or `raw` itself when it is the scene."""
    folder = raw / scene
    if folder.is_dir():
        return folder
    if scene == raw.name and raw.is_dir():
        return raw
    raise DataError(f"{scene}: no such scene under the raw folder {raw}. List the scenes and use one of those names.")


def read_text(path: Path) -> str:
    """The content of a text file; DataError when it is absent or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. The download may be incomplete: fetch it again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}). Fetch it again.") from error


def read_numbers(path: Path) -> Float64[np.ndarray, " n"]:
    """All numbers of a text file, separated by blanks, commas or line ends; NaN and infinities are kept.

    Errors: absent file, a token that is no number (Windows' `-1.#IND` counts as NaN).
    """
    return to_numbers(read_text(path).replace(",", " ").split(), path)


def to_numbers(tokens: Sequence[str], path: Path) -> Float64[np.ndarray, " n"]:
    """Tokens found in `path` as numbers; DataError for one that is none."""
    try:
        return np.array([float("nan") if "#" in token else float(token) for token in tokens], np.float64)
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected numbers. Fetch it again.") from error


def numbered(folder: Path, pattern: str, *, base: int = 0) -> dict[int, Path]:
    """The files of a folder whose whole name matches `pattern`, by the number in its first group less `base`, ascending.

    Numbers need not be padded. Empty for a folder that is not there.
    """
    matches = ((re.fullmatch(pattern, path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    return dict(sorted((int(match[1]) - base, path) for match, path in matches if match))


def read_matrix(path: Path, *shapes: tuple[int, int]) -> Float64[np.ndarray, "r c"]:
    """A text file holding exactly one matrix of one of the given shapes."""
    values = read_numbers(path)
    for shape in shapes:
        if values.size == shape[0] * shape[1]:
            return values.reshape(shape)
    expected = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
    raise DataError(
        f"{path}: {values.size} numbers, expected a matrix of {expected}. The file may be cut: fetch it again."
    )


def read_intrinsics(path: Path) -> Float64[np.ndarray, "3 3"]:
    """K from a text file of 3x3 or 4x4 numbers; DataError when it holds NaN or its last row is not 0 0 1."""
    matrix = read_matrix(path, (3, 3), (4, 4))
    K = np.ascontiguousarray(matrix[:3, :3])
    if not np.isfinite(matrix).all() or not np.array_equal(K[2], [0, 0, 1]):
        raise DataError(f"{path}: no camera matrix: {K.tolist()}; expected fx 0 cx / 0 fy cy / 0 0 1. Fetch it again.")
    return K


def pinhole(intrinsics: Sequence[float]) -> Float64[np.ndarray, "3 3"]:
    """K from (fx, fy, cx, cy) in pixels."""
    fx, fy, cx, cy = intrinsics
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def read_colour(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image; DataError when it is absent or cut (decoders fill the rest of a cut picture with grey and say nothing)."""
    image = read_image(path)
    with path.open("rb") as stream:
        stream.seek(-min(_TAIL_BYTES, path.stat().st_size), 2)
        tail = stream.read()
    end = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}.get(path.suffix.lower(), b"")
    if end not in tail:
        raise DataError(f"{path}: the picture is cut (no end marker). Fetch it again.")
    return image


def nearest(
    times: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """For each time, the index of the nearest of `others` (any order, at least one) and the absolute gap, in the times' unit."""
    order = np.argsort(others, kind="stable")
    ranked = others[order]
    right = np.clip(np.searchsorted(ranked, times), 1, max(len(ranked) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(ranked) - 1)
    choice = np.where(np.abs(times - ranked[left]) <= np.abs(ranked[right] - times), left, right)
    return order[choice].astype(np.int64), np.abs(times - ranked[choice])


def report_lost(scene: str, lost: int, total: int, reason: str, advice: str) -> None:
    """Log that frames were left out; DataError when they are more than half, since then the reading itself is in doubt."""
    if 2 * lost > total:
        raise DataError(f"{scene}: {lost} of {total} frames have {reason}. {advice}")
    if lost:
        _log.warning("%s: %d of %d frames left out: they have %s.", scene, lost, total, reason)


def pick(items: Sequence[_Item], select: Sequence[int] | None, scene: str) -> Sequence[_Item]:
    """The selected items in the order asked for (all by default); DataError for an index outside the scene."""
    if select is None:
        return items
    outside = [index for index in select if not 0 <= index < len(items)]
    if outside:
        raise DataError(f"{scene}: view {outside[0]} was asked for, but the scene has views 0..{len(items) - 1}.")
    return [items[index] for index in select]
