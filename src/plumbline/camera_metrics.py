"""How wrong predicted cameras are: angles between views, the area under their recall curve, and focal lengths.

Only relative poses are compared, so neither a world frame nor a unit matters: the rotation between two views by its angle,
the translation by its direction. Definitions follow Jin et al. 2020, "Image Matching across Wide Baselines", and Wang et
al. 2023, "PoseDiffusion"; angles are in degrees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float64, Int64

from plumbline.errors import DataError

AUC_DEGREES = (5.0, 10.0, 30.0)
# Each with the one number of a suite that stands for it: degrees, shares of 1, relative error.
HEADLINES = {
    "rotation_error_deg": "median",
    "translation_error_deg": "median",
    **{f"auc{threshold:g}": "mean" for threshold in AUC_DEGREES},
    "focal_error": "median",
}
CAMERA_METRICS = tuple(HEADLINES)
# Of a length: what is shorter has no direction.
_NO_DIRECTION = 1e-9


@dataclass(frozen=True)
class CameraErrors:
    """Errors of n pairs of views (i, j), in degrees; a translation is NaN where the true cameras stand in one place."""

    pairs: Int64[np.ndarray, "n 2"]
    rotation: Float64[np.ndarray, " n"]
    translation: Float64[np.ndarray, " n"]

    @property
    def worst(self) -> Float64[np.ndarray, " n"]:
        """The larger of both errors of each pair, of the rotation alone where there is no translation."""
        return np.fmax(self.rotation, self.translation)


def camera_errors(
    cam0_T_cam: Float[np.ndarray, "v 4 4"], truth: Float[np.ndarray, "vt 4 4"], *, either_sign: bool = False
) -> CameraErrors:
    """Errors of every pair i < j of v >= 2 predicted cameras, as poses in any common frame, against the true ones.

    A predicted translation without length, and a pose that is not finite, are as wrong as can be. With `either_sign` a
    translation and its opposite count as the same, as an essential matrix cannot tell them apart. DataError when shapes
    differ, there are fewer than two views, or the truth is not finite.
    """
    _check(cam0_T_cam, truth)
    pairs = np.array(list(combinations(range(len(truth)), 2)), np.int64)
    sound = np.isfinite(cam0_T_cam).all(axis=(1, 2))
    poses = np.where(sound[:, None, None], cam0_T_cam, np.eye(4))
    predicted, true = _relative(poses, pairs), _relative(truth, pairs)
    broken = ~sound[pairs].all(axis=1)
    rotation = rotation_angle(np.swapaxes(true[:, :3, :3], 1, 2) @ predicted[:, :3, :3])
    rotation = np.where(broken, 180.0, rotation)
    told = np.where(broken[:, None], 0.0, predicted[:, :3, 3])
    translation = direction_angle(told, true[:, :3, 3], either_sign=either_sign)
    return CameraErrors(pairs, rotation, translation)


def rotation_angle(R: Float[np.ndarray, "n 3 3"]) -> Float64[np.ndarray, " n"]:
    """Angle of rotation, degrees in [0, 180]; accurate near 0, where arccos of the trace is not."""
    skew = np.stack([R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], axis=-1)
    return np.degrees(np.arctan2(np.linalg.norm(skew, axis=-1), np.trace(R, axis1=-2, axis2=-1) - 1))


def direction_angle(
    predicted: Float[np.ndarray, "n 3"], true: Float[np.ndarray, "n 3"], *, either_sign: bool = False
) -> Float64[np.ndarray, " n"]:
    """Angle between vectors, degrees in [0, 180], or between the lines they lie on, in [0, 90].

    NaN where the true one has no length; else the largest possible angle where the predicted one has none.
    """
    along = np.sum(predicted * true, axis=-1)
    across = np.linalg.norm(np.cross(predicted, true), axis=-1)
    angle = np.degrees(np.arctan2(across, np.abs(along) if either_sign else along))
    missing = np.linalg.norm(predicted, axis=-1) <= _NO_DIRECTION
    undefined = np.linalg.norm(true, axis=-1) <= _NO_DIRECTION
    return np.where(undefined, np.nan, np.where(missing, 90.0 if either_sign else 180.0, angle))


def area_under_recall(errors: Float[np.ndarray, " n"], threshold: float) -> float:
    """The area under the curve "share of errors up to x" for x from 0 to `threshold`, over `threshold`: in [0, 1].

    Exact, as the curve is a staircase: the mean of max(0, 1 - error / threshold). (Published figures often take bins of
    a degree, or join the stairs' edges, and differ by a point or so.) NaN when there is no error.
    """
    if errors.size == 0:
        return float("nan")
    return float(np.mean(np.clip(1 - np.asarray(errors, np.float64) / threshold, 0, 1)))


def focal_error(K: Float[np.ndarray, "v 3 3"], truth: Float[np.ndarray, "v 3 3"]) -> Float64[np.ndarray, " v"]:
    """Relative error of each view's focal lengths, |f - f*| / f*, the mean of both axes; images of one size."""
    axes = [0, 1]
    predicted, true = (np.asarray(x, np.float64)[:, axes, axes] for x in (K, truth))
    return np.abs(predicted / true - 1).mean(axis=-1)


def summary(
    errors: Sequence[CameraErrors], focal: Sequence[Float64[np.ndarray, " _"]] = (), *, where: str = "camera metrics"
) -> dict[str, dict[str, float]]:
    """{metric: {"median": ..., "mean": ...}} over all pairs of all samples, of `focal` over all views.

    A metric without a value (no focal lengths predicted, all true cameras in one place) is absent. Of the areas under the
    recall curve there is a mean alone. DataError, naming `where`, when there is no sample or a value is impossible.
    """
    if not errors:
        raise DataError(f"{where}: no sample to sum up; expected at least one with predicted and true cameras.")
    rotation, translation, worst = (
        np.concatenate([getattr(sample, name) for sample in errors]) for name in ("rotation", "translation", "worst")
    )
    pooled = {
        "rotation_error_deg": rotation,
        "translation_error_deg": translation[~np.isnan(translation)],
        "focal_error": np.concatenate(focal) if focal else np.empty(0),
    }
    found = {name: _centre(values) for name, values in pooled.items() if values.size}
    found |= {f"auc{threshold:g}": {"mean": area_under_recall(worst, threshold)} for threshold in AUC_DEGREES}
    _check_values({f"{name} {kind}": x for name, row in found.items() for kind, x in row.items()}, where)
    return {name: found[name] for name in CAMERA_METRICS if name in found}


def _centre(values: Float64[np.ndarray, " n"]) -> dict[str, float]:
    return {"median": float(np.median(values)), "mean": float(np.mean(values))}


def _check_values(values: Mapping[str, float], where: str) -> None:
    """DataError for a number that no cameras can have: an angle beyond 180 degrees, a share outside [0, 1], NaN."""
    for name, value in values.items():
        top = 180.0 if "deg" in name else 1.0 if name.startswith("auc") else np.inf
        if not (np.isfinite(value) and 0 <= value <= top * (1 + 1e-9)):
            raise DataError(
                f"{where}: {name} is {value}; expected a finite number in [0, {top:g}]. Look at the predicted cameras of this "
                "suite: a pose must be a rotation and a step, a focal length positive."
            )


def _relative(poses: Float[np.ndarray, "v 4 4"], pairs: Int64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 4 4"]:
    """`cami_T_camj` of each pair, float64."""
    poses = np.asarray(poses, np.float64)
    first, second = poses[pairs[:, 0]], poses[pairs[:, 1]]
    turned = np.swapaxes(first[:, :3, :3], 1, 2)
    relative = np.tile(np.eye(4), (len(pairs), 1, 1))
    relative[:, :3, :3] = turned @ second[:, :3, :3]
    relative[:, :3, 3] = (turned @ (second[:, :3, 3:] - first[:, :3, 3:]))[..., 0]
    return relative


def _check(predicted: Float[np.ndarray, "..."], truth: Float[np.ndarray, "..."]) -> None:
    if predicted.shape != truth.shape or len(truth) < 2:
        raise DataError(
            f"camera metrics: predicted poses are {predicted.shape}, true ones {truth.shape}; expected (views, 4, 4) "
            "twice, of two views or more. Compare the views of one sample."
        )
    if not np.isfinite(truth).all():
        raise DataError("camera metrics: a true pose is not finite. Check the data set: plumbline check says where.")
