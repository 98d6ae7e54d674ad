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
    adjugate: Float[Tensor, "b 3 3 n"]
    trace: Float[Tensor, "b 1 n"]
    root: Float[Tensor, "b 1 n"]
    determinant: Float[Tensor, "b 1 n"]

    def solve(self, z: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
        """By the adjugate of S - x, which is adj S + x (S - tr S) + x^2."""
        linear = _times(self.S, z).addcmul_(self.trace, z, value=-1)
        return _combine(_times(self.adjugate, z), linear, z, self)


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
        defined = _defined(point, dim=1)
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
) -> Float[Tensor, "b 6 6 n"]:
    """A^T A of every point, with rows and columns in the order 3 0 1 2 0 1: minors are then products of slices.

    A view adds q^2 P^T [[1, 0, -u], [0, 1, -v], [-u, -v, u^2 + v^2]] P: products of rows of P, which all points share, times
    four numbers of the point.
    """
    columns = torch.cat([P[..., 3:], P[..., :3], P[..., :2]], dim=-1)
    rows = columns[:, :, :, None, :, None] * columns[:, :, None, :, None, :]
    shared = P.new_tensor(_FORMS) @ rows.view(*P.shape[:2], 9, 36)
    u, v = pixels.unbind(2)
    square = weights.square()
    squared_u, squared_v = square * u, square * v
    own = torch.stack([square, squared_u, squared_v, (squared_u * u).addcmul_(squared_v, v)], dim=2)
    return (shared.flatten(1, 2).mT @ own.flatten(1, 2)).view(len(P), 6, 6, -1)


def _least(M: Float[Tensor, "b 6 6 n"]) -> tuple[Float[Tensor, "b 3 n"], _Pencil]:
    """The point p and what solves with S - x.

    The smallest eigenvalue x is the smallest root of the characteristic polynomial of M.
    """
    S, s, t = M[:, 1:4, 1:4], M[:, 1:4, 0], M[:, 0, 0]
    upper, lower = M[:, 2:5], M[:, 3:6]
    adjugate = (upper[:, :, 2:5] * lower[:, :, 3:6]).addcmul_(upper[:, :, 3:6], lower[:, :, 2:5], value=-1)
    trace, minors = (matrix.diagonal(dim1=1, dim2=2).sum(-1) for matrix in (S, adjugate))
    determinant = (S[:, 0] * adjugate[:, 0]).sum(1)
    constant, linear = _times(adjugate, s), _times(S, s).addcmul_(trace[:, None], s, value=-1)
    c0, c1, c2 = ((s * vector).sum(1) for vector in (constant, linear, s))
    e2, e3, e4 = (minors - c2).addcmul_(t, trace), (determinant + c1).addcmul_(t, minors), (t * determinant).sub_(c0)
    root = _smallest_root(trace + t, e2, e3, e4)
    determinant.addcmul_(root, (trace - root).mul_(root).sub_(minors))
    pencil = _Pencil(S, adjugate, trace[:, None], root[:, None], determinant[:, None])
    return _combine(constant, linear, s, pencil).neg_(), pencil


def _combine(constant: Tensor, linear: Tensor, square: Tensor, pencil: _Pencil) -> Float[Tensor, "b 3 n"]:
    """(S - x)^-1 from the coefficients of its adjugate, a polynomial in x."""
    return torch.addcmul(constant, pencil.root, torch.addcmul(linear, pencil.root, square)).div_(pencil.determinant)


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
