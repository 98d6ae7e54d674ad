"""The usual ways to misread a scene, each as the change that would undo it.

A hypothesis is a label in words, said as the correction ("depth divided by 8"), and a pure function from a reading to a
reading. Readers add their own ones (bits, rows, association), which need the raw files: see `alternatives` of each reader.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from plumbline.data.checks.measure import Reading
from plumbline.data.geometry import invert

Change = Callable[[Reading], Reading]
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Hypothesis:
    """`label` names the correction in words, `change` applies it."""

    label: str
    change: Change


def depth_times(factor: float) -> Change:
    """Depth multiplied by `factor` (only its ratio to the translations can be seen)."""
    return lambda reading: replace(reading, depth=(reading.depth * np.float32(factor)))


def along_ray_to_z(reading: Reading) -> Reading:
    """Depth that is the distance along the viewing ray, turned into z."""
    return replace(reading, depth=np.asarray(reading.depth / _ray_lengths(reading), np.float32))


def z_to_along_ray(reading: Reading) -> Reading:
    """Depth that was wrongly taken for a distance along the ray, turned back."""
    return replace(reading, depth=np.asarray(reading.depth * _ray_lengths(reading), np.float32))


def _ray_lengths(reading: Reading) -> Float64[np.ndarray, "v h w"]:
    height, width = reading.depth.shape[1:]
    x = (np.arange(width)[None, :] - reading.K[:, 0, 2, None]) / reading.K[:, 0, 0, None]
    y = (np.arange(height)[None, :] - reading.K[:, 1, 2, None]) / reading.K[:, 1, 1, None]
    return np.asarray(np.sqrt(1 + x[:, None, :] ** 2 + y[:, :, None] ** 2))


def depth_upside_down(reading: Reading) -> Reading:
    """Depth rows in the opposite order (PFM stores the bottom row first)."""
    return replace(reading, depth=reading.depth[:, ::-1])


def intrinsics_times(factor: float) -> Change:
    """K of a grid `factor` times as large, pixel centres at integers: c' = (c + 0.5) factor - 0.5."""

    def change(reading: Reading) -> Reading:
        K = reading.K.copy()
        K[:, :2, 2] += 0.5
        K[:, :2] *= factor
        K[:, :2, 2] -= 0.5
        return replace(reading, K=K)

    return change


def focal_times(factor: float) -> Change:
    """Focal lengths multiplied by `factor`, principal point at the image centre: K of another size, then cropped."""

    def change(reading: Reading) -> Reading:
        K = reading.K.copy()
        K[:, [0, 0, 1], [0, 1, 1]] *= factor
        return _centred(replace(reading, K=K), axes=(0, 1))

    return change


def _centred(reading: Reading, *, axes: tuple[int, ...]) -> Reading:
    K = reading.K.copy()
    for axis in axes:
        K[:, axis, 2] = (reading.depth.shape[2 - axis] - 1) / 2
    return replace(reading, K=K)


def principal_point_centred(*axes: int) -> Change:
    """cx (axis 0) and or cy (axis 1) at the image centre."""
    return lambda reading: _centred(reading, axes=axes)


def swap_entries(first: tuple[int, int], second: tuple[int, int]) -> Change:
    """Two entries of K exchanged."""

    def change(reading: Reading) -> Reading:
        K = reading.K.copy()
        K[(slice(None), *first)], K[(slice(None), *second)] = (
            reading.K[(slice(None), *second)],
            reading.K[(slice(None), *first)],
        )
        return replace(reading, K=K)

    return change


def poses_inverted(reading: Reading) -> Reading:
    """World-to-camera read as camera-to-world, or the other way round."""
    return replace(reading, world_T_cam=invert(reading.world_T_cam))


def rotations_transposed(reading: Reading) -> Reading:
    """Rotations of the inverse direction (or column-major), camera centres as they are."""
    world_T_cam = reading.world_T_cam.copy()
    world_T_cam[:, :3, :3] = np.swapaxes(reading.world_T_cam[:, :3, :3], -1, -2)
    return replace(reading, world_T_cam=world_T_cam)


def opengl_axes(reading: Reading) -> Reading:
    """Camera axes from OpenGL (y up, z backward) to OpenCV."""
    return replace(reading, world_T_cam=reading.world_T_cam @ OPENGL)


def opengl_world_to_camera(reading: Reading) -> Reading:
    """World-to-camera matrices of OpenGL axes, to camera-to-world of OpenCV axes."""
    return replace(reading, world_T_cam=invert(OPENGL @ reading.world_T_cam))


def translations_negated(reading: Reading) -> Reading:
    """Translations of the opposite sign, rotations as they are."""
    world_T_cam = reading.world_T_cam.copy()
    world_T_cam[:, :3, 3] *= -1
    return replace(reading, world_T_cam=world_T_cam)


def _scales(median: float, depth_range: tuple[float, float]) -> list[Hypothesis]:
    found = []
    for factor in (1000, 8, 5):
        for words, value in (("divided by", 1 / factor), ("multiplied by", float(factor))):
            opposite = "multiplied by" if words == "divided by" else "divided by"
            depth, baseline = f"depth {words} {factor}", f"translations {opposite} {factor}"
            to_blame = _plausible(median, depth_range) and not _plausible(median * value, depth_range)
            found.append(Hypothesis(baseline if to_blame else depth, depth_times(value)))
    return [
        *found,
        Hypothesis("depth taken as the distance along the ray", along_ray_to_z),
        Hypothesis("depth taken as z, not as the distance along the ray", z_to_along_ray),
        Hypothesis("depth rows in the opposite order", depth_upside_down),
    ]


def _plausible(median: float, depth_range: tuple[float, float]) -> bool:
    return depth_range[0] <= median <= depth_range[1]


def _intrinsics() -> list[Hypothesis]:
    found = []
    for factor in (2, 4):
        for label, value in ((f"K multiplied by {factor}", float(factor)), (f"K divided by {factor}", 1 / factor)):
            found.append(Hypothesis(label, intrinsics_times(value)))
            found.append(Hypothesis(f"{label} and its principal point at the image centre", focal_times(value)))
    return [
        *found,
        Hypothesis("fx and cx exchanged", swap_entries((0, 0), (0, 2))),
        Hypothesis("fy and cy exchanged", swap_entries((1, 1), (1, 2))),
        Hypothesis("cx at the image centre", principal_point_centred(0)),
        Hypothesis("cy at the image centre", principal_point_centred(1)),
        Hypothesis("cx and cy exchanged", swap_entries((0, 2), (1, 2))),
    ]


def _poses() -> list[Hypothesis]:
    return [
        Hypothesis("poses inverted", poses_inverted),
        Hypothesis("rotations transposed", rotations_transposed),
        Hypothesis("camera y and z axes flipped (OpenGL)", opengl_axes),
        Hypothesis("poses inverted and camera y and z axes flipped (OpenGL)", opengl_world_to_camera),
        Hypothesis("translations negated", translations_negated),
    ]


def no_translation(reading: Reading) -> Reading:
    """The null: cameras that only turned. Where it does as well, translations and depth scale cannot be judged."""
    world_T_cam = reading.world_T_cam.copy()
    world_T_cam[:, :3, 3] = 0
    return replace(reading, world_T_cam=world_T_cam)


def no_motion(reading: Reading) -> Reading:
    """The null: cameras that did not move at all."""
    return replace(reading, world_T_cam=np.broadcast_to(np.eye(4), reading.world_T_cam.shape).copy())


def hypotheses(median: float, depth_range: tuple[float, float]) -> list[Hypothesis]:
    """All misreadings that canonical arrays still show, each by its correction.

    Only the ratio of depth to translations shows: whichever of the two is implausible is named, by the `median` depth
    (metres) and the range in which the data set's depth is expected.
    """
    return [*_scales(median, depth_range), *_intrinsics(), *_poses()]


NULLS = (Hypothesis("no translation", no_translation), Hypothesis("no motion", no_motion))
