"""A scene as 3-D Gaussians."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """`n` Gaussians in each of `b` scenes: centre, extent, colour by direction and opacity. Lengths in the scene's unit.

    means "b n 3" and covariances "b n 3 3" (symmetric) are in the world frame. harmonics "b n 3 d" are the coefficients of
    real spherical harmonics for red, green and blue, d = (degree + 1)^2 up to degree 3, in the order of 3-D Gaussian
    splatting (d = 1, y, z, x, xy, yz, 2zz-xx-yy, xz, xx-yy, ...); the colour seen is their sum + 0.5, held at 0. opacities are
    in [0, 1]. scales (standard deviations) and rotations (quaternions x, y, z, w, of the Gaussian's axes in the world) are
    what the covariances were made of, for those who need them: export does, rendering does not.
    """

    means: Float[Tensor, "b n 3"]
    covariances: Float[Tensor, "b n 3 3"]
    harmonics: Float[Tensor, "b n 3 d"]
    opacities: Float[Tensor, "b n"]
    scales: Float[Tensor, "b n 3"] | None = None
    rotations: Float[Tensor, "b n 4"] | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Gaussians":
        """The same Gaussians on `device`, as `dtype`."""
        return replace(self, **{k: v.to(device=device, dtype=dtype) for k, v in self._tensors().items()})

    def rows(self, rows: slice) -> "Gaussians":
        """The scenes `rows` of these."""
        return replace(self, **{k: v[rows] for k, v in self._tensors().items()})

    def detach(self) -> "Gaussians":
        """The same Gaussians, cut off from what made them."""
        return replace(self, **{k: v.detach() for k, v in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
