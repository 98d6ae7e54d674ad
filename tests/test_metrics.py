import math

import numpy as np
import pytest

from plumbline.errors import DataError
from plumbline.metrics import (
    BLOCK,
    ERRORS,
    METRICS,
    ause,
    check_values,
    is_better_higher,
    measure,
    reference_errors,
    sparsification,
    valid_mask,
)


def depth(*rows):
    return np.array(rows, np.float32)[None]


def random_maps(*, n=3, size=(210, 230), holes=0.3, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.3, 12, (n, *size)).astype(np.float32)
    prediction = (truth * rng.uniform(0.5, 2.0, truth.shape)).astype(np.float32)
    truth[rng.random(truth.shape) < holes] = 0
    prediction[rng.random(truth.shape) < holes] = 0
    return prediction, truth


def test_values_worked_by_hand():
    # compared: (2, 1), (3, 4), (5, 5); the fourth has no truth
    row = measure(depth([2, 3], [5, 7]), depth([1, 4], [5, 0]))[0]
    expected = {
        "abs_rel": (1 + 0.25 + 0) / 3,
        "abs_diff": (1 + 1 + 0) / 3,
        "sq_rel": (1 + 0.25 + 0) / 3,
        "rmse": math.sqrt(2 / 3),
        "rmse_log": math.sqrt((math.log(2) ** 2 + math.log(4 / 3) ** 2) / 3),
        "log10": (math.log10(2) + math.log10(4 / 3)) / 3,
        "delta1": 1 / 3,
        "delta2": 2 / 3,
        "delta3": 2 / 3,
        "delta105": 1 / 3,
        "coverage": 1.0,
    }
    assert row.values == pytest.approx(expected, abs=1e-6)
    assert tuple(row.values) == METRICS
    assert (row.valid, row.compared, row.reason) == (3, 3, "")


def test_each_delta_has_its_own_threshold():
    ratios = np.array([1.04, 1.2, 1.5, 1.9, 2.5])
    row = measure((2 * ratios).astype(np.float32)[None, None], np.full((1, 1, 5), 2, np.float32))[0]
    shares = [row.values[name] for name in ("delta105", "delta1", "delta2", "delta3")]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("caps", [(0.0, math.inf), (0.5, 10.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_fast_metrics_equal_the_reference(caps, masked):
    prediction, truth = random_maps()
    assert truth[0].size > BLOCK and truth[0].size % BLOCK  # several blocks, the last one ragged
    mask = np.random.default_rng(1).random(truth.shape) < 0.8 if masked else None
    rows = measure(prediction, truth, mask=mask, depth_min=caps[0], depth_max=caps[1])
    valid = valid_mask(truth, mask=mask, depth_min=caps[0], depth_max=caps[1])
    for row, p, t, inside in zip(rows, prediction, truth, valid, strict=True):
        compared = inside & (p > 0)
        expected = reference_errors(p[compared], t[compared]) | {"coverage": compared.sum() / inside.sum()}
        assert row.values == pytest.approx(expected, abs=1e-6, rel=1e-6)
        assert (row.valid, row.compared) == (inside.sum(), compared.sum())


def test_abstaining_lowers_coverage_and_leaves_the_errors_alone():
    truth = depth([1, 2, 4, 4])
    full = measure(depth([1.5, 2, 4, 4]), truth)[0]
    half = measure(depth([1.5, 2, 0, 0]), truth)[0]
    assert half.values["coverage"] == 0.5 and full.values["coverage"] == 1.0
    assert half.values["abs_rel"] == pytest.approx(0.25)
    assert full.values["abs_rel"] == pytest.approx(0.125)


def test_caps_are_inclusive_and_mask_is_obeyed():
    truth = depth([0.4, 0.5, 10, 10.1, 5])
    mask = np.array([[[True, True, True, True, False]]])
    row = measure(2 * truth, truth, mask=mask, depth_min=0.5, depth_max=10.0)[0]
    assert row.valid == 2
    assert row.values["abs_diff"] == pytest.approx(5.25)


def test_without_valid_truth_the_row_is_dropped_with_a_reason():
    row = measure(depth([1, 1]), depth([0, 20]), depth_max=10.0)[0]
    assert row.values == {} and row.valid == 0
    assert row.reason == "no truth within 0 to 10 m and inside the mask"


def test_a_map_that_abstains_everywhere_has_coverage_zero_and_no_errors():
    row = measure(depth([0, 0]), depth([1, 2]))[0]
    assert row.values == {"coverage": 0.0}
    assert row.reason == "the method abstains on all 2 valid pixels"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, -np.inf])
@pytest.mark.parametrize("measured", [0.0, 2.0])
def test_a_bad_prediction_is_refused_by_the_name_of_its_sample(bad, measured):
    prediction, truth = depth([1, bad]), depth([1, measured])
    with pytest.raises(DataError, match=r"apt_1 #3: prediction has values between"):
        measure(prediction, truth, names=["apt_1 #3"])


def test_bad_truth_is_refused():
    with pytest.raises(DataError, match=r"map 0: truth has values between nan"):
        measure(depth([1, 1]), depth([1, np.nan]))


def test_other_sizes_are_refused():
    with pytest.raises(DataError, match=r"expected one shape"):
        measure(np.ones((1, 2, 2), np.float32), np.ones((1, 2, 3), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta1": 0.9, "delta2": 0.8}, "delta1 = 0.9 and delta2 = 0.8 cannot both be true"),
        ({"delta105": 0.7}, "delta105 = 0.7 and delta1 = 0.6"),
        ({"delta2": 0.99}, "delta2 = 0.99 and delta3 = 0.9"),
        ({"rmse": 0.1}, "abs_diff = 0.2 and rmse = 0.1"),
        ({"rmse_log": 0.1}, "log10 = 0.1 and rmse_log = 0.1"),
        ({"coverage": 1.2}, r"coverage is 1.2; expected a finite number in \[0, 1\]"),
        ({"coverage": -0.1}, "coverage is -0.1"),
        ({"abs_rel": float("nan")}, "abs_rel is nan; expected a finite number >= 0"),
        ({"sq_rel": float("inf")}, "sq_rel is inf"),
    ],
)
def test_impossible_results_are_refused(change, message):
    values = dict(zip(ERRORS, (0.1, 0.2, 0.1, 0.3, 0.3, 0.1, 0.6, 0.8, 0.9, 0.5), strict=True)) | {"coverage": 1.0}
    check_values(values, "dtu/deltaz")
    with pytest.raises(DataError, match=f"dtu/deltaz: .*{message}"):
        check_values(values | change, "dtu/deltaz")


def test_oracle_confidence_has_no_area_and_constant_confidence_is_flat():
    error = np.random.default_rng(0).exponential(1, 5000)
    assert ause(*sparsification(error, -error)) == pytest.approx(0, abs=1e-12)
    flat, oracle = sparsification(error, np.full(5000, 0.5))
    assert flat == pytest.approx(np.ones(50))
    assert oracle[0] == pytest.approx(1) and np.all(np.diff(oracle) <= 1e-12)


def test_sparsification_worked_by_hand():
    # sure of the pixels with errors 0 and 4, unsure of those with 2 and 2
    curve, oracle = sparsification(np.array([0.0, 4, 2, 2]), np.array([0.9, 0.8, 0.2, 0.2]), steps=4)
    assert curve == pytest.approx([1, 1, 1, 0])
    assert oracle == pytest.approx([1, (4 / 3) / 2, 0.5, 0])
    assert ause(curve, oracle) == pytest.approx((1 / 3 + 0.5) / 4)


def test_reversed_confidence_is_worse_than_none():
    error = np.random.default_rng(0).exponential(1, 1000)
    assert ause(*sparsification(error, error)) > ause(*sparsification(error, np.ones(1000))) > 0


def test_perfect_depth_has_no_area():
    assert ause(*sparsification(np.zeros(10), np.arange(10.0))) == 0


def test_likeness_and_shares_are_better_when_higher_and_errors_when_lower():
    higher = [
        name
        for name in (*METRICS, "auc5", "delta1_median", "psnr", "ssim", "lpips", "focal_error")
        if is_better_higher(name)
    ]
    assert higher == ["delta1", "delta2", "delta3", "delta105", "coverage", "auc5", "delta1_median", "psnr", "ssim"]
