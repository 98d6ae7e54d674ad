"""Cameras to render with, and other conventions for their intrinsics."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

# Nearer than this (in the scene's unit) nothing is drawn, unless cameras say otherwise.
NEAR = 0.1


@dataclass(frozen=True)
class Cameras:
    """`v` pinhole cameras in each of `b` scenes: OpenCV axes, K in pixels with the centre of the top-left pixel at (0, 0).

    Gaussians whose centre has z <= `near` (one for all, or "b v") are not drawn.
    """

    K: Float[Tensor, "b v 3 3"]
    world_T_cam: Float[Tensor, "b v 4 4"]
    near: Float[Tensor, "b v"] | float = NEAR

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Cameras":
        """The same cameras on `device`, as `dtype`."""
        near = self.near.to(device=device, dtype=dtype) if isinstance(self.near, Tensor) else self.near
        return Cameras(self.K.to(device=device, dtype=dtype), self.world_T_cam.to(device=device, dtype=dtype), near)

    def rows(self, rows: slice) -> "Cameras":
        """The cameras of the scenes `rows`."""
        return self._map(lambda tensor: tensor[rows])

    def views(self, views: slice) -> "Cameras":
        """The cameras `views` of every scene."""
        return self._map(lambda tensor: tensor[:, views])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        near = function(self.near) if isinstance(self.near, Tensor) else self.near
        return replace(self, K=function(self.K), world_T_cam=function(self.world_T_cam), near=near)


def corner_origin(K: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """`K` for libraries that put the top-left pixel's centre at (0.5, 0.5): COLMAP, gsplat."""
    shift = torch.zeros_like(K)
    shift[..., :2, 2] = 0.5
    return K + shift


def centre_origin(K: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """`K` as it is here, from one that puts the top-left pixel's centre at (0.5, 0.5)."""
    return 2 * K - corner_origin(K)


def symmetric(K: Float[Tensor, "*n 3 3"], size: tuple[int, int]) -> Float[Tensor, "*n 3 3"]:
    """`K` with its principal point in the middle of the image and the angles of view between opposite borders kept.

    This is the frustum of DepthSplat's decoder, which ignores the principal point. Without skew.
    """
    made = torch.zeros_like(K)
    made[..., 2, 2] = 1
    for axis, length in enumerate((size[1], size[0])):
        low = (-0.5 - K[..., axis, 2]) / K[..., axis, axis]
        high = (length - 0.5 - K[..., axis, 2]) / K[..., axis, axis]
        made[..., axis, axis] = length / (2 * ((high.atan() - low.atan()) / 2).tan())
        made[..., axis, 2] = (length - 1) / 2
    return made
