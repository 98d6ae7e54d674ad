"""How well DELTAS' sparse stage does on each sample: what to look at before blaming, or praising, the densifying network."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.systems.deltas.targets import KeypointTruth, keypoint_truth
from plumbline.systems.records import Batch


@torch.no_grad()
def diagnostics(
    internals: Mapping[str, Tensor], batch: Batch, depth_range: Float[Tensor, "b 2"]
) -> dict[str, Float[Tensor, " b"]]:
    """One value a sample: `usable_share`, `match_error_px` and `triangulation_error_m`.

    * `usable_share`: part of the keypoints with a search segment inside at least one other view. Near 0, poses or intrinsics
      are wrong, or the views hardly overlap: the depth is then a guess from one image.
    * `match_error_px`: median distance from match to true reprojection, over all visible matches with a usable segment.
    * `triangulation_error_m`: median distance from triangulated to true point, before densification, over all defined ones.

    The latter two are NaN for a sample in which nothing can be measured (no truth, no usable keypoint with truth), and for no
    other reason; a median is the lower of two middle values.
    """
    usable = internals["usable"]
    share = usable.any(1).float().mean(1)
    if batch.depth is None or batch.mask is None or batch.cam0_T_cam is None:
        nothing = torch.full_like(share, torch.nan)
        return {"usable_share": share, "match_error_px": nothing, "triangulation_error_m": nothing}
    truth = keypoint_truth(internals["keypoints"], batch.depth, batch.mask, batch.K, batch.cam0_T_cam, depth_range)
    return {
        "usable_share": share,
        "match_error_px": _median_distance(internals["matches"], truth.matches, usable & truth.seen),
        "triangulation_error_m": _median_distance(internals["points"], truth.points, _triangulated(internals, truth)),
    }


def _triangulated(internals: Mapping[str, Tensor], truth: KeypointTruth) -> Bool[Tensor, "b n"]:
    return truth.known & internals["defined"] & internals["usable"].any(1)


def _median_distance(
    value: Float[Tensor, "b ... d"], truth: Float[Tensor, "b ... d"], counts: Bool[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    """The median length of `value - truth` where it counts; NaN for a sample in which nothing does."""
    distance = (value - truth).norm(dim=-1).masked_fill(~counts, torch.nan)
    return distance.flatten(1).nanmedian(dim=1).values
