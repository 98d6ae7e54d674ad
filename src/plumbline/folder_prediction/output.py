"""What is written for a folder: depth maps and a picture for each view, what made them, and their metrics."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from plumbline.errors import ConfigError, DataError
from plumbline.evaluation import Scored
from plumbline.files import atomic_path, read_json, read_npy, write_json, write_npy, write_png16
from plumbline.metrics import METRICS

ABOUT = "about.json"
OVERVIEW = "overview.jpg"
SCORES = "metrics.csv"
VIEW_SCORES = "views.csv"
# What 16 bits of millimetres can hold.
FARTHEST = 65.535


@dataclass(frozen=True)
class ViewFiles:
    """The files of one predicted view: depth in metres, depth in millimetres, the picture, Gaussians and their cameras."""

    depth: Path
    millimetres: Path
    sheet: Path
    gaussians: Path
    cameras: Path


def view_files(out: Path, scene: str, name: str) -> ViewFiles:
    """Where the files of a view lie: `<scene>/<view>.npy`, `.png`, `_sheet.jpg`, `.ply` and `_cameras.json`."""
    # Names may hold dots (times), so no suffix is replaced.
    return ViewFiles(*(out / scene / f"{name}{end}" for end in (".npy", ".png", "_sheet.jpg", ".ply", "_cameras.json")))


def rendered_files(out: Path, scene: str, name: str) -> tuple[Path, Path]:
    """Where the picture of a rendered view lies, and that with what was really seen beside it."""
    return out / scene / f"{name}_rendered.png", out / scene / f"{name}_compared.jpg"


def open_folder(out: Path, about: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `out` ready and note in it what it is made with.

    A folder of the same making is kept, so that finished views are not predicted again. ConfigError for a folder of another
    making, unless `overwrite`, and always for one with other files in it.
    """
    file = out / ABOUT
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out}: is there, and no prediction wrote it. Give another --out.")
    elif overwrite:
        shutil.rmtree(out)
    elif differing := _differing(read_json(file), dict(about)):
        raise ConfigError(
            f"{out}: holds depth that was made with other {' and '.join(differing)} (see {file}). "
            "Give another --out, or --overwrite to delete it first."
        )
    write_json(file, about)


def _differing(before: Any, now: dict[str, Any]) -> list[str]:
    # Through JSON tuples become lists.
    plain = {key: _plain(value) for key, value in now.items()}
    return sorted(key for key in before.keys() | plain.keys() if before.get(key) != plain.get(key))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def write_depth(files: ViewFiles, depth: Float32[np.ndarray, "h w"]) -> None:
    """Write a depth map (metres, 0 = none) as float32 .npy and as 16-bit PNG of millimetres.

    Depth beyond 65.535 m does not fit the PNG: it is 0 (none) there, never a wrong number; the .npy has it. The .npy comes
    last: where it is, the view is finished.
    """
    write_png16(files.millimetres, to_millimetres(depth))
    write_npy(files.depth, depth)


def to_millimetres(depth: Float32[np.ndarray, "h w"]) -> np.ndarray:
    """Depth in whole millimetres, uint16; 0 where there is none and where it is beyond 65.535 m."""
    millimetres = np.rint(depth.astype(np.float64) * 1000)
    return np.where(millimetres <= np.iinfo(np.uint16).max, millimetres, 0).astype(np.uint16)


def read_depth(files: ViewFiles, size: tuple[int, int]) -> Float32[np.ndarray, "h w"] | None:
    """The depth of a view that was finished before, None when it was not; DataError for a file of another size or type."""
    if not files.depth.is_file():
        return None
    depth = np.asarray(read_npy(files.depth))
    if depth.shape != size or depth.dtype != np.float32:
        raise DataError(
            f"{files.depth}: {depth.dtype} {depth.shape}; expected float32 {size}. Delete it and predict again."
        )
    return depth


def write_scores(path: Path, rows: Sequence[Scored]) -> None:
    """Write a row for each view with truth: what it was compared on, and every metric (empty where there is none)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "view", "sources", "valid", "compared", *METRICS, "reason"])
    for scored in rows:
        view, *sources = scored.views.split("+")
        values = [f"{scored.row.values[name]:.9g}" if name in scored.row.values else "" for name in METRICS]
        counts = [scored.row.valid, scored.row.compared]
        writer.writerow([scored.scene, view, "+".join(sources), *counts, *values, scored.row.reason])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
