"""Samples of canonical scenes as batches: what training and prediction read."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32

from plumbline.config import ByClip
from plumbline.data.samples import draw, gather, sample_scores
from plumbline.errors import DataError
from plumbline.records import EncodedImages, Sample, Scene
from plumbline.systems.records import Batch, to_batch

_PROBES = 256


@runtime_checkable
class Feed(Protocol):
    """Numbered samples that can be loaded by number."""

    @property
    def scenes_of(self) -> Sequence[str]:
        """The scene of each sample."""

    @property
    def parts_of(self) -> Sequence[str]:
        """The part of each sample: a batch can hold samples of one part alone, for sizes and views may differ."""

    def scores(self) -> Sequence[float]:
        """The pair score of each sample; DataError where there are none."""

    @property
    def identity(self) -> str:
        """A hash that changes with the samples and the data."""

    def load(self, indices: Sequence[int], *, step: int = 0) -> Batch:
        """These samples, as a training step sees them, on the CPU."""


@dataclass(frozen=True)
class SampleFeed:
    """Samples of memory-mapped scenes, with another method's depth where there is one.

    `initial_depth` (n, p, h, w), metres, and `initial_confidence` have one row for each sample, in the samples' order;
    they stay on disk, as the scenes do, until a batch needs them. Depth of unknown scale is multiplied by `initial_scale`
    (n,), see `true_scales`. `constant_depth` is the training split's median depth,
    `constant_pose` (4, 4) the mean pose of a source view over its pairs.
    `keypoint_probability` has a stack f16 (v, h, w) for each scene: a label, for training alone. With `clip` every training
    step draws its views anew, by that rule, from the scenes of the samples.
    """

    scenes: Mapping[str, Scene]
    samples: Sequence[Sample]
    initial_depth: np.ndarray | None = None
    initial_confidence: np.ndarray | None = None
    initial_scale: np.ndarray | None = None
    keypoint_probability: Mapping[str, np.ndarray] | None = None
    constant_depth: float | None = None
    constant_pose: np.ndarray | None = None
    clip: ByClip | None = None
    predict_views: int = 1

    def __post_init__(self) -> None:
        for name in ("initial_depth", "initial_confidence"):
            _check_rows(name, getattr(self, name), self)

    @cached_property
    def scenes_of(self) -> Sequence[str]:
        """The scene of each sample."""
        return [sample.scene for sample in self.samples]

    @property
    def parts_of(self) -> Sequence[str]:
        """All samples are of one part."""
        return [""] * len(self.samples)

    def scores(self) -> Sequence[float]:
        """The pair score of each sample (see `plumbline.data.samples.sample_scores`)."""
        return sample_scores(self.scenes, self.samples)

    def load(self, indices: Sequence[int], *, step: int = 0) -> Batch:
        """The samples `indices` on the CPU, images still 8-bit until the one conversion at the end."""
        samples = [self._sample(i, step) for i in indices]
        arrays = gather(self.scenes, samples)
        rows = np.asarray(indices, dtype=np.intp)
        arrays = replace(
            arrays,
            initial_depth=_scaled(_rows(self.initial_depth, rows), self.initial_scale, rows),
            initial_confidence=_rows(self.initial_confidence, rows),
            keypoint_probability=_views(self.keypoint_probability, samples),
        )
        constants = _constants(self.constant_depth, self.constant_pose, len(rows))
        return replace(to_batch(arrays, predict_views=self.predict_views), **constants)

    def _sample(self, index: int, step: int) -> Sample:
        sample = self.samples[index]
        if self.clip is None:
            return sample
        return draw(self.clip, sample.scene, self.scenes[sample.scene], step=step, number=index)

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the samples, the cameras and a fixed choice of pixels of every array (reading all would cost)."""
        digest = hashlib.sha256(json.dumps([(s.scene, s.given, s.targets) for s in self.samples]).encode())
        digest.update(repr((self.constant_depth, self.clip, self.predict_views)).encode())
        for name in sorted(set(self.scenes_of)):
            scene = self.scenes[name]
            digest.update(json.dumps([scene.name, scene.view_names, scene.depth_range]).encode())
            images = scene.images.data if isinstance(scene.images, EncodedImages) else scene.images
            labels = None if self.keypoint_probability is None else self.keypoint_probability[name]
            digest.update(_probe((scene.K, scene.world_T_cam, images, scene.depth, scene.mask, labels)))
        digest.update(_probe((self.initial_depth, self.initial_confidence, self.initial_scale, self.constant_pose)))
        return digest.hexdigest()


@dataclass(frozen=True)
class JoinedFeed:
    """Several feeds as one. A batch comes from one of them: sizes and views may differ."""

    parts: Sequence[Feed]

    @cached_property
    def scenes_of(self) -> Sequence[str]:
        """The scene of each sample, with its part's number: two data sets may have a scene of one name."""
        return [f"{number}:{scene}" for number, part in enumerate(self.parts) for scene in part.scenes_of]

    @property
    def parts_of(self) -> Sequence[str]:
        """The number of each sample's part."""
        return [str(number) for number, part in enumerate(self.parts) for _ in part.scenes_of]

    def scores(self) -> Sequence[float]:
        """The pair score of each sample; DataError where a part has none."""
        return [score for part in self.parts for score in part.scores()]

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the parts' identities, in order."""
        return hashlib.sha256(" ".join(part.identity for part in self.parts).encode()).hexdigest()

    def load(self, indices: Sequence[int], *, step: int = 0) -> Batch:
        """These samples; ValueError when they are of several parts."""
        starts = np.cumsum([0, *(len(part.scenes_of) for part in self.parts)])
        owners = np.searchsorted(starts, np.asarray(indices), side="right") - 1
        if len(set(owners.tolist())) != 1:
            raise ValueError(f"samples {list(indices)} are of several feeds; a batch comes from one")
        owner = int(owners[0])
        return self.parts[owner].load([int(index - starts[owner]) for index in indices], step=step)


def _rows(array: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if array is None else np.ascontiguousarray(array[rows])


def _scaled(depth: np.ndarray | None, scale: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return depth if depth is None or scale is None else depth * scale[rows, None, None, None]


def true_scales(
    scenes: Mapping[str, Scene], samples: Sequence[Sample], depth: Float32[np.ndarray, "n p h w"]
) -> Float32[np.ndarray, " n"]:
    """What brings each sample's `depth`, of unknown scale, to the true median of its reference view; 1 without truth there.

    It is for learning alone: what refines such depth learns its shape, and at a test its answers have no scale either.
    """
    scales = np.ones(len(samples), np.float32)
    for row, sample in enumerate(samples):
        scene, reference = scenes[sample.scene], sample.given[0]
        if scene.depth is None:
            continue
        known = (scene.depth[reference] > 0) & (depth[row, 0] > 0)
        if scene.mask is not None:
            known &= scene.mask[reference]
        if known.any():
            scales[row] = np.median(scene.depth[reference][known]) / np.median(depth[row, 0][known])
    return scales


def _constants(depth: float | None, pose: np.ndarray | None, count: int) -> dict[str, Any]:
    """The constants that there are, repeated for each of `count` samples, by their names in a Batch."""
    values = {"constant_depth": depth, "constant_pose": pose}
    made = {name: torch.tensor(x, dtype=torch.float32) for name, x in values.items() if x is not None}
    return {name: x.repeat(count, *[1] * x.ndim) for name, x in made.items()}


def _views(stacks: Mapping[str, np.ndarray] | None, samples: Sequence[Sample]) -> np.ndarray | None:
    """Each sample's views of its scene's stack, f32 (b, v, h, w)."""
    if stacks is None:
        return None
    return np.stack([stacks[sample.scene][list(sample.given)] for sample in samples]).astype(np.float32)


def _probe(arrays: Iterable[np.ndarray | None]) -> bytes:
    """Shapes and about `_PROBES` values of each array, small arrays (cameras) whole."""
    parts: list[bytes] = []
    for array in arrays:
        if array is None:
            parts.append(b"none")
            continue
        step = max(1, array.size // _PROBES) if array.size > 100 * _PROBES else 1
        parts += [
            repr((array.shape, array.dtype.str)).encode(),
            np.ascontiguousarray(array.reshape(-1)[::step]).tobytes(),
        ]
    return b"".join(parts)


def _check_rows(name: str, array: np.ndarray | None, feed: SampleFeed) -> None:
    if array is None or not feed.samples:
        return
    size = feed.scenes[feed.samples[0].scene].images.shape[1:3]
    expected = (len(feed.samples), *size)
    if array.ndim != 4 or (array.shape[0], *array.shape[2:]) != expected:
        raise DataError(
            f"{name} has shape {array.shape}; expected ({expected[0]}, p, {size[0]}, {size[1]}), a row for each sample. "
            "It was predicted for other samples or another size: predict it again."
        )
