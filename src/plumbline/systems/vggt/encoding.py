"""Cameras as nine numbers, and scenes in a unit of their own: what VGGT predicts and is trained on.

A camera's encoding is the translation of `cam_T_world` (3, in the scene's unit), its rotation as a quaternion (4: x, y, z,
w, the scalar last) and the fields of view (2, radians, the vertical one first). The world is the first frame's camera.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.geometry import backproject, invert, transform
from plumbline.quaternions import to_matrices, to_quaternions

FIELDS = 9
TRANSLATION, QUATERNION, FOV = slice(0, 3), slice(3, 7), slice(7, 9)
_SMALLEST_FOV = 1e-4
_SCALE_LIMITS = (1e-6, 1e6)


@dataclass(frozen=True)
class SceneUnits:
    """A scene divided by `scale` (metres): the mean distance of its measured points from the first camera is 1."""

    depth: Float[Tensor, "b s h w"]
    cam_T_cam0: Float[Tensor, "b s 4 4"]
    points_cam0: Float[Tensor, "b s h w 3"]
    scale: Float[Tensor, " b"]


def to_scene_units(
    depth: Float[Tensor, "b s h w"],
    mask: Bool[Tensor, "b s h w"],
    K: Float[Tensor, "b s 3 3"],
    cam_T_world: Float[Tensor, "b s 4 4"],
) -> SceneUnits:
    """The scene in the first camera's frame and in its own unit; values that are not finite become 0.

    A scene without a measured point has the smallest unit, 1e-6.
    """
    cam_T_cam0 = cam_T_world @ invert(cam_T_world[:, :1])
    points = transform(invert(cam_T_cam0), backproject(depth, K))
    points = torch.nan_to_num(points, nan=0.0, posinf=0.0, neginf=0.0)
    distance = points.norm(dim=-1) * mask
    scale = (distance.sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) + 1e-3)).clamp(*_SCALE_LIMITS)
    unit = torch.ones_like(cam_T_cam0)
    unit[..., :3, 3] = scale[:, None, None]
    return SceneUnits(
        depth=torch.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0) / scale[:, None, None, None],
        cam_T_cam0=cam_T_cam0 / unit,
        points_cam0=points / scale[:, None, None, None, None],
        scale=scale,
    )


def encode(
    cam_T_world: Float[Tensor, "*n 4 4"], K: Float[Tensor, "*n 3 3"], size: tuple[int, int]
) -> Float[Tensor, "*n 9"]:
    """Encodings of cameras whose images have `size` (height, width), as if the principal point were in the middle."""
    half = K.new_tensor(size) / 2
    fov = 2 * torch.atan(half / torch.stack([K[..., 1, 1], K[..., 0, 0]], dim=-1))
    return torch.cat([cam_T_world[..., :3, 3], to_quaternions(cam_T_world[..., :3, :3]), fov], dim=-1)


def decode(
    encoding: Float[Tensor, "*n 9"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*n 4 4"], Float[Tensor, "*n 3 3"]]:
    """`cam_T_world` and K of encodings, for images of `size`.

    The quaternion may have any length. The principal point is (width / 2, height / 2), where a top-left pixel's corner, or
    its centre, is (0, 0) as it was for those who encoded. A field of view of 0 counts as 1e-4, so that K is finite.
    """
    half = encoding.new_tensor(size) / 2
    focal = half / torch.tan(encoding[..., FOV].clamp(min=_SMALLEST_FOV) / 2)
    K = torch.zeros(*encoding.shape[:-1], 3, 3, dtype=encoding.dtype, device=encoding.device)
    K[..., 0, 0], K[..., 1, 1] = focal[..., 1], focal[..., 0]
    K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = half[1], half[0], 1.0
    cam_T_world = torch.zeros(*encoding.shape[:-1], 4, 4, dtype=encoding.dtype, device=encoding.device)
    cam_T_world[..., :3, :3] = to_matrices(encoding[..., QUATERNION])
    cam_T_world[..., :3, 3], cam_T_world[..., 3, 3] = encoding[..., TRANSLATION], 1.0
    return cam_T_world, K
