"""The list of a data set's raw files with sizes and hashes: what the parse stage depends on."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from plumbline.data.sources import matches
from plumbline.errors import DataError
from plumbline.files import atomic_path, sha256_file

SHOWN = 5


class RawFile(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """One raw file: path relative to the raw folder with "/", size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Manifest(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """All raw files of a data set, sorted by path, and what they were made or fetched from (no machine's path)."""

    dataset: str
    source: dict[str, Any]
    files: tuple[RawFile, ...]

    @property
    def total(self) -> dict[str, int]:
        """Number of files and their bytes."""
        return {"files": len(self.files), "bytes": sum(file.size for file in self.files)}


@dataclass(frozen=True)
class Stamp:
    """What a file looked like when its hash was taken: size in bytes and modification time in ns."""

    size: int
    mtime_ns: int
    sha256: str

    def fits(self, path: Path) -> bool:
        """True when the file is there with this size and time."""
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns)


def stamp_file(path: Path) -> Stamp:
    """The stamp of a file as it is now; hashes it."""
    stat = path.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns, sha256_file(path))


def list_files(folder: Path, patterns: Iterable[str] = ("**",)) -> list[str]:
    """Paths, relative with "/", of the files below a folder that match one of the globs, sorted; links are followed."""
    wanted, found, seen = tuple(patterns), [], set[str]()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inner = os.path.relpath(parent, folder)
        paths = names if inner == "." else [f"{inner}/{name}".replace(os.sep, "/") for name in names]
        found += [path for path in paths if any(matches(path, pattern) for pattern in wanted)]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}).")


def stamp_files(folder: Path, paths: Iterable[str], *, known: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """The stamp of each file. A `known` one is taken over while size and time fit; the rest is hashed in threads."""

    def stamp(path: str) -> Stamp:
        before = known.get(path)
        return before if before is not None and before.fits(folder / path) else stamp_file(folder / path)

    names = list(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(stamp, names), strict=True))


def from_stamps(dataset: str, source: dict[str, Any], stamps: Mapping[str, Stamp]) -> Manifest:
    """The manifest of stamped files, sorted by path."""
    files = (RawFile(path=path, size=stamps[path].size, sha256=stamps[path].sha256) for path in sorted(stamps))
    return Manifest(dataset=dataset, source=source, files=tuple(files))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON with one line a file, so that two versions compare well; equal content, equal bytes."""
    lines = ",\n".join(f"  {json.dumps(file.model_dump())}" for file in manifest.files)
    head = {"dataset": manifest.dataset, "source": manifest.source, "total": manifest.total}
    fields = "".join(f" {json.dumps(key)}: {json.dumps(value, sort_keys=True)},\n" for key, value in head.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(f'{{\n{fields} "files": [\n{lines}\n ]\n}}\n')


def read_manifest(path: Path) -> Manifest:
    """A manifest from its file; DataError when it is absent, no manifest, or its totals do not fit its files."""
    how = f'Make it with "dvc repro -f download@{path.stem}".'
    try:
        data = json.loads(path.read_text())
        total = data.pop("total")
        manifest = Manifest.model_validate(data)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no manifest. {how}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest of raw files ({error}). {how}") from error
    if total != manifest.total:
        raise DataError(f"{path}: lists {manifest.total} but says {total}; it was cut or edited. {how}")
    return manifest


def verify(manifest: Manifest, folder: Path, *, hashes: bool = False) -> None:
    """DataError naming the raw files that are missing or of another size and, on request, of another SHA-256.

    Sizes take a moment for 50,000 files, hashes as long as reading all of them.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda file: _defect(file, folder, hashes=hashes), manifest.files)
        defects = [defect for defect in found if defect]
    if defects:
        shown = "; ".join(defects[:SHOWN]) + (f"; and {len(defects) - SHOWN} more" if len(defects) > SHOWN else "")
        raise DataError(
            f"{manifest.dataset}: {len(defects)} of {len(manifest.files)} raw files under {folder} are not what the "
            f'manifest lists: {shown}. Fetch them again with "dvc repro -f download@{manifest.dataset}".'
        )


def _defect(file: RawFile, folder: Path, *, hashes: bool) -> str | None:
    path = folder / file.path
    if not path.is_file():
        return f"{file.path} is missing"
    if (size := path.stat().st_size) != file.size:
        return f"{file.path} has {size} bytes, expected {file.size}"
    if hashes and (digest := sha256_file(path)) != file.sha256:
        return f"{file.path} has SHA-256 {digest[:12]}…, expected {file.sha256[:12]}…"
    return None
