"""From a cost volume to a depth map: semi-global aggregation, the posterior over planes, depth and confidence."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def semi_global(
    cost: Float[Tensor, "n d h w"],
    image: Float[Tensor, "n 3 h w"],
    *,
    paths: int,
    small_penalty: float,
    large_penalty: float,
    edge_sharpness: float,
) -> Float[Tensor, "n d h w"]:
    """Costs aggregated along 4 or 8 straight paths, mean over the paths (Hirschmueller 2008, eq. 13).

    A change of one plane costs `small_penalty`, any other `large_penalty`, which decays towards `small_penalty` with the
    colour difference between neighbours: `exp(-edge_sharpness * mean abs difference)`.
    """
    penalties = {"small": small_penalty, "large": large_penalty, "edge_sharpness": edge_sharpness}
    across = (-1, 0, 1) if paths == 8 else (0,)
    vertical = _scan(cost.permute(2, 0, 1, 3), image.permute(2, 0, 1, 3), across, **penalties)
    horizontal = _scan(cost.permute(3, 0, 1, 2), image.permute(3, 0, 1, 2), (0,), **penalties)
    total = vertical.permute(1, 2, 0, 3) + horizontal.permute(1, 2, 3, 0)
    return total.mul_(1 / (2 * len(across) + 2))


def _scan(
    cost: Float[Tensor, "l n d m"],
    image: Float[Tensor, "l n 3 m"],
    slants: tuple[int, ...],
    *,
    small: float,
    large: float,
    edge_sharpness: float,
) -> Float[Tensor, "l n d m"]:
    """Sum over both directions along the first axis, each with every slant, of the path costs.

    All lines, slants and both directions advance together, so that a step is a handful of operations on one tensor: the
    state holds (slant, direction, n, d, m), with a margin of one zero column a side, from which paths enter the image.
    """
    length, n, d, m = cost.shape
    cost = cost.contiguous()
    margin = torch.stack([_large_penalties(image, slant, small, large, edge_sharpness) for slant in slants])
    penalties = torch.stack([margin, _reversed_penalties(image, slants, small, large, edge_sharpness)], dim=1)
    total = torch.zeros_like(cost)
    state = cost.new_zeros(len(slants), 2, n, d, m + 2)
    inner = state[..., 1:-1]
    for step in range(length):
        pair = torch.stack([cost[step], cost[length - 1 - step]])
        path = _advance(_predecessors(state, slants), penalties[:, :, step], small).add_(pair)
        inner.copy_(path)
        arrived = path.sum(dim=0)
        total[step] += arrived[0]
        total[length - 1 - step] += arrived[1]
    return total


def _predecessors(state: Float[Tensor, "a r n d m2"], slants: tuple[int, ...]) -> Float[Tensor, "a r n d m"]:
    width = state.shape[-1] - 2
    return torch.stack([state[i, ..., 1 - slant : 1 - slant + width] for i, slant in enumerate(slants)])


def _advance(
    before: Float[Tensor, "a r n d m"], large: Float[Tensor, "a r n 1 m"], small: float
) -> Float[Tensor, "a r n d m"]:
    """The recursion's bracket: the cheapest way to each plane from the predecessor's planes, less their minimum."""
    least = before.amin(dim=-2, keepdim=True)
    best = torch.minimum(before, least + large)
    stepped = before + small
    torch.minimum(best[..., 1:, :], stepped[..., :-1, :], out=best[..., 1:, :])
    torch.minimum(best[..., :-1, :], stepped[..., 1:, :], out=best[..., :-1, :])
    return best.sub_(least)


def _large_penalties(
    image: Float[Tensor, "l n 3 m"], slant: int, small: float, large: float, edge_sharpness: float
) -> Float[Tensor, "l n 1 m"]:
    """Penalty for a jump on entering each pixel from its predecessor, one line up and `slant` columns to the left."""
    padded = F.pad(image, (1, 1, 0, 0), mode="replicate")
    before = padded[..., 1 - slant : 1 - slant + image.shape[-1]].roll(1, dims=0)
    difference = (image - before).abs_().mean(dim=2, keepdim=True)
    return difference.mul_(-edge_sharpness).exp_().mul_(large - small).add_(small)


def _reversed_penalties(
    image: Float[Tensor, "l n 3 m"], slants: tuple[int, ...], small: float, large: float, edge_sharpness: float
) -> Float[Tensor, "a l n 1 m"]:
    flipped = image.flip(0)
    return torch.stack([_large_penalties(flipped, slant, small, large, edge_sharpness) for slant in slants])


def posterior(cost: Float[Tensor, "n d h w"], temperature: float) -> Float[Tensor, "n d h w"]:
    """Probability of each plane, `softmax(-cost / temperature)`."""
    return torch.softmax(cost * (-1 / temperature), dim=1)


def median_depth(probability: Float[Tensor, "n d h w"], planes: Float[Tensor, "n d"]) -> Float[Tensor, "n h w"]:
    """The depth that minimises the expected relative error `E |z - Z| / Z` under `probability`.

    That is the median of the distribution with weights p / Z. Each plane's mass is spread over its cell, so the estimate
    falls between planes; it stays within the outermost planes. `planes` are inverse depths, evenly spaced, ascending.
    """
    weight = probability * planes[..., None, None]
    cumulative = weight.cumsum(dim=1)
    half = cumulative[:, -1:] * 0.5
    cell = (cumulative < half).sum(dim=1, keepdim=True).clamp_(max=planes.shape[1] - 1)
    inside = weight.gather(1, cell)
    fraction = ((half - cumulative.gather(1, cell)) / inside.clamp(min=1e-20) + 0.5).clamp_(-0.5, 0.5)
    return _depth_at(cell + fraction, planes)[:, 0]


def least_cost_depth(cost: Float[Tensor, "n d h w"], planes: Float[Tensor, "n d"]) -> Float[Tensor, "n h w"]:
    """Depth of the cheapest plane, refined by the parabola through its cost and those of its two neighbours."""
    best = cost.argmin(dim=1, keepdim=True)
    centre = best.clamp(1, cost.shape[1] - 2)
    before, at, after = (cost.gather(1, centre + i) for i in (-1, 0, 1))
    offset = ((before - after) / (2 * (before + after - 2 * at)).clamp(min=1e-6)).clamp_(-0.5, 0.5)
    return _depth_at(best + offset.where(best == centre, 0.0), planes)[:, 0]


def _depth_at(index: Float[Tensor, "n 1 h w"], planes: Float[Tensor, "n d"]) -> Float[Tensor, "n 1 h w"]:
    first, last = planes[:, 0, None, None, None], planes[:, -1, None, None, None]
    inverse = first + index * ((last - first) / (planes.shape[1] - 1))
    return torch.minimum(torch.maximum(inverse, first), last).reciprocal()


def mass_near(
    probability: Float[Tensor, "n d h w"], planes: Float[Tensor, "n d"], depth: Float[Tensor, "n h w"], tolerance: float
) -> Float[Tensor, "n h w"]:
    """Probability that the true depth is within the relative `tolerance` of `depth`, under `probability`.

    The plane's cell is counted in part where the bounds cut it.
    """
    cumulative = F.pad(probability.cumsum(dim=1), (0, 0, 0, 0, 1, 0))
    step = (planes[:, -1] - planes[:, 0])[:, None, None, None] / (planes.shape[1] - 1)
    lower, upper = (
        _interpolate(cumulative, (1 / (depth[:, None] * factor) - planes[:, :1, None, None]) / step + 0.5)
        for factor in (1 + tolerance, 1 - tolerance)
    )
    return (upper - lower)[:, 0].clamp_(0, 1)


def _interpolate(values: Float[Tensor, "n d h w"], index: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    index = index.clamp(0, values.shape[1] - 1)
    left = index.floor().clamp(max=values.shape[1] - 2)
    position = left.long()
    return torch.lerp(values.gather(1, position), values.gather(1, position + 1), index - left)
