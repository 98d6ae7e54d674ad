"""Read ScanNet's `.sens` files, version 4 (Dai et al., CVPR 2017; layout as in ScanNet's SensorData.py), little-endian.

A header with the four camera matrices, then a record a frame: camera-to-world matrix, two timestamps, JPEG or PNG colour,
zlib or raw 16-bit depth. What follows the frames (inertial data) is not read. The index takes one pass over the record
headers; frames are then decoded one at a time.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from jaxtyping import Float64, UInt8, UInt16

from plumbline.errors import DataError

VERSION = 4
_COLOUR_CODECS = {1: "png", 2: "jpeg"}
_DEPTH_CODECS = {0: "raw", 1: "zlib"}
_RECORD = struct.Struct("<16f4Q")


@dataclass(frozen=True)
class SensFrame:
    """Where one frame lies in the file, and its camera-to-world matrix (metres; -inf where tracking was lost)."""

    world_T_cam: Float64[np.ndarray, "4 4"]
    offset: int
    colour_bytes: int
    depth_bytes: int


@dataclass(frozen=True)
class SensFile:
    """Header and frame index of a `.sens` file. K in pixels of each grid; `depth_shift` is stored units per metre."""

    path: Path
    colour_K: Float64[np.ndarray, "3 3"]
    depth_K: Float64[np.ndarray, "3 3"]
    depth_codec: str
    depth_size: tuple[int, int]
    depth_shift: float
    frames: tuple[SensFrame, ...]


def read_index(path: Path) -> SensFile:
    """Header and frame index; DataError when the file is absent, of another version or codec, or ends early."""
    try:
        with path.open("rb") as stream:
            return _read_index(path, stream)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error


def _read_index(path: Path, stream: BinaryIO) -> SensFile:
    (version,) = _unpack(path, stream, "<I")
    if version != VERSION:
        raise DataError(f"{path}: .sens version {version}, expected {VERSION}. Export it anew with ScanNet's tools.")
    (name_bytes,) = _unpack(path, stream, "<Q")
    stream.seek(name_bytes, 1)
    matrices = np.array(_unpack(path, stream, "<64f"), np.float64).reshape(4, 4, 4)
    colour_codec, depth_codec = _unpack(path, stream, "<2i")
    if colour_codec not in _COLOUR_CODECS or depth_codec not in _DEPTH_CODECS:
        known = f"colour {sorted(_COLOUR_CODECS)} (PNG, JPEG), depth {sorted(_DEPTH_CODECS)} (raw, zlib)"
        raise DataError(f"{path}: colour codec {colour_codec}, depth codec {depth_codec}; readable are {known}.")
    _, _, depth_width, depth_height, depth_shift, count = _unpack(path, stream, "<4IfQ")
    return SensFile(
        path=path,
        colour_K=matrices[0, :3, :3].copy(),
        depth_K=matrices[2, :3, :3].copy(),
        depth_codec=_DEPTH_CODECS[depth_codec],
        depth_size=(depth_height, depth_width),
        depth_shift=depth_shift,
        frames=tuple(_read_frames(path, stream, count)),
    )


def _read_frames(path: Path, stream: BinaryIO, count: int) -> list[SensFrame]:
    total = path.stat().st_size
    frames = []
    for index in range(count):
        head = stream.read(_RECORD.size)
        offset = stream.tell()
        values = _RECORD.unpack(head) if len(head) == _RECORD.size else None
        if values is None or offset + values[18] + values[19] > total:
            raise DataError(
                f"{path}: ends within frame {index} of the {count} its header states. "
                "The download was cut: fetch the file again."
            )
        frames.append(SensFrame(np.array(values[:16], np.float64).reshape(4, 4), offset, values[18], values[19]))
        stream.seek(values[18] + values[19], 1)
    return frames


def _unpack(path: Path, stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    data = stream.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise DataError(f"{path}: ends within its header ({path.stat().st_size} bytes). Fetch the file again.")
    return struct.unpack(layout, data)


def read_colour(sens: SensFile, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image of a frame."""
    frame = sens.frames[index]
    encoded = np.frombuffer(_read_bytes(sens.path, frame.offset, frame.colour_bytes), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if image is None:
        raise DataError(f"{sens.path}: the colour image of frame {index} cannot be decoded. Fetch the file again.")
    return np.ascontiguousarray(image[..., ::-1])


def read_depth(sens: SensFile, index: int) -> UInt16[np.ndarray, "h w"]:
    """The stored depth of a frame, in units of 1 / `depth_shift` metres, 0 = not measured."""
    frame = sens.frames[index]
    data = _read_bytes(sens.path, frame.offset + frame.colour_bytes, frame.depth_bytes)
    try:
        values = np.frombuffer(zlib.decompress(data) if sens.depth_codec == "zlib" else data, "<u2")
        return values.reshape(sens.depth_size).astype(np.uint16)
    except (zlib.error, ValueError) as error:
        height, width = sens.depth_size
        raise DataError(
            f"{sens.path}: the depth of frame {index} is not {width}x{height} 16-bit values ({error}). Fetch the file again."
        ) from error


def _read_bytes(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(count)
