"""VGGT's losses by numbers worked by hand, and their gradients where truth is missing or reached."""

import math

import pytest
import torch
from torch import Tensor

from plumbline.systems.vggt import losses


def maps(error: float, confidence: float, *, size: tuple[int, int] = (20, 20), channels: int = 1) -> losses.Maps:
    """A constant error everywhere, under one confidence."""
    truth = torch.rand(1, *size, channels, generator=torch.Generator().manual_seed(0)) + 1
    return losses.Maps(
        truth + error / channels**0.5, torch.full((1, *size), confidence), truth, torch.ones(1, *size, dtype=torch.bool)
    )


def measured(pixels: int) -> Tensor:
    mask = torch.zeros(2, 2, 20, 20, dtype=torch.bool)
    mask[:, 1] = True
    mask.view(2, 2, -1)[0, 0, :pixels] = True
    return mask


def test_equal_camera_errors_at_all_iterations_count_by_their_weights() -> None:
    truth = torch.zeros(2, 2, 9)
    stage = torch.cat([torch.full((2, 2, 3), 0.3), torch.full((2, 2, 4), -0.2), torch.full((2, 2, 2), 0.1)], dim=-1)
    terms = losses.camera_terms([stage] * 4, truth, measured(400))
    share = (1 + 0.6 + 0.36 + 0.216) / 4
    assert share == pytest.approx(0.544)
    assert [float(term) for term in terms] == pytest.approx([0.3 * share, 0.2 * share, 0.1 * share])
    lengths = losses.camera_terms([stage] * 4, truth, measured(400), norm="l2")
    expected = [0.3 * 3**0.5 * share, 0.2 * 2 * share, 0.1 * 2**0.5 * share]
    assert [float(term) for term in lengths] == pytest.approx(expected)


@pytest.mark.parametrize(("pixels", "expected"), [(100, 0.0), (101, 0.5)])
def test_a_sample_counts_when_its_first_frame_is_measured(pixels: int, expected: float) -> None:
    stage = torch.zeros(2, 2, 9)
    stage[0] = 1.0
    only_first = measured(pixels)
    only_first[1, 0] = True
    terms = losses.camera_terms([stage], torch.zeros(2, 2, 9), only_first)
    assert float(terms.rotation) == expected


def test_without_any_measured_frame_the_camera_loss_is_zero_and_still_has_gradients() -> None:
    stage = torch.ones(2, 2, 9, requires_grad=True)
    terms = losses.camera_terms([stage], torch.zeros(2, 2, 9), torch.zeros(2, 2, 20, 20, dtype=torch.bool))
    sum(terms).backward()
    assert [float(term.detach()) for term in terms] == [0, 0, 0] and torch.equal(stage.grad, torch.zeros_like(stage))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_error_by_hand(channels: int) -> None:
    terms = losses.map_terms(maps(0.05, 3.0, channels=channels))
    expected = [0.05 * 3 - 0.2 * math.log(3), 0.05, 0.0]
    assert [float(term) for term in terms] == pytest.approx(expected, abs=1e-5)


def test_the_best_confidence_is_the_certainty_over_the_error() -> None:
    values = {c: float(losses.map_terms(maps(0.05, c)).confidence) for c in (3.5, 4.0, 4.5)}
    assert min(values, key=values.__getitem__) == 4.0
    assert values[4.0] == pytest.approx(0.2 - 0.2 * math.log(4.0), abs=1e-5)


def test_a_step_in_the_error_counts_once_for_each_row_at_every_stride() -> None:
    given = maps(0.0, 1.0, size=(16, 16))
    predicted = given.truth.clone()
    predicted[:, :, 8:] += 0.5
    stepped = given._replace(predicted=predicted)
    # Stride k keeps 16/k rows with a step each, of (16/k)^2 pixels.
    expected = [0.5 * k / 16 for k in (1, 2, 4, 8)]
    found = [float(losses.gradient_at(stepped.every(k), confident=False)) for k in (1, 2, 4, 8)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert float(losses.gradient_term(stepped, "plain")) == pytest.approx(sum(expected) / 4, rel=1e-4)
    unmeasured = stepped.mask.clone()
    unmeasured[:, :, 8] = False
    assert float(losses.gradient_at(stepped._replace(mask=unmeasured), confident=False)) == pytest.approx(0, abs=1e-6)


def test_normals_of_a_plane_and_of_the_same_plane_tilted() -> None:
    v, u = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    flat = torch.stack([u, v, torch.full_like(u, 5.0)], dim=-1)[None]
    tilted = torch.stack([u, v, 5.0 + u], dim=-1)[None]
    normals = losses.corner_normals(flat)[:, 0, 1:-1, 1:-1]
    torch.testing.assert_close(normals.abs(), torch.tensor([0.0, 0, 1]).expand_as(normals))
    mask = torch.ones(1, 6, 7, dtype=torch.bool)
    given = losses.Maps(tilted, mask.float(), flat, mask)
    assert float(losses.normal_at(given)) == pytest.approx(1 - 0.5**0.5, rel=1e-5)


def test_the_largest_values_are_left_out_only_if_enough_remain() -> None:
    many, few = torch.arange(2000.0) / 100, torch.arange(1000.0)
    assert float(losses.kept(many, 0.98).max()) == pytest.approx(19.58)
    assert len(losses.kept(many, 0.0)) == 2000
    assert torch.equal(losses.kept(few, 0.98), few)
    # Below the threshold too few remain: all are kept.
    assert len(losses.kept(torch.ones(2000), 0.98)) == 2000


def test_few_measured_pixels_teach_nothing() -> None:
    given = maps(0.5, 2.0)
    mask = torch.zeros_like(given.mask)
    mask[0, :9, :11] = True
    predicted = given.predicted.clone().requires_grad_()
    terms = losses.map_terms(given._replace(mask=mask, predicted=predicted))
    sum(terms).backward()
    assert [float(term.detach()) for term in terms] == [0, 0, 0] and not predicted.grad.any()
    mask[0, 9, 0] = True
    assert float(losses.map_terms(given._replace(mask=mask)).regression) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("gradient", ["plain", "confident", "normal"])
def test_a_prediction_that_is_not_finite_matters_only_where_something_is_measured(gradient: str) -> None:
    given = maps(0.1, 2.0, channels=3)
    mask = given.mask.clone()
    mask[0, 4, 5] = False
    predicted = given.predicted.clone()
    predicted[0, 4, 5] = torch.nan
    predicted.requires_grad_()
    terms = losses.map_terms(given._replace(predicted=predicted, mask=mask), gradient=gradient)
    assert all(term.isfinite() for term in terms)
    sum(terms).backward()
    assert predicted.grad[mask].isfinite().all()


def test_gradients_are_finite_where_the_truth_is_reached() -> None:
    given = maps(0.0, 2.0, channels=3)
    predicted = given.truth.clone().requires_grad_()
    sum(losses.map_terms(given._replace(predicted=predicted), gradient="normal")).backward()
    assert predicted.grad.isfinite().all()


def test_gradients_of_all_terms_against_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted = (torch.rand(1, 11, 12, 1, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    confidence = (torch.rand(1, 11, 12, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    truth = torch.rand(1, 11, 12, 1, generator=generator, dtype=torch.float64) + 3
    mask = torch.rand(1, 11, 12, generator=generator) < 0.95

    def total(predicted: Tensor, confidence: Tensor) -> Tensor:
        return sum(losses.map_terms(losses.Maps(predicted, confidence, truth, mask), gradient="confident"))

    assert torch.autograd.gradcheck(total, (predicted, confidence), fast_mode=True)
