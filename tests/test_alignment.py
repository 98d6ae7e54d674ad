import numpy as np
import pytest

from plumbline.alignment import ALIGNMENTS, align, fit_alignment
from plumbline.errors import ConfigError


def maps(scale=1.0, shift=0.0):
    truth = np.random.default_rng(0).uniform(1, 9, (2, 12, 15)).astype(np.float32)
    return ((truth - shift) / scale).astype(np.float32), truth


def test_none_is_the_prediction_itself():
    prediction, truth = maps(2)
    assert align(prediction, truth, truth > 0, "none") is prediction


def test_median_undoes_a_scale_of_each_map():
    prediction, truth = maps(2)
    prediction[1] *= 7
    assert align(prediction, truth, truth > 0, "median") == pytest.approx(truth, rel=1e-5)


def test_scale_shift_undoes_scale_and_shift():
    prediction, truth = maps(0.5, -0.8)
    assert align(prediction, truth, truth > 0, "scale_shift") == pytest.approx(truth, rel=1e-4)


def test_scale_shift_is_the_least_squares_line():
    rng = np.random.default_rng(1)
    prediction, truth = rng.uniform(1, 5, 200), rng.uniform(1, 5, 200)
    design = np.stack([prediction, np.ones(200)], axis=1)
    expected = np.linalg.lstsq(design, truth, rcond=None)[0]
    assert fit_alignment(prediction, truth, "scale_shift") == pytest.approx(tuple(expected))


def test_median_is_worked_by_hand():
    assert fit_alignment(np.array([1.0, 2, 9]), np.array([3.0, 5, 6]), "median") == (2.5, 0.0)


def test_a_constant_prediction_is_only_shifted():
    assert fit_alignment(np.full(4, 2.0), np.array([1.0, 2, 3, 6]), "scale_shift") == pytest.approx((1, 1))


def test_only_valid_pixels_decide():
    prediction, truth = maps(2)
    valid = np.zeros(truth.shape, bool)
    valid[:, :6] = True
    prediction[:, 6:] = 1000
    assert align(prediction, truth, valid, "median")[:, :6] == pytest.approx(truth[:, :6], rel=1e-5)


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_abstentions_stay(kind):
    prediction, truth = maps(2, 1)
    prediction = prediction.clip(0.1)
    prediction[:, 3] = 0
    aligned = align(prediction, truth, truth > 0, kind)
    assert np.array_equal(aligned == 0, prediction == 0)


def test_values_pushed_below_the_floor_are_set_to_it():
    prediction = np.array([[[1, 2, 3, 0.01]]], np.float32)
    truth = np.array([[[1, 3, 5, 0]]], np.float32)
    assert align(prediction, truth, truth > 0, "scale_shift", floor=0.5)[0, 0] == pytest.approx([1, 3, 5, 0.5])


def test_without_common_pixels_nothing_moves():
    prediction, truth = maps()
    assert align(prediction, truth, np.zeros(truth.shape, bool), "median") == pytest.approx(prediction)


def test_an_unknown_alignment_is_refused():
    with pytest.raises(ConfigError, match=r"unknown alignment 'affine'; expected one of none, median, scale_shift"):
        fit_alignment(np.ones(2), np.ones(2), "affine")
