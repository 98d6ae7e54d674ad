"""Read .npz files of others. Their object arrays are pickles, which can run code: here they may hold plain values only.

Strings, numbers and None come through; any other object is refused before it is made. Nothing that a file names is ever
imported: the four names that numpy itself writes into such a pickle are answered by stand-ins that only record.
"""

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from plumbline.errors import DataError

_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_SCALAR = re.compile(r"[biufU]\d+")
_BROKEN = (
    pickle.UnpicklingError, ValueError, TypeError, AttributeError, IndexError, KeyError, EOFError, OverflowError, struct.error,
    MemoryError, RecursionError,
)  # fmt: skip


def read_npz(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of an .npz file by name; object arrays hold str, int, float, bool and None.

    DataError when the file is absent or cut, or when an object array holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _member(archive, name, f"{path}: {name}") for name in members}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}). Fetch it again.") from error


def _member(archive: zipfile.ZipFile, name: str, where: str) -> Shaped[np.ndarray, "..."]:
    try:
        with archive.open(name) as stream:
            header = _HEADERS.get(np.lib.format.read_magic(stream))
            shape, _, dtype = header(stream) if header else ((), False, np.dtype(float))
            if dtype.hasobject:
                return _objects(stream, shape, dtype, where)
        with archive.open(name) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise DataError(f"{where}: not a readable array ({error}). Fetch the file again.") from error


def _objects(stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> Shaped[np.ndarray, "..."]:
    if dtype != np.dtype(object):
        raise DataError(f"{where}: {dtype} mixes objects into records; expected strings, numbers and None.")
    try:
        found = _Unpickler(stream).load()
    except _BROKEN as error:
        raise DataError(
            f"{where}: refused: {error}. Expected strings, numbers and None; nothing of it was run. Use the file of a source "
            "you trust, or save the array again as plain numbers and strings."
        ) from error
    values = _values(found, shape, where)
    array = np.empty(len(values), object)
    array[:] = values
    # Unlike plain ones, arrays of objects are listed row by row even where they lay in memory by columns.
    return array.reshape(shape)


def _values(found: Any, shape: tuple[int, ...], where: str) -> list[Any]:
    values = found.state[4] if isinstance(found, _Record) and found.kind == "array" and found.state else None
    if not isinstance(values, list) or len(values) != int(np.prod(shape)):
        raise DataError(f"{where}: its objects do not fill an array of shape {shape}. Fetch the file again.")
    for value in values:
        if value is not None and type(value) not in (str, int, float, bool):
            raise DataError(
                f"{where}: refused: it holds a {_word(value)}. Expected strings, numbers and None; nothing of it was run."
            )
    return values


def _word(value: Any) -> str:
    return f"nested {value.kind}" if isinstance(value, _Record) else type(value).__name__


@dataclass
class _Record:
    """What a pickle asks numpy to make, noted down and not made. `state` is a tuple in what numpy writes."""

    kind: str
    arguments: tuple[Any, ...]
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        # Called by the unpickler in place of the real object's method; anything but numpy's own tuple stays out.
        self.state = state if isinstance(state, tuple) and len(state) >= 5 else None


@dataclass(frozen=True)
class _Maker:
    """Stands in for one of numpy's functions in a pickle: called, it gives a record, or a scalar's plain value."""

    kind: str

    def __call__(self, *arguments: Any) -> Any:
        return _scalar(*arguments) if self.kind == "scalar" else _Record(self.kind, arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it tries to change numpy's {self.kind}")


def _scalar(dtype: Any = None, data: Any = None, *_: Any) -> Any:
    code = dtype.arguments[0] if isinstance(dtype, _Record) and dtype.kind == "dtype" else None
    if not isinstance(code, str) or not _SCALAR.fullmatch(code) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("it holds a numpy scalar that is no number and no string")
    order = dtype.state[1] if dtype.state and dtype.state[1] in ("<", ">") else "="
    return np.frombuffer(data, np.dtype(f"{order}{code}"), 1)[0].item()


_MAKERS = {
    f"{module}.{name}": kind
    for module in ("numpy._core.multiarray", "numpy.core.multiarray")
    for name, kind in (("_reconstruct", "array"), ("scalar", "scalar"))
} | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype"}


class _Unpickler(pickle.Unpickler):
    """Answers the names in numpy's own pickles with stand-ins and refuses all others (pickle's documented way to restrict)."""

    def find_class(self, module: str, name: str) -> Any:
        kind = _MAKERS.get(f"{module}.{name}")
        if kind is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Maker(kind)
