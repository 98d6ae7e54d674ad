"""A scene of Gaussians in another frame."""

import torch
from jaxtyping import Float
from torch import Tensor

from plumbline.quaternions import multiply, to_quaternions
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.harmonics import basis, degree_of

# Directions that a turned function is fitted at: more than it has coefficients (16 at degree 3), spread over the sphere.
_DIRECTIONS = 64


def moved(gaussians: Gaussians, b_T_a: Float[Tensor, "b 4 4"]) -> Gaussians:
    """The Gaussians of frame a, in frame b: places, extents, rotations, and colours, which turn with them.

    `b_T_a` is a rotation with a translation. Float64 for world frames that are far from the scene.
    """
    R, t = b_T_a[:, :3, :3], b_T_a[:, :3, 3]
    return Gaussians(
        means=gaussians.means @ R.mT + t[:, None],
        covariances=R[:, None] @ gaussians.covariances @ R.mT[:, None],
        harmonics=turned(gaussians.harmonics, R),
        opacities=gaussians.opacities,
        scales=gaussians.scales,
        rotations=None if gaussians.rotations is None else multiply(to_quaternions(R)[:, None], gaussians.rotations),
    )


def turned(harmonics: Float[Tensor, "b n 3 d"], R: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b n 3 d"]:
    """Coefficients (standard order) of the same colours turned by `R`: what was seen along x is seen along R x.

    Turning keeps a degree's functions among themselves, so a fit at any directions is exact.
    """
    degree = degree_of(harmonics.shape[-1])
    directions = _spread(_DIRECTIONS).to(R)
    # The turned function has at x the value that the old one has at R^T x.
    values = basis(directions @ R, degree)
    fit = torch.linalg.lstsq(basis(directions, degree).expand_as(values), values).solution
    return harmonics @ fit.mT[:, None]


def _spread(count: int) -> Float[Tensor, "n 3"]:
    """Unit directions on a Fibonacci spiral."""
    i = torch.arange(count, dtype=torch.float64)
    z, angle = 1 - (2 * i + 1) / count, i * torch.pi * (3 - 5**0.5)
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)
