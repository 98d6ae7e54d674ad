"""Files: atomic writes, hashes, and the image and depth codecs of the field's formats. Every failure names the file."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Shaped, UInt8, UInt16

from plumbline.errors import DataError

# Above this many bytes, reading the rows of a PFM straight into their flipped places beats one read and a flip.
_SCATTER_BYTES = 64 * 1024
_MAX_IOV = 1024


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to: renamed onto `path` on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder to fill: renamed onto `path` on success (an old one is replaced), removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Move the finished folder `source` to `target`, from another disk if need be, putting an old `target` out of the way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_dev != target.parent.stat().st_dev:
        copy = _sibling(target)
        shutil.copytree(source, copy)
        shutil.rmtree(source)
        source = copy
    old = _sibling(target)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part{path.suffix}")


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file; DataError when it is absent or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. It is written by an earlier step: run that first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not valid JSON ({error}). Delete it and run the step that writes it again."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An 8-bit RGB image; grey and palette files are expanded, transparency is dropped."""
    image = cv2.imdecode(_bytes(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: not a readable image. The file may be cut: fetch it again.")
    return np.ascontiguousarray(image[..., ::-1])


def read_png16(path: Path) -> UInt16[np.ndarray, "h w"]:
    """A single-channel 16-bit PNG; DataError when it is cut or of another type."""
    raw = _bytes(path)
    image = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    if image is None or _truncated_png(raw):
        raise DataError(f"{path}: not a readable PNG. The file may be cut: fetch it again.")
    if image.dtype != np.uint16 or image.ndim != 2:
        raise DataError(f"{path}: {image.dtype} with shape {image.shape}; expected one channel of 16 bits (depth).")
    return np.asarray(image)


def read_png8(path: Path) -> UInt8[np.ndarray, "h w"]:
    """A single-channel 8-bit PNG such as a mask; colour is converted to grey."""
    raw = _bytes(path)
    image = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE)
    if image is None or _truncated_png(raw):
        raise DataError(f"{path}: not a readable PNG. The file may be cut: fetch it again.")
    return np.asarray(image)


def _bytes(path: Path) -> UInt8[np.ndarray, " n"]:
    try:
        raw = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    if raw.size == 0:
        raise DataError(f"{path}: the file is empty. Fetch it again.")
    return raw


def _truncated_png(raw: UInt8[np.ndarray, " n"]) -> bool:
    # OpenCV fills what is missing of a cut PNG with zeros, which would read as "not measured".
    return raw[1:4].tobytes() == b"PNG" and b"IEND" not in raw[-16:].tobytes()


def write_png16(path: Path, image: UInt16[np.ndarray, "h w"]) -> None:
    """Write a single-channel 16-bit PNG, atomically."""
    _encode(path, ".png", image)


def write_png(path: Path, image: UInt8[np.ndarray, "h w *c"]) -> None:
    """Write an 8-bit grey or RGB image as PNG, atomically."""
    _encode(path, ".png", image[..., ::-1] if image.ndim == 3 else image)


def write_jpg(path: Path, image: UInt8[np.ndarray, "h w 3"], *, quality: int = 95) -> None:
    """Write an 8-bit RGB image as JPEG, atomically."""
    _encode(path, ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(path: Path, kind: str, image: np.ndarray, options: list[int] | None = None) -> None:
    _, encoded = cv2.imencode(kind, np.ascontiguousarray(image), options or [])
    with atomic_path(path) as temporary:
        encoded.tofile(temporary)


def read_pfm(path: Path) -> Float32[np.ndarray, "h w"]:
    """A single-channel PFM, upright (the format stores the bottom row first), as native float32.

    The sign of the header's scale gives the byte order. Large maps are read row by row straight into their flipped
    places (preadv), which needs no second pass. Errors: not a PFM, colour PFM, file shorter or longer than its header says.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    try:
        size = os.fstat(descriptor).st_size
        width, height, byte_order, offset = _pfm_header(path, os.pread(descriptor, 128, 0))
        expected = offset + 4 * width * height
        if size != expected:
            raise DataError(f"{path}: {size} bytes, but a {width}x{height} PFM has {expected}. Fetch it again.")
        if size >= _SCATTER_BYTES and hasattr(os, "preadv"):
            image = _read_rows_flipped(descriptor, offset, height, width)
        else:
            raw = os.pread(descriptor, size - offset, offset)
            image = np.frombuffer(raw, np.float32).reshape(height, width)[::-1].copy()
    finally:
        os.close(descriptor)
    return image if byte_order == sys.byteorder else image.byteswap(inplace=True)


def _pfm_header(path: Path, head: bytes) -> tuple[int, int, str, int]:
    lines = head.split(b"\n", 3)
    try:
        if lines[0].strip() != b"Pf":
            raise ValueError(f"starts with {lines[0][:8]!r}, expected b'Pf' (one channel)")
        width, height = (int(token) for token in lines[1].split())
        scale = float(lines[2])
        if len(lines) < 4 or width < 1 or height < 1 or scale == 0:
            raise ValueError("the header is cut or holds a zero")
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: not a depth PFM: {error}.") from error
    return width, height, "little" if scale < 0 else "big", sum(len(line) + 1 for line in lines[:3])


def _read_rows_flipped(descriptor: int, offset: int, height: int, width: int) -> Float32[np.ndarray, "h w"]:
    image = np.empty((height, width), np.float32)
    whole, step = image.data.cast("B"), 4 * width
    rows = [whole[start : start + step] for start in range((height - 1) * step, -1, -step)]
    for start in range(0, height, _MAX_IOV):
        block = rows[start : start + _MAX_IOV]
        position = offset + start * width * 4
        got = os.preadv(descriptor, block, position)
        if got != len(block) * width * 4:
            # The kernel may stop early (a signal, a network file system): read this block again, plainly.
            raw = os.pread(descriptor, len(block) * width * 4, position)
            image[::-1][start : start + len(block)] = np.frombuffer(raw, np.float32).reshape(len(block), width)
    return image


def write_pfm(path: Path, image: Float32[np.ndarray, "h w"]) -> None:
    """Write a single-channel little-endian PFM (bottom row first), atomically."""
    header = f"Pf\n{image.shape[1]} {image.shape[0]}\n-1.000000\n".encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(header + np.ascontiguousarray(image[::-1], "<f4").tobytes())


def write_ply(path: Path, points: Float32[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"]) -> None:
    """Write a coloured point cloud as binary little-endian PLY, atomically. Units and frame are the caller's."""
    vertices = np.empty(len(points), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = points, colours
    fields = [f"property float {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *fields, "end_header", ""]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(lines).encode() + vertices.tobytes())


def write_npy(path: Path, array: Shaped[np.ndarray, "..."]) -> None:
    """Write one array as .npy, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_npy(path: Path, *, memory_map: bool = False) -> Shaped[np.ndarray, "..."]:
    """An array from .npy (memory-mapped read-only on request); DataError when absent, cut or holding objects."""
    try:
        array = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path}: not a readable array ({error}). Write it again with the step it belongs to."
        ) from error
    return np.asarray(array) if not memory_map else array
