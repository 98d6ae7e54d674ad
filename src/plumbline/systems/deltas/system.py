"""DELTAS as a system: keypoints of the anchor, matched in the other views, triangulated and made dense."""

import logging
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plumbline.errors import DataError
from plumbline.geometry import invert
from plumbline.systems.augment import augment
from plumbline.systems.blocks import pad_to_multiple
from plumbline.systems.deltas import losses, pretrained
from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.dense import DenseDepth, SparseToDense, sparse_depth_image, spread_depth
from plumbline.systems.deltas.diagnostics import diagnostics
from plumbline.systems.deltas.front import CELL, Front, FrontFeatures
from plumbline.systems.deltas.keypoints import select_keypoints
from plumbline.systems.deltas.triangulation import Triangulated, Triangulation
from plumbline.systems.records import LABELS, Batch, Prediction

_log = logging.getLogger("plumbline")


# The variance of a match along its segment, in squares of its length, that halves what the match counts for as a deviation;
# chosen on the generated validation room.
SURE = 0.003


class System(nn.Module):
    """Depth of each leading view, the anchor, from its keypoints' positions in all other views.

    Images of any size are filled up to a multiple of 8 pixels by repeating the last row and column; keypoints and search
    segments stay within the image itself, and answers are cropped to it. In training the first view alone is an anchor,
    since the loss looks at no other, and random keypoints differ from call to call; otherwise they are the same ones
    for every image.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "K", "cam0_T_cam", "depth_range"})
    labels: ClassVar[frozenset[str]] = LABELS

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.front = Front(config)
        self.tri = Triangulation(config)
        self.dense = SparseToDense(config)
        self.dense.start_at(config.first_depth if config.unit == "metre" and not config.spread else 1.0)
        self._said_no_labels = False
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, batch: Batch) -> Prediction:
        """Depth (metres, 0 where the network answers a negative one) of the leading views, "b p h w".

        Internals are of the first view: `keypoints` (x, y) "b n 2" with `scores` "b n" (0: random) and `detector_logits`
        "b 65 h8 w8"; in the s other views `matches` "b s n 2", `usable` "b s n" and the segments searched, `segment_centre` and
        `segment_along` (end to end) "b s n 2", with the scores of the candidates of those that are usable, `search_scores`
        "m l k" of the rows `search_rows` "m" of "b s n"; `match_confidence` "b n v", the
        anchor's first; `points` "b n 3" (its frame, metres) with `defined` "b n"; `sparse_depth` "b h w"; and, as the
        network answers them, `depth_full`, `depth_half`, `depth_quarter`, `depth_eighth` "b 1 h' w'" in metres, sizes
        rounded up; `search_range` "b 2" and `unit` "b", metres. DataError when the batch lacks poses, a depth range or a
        second view.
        """
        _check(batch)
        self.search_range(batch)
        maps = self.front(pad_to_multiple(batch.image.flatten(0, 1), CELL))
        anchors = 1 if self.training else batch.predict_views
        answers = [self._anchor(batch, maps, index) for index in range(anchors)]
        depth = torch.cat([answer["depth_full"] for answer in answers], dim=1)
        return Prediction(depth=depth.clamp(min=0), internals=answers[0])

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Every component by name, and "total", their weighted sum. DataError when the batch has no truth.

        A batch without keypoint labels does not train the detector: `keypoint` is then 0, and one line in the log says so.
        (Training asks for the labels that `labels` names and does not start without them.)
        """
        if batch.depth is None or batch.mask is None:
            raise DataError("deltas: the loss needs true depth; this batch has none. Train on scenes with depth.")
        if batch.keypoint_probability is None and self.config.weights.keypoint > 0:
            self._say_no_labels()
        config = self.config
        scale = losses.Scale(self.search_range(batch), self.unit(batch), beta=config.smooth_l1_beta)
        components = losses.components(
            prediction.internals,
            batch,
            scale,
            depth_resize=config.depth_resize,
            relative=config.relative_depth_loss,
        )
        weights = self.config.weights.model_dump()
        return {**components, "total": torch.stack([weights[name] * value for name, value in components.items()]).sum()}

    def diagnostics(self, prediction: Prediction, batch: Batch) -> dict[str, Float[Tensor, " b"]]:
        """Measures of the sparse stage, a value a sample; NaN where nothing can be measured. See diagnostics.py."""
        return diagnostics(prediction.internals, batch, self.search_range(batch))

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A geometry-true variation of a training batch."""
        return augment(batch, self.config.augment, generator)

    def load_pretrained(self, path: Path) -> None:
        """Load the published checkpoint (three state dicts) or this project's, strictly; DataError names what differs."""
        pretrained.load(self, path)

    def search_range(self, batch: Batch) -> Float[Tensor, "b 2"]:
        """The nearest and farthest depth, metres, that is searched and let into the sparse depth image."""
        fixed = self.config.fixed_search_range
        if fixed is None:
            return _present(batch.depth_range, "a depth range")
        return batch.K.new_tensor(fixed).expand(len(batch.K), 2)

    def unit(self, batch: Batch) -> Float[Tensor, " b"]:
        """Metres in the densifying network's unit of depth: 1, or the geometric middle of the search range."""
        search_range = self.search_range(batch)
        return search_range.prod(dim=1).sqrt() if self.config.unit == "range" else torch.ones_like(search_range[:, 0])

    def _say_no_labels(self) -> None:
        if not self._said_no_labels:
            _log.warning("deltas: no keypoint labels in the batch: the detector stays as it is, its loss counts as 0")
        self._said_no_labels = True

    def _anchor(self, batch: Batch, maps: FrontFeatures, index: int) -> dict[str, Tensor]:
        """All that is known of the view `index`, by the names of `forward`."""
        views = batch.image.shape[1]
        # Images lie sample by sample, so that one view of all samples is a stride of the number of views.
        anchor = maps.rows(slice(index, None, views))
        logits = self.front.detect(anchor)
        keypoints, scores = self._keypoints(logits, batch)
        descriptors = maps.descriptors.reshape(-1, views, *maps.descriptors.shape[1:])
        found = self._triangulate(batch, descriptors, keypoints, index)
        sparse = self._sparse_depth(batch, keypoints, found)
        return {
            "keypoints": keypoints,
            "scores": scores,
            "detector_logits": logits,
            "matches": found.matches,
            "usable": found.usable,
            "match_confidence": found.confidence,
            "segment_centre": found.segments.centre,
            "segment_along": found.segments.along,
            "search_rows": found.search.rows,
            "search_scores": found.search.scores,
            "points": found.points,
            "defined": found.defined,
            "sparse_depth": sparse,
            "search_range": self.search_range(batch),
            "unit": self.unit(batch),
            **self._densify(batch, sparse, self._spread(batch, sparse, keypoints, found), anchor),
        }

    def _keypoints(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        config = self.config
        return select_keypoints(
            logits,
            size=_size(batch),
            count=config.keypoints,
            detected=config.detected,
            threshold=config.detection_threshold,
            radius=config.nms_radius,
            border=config.border,
            training=self.training,
        )

    def _triangulate(self, batch: Batch, descriptors: Tensor, keypoints: Tensor, index: int) -> Triangulated:
        """Always in float32: bfloat16 holds no pixel of a wide image."""
        order = [index, *(view for view in range(batch.image.shape[1]) if view != index)]
        cam0_T_cam = _present(batch.cam0_T_cam, "poses")[:, order]
        with torch.autocast(descriptors.device.type, enabled=False):
            return self.tri(
                descriptors[:, order].float(),
                keypoints,
                batch.K[:, order],
                invert(cam0_T_cam[:, 1:]) @ cam0_T_cam[:, :1],
                self.search_range(batch),
                _size(batch),
            )

    def _sparse_depth(self, batch: Batch, keypoints: Tensor, found: Triangulated) -> Float[Tensor, "b h w"]:
        z, (near, far) = found.points[..., 2], self.search_range(batch).T[..., None]
        known = found.usable.any(dim=1) & (z > near) & (z < far)
        if not self.config.sparse_depth:
            known = torch.zeros_like(known)
        return sparse_depth_image(keypoints, z, known, _size(batch))

    def _spread(
        self, batch: Batch, sparse: Tensor, keypoints: Tensor, found: Triangulated
    ) -> Float[Tensor, "b h w"] | None:
        """The sparse depth over the whole image, surer matches first; None where the network gets it sparse."""
        if not self.config.spread:
            return None
        weight = sparse.new_ones(keypoints.shape[:2])
        if self.config.matching_confidence:
            certain = (SURE / (found.search.variance + SURE)).square()
            shape = found.usable.shape
            weight = certain.new_zeros(shape.numel()).index_copy(0, found.search.rows, certain).view(shape).sum(1)
        known = torch.ones_like(weight, dtype=torch.bool)
        return spread_depth(sparse, sparse_depth_image(keypoints, weight, known, _size(batch)))

    def _densify(self, batch: Batch, sparse: Tensor, spread: Tensor | None, anchor: FrontFeatures) -> dict[str, Tensor]:
        height, width = _size(batch)
        unit = self.unit(batch)[:, None, None, None]
        given = sparse[:, None] if spread is None else spread[:, None]
        filling = (0, -width % CELL, 0, -height % CELL)
        # What is filled up holds no measurement.
        dense: DenseDepth = self.dense(nn.functional.pad(given / unit, filling), anchor)
        times = unit.expand_as(given) if spread is None else torch.where(given > 0, given, unit)
        times = nn.functional.pad(times, filling, mode="replicate")
        return {
            name: (nn.functional.avg_pool2d(times, factor) * depth)[..., : -(-height // factor), : -(-width // factor)]
            for (name, factor), depth in zip(losses.SCALES.items(), dense, strict=True)
        }


def _size(batch: Batch) -> tuple[int, int]:
    return batch.image.shape[-2], batch.image.shape[-1]


def _check(batch: Batch) -> None:
    """DataError when `batch` lacks what DELTAS needs."""
    _present(batch.cam0_T_cam, "poses")
    views = batch.image.shape[1]
    if views < 2:
        raise DataError("deltas: needs at least two views a sample, got 1. Give the suite one or more sources.")
    if batch.predict_views > views:
        raise DataError(f"deltas: predict_views is {batch.predict_views}, but samples have {views} views.")


def _present(tensor: Tensor | None, what: str) -> Tensor:
    if tensor is None:
        raise DataError(
            f"deltas: needs {what} for every sample; this batch has none. Use scenes with poses and a depth range."
        )
    return tensor
