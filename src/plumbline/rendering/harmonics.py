"""Colour by direction: real spherical harmonics to degree 3.

Source: the basis of Kerbl et al., 3D Gaussian Splatting (2023), whose signs are those of Sloan, Stupid Spherical Harmonics
Tricks, appendix A2.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Order = Literal["standard", "e3nn"]
C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
MAX_DEGREE = 3


def degree_of(coefficients: int) -> int:
    """Degree of so many coefficients a channel; ValueError unless 1, 4, 9 or 16."""
    degree = math.isqrt(coefficients) - 1
    if (degree + 1) ** 2 != coefficients or not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"{coefficients} coefficients of spherical harmonics a channel; expected 1, 4, 9 or 16")
    return degree


def basis(directions: Float[Tensor, "*n 3"], degree: int, order: Order = "standard") -> Float[Tensor, "*n d"]:
    """Values of the d = (degree + 1)^2 basis functions in unit `directions`."""
    x, y, z = directions.unbind(-1)
    if order == "e3nn":
        x, y, z = z, x, y
    values = [torch.full_like(x, C0)]
    if degree > 0:
        values += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        values += [_C2[0] * x * y, -_C2[0] * y * z, _C2[1] * (2 * zz - xx - yy), -_C2[0] * x * z, _C2[2] * (xx - yy)]
        if degree > 2:
            values += _third(x, y, z)
    return torch.stack(values, dim=-1)


def _third(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        -_C3[0] * y * (3 * xx - yy),
        _C3[1] * x * y * z,
        -_C3[2] * y * (4 * zz - xx - yy),
        _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
        -_C3[2] * x * (4 * zz - xx - yy),
        _C3[4] * z * (xx - yy),
        -_C3[0] * x * (xx - 3 * yy),
    ]


def to_standard(harmonics: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Coefficients in e3nn's order (degree 0 to 2) as the standard ones of exactly the same colours."""
    degree, half = degree_of(harmonics.shape[-1]), math.sqrt(3) / 2
    if degree > 2:
        raise ValueError("spherical harmonics of degree 3 have no conversion from e3nn's order; at most degree 2 has")
    a = harmonics.unbind(-1)
    values = [a[0]]
    if degree > 0:
        values += [-a[2], -a[3], a[1]]
    if degree > 1:
        values += [-a[5], a[7], half * a[8] - a[6] / 2, -a[4], -half * a[6] - a[8] / 2]
    return torch.stack(values, dim=-1)
