"""What the network sees: channels made of an image, a camera and an initial depth, free of the scene's scale."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.geometry import backproject

InputName = Literal["rgb", "initial_depth", "rays", "sparse_depth", "sparse_distance", "initial_confidence", "validity"]
INPUT_NAMES: tuple[InputName, ...] = get_args(InputName)
CHANNELS: dict[str, int] = {"rgb": 3, "rays": 3}
CELL = 8
REACH = 32
SPREAD_CELL = 4
SPREAD_STEPS = 40
EDGE_SHARPNESS = 30.0


@dataclass(frozen=True)
class InitialDepth:
    """An initial depth made whole and free of scale, per view.

    `scale` (metres) is the normaliser. `filled` is the initial depth where there is one and a smooth fill elsewhere, in
    units of `scale`. `valid` says where there is one; `confidence` is 0 where there is none. `doubt` in [0, 1] is
    1 - confidence^4: near 0 only where the initial depth is sure; 1 everywhere when its source gives no confidence.
    """

    filled: Float[Tensor, "n h w"]
    valid: Bool[Tensor, "n h w"]
    confidence: Float[Tensor, "n h w"]
    doubt: Float[Tensor, "n h w"]
    scale: Float[Tensor, " n"]


def prepare(
    depth: Float[Tensor, "b p h w"],
    confidence: Float[Tensor, "b p h w"] | None,
    depth_range: Float[Tensor, "b 2"] | None,
) -> InitialDepth:
    """The p views of each sample, flattened to n = b p, normalised by the sample's scale.

    A pixel of 0 or of no finite depth abstains: it is filled from its surroundings. Without a confidence every valid
    pixel counts as sure.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    clean = torch.where(valid, depth, torch.zeros_like(depth))
    scale = sample_scale(clean[:, 0], depth_range)
    sure = valid.to(depth.dtype) if confidence is None else confidence.clamp(0, 1) * valid
    normalised = (clean / scale[:, None, None, None]).flatten(0, 1)
    weight = (sure.flatten(0, 1) + 1e-3) * valid.flatten(0, 1)
    filled = torch.where(valid.flatten(0, 1), normalised, fill(normalised, weight))
    doubt = torch.ones_like(sure) if confidence is None else 1 - sure**4
    return InitialDepth(
        filled,
        valid.flatten(0, 1),
        sure.flatten(0, 1),
        doubt.flatten(0, 1),
        scale.repeat_interleave(depth.shape[1]),
    )


def sample_scale(depth: Float[Tensor, "b h w"], depth_range: Float[Tensor, "b 2"] | None) -> Float[Tensor, " b"]:
    """The median valid (positive) depth of each map, in metres.

    A map with no valid pixel takes the geometric mean of its depth range, or 1 m without a range.
    """
    invalid = depth <= 0
    median = depth.masked_fill(invalid, torch.nan).flatten(1).nanmedian(dim=1).values
    fallback = torch.ones_like(median) if depth_range is None else depth_range.prod(dim=1).sqrt()
    return torch.where(torch.isnan(median), fallback, median)


def fill(values: Float[Tensor, "n h w"], weight: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """A dense map from values at the pixels of positive weight: kept there, smoothly interpolated elsewhere.

    Push-pull over an image pyramid: weighted means of 2x2 pixels down to one, then holes are filled from the coarser
    level, enlarged bilinearly. A map without any weight is 1 everywhere. Source: Gortler et al., The Lumigraph, 1996.
    """
    weighted, mass = (values * weight)[:, None], weight[:, None]
    means, masses = [], []
    while True:
        means.append(weighted / mass.clamp(min=1e-12))
        masses.append(mass)
        if weighted.shape[-1] == weighted.shape[-2] == 1:
            break
        weighted, mass = _halve(weighted), _halve(mass)
    dense = torch.where(masses[-1] > 0, means[-1], torch.ones_like(means[-1]))
    for mean, mass in zip(reversed(means[:-1]), reversed(masses[:-1])):
        coarse = F.interpolate(dense, size=mean.shape[-2:], mode="bilinear", align_corners=False)
        dense = torch.where(mass > 0, mean, coarse)
    return dense[:, 0]


def spread_log(initial: InitialDepth, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n h w"]:
    """log z0 spread from where it is sure to where it is not, along the image but not across its edges.

    The weighted least-squares fit of z0 and of its smoothness, by Jacobi iterations on pixels of 4x4, enlarged
    bilinearly: confidence weighs the data, exp(-30 |dI|) the smoothness. Source: Farbman et al., Edge-preserving
    decompositions, 2008, with confidence as in Barron and Poole, The fast bilateral solver, 2016.
    """
    weight = initial.confidence**4 / (1.02 - initial.confidence) + 1e-5
    stacked = torch.stack([initial.filled.log() * weight, weight], dim=1)
    total, mass = F.avg_pool2d(stacked, SPREAD_CELL, ceil_mode=True).unbind(1)
    colour = F.avg_pool2d(image, SPREAD_CELL, ceil_mode=True)
    across, down = (torch.exp(-EDGE_SHARPNESS * colour.diff(dim=dim).abs().mean(1)) for dim in (-1, -2))
    spread = total / mass
    normaliser = mass + _from_neighbours(torch.ones_like(spread), across, down)
    for _ in range(SPREAD_STEPS):
        spread = (total + _from_neighbours(spread, across, down)) / normaliser
    size = (int(image.shape[-2]), int(image.shape[-1]))
    return F.interpolate(spread[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _from_neighbours(
    x: Float[Tensor, "n h w"], across: Float[Tensor, "n h w1"], down: Float[Tensor, "n h1 w"]
) -> Float[Tensor, "n h w"]:
    """The sum of each pixel's four neighbours, weighted by what connects it to them."""
    left, right = F.pad(across * x[..., :-1], (1, 0)), F.pad(across * x[..., 1:], (0, 1))
    above, below = F.pad(down * x[..., :-1, :], (0, 0, 1, 0)), F.pad(down * x[..., 1:, :], (0, 0, 0, 1))
    return left + right + above + below


def sparse_points(initial: InitialDepth) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    """Depth (units of the scale) at a sparse set of trustworthy pixels and where they are.

    In each cell of 8x8 pixels the surest pixel of the initial depth is a candidate, and the surer half of the cells is
    kept. The points come from the initial depth, which is another method's prediction: never from the truth.
    """
    best, where = F.max_pool2d((initial.confidence + initial.valid)[:, None], CELL, ceil_mode=True, return_indices=True)
    best, where = best.flatten(1), where.flatten(1)
    threshold = best.masked_fill(best <= 0, torch.nan).nanmedian(dim=1, keepdim=True).values
    keep = (best > 0) & (best >= threshold)
    points = torch.zeros_like(initial.valid).flatten(1).scatter(1, where, keep).reshape(initial.valid.shape)
    return initial.filled * points, points


def distance_to_points(points: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Euclidean distance in pixels from each pixel to the nearest point, at most `REACH` (which also stands for none).

    Distances along the columns are exact and combined over a window of columns as wide as the reach, as in
    Felzenszwalb and Huttenlocher, Distance transforms of sampled functions, 2012.
    """
    width = points.shape[-1]
    squared = _column_distance(points).square()
    best = squared.clone()
    for shift in range(1, min(REACH, width - 1) + 1):
        best[..., shift:] = torch.minimum(best[..., shift:], squared[..., :-shift] + shift**2)
        best[..., :-shift] = torch.minimum(best[..., :-shift], squared[..., shift:] + shift**2)
    return best.sqrt().clamp(max=float(REACH))


def _column_distance(points: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    height = points.shape[-2]
    rows = torch.arange(height, device=points.device, dtype=torch.float32)[:, None]
    far = 2.0 * (height + REACH)
    above = torch.where(points, rows, rows.new_tensor(-far)).cummax(dim=-2).values
    below = torch.where(points, rows, rows.new_tensor(far + height)).flip(-2).cummin(dim=-2).values.flip(-2)
    return torch.minimum(rows - above, below - rows)


def network_input(
    names: tuple[str, ...], image: Float[Tensor, "n 3 h w"], K: Float[Tensor, "n 3 3"], initial: InitialDepth
) -> Float[Tensor, "n c h w"]:
    """The named channels in the given order; depths are logarithms of depth / scale, rays have z = 1.

    Colours are standardised over each image, so that exposure and contrast of a capture drop out.
    """
    wanted = set(names)
    made: dict[str, Tensor] = {
        "initial_depth": initial.filled.log()[:, None],
        "initial_confidence": initial.confidence[:, None],
        "validity": initial.valid[:, None].to(image.dtype),
    }
    if "rgb" in wanted:
        made["rgb"] = _standardise(image)
    if "rays" in wanted:
        made["rays"] = backproject(torch.ones_like(image[:, 0]), K).permute(0, 3, 1, 2)
    if wanted & {"sparse_depth", "sparse_distance"}:
        depth, points = sparse_points(initial)
        made["sparse_depth"] = fill(depth, points.to(depth.dtype)).log()[:, None]
        made["sparse_distance"] = distance_to_points(points)[:, None] / REACH
    return torch.cat([made[name] for name in names], dim=1).contiguous(memory_format=torch.channels_last)


def channels(names: tuple[str, ...]) -> int:
    """How many channels the named inputs have together: 3 for rgb and rays, 1 for each other."""
    return sum(CHANNELS.get(name, 1) for name in names)


def _standardise(image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    deviation, mean = torch.std_mean(image, dim=(1, 2, 3), keepdim=True, correction=0)
    return (image - mean) / (deviation + 0.02)


def _halve(x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h2 w2"]:
    return F.avg_pool2d(x, 2, ceil_mode=True)
