"""DELTAS' matching: where a keypoint may lie in another view, how well each place there correlates, and the soft match.

The anchor is view 0; the other views are its s sources. Pixels are (x, y) with the centre of the top-left pixel at (0, 0).
Gradients flow to the descriptors and to what scores a correlation; keypoints and cameras are data and carry none.
Source: Sinha et al., DELTAS: Depth Estimation by Learning Triangulation And densification of Sparse points, ECCV 2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plumbline.geometry import compose
from plumbline.systems.deltas.front import CELL

# Candidates lie on this many parallel lines, a pixel apart, the middle one on the epipolar line.
LINES = 3
EPS = 1e-12

Score = Callable[[Tensor], Tensor]


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

    def place(self, along: Float[Tensor, "*#n k"], across: Float[Tensor, "*#n k"]) -> Float[Tensor, "*#n k 2"]:
        """Pixels at `along` in [-0.5, 0.5] of the segment's length and `across` pixels beside it."""
        cos, sin = (self.direction[..., i, None] for i in range(2))
        forth = along * self.length[..., None]
        offset = torch.stack([forth * cos - across * sin, forth * sin + across * cos], dim=-1)
        return self.centre[..., None, :] + offset


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
    along, across = _steps(segments, samples)
    grid = segments.place(along.repeat(LINES), (2 * across).repeat_interleave(samples))
    return grid.view(*segments.length.shape, LINES, samples, 2)


def _steps(segments: Segments, samples: int) -> tuple[Float[Tensor, " k"], Float[Tensor, " l"]]:
    """Coordinates of the candidates, each from -0.5 to 0.5: along the segment and over the lines."""
    like = segments.length
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
) -> tuple[Float[Tensor, "b s n 2"], Float[Tensor, "b s n"]]:
    """The readable reference of `match`: sample a descriptor at every candidate, then correlate."""
    places = candidates(segments, samples)
    scores = score(correlate_reference(descriptors, keypoints, places))
    matches = soft_match(scores, segments) * segments.usable[..., None]
    return matches, scores.flatten(-2).amax(dim=-1)


def match(
    descriptors: Float[Tensor, "b v c h w"],
    keypoints: Float[Tensor, "b n 2"],
    segments: Segments,
    *,
    score: Score,
    samples: int = 100,
) -> tuple[Float[Tensor, "b s n 2"], Float[Tensor, "b s n"]]:
    """The soft match of each keypoint in each source, pixels ((0, 0) where unusable), and its best score.

    `descriptors` are normalised maps of the views, 8 pixels a cell, the anchor's first. `score` turns correlations
    into scores element by element, on a vector. All candidates of an unusable segment are the same three places, which are
    read once for its best score. Equal to `match_reference`.
    """
    maps = correlation_maps(descriptors, keypoints)
    usable = segments.usable.flatten()
    rows, others = usable.nonzero()[:, 0], (~usable).nonzero()[:, 0]
    searched, skipped = segments.rows(rows), segments.rows(others)
    read = (
        correlate(maps, rows, candidates(searched, samples).flatten(-3, -2)),
        correlate(maps, others, candidates(skipped, 1).flatten(-3, -2)),
    )
    # In one call, so that a score that normalises by its batch does so by all that was read.
    scores = score(torch.cat([values.flatten() for values in read]))
    found, rest = (part.view_as(values) for part, values in zip(_split(scores, read), read, strict=True))
    matches = soft_match(found.view(-1, LINES, samples), searched)
    best = found.new_zeros(len(usable)).index_copy(0, rows, found.amax(dim=-1)).index_copy(0, others, rest.amax(dim=-1))
    shape = segments.length.shape
    return found.new_zeros(len(usable), 2).index_copy(0, rows, matches).view(*shape, 2), best.view(shape)


def _split(values: Float[Tensor, " p"], parts: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split_with_sizes(values, [part.numel() for part in parts])


def soft_match(scores: Float[Tensor, "*n l k"], segments: Segments) -> Float[Tensor, "*n 2"]:
    """The expected place under the softmax of the scores of all candidates, pixels.

    Across the segment the outer lines count half a pixel although they were read at one pixel: the published weights were
    trained so.
    """
    weights = scores.flatten(-2).softmax(dim=-1).view_as(scores)
    along, across = _steps(segments, scores.shape[-1])
    expected = weights.sum(dim=-2) @ along, weights.sum(dim=-1) @ across
    return segments.place(expected[0][..., None], expected[1][..., None])[..., 0, :]


def cell(pixels: Float[Tensor, "*n 2"], map_size: tuple[int, int]) -> Float[Tensor, "*n 2"]:
    """Fractional (column, row) of a descriptor map that is read at `pixels`.

    Off the true cell, (pixel + 0.5) / 8 - 0.5, by up to half a cell at the far border: the published method normalises
    for corner-aligned sampling and samples otherwise.
    """
    extent = pixels.new_tensor([map_size[1], map_size[0]])
    return (pixels - (CELL / 2 - 0.5)) * (extent / (extent * CELL - (CELL / 2 + 0.5))) - 0.5


def sample_descriptors(maps: Float[Tensor, "n c h w"], pixels: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p c"]:
    """Unit descriptors at `pixels`, bilinear, zero padding; zero vectors entirely outside."""
    size = (int(maps.shape[-2]), int(maps.shape[-1]))
    extent = pixels.new_tensor([size[1], size[0]])
    grid = (2 * cell(pixels, size) + 1) / extent - 1
    sampled = F.grid_sample(maps, grid[:, None], align_corners=False)[:, :, 0]
    return F.normalize(sampled, dim=1, eps=EPS).mT


def correlate_reference(
    descriptors: Float[Tensor, "b v c h w"],
    keypoints: Float[Tensor, "b n 2"],
    places: Float[Tensor, "b s n l k 2"],
) -> Float[Tensor, "b s n l k"]:
    """Dot product of the descriptor at each keypoint of the anchor with that at each of its places in each source."""
    anchors = sample_descriptors(descriptors[:, 0], keypoints)
    sources = sample_descriptors(descriptors[:, 1:].flatten(0, 1), places.flatten(0, 1).flatten(1, 3))
    sampled = sources.view(*places.shape[:-1], -1)
    return torch.einsum("bnc,bsnlkc->bsnlk", anchors, sampled)


@dataclass(frozen=True)
class CorrelationMaps:
    """What correlations and norms of interpolated descriptors are read from; maps have a border of one zero cell.

    `scores` is the correlation of each keypoint (rows "b s n") with each cell of its source; the others are dot products
    of cells of a source (rows "b s") with themselves, with their right and lower neighbours (twice), and the sum of the two
    diagonals of the 2x2 block that starts there (twice). `keypoints` is n, `size` that of a map without its border.
    """

    scores: Float[Tensor, "bsn hw"]
    squares: Float[Tensor, "bs hw"]
    across: Float[Tensor, "bs hw"]
    down: Float[Tensor, "bs hw"]
    diagonals: Float[Tensor, "bs hw"]
    keypoints: int
    size: tuple[int, int]


def correlation_maps(descriptors: Float[Tensor, "b v c h w"], keypoints: Float[Tensor, "b n 2"]) -> CorrelationMaps:
    """Correlate every keypoint with every cell of every source, and every cell with its neighbours."""
    anchors = sample_descriptors(descriptors[:, 0], keypoints)
    maps = F.pad(descriptors[:, 1:], (1, 1, 1, 1))
    right, below = F.pad(maps[..., 1:], (0, 1)), F.pad(maps[..., 1:, :], (0, 0, 0, 1))
    corner = F.pad(right[..., 1:, :], (0, 0, 0, 1))
    return CorrelationMaps(
        scores=(anchors[:, None] @ maps.flatten(-2)).flatten(0, 2),
        squares=_dots(maps, maps),
        across=2 * _dots(maps, right),
        down=2 * _dots(maps, below),
        diagonals=2 * (_dots(maps, corner) + _dots(right, below)),
        keypoints=int(keypoints.shape[1]),
        size=(int(descriptors.shape[-2]), int(descriptors.shape[-1])),
    )


def _dots(one: Float[Tensor, "b s c h w"], other: Float[Tensor, "b s c h w"]) -> Float[Tensor, "bs hw"]:
    return (one * other).sum(dim=2).flatten(0, 1).flatten(1)


def correlate(maps: CorrelationMaps, rows: Int[Tensor, " m"], pixels: Float[Tensor, "m k 2"]) -> Float[Tensor, "m k"]:
    """Correlation of the keypoints of `rows` ("b s n" flattened) with the descriptors at `pixels` of their source.

    Interpolation and dot product commute: four scalars are interpolated in place of four descriptors. The norm that the
    interpolated descriptor would have is a quadratic form in the dot products of the four cells.
    """
    height, width = maps.size
    x, y = (cell(pixels, maps.size) + 1).unbind(-1)
    x, y = x.clamp(0, width + 1), y.clamp(0, height + 1)
    column, row = x.floor().clamp(max=width), y.floor().clamp(max=height)
    fx, fy = x - column, y - row
    start = (row * (width + 2) + column).long()
    offset = (rows[:, None], torch.div(rows, maps.keypoints, rounding_mode="floor")[:, None])
    keypoint, source = ((index * ((height + 2) * (width + 2)) + start).flatten() for index in offset)
    weights = (1 - fx, fx, 1 - fy, fy)
    dot = _bilinear(maps.scores, keypoint, width + 2, weights)
    return dot * _squared_norm(maps, source, weights).clamp(min=EPS**2).rsqrt()


Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def _read(table: Float[Tensor, "r hw"], index: Int[Tensor, " p"], shape: torch.Size) -> Float[Tensor, "m k"]:
    return table.flatten().index_select(0, index).view(shape)


def _bilinear(
    table: Float[Tensor, "r hw"], index: Int[Tensor, " p"], width: int, weights: Weights
) -> Float[Tensor, "m k"]:
    left, right, top, bottom = weights
    corners = [_read(table, index + step, left.shape) for step in (0, 1, width, width + 1)]
    return top * (left * corners[0] + right * corners[1]) + bottom * (left * corners[2] + right * corners[3])


def _squared_norm(maps: CorrelationMaps, index: Int[Tensor, " p"], weights: Weights) -> Float[Tensor, "m k"]:
    """|sum of the weighted four cells|^2. Sums of products alone: no digits cancel where the border takes all weight."""
    left, right, top, bottom = weights
    width = maps.size[1] + 2

    def form(squares: Tensor, products: Tensor, start: Int[Tensor, " p"]) -> Float[Tensor, "m k"]:
        first, second, product = (
            _read(table, index, left.shape)
            for table, index in ((squares, start), (squares, start + 1), (products, start))
        )
        return left * (left * first + right * product) + right * right * second

    upper, lower = form(maps.squares, maps.across, index), form(maps.squares, maps.across, index + width)
    between = form(maps.down, maps.diagonals, index)
    return top * (top * upper + bottom * between) + bottom * bottom * lower
