"""What DELTAS is trained towards: coarser depth maps, the truth about keypoints, and the detector's cells.

Truth has holes (mask False): no function here lets a hole's 0 into a depth.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.geometry import MIN_Z, invert, invert_intrinsics, project, transform

DepthResize = Literal["valid_mean", "bilinear"]

CELL = 8
# A point this much farther than what a view measured at its pixel is taken for hidden, relative to its depth there.
OCCLUSION_TOLERANCE = 0.05


@dataclass(frozen=True)
class KeypointTruth:
    """The truth about the anchor's n keypoints in s other views.

    `points` are in the anchor's frame, metres (0 where not `known`): known means that depth was measured at the keypoint
    and lies in the search range. `matches` are their pixels in the other views; `seen` says where a match counts.
    """

    points: Float[Tensor, "b n 3"]
    known: Bool[Tensor, "b n"]
    matches: Float[Tensor, "b s n 2"]
    seen: Bool[Tensor, "b s n"]


def coarser_depth(
    depth: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], factor: int, *, method: DepthResize = "valid_mean"
) -> tuple[Float[Tensor, "b hc wc"], Bool[Tensor, "b hc wc"]]:
    """Depth and mask at 1/`factor` of the size, rounded up: pixel (i, j) stands for a block of factor x factor pixels.

    `valid_mean` is the mean of the block's measured pixels, measured where any of them is: every measurement counts, and
    a sparse truth still reaches the coarsest map, which the nearest pixel alone would often miss. `bilinear` is the
    authors' way of making depth smaller, for parity only: holes are averaged in as zeros (spec section 3.1), which
    leaves a fringe of too small values around them. Where not measured the depth is 0.
    """
    size = (-(-depth.shape[-2] // factor), -(-depth.shape[-1] // factor))
    clean = torch.where(mask, depth, torch.zeros_like(depth))[:, None]
    if method == "bilinear":
        coarse = F.interpolate(clean, size=size, mode="bilinear", align_corners=False)[:, 0]
        return coarse, coarse > 0
    missing = (0, size[1] * factor - depth.shape[-1], 0, size[0] * factor - depth.shape[-2])
    total = F.avg_pool2d(F.pad(clean, missing), factor, divisor_override=1)[:, 0]
    count = F.avg_pool2d(F.pad(mask[:, None].to(depth.dtype), missing), factor, divisor_override=1)[:, 0]
    return total / count.clamp(min=1), count > 0


def depth_at(
    depth: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], keypoints: Float[Tensor, "b n 2"]
) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Depth at pixels (x, y) and where it is valid: bilinear, and valid only if every pixel with a weight is.

    At integer pixels, where keypoints lie, that is the pixel itself. Outside the image, and where not valid, 0.
    """
    low = keypoints.floor()
    part = keypoints - low
    total, valid = torch.zeros_like(part[..., 0]), torch.ones_like(part[..., 0], dtype=torch.bool)
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        offset = low.new_tensor(corner)
        weight = torch.where(offset > 0, part, 1 - part).prod(-1)
        value, known = _pixel(depth, mask, low + offset)
        total = total + weight * value
        valid = valid & (known | (weight == 0))
    return torch.where(valid, total, torch.zeros_like(total)), valid


def keypoint_truth(
    keypoints: Float[Tensor, "b n 2"],
    depth: Float[Tensor, "b v h w"],
    mask: Bool[Tensor, "b v h w"],
    K: Float[Tensor, "b v 3 3"],
    cam0_T_cam: Float[Tensor, "b v 4 4"],
    depth_range: Float[Tensor, "b 2"],
) -> KeypointTruth:
    """Where the anchor's keypoints truly are in space and in each other view, from the anchor's true depth.

    A match counts (`seen`) when the point is known, lies in front of the view, inside its image (pixel areas included:
    -0.5 <= u < w - 0.5) and is not hidden: not farther than 1.05 times what the view itself measured at the nearest
    pixel. Where the view measured nothing, nothing can be said and the match counts. Source: spec section 1.8 and 4.
    """
    z, measured = depth_at(depth[:, 0], mask[:, 0], keypoints)
    known = measured & (z >= depth_range[:, :1]) & (z <= depth_range[:, 1:])
    z = torch.where(known, z, torch.zeros_like(z))
    points = backproject_pixels(keypoints, z, K[:, 0])
    matches, z_there = project(transform(invert(cam0_T_cam[:, 1:]), points[:, None, None]), K[:, 1:])
    matches, z_there = matches[:, :, 0], z_there[:, :, 0]
    in_view = known[:, None] & (z_there > MIN_Z) & inside(matches, (depth.shape[-2], depth.shape[-1]))
    return KeypointTruth(points, known, matches, in_view & ~_hidden(matches, z_there, depth[:, 1:], mask[:, 1:]))


def backproject_pixels(
    pixels: Float[Tensor, "b n 2"], depth: Float[Tensor, "b n"], K: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b n 3"]:
    """Points in the camera's frame of pixels (x, y) at depth z, in its unit."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    return depth[..., None] * (homogeneous @ invert_intrinsics(K).mT)


def inside(pixels: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Bool[Tensor, "*n"]:
    """Whether pixels (x, y) lie in an image of `size`, its outermost pixels' areas included, as search segments must."""
    limit = pixels.new_tensor([size[1] - 0.5, size[0] - 0.5])
    return ((pixels >= -0.5) & (pixels < limit)).all(dim=-1)


def detector_target(probability: Float[Tensor, "b h w"]) -> Float[Tensor, "b 65 hc wc"]:
    """Each 8x8 cell's distribution over its 64 pixels, row by row, and over "no keypoint here" (channel 64).

    The last channel is what the cell's sum leaves to 1; a cell whose sum is above 1 is divided by it. A size that 8 does
    not divide is filled up with pixels that are no keypoints. Source: spec section 1.4.
    """
    height, width = probability.shape[-2:]
    padded = F.pad(probability[:, None], (0, -width % CELL, 0, -height % CELL))
    cells = F.pixel_unshuffle(padded, CELL)
    mass = cells.sum(1, keepdim=True)
    return torch.cat([cells / mass.clamp(min=1), (1 - mass).clamp(min=0)], dim=1)


def _hidden(
    matches: Float[Tensor, "b s n 2"],
    z: Float[Tensor, "b s n"],
    depth: Float[Tensor, "b s h w"],
    mask: Bool[Tensor, "b s h w"],
) -> Bool[Tensor, "b s n"]:
    surface, known = _pixel(depth.flatten(0, 1), mask.flatten(0, 1), matches.flatten(0, 1).round())
    limit = (1 + OCCLUSION_TOLERANCE) * surface.reshape(z.shape)
    return known.reshape(z.shape) & (z > limit)


def _pixel(
    depth: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"], pixels: Float[Tensor, "b n 2"]
) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Depth at integer pixels (x, y) and where it is measured; 0 where it is not, and outside the image."""
    height, width = depth.shape[-2:]
    x, y = pixels.unbind(-1)
    within = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    index = torch.where(within, y * width + x, torch.zeros_like(x)).long()
    known = within & mask.flatten(1).gather(1, index)
    return torch.where(known, depth.flatten(1).gather(1, index), torch.zeros_like(x)), known
