"""DepthSplat's encoder as a whole, and the parts of its depth predictor, at a size that takes no time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from plumbline.errors import DataError
from plumbline.systems.depthsplat.config import PRESETS, Config
from plumbline.systems.depthsplat.dino import VisionTransformer
from plumbline.systems.depthsplat.encoder import Encoder
from plumbline.systems.depthsplat.predictor import DepthPredictor, guided_upsample, upsample
from plumbline.systems.depthsplat.unet import UNet, ViewAttention
from plumbline.systems.depthsplat.views import Views


def views(b: int = 1, v: int = 2, *, size: tuple[int, int] = (16, 32)) -> Views:
    generator = torch.Generator().manual_seed(0)
    world_T_cam = torch.eye(4).repeat(b, v, 1, 1)
    world_T_cam[..., :3, 3] = 0.3 * torch.randn(b, v, 3, generator=generator)
    K = torch.tensor([[0.9, 0, 0.52], [0, 1.3, 0.47], [0, 0, 1]]).repeat(b, v, 1, 1)
    K[:, :, 0, 0] += 0.1 * torch.rand(b, v, generator=generator)
    near = 0.5 + 0.1 * torch.rand(b, v, generator=generator)
    return Views(torch.rand(b, v, 3, *size, generator=generator), K, world_T_cam, near, 10 * near)


def encoder(**changes: Any) -> Encoder:
    """A tiny one without an output layer left at its initial zero, in inference mode."""
    torch.manual_seed(0)
    made = Encoder(Config(**({"preset": "tiny"} | changes)))
    for parameter in made.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


def rows(given: Views, which: Any) -> Views:
    names = ("image", "K", "world_T_cam", "near", "far")
    return Views(*(getattr(given, name)[which] for name in names))


@pytest.mark.parametrize("v", [2, 3, 5])
@pytest.mark.parametrize(("scales", "stride"), [(1, 4), (1, 8), (2, 4), (2, 8)])
def test_every_pixel_of_every_view_has_a_depth_and_a_gaussian(v: int, scales: int, stride: int) -> None:
    size = (4 * stride, 8 * stride)
    given = views(2, v, size=size)
    with torch.no_grad():
        encoded = encoder(scales=scales, stride=stride)(given)
    (depth,), (gaussians,) = encoded.depths, encoded.gaussians
    assert depth.shape == (2, v, *size)
    near, far = given.near[..., None, None], given.far[..., None, None]
    assert (depth >= near * 0.999).all() and (depth <= far * 1.001).all()
    assert gaussians.means.shape == (2, v * size[0] * size[1], 3)
    assert gaussians.harmonics.shape[-2:] == (3, 9)
    assert all(value.isfinite().all() for value in (gaussians.means, gaussians.covariances, gaussians.harmonics))
    assert torch.linalg.eigvalsh(gaussians.covariances.double()).min() > 0


def test_samples_do_not_know_of_each_other() -> None:
    net, given = encoder(scales=2), views(2, 3)
    with torch.no_grad():
        both = net(given)
        for i in range(2):
            alone = net(rows(given, slice(i, i + 1)))
            torch.testing.assert_close(alone.depths[0], both.depths[0][i : i + 1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                alone.gaussians[0].means, both.gaussians[0].means[i : i + 1], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("v", [2, 3, 4])
def test_views_in_another_order_give_the_same_depths_in_that_order(v: int) -> None:
    net, given = encoder(), views(1, v)
    order = torch.arange(v).flip(0)
    with torch.no_grad():
        depths, other = net(given).depths[0], net(rows(given, (slice(None), order))).depths[0]
    torch.testing.assert_close(other, depths[:, order], rtol=1e-4, atol=1e-4)


def test_depth_follows_the_unit_of_the_world() -> None:
    net, given = encoder(scales=2), views()
    poses = given.world_T_cam.clone()
    poses[..., :3, 3] *= 4
    scaled = replace(given, world_T_cam=poses, near=4 * given.near, far=4 * given.far)
    with torch.no_grad():
        # The residual network answers in inverse depth as such; without it everything scales.
        torch.nn.init.zeros_(net.depth_predictor.upsampler.scratch.output_conv[-1].weight)
        torch.nn.init.zeros_(net.depth_predictor.upsampler.scratch.output_conv[-1].bias)
        found, probability = net.depth_predictor(given), net.depth_predictor(scaled)
    torch.testing.assert_close(found.swept[0].probability, probability.swept[0].probability, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        probability.swept[0].inverse_depth * 4, found.swept[0].inverse_depth, rtol=1e-3, atol=1e-5
    )


def test_two_scales_give_an_intermediate_prediction_in_training_only() -> None:
    net, given = encoder(scales=2).train(), views()
    encoded = net(given)
    assert len(encoded.depths) == len(encoded.gaussians) == 2
    assert not torch.equal(encoded.depths[0], encoded.depths[1])
    assert torch.equal(encoded.gaussians[0].opacities, encoded.gaussians[1].opacities)
    assert len(net.eval()(given).depths) == len(encoder().train()(given).depths) == 1


def test_depth_alone() -> None:
    net = encoder(gaussians=False)
    assert {name for name, _ in net.named_children()} == {"depth_predictor"}
    encoded = net(views())
    assert encoded.gaussians == [] and encoded.depths[0].shape == (1, 2, 16, 32)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_finite_and_reach_every_parameter(checkpointing: bool) -> None:
    net = encoder(scales=2, checkpointing=checkpointing).train()
    encoded = net(views())
    gaussians = encoded.gaussians[-1]
    parts = (*(d.log() for d in encoded.depths), gaussians.means, gaussians.covariances * 100, gaussians.harmonics)
    total = sum((part * torch.randn_like(part)).sum() for part in (*parts, gaussians.opacities))
    total.backward()
    missing = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    idle = {name for name, p in net.named_parameters() if p.grad is not None and not p.grad.any()}
    assert not missing and not idle


def test_recomputed_activations_change_nothing() -> None:
    given, gradients = views(), []
    for checkpointing in (False, True):
        net = encoder(scales=2, checkpointing=checkpointing).train()
        net(given).depths[-1].log().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_errors_say_what_fits() -> None:
    with pytest.raises(DataError, match=r"images of 16x40; expected multiples of 16"):
        encoder()(views(size=(16, 40)))
    with pytest.raises(DataError, match=r"one view; expected two or more"):
        encoder()(views(v=1))


def test_published_presets_keep_the_quirks_and_tiny_does_not() -> None:
    assert {name for name in PRESETS if Config(preset=name).official_quirks} == {"small", "base", "large"}
    assert (Config(preset="base").upsampling, Config(preset="small", stride=8).upsampling) == (2, 8)
    assert Config(preset="small", vit_width=768, vit_heads=12).vit_width == 768


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vit_heads": 5}, "5 heads cannot share 384 channels"),
        ({"vit_taps": (2, 5, 8, 10)}, "the last one 11"),
        ({"regressor_width": 72}, "regressor_width 72"),
        ({"scale_range": (3.0, 1.0)}, "smallest < largest"),
        ({"colour": 1}, "colour"),
    ],
)
def test_wrong_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**change)


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampled_values_stay_where_they_are_but_for_the_quirk(factor: int) -> None:
    ramp = torch.arange(4.0)[:, None] * 10 + torch.arange(5.0)
    right = upsample(ramp[None, None], factor, quirk=False)[0, 0]
    torch.testing.assert_close(right[::factor, ::factor], ramp)
    inner = right[: 3 * factor + 1, : 4 * factor + 1]
    expected = torch.arange(3 * factor + 1)[:, None] * 10 / factor + torch.arange(4 * factor + 1) / factor
    torch.testing.assert_close(inner, expected)
    assert torch.equal(right[-1], right[3 * factor])
    quirk = upsample(ramp[None, None], factor, quirk=True)[0, 0]
    assert quirk[-1, -1] == ramp[-1, -1] and not torch.allclose(quirk[::factor, ::factor], ramp, atol=0.1)


def by_the_pixel(x: Tensor, factor: int, guide: Tensor, logits: Tensor) -> Tensor:
    """`guided_upsample` of one map, pixel by pixel."""
    height, width = guide.shape[-2:]
    result = torch.empty(height, width, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            middle = [(place + factor // 2) // factor for place in (row, column)]
            weights, values = [], []
            for k in range(9):
                at = (middle[0] + k // 3 - 1, middle[1] + k % 3 - 1)
                away = [abs(place / factor - where) for place, where in zip((row, column), at, strict=True)]
                weight = torch.tensor([max(1 - distance, 0.01) for distance in away], dtype=x.dtype).prod().log()
                inside = [min(max(where, 0), side - 1) for where, side in zip(at, x.shape, strict=True)]
                unlike = guide[:, inside[0] * factor, inside[1] * factor] - guide[:, row, column]
                weights.append(weight + logits[k, row, column] - 5 * unlike.square().sum())
                values.append(x[inside[0], inside[1]])
            result[row, column] = (torch.stack(weights).softmax(0) * torch.stack(values)).sum()
    return result


@pytest.mark.parametrize("factor", [2, 4])
def test_guided_upsampling_is_what_it_says_for_each_pixel(factor: int) -> None:
    generator = torch.Generator().manual_seed(factor)
    x, guide, logits = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 4), (3, 3 * factor, 4 * factor), (9, 3 * factor, 4 * factor))
    )
    fast = guided_upsample(x[None, None], factor, guide[None], logits[None])[0, 0]
    slow = by_the_pixel(x, factor, guide, logits)
    torch.testing.assert_close(fast, slow)
    up = torch.randn(slow.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, guide, logits), up) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("factor", [2, 4])
def test_guided_upsampling_is_bilinear_within_a_colour_and_sharp_between_two(factor: int) -> None:
    ramp = torch.arange(12.0).expand(6, 12)[None, None]
    size = (6 * factor, 12 * factor)
    grey, none = torch.zeros(1, 3, *size), torch.zeros(1, 9, *size)
    inner = slice(factor, -2 * factor)
    plain = upsample(ramp, factor, quirk=False)[..., inner]
    torch.testing.assert_close(guided_upsample(ramp, factor, grey, none)[..., inner], plain, atol=0.02, rtol=0)
    # Two colours that meet between two values: each pixel has its own colour's.
    edge = 6 * factor - factor // 2
    guide, step = torch.zeros(1, 3, *size), torch.zeros(1, 1, 6, 12)
    guide[..., edge:], step[..., 6:] = 2.0, 1.0
    sharp = guided_upsample(step, factor, guide, none)
    assert sharp[..., :edge].max() < 1e-6 and sharp[..., edge:].min() > 1 - 1e-6
    assert 0.4 < float(upsample(step, factor, quirk=False)[0, 0, 0, 6 * factor - 1]) < 0.8


@pytest.mark.parametrize(("scales", "stride"), [(1, 4), (2, 8)])
def test_guided_depth_lies_among_what_was_swept_and_teaches_its_head(scales: int, stride: int) -> None:
    net = encoder(enlarging="guided", window=2, scales=scales, stride=stride).depth_predictor
    found = net(views(size=(4 * stride, 8 * stride)))
    swept = found.swept[-1].inverse_depth.detach()
    inverse = 1 / found.depth.detach()
    assert inverse.min() >= swept.min() - 1e-5 and inverse.max() <= swept.max() + 1e-5
    found.depth.square().sum().backward()
    still = [
        name for name, weights in net.upsampler.named_parameters() if weights.grad is None or not weights.grad.any()
    ]
    assert still == []


def test_within_the_window_depth_is_that_of_one_surface() -> None:
    probability = torch.tensor([0.1, 0.3, 0.1, 0.0, 0.0, 0.1, 0.2, 0.2])[None, :, None, None]
    kept = DepthPredictor(Config(preset="tiny", window=1))._near_the_likeliest(probability)
    torch.testing.assert_close(kept.flatten(), torch.tensor([0.2, 0.6, 0.2, 0, 0, 0, 0, 0]))
    assert DepthPredictor(Config(preset="tiny", window=None))._near_the_likeliest(probability) is probability


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_learnt_positions_are_resized_with_the_offset_factor() -> None:
    vit = VisionTransformer(Config(preset="tiny", vit_grid=5))
    torch.manual_seed(0)
    torch.nn.init.normal_(vit.pos_embed)
    learnt = vit.pos_embed[0, 1:, 0].detach().reshape(5, 5)
    resized = vit.positions((3, 7))[0].detach()
    assert torch.equal(resized[0], vit.pos_embed[0, 0])

    def weights(index: int, size: int) -> Tensor:
        centre = (index + 0.5) * 5 / (size + 0.1) - 0.5
        total = torch.zeros(5)
        for k in range(int(centre // 1) - 1, int(centre // 1) + 3):
            total[min(max(k, 0), 4)] += cubic(centre - k)
        return total

    for r in range(3):
        for c in range(7):
            expected = weights(r, 3) @ learnt @ weights(c, 7)
            assert float(resized[1 + 7 * r + c, 0]) == pytest.approx(float(expected), abs=1e-5)
    assert torch.equal(vit.positions((5, 5)), vit.pos_embed)


def test_the_u_net_s_attention_sees_all_views_of_a_scene_and_no_other_scene() -> None:
    torch.manual_seed(0)
    attention = ViewAttention(16, 8)
    torch.nn.init.normal_(attention.proj_out.weight)
    x = torch.randn(4, 16, 2, 3)
    before = attention(x, 2)
    changed = x.clone()
    changed[1] += torch.randn(16, 2, 3)
    after = attention(changed, 2)
    assert not torch.allclose(after[0], before[0]) and torch.equal(after[2:], before[2:])
    assert torch.equal(attention(changed, 1)[0], attention(x, 1)[0])


def test_an_untrained_u_net_adds_nothing() -> None:
    assert not UNet(16, levels=3, head=8)(torch.randn(2, 16, 8, 8), 2).any()


@pytest.mark.parametrize("scales", [1, 2])
def test_with_the_shortcut_depth_is_what_agrees_before_anything_is_learnt(
    scales: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = torch.zeros(2, 32 // 4 ** (scales - 1), 4 * scales, 8 * scales)
    chosen[:, 5] = 50.0
    torch.manual_seed(0)
    predictor = DepthPredictor(Config(preset="tiny", cost_shortcut=True, scales=scales, layers=1))
    real = predictor._cost
    monkeypatch.setattr(predictor, "_cost", lambda *given: chosen if given[-1] == scales - 1 else real(*given))
    given = views()
    with torch.no_grad():
        last = predictor(given).swept[-1]
    torch.testing.assert_close(last.probability, chosen.softmax(dim=1))
    if scales == 1:
        smallest, largest = (x.flatten(0, 1) for x in given.inverse_range)
        torch.testing.assert_close(last.inverse_depth, (smallest + 5 / 31 * (largest - smallest)).expand(-1, -1, 4, 8))
