"""The few geometric functions that stages without torch need, in numpy; `plumbline.geometry` is the torch twin.

Shapes: points (..., 3), pixels (..., 2) as (u, v) with the centre of the top-left pixel at (0, 0), K (3, 3), `a_T_b` (4, 4).
Depth is z. See Hartley and Zisserman, Multiple View Geometry, ch. 6.
"""

import numpy as np
from jaxtyping import Float, Shaped


def pixel_grid(size: tuple[int, int]) -> Float[np.ndarray, "h w 2"]:
    """Pixel coordinates (u, v) of every pixel of an image of `size` (height, width), float64."""
    v, u = np.meshgrid(np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64), indexing="ij")
    return np.stack([u, v], axis=-1)


def backproject(depth: Shaped[np.ndarray, "h w"], K: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "h w 3"]:
    """Points in the camera frame of a depth map (z), float64; a depth of 0 gives the origin."""
    height, width = depth.shape
    z = np.asarray(depth, np.float64)
    y = (np.arange(height)[:, None] - K[1, 2]) / K[1, 1]
    x = (np.arange(width)[None, :] - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x * z, y * z, z], axis=-1)


def transform(a_T_b: Float[np.ndarray, "4 4"], points_b: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Points given in frame b, in frame a."""
    return points_b @ a_T_b[:3, :3].T + a_T_b[:3, 3]


def project(
    points: Float[np.ndarray, "*n 3"], K: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "*n 2"], Float[np.ndarray, "*n"]]:
    """Pixels (u, v) and z of points in the camera frame. Where z <= 0 a pixel has no meaning and is NaN."""
    z = points[..., 2]
    safe = np.where(z > 0, z, np.nan)
    x, y = points[..., 0] / safe, points[..., 1] / safe
    u = K[0, 0] * x + K[0, 1] * y + K[0, 2]
    v = K[1, 1] * y + K[1, 2]
    return np.stack([u, v], axis=-1), z


def invert(a_T_b: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n 4 4"]:
    """`b_T_a` of rigid transforms `a_T_b`: exact for rotations, no general matrix inverse."""
    rotation = np.swapaxes(a_T_b[..., :3, :3], -1, -2)
    b_T_a = np.zeros_like(a_T_b)
    b_T_a[..., :3, :3] = rotation
    b_T_a[..., :3, 3] = -(rotation @ a_T_b[..., :3, 3:])[..., 0]
    b_T_a[..., 3, 3] = 1
    return b_T_a


def rotation_angle(R: Float[np.ndarray, "*n 3 3"]) -> Float[np.ndarray, "*n"]:
    """Angle of rotation in radians, in [0, pi]; accurate near 0, where arccos of the trace is not."""
    skew = np.stack([R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], axis=-1)
    return np.asarray(np.arctan2(np.linalg.norm(skew, axis=-1), np.trace(R, axis1=-2, axis2=-1) - 1))
