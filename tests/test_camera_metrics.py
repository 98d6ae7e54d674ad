"""Camera metrics by numbers worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from plumbline.camera_metrics import (
    area_under_recall,
    camera_errors,
    direction_angle,
    focal_error,
    rotation_angle,
    summary,
)
from plumbline.errors import DataError


def turn(degrees: float, axis: int = 1) -> np.ndarray:
    """A rotation about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [k for k in range(3) if k != axis]
    R = np.eye(3)
    R[i, i], R[i, j], R[j, i], R[j, j] = c, -s, s, c
    return R


def pose(degrees: float = 0.0, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """A camera turned about its vertical axis, at `centre`."""
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = turn(degrees), centre
    return made


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 90.0, 179.999, 180.0])
def test_the_angle_of_a_rotation(axis: int, degrees: float) -> None:
    assert rotation_angle(turn(degrees, axis)[None])[0] == pytest.approx(degrees, rel=1e-6, abs=1e-12)


def test_the_angle_between_directions() -> None:
    true = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
    predicted = np.array([[5.0, 0, 0], [1, 1, 0], [-1, 0, 0], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(direction_angle(predicted, true), [0, 45, 180, 180, np.nan])
    np.testing.assert_allclose(direction_angle(predicted, true, either_sign=True), [0, 45, 0, 90, np.nan])


def test_errors_are_of_each_pair_and_know_no_unit_and_no_world() -> None:
    truth = np.stack([pose(), pose(10, (1, 0, 0)), pose(20, (1, 0, 1))])
    predicted = np.stack([pose(), pose(12, (3, 0, 0)), pose(25, (3, 0, 3))])
    world = pose(70, (4, -2, 9))
    errors = camera_errors(world @ predicted, truth)
    assert errors.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    np.testing.assert_allclose(errors.rotation, [2, 5, 3], atol=1e-9)
    # Seen from view 1, which is turned by 2 degrees too much, the same direction is 2 degrees off.
    np.testing.assert_allclose(errors.translation, [0, 0, 2], atol=1e-6)
    np.testing.assert_allclose(errors.worst, [2, 5, 3], atol=1e-6)


def test_views_in_one_place_are_compared_by_rotation_alone() -> None:
    errors = camera_errors(np.stack([pose(), pose(7, (1, 0, 0))]), np.stack([pose(), pose(3)]))
    assert np.isnan(errors.translation).all()
    assert errors.worst == pytest.approx([4])


def test_a_broken_pose_is_as_wrong_as_can_be() -> None:
    truth = np.stack([pose(), pose(10, (1, 0, 0)), pose(20, (2, 0, 0))])
    predicted = truth.copy()
    predicted[2, 0, 3] = np.inf
    errors = camera_errors(predicted, truth)
    np.testing.assert_allclose(errors.rotation, [0, 180, 180], atol=1e-9)
    np.testing.assert_allclose(errors.translation, [0, 180, 180], atol=1e-6)


def test_the_area_under_the_recall_curve_is_that_of_the_staircase() -> None:
    # Up to 10 degrees: nothing before 1, half from 1 to 6, all from 6 on: (0.5 * 5 + 4) / 10.
    assert area_under_recall(np.array([1.0, 6.0]), 10.0) == pytest.approx(0.65)
    # The error of 6 is never reached within 5: 0.5 * 4 / 5.
    assert area_under_recall(np.array([1.0, 6.0]), 5.0) == pytest.approx(0.4)
    assert area_under_recall(np.zeros(3), 5.0) == 1.0
    assert area_under_recall(np.full(3, 180.0), 30.0) == 0.0
    assert np.isnan(area_under_recall(np.zeros(0), 5.0))


def test_the_area_equals_a_numeric_integral() -> None:
    errors = np.random.default_rng(0).exponential(8.0, 200)
    steps = np.linspace(0, 30, 200_001)
    recall = np.searchsorted(np.sort(errors), steps, side="right") / len(errors)
    assert area_under_recall(errors, 30.0) == pytest.approx(recall.mean(), abs=1e-4)


def test_focal_lengths() -> None:
    truth, K = np.tile(np.diag([500.0, 400.0, 1.0]), (2, 1, 1)), np.tile(np.diag([550.0, 360.0, 1.0]), (2, 1, 1))
    K[1] = truth[1]
    np.testing.assert_allclose(focal_error(K, truth), [0.1, 0.0])


def test_a_summary_pools_all_pairs() -> None:
    truth = np.stack([pose(), pose(0, (1, 0, 0))])
    one, other = (camera_errors(np.stack([pose(), pose(d, (1, 0, 0))]), truth) for d in (1.0, 6.0))
    values = summary([one, other])
    found = {f"{name} {kind}": value for name, row in values.items() for kind, value in row.items()}
    expected = {"rotation_error_deg median": 3.5, "rotation_error_deg mean": 3.5, "translation_error_deg median": 0.0}
    expected |= {"translation_error_deg mean": 0, "auc5 mean": 0.4, "auc10 mean": 0.65, "auc30 mean": 1 - 3.5 / 30}
    assert found == pytest.approx(expected, abs=1e-6)
    lengths = summary([one], [np.array([0.1, 0.0]), np.array([0.5])])["focal_error"]
    assert lengths == pytest.approx({"median": 0.1, "mean": 0.2})
    with pytest.raises(DataError, match="no sample to sum up"):
        summary([])


def test_what_cannot_be_compared_is_named() -> None:
    two, three = np.stack([pose()] * 2), np.stack([pose()] * 3)
    with pytest.raises(DataError, match=r"predicted poses are \(3, 4, 4\), true ones \(2, 4, 4\)"):
        camera_errors(three, two)
    with pytest.raises(DataError, match="of two views or more"):
        camera_errors(two[:1], two[:1])
    with pytest.raises(DataError, match="a true pose is not finite"):
        camera_errors(two, two * np.nan)


def test_a_metric_without_a_value_is_absent_and_an_impossible_one_is_refused() -> None:
    here = camera_errors(np.stack([pose(), pose(7, (1, 0, 0))]), np.stack([pose(), pose(3)]))
    assert set(summary([here])) == {"rotation_error_deg", "auc5", "auc10", "auc30"}
    for broken in (np.array([np.nan]), np.array([-0.5])):
        with pytest.raises(
            DataError, match=r"vggt towns: focal_error median is .*; expected a finite number in \[0, inf\]"
        ):
            summary([here], [broken], where="vggt towns")
    wrong = replace(here, rotation=np.array([200.0]))
    with pytest.raises(DataError, match=r"camera metrics: rotation_error_deg median is 200.0; .* in \[0, 180\]"):
        summary([wrong])
