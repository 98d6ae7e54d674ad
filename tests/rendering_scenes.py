"""Scenes of random Gaussians for tests of the rasterisers."""

import importlib.util

import pytest
import torch
from torch import Tensor

from plumbline.rendering import Cameras, Gaussians

SIZE = (21, 30)
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason='numba is not installed: pip install "plumbline[compiled]"'
)
FAST = ["torch", pytest.param("compiled", marks=needs_numba)]
LEAVES = ("means", "covariances", "harmonics", "opacities")


def rotations(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random rotation matrices."""
    q, r = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=dtype))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[..., None, :]
    return q * torch.linalg.det(q)[..., None, None]


def gaussians(
    n: int, *, b: int = 1, degree: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32, grad: bool = True
) -> Gaussians:
    """Gaussians in front of, beside and behind a camera at the origin: small and large, faint and opaque."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    z = 0.5 + 4 * uniform(b, n)
    z[:, ::17] *= -1
    means = torch.stack([(uniform(b, n) - 0.5) * 1.6 * z, (uniform(b, n) - 0.5) * 1.4 * z, z], dim=-1)
    scales = 0.01 + 0.25 * uniform(b, n, 3) ** 3
    axes = rotations((b, n), generator, dtype) * scales[..., None, :]
    harmonics = 0.4 * torch.randn(b, n, 3, (degree + 1) ** 2, generator=generator, dtype=dtype)
    opacities = uniform(b, n)
    opacities[:, ::5] = 0.9995
    opacities[:, ::23] = 0.002
    values = (means, axes @ axes.mT, harmonics, opacities)
    return Gaussians(*(value.requires_grad_(grad) for value in values))


def cameras(*, b: int = 1, v: int = 2, size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float32) -> Cameras:
    """Cameras near the origin that look along z, turned a little, with principal points off the middle."""
    generator = torch.Generator().manual_seed(3)
    K = torch.eye(3, dtype=dtype).repeat(b, v, 1, 1)
    K[..., 0, 0], K[..., 1, 1] = 0.8 * size[1], 0.9 * size[1]
    K[..., 0, 2], K[..., 1, 2] = 0.47 * size[1], 0.55 * size[0]
    angle = 0.1 * torch.randn(b, v, generator=generator, dtype=dtype)
    world_T_cam = torch.eye(4, dtype=dtype).repeat(b, v, 1, 1)
    world_T_cam[..., 0, 0] = world_T_cam[..., 2, 2] = angle.cos()
    world_T_cam[..., 0, 2], world_T_cam[..., 2, 0] = angle.sin(), -angle.sin()
    world_T_cam[..., :3, 3] = 0.1 * torch.randn(b, v, 3, generator=generator, dtype=dtype)
    return Cameras(K, world_T_cam)
