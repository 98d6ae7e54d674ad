"""Keypoints of the anchor: the detector's best pixels, no two close together, filled up with random ones.

DeTone et al., SuperPoint, 2018 (decoding); Sinha et al., DELTAS, ECCV 2020, section 3.1 (half detected, half random).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.systems.deltas.front import CELL

FILL_SEED = 0


def keypoint_probability(logits: Float[Tensor, "b 65 h8 w8"]) -> Float[Tensor, "b h w"]:
    """The probability of each pixel to be the keypoint of its 8x8 cell."""
    return F.pixel_shuffle(logits.softmax(dim=1)[:, : CELL**2], CELL)[:, 0]


def maximum_filter(x: Float[Tensor, "b h w"], radius: int) -> Float[Tensor, "b h w"]:
    """The largest value within `radius` rows and columns of each pixel: over rows, then over columns."""
    padded = F.pad(x, (radius, radius, radius, radius), value=-torch.inf)
    return _running_maximum(_running_maximum(padded, 2 * radius + 1, dim=-2), 2 * radius + 1, dim=-1)


def maximum_filter_reference(x: Float[Tensor, "b h w"], radius: int) -> Float[Tensor, "b h w"]:
    """The readable reference of `maximum_filter`: one square window."""
    return F.max_pool2d(x, 2 * radius + 1, stride=1, padding=radius)


def local_maxima(score: Float[Tensor, "b h w"], radius: int) -> Bool[Tensor, "b h w"]:
    """Pixels that are the largest of their window, then, twice, the largest outside the windows of those found."""
    keep = score == maximum_filter(score, radius)
    for _ in range(2):
        suppressed = maximum_filter(keep.to(score.dtype), radius) > 0
        remaining = score.masked_fill(suppressed, 0.0)
        keep = keep | ((remaining == maximum_filter(remaining, radius)) & ~suppressed)
    return keep


@torch.no_grad()
def select_keypoints(
    logits: Float[Tensor, "b 65 h8 w8"],
    *,
    size: tuple[int, int],
    count: int,
    detected: int,
    threshold: float,
    radius: int,
    border: int,
    training: bool,
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """`count` pixels (x, y) within `size` (height, width) for each image and their scores, 0 where they are random.

    First come local maxima of the probability above `threshold` and at least `border` pixels inside the image: all of
    them, row by row, or the `detected` best, best first, where there are more. The rest is random: in training from
    torch's generator, otherwise the same points for each image, so that an image's answer is its own.
    """
    height, width = size
    probability = keypoint_probability(logits.float())
    inside = torch.zeros_like(probability, dtype=torch.bool)
    inside[:, border : height - border, border : width - border] = True
    candidate = local_maxima(probability, radius) & (probability > threshold) & inside
    points, scores, found = _first(probability, candidate, min(detected, count))
    fill = _random_points(len(logits), count, size, training=training).to(points.device)
    missing = count - points.shape[1]
    points = torch.cat([points, points.new_zeros(len(points), missing, 2)], dim=1)
    scores = torch.cat([scores, scores.new_zeros(len(points), missing)], dim=1)
    is_found = torch.arange(count, device=points.device) < found[:, None]
    return torch.where(is_found[..., None], points, fill), scores.where(is_found, 0.0)


def _running_maximum(x: Tensor, size: int, *, dim: int) -> Tensor:
    """The largest of each `size` neighbours along `dim`: a window of twice the size is two windows."""
    reach = 1
    while reach < size:
        step = min(reach, size - reach)
        count = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, count), x.narrow(dim, step, count))
        reach += step
    return x


def _first(
    score: Float[Tensor, "b h w"], candidate: Bool[Tensor, "b h w"], limit: int
) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k"], Tensor]:
    """The first `limit` candidates of each image, in the order `select_keypoints` says, and how many there are."""
    width, flat = score.shape[-1], candidate.flatten(1)
    limit = min(limit, flat.shape[1])
    total = flat.sum(dim=1)
    row_major = torch.arange(flat.shape[1], 0, -1, device=flat.device, dtype=score.dtype)
    order = torch.where((total > limit)[:, None], score.flatten(1), row_major) * flat
    index = order.topk(limit, dim=1).indices
    points = torch.stack([index % width, index // width], dim=-1).to(score.dtype)
    return points, score.flatten(1).gather(1, index), total.clamp(max=limit)


def _random_points(b: int, count: int, size: tuple[int, int], *, training: bool) -> Float[Tensor, "b n 2"]:
    """Pixels (x, y), every one as likely; drawn on the CPU, so that all devices see the same."""
    generator = None if training else torch.Generator().manual_seed(FILL_SEED)
    rows = b if training else 1
    axes = [torch.randint(limit, (rows, count), generator=generator) for limit in (size[1], size[0])]
    return torch.stack(axes, dim=-1).float().expand(b, -1, -1)
