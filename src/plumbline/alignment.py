"""Bring a prediction to the truth's scale before it is measured: none, median, scale_shift.

Alignment reads the truth, so anything but ``none`` answers another question ("is the shape right?"): ``none`` is the headline.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32

from plumbline.errors import ConfigError

ALIGNMENTS = ("none", "median", "scale_shift")

_MIN_DEPTH = 1e-3


def fit_alignment(
    prediction: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"], kind: str
) -> tuple[float, float]:
    """Return (scale, shift in metres) such that scale * prediction + shift is nearest to the truth.

    ``none``: (1, 0). ``median``: (median(truth) / median(prediction), 0). ``scale_shift``: unweighted least squares in depth (not
    in disparity), min over s, b of sum (s p + b - t)^2; a prediction without variation gets s = 1. With ``n`` = 0: (1, 0).
    """
    if kind not in ALIGNMENTS:
        raise ConfigError(
            f"evaluation.alignments: unknown alignment {kind!r}; expected one of {', '.join(ALIGNMENTS)}."
        )
    if kind == "none" or len(prediction) == 0:
        return 1.0, 0.0
    if kind == "median":
        return float(np.median(truth) / np.median(prediction)), 0.0
    p, t = prediction.astype(np.float64), truth.astype(np.float64)
    centred = p - p.mean()
    variance = centred @ centred
    # below this the differences are rounding noise of float32 depth, and the slope would be arbitrary
    scale = float(centred @ (t - t.mean()) / variance) if variance > len(p) * (1e-6 * p.mean()) ** 2 else 1.0
    return scale, float(t.mean() - scale * p.mean())


def align(
    prediction: Float32[np.ndarray, "n h w"],
    truth: Float32[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "n h w"],
    kind: str,
    *,
    floor: float = _MIN_DEPTH,
) -> Float32[np.ndarray, "n h w"]:
    """Return the prediction (metres) with every map fitted to its own truth on its ``valid`` pixels that do not abstain.

    Abstentions stay 0. A fit can push far values below ``floor`` (metres): they are set to it, so that logarithms exist; ``none``
    returns the prediction itself, untouched.
    """
    if kind == "none":
        return prediction
    aligned = np.zeros_like(prediction)
    for index, depth in enumerate(prediction):
        speaks = depth > 0
        chosen = valid[index] & speaks
        scale, shift = fit_alignment(depth[chosen], truth[index][chosen], kind)
        fitted = np.maximum(scale * depth.astype(np.float64) + shift, max(floor, _MIN_DEPTH))
        aligned[index] = np.where(speaks, fitted, 0)
    return aligned
