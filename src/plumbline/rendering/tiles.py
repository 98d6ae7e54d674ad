"""The rasteriser in plain torch, on the CPU and on GPUs: tiles of pixels against runs of splats, in matrix products.

The logarithm of a splat's opacity at a pixel is a polynomial of degree 2 in the pixel's coordinates: one product of the
monomials of a tile's pixels with six coefficients gives it for a whole block, and the backward pass sums over pixels by the
transposed product. Blocks of a fixed budget bound the memory, and on a CPU keep them in its cache.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plumbline.rendering.compositing import CENTRE, COLUMNS, CONIC, FEATURES, LOG_OPACITY, Bins, Engine, into_tiles
from plumbline.rendering.compositing import composite as composite_with
from plumbline.rendering.projection import Splats
from plumbline.rendering.rules import ALPHA_MIN, Rules

# Sides of tiles in pixels: small ones waste least on small splats, large ones list large splats seldom.
SIDES = (4, 8, 16, 32)
# Pairs of a tile and a splat up to which smaller tiles are taken; a pair takes about 60 bytes while the list is made.
MOST_PAIRS = 1 << 22
# Splats taken at once by a tile.
RUN = 32
# Pixels x splats of a block: on a CPU what its second-level cache holds, on a GPU enough to fill it.
CPU_BUDGET, GPU_BUDGET = 1 << 19, 1 << 24
# Logarithm of the opacity of what pads a run.
_NOTHING = -1e4


def composite(
    splats: Splats, size: tuple[int, int], rules: Rules, *, pair_budget: int | None = None
) -> Float[Tensor, "b v 5 h w"]:
    """The features of all splats, composited front to back at every pixel; a channel of ones gives alpha."""
    budget = pair_budget or (CPU_BUDGET if splats.z.device.type == "cpu" else GPU_BUDGET)
    engine = Engine(
        _bins,
        functools.partial(_forward, budget=budget),
        functools.partial(_backward, budget=budget),
    )
    return composite_with(splats, size, rules, engine)


def _bins(z: Float[Tensor, " n"], drawn: Bool[Tensor, " n"], box: Int[Tensor, "n 4"], size: tuple[int, int]) -> Bins:
    spans = (box[:, 2:] - box[:, :2])[drawn].to(torch.float32)
    sides = (side for side in SIDES if float((spans / side + 1).prod(dim=1).sum()) <= MOST_PAIRS)
    return into_tiles(z, drawn, box, size, tile=next(sides, SIDES[-1]))


def _forward(
    packed: Float[Tensor, "n 11"], bins: Bins, size: tuple[int, int], rules: Rules, *, budget: int
) -> Float[Tensor, "5 h w"]:
    picture = packed.new_zeros(len(bins.starts) - 1, bins.tile**2, 5)
    work = _Work.of(packed, bins, rules)
    for tiles in work.groups(budget):
        through = packed.new_ones(len(tiles), bins.tile**2, 1)
        for active, run in work.runs(tiles, through):
            seen = work.see(run, through[active])
            picture[tiles[active]] += seen.weights @ run.rows[..., FEATURES]
            through[active] = seen.left
    return _to_picture(picture, size, bins)


def _backward(
    packed: Float[Tensor, "n 11"],
    bins: Bins,
    picture: Float[Tensor, "5 h w"],
    gradient: Float[Tensor, "5 h w"],
    rules: Rules,
    *,
    budget: int,
) -> Float[Tensor, "n 11"]:
    work = _Work.of(packed, bins, rules)
    found = packed.new_zeros(len(packed) + 1, COLUMNS)
    given = _to_tiles(gradient, bins)
    # What all splats of a pixel contribute to the objective; less what those up to one do, it is what that one hides.
    behind = _to_tiles((gradient * picture).sum(0, keepdim=True), bins)
    for tiles in work.groups(budget):
        through, rest = packed.new_ones(len(tiles), bins.tile**2, 1), behind[tiles]
        for active, run in work.runs(tiles, through):
            seen, own = work.see(run, through[active]), given[tiles[active]]
            worth = own @ run.rows[..., FEATURES].mT
            gained = seen.weights * worth
            hidden = rest[active] - gained.cumsum(-1)
            slope = work.slope(seen, worth, gained, hidden)
            moments = torch.bmm(work.monomials.mT.expand(len(slope), -1, -1), slope)
            _accumulate(found, run.splats, work.gradients(run, moments, own.mT @ seen.weights))
            through[active], rest[active] = seen.left, hidden[..., -1:]
    return found[:-1]


@dataclass(frozen=True)
class _Run:
    """The next splats of some tiles: their indices (the last row of the table where a tile has no more), their rows, where
    they are from the middle of the tile, and the coefficients of their polynomials."""

    splats: Int[Tensor, "t k"]
    rows: Float[Tensor, "t k 11"]
    offsets: Float[Tensor, "t k 2"]
    coefficients: Float[Tensor, "t k 6"]


@dataclass(frozen=True)
class _Seen:
    """A run at the pixels of its tiles: opacity before and after the cap, what is left before and after each, its weight."""

    raw: Float[Tensor, "t p k"]
    alpha: Float[Tensor, "t p k"]
    before: Float[Tensor, "t p k"]
    weights: Float[Tensor, "t p k"]
    kept: Tensor | None
    left: Float[Tensor, "t p 1"]


@dataclass(frozen=True)
class _Work:
    """What blocks are made from: packed splats with one of no opacity below them, and the pixels of a tile."""

    table: Float[Tensor, "n_and_one 11"]
    bins: Bins
    rules: Rules
    monomials: Float[Tensor, "p 6"]
    middles: Float[Tensor, "tiles 2"]

    @classmethod
    def of(cls, packed: Float[Tensor, "n 11"], bins: Bins, rules: Rules) -> "_Work":
        """Ready for the splats `packed`. Pixels are counted from the middle of their tile, where rounding is least."""
        nothing = packed.new_zeros(1, COLUMNS)
        nothing[0, LOG_OPACITY] = _NOTHING
        middle = (bins.tile - 1) / 2
        steps = torch.arange(bins.tile, dtype=packed.dtype, device=packed.device) - middle
        y, x = (each.flatten() for each in torch.meshgrid(steps, steps, indexing="ij"))
        numbers = torch.arange(len(bins.starts) - 1, device=packed.device)
        corners = torch.stack([numbers % bins.columns, numbers // bins.columns], dim=-1) * bins.tile
        monomials = torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)], dim=-1)
        return cls(torch.cat([packed, nothing]), bins, rules, monomials, corners.to(packed.dtype) + middle)

    def groups(self, budget: int) -> Iterator[Int[Tensor, " t"]]:
        """Tiles that have splats, those with most first, in groups whose runs fit the budget."""
        counts = self.bins.starts.diff()
        order = counts.argsort(descending=True, stable=True)
        order = order[: int((counts > 0).sum())]
        # An empty tensor would be split into one group of no tiles.
        yield from () if len(order) == 0 else torch.split(order, max(1, budget // (RUN * self.bins.tile**2)))

    def runs(self, tiles: Int[Tensor, " t"], through: Float[Tensor, "t p 1"]) -> Iterator[tuple[Tensor, _Run]]:
        """Run after run of a group's tiles, with the positions of those that still have splats and pixels to see them."""
        starts, ends = self.bins.starts[tiles], self.bins.starts[tiles + 1]
        for first in range(0, int((ends - starts).max()), RUN):
            open_ = (starts + first < ends) & (through.amax(dim=(1, 2)) > 0)
            active = open_.nonzero()[:, 0]
            if len(active) == 0:
                return
            length = min(RUN, int((ends - starts)[active].max()) - first)
            yield active, self._run(tiles[active], starts[active] + first, ends[active], length)

    def _run(self, tiles: Tensor, starts: Tensor, ends: Tensor, length: int) -> _Run:
        position = starts[:, None] + torch.arange(length, device=starts.device)
        last = len(self.bins.splats) - 1
        splats = self.bins.splats[position.clamp(max=last)].masked_fill(position >= ends[:, None], len(self.table) - 1)
        rows = self.table.index_select(0, splats.flatten()).reshape(*splats.shape, COLUMNS)
        offsets = rows[..., CENTRE] - self.middles[tiles][:, None]
        x, y = offsets.unbind(-1)
        xx, xy, yy = rows[..., CONIC].unbind(-1)
        linear_x, linear_y = xx * x + xy * y, xy * x + yy * y
        constant = rows[..., LOG_OPACITY] - (x * linear_x + y * linear_y) / 2
        coefficients = torch.stack([xx / -2, -xy, yy / -2, linear_x, linear_y, constant], dim=-1)
        return _Run(splats, rows, offsets, coefficients)

    def see(self, run: _Run, through: Float[Tensor, "t p 1"]) -> _Seen:
        """A run at its tiles' pixels, of whose background `through` is still seen."""
        raw = torch.bmm(self.monomials.expand(len(through), -1, -1), run.coefficients.mT).exp_()
        torch.threshold_(raw, _below(ALPHA_MIN, raw.dtype), 0.0)
        alpha = raw.clamp(max=self.rules.alpha_max)
        product = 1 - alpha
        product[..., :1] *= through
        after = product.cumprod(-1)
        before = torch.cat([through, after[..., :-1]], dim=-1)
        weights, left = alpha * before, after[..., -1:]
        kept = None
        if left.amin() < self.rules.stop:
            kept = (after >= self.rules.stop).to(weights.dtype)
            weights *= kept
            left = torch.threshold(left, _below(self.rules.stop, left.dtype), 0.0)
        return _Seen(raw, alpha, before, weights, kept, left)

    def slope(self, seen: _Seen, worth: Tensor, gained: Tensor, hidden: Tensor) -> Float[Tensor, "t p k"]:
        """Gradient by the logarithm of the opacity, before the cap, of each splat at each pixel."""
        if seen.raw.amax() <= self.rules.alpha_max:
            slope = gained - hidden * seen.alpha / (1 - seen.alpha)
        else:
            slope = seen.raw * (seen.before * worth - hidden / (1 - seen.alpha))
            if not self.rules.gradient_at_cap:
                slope *= seen.raw <= self.rules.alpha_max
        return slope if seen.kept is None else slope * seen.kept

    def gradients(
        self, run: _Run, moments: Float[Tensor, "t 6 k"], features: Float[Tensor, "t 5 k"]
    ) -> Float[Tensor, "t k 11"]:
        """By the packed columns, from the slopes' moments in the pixels' monomials."""
        m_xx, m_xy, m_yy, m_x, m_y, m = moments.unbind(1)
        xx, xy, yy = run.coefficients[..., :3].unbind(-1)
        x, y = run.offsets.unbind(-1)
        # About the splat's centre.
        c_x, c_y = m_x - x * m, m_y - y * m
        c_xx, c_yy = m_xx - x * (m_x + c_x), m_yy - y * (m_y + c_y)
        c_xy = m_xy - x * m_y - y * c_x
        by_x, by_y = -2 * xx * c_x - xy * c_y, -xy * c_x - 2 * yy * c_y
        return torch.stack([by_x, by_y, c_xx / -2, -c_xy, c_yy / -2, m, *features.unbind(1)], dim=-1)


def _accumulate(found: Float[Tensor, "m 11"], splats: Int[Tensor, "t k"], gradients: Float[Tensor, "t k 11"]) -> None:
    """Add each gradient to its splat's, in an order that is the same every time."""
    index, rows = splats.flatten(), gradients.flatten(0, 1)
    if found.device.type != "cpu":
        # index_add_ on a GPU adds in any order, unless no index occurs twice.
        index, order = index.sort(stable=True)
        index, lengths = torch.unique_consecutive(index, return_counts=True)
        rows = torch.segment_reduce(rows[order], "sum", lengths=lengths, axis=0, unsafe=True)
    found.index_add_(0, index, rows)


@functools.cache
def _below(value: float, dtype: torch.dtype) -> float:
    """The next smaller number of that precision: `threshold` drops what is not above, the rules what is below."""
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(0.0, dtype=dtype)))


def _to_tiles(picture: Float[Tensor, "c h w"], bins: Bins) -> Float[Tensor, "tiles p c"]:
    """Pixels by tile, 0 where tiles stand out over the picture."""
    rows, side = (len(bins.starts) - 1) // bins.columns, bins.tile
    beyond = (0, bins.columns * side - picture.shape[2], 0, rows * side - picture.shape[1])
    padded = torch.nn.functional.pad(picture, beyond)
    split = padded.reshape(-1, rows, side, bins.columns, side)
    return split.permute(1, 3, 2, 4, 0).flatten(0, 1).flatten(1, 2).contiguous()


def _to_picture(tiles: Float[Tensor, "tiles p c"], size: tuple[int, int], bins: Bins) -> Float[Tensor, "c h w"]:
    split = tiles.reshape(-1, bins.columns, bins.tile, bins.tile, tiles.shape[-1])
    return split.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]
