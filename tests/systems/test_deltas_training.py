"""DELTAS learns: one triplet is fitted, every part gets a gradient, and the loss says what it needs."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plane_scene import scene
from plumbline.errors import DataError
from plumbline.geometry import invert_intrinsics, pixel_grid
from plumbline.systems.deltas import Config, System
from plumbline.systems.records import Batch

STEPS, LR = 90, 5e-3
# The published method, only smaller; matches start undecided, so that it is learning that finds them.
SMALL: dict[str, Any] = {
    "encoder_stem": 16, "encoder_widths": (12, 16, 24, 32), "encoder_blocks": (1, 1, 1, 1), "expansion": 2,
    "detector_widths": (32, 32), "descriptor_widths": (32, 48, 48), "descriptor_channels": 32, "depth_stem": 8,
    "depth_widths": (8, 12, 16, 24), "depth_blocks": (1, 1, 1, 1), "decoder_widths": (32, 24, 24, 16, 8),
    "aspp_width": 16, "aspp_dilations": (2, 4), "keypoints": 64, "samples": 16,
}  # fmt: skip
DEPTHS = ("depth_full", "depth_half", "depth_quarter", "depth_eighth")


def triplet(size: tuple[int, int] = (64, 96)) -> Batch:
    """A slanted wall about 3 m away with a painting of soft blots, seen from three places up to 0.9 m apart."""
    h, w = size
    K = torch.tensor([[1.0 * w, 0, w / 2 - 0.5], [0, 1.0 * w, h / 2 - 0.5], [0, 0, 1]])
    cam0_T_cam = torch.eye(4).repeat(3, 1, 1)
    cam0_T_cam[1:, :3, 3] = torch.tensor([[0.5, 0.0, 0.0], [-0.4, 0.2, 0.0]])
    rays = torch.cat([pixel_grid(size), torch.ones(h, w, 1)], dim=-1) @ invert_intrinsics(K).T
    normal = torch.tensor([0.3, 0.1, 1.0])
    centres = cam0_T_cam[:, :3, 3]
    depth = (3 - centres @ normal)[:, None, None] / (rays @ normal)
    points = depth[..., None] * rays + centres[:, None, None]
    painting = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    at = points[..., :2] / torch.tensor([2.5, 2.0])
    image = F.grid_sample(painting, at, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)
    labels = torch.zeros(1, 3, h, w)
    labels[..., 3::16, 5::16] = 0.9
    return Batch(
        image=image[None],
        K=K.repeat(1, 3, 1, 1),
        cam0_T_cam=cam0_T_cam[None],
        depth_range=torch.tensor([[1.2, 12.0]]),
        depth=depth[None],
        mask=torch.ones(1, 3, h, w, dtype=torch.bool),
        keypoint_probability=labels,
    )


def small(**options: Any) -> System:
    torch.manual_seed(0)
    return System(Config(**(SMALL | options))).train()


def losses_of(system: System, batch: Batch) -> dict[str, Tensor]:
    return system.loss(system(batch.select(system.inputs)), batch)


def fit(system: System, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
    """Train on `batch`; the losses at the first step, and the last four steps' means."""
    optimizer = torch.optim.Adam(system.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS, pct_start=0.1)
    curve = []
    for _ in range(STEPS):
        losses = losses_of(system, batch)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.append({name: value.item() for name, value in losses.items()})
    return curve[0], {name: sum(row[name] for row in curve[-4:]) / 4 for name in curve[0]}


def test_one_triplet_is_fitted_and_what_is_learnt_holds_in_inference() -> None:
    system, batch = small(), triplet()
    first, last = fit(system, batch)
    assert last["match_2d"] < first["match_2d"] / 20 and last["point_3d"] < first["point_3d"] / 20
    assert sum(last[name] for name in DEPTHS) < sum(first[name] for name in DEPTHS) / 20
    assert last["keypoint"] < first["keypoint"] / 4
    with torch.no_grad():
        prediction = system.eval()(batch.select(system.inputs))
    measures = system.diagnostics(prediction, batch)
    assert measures["usable_share"].item() > 0.8 and measures["match_error_px"].item() < 0.3
    assert measures["triangulation_error_m"].item() < 0.1
    # The published weight of smoothness keeps a slope from being followed to the end.
    assert (prediction.depth[:, 0] / batch.depth[:, 0] - 1).abs().mean() < 0.1


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"unit": "range"}])
def test_every_part_that_should_learn_gets_a_finite_gradient(options: dict[str, Any]) -> None:
    system = small(**options)
    losses_of(system, triplet())["total"].backward()
    grads = {name: parameter.grad for name, parameter in system.named_parameters() if parameter.requires_grad}
    assert {name for name, grad in grads.items() if grad is None or not grad.any()} == set()
    assert {name for name, grad in grads.items() if not torch.isfinite(grad).all()} == set()


@pytest.mark.parametrize(
    ("component", "part"),
    [
        ("keypoint", "front.convPc"),
        ("match_2d", "front.convDd"),
        ("point_3d", "tri.bn_match_convD"),
        ("depth_full", "dense.conv_final"),
        ("depth_full", "front.convDd"),
        ("depth_eighth", "front.convDd"),
        ("smoothness", "dense.conv_final"),
    ],
)
def test_each_loss_reaches_the_part_it_is_for(component: str, part: str) -> None:
    system = small()
    losses_of(system, triplet())[component].backward()
    grad = system.get_submodule(part).weight.grad
    assert grad is not None and grad.any()


def test_without_labels_the_detector_rests_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    system, batch = small(), replace(triplet(), keypoint_probability=None)
    with caplog.at_level(logging.WARNING, "plumbline"):
        for _ in range(2):
            losses = losses_of(system, batch)
    assert [record.message for record in caplog.records] == [
        "deltas: no keypoint labels in the batch: the detector stays as it is, its loss counts as 0"
    ]
    losses["total"].backward()
    assert losses["keypoint"].item() == 0 and not system.front.convPc.weight.grad.any()


def test_labels_that_weigh_nothing_are_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "plumbline"):
        losses_of(small(weights={"keypoint": 0}), replace(triplet(), keypoint_probability=None))
    assert not caplog.records


def test_the_total_is_the_weighted_sum_and_truth_is_needed() -> None:
    system, batch = small(weights={"smoothness": 0.25}), triplet()
    losses = losses_of(system, batch)
    weights = {"keypoint": 0.1, "match_2d": 1, "point_3d": 2, "smoothness": 0.25}
    weights |= dict(zip(DEPTHS, (2, 1.4, 0.98, 0.686)))
    expected = sum(weight * losses[name].item() for name, weight in weights.items())
    assert losses["total"].item() == pytest.approx(expected, rel=1e-5)
    assert set(losses) == {*weights, "match_likelihood", "total"}
    with pytest.raises(DataError, match=r"true depth; this batch has none\. Train on scenes with depth"):
        losses_of(system, replace(batch, depth=None, mask=None))


def test_holes_in_the_truth_stay_holes_unless_the_authors_way_is_asked_for() -> None:
    batch = triplet()
    mask = batch.mask.clone()
    mask[..., ::3] = False
    holed = replace(batch, depth=torch.where(mask, batch.depth, 0.0), mask=mask)
    ours, theirs = (small(depth_resize=way) for way in ("valid_mean", "bilinear"))
    prediction = ours(holed.select(ours.inputs))
    true = replace(prediction, internals={**prediction.internals, "depth_half": F.avg_pool2d(batch.depth[:, :1], 2)})
    assert theirs.loss(true, holed)["depth_half"] > 10 * ours.loss(true, holed)["depth_half"]


def test_variations_keep_what_the_loss_needs() -> None:
    system, batch = small(), scene(size=(64, 80))
    varied = system.augment(batch, torch.Generator().manual_seed(3))
    assert varied.keypoint_probability.shape == batch.keypoint_probability.shape
    assert not torch.equal(varied.keypoint_probability, batch.keypoint_probability)
    losses = losses_of(system, varied)
    assert all(isinstance(value, Tensor) and torch.isfinite(value) and value.requires_grad for value in losses.values())
