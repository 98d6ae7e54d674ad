"""DeltaZ's losses: each a function of tensors that returns a scalar, the mean over samples.

Depths and Δz are in the sample's normalised unit (metres / scale), shapes "b p h w"; a sample in which the mask leaves
nothing counts as 0. With p refined views the mean over a sample is over all of its views' pixels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.geometry import backproject, compose, invert, sample, warp_grid

Maps = Float[Tensor, "b p h w"]
Mask = Bool[Tensor, "b p h w"]
Scalar = Float[Tensor, ""]

EDGE_SHARPNESS = 10.0
OCCLUSION_THRESHOLD = 0.05
CONFIDENCE_RATE = 0.05
ALL_FOUR_VALID = 0.999


def masked_mean(values: Float[Tensor, "b ..."], mask: Bool[Tensor, "b ..."]) -> Scalar:
    """Mean over samples of each sample's mean of `values` where `mask`; an empty sample counts as 0."""
    kept = torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)
    return (kept / mask.flatten(1).sum(1).clamp(min=1)).mean()


def depth_error(refined: Maps, truth: Maps, mask: Mask) -> Scalar:
    """Masked mean of |z0 + Δz - z*|."""
    return masked_mean((refined - truth).abs(), mask)


def relative_error(refined: Maps, truth: Maps, mask: Mask) -> Scalar:
    """Masked mean of |z0 + Δz - z*| / z*: what abs_rel measures, in which near and far errors weigh alike."""
    return masked_mean((refined - truth).abs() / torch.where(mask, truth, torch.ones_like(truth)), mask)


def improvement(refined: Maps, initial: Maps, truth: Maps, mask: Mask) -> Scalar:
    """Masked mean of |z0 + Δz - z*| - |z0 - z*|, the second term detached: negative when the refinement helps."""
    return masked_mean((refined - truth).abs() - (initial - truth).abs().detach(), mask)


def point_error(refined: Maps, truth: Maps, mask: Mask, K: Float[Tensor, "b p 3 3"]) -> Scalar:
    """Masked mean Euclidean distance between the points of refined and true depth, in the camera's frame."""
    difference = backproject(refined.flatten(0, 1), K.flatten(0, 1)) - backproject(
        torch.where(mask, truth, refined.detach()).flatten(0, 1), K.flatten(0, 1)
    )
    # A norm has no gradient at 0; the added square is 1e-6 of the unit.
    distance = (difference.square().sum(-1) + 1e-12).sqrt().reshape(refined.shape)
    return masked_mean(distance, mask)


def smoothness(delta: Maps, image: Float[Tensor, "b p 3 h w"]) -> Scalar:
    """Mean of |∂Δz| exp(-10 mean_c |∂I|) in x plus the same in y; 0 along a side of one pixel."""
    terms = [
        (delta.diff(dim=dim).abs() * torch.exp(-EDGE_SHARPNESS * image.diff(dim=dim).abs().mean(2))).mean()
        for dim in (-1, -2)
        if delta.shape[dim] > 1
    ]
    return torch.stack(terms).sum() if terms else delta.sum() * 0


def correction_magnitude(delta: Maps) -> Scalar:
    """Mean of |Δz|."""
    return delta.abs().mean()


def confidence_error(confidence: Maps, refined: Maps, truth: Maps, mask: Mask) -> Scalar:
    """Masked mean of |c - exp(-|z - z*| / (0.05 z*))|, the depth error detached."""
    target = torch.exp(-(refined - truth).abs() / (CONFIDENCE_RATE * truth.clamp(min=1e-6))).detach()
    return masked_mean((confidence - target).abs(), mask)


def direct_supervision(delta: Maps, initial: Maps, truth: Maps, mask: Mask) -> Scalar:
    """Masked mean of |Δz - (z* - z0)|, z0 detached."""
    return masked_mean((delta - (truth - initial.detach())).abs(), mask)


def surface_smoothness(refined: Maps) -> Scalar:
    """Mean absolute second difference of the refined depth in x plus the same in y; 0 along a side under 3 pixels."""
    terms = [refined.diff(n=2, dim=dim).abs().mean() for dim in (-1, -2) if refined.shape[dim] > 2]
    return torch.stack(terms).sum() if terms else refined.sum() * 0


def relative_magnitude(delta: Maps, initial: Maps) -> Scalar:
    """Mean of |Δz| / (z0 + 1e-3)."""
    return (delta.abs() / (initial.detach() + 1e-3)).mean()


def multiview_consistency(
    depths: Float[Tensor, "b v h w"],
    K: Float[Tensor, "b v 3 3"],
    cam0_T_cam: Float[Tensor, "b v 4 4"],
    scale: Float[Tensor, " b"],
    *,
    refined_views: int,
    occlusion_threshold: float = OCCLUSION_THRESHOLD,
) -> Scalar:
    """Mean disagreement of each refined view's depth with every other view's, in units of `scale`.

    `depths` (metres; 0 = none) holds the refined depth of the `refined_views` leading views and the initial depth of
    the others: never the truth. Pixels of view i are moved to view j; the moved point's z is compared with j's depth
    there, sampled bilinearly. A pixel counts when the point lies in front of j and inside its image, all four sampled
    depths are valid, and the two depths differ by less than `occlusion_threshold` of the moved z: a larger difference
    is taken for an occlusion. 0 (with a gradient of 0) when there is no second view.
    """
    pairs = [(i, j) for i in range(refined_views) for j in range(depths.shape[1]) if i != j]
    if not pairs:
        return (depths * 0).sum()
    results = [
        _disagreement(
            depths[:, i],
            depths[:, j],
            compose(K[:, i], K[:, j], invert(cam0_T_cam[:, j]) @ cam0_T_cam[:, i]),
            occlusion_threshold,
        )
        for i, j in pairs
    ]
    difference, counts = (torch.stack(part, dim=1) for part in zip(*results))
    return masked_mean(difference / scale[:, None, None, None], counts)


def _disagreement(
    depth_i: Float[Tensor, "b h w"], depth_j: Float[Tensor, "b h w"], P: Float[Tensor, "b 3 4"], threshold: float
) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """|z of i's point in j - j's depth there|, and where it counts; `P` takes i's pixels and depth to j's."""
    uv, z = warp_grid(depth_i, P)
    both = torch.stack([depth_j, (depth_j > 0).to(depth_j.dtype)], dim=1)
    sampled, share_valid = sample(both, uv).unbind(1)
    difference = (z - sampled).abs()
    seen = (z > 0) & (depth_i > 0) & (share_valid > ALL_FOUR_VALID)
    return difference, seen & (difference < threshold * z)
