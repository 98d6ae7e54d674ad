"""DELTAS's losses: each a function of tensors that returns a scalar, the mean over samples of each sample's own mean.

Matches are in pixels, depths and points in the sample's `unit` (1: metres). A sample in which nothing is valid counts as
0, with a gradient of 0. Kinds and weights: Sinha et al., DELTAS, ECCV 2020. Where the paper leaves a choice open (mean over
coordinates, which keypoints count), the function says what was chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.systems.deltas.targets import (
    DepthResize,
    KeypointTruth,
    coarser_depth,
    detector_target,
    keypoint_truth,
)
from plumbline.systems.records import Batch

Scalar = Float[Tensor, ""]

SCALES = {"depth_full": 1, "depth_half": 2, "depth_quarter": 4, "depth_eighth": 8}


@dataclass(frozen=True)
class Scale:
    """What distances are measured by: the searched `depth_range` (metres), each sample's `unit` (metres), and `beta`.

    `beta` is the error, in units, below which smooth L1 is quadratic.
    """

    depth_range: Float[Tensor, "b 2"]
    unit: Float[Tensor, " b"]
    beta: float = 1.0


def components(
    internals: Mapping[str, Tensor],
    batch: Batch,
    scale: Scale,
    *,
    depth_resize: DepthResize = "valid_mean",
    relative: bool = False,
) -> dict[str, Scalar]:
    """Every loss component by name, unweighted, from what the network kept (`Prediction.internals`) and a batch with truth.

    Without `batch.keypoint_probability`, `keypoint` is 0 with a gradient of 0, so that all processes of a training see the
    same parameters used. ValueError when truth or poses are missing.
    """
    if batch.depth is None or batch.mask is None or batch.cam0_T_cam is None:
        raise ValueError("components: depth, mask and cam0_T_cam are needed; check for them where the batch comes in")
    truth = keypoint_truth(
        internals["keypoints"], batch.depth, batch.mask, batch.K, batch.cam0_T_cam, scale.depth_range
    )
    logits, probability = internals["detector_logits"], batch.keypoint_probability
    unit, counts = scale.unit[:, None, None], counted_points(internals, truth, scale.depth_range)
    maps = {name: internals[name][:, 0] / unit for name in SCALES}
    depth = depth_errors(
        maps, batch.depth[:, 0] / unit, batch.mask[:, 0], beta=scale.beta, resize=depth_resize, relative=relative
    )
    return {
        "keypoint": logits.sum() * 0 if probability is None else keypoint_error(logits, probability[:, 0]),
        "match_2d": match_error(internals["matches"], truth.matches, internals["usable"] & truth.seen),
        "match_likelihood": match_likelihood(internals, truth),
        "point_3d": point_error(internals["points"] / unit, truth.points / unit, counts, beta=scale.beta),
        **depth,
        "smoothness": smoothness(maps["depth_full"], batch.image[:, 0]),
    }


def masked_mean(values: Float[Tensor, "b ..."], mask: Bool[Tensor, "b ..."]) -> Scalar:
    """Mean over samples of each sample's mean of `values` where `mask`; an empty sample counts as 0."""
    kept = torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)
    return (kept / mask.flatten(1).sum(1).clamp(min=1)).mean()


def keypoint_error(logits: Float[Tensor, "b 65 hc wc"], probability: Float[Tensor, "b h w"]) -> Scalar:
    """Mean over cells of the 65-way cross entropy between the detector's logits and a soft target.

    `probability` is each pixel's of being a keypoint. The lowest value is the target's own entropy, not 0.
    """
    target = detector_target(probability)
    _check_size("detector_logits", logits, target)
    return -(target * F.log_softmax(logits, dim=1)).sum(1).flatten(1).mean(1).mean()


def match_error(
    matches: Float[Tensor, "b s n 2"], truth: Float[Tensor, "b s n 2"], counts: Bool[Tensor, "b s n"]
) -> Scalar:
    """Mean of |u - u*| in pixels over x, y and the matches that count."""
    difference = _difference(matches, truth, counts[..., None])
    return masked_mean(difference.abs().mean(-1), counts)


def match_likelihood(internals: Mapping[str, Tensor], truth: KeypointTruth) -> Scalar:
    """Mean over the matches that count of -log of the probability of the true match's place along its segment.

    The probability is the softmax over all candidates, summed over the lines; between two candidates its logarithm is
    linear. What is hidden, or nearest or farthest depth exceed, does not count. Not of the paper: an expected place can be
    right by chance, between two wrong ones, and tells a descriptor little.
    """
    scores, rows = internals["search_scores"], internals["search_rows"]
    chances = scores.flatten(1).log_softmax(1).view_as(scores).logsumexp(1)
    along = internals["segment_along"].detach().reshape(-1, 2)[rows]
    offset = truth.matches.reshape(-1, 2)[rows] - internals["segment_centre"].reshape(-1, 2)[rows]
    last = chances.shape[1] - 1
    place = ((offset * along).sum(1) / along.square().sum(1) + 0.5) * last
    counts = truth.seen.reshape(-1)[rows] & (place >= 0) & (place <= last)
    place = place.where(counts, 0.0)
    before = place.floor().clamp(max=last - 1).long()
    ends = chances.gather(1, torch.stack([before, before + 1], dim=1))
    chance = torch.lerp(ends[:, 0], ends[:, 1], place - before)
    shape = truth.seen.shape
    found = chances.new_zeros(shape.numel()).index_copy(0, rows, -chance).view(shape)
    return masked_mean(found, counts.new_zeros(shape.numel()).index_copy(0, rows, counts).view(shape))


def point_error(
    points: Float[Tensor, "b n 3"], truth: Float[Tensor, "b n 3"], counts: Bool[Tensor, "b n"], *, beta: float = 1.0
) -> Scalar:
    """Mean smooth L1 (quadratic below `beta`) over x, y, z and the points that count."""
    difference = _difference(points, truth, counts[..., None])
    return masked_mean(_smooth_l1(difference, beta).mean(-1), counts)


def counted_points(
    internals: Mapping[str, Tensor], truth: KeypointTruth, depth_range: Float[Tensor, "b 2"]
) -> Bool[Tensor, "b n"]:
    """The points that `point_error` counts: those with truth that the densifying network gets to see.

    That is with a usable segment in at least one view, defined, and at a depth within the range: a point far outside
    comes from nearly parallel rays, and its gradient, which grows with the square of depth, would drown all others.
    Its matches are corrected by `match_error`.
    """
    z = internals["points"][..., 2]
    in_range = (z > depth_range[:, :1]) & (z < depth_range[:, 1:])
    return truth.known & internals["defined"] & internals["usable"].any(1) & in_range


def smoothness(depth: Float[Tensor, "b h w"], image: Float[Tensor, "b 3 h w"]) -> Scalar:
    """Mean of |∂D| exp(-|∂I|) in x plus the same in y, |∂I| the mean over channels in [0, 1]; 0 along a side of one pixel."""
    terms = [
        (depth.diff(dim=dim).abs() * torch.exp(-image.diff(dim=dim).abs().mean(1))).mean()
        for dim in (-1, -2)
        if depth.shape[dim] > 1
    ]
    return torch.stack(terms).sum() if terms else depth.sum() * 0


def depth_errors(
    maps: Mapping[str, Float[Tensor, "b _ _"]],
    truth: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b h w"],
    *,
    beta: float = 1.0,
    resize: DepthResize = "valid_mean",
    relative: bool = False,
) -> dict[str, Scalar]:
    """`depth_error` of the maps at 1, 1/2, 1/4 and 1/8 of the size (the names in SCALES), `relative` to the true depth or not.

    The maps are the network's own: a depth clamped at 0 for the public would not learn from being negative.
    """
    results = {}
    for name, factor in SCALES.items():
        coarse, known = coarser_depth(truth, mask, factor, method=resize)
        _check_size(name, maps[name], coarse)
        by = torch.where(known, coarse, torch.ones_like(coarse)) if relative else torch.ones_like(coarse)
        results[name] = depth_error(maps[name] / by, coarse / by, known, beta=beta)
    return results


def depth_error(
    depth: Float[Tensor, "b h w"], truth: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], *, beta: float = 1.0
) -> Scalar:
    """Masked mean of the smooth L1 (quadratic below `beta`) between depths."""
    return masked_mean(_smooth_l1(_difference(depth, truth, mask), beta), mask)


def _difference(value: Tensor, truth: Tensor, counts: Bool[Tensor, "..."]) -> Tensor:
    """`value - truth` where it counts, 0 elsewhere; what does not count may be infinite without harm to gradients."""
    return torch.where(counts, value - truth, torch.zeros_like(value))


def _smooth_l1(difference: Tensor, beta: float) -> Tensor:
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)


def _check_size(name: str, predicted: Tensor, truth: Tensor) -> None:
    """Broadcasting would hide that a prediction and its truth are of other sizes."""
    if predicted.shape != truth.shape:
        raise ValueError(f"{name} has shape {tuple(predicted.shape)}; expected {tuple(truth.shape)}, as its truth has")
