"""DELTAS' matching: where a keypoint may lie in another view, how well each place there correlates, and the soft match.

The anchor is view 0; the other views are its s sources. Pixels are (x, y) with the centre of the top-left pixel at (0, 0).
Gradients flow to the descriptors and to what scores a correlation; keypoints and cameras are data and carry none.
Source: Sinha et al., DELTAS: Depth Estimation by Learning Triangulation And densification of Sparse points, ECCV 2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from plumbline.geometry import compose
from plumbline.systems.deltas.front import CELL

# Candidates lie on this many parallel lines, a pixel apart, the middle one on the epipolar line.
LINES = 3
EPS = 1e-12

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Searched:
    """Soft matches, best scores, and the scores of all candidates of the segments that were searched.

    `rows` are the usable segments, counted over "b s n" flattened.
    """

    matches: Float[Tensor, "b s n 2"]
    best: Float[Tensor, "b s n"]
    rows: Int[Tensor, " m"]
    scores: Float[Tensor, "m l k"]

    @property
    def variance(self) -> Float[Tensor, " m"]:
        """Of the place along each searched segment, in squares of its length: from 0 to 1/12 where all places are as likely.

        Along a segment the inverse depth is all but linear, so this is its uncertainty, whatever the baseline.
        """
        weights = self.scores.flatten(1).softmax(dim=1).view_as(self.scores).sum(dim=1)
        along, _ = _steps(weights, weights.shape[1])
        return (weights @ along.square() - (weights @ along).square()).clamp(min=0)


@dataclass(frozen=True)
class Segments:
    """Epipolar search segments in the source views, pixels. `direction` is a unit vector along the epipolar line.

    A segment that leaves the image is unusable: its centre is (0, 0), its length 0.
    """

    centre: Float[Tensor, "*n 2"]
    length: Float[Tensor, "*n"]
    direction: Float[Tensor, "*n 2"]

    @property
    def usable(self) -> Bool[Tensor, "*n"]:
        """Where there is something to search."""
        return self.length > 0

    def rows(self, rows: Int[Tensor, " m"]) -> "Segments":
        """The segments `rows` of the flattened leading dimensions."""
        flat = (self.centre.reshape(-1, 2), self.length.reshape(-1), self.direction.reshape(-1, 2))
        return Segments(*(values.index_select(0, rows) for values in flat))

    @property
    def along(self) -> Float[Tensor, "*n 2"]:
        """From one end to the other."""
        return self.direction * self.length[..., None]

    @property
    def across(self) -> Float[Tensor, "*n 2"]:
        """One pixel to the side."""
        return torch.stack([-self.direction[..., 1], self.direction[..., 0]], dim=-1)

    def place(self, along: Float[Tensor, "*n"], across: Float[Tensor, "*n"]) -> Float[Tensor, "*n 2"]:
        """The pixel at `along` in [-0.5, 0.5] of the segment and `across` pixels beside it."""
        return self.centre + self.along * along[..., None] + self.across * across[..., None]


@torch.no_grad()
def search_segments(
    keypoints: Float[Tensor, "b n 2"],
    K: Float[Tensor, "b v 3 3"],
    cam_T_cam0: Float[Tensor, "b s 4 4"],
    depth_range: Float[Tensor, "b 2"],
    size: tuple[int, int],
) -> Segments:
    """Where each keypoint of the anchor lies in each source for the depths of `depth_range` (metres): "b s n" segments.

    Usable where both ends fall on the image, that is in [-0.5, W - 0.5) x [-0.5, H - 0.5). As in the published method the
    sign of the depth in the source is not tested. Without a baseline the two ends coincide, and nothing is usable.
    """
    P = compose(K[:, :1], K[:, 1:], cam_T_cam0)
    infinite = F.pad(keypoints, (0, 1), value=1.0)[:, None] @ P[..., :3].mT
    epipole = P[..., None, :, 3]
    near, far = (_pixel(infinite + epipole / depth[:, None, None, None]) for depth in depth_range.unbind(1))
    inside = (_inside(near, size) & _inside(far, size))[..., None]
    near, far = near.where(inside, 0.0), far.where(inside, 0.0)
    return Segments((near + far) / 2, (near - far).norm(dim=-1), _direction(infinite, epipole))


def _pixel(point: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 2"]:
    return point[..., :2] / point[..., 2:]


def _inside(pixel: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Bool[Tensor, "*n"]:
    """True within the outermost pixels' borders; False for what is infinite or no number."""
    limit = pixel.new_tensor([size[1], size[0]]) - 0.5
    return ((pixel >= -0.5) & (pixel < limit)).all(dim=-1)


def _direction(infinite: Float[Tensor, "b s n 3"], epipole: Float[Tensor, "b s 1 3"]) -> Float[Tensor, "b s n 2"]:
    """Unit vector along the line through the point at infinite depth and the epipole; (1, 0) where they coincide.

    The difference of the segment's ends would lose it to rounding on a short segment.
    """
    direction = epipole[..., 2:] * infinite[..., :2] - infinite[..., 2:] * epipole[..., :2]
    norm = direction.norm(dim=-1, keepdim=True)
    default = direction.new_tensor([1.0, 0.0])
    return torch.where(norm > 0, direction / norm, default)


def candidates(segments: Segments, samples: int) -> Float[Tensor, "*n l k 2"]:
    """The places to look at: `samples` along each segment, on three lines at -1, 0 and 1 pixel beside it."""
    return torch.stack(_lattice(segments.centre, segments.along, segments.across, samples), dim=-1)


def _lattice(
    centre: Float[Tensor, "*n 2"], along: Float[Tensor, "*n 2"], across: Float[Tensor, "*n 2"], samples: int
) -> list[Float[Tensor, "*n l k"]]:
    """x and y of the places around each centre, contiguous each."""
    steps, lines = _steps(centre, samples)
    ahead = centre[..., None] + along[..., None] * steps
    aside = across[..., None] * (2 * lines)
    return [ahead[..., i, None, :] + aside[..., i, :, None] for i in range(2)]


def _steps(like: Tensor, samples: int) -> tuple[Float[Tensor, " k"], Float[Tensor, " l"]]:
    """Coordinates of the places, each from -0.5 to 0.5: along the segment and over the lines."""
    along, across = (
        torch.linspace(-0.5, 0.5, steps, dtype=like.dtype, device=like.device) for steps in (samples, LINES)
    )
    return along, across


def match_reference(
    descriptors: Float[Tensor, "b v c h w"],
    keypoints: Float[Tensor, "b n 2"],
    segments: Segments,
    *,
    score: Score,
    samples: int = 100,
    cell: int = CELL,
) -> tuple[Float[Tensor, "b s n 2"], Float[Tensor, "b s n"]]:
    """The readable reference of `search`'s matches and best scores: sample a descriptor at every candidate, then correlate."""
    places = candidates(segments, samples)
    scores = score(correlate_reference(descriptors, keypoints, places, cell=cell))
    matches = soft_match(scores, segments) * segments.usable[..., None]
    return matches, scores.flatten(-2).amax(dim=-1)


def search(
    descriptors: Float[Tensor, "b v c h w"],
    keypoints: Float[Tensor, "b n 2"],
    segments: Segments,
    *,
    score: Score,
    samples: int = 100,
    cell: int = CELL,
) -> Searched:
    """Match each keypoint in each source, with the scores of all that was looked at.

    `descriptors` are normalised maps of the views, `cell` pixels a cell, the anchor's first. `score` turns correlations
    into scores element by element, on a vector. All candidates of an unusable segment are the same three places, which are
    read once for its best score. Equal to `match_reference`.
    """
    maps = correlation_maps(descriptors, keypoints, cell=cell)
    usable = segments.usable.flatten()
    rows, others = usable.nonzero()[:, 0], (~usable).nonzero()[:, 0]
    searched, skipped = segments.rows(rows), segments.rows(others)
    read = correlate(maps, rows, searched, samples), correlate(maps, others, skipped, 1)
    # In one call, so that a score that normalises by its batch does so by all that was read.
    scores = score(torch.cat([values.flatten() for values in read]))
    found, rest = (part.view_as(values) for part, values in zip(_split(scores, read), read, strict=True))
    matches = found.new_zeros(len(usable), 2).index_copy(0, rows, soft_match(found, searched))
    best = found.new_zeros(len(usable)).index_copy(0, rows, found.amax(dim=(-2, -1)))
    best = best.index_copy(0, others, rest.amax(dim=(-2, -1)))
    shape = segments.length.shape
    return Searched(matches.view(*shape, 2), best.view(shape), rows, found)


def _split(values: Float[Tensor, " p"], parts: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split_with_sizes(values, [part.numel() for part in parts])


def soft_match(scores: Float[Tensor, "*n l k"], segments: Segments) -> Float[Tensor, "*n 2"]:
    """The expected place under the softmax of the scores of all candidates, pixels.

    Across the segment the outer lines count half a pixel although they were read at one pixel: the published weights were
    trained so.
    """
    weights = scores.flatten(-2).softmax(dim=-1).view_as(scores)
    along, across = _steps(scores, scores.shape[-1])
    return segments.place(weights.sum(dim=-2) @ along, weights.sum(dim=-1) @ across)


def to_cells(
    map_size: tuple[int, int], like: Tensor, *, cell: int = CELL
) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
    """Scale and shift that take a pixel (x, y) to the fractional (column, row) of the descriptor map read there.

    Off the true cell, (pixel + 0.5) / cell - 0.5, by up to half a cell at the far border: the published method normalises
    for corner-aligned sampling and samples otherwise.
    """
    extent = like.new_tensor([map_size[1], map_size[0]])
    scale = extent / (extent * cell - (cell / 2 + 0.5))
    return scale, -(cell / 2 - 0.5) * scale - 0.5


def sample_descriptors(
    maps: Float[Tensor, "n c h w"], pixels: Float[Tensor, "n p 2"], *, cell: int = CELL
) -> Float[Tensor, "n p c"]:
    """Unit descriptors at `pixels`, bilinear, zero padding; zero vectors entirely outside."""
    scale, shift = to_cells((maps.shape[-2], maps.shape[-1]), pixels, cell=cell)
    extent = pixels.new_tensor([maps.shape[-1], maps.shape[-2]])
    grid = (2 * (pixels * scale + shift) + 1) / extent - 1
    sampled = F.grid_sample(maps, grid[:, None], align_corners=False)[:, :, 0]
    return F.normalize(sampled, dim=1, eps=EPS).mT


def correlate_reference(
    descriptors: Float[Tensor, "b v c h w"],
    keypoints: Float[Tensor, "b n 2"],
    places: Float[Tensor, "b s n l k 2"],
    *,
    cell: int = CELL,
) -> Float[Tensor, "b s n l k"]:
    """Dot product of the descriptor at each keypoint of the anchor with that at each of its places in each source."""
    anchors = sample_descriptors(descriptors[:, 0], keypoints, cell=cell)
    sources = sample_descriptors(descriptors[:, 1:].flatten(0, 1), places.flatten(0, 1).flatten(1, 3), cell=cell)
    sampled = sources.view(*places.shape[:-1], -1)
    return torch.einsum("bnc,bsnlkc->bsnlk", anchors, sampled)


@dataclass(frozen=True)
class CorrelationMaps:
    """What correlations and norms of interpolated descriptors are read from, with a border of one zero cell.

    `scores` is the correlation of each keypoint with each cell of its source. `grams` holds dot products of the cells of a
    source: with themselves, with their right and their lower neighbours (twice), and the sum of both diagonals of the 2x2
    block that starts there (twice). `keypoints` is n, `size` that of a map without its border, `cell` its pixels a cell.
    """

    scores: Float[Tensor, "bsn hw"]
    grams: Float[Tensor, "4 bs hw"]
    keypoints: int
    size: tuple[int, int]
    cell: int


def correlation_maps(
    descriptors: Float[Tensor, "b v c h w"], keypoints: Float[Tensor, "b n 2"], *, cell: int = CELL
) -> CorrelationMaps:
    """Correlate every keypoint with every cell of every source, and every cell with its neighbours."""
    anchors = sample_descriptors(descriptors[:, 0], keypoints, cell=cell)
    sources = F.pad(descriptors[:, 1:], (1, 1, 1, 1))
    scores = (anchors[:, None] @ sources.flatten(-2)).flatten(0, 2)
    size = (descriptors.shape[-2], descriptors.shape[-1])
    return CorrelationMaps(scores, _grams(sources.flatten(0, 1)).flatten(-2), keypoints.shape[1], size, cell)


def _grams(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "4 n h w"]:
    left, right, above, below = maps[..., :-1], maps[..., 1:], maps[..., :-1, :], maps[..., 1:, :]
    diagonals = _dot(left[..., :-1, :], right[..., 1:, :]) + _dot(right[..., :-1, :], left[..., 1:, :])
    across, down = F.pad(_dot(left, right), (0, 1)), F.pad(_dot(above, below), (0, 0, 0, 1))
    return torch.stack([_dot(maps, maps), 2 * across, 2 * down, 2 * F.pad(diagonals, (0, 1, 0, 1))])


def _dot(one: Float[Tensor, "n c h w"], other: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    return (one * other).sum(dim=1)


def correlate(
    maps: CorrelationMaps, rows: Int[Tensor, " m"], segments: Segments, samples: int
) -> Float[Tensor, "m l k"]:
    """Correlations of the keypoints of `rows` ("b s n" flattened) at the candidates of their `segments`.

    Interpolation and dot product commute: four scalars are interpolated in place of four descriptors. The norm that the
    interpolated descriptor would have is a quadratic form of the four cells' dot products.
    """
    width = maps.size[1] + 2
    start, (nw, ne, sw, se) = _corners(segments, samples, maps)
    area = maps.grams.shape[-1]
    keypoint, source = rows, torch.div(rows, maps.keypoints, rounding_mode="floor")
    dot = _read(maps.scores, _offset(start, keypoint * area), (0, 1, width, width + 1), (nw, ne, sw, se))
    across, down, diagonals = (maps.grams[0].numel() * i for i in (1, 2, 3))
    steps = (0, 1, width, width + 1, across, across + width, down, down + 1, diagonals)
    products = (nw * nw, ne * ne, sw * sw, se * se, nw * ne, sw * se, nw * sw, ne * se, nw * se)
    square = _read(maps.grams, _offset(start, source * area), steps, products)
    return dot * square.clamp(min=EPS**2).rsqrt()


def _corners(
    segments: Segments, samples: int, maps: CorrelationMaps
) -> tuple[Int[Tensor, "m l k"], tuple[Float[Tensor, "m l k"], ...]]:
    """Index of the upper left one of the four cells around each candidate, in a bordered map, and the cells' weights."""
    size = maps.size
    scale, shift = to_cells(size, segments.centre, cell=maps.cell)
    centre = segments.centre * scale + (shift + 1)
    places = _lattice(centre, segments.along * scale, segments.across * scale, samples)
    (left, east), (top, south) = (_cell(place, limit) for place, limit in zip(places, size[::-1], strict=True))
    west, north = 1 - east, 1 - south
    start = torch.add(left, top, alpha=size[1] + 2).long()
    return start, (north * west, north * east, south * west, south * east)


def _cell(place: Float[Tensor, "m l k"], limit: int) -> tuple[Float[Tensor, "m l k"], Float[Tensor, "m l k"]]:
    """The cell at or before each place and how far beyond it the place is; what is off the border is on it."""
    place = place.clamp(0, limit + 1)
    before = place.floor().clamp_(max=limit)
    return before, place - before


def _offset(start: Int[Tensor, "m l k"], offset: Int[Tensor, " m"]) -> Int[Tensor, "m l k"]:
    return start + offset[:, None, None]


def _read(
    table: Tensor, index: Int[Tensor, "m l k"], steps: Sequence[int], weights: Sequence[Tensor]
) -> Float[Tensor, "m l k"]:
    """Weighted sums of the entries `index` + each of `steps` of the flattened `table`; differentiable in the table."""
    read: Tensor = _Read.apply(table.flatten(), index.flatten(), steps, *weights)  # type: ignore[no-untyped-call]
    return read


class _Read(torch.autograd.Function):
    """One table of gradients for all steps, where each read on its own would fill another."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, index: Tensor, steps: Sequence[int], *weights: Tensor
    ) -> Float[Tensor, "m l k"]:
        ctx.save_for_backward(index, *weights)
        ctx.steps, ctx.length = steps, len(table)
        total = torch.zeros_like(weights[0])
        for step, weight in zip(steps, weights, strict=True):
            total.addcmul_(weight, table[step:].index_select(0, index).view_as(weight))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, *weights = ctx.saved_tensors
        to_table = gradient.new_zeros(ctx.length)
        for step, weight in zip(ctx.steps, weights, strict=True):
            to_table[step:].scatter_add_(0, index, (gradient * weight).flatten())
        return to_table, None, None, *(None for _ in weights)
