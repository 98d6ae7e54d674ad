"""The perturbed oracle: the truth made worse by as much as was asked for, the same each time."""

from dataclasses import replace

import pytest
import torch

from plumbline.errors import DataError
from plumbline.systems.perturbed import Config, System
from plumbline.systems.records import Batch

NONE = {"noise": 0, "bias": 0, "blur": 0, "holes": 0}


def batch(size: tuple[int, int] = (60, 80)) -> Batch:
    depth = 1 + torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:, :, :5] = False
    return Batch(
        image=torch.zeros(2, 3, 3, *size),
        K=torch.eye(3).repeat(2, 3, 1, 1),
        cam0_T_cam=None,
        depth_range=None,
        depth=depth,
        mask=mask,
        predict_views=2,
    )


def perturbed(**changes: float) -> torch.Tensor:
    return System(Config.model_validate({**NONE, **changes}))(batch()).depth


def test_nothing_asked_for_is_the_usable_truth() -> None:
    data = batch()
    assert torch.equal(perturbed(), data.depth[:, :2] * data.mask[:, :2])


def test_noise_is_relative_to_depth_and_of_the_asked_size() -> None:
    data = batch()
    ratio = (perturbed(noise=0.05) / data.depth[:, :2])[data.mask[:, :2]]
    assert ratio.log().std().item() == pytest.approx(0.05, rel=0.05)


def test_bias_is_smooth() -> None:
    data = batch()
    error = (perturbed(bias=0.05) / data.depth[:, :2]).log()[:, :, 5:]
    assert 0.01 < error.std() < 0.1 and error.diff(dim=-1).abs().max() < 0.03


def test_holes_take_the_asked_share() -> None:
    data = batch()
    kept = (perturbed(holes=0.25) > 0)[:, :, 5:].float().mean()
    assert kept.item() == pytest.approx(0.75, abs=0.05) and (perturbed()[data.mask[:, :2]] > 0).all()


def test_blur_averages_measured_depths_only() -> None:
    blurred = perturbed(blur=2)[:, :, 5:]
    assert blurred.min() >= 1 and blurred.std() < 0.5 * batch().depth.std()


def test_the_same_truth_gives_the_same_prediction_and_seeds_differ() -> None:
    assert torch.equal(perturbed(noise=0.1), perturbed(noise=0.1))
    assert not torch.equal(perturbed(noise=0.1), perturbed(noise=0.1, seed=1))
    one = perturbed(noise=0.1)
    assert not torch.allclose(one[0, 0] / batch().depth[0, 0], one[1, 0] / batch().depth[1, 0])


def test_it_is_an_oracle_and_says_so() -> None:
    assert "depth" in System.inputs
    with pytest.raises(DataError, match="needs true depth"):
        System(Config())(replace(batch(), depth=None))
