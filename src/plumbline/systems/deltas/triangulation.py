"""DELTAS' triangulation: soft matches of the anchor's keypoints and the points that they meet in.

Source: Sinha et al., DELTAS, ECCV 2020; the linear method: Hartley and Zisserman, Multiple View Geometry, section 12.2.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.matching import Searched, Segments, search, search_segments

# A point further away, in metres along an axis, counts as at infinity.
LIMIT = 1000.0
# What keeps a view without a usable segment from having no weight at all.
LEAST_CONFIDENCE = 1e-3
# What a determinant loses to rounding, as a share of the cube of the trace, with a margin of a hundred.
ROUNDING = 1e-13
# A pixel (u, v) of weight q adds to A^T A, between the three rows of P, these times q^2, q^2 u, q^2 v and q^2 (u^2 + v^2).
_FORMS = (
    (1, 0, 0, 0, 1, 0, 0, 0, 0),
    (0, 0, -1, 0, 0, 0, -1, 0, 0),
    (0, 0, 0, 0, 0, -1, 0, -1, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 1),
)


@dataclass(frozen=True)
class Triangulated:
    """Matches (pixels) of n keypoints in the s sources, the weight of each of the v views, and the points they meet in.

    Points are in the anchor's frame, metres, and 0 where they are not `defined`: where no source has a usable segment or
    the rays do not meet in a point that is finite. `segments` and `search` say where matches were looked for, and what
    every candidate scored.
    """

    matches: Float[Tensor, "b s n 2"]
    usable: Bool[Tensor, "b s n"]
    confidence: Float[Tensor, "b n v"]
    points: Float[Tensor, "b n 3"]
    defined: Bool[Tensor, "b n"]
    segments: Segments
    search: Searched


class Triangulation(nn.Module):
    """Match keypoints along their epipolar segments and triangulate them; 14 parameters, of which 2 are used."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.bn_match_convD = nn.BatchNorm2d(1)
        nn.init.constant_(self.bn_match_convD.weight, config.match_gain)
        # The published checkpoint holds a confidence head that is never run.
        self.convD_confa = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
        self.bnconvD_confa = nn.BatchNorm2d(1).requires_grad_(False)

    def forward(
        self,
        descriptors: Float[Tensor, "b v c _ _"],
        keypoints: Float[Tensor, "b n 2"],
        K: Float[Tensor, "b v 3 3"],
        cam_T_cam0: Float[Tensor, "b s 4 4"],
        depth_range: Float[Tensor, "b 2"],
        size: tuple[int, int],
    ) -> Triangulated:
        """Points of the anchor's (view 0's) `keypoints`, searched over `depth_range` (metres) in images of `size`.

        `descriptors` are normalised, `descriptor_cell` pixels a cell, and may reach beyond the images (then filled up).
        """
        segments = search_segments(keypoints, K, cam_T_cam0, depth_range, size)
        options = {"samples": self.config.samples, "cell": self.config.descriptor_cell}
        found = search(descriptors, keypoints, segments, score=self.score, **options)
        weights = self._weights(found.best, segments.usable)
        uv = torch.cat([keypoints[:, None], found.matches], dim=1)
        points, defined = triangulate(uv, weights, projections(K, cam_T_cam0))
        defined = defined & segments.usable.any(dim=1)
        points = points.where(defined[..., None], 0.0)
        return Triangulated(found.matches, segments.usable, weights.mT, points, defined, segments, found)

    def score(self, correlations: Tensor) -> Tensor:
        """Scores of correlations of any shape."""
        normalised: Tensor = self.bn_match_convD(correlations.reshape(1, 1, 1, -1))
        return normalised.relu().view(correlations.shape)

    def _weights(self, best: Float[Tensor, "b s n"], usable: Bool[Tensor, "b s n"]) -> Float[Tensor, "b v n"]:
        """How much each view counts, the anchor (1) first."""
        confidence = best.sigmoid() if self.config.matching_confidence else torch.ones_like(best)
        confidence = confidence * (usable.to(best.dtype) + LEAST_CONFIDENCE)
        return torch.cat([torch.ones_like(confidence[:, :1]), confidence], dim=1)


def projections(K: Float[Tensor, "b v 3 3"], cam_T_cam0: Float[Tensor, "b s 4 4"]) -> Float[Tensor, "b v 3 4"]:
    """Matrices that take points of the anchor's frame to homogeneous pixels of each view, the anchor's K [I | 0] first."""
    anchor = torch.eye(4, dtype=K.dtype, device=K.device).expand_as(cam_T_cam0[:, :1])
    return K @ torch.cat([anchor, cam_T_cam0], dim=1)[..., :3, :]


def triangulate_svd(
    uv: Float[Tensor, "b v n 2"], weights: Float[Tensor, "b v n"], P: Float[Tensor, "b v 3 4"]
) -> tuple[Float[Tensor, "b n 3"], Bool[Tensor, "b n"]]:
    """The readable reference of `triangulate`: the right singular vector of the smallest singular value.

    Its gradient is no number where singular values coincide.
    """
    equations = uv[..., None] * P[:, :, None, 2:] - P[:, :, None, :2]
    A = (weights[..., None, None] * equations).transpose(1, 2).flatten(2, 3)
    X = torch.linalg.svd(A, full_matrices=False).Vh[..., -1, :]
    defined = _defined(X[..., :3] / X[..., 3:], dim=-1)
    return X[..., :3].where(defined[..., None], 0.0) / X[..., 3:].where(defined[..., None], 1.0), defined


def triangulate(
    uv: Float[Tensor, "b v n 2"], weights: Float[Tensor, "b v n"], P: Float[Tensor, "b v 3 4"]
) -> tuple[Float[Tensor, "b n 3"], Bool[Tensor, "b n"]]:
    """Points seen at pixels `uv` of the views with projections `P`, and whether they are defined; 0 where not.

    Minimises |A X| over |X| = 1, where each view gives the rows q (u P3 - P1) and q (v P3 - P2) with its weight q; the point
    is X[:3] / X[3]. Undefined: not finite, further than 1000 along an axis, or the first camera's centre itself (all cameras
    in one place). Differentiable in `uv` and `weights`, with zero gradients where undefined. Equal to `triangulate_svd`.
    """
    points, defined = _Triangulate.apply(uv, weights, P)  # type: ignore[no-untyped-call]
    return points, defined


def _defined(points: Tensor, *, dim: int) -> Tensor:
    """Of points with x, y and z along `dim`; False for NaN too, which compares as neither."""
    furthest = points.abs().amax(dim)
    return (furthest <= LIMIT) & (furthest > 0)


class _Pencil(NamedTuple):
    """What solves (S - x) y = z for any z, where S is the leading 3x3 of M and x the smallest eigenvalue of M."""

    S: Float[Tensor, "b 3 3 n"]
    alpha: Float[Tensor, "b 1 n"]
    beta: Float[Tensor, "b 1 n"]
    determinant: Float[Tensor, "b 1 n"]

    def solve(self, z: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
        """By the adjugate of S - x, which is S^2 + alpha S + beta (Cayley and Hamilton)."""
        once = _times(self.S, z)
        return self.combine(_times(self.S, once), once, z)

    def combine(self, twice: Tensor, once: Tensor, z: Tensor) -> Float[Tensor, "b 3 n"]:
        """As `solve`, given S^2 z and S z; overwrites S^2 z."""
        return twice.addcmul_(self.alpha, once).addcmul_(self.beta, z).div_(self.determinant)


class _Triangulate(torch.autograd.Function):
    """The smallest eigenvector of A^T A in closed form, in float64 since A^T A squares the condition of A.

    With M = A^T A = [[S, s], [s^T, t]] and its smallest eigenvalue x, the point p solves (S - x) p = -s.
    """

    @staticmethod
    def forward(ctx: Any, uv: Tensor, weights: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        # All that is a point's own lies along the last axis.
        pixels = uv.mT.to(torch.float64, memory_format=torch.contiguous_format)
        wide = pixels, weights.to(torch.float64), P.to(torch.float64)
        point, pencil = _least(_normal_matrix(*wide))
        # At infinity point and determinant vanish together: what is left of either is rounding.
        defined = _defined(point, dim=1) & (pencil.determinant > ROUNDING * pencil.alpha.abs() ** 3)[:, 0]
        ctx.mark_non_differentiable(defined)
        ctx.save_for_backward(*wide, point, defined, *pencil)
        return point.where(defined[:, None], 0.0).to(uv.dtype).mT, defined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        """Implicit differentiation of M (p, 1) = x (p, 1): the change of p is -(S - x)^-1 (I + p p^T)^-1 [I, -p] dM (p, 1).

        So the loss changes by y^T dM (p, 1) with a 4-vector y, and dM = dA^T A + A^T dA.
        """
        pixels, weights, P, point, defined, *pencil = ctx.saved_tensors
        g = _Pencil(*pencil).solve(gradient.mT.to(torch.float64, memory_format=torch.contiguous_format))
        onto = (point * g).sum(1, keepdim=True).div_(point.square().sum(1, keepdim=True).add_(1))
        # (p, 1) and y = (p (p . g) / (1 + p^2) - g, (p . g) / (1 + p^2)), as the views project them.
        seen = P[..., :3] @ point[:, None] + P[..., 3:]
        moved = P[..., :3] @ torch.addcmul(-g, point, onto)[:, None] + P[..., 3:] * onto[:, None]
        # Rows of A, without their weights, times (p, 1) and times y.
        residual, change = ((pixels * v[:, :, 2:]).sub_(v[:, :, :2]) for v in (seen, moved))
        to_weights = (residual * change).sum(2).mul_(weights).mul_(2)
        to_pixels = change.mul_(seen[:, :, 2:]).addcmul_(residual, moved[:, :, 2:]).mul_(weights.square()[:, :, None])
        known = defined[:, None]
        return (
            to_pixels.where(known[:, None], 0.0).to(gradient.dtype).mT,
            to_weights.where(known, 0.0).to(gradient.dtype),
            None,
        )


def _times(matrix: Float[Tensor, "b 3 3 n"], vector: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
    return (matrix * vector[:, None]).sum(2)


def _normal_matrix(
    pixels: Float[Tensor, "b v 2 n"], weights: Float[Tensor, "b v n"], P: Float[Tensor, "b v 3 4"]
) -> Float[Tensor, "b 4 4 n"]:
    """A^T A of every point.

    A view adds q^2 P^T [[1, 0, -u], [0, 1, -v], [-u, -v, u^2 + v^2]] P: products of rows of P, which all points share, times
    four numbers of the point.
    """
    rows = P[:, :, :, None, :, None] * P[:, :, None, :, None, :]
    shared = P.new_tensor(_FORMS) @ rows.view(*P.shape[:2], 9, 16)
    u, v = pixels.unbind(2)
    square = weights.square()
    squared_u, squared_v = square * u, square * v
    own = torch.stack([square, squared_u, squared_v, (squared_u * u).addcmul_(squared_v, v)], dim=2)
    return (shared.flatten(1, 2).mT @ own.flatten(1, 2)).view(len(P), 4, 4, -1)


def _least(M: Float[Tensor, "b 4 4 n"]) -> tuple[Float[Tensor, "b 3 n"], _Pencil]:
    """The point p and what solves with S - x.

    The smallest eigenvalue x is the smallest root of the characteristic polynomial of M, whose coefficients follow from those
    of S (i1, i2, i3) and from s^T S^k s.
    """
    S, s, t = M[:, :3, :3], M[:, :3, 3], M[:, 3, 3]
    once = _times(S, s)
    twice = _times(S, once)
    b0, b1, b2, b3 = ((a * b).sum(1) for a, b in ((s, s), (s, once), (once, once), (once, twice)))
    i1 = S.diagonal(dim1=1, dim2=2).sum(-1)
    i2 = (i1 * i1).sub_(S.square().sum((1, 2))).mul_(0.5)
    c1, c0 = torch.addcmul(b1, i1, b0, value=-1), torch.addcmul(b2, i1, b1, value=-1).addcmul_(i2, b0)
    # s^T times S's own equation, S^3 - i1 S^2 + i2 S - i3 = 0, times s: no number where s = 0, without any baseline.
    i3 = b3.addcmul_(i1, b2, value=-1).addcmul_(i2, b1).div_(b0)
    e2, e3, e4 = (i2 - b0).addcmul_(t, i1), (i3 + c1).addcmul_(t, i2), (t * i3).sub_(c0)
    x = _smallest_root(i1 + t, e2, e3, e4)
    alpha = x - i1
    beta = torch.addcmul(i2, x, alpha)
    pencil = _Pencil(S, alpha[:, None], beta[:, None], i3.addcmul_(x, beta, value=-1)[:, None])
    return pencil.combine(twice, once, s).neg_(), pencil


def _smallest_root(
    e1: Float[Tensor, "b n"], e2: Float[Tensor, "b n"], e3: Float[Tensor, "b n"], e4: Float[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """The smallest root of x^4 - e1 x^3 + e2 x^2 - e3 x + e4, all of whose roots are real and not negative.

    Two steps of Laguerre's method from 0 and one of Newton's: both rise to the smallest root without passing it. Two reach
    rounding where the matches are good, the third is for those that contradict each other.
    """
    minus_e3 = -e3
    x = _laguerre(e4, minus_e3, e2)
    value, slope, half_bend = _quartic(x, e1, e2, minus_e3, e4)
    x += _laguerre(value, slope, half_bend)
    value, slope, _ = _quartic(x, e1, e2, minus_e3, e4)
    return x.addcdiv_(value, slope, value=-1)


def _quartic(x: Tensor, e1: Tensor, e2: Tensor, minus_e3: Tensor, e4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, derivative and half the second derivative at `x`, by Horner's scheme."""
    b3 = x - e1
    b2 = torch.addcmul(e2, x, b3)
    b1 = torch.addcmul(minus_e3, x, b2)
    c2 = b3.add_(x)
    c1 = b2.addcmul_(x, c2)
    value = torch.addcmul(e4, x, b1)
    return value, b1.addcmul_(x, c1), torch.addcmul(c1, x, c2 + x)


def _laguerre(value: Tensor, slope: Tensor, half_bend: Tensor) -> Tensor:
    """How far Laguerre's method goes up, from where a quartic is what is given."""
    squared = slope.square().addcmul_(value, half_bend, value=-8 / 3)
    return value.div(squared.clamp_(min=0).sqrt_().sub_(slope, alpha=1 / 3)).mul_(4 / 3)
