"""Predictions on disk, `predictions/<method>/<suite>/`: what a method answered, and what it was allowed to look at.

`samples.json` names every sample (scene, views), the method's inputs, whether the truth was among them (an oracle), and
the fingerprint of the suite; `depth.npy` is f32 (n, p, h, w), metres (or a unit of each sample's own, where `metric` is
false), 0 = abstains, and `confidence.npy`, where a method has one, f32 of the same shape in [0, 1], higher = surer. Row i
belongs to sample i, its first map to the reference view. A method that predicts cameras has `cam0_T_cam.npy`, f32 (n, v, 4, 4)
of all given views, and, where it predicts them, intrinsics in `K.npy`, f32 (n, v, 3, 3), pixels. Where samples have target
views, what they were rendered as is in `rendered.npy`, u8 (n, t, h, w, 3), in the samples' order of targets, and the rendered
z, where there is one, in `rendered_depth.npy`, f32 (n, t, h, w), metres, 0 = nothing there. A method may have cameras or
rendered views alone, and no depth. `diagnostics.json` is there for a method that measures its own parts.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from pydantic import BaseModel

from plumbline.errors import DataError
from plumbline.files import read_json, read_npy, write_json, write_npy
from plumbline.records import Sample

FORMAT_VERSION = 2
# What decides which truth is measured, or who answers, decides no sample: changing it must not ask for new predictions.
_OTHERS = frozenset({"depth_min", "depth_max", "methods"})


@dataclass(frozen=True)
class StoredSample:
    """A sample by its scene, view indices and names (reference first); with `context` only that many of them are given."""

    scene: str
    views: tuple[int, ...]
    names: tuple[str, ...]
    context: int | None = None

    @property
    def given(self) -> tuple[int, ...]:
        """The views that the method could look at."""
        return self.views[: self.context]

    @property
    def targets(self) -> tuple[int, ...]:
        """The views to be rendered; none where all are given."""
        return () if self.context is None else self.views[self.context :]

    @property
    def given_names(self) -> tuple[str, ...]:
        """The names of `given`."""
        return self.names[: self.context]

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of `targets`."""
        return () if self.context is None else self.names[self.context :]

    @property
    def label(self) -> str:
        """How messages and tables name this sample: `scan1/00000012+00000014`, and `scan1/0012+0014>0013` with a target."""
        aimed = f">{'+'.join(self.target_names)}" if self.targets else ""
        return f"{self.scene}/{'+'.join(self.given_names)}{aimed}"


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
    """What predicting took: median seconds a sample by suite, trainable parameters, and the process's peak memory.

    `render_seconds` is the median a rendered view, of the suites that were rendered; it is no part of `seconds` but for
    methods that only render.
    """

    seconds: Mapping[str, float]
    parameters: int | None = None
    peak_memory_gb: float | None = None
    render_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredCameras:
    """Predicted cameras of all given views of every sample, the reference first; K is None where only poses are predicted."""

    cam0_T_cam: Float32[np.ndarray, "n v 4 4"]
    K: Float32[np.ndarray, "n v 3 3"] | None


@dataclass(frozen=True)
class Predictions:
    """One method's predictions for one suite, arrays memory-mapped; `depth` is None where there is none.

    `rendered` and `rendered_depth` (metres, 0 = nothing there) have a map for each target view, None without.

    `diagnostics` holds what a method says of its own parts (for instance which share of its keypoints can be matched),
    measured with the truth after predicting: name -> a value for each sample, NaN where it has none.
    """

    about: About
    samples: tuple[StoredSample, ...]
    depth: Float32[np.ndarray, "n p h w"] | None
    confidence: Float32[np.ndarray, "n p h w"] | None
    cameras: StoredCameras | None = None
    rendered: UInt8[np.ndarray, "n t h w 3"] | None = None
    rendered_depth: Float32[np.ndarray, "n t h w"] | None = None
    diagnostics: Mapping[str, Float64[np.ndarray, " n"]] = field(default_factory=dict)

    @property
    def maps(self) -> Float32[np.ndarray, "n p h w"]:
        """The depth; DataError where the method predicts none."""
        if self.depth is None:
            parts = [
                name
                for name, there in (("cameras", self.cameras), ("rendered views", self.rendered))
                if there is not None
            ]
            raise DataError(
                f"{self.about.method} {self.about.suite}: this method predicts {' and '.join(parts)} and no depth. "
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
        StoredSample(item["scene"], tuple(item["views"]), tuple(item["names"]), item["context"])
        for item in stored["samples"]
    )
    cameras = _read_cameras(folder, samples)
    rendered, rendered_depth = _read_rendered(folder, samples)
    # With nothing else a missing depth.npy is a damaged folder, and reading it says so.
    alone = cameras is None and rendered is None
    depth = _read_stack(folder / "depth.npy") if alone else _read_optional(folder / "depth.npy")
    confidence = _read_optional(folder / "confidence.npy")
    _check_rows(folder, len(samples), depth, confidence)
    diagnostics = _read_diagnostics(folder, len(samples))
    return Predictions(about, samples, depth, confidence, cameras, rendered, rendered_depth, diagnostics)


def read_for(folder: Path, samples: list[Sample], fingerprint: str) -> Predictions:
    """Read predictions that must belong to exactly these samples, in this order; DataError says which differs first."""
    stored = read_predictions(folder)
    advice = "Its suite was changed since: predict it again, for example with `dvc repro predict`."
    if stored.about.suite_fingerprint != fingerprint:
        raise DataError(f"{folder} was predicted for another definition of suite {stored.about.suite!r}. {advice}")
    if len(stored.samples) != len(samples):
        raise DataError(f"{folder} has {len(stored.samples)} samples; expected {len(samples)}. {advice}")
    for index, (got, expected) in enumerate(zip(stored.samples, samples, strict=True)):
        if (got.scene, got.given, got.targets) != (expected.scene, expected.given, expected.targets):
            raise DataError(
                f"{folder}: sample {index} is {got.scene} {got.views}; expected {expected.scene} {expected.views}, "
                f"{len(expected.given)} of them given. {advice}"
            )
    return stored


def write_samples(folder: Path, about: About, samples: list[StoredSample]) -> None:
    """Write `samples.json`: nothing that differs between two runs, so that what is made of it stays cached."""
    rows = [asdict(sample) for sample in samples]
    write_json(folder / "samples.json", {"format": FORMAT_VERSION, "about": asdict(about), "samples": rows})


def write_cost(folder: Path, cost: Cost) -> None:
    """Write `cost.json` of a method's folder."""
    seconds = {suite: round(value, 4) for suite, value in cost.seconds.items()}
    rendering = {suite: round(value, 5) for suite, value in cost.render_seconds.items()}
    memory = None if cost.peak_memory_gb is None else round(cost.peak_memory_gb, 3)
    write_json(folder / "cost.json", asdict(Cost(seconds, cost.parameters, memory, rendering)))


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


def shown_sample(count: int) -> int:
    """Which of a suite's `count` samples stands for it where one alone is shown or exported: the middle one."""
    return count // 2


class StackFile:
    """A `.npy` stack of known shape, f32 or as `dtype` says, written part by part, so that it never has to fit in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...], *, dtype: str = "<f4") -> None:
        self._file: BinaryIO = path.open("wb")
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._rows = 0
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: Float32[np.ndarray, "m p h w"] | UInt8[np.ndarray, "m t h w 3"]) -> None:
        """Write the next rows; DataError when their size is not that of the stack."""
        if rows.shape[1:] != self._shape[1:] or self._rows + len(rows) > self._shape[0]:
            raise DataError(
                f"{self._file.name}: got maps of shape {rows.shape[1:]}; expected {self._shape[1:]} for all samples of a suite."
            )
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        """Close the file (also after a failure; an unfinished folder is never given its final name)."""
        self._file.close()


def _read_stack(path: Path) -> Float32[np.ndarray, "..."]:
    return read_npy(path, memory_map=True)


def _read_optional(path: Path) -> Float32[np.ndarray, "..."] | None:
    return _read_stack(path) if path.is_file() else None


def _read_rendered(
    folder: Path, samples: Sequence[StoredSample]
) -> tuple[UInt8[np.ndarray, "n t h w 3"] | None, Float32[np.ndarray, "n t h w"] | None]:
    if not (folder / "rendered.npy").is_file():
        return None, None
    rendered, depth = read_npy(folder / "rendered.npy", memory_map=True), _read_optional(folder / "rendered_depth.npy")
    expected = (len(samples), len(samples[0].targets) if samples else 0)
    if rendered.ndim != 5 or rendered.shape[:2] != expected or rendered.dtype != np.uint8 or rendered.shape[4] != 3:
        raise DataError(
            f"{folder}/rendered.npy is {rendered.dtype} {rendered.shape}; expected uint8 (n, t, h, w, 3) with n, t = {expected}. "
            "Predict again."
        )
    if depth is not None and (depth.shape != rendered.shape[:4] or depth.dtype != np.float32):
        raise DataError(
            f"{folder}/rendered_depth.npy is {depth.dtype} {depth.shape}; expected float32 {rendered.shape[:4]}, as "
            "rendered.npy. Predict again."
        )
    return rendered, depth


def _read_cameras(folder: Path, samples: Sequence[StoredSample]) -> StoredCameras | None:
    if not (folder / "cam0_T_cam.npy").is_file():
        return None
    views = len(samples[0].given) if samples else 0
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
