"""Predictions on disk, `predictions/<method>/<suite>/`: what a method answered, and what it was allowed to look at.

`samples.json` names every sample (scene, views), the method's inputs, whether the truth was among them (an oracle), and
the fingerprint of the suite; `depth.npy` is f32 (n, p, h, w), metres (or a unit of each sample's own, where `metric` is
false), 0 = abstains, and `confidence.npy`, where a method has one, f32 of the same shape in [0, 1], higher = surer. Row i
belongs to sample i, its first map to the reference view. A method that predicts cameras has `cam0_T_cam.npy`, f32 (n, v, 4, 4)
of all views, and, where it predicts them, intrinsics in `K.npy`, f32 (n, v, 3, 3), pixels; it may have these alone, and no
depth. `diagnostics.json` is there for a method that measures its own parts.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import BaseModel

from plumbline.errors import DataError
from plumbline.files import read_json, read_npy, write_json, write_npy
from plumbline.records import Sample

FORMAT_VERSION = 1
# What decides which truth is measured, or who answers, decides no sample: changing it must not ask for new predictions.
_OTHERS = frozenset({"depth_min", "depth_max", "methods"})


@dataclass(frozen=True)
class StoredSample:
    """A sample by its scene, view indices and names (reference first)."""

    scene: str
    views: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """How messages and tables name this sample: `scan1/00000012+00000014`."""
        return f"{self.scene}/{'+'.join(self.names)}"


@dataclass(frozen=True)
class About:
    """What holds for all samples of one suite. `notes` records choices in words, such as where a constant came from.

    `metric` says whether the method knows the scale of every sample: its depth and translations are metres then.
    """

    method: str
    suite: str
    dataset: str
    inputs: tuple[str, ...]
    oracle: bool
    suite_fingerprint: str
    device: str
    notes: dict[str, str] = field(default_factory=dict)
    metric: bool = True


@dataclass(frozen=True)
class Cost:
    """What predicting took: median seconds a sample by suite, trainable parameters, and the process's peak memory."""

    seconds: Mapping[str, float]
    parameters: int | None = None
    peak_memory_gb: float | None = None


@dataclass(frozen=True)
class StoredCameras:
    """Predicted cameras of all views of every sample, the reference first; K is None where only poses are predicted."""

    cam0_T_cam: Float32[np.ndarray, "n v 4 4"]
    K: Float32[np.ndarray, "n v 3 3"] | None


@dataclass(frozen=True)
class Predictions:
    """One method's predictions for one suite, arrays memory-mapped; `depth` is None for a method that predicts cameras alone.

    `diagnostics` holds what a method says of its own parts (for instance which share of its keypoints can be matched),
    measured with the truth after predicting: name -> a value for each sample, NaN where it has none.
    """

    about: About
    samples: tuple[StoredSample, ...]
    depth: Float32[np.ndarray, "n p h w"] | None
    confidence: Float32[np.ndarray, "n p h w"] | None
    cameras: StoredCameras | None = None
    diagnostics: Mapping[str, Float64[np.ndarray, " n"]] = field(default_factory=dict)

    @property
    def maps(self) -> Float32[np.ndarray, "n p h w"]:
        """The depth; DataError where the method predicts cameras alone."""
        if self.depth is None:
            raise DataError(
                f"{self.about.method} {self.about.suite}: this method predicts cameras and no depth. "
                "Name one that predicts depth."
            )
        return self.depth


def suite_fingerprint(suite: BaseModel) -> str:
    """A hash of everything in a suite's config that decides its samples (the evaluation caps and the list of methods do not)."""
    chosen = {key: value for key, value in suite.model_dump(mode="json").items() if key not in _OTHERS}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def read_predictions(folder: Path) -> Predictions:
    """Read `predictions/<method>/<suite>`; DataError when it is missing, of another format, or its parts disagree."""
    if not (folder / "samples.json").is_file():
        raise DataError(f"{folder}: no samples.json there. Predict it first, for example with `dvc repro predict`.")
    stored = read_json(folder / "samples.json")
    if stored.get("format") != FORMAT_VERSION:
        raise DataError(
            f"{folder}/samples.json has format {stored.get('format')}; expected {FORMAT_VERSION}. Predict again."
        )
    about = About(**(stored["about"] | {"inputs": tuple(stored["about"]["inputs"])}))
    samples = tuple(
        StoredSample(item["scene"], tuple(item["views"]), tuple(item["names"])) for item in stored["samples"]
    )
    cameras = _read_cameras(folder, samples)
    # Without cameras a missing depth.npy is a damaged folder, and reading it says so.
    depth = None if cameras and not (folder / "depth.npy").is_file() else _read_stack(folder / "depth.npy")
    confidence = _read_stack(folder / "confidence.npy") if (folder / "confidence.npy").is_file() else None
    _check_rows(folder, len(samples), depth, confidence)
    return Predictions(about, samples, depth, confidence, cameras, _read_diagnostics(folder, len(samples)))


def read_for(folder: Path, samples: list[Sample], fingerprint: str) -> Predictions:
    """Read predictions that must belong to exactly these samples, in this order; DataError says which differs first."""
    stored = read_predictions(folder)
    advice = "Its suite was changed since: predict it again, for example with `dvc repro predict`."
    if stored.about.suite_fingerprint != fingerprint:
        raise DataError(f"{folder} was predicted for another definition of suite {stored.about.suite!r}. {advice}")
    if len(stored.samples) != len(samples):
        raise DataError(f"{folder} has {len(stored.samples)} samples; expected {len(samples)}. {advice}")
    for index, (got, expected) in enumerate(zip(stored.samples, samples, strict=True)):
        if (got.scene, got.views) != (expected.scene, expected.views):
            raise DataError(
                f"{folder}: sample {index} is {got.scene} {got.views}; expected {expected.scene} {expected.views}. {advice}"
            )
    return stored


def write_samples(folder: Path, about: About, samples: list[StoredSample]) -> None:
    """Write `samples.json`: nothing that differs between two runs, so that what is made of it stays cached."""
    rows = [asdict(sample) for sample in samples]
    write_json(folder / "samples.json", {"format": FORMAT_VERSION, "about": asdict(about), "samples": rows})


def write_cost(folder: Path, cost: Cost) -> None:
    """Write `cost.json` of a method's folder."""
    rounded = {suite: round(value, 4) for suite, value in cost.seconds.items()}
    memory = None if cost.peak_memory_gb is None else round(cost.peak_memory_gb, 3)
    write_json(folder / "cost.json", asdict(Cost(rounded, cost.parameters, memory)))


def read_cost(folder: Path) -> Cost:
    """What a method's predictions took."""
    return Cost(**read_json(folder / "cost.json"))


def write_diagnostics(folder: Path, values: Mapping[str, Sequence[float]]) -> None:
    """Write `diagnostics.json` of a suite's folder: a method's own measures, one value a sample, null where it has none."""
    rows = {name: [round(x, 6) if math.isfinite(x) else None for x in row] for name, row in values.items()}
    write_json(folder / "diagnostics.json", rows)


def write_cameras(folder: Path, cameras: StoredCameras) -> None:
    """Write `cam0_T_cam.npy` and, where they are predicted, `K.npy` of a suite's folder."""
    write_npy(folder / "cam0_T_cam.npy", cameras.cam0_T_cam)
    if cameras.K is not None:
        write_npy(folder / "K.npy", cameras.K)


class StackFile:
    """A `.npy` stack of known shape written part by part, so that it never has to fit in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._shape = shape
        self._rows = 0
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: Float32[np.ndarray, "m p h w"]) -> None:
        """Write the next rows; DataError when their size is not that of the stack."""
        if rows.shape[1:] != self._shape[1:] or self._rows + len(rows) > self._shape[0]:
            raise DataError(
                f"{self._file.name}: got maps of shape {rows.shape[1:]}; expected {self._shape[1:]} for all samples of a suite."
            )
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        """Close the file (also after a failure; an unfinished folder is never given its final name)."""
        self._file.close()


def _read_stack(path: Path) -> Float32[np.ndarray, "..."]:
    return read_npy(path, memory_map=True)


def _read_cameras(folder: Path, samples: Sequence[StoredSample]) -> StoredCameras | None:
    if not (folder / "cam0_T_cam.npy").is_file():
        return None
    views = len(samples[0].views) if samples else 0
    poses = _read_stack(folder / "cam0_T_cam.npy")
    K = _read_stack(folder / "K.npy") if (folder / "K.npy").is_file() else None
    for name, array, side in (("cam0_T_cam", poses, 4), ("K", K, 3)):
        if array is not None and (array.shape != (len(samples), views, side, side) or array.dtype != np.float32):
            raise DataError(
                f"{folder}/{name}.npy is {array.dtype} {array.shape}; expected float32 {(len(samples), views, side, side)}. "
                "Predict again."
            )
    return StoredCameras(poses, K)


def _read_diagnostics(folder: Path, count: int) -> dict[str, Float64[np.ndarray, " n"]]:
    if not (folder / "diagnostics.json").is_file():
        return {}
    rows: dict[str, list[float | None]] = read_json(folder / "diagnostics.json")
    if any(len(row) != count for row in rows.values()):
        raise DataError(f"{folder}/diagnostics.json: expected {count} values of each measure. Predict again.")
    return {name: np.array([math.nan if x is None else x for x in row]) for name, row in rows.items()}


def _check_rows(folder: Path, count: int, depth: np.ndarray | None, confidence: np.ndarray | None) -> None:
    if depth is None:
        return
    if depth.ndim != 4 or len(depth) != count or depth.dtype != np.float32:
        raise DataError(
            f"{folder}/depth.npy is {depth.dtype} {depth.shape}; expected float32 (n, p, h, w) with n = {count}. Predict again."
        )
    if confidence is not None and confidence.shape != depth.shape:
        raise DataError(
            f"{folder}/confidence.npy is {confidence.shape}; expected {depth.shape}, as depth.npy. Predict again."
        )
