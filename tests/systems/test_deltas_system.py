"""DELTAS as a whole: any size, any number of views, any anchor, and what each option does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from plane_scene import scene
from plumbline.errors import ConfigError, DataError
from plumbline.geometry import invert
from plumbline.systems import build
from plumbline.systems.deltas import Config, System
from plumbline.systems.deltas.matching import Searched
from plumbline.systems.records import Batch, Prediction

SMALL: dict[str, Any] = {
    "preset": "tiny", "encoder_stem": 8, "encoder_widths": (4, 4, 8, 8), "depth_stem": 4, "depth_widths": (4, 4, 4, 4),
    "decoder_widths": (8, 8, 8, 8, 4), "aspp_width": 4, "descriptor_channels": 16, "keypoints": 48, "samples": 12,
}  # fmt: skip
DEPTHS = ("depth_full", "depth_half", "depth_quarter", "depth_eighth")


def system(**changes: Any) -> System:
    torch.manual_seed(0)
    made = build("deltas", {**SMALL, **changes})
    # As after some training: the batch norms' statistics are not all alike.
    with torch.no_grad():
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.05)
    return made.eval()


def run(made: System, batch: Batch) -> Prediction:
    with torch.no_grad():
        return made(batch)


def test_preset_fills_and_what_stands_beside_it_wins() -> None:
    full, tiny = Config(), Config(preset="tiny")
    assert (full.keypoints, full.samples, full.detected, full.unit) == (512, 100, 256, "metre")
    assert full.match_gain == 1.0 and full.fixed_search_range is None
    assert tiny.decoder_widths[0] < full.decoder_widths[0]
    assert Config.model_validate({"preset": "tiny", "keypoints": 64}).keypoints == 64


def test_wrong_params_are_refused_by_key() -> None:
    with pytest.raises(ConfigError, match=r"systems\.deltas\.keypoints"):
        build("deltas", {"keypoints": 0})
    with pytest.raises(ConfigError, match=r"fixed_search_range \(10\.0, 0\.5\): expected 0 < nearest < farthest"):
        build("deltas", {"fixed_search_range": [10, 0.5]})
    with pytest.raises(ConfigError, match=r"systems\.deltas\.weights\.depth_ful: unknown key"):
        build("deltas", {"weights": {"depth_ful": 1.0}})


@pytest.mark.parametrize(("views", "size"), [(2, (32, 40)), (3, (33, 47)), (4, (24, 32))])
def test_shapes_for_any_size_and_number_of_views(views: int, size: tuple[int, int]) -> None:
    batch = scene(v=views, p=1, size=size)
    prediction = run(system(), batch)
    h, w = size
    coarse = [(-(-h // factor), -(-w // factor)) for factor in (1, 2, 4, 8)]
    expected = {
        "keypoints": (48, 2), "scores": (48,), "detector_logits": (65, *coarse[3]), "matches": (views - 1, 48, 2),
        "usable": (views - 1, 48), "match_confidence": (48, views), "points": (48, 3), "defined": (48,),
        "sparse_depth": size, "search_range": (2,), "unit": (),
            "segment_centre": (views - 1, 48, 2), "segment_along": (views - 1, 48, 2),
            "search_rows": (), "search_scores": (3, 12),
        **{name: (1, *s) for name, s in zip(DEPTHS, coarse, strict=True)},
    }  # fmt: skip
    shapes = {name: tuple(value.shape[1:]) for name, value in prediction.internals.items()}
    assert expected.items() <= shapes.items()
    assert prediction.depth.shape == (2, 1, *size)
    assert all(torch.isfinite(value).all() for value in prediction.internals.values())
    assert prediction.internals["usable"].any() and (prediction.internals["sparse_depth"] > 0).any()


def test_what_is_filled_up_is_not_searched_and_holds_no_points() -> None:
    batch = scene(p=1, size=(33, 47))
    found = run(system(keypoints=400), batch).internals
    x, y = found["keypoints"].unbind(-1)
    assert x.max() == 46 and y.max() == 32
    ends = found["matches"][found["usable"]]
    assert (ends[:, 0] < 46.5).all() and (ends[:, 1] < 32.5).all()


def test_each_leading_view_is_predicted_as_if_it_came_first() -> None:
    batch, made = scene(p=2), system()
    both = run(made, batch)
    order = [1, 0, 2]
    turned = replace(
        batch,
        image=batch.image[:, order],
        K=batch.K[:, order],
        cam0_T_cam=invert(batch.cam0_T_cam[:, 1:2]) @ batch.cam0_T_cam[:, order],
        predict_views=1,
    )
    torch.testing.assert_close(both.depth[:, 1:], run(made, turned).depth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.depth[:, :1], run(made, replace(batch, predict_views=1)).depth)


def test_in_training_the_first_view_alone_is_an_anchor_and_random_points_change() -> None:
    made, batch = system().train(), scene(p=2)
    first, second = made(batch), made(batch)
    assert first.depth.shape[1] == 1
    assert not torch.equal(first.internals["keypoints"], second.internals["keypoints"])


def scaled(batch: Batch, factor: float) -> Batch:
    """The same pictures of a scene that is `factor` times as large."""
    cam0_T_cam = batch.cam0_T_cam.clone()
    cam0_T_cam[..., :3, 3] *= factor
    return replace(batch, cam0_T_cam=cam0_T_cam, depth_range=batch.depth_range * factor)


def test_in_units_of_the_range_a_larger_scene_is_answered_by_larger_depth() -> None:
    batch = scene(p=1)
    for unit, follows in (("range", True), ("metre", False)):
        made = system(unit=unit, spread=False)
        small, large = run(made, batch), run(made, scaled(batch, 4.0))
        torch.testing.assert_close(4 * small.internals["points"], large.internals["points"], rtol=1e-2, atol=1e-2)
        assert torch.allclose(4 * small.depth, large.depth, rtol=1e-3) is follows


def test_untrained_nets_answer_about_the_first_depth_or_the_middle_of_the_range() -> None:
    batch = scene(p=1)
    assert 5 < run(system(unit="metre", first_depth=7.0, spread=False), batch).depth.median() < 9
    middle = float((batch.depth_range[0, 0] * batch.depth_range[0, 1]).sqrt())
    assert 0.6 * middle < run(system(unit="range", spread=False), batch).depth.median() < 1.5 * middle


def test_with_spread_depth_answers_are_multiples_of_it_and_sure_matches_weigh_more() -> None:
    batch = scene(p=1)
    made = system(spread=True)
    prediction = run(made, batch)
    kept = prediction.internals
    assert (
        0.6
        < (prediction.depth / torch.where(kept["sparse_depth"] > 0, kept["sparse_depth"], 1.0)[:, None])[
            kept["sparse_depth"][:, None] > 0
        ].median()
        < 1.5
    )
    scores = torch.zeros(2, 3, 5)
    scores[0, 1, 1] = 40.0
    variance = Searched(
        torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2), torch.zeros(2, dtype=torch.long), scores
    ).variance
    # One place alone, and five places evenly from -1/2 to 1/2.
    assert variance.tolist() == pytest.approx([0.0, 1 / 8], abs=1e-6)


def test_the_search_range_is_the_batch_s_or_a_fixed_one() -> None:
    batch = scene(p=1)
    own = run(system(fixed_search_range=(1.0, 6.0)), replace(batch, depth_range=batch.depth_range * 0.5))
    assert torch.equal(own.depth, run(system(), batch).depth)
    assert own.internals["search_range"].tolist() == [[1.0, 6.0], [1.0, 6.0]]


def test_points_outside_the_range_stay_out_of_the_sparse_depth() -> None:
    found = run(system(), scene(p=1)).internals
    sparse, (near, far) = found["sparse_depth"], found["search_range"][0]
    z = found["points"][..., 2]
    inside = found["usable"].any(dim=1) & (z > near) & (z < far)
    assert inside.any() and (sparse[sparse > 0] > near).all() and (sparse[sparse > 0] < far).all()
    x, y = (found["keypoints"][0, :, i].long() for i in range(2))
    distinct = torch.unique(torch.stack([x, y])[:, inside[0]], dim=1).shape[1]
    assert 0 < int((sparse[0] > 0).sum()) <= distinct


def test_ablations_take_away_points_or_weights() -> None:
    batch = scene(p=1)
    without = run(system(sparse_depth=False), batch)
    assert not without.internals["sparse_depth"].any() and without.internals["defined"].any()
    equal = run(system(matching_confidence=False), batch).internals
    weights = equal["match_confidence"][:, :, 1:].mT[equal["usable"]]
    torch.testing.assert_close(weights, torch.full_like(weights, 1.001))


def gradients(made: System, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(1)
    made.train().loss(made(batch), batch)["total"].backward()
    return {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}


def test_recomputing_activations_changes_no_gradient_and_no_running_statistic() -> None:
    batch = scene(p=1)
    kept, again = system(), system(checkpointing=True)
    one, other = gradients(kept, batch), gradients(again, batch)
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(dict(kept.named_buffers()), dict(again.named_buffers()))


def test_bfloat16_is_close_and_geometry_stays_in_float32() -> None:
    batch, made = scene(p=1), system()
    exact = run(made, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(made, batch)
    assert rough.depth.dtype == torch.float32
    assert all(rough.internals[name].dtype == torch.float32 for name in ("points", "matches", "detector_logits"))
    torch.testing.assert_close(rough.depth, exact.depth, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        made.train().loss(made(batch), batch)["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_negative_depth_is_an_abstention_outside_and_itself_inside() -> None:
    made = system()
    made.dense.start_at(-5.0)
    prediction = run(made, scene(p=1))
    assert not prediction.depth.any() and (prediction.internals["depth_full"] < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cam0_T_cam": None}, "deltas: needs poses for every sample; this batch has none"),
        ({"depth_range": None}, "deltas: needs a depth range for every sample; this"),
        ({"predict_views": 4}, "predict_views is 4, but samples have 3 views"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        system()(replace(scene(), **changes))


def test_a_lone_view_is_refused() -> None:
    batch = scene(v=1, p=1)
    with pytest.raises(DataError, match="needs at least two views a sample, got 1"):
        system()(batch)
