"""Keypoint labels, made once for the images that are trained on: `data/pseudo_labels/<dataset>/<scene>.npy`, f16 (v, h, w).

A value is the probability that the pixel is a keypoint; an 8x8 cell (from the top left, as detectors lay them) sums to at
most 1, and what is missing to 1 is the probability that the cell has none. Labels come from a teacher network, handed in as
a function, or, without one, from homographic adaptation of a corner detector: an image is looked at through random
homographies, corners are found in each view and taken back, and a keypoint is what keeps being found (DeTone et al.,
SuperPoint, CVPR workshops 2018, section 5, there with a network; Shi and Tomasi, CVPR 1994, for the corners).
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Float16, Float32, Float64, UInt8
from pydantic import Field

from plumbline.config import DatasetConfig, Section
from plumbline.data.canonical import read_scene
from plumbline.data.samples import open_split
from plumbline.errors import DataError
from plumbline.files import atomic_path, read_npy, replace_folder, sha256_file, write_json
from plumbline.process import end_with_parent, only_one
from plumbline.progress import progress
from plumbline.records import Scene

FORMAT_VERSION = 1
CELL = 8
# A corner's window (the derivative, its 3x3 sum, and one pixel to spare) must lie inside the image and inside the view.
MARGIN = 4
_CHUNK = 8

Labeller = Callable[[UInt8[np.ndarray, "n h w 3"], Sequence[str]], Float32[np.ndarray, "n h w"]]


class TeacherFile(Section):
    """Weights of a SuperPoint network in their public format, supplied by the user."""

    path: Path = Field(description="absolute, or relative to the project's root")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="its hash: another file of that name makes other labels")


class PseudoLabelConfig(Section):
    """Which images get keypoint labels, and how they are made. With a teacher only `splits` matters beside it."""

    splits: tuple[Literal["train", "val"], ...] = Field(default=("train", "val"), min_length=1)
    teacher: TeacherFile | None = Field(default=None, description="network to learn from; null: corners, as below")
    seed: int = Field(default=0, ge=0)
    views: int = Field(
        default=32, ge=1, le=1000, description="homographies an image is seen through, the first is none"
    )
    zoom: float = Field(default=0.5, ge=0, le=2, description="scales are in [1 / (1 + this), 1 + this]")
    turn: float = Field(default=45.0, ge=0, le=180, description="largest rotation in the image, degrees")
    tilt: float = Field(default=0.2, ge=0, le=0.4, description="largest shift of a view's corner, of its half size")
    shift: float = Field(default=0.15, ge=0, le=0.5, description="largest shift of a view, of its size")
    radius: int = Field(default=3, ge=1, le=16, description="a corner is the strongest within this many pixels")
    quality: float = Field(default=0.01, ge=0, lt=1, description="weakest corner, of the strongest in its view")
    min_response: float = Field(
        default=2e-4, ge=0, description="weakest corner: smaller eigenvalue, image in [0, 1], summed over 3x3 pixels"
    )
    min_share: float = Field(default=0.3, gt=0, le=1, description="a keypoint is found in this share of its views")


# --- homographic adaptation -------------------------------------------------------------------------------------------


def label_images(
    images: UInt8[np.ndarray, "n h w 3"], names: Sequence[str], *, config: PseudoLabelConfig
) -> Float32[np.ndarray, "n h w"]:
    """Keypoint probabilities of RGB images by homographic adaptation.

    The random numbers of an image depend on `config.seed` and its name alone: not on its neighbours, nor on who computes it.
    """
    seeds = [[config.seed, zlib.crc32(name.encode())] for name in names]
    return np.stack([adapt(image, config, np.random.default_rng(seed)) for image, seed in zip(images, seeds)])


def adapt(
    image: UInt8[np.ndarray, "h w 3"], config: PseudoLabelConfig, generator: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """The share of random views in which a corner was found at this pixel; 0 where it is no keypoint.

    The share is kept, not rounded up to 1: it is what the probability means, a corner that half of the views lose is taught
    as such, and a detector trained on it ranks corners by how repeatable they are. At most one pixel a cell is not 0.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found, seen = np.zeros(grey.shape, np.float32), np.zeros(grey.shape, np.float32)
    for number in range(config.views):
        view_H_image = np.eye(3) if number == 0 else random_homography(grey.shape, config, generator)
        image_H_view = np.linalg.inv(view_H_image)
        found += _corners_through(grey, view_H_image, image_H_view, config)
        seen += _visible(grey.shape, image_H_view)
    return _keypoints(found, seen, config)


def random_homography(
    size: tuple[int, ...], config: PseudoLabelConfig, generator: np.random.Generator
) -> Float64[np.ndarray, "3 3"]:
    """`view_H_image`: takes pixels of an image to those of a view of it, of the same size, that is zoomed, turned, tilted."""
    height, width = size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    centre = corners.mean(axis=0)
    scale = (1 + config.zoom) ** generator.uniform(-1, 1)
    angle = np.radians(config.turn) * generator.uniform(-1, 1)
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    window = (corners - centre) * (1 + config.tilt * generator.uniform(-1, 1, (4, 2)))
    shift = config.shift * generator.uniform(-1, 1, 2) * [width, height]
    seen = window @ R.T / scale + centre + shift
    return np.asarray(cv2.getPerspectiveTransform(seen.astype(np.float32), corners.astype(np.float32)))


def _corners_through(
    grey: UInt8[np.ndarray, "h w"],
    view_H_image: Float64[np.ndarray, "3 3"],
    image_H_view: Float64[np.ndarray, "3 3"],
    config: PseudoLabelConfig,
) -> Float32[np.ndarray, "h w"]:
    """1 at the pixels of the image at which a view of it has corners."""
    height, width = grey.shape
    # Mirrored surroundings: a black border would have corners of its own.
    view = cv2.warpPerspective(grey, view_H_image, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    corners = _inside(_corners(view, config), grey.shape)
    back = np.rint(_moved(corners, image_H_view))
    column, row = _inside(back, grey.shape).astype(np.intp).T
    hit = np.zeros(grey.shape, np.float32)
    hit[row, column] = 1
    return hit


def _corners(view: UInt8[np.ndarray, "h w"], config: PseudoLabelConfig) -> Float64[np.ndarray, "k 2"]:
    """Pixels (x, y) whose smaller eigenvalue of the structure tensor is the largest within `config.radius` pixels."""
    response = cv2.cornerMinEigenVal(view, blockSize=3, ksize=3)
    weakest = max(config.min_response, config.quality * float(response.max()))
    peak = (response == cv2.dilate(response, _square(config.radius))) & (response > weakest)
    row, column = np.nonzero(peak)
    return np.stack([column, row], axis=1).astype(np.float64)


def _visible(size: tuple[int, ...], image_H_view: Float64[np.ndarray, "3 3"]) -> UInt8[np.ndarray, "h w"]:
    """1 at the pixels of the image at which the view could have found a corner."""
    height, width = size
    low, right, bottom = MARGIN, width - 1 - MARGIN, height - 1 - MARGIN
    edge = np.array([[low, low], [right, low], [right, bottom], [low, bottom]], np.float64)
    polygon = np.rint(16 * _moved(edge, image_H_view)).astype(np.int32)
    return np.asarray(cv2.fillConvexPoly(np.zeros(size, np.uint8), polygon, 1, shift=4))


def _keypoints(
    found: Float32[np.ndarray, "h w"], seen: Float32[np.ndarray, "h w"], config: PseudoLabelConfig
) -> Float32[np.ndarray, "h w"]:
    """The share of views that found each peak within a pixel, where it reaches `config.min_share`; the best of a cell."""
    views = np.maximum(seen, 1)
    share = np.minimum(cv2.boxFilter(found, -1, (3, 3), normalize=False) / views, 1)
    # The peak is sought in a smooth map, for the share is flat around a corner that every view finds at one pixel.
    smooth = cv2.GaussianBlur(found, (5, 5), 0.8) / views
    peak = (smooth == cv2.dilate(smooth, _square(config.radius))) & (share >= config.min_share)
    return best_of_each_cell(np.where(peak, share, np.float32(0)))


def best_of_each_cell(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """`values` with all but the largest of each 8x8 cell set to 0; of equal ones the first, by rows, stays."""
    height, width = values.shape
    padded = np.pad(values, ((0, -height % CELL), (0, -width % CELL)))
    rows, columns = padded.shape[0] // CELL, padded.shape[1] // CELL
    cells = padded.reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(rows, columns, CELL * CELL)
    best = cells.argmax(axis=2)[..., None]
    kept = np.zeros_like(cells)
    np.put_along_axis(kept, best, np.take_along_axis(cells, best, axis=2), axis=2)
    whole = kept.reshape(rows, columns, CELL, CELL).swapaxes(1, 2).reshape(padded.shape)
    return np.ascontiguousarray(whole[:height, :width])


def _moved(points: Float64[np.ndarray, "k 2"], b_H_a: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "k 2"]:
    lifted = points @ b_H_a[:, :2].T + b_H_a[:, 2]
    return lifted[:, :2] / lifted[:, 2:]


def _inside(points: Float64[np.ndarray, "k 2"], size: tuple[int, ...]) -> Float64[np.ndarray, "m 2"]:
    last = np.array([size[1], size[0]]) - 1 - MARGIN
    return points[((points >= MARGIN) & (points <= last)).all(axis=1)]


def _square(radius: int) -> UInt8[np.ndarray, "k k"]:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


# --- whole data sets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Some views of a canonical scene, in order: what one worker labels at a time."""

    folder: Path
    first: int
    last: int


def write_labels(
    dataset: str,
    source: DatasetConfig,
    config: PseudoLabelConfig,
    *,
    scenes: Path,
    out: Path,
    scratch: Path,
    teacher: Labeller | None = None,
    workers: int | None = None,
) -> dict[str, float]:
    """Write the labels of the data set's scenes in `config.splits` below `out`; the keypoints an image has, by scene.

    Corners are found by `workers` processes (default: one a core) and the labels do not depend on how many; `teacher`, where
    given, labels in this process instead. Finished scenes stay in a scratch folder named by a hash of all that decides them,
    so that a run that was cut short goes on where it stopped, and `out` appears whole. It also gets `about.json`.
    """
    opened = {name: scene for split in config.splits for name, scene in open_split(scenes, source, split).items()}
    label = teacher or partial(label_images, config=config)
    work = scratch / f"pseudo_labels-{dataset}-{_content_key(config, scenes, opened)}"
    work.mkdir(parents=True, exist_ok=True)
    with only_one(work.with_suffix(".lock"), f"{dataset} is being labelled"):
        _drop_others(work, opened)
        missing = {name: scene for name, scene in opened.items() if not _file(work, name).exists()}
        count = 1 if teacher else workers or os.cpu_count() or 1
        _write_scenes(dataset, missing, label, scenes=scenes, work=work, workers=count)
        found = {name: _keypoints_an_image(_file(work, name)) for name in opened}
        write_json(work / "about.json", _about(config, found))
        replace_folder(work, out)
    return found


def label_chunk(chunk: Chunk, label: Labeller) -> Float16[np.ndarray, "n h w"]:
    """The labels of a chunk; DataError for one that is no probability."""
    scene = read_scene(chunk.folder)
    views = range(chunk.first, chunk.last)
    names = [f"{scene.name}/{scene.view_names[i]}" for i in views]
    values = label(np.stack([np.asarray(scene.images[i]) for i in views]), names)
    bad = ~((values >= 0) & (values <= 1)).all(axis=(1, 2))
    if bad.any():
        worst = values[int(np.argmax(bad))]
        raise DataError(
            f"{scene.dataset}/{names[int(np.argmax(bad))]}: keypoint labels are between {worst.min()} and {worst.max()}; "
            "expected probabilities. Is the teacher's file (pseudo_labels.teacher) a SuperPoint network?"
        )
    return _rounded_down(values)


def _rounded_down(values: Float32[np.ndarray, "*n"]) -> Float16[np.ndarray, "*n"]:
    """As halves, never larger than `values`: a cell that summed to 1 must not sum to more."""
    half = values.astype(np.float16)
    return np.where(half > values, np.nextafter(half, np.float16(0)), half)


def _write_scenes(
    dataset: str, missing: Mapping[str, Scene], label: Labeller, *, scenes: Path, work: Path, workers: int
) -> None:
    chunks = {name: _chunks(scenes / name, len(scene.view_names)) for name, scene in missing.items()}
    everything = [chunk for part in chunks.values() for chunk in part]
    made = _labelled(everything, label, min(workers, len(everything)))
    total, done = sum(len(scene.view_names) for scene in missing.values()), 0
    with progress(f"pseudo_labels {dataset}", total=total) as show:
        for name, scene in missing.items():
            shape = (len(scene.view_names), *scene.images.shape[1:3])
            with atomic_path(_file(work, name)) as temporary:
                stack = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                for chunk in chunks[name]:
                    stack[chunk.first : chunk.last] = next(made)
                    done += chunk.last - chunk.first
                    show(done, {})
                stack.flush()


def _chunks(folder: Path, views: int) -> list[Chunk]:
    return [Chunk(folder, first, min(first + _CHUNK, views)) for first in range(0, views, _CHUNK)]


def _labelled(chunks: Sequence[Chunk], label: Labeller, workers: int) -> Iterator[np.ndarray]:
    """The labels of each chunk, in order."""
    work = partial(label_chunk, label=label)
    if workers <= 1:
        yield from map(work, chunks)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Not forked: OpenCV's own threads, once started, are missing in the copy, and it would wait for them.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    end_with_parent()
    cv2.setNumThreads(1)


def _content_key(config: PseudoLabelConfig, scenes: Path, opened: Mapping[str, Scene]) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {config.model_dump_json()}".encode())
    digest.update(Path(__file__).read_bytes())
    for name, scene in opened.items():
        files = sorted((scenes / name).glob("image*"))
        hashes = [sha256_file(file) for file in files]
        digest.update(json.dumps([name, scene.view_names, hashes]).encode())
    return digest.hexdigest()[:16]


def _drop_others(work: Path, wanted: Mapping[str, Scene]) -> None:
    """Remove what a killed run left half written."""
    kept = {_file(work, name) for name in wanted}
    for path in work.rglob("*.npy"):
        if path not in kept:
            path.unlink()


def _file(folder: Path, scene: str) -> Path:
    return folder / f"{scene}.npy"


def _keypoints_an_image(path: Path) -> float:
    """The expected number of keypoints in an image of the scene: the mean sum of a map."""
    stack = read_npy(path, memory_map=True)
    return round(float(stack.sum(dtype=np.float64)) / max(len(stack), 1), 2)


def _about(config: PseudoLabelConfig, found: Mapping[str, float]) -> dict[str, Any]:
    made_by = "homographic adaptation of corners" if config.teacher is None else f"teacher {config.teacher.sha256}"
    return {"format": FORMAT_VERSION, "made by": made_by, "splits": config.splits, "keypoints_per_image": dict(found)}
