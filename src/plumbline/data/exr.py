"""Depth maps in OpenEXR files, as OpenCV writes them: one float channel `Y`.

OpenCV 5 has no EXR support and version 4 only behind an environment variable; the OpenEXR package is exact and needs neither.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import OpenEXR
from jaxtyping import Float32

from plumbline.errors import DataError
from plumbline.files import atomic_path

# A grey map is `Y`, some writers say `Z`; of a colour copy of the map every channel will do.
_PREFERRED = ("Y", "Z", "R", "G", "B")


def read_exr(path: Path) -> Float32[np.ndarray, "h w"]:
    """The depth channel of an EXR file as stored, NaN and infinity included; half floats become float32.

    Of several channels `Y` is taken, else `Z`, else one of `R`, `G`, `B`, which are equal in copies of a map. Errors: no such
    file, not an EXR, cut, no such channel.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as stored:
            channels = stored.channels()
            depth = channels[_chosen(channels, path)].pixels
            return np.array(depth, np.float32)
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable EXR file ({error}). It may be cut: fetch it again.") from error


def _chosen(names: Iterable[str], path: Path) -> str:
    found = sorted(names)
    for name in _PREFERRED:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    raise DataError(f"{path}: channels {', '.join(found) or 'none'}; expected a depth map in Y, or one channel.")


def write_exr(path: Path, depth: Float32[np.ndarray, "h w"]) -> None:
    """Write a map as the one float channel `Y`, zip-compressed, atomically."""
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_path(path) as temporary, OpenEXR.File(header, {"Y": np.ascontiguousarray(depth)}) as stored:
        stored.write(str(temporary))
