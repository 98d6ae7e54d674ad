"""Depth metrics: what they mean, a readable reference, and a fast blocked implementation of the same numbers.

A pixel is *valid* where truth is measured, inside the caps and inside the mask; it is *compared* where it is valid and the
prediction does not abstain (prediction 0). Error metrics are means over compared pixels; coverage is compared / valid.
Definitions follow Eigen et al. 2014 (abs_rel, sq_rel, rmse, rmse_log, delta) and SimpleRecon 2022 (delta105, metres).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from plumbline.errors import DataError

ERRORS = (
    "abs_rel",
    "abs_diff",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "delta1",
    "delta2",
    "delta3",
    "delta105",
)
METRICS = (*ERRORS, "coverage")
HIGHER_IS_BETTER = frozenset({"delta1", "delta2", "delta3", "delta105", "coverage"})
# Ends the names of metrics after every map was brought to the truth's median, for methods that know no scale.
MEDIAN = "_median"
THRESHOLDS = {"delta105": 1.05, "delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}

# The working set of one block (two maps, their selections, buffers) stays inside a core's second-level cache.
BLOCK = 38_400
_LOG_THRESHOLDS = tuple(float(np.log(np.float32(value))) for value in THRESHOLDS.values())
_SLACK = 1e-5


@dataclass(frozen=True)
class Row:
    """Metrics of one depth map.

    ``values`` has every metric; only ``coverage`` (0) where the prediction abstains on every valid pixel; nothing where
    truth has no valid pixel. ``reason`` says in words why something is missing, and is empty otherwise.
    """

    values: dict[str, float]
    valid: int
    compared: int
    reason: str = ""


@dataclass(frozen=True)
class _Buffers:
    work: Float32[np.ndarray, " n"]
    compared: Bool[np.ndarray, " n"]
    flags: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class _Sums:
    """Sums over compared pixels, in the order of ``ERRORS`` before means and roots are taken."""

    valid: int
    compared: int
    errors: Float64[np.ndarray, " 10"]


def is_share(name: str) -> bool:
    """Whether a metric, of depth or of cameras, is a share in [0, 1] that is better when higher."""
    return name.removesuffix(MEDIAN) in HIGHER_IS_BETTER or name.startswith("auc")


def is_better_higher(name: str) -> bool:
    """Whether more of a metric is better: shares, and the likeness of rendered views; all others are errors."""
    return is_share(name) or name in ("psnr", "ssim")


def valid_mask(
    truth: Float32[np.ndarray, "*s"],
    *,
    mask: Bool[np.ndarray, "*s"] | None = None,
    depth_min: float = 0.0,
    depth_max: float = math.inf,
) -> Bool[np.ndarray, "*s"]:
    """True where truth is measured (> 0), within [depth_min, depth_max] metres (both ends in) and inside ``mask``."""
    valid = (truth > 0) & (truth >= depth_min) & (truth <= depth_max)
    return valid if mask is None else valid & mask


def measure(
    prediction: Float32[np.ndarray, "n h w"],
    truth: Float32[np.ndarray, "nt ht wt"],
    *,
    mask: Bool[np.ndarray, "nm hm wm"] | None = None,
    depth_min: float = 0.0,
    depth_max: float = math.inf,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Return one ``Row`` for each depth map (metres; truth 0 = not measured, prediction 0 = abstains).

    Equal to ``reference_errors`` within 1e-6. Raises DataError naming the map (``names``) when a prediction is negative, NaN
    or infinite anywhere, when truth is, or when a result is impossible (see ``check_values``).
    """
    _check_shapes(prediction, truth, mask)
    labels = names if names is not None else [f"map {index}" for index in range(len(prediction))]
    buffers = _buffers(min(BLOCK, max(1, prediction[0].size if len(prediction) else 1)))
    rows = []
    for index, label in enumerate(labels):
        inside = None if mask is None else mask[index].reshape(-1)
        sums = _map_sums(
            prediction[index].reshape(-1), truth[index].reshape(-1), inside, (depth_min, depth_max), buffers, label
        )
        rows.append(_row(sums, (depth_min, depth_max), label))
    return rows


def reference_errors(prediction: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Return every error metric of ``n`` >= 1 compared pixels, in double precision, as one would write it on paper."""
    p, t = prediction.astype(np.float64), truth.astype(np.float64)
    ratio = np.maximum(p / t, t / p)
    values = {
        "abs_rel": np.mean(np.abs(p - t) / t),
        "abs_diff": np.mean(np.abs(p - t)),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean((np.log(p) - np.log(t)) ** 2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(t))),
    }
    values |= {name: np.mean(ratio < limit) for name, limit in THRESHOLDS.items()}
    return {name: float(values[name]) for name in ERRORS}


def check_values(values: dict[str, float], where: str) -> None:
    """Raise DataError when metrics contradict each other, which only a fault in the evaluation can bring about.

    Checked: everything finite and not negative; shares within [0, 1]; delta105 <= delta1 <= delta2 <= delta3;
    abs_diff <= rmse and ln(10) log10 <= rmse_log (mean <= root mean square). Means of such rows obey the same relations.
    """
    for name, value in values.items():
        shares = name in HIGHER_IS_BETTER
        if not (math.isfinite(value) and value >= 0 and (value <= 1 + _SLACK or not shares)):
            raise DataError(
                f"{where}: {name} is {value}; expected a finite number {'in [0, 1]' if shares else '>= 0'}. "
                "Look at the depth map of this sample, and check that depths are in metres."
            )
    for low, high, factor in (
        ("delta105", "delta1", 1.0),
        ("delta1", "delta2", 1.0),
        ("delta2", "delta3", 1.0),
        ("abs_diff", "rmse", 1.0),
        ("log10", "rmse_log", math.log(10)),
    ):
        if low in values and high in values and values[low] * factor > values[high] * (1 + _SLACK) + _SLACK * 1e-3:
            raise DataError(
                f"{where}: {low} = {values[low]:.6g} and {high} = {values[high]:.6g} cannot both be true "
                f"({factor:.4g} x {low} <= {high} always). The metrics or the files they were read from are damaged."
            )


def sparsification(
    error: Float[np.ndarray, " n"], confidence: Float[np.ndarray, " n"], *, steps: int = 50
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Return (curve, oracle): mean error of the pixels left after the least confident 0, 1/k, ... (k-1)/k are removed.

    Both are divided by the mean error of all pixels, so they start at 1; they are 0 when every error is 0. ``oracle`` removes
    the largest errors first. Pixels of equal confidence count with their mean error, so a constant confidence gives the flat
    curve. ``n`` >= 1. After Ilg et al. 2018, "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow".
    """
    error = error.astype(np.float64)
    total = error.mean()
    if total == 0:
        return np.zeros(steps), np.zeros(steps)
    kept = np.maximum(1, np.ceil(len(error) * (1 - np.arange(steps) / steps))).astype(np.int64)
    _, group = np.unique(-confidence, return_inverse=True)
    mean_of_group = np.bincount(group, weights=error) / np.bincount(group)
    by_confidence = mean_of_group[np.sort(group)]
    curves = [np.cumsum(values)[kept - 1] / kept / total for values in (by_confidence, np.sort(error))]
    return curves[0], curves[1]


def ause(curve: Float64[np.ndarray, " k"], oracle: Float64[np.ndarray, " k"]) -> float:
    """Return the area between a sparsification curve and its oracle (0 = confidence ranks the errors perfectly)."""
    return float(np.mean(curve - oracle))


def _check_shapes(
    prediction: Float32[np.ndarray, "..."], truth: Float32[np.ndarray, "..."], mask: Bool[np.ndarray, "..."] | None
) -> None:
    if prediction.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        raise DataError(
            f"metrics: prediction is {prediction.shape}, truth {truth.shape}, mask {None if mask is None else mask.shape}; "
            "expected one shape. Predictions must have the size of the canonical scene."
        )


def _buffers(size: int) -> _Buffers:
    return _Buffers(np.empty(size, np.float32), np.empty(size, np.bool_), np.empty(size, np.bool_))


def _map_sums(
    prediction: Float32[np.ndarray, " n"],
    truth: Float32[np.ndarray, " n"],
    mask: Bool[np.ndarray, " n"] | None,
    caps: tuple[float, float],
    buffers: _Buffers,
    label: str,
) -> _Sums:
    valid = compared = 0
    errors = np.zeros(len(ERRORS))
    for start in range(0, len(truth), BLOCK):
        block = slice(start, start + BLOCK)
        p, t = prediction[block], truth[block]
        _refuse_bad(p, f"{label}: prediction")
        _refuse_bad(t, f"{label}: truth")
        counts = _select(p, t, None if mask is None else mask[block], caps, buffers)
        valid, compared = valid + counts[0], compared + counts[1]
        if counts[1]:
            errors += _block_errors(p, t, buffers)
    return _Sums(valid, compared, errors)


def _refuse_bad(depth: Float32[np.ndarray, " n"], where: str) -> None:
    # min and max carry a NaN through, so two reductions find every bad value without a temporary mask
    low, high = depth.min(), depth.max()
    if not (low >= 0 and high < np.inf):
        raise DataError(
            f"{where} has values between {low} and {high}; expected finite depth in metres, 0 where there is none. "
            "Write 0 for pixels a method abstains on."
        )


def _select(
    p: Float32[np.ndarray, " n"],
    t: Float32[np.ndarray, " n"],
    mask: Bool[np.ndarray, " n"] | None,
    caps: tuple[float, float],
    buffers: _Buffers,
) -> tuple[int, int]:
    """Fill ``buffers.compared`` and return (valid pixels, compared pixels)."""
    compared, flags = buffers.compared[: len(t)], buffers.flags[: len(t)]
    np.greater(t, 0, out=compared)
    if caps[0] > 0:
        np.logical_and(compared, np.greater_equal(t, caps[0], out=flags), out=compared)
    if caps[1] < math.inf:
        np.logical_and(compared, np.less_equal(t, caps[1], out=flags), out=compared)
    if mask is not None:
        np.logical_and(compared, mask, out=compared)
    valid = int(np.count_nonzero(compared))
    np.logical_and(compared, np.greater(p, 0, out=flags), out=compared)
    return valid, int(np.count_nonzero(compared))


def _block_errors(
    prediction: Float32[np.ndarray, " n"], truth: Float32[np.ndarray, " n"], buffers: _Buffers
) -> Float64[np.ndarray, " 10"]:
    """Return the sums of one block over its compared pixels, in the order of ``ERRORS``."""
    chosen = buffers.compared[: len(truth)]
    count = int(np.count_nonzero(chosen))
    # selecting first beats masked arithmetic: everything after it sees compared pixels only
    p, t = prediction[chosen], truth[chosen]
    work, flags = buffers.work[:count], buffers.flags[:count]
    # one logarithm serves rmse_log, log10 and every delta: max(p/t, t/p) < x is |log(p/t)| < log x
    np.abs(np.log(np.divide(p, t, out=work), out=work), out=work)
    log_squares, log_sum = float(np.dot(work, work)), float(work.sum())
    inside = [int(np.count_nonzero(np.less(work, limit, out=flags))) for limit in _LOG_THRESHOLDS]
    np.abs(np.subtract(p, t, out=p), out=p)
    squares, absolute = float(np.dot(p, p)), float(p.sum())
    relative = np.divide(p, t, out=t)
    sums = [relative.sum(), absolute, np.dot(p, relative), squares, log_squares, log_sum / math.log(10)]
    return np.array([*sums, *inside[1:], inside[0]], dtype=np.float64)


def _row(sums: _Sums, caps: tuple[float, float], label: str) -> Row:
    if sums.valid == 0:
        return Row({}, 0, 0, f"no truth within {caps[0]:g} to {caps[1]:g} m and inside the mask")
    if sums.compared == 0:
        return Row({"coverage": 0.0}, sums.valid, 0, f"the method abstains on all {sums.valid} valid pixels")
    means = sums.errors / sums.compared
    means[3:5] = np.sqrt(means[3:5])
    values = dict(zip(ERRORS, map(float, means), strict=True)) | {"coverage": sums.compared / sums.valid}
    check_values(values, label)
    return Row(values, sums.valid, sums.compared)
