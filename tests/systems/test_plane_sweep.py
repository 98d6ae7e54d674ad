"""The plane sweep: every part against a plain computation of the same thing, the whole on scenes that are known exactly."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from plane_scene import scene
from plumbline.errors import DataError
from plumbline.systems.plane_sweep import Config, System, aggregate, costs, sweep_view
from plumbline.systems.records import Batch, Prediction

PENALTIES = {"small_penalty": 0.3, "large_penalty": 1.1, "edge_sharpness": 6.0}


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def predict(batch: Batch, **config: object) -> Prediction:
    return System(Config(**config))(batch)


def relative_error(prediction: Prediction, batch: Batch) -> Tensor:
    truth = batch.depth[:, : batch.predict_views]
    return (prediction.depth - truth).abs() / truth


def weave(batch: Batch) -> Batch:
    """The batch with images of several wavelengths, so that matches are unique: the plane scene's own repeat themselves."""
    h, w = batch.image.shape[-2:]
    u, v = torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy")
    x = (u - batch.K[0, 0, 0, 2]) / batch.K[0, 0, 0, 0] * batch.depth + batch.cam0_T_cam[:, :, 0, 3, None, None]
    y = (v - batch.K[0, 0, 1, 2]) / batch.K[0, 0, 1, 1] * batch.depth
    waves = torch.tensor([[5.0, 3.0], [-8.0, 11.0], [13.0, 6.0], [21.0, -17.0], [2.0, 27.0]])
    image = sum(torch.sin(x * a + y * b + a) for a, b in waves) / 10 + 0.5
    return replace(batch, image=image[:, :, None].expand(-1, -1, 3, -1, -1).contiguous())


@pytest.fixture(scope="module")
def textured() -> Batch:
    return weave(scene(size=(64, 80), v=4))


def test_planes_are_even_in_inverse_depth_and_include_both_ends() -> None:
    planes = costs.inverse_depth_planes(torch.tensor([[0.5, 8.0], [1.0, 2.0]]), 16)
    torch.testing.assert_close(planes[:, 0], torch.tensor([1 / 8, 1 / 2]))
    torch.testing.assert_close(planes[:, -1], torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(planes.diff(dim=1), planes.diff(dim=1)[:, :1].expand(-1, 15))


def test_box_mean_is_the_mean_of_the_window(rng: torch.Generator) -> None:
    x = torch.rand(2, 3, 6, 7, generator=rng)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    torch.testing.assert_close(costs.box_mean(x, 2), padded.unfold(2, 5, 1).unfold(3, 5, 1).mean(dim=(-1, -2)))


def test_ncc_is_the_correlation_of_the_windows(rng: torch.Generator) -> None:
    one, other = torch.rand(1, 1, 9, 9, generator=rng), torch.rand(1, 2, 9, 9, generator=rng)
    cost = costs.ncc_cost(one, other, radius=1, contrast_floor=1e-4)
    windows = torch.stack([one[0, 0, 3:6, 2:5].flatten(), other[0, 1, 3:6, 2:5].flatten()])
    torch.testing.assert_close(cost[0, 1, 4, 3], 1 - torch.corrcoef(windows)[0, 1], atol=1e-4, rtol=0)


def test_ncc_ignores_gain_and_offset_and_says_nothing_without_contrast(rng: torch.Generator) -> None:
    image = torch.rand(1, 1, 16, 16, generator=rng)
    brighter = costs.ncc_cost(image, 0.6 * image + 0.2, radius=2, contrast_floor=1e-3)
    assert brighter.max() < 1e-3
    grain = 1e-4 * torch.rand(1, 1, 16, 16, generator=rng) + 0.5
    torch.testing.assert_close(
        costs.ncc_cost(grain, grain, radius=2, contrast_floor=0.01), torch.ones(1, 1, 16, 16), atol=1e-3, rtol=0
    )


def test_census_counts_orders_that_differ() -> None:
    image = torch.tensor([[0.1, 0.9, 0.1], [0.9, 0.5, 0.9], [0.1, 0.9, 0.1]])[None, None]
    cost = {name: costs.census_cost(image, other, radius=1, contrast_floor=0.05)[0, 0, 1, 1].item() for name, other in {
        "same": 0.5 * image + 0.4, "opposite": 1 - image, "flat": torch.full_like(image, 0.5)}.items()}  # fmt: skip
    assert cost == pytest.approx({"same": 0.0, "opposite": 2.0, "flat": 1.0})


def path_costs(cost: Tensor, image: Tensor, step: tuple[int, int]) -> Tensor:
    """Hirschmueller's recursion along one direction, pixel by pixel, as it is written in the paper."""
    d, h, w = cost.shape
    small, large, sharpness = PENALTIES.values()
    result = cost.clone()
    rows = range(h) if step[0] >= 0 else range(h - 1, -1, -1)
    columns = range(w) if step[1] >= 0 else range(w - 1, -1, -1)
    for y in rows:
        for x in columns:
            before_y, before_x = y - step[0], x - step[1]
            if not (0 <= before_y < h and 0 <= before_x < w):
                continue
            before = result[:, before_y, before_x]
            difference = (image[:, y, x] - image[:, before_y, before_x]).abs().mean()
            jump = small + (large - small) * torch.exp(-sharpness * difference)
            for plane in range(d):
                steps = [before[other] + small for other in (plane - 1, plane + 1) if 0 <= other < d]
                best = torch.stack([before[plane], before.min() + jump, *steps]).min()
                result[plane, y, x] = cost[plane, y, x] + best - before.min()
    return result


@pytest.mark.parametrize("paths", [4, 8])
def test_semi_global_aggregation_is_the_mean_over_its_paths(paths: int, rng: torch.Generator) -> None:
    cost, image = torch.rand(2, 5, 6, 7, generator=rng), torch.rand(2, 3, 6, 7, generator=rng)
    steps = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)][:paths]
    plain = torch.stack(
        [sum(path_costs(c, i, step) for step in steps) / paths for c, i in zip(cost, image, strict=True)]
    )
    torch.testing.assert_close(aggregate.semi_global(cost, image, paths=paths, **PENALTIES), plain)


def test_the_median_depth_has_the_least_expected_relative_error(rng: torch.Generator) -> None:
    planes = costs.inverse_depth_planes(torch.tensor([[0.5, 5.0]]), 40)
    probability = torch.softmax(2 * torch.randn(1, 40, 3, 3, generator=rng), dim=1)
    depth = aggregate.median_depth(probability, planes)
    candidates, cells = torch.linspace(0.5, 5, 2000), 1 / planes[0]
    error = ((candidates[:, None] - cells).abs() / cells) @ probability[0].flatten(1)
    chosen = torch.einsum("np,pn->n", (depth.flatten()[:, None] - cells).abs() / cells, probability[0].flatten(1))
    assert (chosen <= error.amin(dim=0) * 1.05).all()


@pytest.mark.parametrize("inverse", [0.25, 0.61, 1.0, 1.77, 2.0])
def test_both_estimates_fall_between_planes(inverse: float) -> None:
    planes = costs.inverse_depth_planes(torch.tensor([[0.5, 4.0]]), 36)
    cost = (3 * (planes - inverse) ** 2)[..., None, None].expand(-1, -1, 2, 2).contiguous()
    truth = torch.full((1, 2, 2), 1 / inverse)
    torch.testing.assert_close(aggregate.least_cost_depth(cost, planes), truth, rtol=1e-3, atol=0)
    sharp = aggregate.median_depth(aggregate.posterior(cost, 0.002), planes)
    torch.testing.assert_close(sharp, truth, rtol=0.03, atol=0)


def test_mass_near_counts_the_cells_within_the_tolerance() -> None:
    planes = torch.linspace(0.5, 1.5, 11)[None]
    probability = torch.full((1, 11, 1, 1), 1 / 11)
    mass = aggregate.mass_near(probability, planes, torch.ones(1, 1, 1), 0.1)
    assert mass.item() == pytest.approx((1 / 0.9 - 1 / 1.1) / 0.1 / 11, rel=1e-4)
    certain = torch.zeros(1, 11, 1, 1).index_fill(1, torch.tensor(5), 1.0)
    assert aggregate.mass_near(certain, planes, torch.ones(1, 1, 1), 0.2).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 0.02),
        ({"cost": "census"}, 0.02),
        ({"aggregation": "best_half"}, 0.02),
        ({"paths": 4}, 0.02),
        ({"estimate": "minimum"}, 0.02),
    ],
)
def test_known_planes_are_found(config: dict[str, object], limit: float, textured: Batch) -> None:
    prediction = predict(textured, **config)
    error = relative_error(prediction, textured)
    assert error.median() < limit and (error < 0.05).float().mean() > 0.8
    assert prediction.depth.shape == prediction.confidence.shape == (2, 2, 64, 80)


def test_every_view_is_swept_against_all_others(textured: Batch) -> None:
    """The third view as reference is the third sample's order turned round: same cost volume."""
    turned = [2, 0, 1, 3]
    cam2_T_cam0 = torch.linalg.inv(textured.cam0_T_cam[:, 2, None])
    other = replace(
        textured,
        image=textured.image[:, turned],
        K=textured.K[:, turned],
        cam0_T_cam=cam2_T_cam0 @ textured.cam0_T_cam[:, turned],
    )
    planes = costs.inverse_depth_planes(textured.depth_range, 16)
    torch.testing.assert_close(
        sweep_view(other, 0, planes, Config()), sweep_view(textured, 2, planes, Config()), atol=1e-3, rtol=0
    )


def test_a_change_of_exposure_between_views_does_no_harm(textured: Batch) -> None:
    gain = torch.tensor([1.0, 0.6, 0.8, 0.7])[:, None, None, None]
    error = relative_error(predict(replace(textured, image=textured.image * gain + 0.1)), textured)
    assert error.median() < 0.02


def test_the_result_does_not_depend_on_how_planes_are_taken(textured: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(textured)
    monkeypatch.setitem(costs.BLOCK_ELEMENTS, "cpu", 1)
    torch.testing.assert_close(predict(textured).depth, whole.depth, rtol=1e-4, atol=1e-4)


def test_confidence_tells_texture_from_none(textured: Batch) -> None:
    image = textured.image.clone()
    image[..., 40:, :] = 0.5
    prediction = predict(replace(textured, image=image))
    confidence, error = prediction.confidence[:, :, 8:], relative_error(prediction, textured)[:, :, 8:]
    assert confidence[..., :24, :].mean() > 2 * confidence[..., 40:, :].mean()
    order = confidence.flatten().argsort(descending=True)
    surer, others = error.flatten()[order].chunk(2)
    assert surer.mean() < 0.5 * others.mean()


@pytest.mark.parametrize("estimate", ["median", "minimum"])
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_images_without_texture_give_depths_in_range_and_no_confidence(grey: float, estimate: str) -> None:
    batch = scene()
    prediction = predict(replace(batch, image=torch.full_like(batch.image, grey)), estimate=estimate)
    assert torch.isfinite(prediction.depth).all()
    assert (prediction.depth >= 1.0 - 1e-5).all() and (prediction.depth <= 6.0 + 1e-5).all()
    assert prediction.confidence.max() < 0.5


def test_sources_that_look_away_or_see_nothing_are_left_out(textured: Batch) -> None:
    cam0_T_cam = textured.cam0_T_cam.clone()
    cam0_T_cam[:, 3, 0, 0] = cam0_T_cam[:, 3, 2, 2] = -1
    turned = replace(textured.select(System.inputs), cam0_T_cam=cam0_T_cam, predict_views=1)
    views = [0, 1, 2]
    without = replace(turned, image=turned.image[:, views], K=turned.K[:, views], cam0_T_cam=cam0_T_cam[:, views])
    torch.testing.assert_close(predict(turned).depth, predict(without).depth, rtol=1e-4, atol=1e-4)


def test_what_is_missing_is_said(textured: Batch) -> None:
    textured = textured.select(System.inputs)
    alone = replace(textured, image=textured.image[:, :1], K=textured.K[:, :1], cam0_T_cam=textured.cam0_T_cam[:, :1])
    for batch, message in [
        (alone, "at least two views a sample, got 1"),
        (replace(textured, cam0_T_cam=None), "needs poses and a depth range"),
        (replace(textured, depth_range=None), "needs poses and a depth range"),
        (replace(textured, predict_views=5), "predict_views is 5, but samples have 4 views"),
    ]:
        with pytest.raises(DataError, match=message):
            predict(batch)


@pytest.mark.parametrize("wrong", [{"window": 4}, {"planes": 2}, {"paths": 6}, {"cost": "ssd"}, {"temperature": 0.0}])
def test_wrong_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Config(**wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_agree(textured: Batch) -> None:
    difference = (predict(textured.to("cuda")).depth.cpu() - predict(textured).depth).abs() / textured.depth[:, :2]
    assert difference.median() < 1e-4 and (difference < 0.01).float().mean() > 0.99
