"""From measured readings to a verdict and a diagnosis in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from plumbline.data.checks.records import CheckConfig, DepthSummary, Found, Verdict

# Another reading may look a little worse photometrically and still be the true one: depth edges move, warps blur.
_PHOTOMETRIC_SLACK = 0.05
# A warp that matches the images as much better needs no lower depth error: on smooth surfaces depth that is too far away
# has a small error too, and depth and poses may agree while the images are another frame's or camera's.
_PHOTOMETRIC_GAIN = 0.2
_ALIKE = 1.25
# What a few pairs must show before more are measured.
_LOWER = 1.2
# Depth errors that differ by less say nothing; of those readings the images choose, and of the ones they match equally
# well, the one listed first, the more specific one, names the finding.
_NOISE = 2e-4
_SAME = 0.02
# Below as many pairs, no overlap at all may be the capture's nature.
_FEW_PAIRS = 3


@dataclass(frozen=True)
class Evidence:
    """What a scene is judged by: the reading as it is, others (the more specific first), nulls, and its depth."""

    as_read: Found
    others: Sequence[Found]
    nulls: Sequence[Found]
    depth: DepthSummary
    depth_range: tuple[float, float]
    pairs: int


@dataclass(frozen=True)
class Judgement:
    """A verdict, why, and what else is worth saying."""

    verdict: Verdict
    diagnosis: str
    remarks: tuple[str, ...] = ()


def judge(evidence: Evidence, config: CheckConfig) -> Judgement:
    """The verdict on a scene that has pairs to judge by; see `CheckConfig` for the limits.

    In this order: another reading is `ratio` times better: wrong, and named; nothing overlaps, the error is above
    `max_error`, depth lies outside the data set's range, or the images do not follow: wrong; cameras taken not to have
    moved do about as well: cannot tell; otherwise ok.
    """
    best = best_reading(evidence.as_read, evidence.others, config)
    if best is not None:
        return Judgement("wrong", _named(evidence.as_read, best))
    for rule in (_nothing_overlaps, _unexplained, _out_of_range, _images_apart, _undecided):
        found = rule(evidence, config)
        if found is not None:
            return found
    return Judgement("ok", f"{percent(evidence.as_read.error)} median error", _remarks(evidence, config))


def best_reading(as_read: Found, others: Sequence[Found], config: CheckConfig) -> Found | None:
    """The reading that is better than the present one by `ratio`, the best of them; None when there is none.

    It must be believable by itself (error below `max_error`), and its warp must not match the images worse: depth that
    is too far away, or views that hardly overlap, can have small errors by accident. Where its warp matches the images
    far better, a somewhat smaller error is enough.
    """
    better = [found for found in others if found.reference is None and _better(as_read, found, config)]
    if not better:
        return None
    lowest = min(found.error or 0.0 for found in better)
    alike = [found for found in better if (found.error or 0.0) <= lowest * _ALIKE + _NOISE]
    matched = max(found.photometric or 0.0 for found in alike)
    return next(found for found in alike if (found.photometric or 0.0) >= matched - _SAME)


def may_gain(as_read: Found, found: Found) -> bool:
    """Whether a reading, measured on the same pairs, could be the better one at all: worth measuring on more."""
    if found.error is None or as_read.error is None:
        return found.error is not None
    return found.error * _LOWER <= as_read.error or _images_gain(as_read, found) >= _PHOTOMETRIC_GAIN / 2


def percent(error: float | None) -> str:
    """A relative error as text, such as 4.3 % or 0.09 %."""
    if error is None:
        return "no"
    return f"{100 * error:.2f} %" if error < 0.01 else f"{100 * error:.1f} %"


def _better(as_read: Found, found: Found, config: CheckConfig) -> bool:
    if found.error is None or found.photometric is None or found.error > config.max_error:
        return False
    if as_read.error is None or as_read.photometric is None:
        return found.photometric >= config.min_photometric and found.overlap >= config.min_overlap
    floor = max(as_read.photometric - _PHOTOMETRIC_SLACK, config.min_photometric)
    much_nearer = found.error * config.ratio <= as_read.error and found.photometric >= floor
    seen = found.error <= _ALIKE * as_read.error and _images_gain(as_read, found) >= _PHOTOMETRIC_GAIN
    return much_nearer or seen


def _images_gain(as_read: Found, found: Found) -> float:
    return (found.photometric or 0.0) - (as_read.photometric or 0.0)


def _named(as_read: Found, best: Found) -> str:
    if as_read.error is None:
        return f"no view lands in another as read; {percent(best.error)} median error with {best.label}"
    text = f"{percent(as_read.error)} median error as read; {percent(best.error)} with {best.label}"
    if best.photometric is not None and as_read.photometric is not None:
        text += f" (texture correlation {as_read.photometric:.2f}; {best.photometric:.2f})"
    return text


def _nothing_overlaps(evidence: Evidence, config: CheckConfig) -> Judgement | None:
    if evidence.as_read.error is not None:
        return None
    if evidence.pairs < _FEW_PAIRS:
        return Judgement("cannot tell", "too little overlap: the few pairs of views do not see the same surface")
    return Judgement("wrong", "no view lands in another as read, and no usual misreading explains it")


def _unexplained(evidence: Evidence, config: CheckConfig) -> Judgement | None:
    error = evidence.as_read.error
    if error is None or error <= config.max_error:
        return None
    known = [(found.error, found.label) for found in evidence.others if found.error is not None]
    least = f" (least: {percent(min(known)[0])} with {min(known)[1]})" if known else ""
    return Judgement("wrong", f"{percent(error)} median error as read, and no usual misreading explains it{least}")


def _out_of_range(evidence: Evidence, config: CheckConfig) -> Judgement | None:
    if evidence.depth.in_range >= config.min_overlap:
        return None
    return Judgement("wrong", f"{percent(evidence.as_read.error)} median error, but {_range_text(evidence)}: units?")


def _range_text(evidence: Evidence) -> str:
    low, high = evidence.depth_range
    inside = f"{100 * evidence.depth.in_range:.0f} % of the depth (median {evidence.depth.median:.3g} m)"
    return f"only {inside} lies in the data set's range {low:g} to {high:g} m"


def _images_apart(evidence: Evidence, config: CheckConfig) -> Judgement | None:
    correlation = evidence.as_read.photometric
    if correlation is None or correlation >= config.min_photometric:
        return None
    text = f"depth and poses agree ({percent(evidence.as_read.error)} median error), but the images do not follow them"
    return Judgement("wrong", f"{text} (texture correlation {correlation:.2f}): are frames mixed up?")


def _undecided(evidence: Evidence, config: CheckConfig) -> Judgement | None:
    error = evidence.as_read.error or 0.0
    for null in evidence.nulls:
        if null.error is not None and null.error < config.null_ratio * error:
            text = f"{percent(error)} median error as read, but {percent(null.error)} with {null.label}"
            return Judgement("cannot tell", f"too little parallax: {text}")
    return None


def _remarks(evidence: Evidence, config: CheckConfig) -> tuple[str, ...]:
    remarks = []
    if (evidence.as_read.error or 0.0) > config.remark_error:
        remarks.append(f"the median error is above {percent(config.remark_error)}: poses or depth are rough")
    if evidence.depth.in_range < 0.9:
        remarks.append(_range_text(evidence))
    likely = [found for found in evidence.others if _matches_images_better(evidence.as_read, found)]
    if likely:
        best = max(likely, key=lambda found: found.photometric or 0.0)
        correlations = f"texture correlation {evidence.as_read.photometric or 0:.2f}; {best.photometric or 0:.2f}"
        remarks.append(f"the images match better with {best.label} ({correlations})")
    return tuple(remarks)


def _matches_images_better(as_read: Found, found: Found) -> bool:
    # Readings on fewer pairs have no correlation as read to be compared with.
    if found.reference is not None or found.error is None or as_read.error is None:
        return False
    return _images_gain(as_read, found) >= _PHOTOMETRIC_GAIN / 2 and found.error <= _ALIKE * as_read.error
