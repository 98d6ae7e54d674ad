"""Depth maps of several views, fused into one coloured point cloud."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Shaped, UInt8

from plumbline.data.geometry import backproject, invert, project, transform
from plumbline.files import write_ply

Cloud = tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]


def fuse(
    images: UInt8[np.ndarray, "v h w 3"],
    depth: Float[np.ndarray, "v h w"],
    K: Float64[np.ndarray, "v 3 3"],
    world_T_cam: Float64[np.ndarray, "v 4 4"],
    *,
    neighbours: Sequence[Sequence[int]],
    min_agreeing: int = 1,
    tolerance: float = 0.02,
) -> Cloud:
    """Points in the world frame (metres) with colours, of all pixels whose depth other views confirm.

    depth is z in metres, 0 = none; `neighbours[i]` are the views (indices into the stacks) that view i is compared with. A
    point is kept when at least `min_agreeing` of them have, where it lands, a depth within `tolerance` (relative) of its
    own. With `min_agreeing` 0 every measured pixel is kept. Order: by view, then by row. No points give empty arrays.
    """
    points, colours = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.uint8)]
    for view, others in enumerate(neighbours):
        points_world = transform(world_T_cam[view], backproject(depth[view], K[view])[depth[view] > 0])
        agreeing = np.zeros(len(points_world), np.int64)
        for other in others:
            agreeing += agrees(points_world, depth[other], K[other], world_T_cam[other], tolerance=tolerance)
        kept = agreeing >= min_agreeing
        points.append(points_world[kept].astype(np.float32))
        colours.append(images[view][depth[view] > 0][kept])
    return np.concatenate(points), np.concatenate(colours)


def agrees(
    points_world: Float64[np.ndarray, "n 3"],
    depth: Float[np.ndarray, "h w"],
    K: Float64[np.ndarray, "3 3"],
    world_T_cam: Float64[np.ndarray, "4 4"],
    *,
    tolerance: float,
) -> Shaped[np.ndarray, " n"]:
    """Whether a view's depth, at the pixel nearest to where each point lands, is within `tolerance` (relative) of its z."""
    uv, z = project(transform(invert(world_T_cam), points_world), K)
    pixel = np.rint(np.where(z[:, None] > 0, uv, -1)).clip(-1, max(depth.shape)).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < [depth.shape[1], depth.shape[0]])).all(axis=1)
    met = np.where(inside, depth[np.where(inside, pixel[:, 1], 0), np.where(inside, pixel[:, 0], 0)], 0)
    return (met > 0) & (np.abs(met - z) <= tolerance * z)


def thin(points: Float32[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"], voxel: float) -> Cloud:
    """One point a cubic voxel of side `voxel` (metres): the mean of its points and of their colours."""
    if len(points) == 0:
        return points, colours
    cell = np.floor((points - points.min(axis=0)) / voxel).astype(np.int64)
    extent = cell.max(axis=0) + 1
    _, index, count = np.unique(
        (cell[:, 0] * extent[1] + cell[:, 1]) * extent[2] + cell[:, 2], return_inverse=True, return_counts=True
    )
    return (
        _means(points, index, count).astype(np.float32),
        np.rint(_means(colours, index, count)).astype(np.uint8),
    )


def _means(
    values: Shaped[np.ndarray, "n 3"], index: Int[np.ndarray, " n"], count: Int[np.ndarray, " m"]
) -> Float64[np.ndarray, "m 3"]:
    sums = [np.bincount(index, weights=values[:, axis], minlength=len(count)) for axis in range(3)]
    return np.stack(sums, axis=-1) / count[:, None]


def thin_to(points: Float32[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"], max_points: int) -> Cloud:
    """The cloud thinned by voxels just large enough that at most `max_points` remain; as it is when it has no more."""
    if len(points) <= max_points:
        return points, colours
    # Surfaces: the number of occupied voxels falls with the square of their side, at most with its cube.
    spread = np.ptp(np.percentile(points, [5, 95], axis=0), axis=0)
    voxel = max(float(spread.max()), 1e-6) / max_points**0.5
    thinned = thin(points, colours, voxel)
    while len(thinned[0]) > max_points:
        voxel *= max((len(thinned[0]) / max_points) ** 0.5, 1.05)
        thinned = thin(points, colours, voxel)
    return thinned


def write_cloud(path: Path, cloud: Cloud, *, max_points: int) -> int:
    """Write a cloud as PLY (world frame, metres), thinned to `max_points`, and return the number of points written."""
    points, colours = thin_to(*cloud, max_points)
    write_ply(path, points, colours)
    return len(points)
