"""DELTAS' triangulation: soft matches of the anchor's keypoints and the points that they meet in.

Source: Sinha et al., DELTAS, ECCV 2020; the linear method: Hartley and Zisserman, Multiple View Geometry, section 12.2.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.matching import match, search_segments

# A point further away, in metres along an axis, counts as at infinity.
LIMIT = 1000.0
# What keeps a view without a usable segment from having no weight at all.
LEAST_CONFIDENCE = 1e-3
# Steps to the smallest root: two reach rounding where the matches are good, the third where they contradict each other.
STEPS = 3


@dataclass(frozen=True)
class Triangulated:
    """Matches (pixels) of n keypoints in the s sources, the weight of each of the v views, and the points they meet in.

    Points are in the anchor's frame, metres, and 0 where they are not `defined`: where no source has a usable segment or
    the rays do not meet in a point that is finite.
    """

    matches: Float[Tensor, "b s n 2"]
    usable: Bool[Tensor, "b s n"]
    confidence: Float[Tensor, "b n v"]
    points: Float[Tensor, "b n 3"]
    defined: Bool[Tensor, "b n"]


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
        descriptors: Float[Tensor, "b v c h8 w8"],
        keypoints: Float[Tensor, "b n 2"],
        K: Float[Tensor, "b v 3 3"],
        cam_T_cam0: Float[Tensor, "b s 4 4"],
        depth_range: Float[Tensor, "b 2"],
        size: tuple[int, int],
    ) -> Triangulated:
        """Points of the anchor's (view 0's) `keypoints`, searched over `depth_range` (metres) in images of `size`.

        `descriptors` are normalised, 8 pixels a cell, and may reach beyond the images (which were then filled up).
        """
        segments = search_segments(keypoints, K, cam_T_cam0, depth_range, size)
        matches, best = match(descriptors, keypoints, segments, score=self.score, samples=self.config.samples)
        weights = self._weights(best, segments.usable)
        uv = torch.cat([keypoints[:, None], matches], dim=1)
        points, defined = triangulate(uv, weights, projections(K, cam_T_cam0))
        defined = defined & segments.usable.any(dim=1)
        return Triangulated(matches, segments.usable, weights.mT, points.where(defined[..., None], 0.0), defined)

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
    defined = _defined(X[..., :3] / X[..., 3:])
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


def _defined(points: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
    """False for NaN too: it compares as neither."""
    return (points.abs() <= LIMIT).all(dim=-1) & (points != 0).any(dim=-1)


class _Pencil(NamedTuple):
    """What solves (S - x) y = z for any z, where S is the leading 3x3 of M and x the smallest eigenvalue of M."""

    S: Float[Tensor, "b 3 3 n"]
    adjugate: Float[Tensor, "b 3 3 n"]
    trace: Float[Tensor, "b n"]
    root: Float[Tensor, "b n"]
    determinant: Float[Tensor, "b n"]

    def solve(self, z: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
        """By the adjugate of S - x, which is adj S + x (S - tr S) + x^2."""
        x = self.root[:, None]
        linear = _times(self.S, z) - self.trace[:, None] * z
        return (_times(self.adjugate, z) + x * (linear + x * z)) / self.determinant[:, None]


class _Triangulate(torch.autograd.Function):
    """The smallest eigenvector of A^T A in closed form, in float64 since A^T A squares the condition of A.

    With M = A^T A = [[S, s], [s^T, t]] and its smallest eigenvalue x, the point p solves (S - x) p = -s.
    """

    @staticmethod
    def forward(ctx: Any, uv: Tensor, weights: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        uv_, weights_, P_ = (tensor.to(torch.float64) for tensor in (uv, weights, P))
        M = _normal_matrix(uv_, weights_, P_)
        pencil = _pencil(M)
        point = -pencil.solve(M[:, :3, 3])
        defined = _defined(point.mT)
        ctx.mark_non_differentiable(defined)
        ctx.save_for_backward(uv_, weights_, P_, point, defined, *pencil)
        return point.mT.where(defined[..., None], 0.0).to(uv.dtype), defined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        """Implicit differentiation of M (p, 1) = x (p, 1): the change of p is -(S - x)^-1 (I + p p^T)^-1 [I, -p] dM (p, 1).

        So the loss changes by y^T dM (p, 1) with a 4-vector y, and dM = dA^T A + A^T dA.
        """
        uv, weights, P, point, defined, *pencil = ctx.saved_tensors
        g = _Pencil(*pencil).solve(gradient.mT.to(torch.float64))
        g = g - point * ((point * g).sum(1, keepdim=True) / (1 + point.square().sum(1, keepdim=True)))
        seen = P[..., :3] @ point[:, None] + P[..., 3:]
        moved = P[..., 3:] * (point * g).sum(1)[:, None, None] - P[..., :3] @ g[:, None]
        # Rows of A without their weights, times (p, 1) and times y.
        residual, change = (uv * v[:, :, 2:].mT - v[:, :, :2].mT for v in (seen, moved))
        square = weights.square()[..., None]
        to_uv = square * (change * seen[:, :, 2:].mT + residual * moved[:, :, 2:].mT)
        to_weights = 2 * weights * (residual * change).sum(-1)
        known = defined[:, None]
        return (
            to_uv.where(known[..., None], 0.0).to(gradient.dtype),
            to_weights.where(known, 0.0).to(gradient.dtype),
            None,
        )


def _times(matrix: Float[Tensor, "b 3 3 n"], vector: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
    return (matrix * vector[:, None]).sum(2)


def _normal_matrix(
    uv: Float[Tensor, "b v n 2"], weights: Float[Tensor, "b v n"], P: Float[Tensor, "b v 3 4"]
) -> Float[Tensor, "b 4 4 n"]:
    """A^T A of every point.

    A view adds q^2 P^T [[1, 0, -u], [0, 1, -v], [-u, -v, u^2 + v^2]] P: products of rows of P, which all points share, times
    four numbers of the point.
    """
    rows = P[:, :, :, None, :, None] * P[:, :, None, :, None, :]
    cross = rows + rows.transpose(2, 3)
    shared = torch.stack(
        [(cross[:, :, 0, 0] + cross[:, :, 1, 1]) / 2, -cross[:, :, 0, 2], -cross[:, :, 1, 2], rows[:, :, 2, 2]], 1
    )
    u, v = uv.unbind(-1)
    square = weights.square()
    own = torch.stack([square, square * u, square * v, square * (u * u + v * v)], 1)
    entries = shared.flatten(1, 2).flatten(2).mT @ own.flatten(1, 2)
    return entries.view(len(P), 4, 4, -1)


def _pencil(M: Float[Tensor, "b 4 4 n"]) -> _Pencil:
    """The smallest eigenvalue of M, as the smallest root of its characteristic polynomial, and what else a solution needs."""
    S, s, t = M[:, :3, :3], M[:, :3, 3], M[:, 3, 3]
    adjugate = torch.linalg.cross(S.roll(-1, 1), S.roll(-2, 1), dim=2)
    trace, minors = (matrix.diagonal(dim1=1, dim2=2).sum(-1) for matrix in (S, adjugate))
    determinant = (S[:, 0] * adjugate[:, 0]).sum(1)
    c0, c1, c2 = ((s * vector).sum(1) for vector in (_times(adjugate, s), _times(S, s) - trace[:, None] * s, s))
    root = _smallest_root(trace + t, minors + t * trace - c2, determinant + t * minors + c1, t * determinant - c0)
    return _Pencil(S, adjugate, trace, root, determinant - root * (minors - root * (trace - root)))


def _smallest_root(
    e1: Float[Tensor, "b n"], e2: Float[Tensor, "b n"], e3: Float[Tensor, "b n"], e4: Float[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """The smallest root of x^4 - e1 x^3 + e2 x^2 - e3 x + e4, all of whose roots are real and not negative.

    Laguerre's method from 0: it rises to the smallest root without passing it, with third order.
    """
    x = torch.zeros_like(e4)
    for _ in range(STEPS):
        value = e4 + x * (x * (e2 + x * (x - e1)) - e3)
        slope = x * (2 * e2 + x * (4 * x - 3 * e1)) - e3
        bend = 2 * e2 + x * (12 * x - 6 * e1)
        x = x + 4 * value / ((9 * slope * slope - 12 * value * bend).clamp(min=0).sqrt() - slope)
    return x
