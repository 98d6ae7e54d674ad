"""VGGT as a system: scale, padding, precision, frozen modules, and a pair that it fits."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from plane_scene import scene
from plumbline.errors import ConfigError, DataError
from plumbline.geometry import invert
from plumbline.systems.vggt import Config, System
from plumbline.systems.vggt.config import LossConfig
from plumbline.systems.vggt.encoding import decode, encode, to_scene_units
from plumbline.systems.vggt.system import baseline_scale, inverse_log

SMALL = {
    "preset": "tiny",
    "width": 32,
    "rounds": 2,
    "camera_blocks": 1,
    "dpt_features": 16,
    "dpt_widths": (8, 8, 8, 8),
    "dpt_layers": (0, 0, 1, 1),
}


def build(**changes: object) -> System:
    torch.manual_seed(0)
    return System(Config(**(SMALL | changes)))


def test_by_default_it_looks_at_images_alone_and_knows_no_scale() -> None:
    system, batch = build().eval(), scene()
    assert system.inputs == {"image"}
    prediction = system(batch.select(system.inputs))
    assert not prediction.internals["scale_known"].any() and (prediction.internals["scale"] == 1).all()
    assert torch.equal(prediction.depth, prediction.internals["depth"])


def test_poses_bring_a_prediction_to_metres() -> None:
    system, batch = build(metric_from="poses").eval(), scene()
    assert system.inputs == {"image", "cam0_T_cam"}
    metric = system(batch.select(system.inputs))
    assert metric.internals["scale_known"].all()
    predicted, true = (x[:, 1:, :3, 3].norm(dim=-1) for x in (metric.cameras.cam0_T_cam, batch.cam0_T_cam))
    torch.testing.assert_close((predicted * true).sum(1), (predicted * predicted).sum(1))
    scale = metric.internals["scale"][:, None, None, None]
    torch.testing.assert_close(metric.depth, metric.internals["depth"] * scale)
    farther = replace(batch, cam0_T_cam=batch.cam0_T_cam.clone())
    farther.cam0_T_cam[:, :, :3, 3] *= 10
    torch.testing.assert_close(system(farther).depth, 10 * metric.depth)
    with pytest.raises(DataError, match="metric_from: poses needs the poses of every sample"):
        system(batch.select(frozenset({"image"})))


def test_cameras_in_one_place_leave_the_scale_unknown() -> None:
    here, moved = torch.eye(4).repeat(2, 2, 1, 1), torch.eye(4).repeat(2, 2, 1, 1)
    moved[:, 1, 0, 3] = torch.tensor([0.5, 0.0])
    given = moved.clone()
    given[:, 1, 0, 3] = 2.0
    scale, known = baseline_scale(moved, given)
    assert scale.tolist() == [4.0, 1.0] and known.tolist() == [True, False]
    assert not baseline_scale(moved, here)[1].any()


def test_a_perfect_answer_is_the_truth_again() -> None:
    batch, size = scene(v=3), (32, 40)
    cam_T_cam0 = invert(batch.cam0_T_cam)
    units = to_scene_units(batch.depth, batch.mask, batch.K, cam_T_cam0)
    cameras, K = decode(encode(units.cam_T_cam0, batch.K, size), size)
    scale, known = baseline_scale(invert(cameras), batch.cam0_T_cam)
    assert known.all()
    torch.testing.assert_close(scale, units.scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(units.depth * scale[:, None, None, None], batch.depth, rtol=1e-4, atol=0)
    torch.testing.assert_close(K[..., 0, 0], batch.K[..., 0, 0])


def test_cameras_are_relative_to_the_first_view_and_have_the_middle_as_principal_point() -> None:
    cameras = build().eval()(scene(size=(32, 40))).cameras
    torch.testing.assert_close(cameras.cam0_T_cam[:, 0], torch.eye(4).expand(2, 4, 4), rtol=0, atol=1e-5)
    assert (cameras.K[..., :2, 2] == torch.tensor([19.5, 15.5])).all()
    assert not torch.equal(cameras.cam0_T_cam[:, 1], cameras.cam0_T_cam[:, 0])


def test_any_size_is_answered_as_if_filled_up() -> None:
    system, batch = build().eval(), scene(size=(30, 43)).select(frozenset({"image"}))
    with torch.no_grad():
        odd = system(batch)
        padded = torch.nn.functional.pad(batch.image.flatten(0, 1), (0, 5, 0, 2), mode="replicate")
        whole = system(replace(batch, image=padded.reshape(2, 3, 3, 32, 48)))
    assert torch.equal(odd.depth, whole.depth[..., :30, :43])


def test_the_loss_looks_at_all_views_in_training() -> None:
    system, batch = build().train(), replace(scene(), predict_views=1)
    prediction = system(batch.select(system.inputs))
    assert prediction.depth.shape[1] == 1 and prediction.internals["depth"].shape[1] == 3
    spoilt = replace(batch, mask=batch.mask.clone())
    spoilt.mask[:, 1] = False
    one, other = (system.loss(prediction, b)["depth_regression"].item() for b in (batch, spoilt))
    assert one != other
    with pytest.raises(DataError, match="needs true depth and poses"):
        system.loss(prediction, replace(batch, depth=None))


def test_the_total_weighs_its_parts() -> None:
    weights = LossConfig(camera=2.0, focal=0.25, depth=3.0, point=0.5)
    system, batch = build(point=True, loss=weights).train(), scene()
    values = system.loss(system(batch), batch)
    camera = values["translation"] + values["rotation"] + 0.25 * values["focal"]
    torch.testing.assert_close(values["camera"], camera)
    depth, points = (
        sum(values[f"{name}_{part}"] for part in ("confidence", "regression", "gradient"))
        for name in ("depth", "points")
    )
    torch.testing.assert_close(values["total"], 2 * camera + 3 * depth + 0.5 * points)


def test_heads_stay_in_float32_when_the_rest_is_not() -> None:
    system, batch = build().eval(), scene()
    with torch.no_grad():
        exact = system(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = system(batch)
    assert rough.depth.dtype == rough.cameras.K.dtype == torch.float32
    assert not torch.equal(rough.depth, exact.depth)
    torch.testing.assert_close(rough.depth, exact.depth, rtol=0.05, atol=0)


def test_frozen_modules_are_not_trained_and_stay_in_inference_mode() -> None:
    system, batch = build(frozen=("*aggregator*",)).train(), scene()
    assert (
        not system.aggregator.training and not system.aggregator.frame_blocks[0].training and system.depth_head.training
    )
    system.loss(system(batch), batch)["total"].backward()
    assert all(p.grad is None for p in system.aggregator.parameters())
    assert all(p.grad is not None for p in system.depth_head.parameters())
    with pytest.raises(ConfigError, match=r"'\*agregator\*' matches no module.*aggregator, camera_head, depth_head"):
        build(frozen=("*agregator*",))


def test_from_given_weights_the_aggregator_rests_unless_told_otherwise() -> None:
    for frozen, resting in ((None, {"aggregator"}), ((), set()), (("camera_head",), {"camera_head"})):
        system = build(frozen=frozen)
        fresh = {name.split(".")[0] for name, p in system.named_parameters() if not p.requires_grad}
        assert fresh == resting - {"aggregator"}
        system.fine_tune()
        system.train()
        assert {name.split(".")[0] for name, p in system.named_parameters() if not p.requires_grad} == resting
        assert all(getattr(system, name).training is (name not in resting) for name in ("aggregator", "camera_head"))


def test_whether_depth_is_metric_follows_the_configuration() -> None:
    assert not build().metric and build(metric_from="poses").metric


def test_a_head_that_no_loss_reaches_is_frozen() -> None:
    system, batch = build(point=True).train(), scene()
    system.loss(system(batch), batch)["total"].backward()
    without = {name.split(".")[0] for name, p in system.named_parameters() if p.grad is None}
    assert without == {"point_head"}
    assert not any(p.requires_grad for p in system.point_head.parameters())
    assert "points" in system.eval()(batch).internals


def test_without_a_camera_head_there_is_depth_alone() -> None:
    system, batch = build(camera=False).train(), scene()
    prediction = system(batch)
    assert prediction.cameras is None and "encodings" not in prediction.internals
    values = system.loss(prediction, batch)
    assert set(values) == {"depth_confidence", "depth_regression", "depth_gradient", "total"}


def test_frames_in_chunks_are_the_same_frames() -> None:
    batch, one, many = scene(), build(dpt_chunk=1).eval(), build(dpt_chunk=8).eval()
    with torch.no_grad():
        torch.testing.assert_close(one(batch).depth, many(batch).depth)


def test_coordinates_have_both_signs() -> None:
    x = torch.tensor([-2.0, 0.0, 1e-4, 1.0])
    torch.testing.assert_close(inverse_log(x), torch.tensor([1 - math.exp(2), 0.0, 1.00005e-4, math.e - 1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads: 3 heads cannot share 32 channels"),
        ({"heads": 16}, "heads: 2 channels a head; expected a multiple of 4"),
        ({"dpt_layers": (0, 1, 2, 3)}, "expected indices below rounds = 2"),
        ({"loss": {"point": 1.0}}, "without a point head"),
    ],
)
def test_impossible_configurations_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**(SMALL | changes))


def test_it_fits_a_pair() -> None:
    system, batch = build().train(), scene(b=1, v=2, size=(40, 48))
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3, weight_decay=0.0)
    history = []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 5, 2 * (60 - step) / 60)
        losses = system.loss(system(batch), batch)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0)
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["camera"] < 0.25 * history[0]["camera"]
    assert history[-1]["depth_regression"] < 0.5 * history[0]["depth_regression"]
