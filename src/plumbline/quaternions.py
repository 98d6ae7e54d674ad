"""Rotations as quaternions (x, y, z, w), the scalar last: there, back and one after another; differentiable and batched."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def to_matrices(q: Float[Tensor, "*n 4"], *, eps: float = 0.0) -> Float[Tensor, "*n 3 3"]:
    """Rotations of quaternions of any length but 0, which gives the identity.

    With `eps`, those whose squared length is not far above it are drawn to the identity: gradients stay small there.
    """
    x, y, z, w = q.unbind(-1)
    two = 2 / ((q * q).sum(dim=-1) + eps).clamp(min=torch.finfo(q.dtype).tiny)
    rows = (
        (1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w)),
        (two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w)),
        (two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def to_quaternions(R: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 4"]:
    """Unit quaternions with w >= 0 of rotations.

    Four formulas differ in which component they divide by; the largest is taken, so that none is ill-conditioned.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in R.unbind(-2))
    rows = (
        (1 + xx - yy - zz, xy + yx, xz + zx, zy - yz),
        (xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx),
        (xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy),
        (zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz),
    )
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    chosen = torch.gather(candidates, -2, best.expand(*R.shape[:-2], 1, 4))[..., 0, :]
    chosen = F.normalize(chosen, dim=-1)
    return torch.where(chosen[..., 3:] < 0, -chosen, chosen)


def multiply(a: Float[Tensor, "*#n 4"], b: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*#n 4"]:
    """Quaternions of the rotation `b` followed by `a`."""
    (ax, ay, az, aw), (bx, by, bz, bw) = a.unbind(-1), b.unbind(-1)
    parts = (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )
    return torch.stack(parts, dim=-1)
