"""DeltaZ: the network, its inputs, and the traps that made its first version learn nothing."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plumbline.errors import ConfigError, DataError
from plumbline.systems import build
from plumbline.systems.deltaz import Config, System
from plumbline.systems.deltaz.inputs import (
    INPUT_NAMES,
    REACH,
    channels,
    distance_to_points,
    fill,
    network_input,
    prepare,
    sparse_points,
    spread_log,
)
from plumbline.systems.deltaz.network import DeltaZUNet, _decode
from plumbline.systems.deltaz.system import LossWeights
from plumbline.systems.records import Batch

TINY = {"preset": "tiny", "base_channels": 8, "depth": 2, "patch": 1}


def batch(b: int = 2, v: int = 3, p: int = 2, size: tuple[int, int] = (25, 34), *, seed: int = 0) -> Batch:
    """A slanted plane at about 2 m seen by cameras side by side, with a noisy initial depth of the first p views."""
    random = torch.Generator().manual_seed(seed)
    h, w = size
    K = torch.tensor([[0.9 * w, 0, w / 2], [0, 0.9 * w, h / 2], [0, 0, 1]]).repeat(b, v, 1, 1)
    cam0_T_cam = torch.eye(4).repeat(b, v, 1, 1)
    cam0_T_cam[:, :, 0, 3] = 0.1 * torch.arange(v)
    depth = 2 + torch.linspace(-0.3, 0.3, w).repeat(b, v, h, 1)
    noise = torch.randn(b, p, h, w, generator=random)
    return Batch(
        image=torch.rand(b, v, 3, h, w, generator=random),
        K=K,
        cam0_T_cam=cam0_T_cam,
        depth_range=torch.tensor([[0.5, 5.0]]).repeat(b, 1),
        depth=depth,
        mask=torch.rand(b, v, h, w, generator=random) > 0.2,
        initial_depth=depth[:, :p] * (1 + 0.1 * noise.clamp(-3, 3)),
        initial_confidence=torch.rand(b, p, h, w, generator=random),
        predict_views=p,
    )


def system(**params: object) -> System:
    """A tiny system whose correction head is not zero, as after some training."""
    torch.manual_seed(0)
    made = System(Config.model_validate({**TINY, **params}))
    torch.nn.init.normal_(made.network.correction_head.weight, std=0.05)
    return made


def test_the_published_network_is_the_seed_s() -> None:
    config = Config()
    assert (config.base_channels, config.depth) == (32, 4)
    assert config.weights.model_dump(exclude={"confidence"}) == {
        "depth": 1.0, "delta_z": 0.5, "point_3d": 1.0, "multiview_consistency": 0.5, "smoothness": 0.1,
        "correction_magnitude": 0.01, "direct_supervision": 0.0, "surface_smoothness": 0.0, "relative_magnitude": 0.0,
        "relative_depth": 0.0,
    }  # fmt: skip
    network = DeltaZUNet(1)
    assert [level[0].conv.out_channels for level in network.encoder] == [32, 64, 128, 256]
    assert network.bottleneck[0].conv.out_channels == 512
    assert network.confidence_head is None


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 24), (33, 18)])
@pytest.mark.parametrize(("depth", "patch"), [(1, 1), (3, 1), (2, 4)])
def test_any_size_is_returned_whole(size: tuple[int, int], depth: int, patch: int) -> None:
    network = DeltaZUNet(2, base_channels=8, depth=depth, out_confidence=True, patch=patch)
    correction, confidence, _ = network(torch.rand(2, 2, *size))
    assert correction.shape == confidence.shape == (2, *size)
    assert ((confidence > 0) & (confidence < 1)).all()


def test_a_decoder_level_is_that_of_the_stacked_channels() -> None:
    torch.manual_seed(0)
    level = DeltaZUNet(1, base_channels=8, depth=1).double().decoder[0]
    x = torch.rand(1, 16, 6, 5, dtype=torch.float64, requires_grad=True)
    skip = torch.rand(1, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, skip, *level.parameters()]
    split, stacked = _decode(level, x, skip), level(torch.cat([x, skip], dim=1))
    torch.testing.assert_close(split, stacked)
    gradients = [torch.autograd.grad(answer.square().sum(), wanted) for answer in (split, stacked)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_heads_answer_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network = DeltaZUNet(1, base_channels=8, depth=1, out_confidence=True, out_target=True)
    torch.nn.init.normal_(network.correction_head.weight, std=0.05)
    image = torch.rand(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(image)
    assert {part.dtype for part in rounded} == {torch.float32}
    torch.testing.assert_close(rounded.correction, network(image).correction, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_have_the_memory_layout_of_the_weights(layout: torch.memory_format) -> None:
    network = DeltaZUNet(3, base_channels=8, depth=1).to(memory_format=layout)
    features = network._features(torch.rand(1, 3, 16, 16))
    assert features.is_contiguous(memory_format=layout)


def test_padding_changes_nothing_inside_the_image() -> None:
    network = DeltaZUNet(1, base_channels=8, depth=2)
    torch.nn.init.normal_(network.correction_head.weight)
    image = torch.rand(1, 1, 13, 18)
    by_hand = torch.nn.functional.pad(image, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(network(image)[0], network(by_hand)[0][:, :13, :18])


def test_preset_fills_and_what_stands_beside_it_wins() -> None:
    tiny, wider = Config(preset="tiny"), Config.model_validate({"preset": "tiny", "base_channels": 64})
    assert tiny.patch > 1 and tiny.base_channels < 32
    assert wider.base_channels == 64 and wider.patch == tiny.patch


def test_wrong_params_are_refused_by_key() -> None:
    with pytest.raises(ConfigError, match=r"systems\.deltaz\.base_channels"):
        build("deltaz", {"base_channels": 12})
    with pytest.raises(ConfigError, match="initial_depth"):
        build("deltaz", {"inputs": ["rgb"]})
    with pytest.raises(ConfigError, match=r"systems\.deltaz\.weights\.depht: unknown key"):
        build("deltaz", {"weights": {"depht": 1.0}})


def test_an_untrained_network_leaves_the_initial_depth_as_it_is() -> None:
    data = batch()
    prediction = System(Config.model_validate({**TINY, "target": False}))(data)
    assert torch.allclose(prediction.depth, data.initial_depth, rtol=1e-6)
    assert not prediction.internals["delta"].any()


def test_with_a_target_it_starts_from_sure_depth_spread_over_unsure() -> None:
    data = batch(p=1)
    confidence = torch.ones_like(data.initial_depth)
    confidence[..., 10:20] = 0.05
    initial = torch.where(confidence < 1, data.depth[:, :1] * 1.3, data.depth[:, :1])
    flat = replace(data, image=torch.full_like(data.image, 0.5), initial_depth=initial, initial_confidence=confidence)
    error = (
        System(Config.model_validate({**TINY, "target": True, "doubt": True}))(flat).depth / data.depth[:, :1]
    ).log()
    assert error[..., 12:18].abs().max() < 0.1 and error[..., :8].abs().max() < 0.01


def test_spreading_stops_at_the_edges_of_the_image() -> None:
    data = batch(b=1, p=1, size=(32, 64))
    depth = torch.full((1, 1, 32, 64), 2.0)
    depth[..., 32:] = 4.0
    confidence = torch.full_like(depth, 0.01)
    confidence[..., :8], confidence[..., -8:] = 1.0, 1.0
    image = torch.zeros(1, 3, 32, 64)
    image[..., 32:] = 1.0
    initial = prepare(depth, confidence, data.depth_range)
    step, none = spread_log(initial, image), spread_log(initial, torch.zeros_like(image))
    sharp = step[0, 16, 40] - step[0, 16, 24]
    assert sharp > 0.9 * math.log(2) and none[0, 16, 40] - none[0, 16, 24] < 0.8 * math.log(2)


@pytest.mark.parametrize("names", [("initial_depth",), ("rgb", "initial_depth"), INPUT_NAMES])
def test_inputs_is_a_list_and_in_channels_follows(names: tuple[str, ...]) -> None:
    made = system(inputs=names)
    assert made.network.encoder[0][0].conv.in_channels == channels(names)
    assert made(batch()).depth.shape == (2, 2, 25, 34)
    assert channels(INPUT_NAMES) == 11 and channels(("initial_depth",)) == 1


def test_without_confidence_head_there_is_none_to_learn() -> None:
    made = system(confidence=False)
    data = batch()
    prediction = made(data)
    assert prediction.confidence is None and "confidence" not in made.loss(prediction, data)


def test_refined_is_initial_plus_delta_and_positive() -> None:
    made = system()
    torch.nn.init.constant_(made.network.correction_head.bias, -50.0)
    data = batch()
    prediction = made(data)
    internals = prediction.internals
    rebuilt = (internals["initial"] + internals["delta"]) * internals["scale"][:, None, None, None]
    assert torch.allclose(prediction.depth, rebuilt) and (prediction.depth > 0).all()


def test_the_unit_of_length_does_not_matter() -> None:
    made, metres = system(), batch()
    millimetres = replace(
        metres,
        depth=metres.depth * 1000,
        initial_depth=metres.initial_depth * 1000,
        depth_range=metres.depth_range * 1000,
        cam0_T_cam=metres.cam0_T_cam * torch.tensor([1.0, 1, 1, 1000]),
    )
    millimetres.cam0_T_cam[..., 3, 3] = 1
    small, large = made(metres), made(millimetres)
    assert torch.allclose(small.depth * 1000, large.depth, rtol=1e-4)
    of_small, of_large = made.loss(small, metres), made.loss(large, millimetres)
    for name, value in of_small.items():
        assert of_large[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-6), name


def test_exposure_does_not_matter() -> None:
    data = batch(p=1)
    initial = prepare(data.initial_depth, None, data.depth_range)
    bright, dark = (
        network_input(("rgb", "initial_depth"), image, data.K[:, 0], initial)[:, :3]
        for image in (data.image[:, 0], data.image[:, 0] * 0.5 + 0.2)
    )
    assert torch.allclose(bright, dark, rtol=0.1) and bright.mean(dim=(1, 2, 3)).abs().max() < 1e-5


def test_where_the_initial_depth_abstains_the_surroundings_fill() -> None:
    data = batch()
    initial = data.initial_depth.clone()
    initial[:, :, 5:15, 5:15] = 0
    prediction = System(Config.model_validate(TINY))(replace(data, initial_depth=initial))
    assert ((prediction.depth > 1) & (prediction.depth < 3)).all()


def test_an_initial_depth_that_is_nowhere_takes_the_middle_of_the_range() -> None:
    data = batch()
    nothing = replace(data, initial_depth=torch.zeros(2, 2, 25, 34))
    prediction = System(Config.model_validate(TINY))(nothing)
    assert torch.allclose(prediction.depth, torch.full_like(prediction.depth, math.sqrt(0.5 * 5.0)))


def test_nothing_of_the_truth_reaches_the_prediction() -> None:
    made, data = system(), batch()
    poisoned = replace(data, depth=torch.full_like(data.depth, torch.nan), mask=~data.mask, cam0_T_cam=None)
    assert torch.equal(made(data).depth, made(poisoned).depth)
    assert not System.inputs & {"depth", "mask", "constant_depth"}
    assert torch.equal(made(data.select(System.inputs)).depth, made(data).depth)


def test_without_initial_depth_the_error_says_how_to_go_on() -> None:
    with pytest.raises(DataError, match=r"no initial depth.*systems\.deltaz\.initial"):
        system()(replace(batch(), initial_depth=None))


def test_the_loss_needs_truth() -> None:
    made, data = system(), batch()
    with pytest.raises(DataError, match="needs true depth"):
        made.loss(made(data), replace(data, depth=None, mask=None))


def test_total_is_the_weighted_sum_of_the_named_components() -> None:
    made, data = system(weights={"surface_smoothness": 0.3}), batch()
    components = made.loss(made(data), data)
    total = components.pop("total")
    weights = made.config.weights.model_dump()
    assert set(components) == set(LossWeights.model_fields)
    assert total.item() == pytest.approx(
        sum(weights[name] * value.item() for name, value in components.items()), rel=1e-5
    )


def test_the_multiview_term_carries_gradient_into_the_network() -> None:
    made, data = system(), batch()
    term = made.loss(made(data), data)["multiview_consistency"]
    gradients = torch.autograd.grad(term, [made.network.encoder[0][0].conv.weight, made.network.correction_head.weight])
    assert term.item() > 0 and all(gradient.abs().sum() > 0 for gradient in gradients)


def test_with_one_refined_view_the_other_s_initial_depth_is_the_reference() -> None:
    made, data = system(), batch()
    one = replace(data, predict_views=1)
    prediction = made(one)
    assert prediction.depth.shape[1] == 1 and made.loss(prediction, one)["multiview_consistency"] > 0
    alone = replace(one, initial_depth=data.initial_depth[:, :1], initial_confidence=data.initial_confidence[:, :1])
    assert made.loss(made(alone), alone)["multiview_consistency"] == 0
    assert torch.equal(made(alone).depth, prediction.depth)


def test_more_views_asked_for_than_have_an_initial_depth() -> None:
    assert system()(replace(batch(), predict_views=3)).depth.shape[1] == 2


def test_loss_of_a_batch_is_the_mean_of_its_samples() -> None:
    made, data = system(), batch()
    whole = made.loss(made(data), data)
    parts = [made.loss(made(data.rows(slice(i, i + 1))), data.rows(slice(i, i + 1))) for i in range(2)]
    for name, value in whole.items():
        assert value.item() == pytest.approx((parts[0][name] + parts[1][name]).item() / 2, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("target", [False, True])
def test_a_few_steps_fit_a_sample(target: bool) -> None:
    torch.manual_seed(0)
    made = System(Config.model_validate({**TINY, "depth": 1, "target": target}))
    data = batch(b=1, v=2, size=(12, 16))
    data = replace(data, initial_depth=data.depth * torch.linspace(0.8, 1.1, 16))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    first = made.loss(made(data), data)
    for _ in range(40):
        optimizer.zero_grad()
        made.loss(made(data), data)["total"].backward()
        optimizer.step()
    last = made.loss(made(data), data)
    assert last["depth"] < 0.5 * first["depth"] and last["delta_z"] < 0


def test_pretrained_weights_come_back_from_both_layouts(tmp_path: Path) -> None:
    trained, data = system(), batch()
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    torch.save({"model": trained.state_dict(), "step": 3}, tmp_path / "run.pt")
    for name in ("plain.pt", "run.pt"):
        fresh = System(Config.model_validate(TINY))
        fresh.load_pretrained(tmp_path / name)
        assert torch.equal(fresh(data).depth, trained(data).depth)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = system().state_dict()
    state["extra.weight"] = torch.zeros(1)
    state.pop("network.correction_head.bias")
    state["network.correction_head.weight"] = torch.zeros(1, 4, 3, 3)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(DataError) as caught:
        system().load_pretrained(tmp_path / "model.pt")
    message = str(caught.value)
    assert "missing: network.correction_head.bias" in message and "unexpected: extra.weight" in message
    assert "mis-shaped: network.correction_head.weight (1, 4, 3, 3) instead of (1, 8, 3, 3)" in message
    assert "model.pt" in message


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    torch.save({"model": {"step": 3}}, tmp_path / "other.pt")
    for name, text in {
        "absent.pt": "no such",
        "broken.pt": "not a readable",
        "other.pt": "expected a state dict",
    }.items():
        with pytest.raises(DataError, match=text):
            system().load_pretrained(tmp_path / name)


def test_doubt_holds_the_correction_back_where_the_initial_depth_is_sure() -> None:
    data = batch()
    confidence = torch.full_like(data.initial_depth, 0.2)
    confidence[..., :17] = 1.0
    prediction = system(doubt=True)(replace(data, initial_confidence=confidence))
    delta = prediction.internals["delta"]
    assert not delta[..., :17].any() and delta[..., 17:].abs().mean() > 0.001


def test_without_a_confidence_there_is_doubt_everywhere() -> None:
    data = batch()
    assert (prepare(data.initial_depth, None, data.depth_range).doubt == 1).all()
    doubt = prepare(data.initial_depth, data.initial_confidence, data.depth_range).doubt
    assert torch.allclose(doubt, 1 - data.initial_confidence.flatten(0, 1) ** 4)


def test_fill_keeps_values_and_reaches_everywhere() -> None:
    values, weight = torch.zeros(1, 9, 14), torch.zeros(1, 9, 14)
    values[0, 2, 3], weight[0, 2, 3] = 5.0, 0.5
    values[0, 8, 13], weight[0, 8, 13] = 7.0, 1.0
    dense = fill(values, weight)
    assert dense[0, 2, 3] == 5 and dense[0, 8, 13] == 7
    assert dense.min() >= 5 and dense.max() <= 7 and dense[0, 2, 4] < dense[0, 8, 12]
    assert torch.allclose(fill(values, weight * 0), torch.ones_like(values))


def test_distance_is_that_of_brute_force_up_to_the_reach() -> None:
    random = torch.Generator().manual_seed(1)
    points = torch.rand(2, 40, 90, generator=random) > 0.998
    points[1] = False
    points[1, 0, 0] = True
    v, u = torch.meshgrid(torch.arange(40), torch.arange(90), indexing="ij")
    for i in range(2):
        at = points[i].nonzero().float()
        brute = ((v[..., None] - at[:, 0]) ** 2 + (u[..., None] - at[:, 1]) ** 2).amin(-1).sqrt()
        assert torch.allclose(distance_to_points(points)[i], brute.clamp(max=REACH), atol=1e-4)
    assert (distance_to_points(points & False) == REACH).all()


def test_sparse_points_are_sure_pixels_of_the_initial_depth() -> None:
    data = batch()
    initial = prepare(data.initial_depth, data.initial_confidence, data.depth_range)
    depth, points = sparse_points(initial)
    assert torch.equal(depth[points], initial.filled[points]) and not depth[~points].any()
    cells = math.ceil(25 / 8) * math.ceil(34 / 8)
    assert (points.flatten(1).sum(1) >= cells // 2).all() and (points.flatten(1).sum(1) <= cells).all()
    assert initial.confidence[points].mean() > 0.9


def test_rays_have_unit_z_and_pass_through_their_pixels() -> None:
    data = batch(b=1, v=1, p=1)
    initial = prepare(data.initial_depth, None, data.depth_range)
    directions = network_input(("rays", "initial_depth"), data.image[:, 0], data.K[:, 0], initial)[0, :3]
    pixel = data.K[0, 0] @ directions[:, 7, 11]
    assert torch.allclose(pixel, torch.tensor([11.0, 7.0, 1.0]), atol=1e-4)


def test_worse_initial_depth_is_never_taken_from_the_truth() -> None:
    made, data = system(), batch()
    other = replace(data, depth=data.depth + 1, mask=data.mask)
    same = [made.augment(x, torch.Generator().manual_seed(3)).initial_depth for x in (data, other)]
    assert torch.equal(*same)


def test_views_without_an_initial_depth_change_no_loss() -> None:
    still = {
        "flip": 0,
        "zoom": 0,
        "brightness": 0,
        "contrast": 0,
        "gamma": 0,
        "colour": 0,
        "image_noise": 0,
        "degrade": 0,
    }
    made, data = system(augment=still), batch(v=4, p=2)
    kept = made.augment(data, torch.Generator().manual_seed(0))
    assert kept.image.shape[1] == kept.depth.shape[1] == 2
    wanted, got = (made.loss(made(x), x) for x in (data, kept))
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
