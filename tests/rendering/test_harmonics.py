"""Spherical harmonics: orthonormal, in the order and with the signs of the published basis, converted exactly."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.rendering.harmonics import basis, degree_of, to_standard


def directions(count: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)


def test_the_basis_is_orthonormal() -> None:
    """By a quadrature on the sphere that is exact for the products of degree 6."""
    z, weight = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(8))
    phi = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    ring = (1 - z**2).sqrt()[:, None]
    points = torch.stack([ring * phi.cos(), ring * phi.sin(), z[:, None].expand(8, 16)], dim=-1)
    values = basis(points, 3)
    gram = torch.einsum("z,zpi,zpj->ij", weight * 2 * math.pi / 16, values, values)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_known_values_on_the_axes() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    along_x, along_y, along_z = basis(axes, 2)
    c1 = math.sqrt(3 / (4 * math.pi))
    assert along_x[:4].tolist() == pytest.approx([math.sqrt(1 / (4 * math.pi)), 0, 0, -c1])
    assert along_y[:4].tolist() == pytest.approx([math.sqrt(1 / (4 * math.pi)), -c1, 0, 0])
    assert along_z[:4].tolist() == pytest.approx([math.sqrt(1 / (4 * math.pi)), 0, c1, 0])
    assert float(along_z[6]) == pytest.approx(math.sqrt(5 / (4 * math.pi)))
    assert float(along_x[8]) == pytest.approx(math.sqrt(15 / (16 * math.pi)))
    assert float(along_y[8]) == pytest.approx(-math.sqrt(15 / (16 * math.pi)))


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_the_conversion_gives_the_same_colours(degree: int) -> None:
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.randn(7, 3, (degree + 1) ** 2, generator=generator, dtype=torch.float64)
    seen = directions()
    permuted = coefficients @ basis(seen, degree, "e3nn").mT
    torch.testing.assert_close(to_standard(coefficients) @ basis(seen, degree).mT, permuted, rtol=0, atol=1e-12)


def test_numbers_of_coefficients() -> None:
    assert [degree_of(count) for count in (1, 4, 9, 16)] == [0, 1, 2, 3]
    for count in (0, 2, 8, 25):
        with pytest.raises(ValueError, match="expected 1, 4, 9 or 16"):
            degree_of(count)
    with pytest.raises(ValueError, match="degree 3 have no conversion"):
        to_standard(torch.zeros(1, 16))
