"""Cameras as nine numbers, and scenes in a unit of their own: what VGGT predicts and is trained on.

A camera's encoding is the translation of `cam_T_world` (3, in the scene's unit), its rotation as a quaternion (4: x, y, z,
w, the scalar last) and the fields of view (2, radians, the vertical one first). The world is the first frame's camera.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plumbline.geometry import backproject, invert, transform

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
    return torch.cat([cam_T_world[..., :3, 3], quaternion(cam_T_world[..., :3, :3]), fov], dim=-1)


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
    cam_T_world[..., :3, :3] = rotation(encoding[..., QUATERNION])
    cam_T_world[..., :3, 3], cam_T_world[..., 3, 3] = encoding[..., TRANSLATION], 1.0
    return cam_T_world, K


def quaternion(R: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 4"]:
    """Unit quaternions (x, y, z, w) with w >= 0 of rotations.

    Four formulas differ in which component they divide by; the largest is taken, so that none is ill-conditioned.
    """
    m = [[R[..., i, j] for j in range(3)] for i in range(3)]
    x, y, z = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    squares = torch.stack(
        [
            1 + m[0][0] - m[1][1] - m[2][2],
            1 - m[0][0] + m[1][1] - m[2][2],
            1 - m[0][0] - m[1][1] + m[2][2],
            1 + m[0][0] + m[1][1] + m[2][2],
        ],
        dim=-1,
    )
    rows = (
        squares[..., 0],
        xy,
        xz,
        x,
        xy,
        squares[..., 1],
        yz,
        y,
        xz,
        yz,
        squares[..., 2],
        z,
        x,
        y,
        z,
        squares[..., 3],
    )
    candidates = torch.unflatten(torch.stack(rows, dim=-1), -1, (4, 4))
    best = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    chosen = torch.gather(candidates, -2, best)[..., 0, :]
    chosen = torch.nn.functional.normalize(chosen, dim=-1)
    return torch.where(chosen[..., 3:] < 0, -chosen, chosen)


def rotation(q: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3 3"]:
    """Rotations of quaternions (x, y, z, w) of any length but 0 (which gives the identity)."""
    x, y, z, w = q.unbind(-1)
    two = 2 / (q * q).sum(dim=-1).clamp(min=torch.finfo(q.dtype).tiny)
    rows = (
        1 - two * (y * y + z * z),
        two * (x * y - z * w),
        two * (x * z + y * w),
        two * (x * y + z * w),
        1 - two * (x * x + z * z),
        two * (y * z - x * w),
        two * (x * z - y * w),
        two * (y * z + x * w),
        1 - two * (x * x + y * y),
    )
    return torch.unflatten(torch.stack(rows, dim=-1), -1, (3, 3))
