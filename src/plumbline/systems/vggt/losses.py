"""VGGT's training losses, as released: cameras after every iteration, and maps weighed by their own confidence.

All lengths are in the scene's own unit (see encoding.py). arXiv 2503.11651, section 3.4; where the released code differs
from the paper, the code is followed: absolute camera errors, and a plain regression term beside the weighted one.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from plumbline.systems.vggt.encoding import FOV, QUATERNION, TRANSLATION

LARGEST = 100.0
# Fewer measured pixels than this give no depth loss; a camera needs more of them in its first frame.
FEWEST_PIXELS = 100
_FEWEST_KEPT = 1000
_STRIDES = (1, 2, 4, 8)
_NORMAL_STRIDES = (1, 2, 4)

Norm = Literal["l1", "l2"]
Gradient = Literal["none", "plain", "confident", "normal"]


class CameraTerms(NamedTuple):
    """The three parts of the camera loss."""

    translation: Float[Tensor, ""]
    rotation: Float[Tensor, ""]
    focal: Float[Tensor, ""]


class MapTerms(NamedTuple):
    """The three parts of the loss of a dense head."""

    confidence: Float[Tensor, ""]
    regression: Float[Tensor, ""]
    gradient: Float[Tensor, ""]


class Maps(NamedTuple):
    """A predicted map of k channels with its confidence (>= 1), the true one and where that is measured."""

    predicted: Float[Tensor, "n h w k"]
    confidence: Float[Tensor, "n h w"]
    truth: Float[Tensor, "n h w k"]
    mask: Bool[Tensor, "n h w"]

    def every(self, stride: int) -> "Maps":
        """Every `stride`-th row and column."""
        return Maps(*(x[:, ::stride, ::stride] for x in self))


def camera_terms(
    stages: Sequence[Float[Tensor, "b s 9"]],
    truth: Float[Tensor, "b s 9"],
    measured: Bool[Tensor, "b s h w"],
    *,
    norm: Norm = "l1",
    decay: float = 0.6,
) -> CameraTerms:
    """Errors of encoded cameras, an iteration weighing `decay` times the next, divided by the number of iterations.

    A sample counts, with all its frames, when its first frame has more than 100 measured pixels; without any the terms
    are 0, still in the graph.
    """
    counted = measured[:, 0].flatten(1).sum(1) > FEWEST_PIXELS
    totals = [truth.new_zeros(())] * 3
    for index, stage in enumerate(stages):
        weight = decay ** (len(stages) - 1 - index) / len(stages)
        errors = _camera_errors(stage, truth, counted, norm)
        totals = [total + weight * error for total, error in zip(totals, errors, strict=True)]
    return CameraTerms(*totals)


def map_terms(maps: Maps, *, gradient: Gradient = "plain", quantile: float = 0.98, certainty: float = 0.2) -> MapTerms:
    """Error e weighed by the confidence c, e c - certainty ln c; e alone; and errors of differences between neighbours.

    The first two leave out the largest values (see `kept`). All are 0 when less than 100 pixels are measured. The first is
    negative once e < certainty and c fits it.
    """
    maps = maps._replace(truth=bounded(maps.truth))
    if int(maps.mask.sum()) < FEWEST_PIXELS:
        nothing = 0 * torch.nan_to_num(maps.predicted).sum() + 0 * torch.nan_to_num(maps.confidence).sum()
        return MapTerms(nothing, nothing, nothing)
    error = bounded(_length(maps.predicted[maps.mask] - maps.truth[maps.mask]))
    confidence = maps.confidence[maps.mask]
    weighed = bounded(error * confidence - certainty * confidence.log())
    return MapTerms(
        kept(weighed, quantile).mean(), kept(error, quantile).mean(), gradient_term(maps, gradient, certainty=certainty)
    )


def gradient_term(maps: Maps, kind: Gradient, *, certainty: float = 0.2) -> Float[Tensor, ""]:
    """The mean over strides of `gradient_at` or, for kind "normal", of `normal_at`; 0 for "none"."""
    if kind == "none":
        return maps.predicted.new_zeros(())
    if kind == "normal":
        return torch.stack([normal_at(maps.every(stride)) for stride in _NORMAL_STRIDES]).mean()
    strides = [gradient_at(maps.every(k), confident=kind == "confident", certainty=certainty) for k in _STRIDES]
    return torch.stack(strides).mean()


def gradient_at(maps: Maps, *, confident: bool, certainty: float = 0.2) -> Float[Tensor, ""]:
    """How much the error changes from a pixel to the next, right and down: the sum over the number of measured pixels.

    With `confident` each change is weighed by the confidence of the right or lower pixel, measured or not.
    """
    mask = maps.mask[..., None]
    # Not a product with the mask: what is predicted where nothing is measured may be infinite.
    difference = torch.where(mask, maps.predicted - maps.truth, 0.0)
    total = difference.new_zeros(())
    for axis in (1, 2):
        count = difference.shape[axis]
        (before, after), (mask_before, mask_after) = (
            (x.narrow(axis, 0, count - 1), x.narrow(axis, 1, count - 1)) for x in (difference, mask)
        )
        change = ((after - before).abs() * (mask_before & mask_after)).clamp(max=LARGEST)
        if confident:
            confidence = maps.confidence.narrow(axis, 1, count - 1)[..., None]
            change = change * confidence - certainty * confidence.log()
        total = total + change.sum()
    return total / mask.sum().clamp(min=1) * mask.any()


def normal_at(maps: Maps) -> Float[Tensor, ""]:
    """1 - cosine between predicted and true normals, the mean over all corners (see `corner_normals`) that are known."""
    known = corners_known(maps.mask)
    predicted = torch.where(maps.mask[..., None], maps.predicted, 0.0)
    cosine = (corner_normals(predicted) * corner_normals(maps.truth)).sum(dim=-1)
    return torch.where(known, 1 - cosine, 0.0).sum() / known.sum().clamp(min=1)


def corner_normals(points: Float[Tensor, "n h w 3"]) -> Float[Tensor, "four n h w 3"]:
    """Normals of the four triangles of a pixel's point with two neighbours each: above and left, left and below, ..."""
    edges = [neighbour - points for neighbour in _neighbours(points)]
    normals = [
        torch.linalg.cross(edge, after, dim=-1) for edge, after in zip(edges, edges[1:] + edges[:1], strict=True)
    ]
    return nn.functional.normalize(torch.stack(normals), dim=-1, eps=1e-8)


def corners_known(mask: Bool[Tensor, "n h w"]) -> Bool[Tensor, "four n h w"]:
    """Where all three points of a corner are measured and in the image, in the order of `corner_normals`."""
    around = [neighbour[..., 0] for neighbour in _neighbours(mask[..., None])]
    return torch.stack([mask & one & other for one, other in zip(around, around[1:] + around[:1], strict=True)])


def bounded(x: Tensor, largest: float = LARGEST) -> Tensor:
    """`x` within +-`largest`; what is not finite becomes 0."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).clamp(-largest, largest)


def kept(x: Float[Tensor, " n"], quantile: float) -> Float[Tensor, " m"]:
    """The values of `x` below its `quantile`, if more than 1000 remain; else, or for quantile 0, all of them."""
    if quantile <= 0 or len(x) <= _FEWEST_KEPT:
        return x
    x = x.clamp(max=LARGEST)
    threshold = x.detach().kthvalue(1 + round(quantile * (len(x) - 1))).values
    below = x[x < threshold]
    return below if len(below) > _FEWEST_KEPT else x


def _camera_errors(
    stage: Float[Tensor, "b s 9"], truth: Float[Tensor, "b s 9"], counted: Bool[Tensor, " b"], norm: Norm
) -> list[Float[Tensor, ""]]:
    difference = torch.where(counted[:, None, None], stage - truth, 0.0)
    frames = counted.sum().clamp(min=1) * stage.shape[1]
    errors = []
    for part in (TRANSLATION, QUATERNION, FOV):
        values = difference[..., part]
        each = values.abs() if norm == "l1" else _length(values)[..., None]
        errors.append(bounded(each).mean(dim=-1).sum() / frames)
    return errors


def _length(x: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """Norms whose gradient is 0, not NaN, at 0."""
    return torch.linalg.vector_norm(x, dim=-1)


def _neighbours(x: Shaped[Tensor, "n h w k"]) -> list[Shaped[Tensor, "n h w k"]]:
    """What lies above, left, below and right of each pixel; 0 or False beyond the image."""
    padded = nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    return [padded[:, :-2, 1:-1], padded[:, 1:-1, :-2], padded[:, 2:, 1:-1], padded[:, 1:-1, 2:]]
