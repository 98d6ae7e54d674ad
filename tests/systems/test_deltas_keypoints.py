"""Keypoints: decoding, suppression, order, and the random rest."""

from typing import Any

import pytest
import torch
from torch import Tensor

from plumbline.systems.deltas.keypoints import (
    keypoint_probability,
    local_maxima,
    maximum_filter,
    maximum_filter_reference,
    select_keypoints,
)

OPTIONS: dict[str, Any] = {
    "size": (32, 40), "count": 12, "detected": 6, "threshold": 0.01, "radius": 2, "border": 4, "training": False,
}  # fmt: skip


def logits_with(peaks: dict[tuple[int, int], float], size: tuple[int, int] = (32, 40)) -> Tensor:
    """Logits of one image whose probability is about `peaks` at these pixels (x, y), nearly 0 elsewhere."""
    logits = torch.zeros(1, 65, size[0] // 8, size[1] // 8)
    logits[:, 64] = 12.0
    for (x, y), probability in peaks.items():
        odds = torch.tensor(probability / (1 - probability)).log()
        logits[0, 8 * (y % 8) + x % 8, y // 8, x // 8] = 12.0 + odds
    return logits


def select(logits: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    return select_keypoints(logits, **{**OPTIONS, **changes})


def test_a_cell_s_channel_is_its_pixel_row_by_row() -> None:
    logits = torch.zeros(2, 65, 3, 5)
    logits[1, 8 * 6 + 3, 2, 4] = 9.0
    probability = keypoint_probability(logits)
    assert probability.shape == (2, 24, 40)
    assert divmod(int(probability[1].argmax()), 40) == (8 * 2 + 6, 8 * 4 + 3)
    torch.testing.assert_close(probability[0], torch.full((24, 40), 1 / 65))


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 9, 30])
def test_the_fast_maximum_is_the_windows_maximum(radius: int) -> None:
    x = torch.randn(2, 23, 37)
    assert torch.equal(maximum_filter(x, radius), maximum_filter_reference(x, radius))


def test_a_pixel_freed_by_suppression_is_found_later_unless_it_lies_in_a_found_window() -> None:
    score = torch.full((1, 1, 12), 0.01)
    # 5 suppresses 4, which would have suppressed 3; 2 lies within 3's window.
    score[0, 0, [1, 3, 5, 7]] = torch.tensor([2.0, 3.0, 4.0, 5.0])
    assert local_maxima(score, 2)[0, 0, [1, 3, 5, 7]].tolist() == [False, True, False, True]


def test_few_detections_come_row_by_row_and_the_rest_is_random_with_score_zero() -> None:
    peaks = {(30, 20): 0.3, (9, 20): 0.8, (20, 8): 0.1}
    points, scores = select(logits_with(peaks))
    assert points.shape == (1, 12, 2) and scores.shape == (1, 12)
    assert points[0, :3].tolist() == [[20, 8], [9, 20], [30, 20]]
    torch.testing.assert_close(scores[0, :3], torch.tensor([0.1, 0.8, 0.3]), rtol=1e-3, atol=1e-3)
    assert not scores[0, 3:].any()
    assert (points >= 0).all() and (points[..., 0] < 40).all() and (points[..., 1] < 32).all()
    assert torch.equal(points, points.round())


def test_of_many_detections_the_best_are_taken_best_first() -> None:
    peaks = {(30, 20): 0.3, (9, 20): 0.8, (20, 8): 0.1}
    points, scores = select(logits_with(peaks), detected=2)
    assert points[0, :2].tolist() == [[9, 20], [30, 20]] and not scores[0, 2:].any()


def test_threshold_border_and_padding_keep_detections_out() -> None:
    peaks = {(3, 16): 0.9, (4, 16): 0.5, (35, 8): 0.9, (20, 27): 0.9, (20, 28): 0.5, (12, 12): 0.009}
    points, scores = select(logits_with(peaks), radius=0)
    assert points[scores > 0].tolist() == [[35, 8], [4, 16], [20, 27]]
    # The image proper ends at row 30 and column 37: nothing is found, nor drawn, in what was filled up beyond.
    points, scores = select(logits_with(peaks), radius=0, size=(30, 37), count=500)
    assert points[scores > 0].tolist() == [[4, 16]]
    assert points[..., 0].max() == 36 and points[..., 1].max() == 29


def test_predictions_are_the_same_whatever_the_batch_and_the_generator() -> None:
    logits = torch.randn(3, 65, 4, 5)
    together = select(logits)
    state = torch.get_rng_state()
    alone = [select(logits[i : i + 1]) for i in range(3)]
    assert torch.equal(state, torch.get_rng_state())
    for i in range(2):
        # Equal but for the last digit of a score: a softmax may be summed in another order.
        torch.testing.assert_close(together[i], torch.cat([part[i] for part in alone]))


def test_training_draws_other_points_each_time_and_for_each_image_from_torch_s_generator() -> None:
    logits = logits_with({}).repeat(2, 1, 1, 1)
    torch.manual_seed(1)
    first, second = select(logits, training=True)[0], select(logits, training=True)[0]
    torch.manual_seed(1)
    again = select(logits, training=True)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_more_keypoints_than_pixels_can_be_asked_for() -> None:
    points, _ = select(torch.randn(1, 65, 1, 1), size=(8, 8), count=100, detected=80, border=0)
    assert points.shape == (1, 100, 2) and points.max() == 7
