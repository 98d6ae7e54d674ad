"""Chunk files of RealEstate10K, ACID and DL3DV: which chunk a scene is in, and what the chunk holds for it.

A chunk is a list of dicts of tensors, saved by torch, with the `key` of a scene, its `timestamps` (n), `cameras` (n, 18) and n
encoded `images`; index.json beside the chunks has the chunk of each key. It is opened with `weights_only`: nothing in it can run.
"""

import functools
import importlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from plumbline.data.sources import inside
from plumbline.errors import DataError
from plumbline.files import read_json

ADVICE = "Leave the scene out under quarantine (name: reason), or set options.broken_scenes: drop."
_INDEX, _CHUNKS = "index.json", "*.torch"
_CAMERA_NUMBERS = 18
_SHOWN = 10
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
_TAIL_BYTES = 1024
_FETCH = "Fetch the file again."


@dataclass(frozen=True)
class Frame:
    """One frame as stored: its number in the scene, normalised (fx, fy, cx, cy), the 4x4 as stored, encoded bytes."""

    number: int
    name: str
    intrinsics: Float64[np.ndarray, "4"]
    transform: Float64[np.ndarray, "4 4"]
    encoded: UInt8[np.ndarray, " n"]


@dataclass(frozen=True)
class Clip:
    """A scene of a chunk, its arrays checked for shape and type alone."""

    scene: str
    timestamps: Int64[np.ndarray, " n"]
    cameras: Float64[np.ndarray, "n 18"]
    images: tuple[UInt8[np.ndarray, " _"], ...]

    def frame(self, number: int) -> Frame:
        """The frame of this number, from 0."""
        row, transform = self.cameras[number], np.eye(4)
        transform[:3] = row[6:].reshape(3, 4)
        return Frame(number, self.name(number), row[:4], transform, self.images[number])

    def name(self, number: int) -> str:
        """What the view of this frame is called: its number and its time in microseconds."""
        return f"{number:05d}-{int(self.timestamps[number]):012d}"


# --- where scenes are ---------------------------------------------------------------------------------------------


def places(raw: Path, folders: Sequence[str], *, indexed: bool) -> dict[str, tuple[Path, str]]:
    """Chunk and key of each scene below `raw`, by its name: as index.json of each folder says, or with every chunk opened.

    Sorted within each folder. DataError where there are no chunks, an index is broken or names chunks that are not there.
    """
    found: dict[str, tuple[Path, str]] = {}
    for prefix, folder in _folders(raw, folders).items():
        listed = _index(folder) if indexed else _opened(folder)
        found |= {prefix + key: (chunk, key) for key, chunk in listed.items()}
    return found


def _folders(raw: Path, folders: Sequence[str]) -> dict[str, Path]:
    """The folders of chunks, by what scene names begin with."""
    found = {f"{name}/": raw / name for name in folders if any((raw / name).glob(_CHUNKS))}
    if not found and any(raw.glob(_CHUNKS)):
        return {"": raw}
    if not found:
        raise DataError(
            f"{raw}: no chunks; expected {', '.join(f'{name}/{_CHUNKS}' for name in folders)} with {_INDEX} beside them. "
            "Check the path and options.folders."
        )
    return found


def _index(folder: Path) -> dict[str, Path]:
    path = folder / _INDEX
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected JSON {{key: chunk file}}. Fetch it, or set options.index: chunks (every chunk is "
            "opened to list its scenes)."
        )
    return _read_index(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_index(path: Path, modified: int) -> dict[str, Path]:
    """The chunk of each key; `modified` only lets a changed file be read again."""
    content = read_json(path)
    good = isinstance(content, dict) and all(isinstance(name, str) for name in content.values())
    if not good or not content:
        raise DataError(f"{path}: no index; expected JSON {{key: chunk file}} with at least one scene. {_FETCH}")
    absent = sorted({name for name in content.values() if not (path.parent / _safe(name, path)).is_file()})
    if absent:
        count = sum(name in absent for name in content.values())
        raise DataError(
            f"{path}: {len(absent)} chunks are not there, first {absent[0]} ({count} scenes are in them). Fetch them, or set "
            "options.index: chunks to read what there is."
        )
    return {_safe(key, path): path.parent / content[key] for key in sorted(content)}


def _opened(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for chunk in sorted(folder.glob(_CHUNKS)):
        for key in open_chunk(chunk):
            if key in found:
                raise DataError(
                    f"{chunk}: scene {key} is in {found[key].name} too; expected each scene once. Fetch both again."
                )
            found[_safe(key, chunk)] = chunk
    return dict(sorted(found.items()))


def _safe(name: str, path: Path) -> str:
    try:
        return inside(name)
    except ValueError as error:
        raise DataError(f"{path}: {error}; names become folders. {_FETCH}") from error


# --- one chunk ----------------------------------------------------------------------------------------------------


def read_clip(scene: str, found: Mapping[str, tuple[Path, str]]) -> Clip:
    """The scene of this name among `found` (see `places`); images stay on disk until they are decoded.

    DataError for a chunk that is cut or holds other scenes than the index says, and for arrays of another shape.
    """
    if scene not in found:
        some = ", ".join(list(found)[:_SHOWN])
        raise DataError(f"{scene}: no such scene; there is {some}{' …' if len(found) > _SHOWN else ''}.")
    path, key = found[scene]
    chunk = open_chunk(path)
    if key not in chunk:
        raise DataError(
            f"{scene}: {_INDEX} says that it is in {path.name}, which holds {', '.join(list(chunk)[:_SHOWN])}. The two are of "
            "different preparations: fetch both again, or set options.index: chunks."
        )
    unlisted = [other for other in chunk if scene.removesuffix(key) + other not in found]
    if unlisted:
        raise DataError(
            f"{path}: holds scene {unlisted[0]}, which {_INDEX} does not list ({len(unlisted)} such scenes). The two are of "
            "different preparations: fetch both again, or set options.index: chunks."
        )
    return _unpacked(scene, chunk[key])


def open_chunk(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The scenes of a chunk by their keys; images stay on disk until they are looked at."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. {_FETCH}")
    status = path.stat()
    return _load(path, (status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=2)
def _load(path: Path, state: tuple[int, int]) -> Mapping[str, Mapping[str, Any]]:
    """As `open_chunk`; `state` only lets a changed file be read again."""
    # Only chunks need torch: no other format may pay for its import.
    torch = importlib.import_module("torch")
    whole = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if whole and isinstance(error, pickle.UnpicklingError):
            raise DataError(
                f"{path}: holds something else than tensors, numbers and text, which is refused before it can run ({reason}). "
                "Make the chunk again from tensors alone."
            ) from error
        raise DataError(
            f"{path}: no readable chunk of {state[1]} bytes ({reason}). The download was cut: fetch the file again."
        ) from error
    if not isinstance(content, list) or not all(isinstance(item, dict) and "key" in item for item in content):
        raise DataError(f"{path}: no chunk; expected a list of scenes, each a dict with a key. {_FETCH}")
    keys = [str(item["key"]) for item in content]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{path}: scene {twice} is in it twice; expected each scene once. {_FETCH}")
    return dict(zip(keys, content, strict=True))


def _unpacked(scene: str, item: Mapping[str, Any]) -> Clip:
    absent = [name for name in ("timestamps", "cameras", "images") if name not in item]
    if absent:
        raise DataError(f"{scene}: its chunk has no {absent[0]} for it, only {', '.join(item)}. {_FETCH}")
    cameras, times = np.asarray(item["cameras"], np.float64), np.asarray(item["timestamps"]).astype(np.int64)
    if cameras.ndim != 2 or cameras.shape[1] != _CAMERA_NUMBERS:
        raise DataError(
            f"{scene}: cameras is {cameras.shape}; expected (n, {_CAMERA_NUMBERS}): fx, fy, cx, cy by width and height, 0, 0 and "
            f"the 3x4 world-to-camera. Another preparation? {_FETCH}"
        )
    images = item["images"]
    if not len(cameras) == len(images) == times.size:
        raise DataError(
            f"{scene}: {len(images)} images, {len(cameras)} cameras, {times.size} timestamps; expected as many. {_FETCH}"
        )
    arrays = tuple(np.asarray(image) for image in images)
    odd = next((i for i, image in enumerate(arrays) if image.dtype != np.uint8 or image.ndim != 1), None)
    if odd is not None:
        raise DataError(
            f"{scene}: image {odd} is {arrays[odd].dtype} {arrays[odd].shape}; expected a row of uint8, an encoded file. {_FETCH}"
        )
    if not arrays:
        raise DataError(f"{scene}: has no frames; expected at least one. {ADVICE}")
    return Clip(scene, times.reshape(-1), cameras, arrays)


def decode(encoded: UInt8[np.ndarray, " n"], where: str) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image of an encoded file; DataError, naming `where`, when it is none or is cut."""
    image = cv2.imdecode(np.ascontiguousarray(encoded), cv2.IMREAD_COLOR) if encoded.size else None
    if image is None:
        raise DataError(f"{where} cannot be decoded. Fetch its chunk again, or set options.undecodable: drop.")
    # Decoders fill the rest of a cut picture with grey and say nothing.
    if _ENDS.get(encoded[:2].tobytes(), b"") not in encoded[-_TAIL_BYTES:].tobytes():
        raise DataError(f"{where} is cut (no end marker). Fetch its chunk again, or set options.undecodable: drop.")
    return np.ascontiguousarray(image[..., ::-1])
