"""DELTAS's losses: values and gradients worked by hand, nothing valid is zero, and what other trainers got wrong."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plane_scene import scene
from plumbline.systems.deltas import losses
from plumbline.systems.deltas.losses import Scale
from plumbline.systems.deltas.targets import KeypointTruth, keypoint_truth
from plumbline.systems.records import Batch

SIZE = (32, 40)
LEAVES = ("detector_logits", "matches", "points", "search_scores", *losses.SCALES)


def scale_of(batch: Batch) -> Scale:
    return Scale(batch.depth_range, torch.ones(len(batch.image)))


def labelled(b: int = 2) -> Batch:
    """The plane scene with pixels that are keypoints."""
    batch = scene(b, size=SIZE)
    probability = torch.rand(b, 3, *SIZE, generator=torch.Generator().manual_seed(4)) ** 8 / 16
    return replace(batch, keypoint_probability=probability)


def answer(batch: Batch, *, error: float = 0.0) -> dict[str, Tensor]:
    """What a network that is right, up to `error` (metres, or pixels), keeps of `batch`; leaves want a gradient."""
    b = len(batch.image)
    keypoints = (torch.rand(b, 60, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([40, 32])).floor()
    truth = keypoint_truth(keypoints, batch.depth, batch.mask, batch.K, batch.cam0_T_cam, batch.depth_range)
    maps = {
        name: losses.coarser_depth(batch.depth[:, 0], batch.mask[:, 0], factor)[0][:, None] + error
        for name, factor in losses.SCALES.items()
    }
    kept = {
        "keypoints": keypoints,
        "detector_logits": torch.zeros(b, 65, 4, 5),
        "matches": truth.matches + error,
        "usable": truth.seen,
        "points": truth.points + error,
        "defined": torch.ones(b, 60, dtype=torch.bool),
        "segment_centre": truth.matches,
        "segment_along": torch.tensor([4.0, 0.0]).expand_as(truth.matches),
        "search_rows": truth.seen.flatten().nonzero()[:, 0],
        "search_scores": torch.zeros(int(truth.seen.sum()), 3, 5),
        **maps,
    }
    return {name: value.requires_grad_() if name in LEAVES else value for name, value in kept.items()}


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(at), at)
    return result


# --- each by hand ----------------------------------------------------------------------------------------------------


def one_search(true_x: float) -> tuple[dict[str, Tensor], KeypointTruth]:
    """Two keypoints of one source; the first is searched from x = 8 to 12 at y = 5 in 5 steps, its truth is at `true_x`."""
    scores = torch.zeros(1, 3, 5)
    scores[0, 1, 3] = math.log(4)
    internals = {
        "segment_centre": torch.tensor([[[[10.0, 5.0], [0.0, 0.0]]]]),
        "segment_along": torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]]),
        "search_rows": torch.tensor([0]),
        "search_scores": scores.requires_grad_(),
    }
    matches, seen = torch.tensor([[[[true_x, 5.0], [3.0, 3.0]]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    return internals, KeypointTruth(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), matches, seen)


# Of 18 shares the fourth step has 6 (4 on the middle line), every other step 3.
@pytest.mark.parametrize(
    ("x", "expected"), [(11.0, math.log(3)), (9.0, math.log(6)), (11.5, 0.5 * math.log(18)), (12.1, 0.0), (7.9, 0.0)]
)
def test_a_match_s_likelihood_is_that_of_its_place_along_the_segment(x: float, expected: float) -> None:
    loss = losses.match_likelihood(*one_search(x))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_likelihood_pulls_towards_the_true_place_alone() -> None:
    internals, truth = one_search(11.0)
    losses.match_likelihood(internals, truth).backward()
    slope = internals["search_scores"].grad[0].sum(0)
    # d/ds of -log p at its own place is p - 1, elsewhere p.
    assert slope.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 3 - 1, 1 / 6], abs=1e-6)


def test_keypoint_error_is_the_cross_entropy_with_a_soft_target() -> None:
    probability = torch.zeros(1, 8, 16)
    probability[0, 0, 1] = 0.75
    logits = torch.zeros(1, 65, 1, 2)
    logits[0, 64] = 2.0
    norm = math.log(64 + math.exp(2))
    expected = ((0.75 * norm + 0.25 * (norm - 2)) + (norm - 2)) / 2
    assert losses.keypoint_error(logits, probability).item() == pytest.approx(expected, rel=1e-6)
    of_logits = gradient(lambda x: losses.keypoint_error(x, probability), logits)
    target = torch.zeros(65)
    target[1], target[64] = 0.75, 0.25
    assert torch.allclose(of_logits[0, :, 0, 0], (logits.softmax(1)[0, :, 0, 0] - target) / 2, atol=1e-6)


def test_match_error_is_the_mean_distance_over_coordinates_in_pixels() -> None:
    matches = torch.tensor([[[[3.0, 1.0], [7.0, 7.0]]], [[[5.0, 5.0], [0.0, 0.0]]]])
    truth = torch.tensor([[[[1.0, 2.0], [0.0, torch.inf]]], [[[5.0, 4.0], [1.0, 1.0]]]])
    counts = torch.tensor([[[True, False]], [[True, True]]])
    # Sample 0: (2 + 1) / 2; sample 1: the mean of 1/2 and 1.
    assert losses.match_error(matches, truth, counts).item() == pytest.approx((1.5 + 0.75) / 2)
    expected = torch.tensor([[[[0.25, -0.25], [0, 0]]], [[[0, 0.125], [-0.125, -0.125]]]])
    assert torch.equal(gradient(lambda x: losses.match_error(x, truth, counts), matches), expected)


def test_point_error_is_smooth_l1_in_metres() -> None:
    points = torch.tensor([[[0.0, 0.5, 4.0], [torch.nan, 1.0, 1.0]]])
    truth, counts = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]), torch.tensor([[True, False]])
    assert losses.point_error(points, truth, counts).item() == pytest.approx((0.125 + 2.5) / 3)
    expected = torch.tensor([[[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]]) / 3
    assert torch.allclose(gradient(lambda x: losses.point_error(x, truth, counts), points), expected)
    assert losses.point_error(points, truth, counts, beta=0.25).item() == pytest.approx((0.375 + 2.875) / 3)


def test_depth_error_is_smooth_l1_over_measured_pixels() -> None:
    depth = torch.tensor([[[1.5, 9.0], [4.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    truth = torch.tensor([[[1.0, 0.0], [2.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert losses.depth_error(depth, truth, truth > 0).item() == pytest.approx((0.125 + 1.5) / 3 / 2)
    expected = torch.zeros(2, 2, 2)
    expected[0] = torch.tensor([[0.5, 0.0], [1.0, 0.0]]) / 6
    assert torch.allclose(gradient(lambda x: losses.depth_error(x, truth, truth > 0), depth), expected)


def test_smoothness_spares_image_edges() -> None:
    depth = torch.tensor([[[0.0, 1.0, 3.0]]])
    image = torch.zeros(1, 3, 1, 3)
    image[0, 0, 0, 2] = 0.9
    expected = (1 + 2 * math.exp(-0.3)) / 2
    assert losses.smoothness(depth, image).item() == pytest.approx(expected, rel=1e-6)
    of_depth = gradient(lambda x: losses.smoothness(x, image), depth)
    assert torch.allclose(of_depth, torch.tensor([[[-0.5, 0.5 - math.exp(-0.3) / 2, math.exp(-0.3) / 2]]]))
    tall = depth.mT.repeat(1, 1, 2)
    assert losses.smoothness(tall, image.mT.repeat(1, 1, 1, 2)).item() == pytest.approx(expected, rel=1e-6)


# --- all of them -----------------------------------------------------------------------------------------------------


def test_a_network_that_is_right_has_no_error_and_one_that_is_wrong_has_each() -> None:
    batch = labelled()
    right = losses.components(answer(batch), batch, scale_of(batch))
    wrong = losses.components(answer(batch, error=0.5), batch, scale_of(batch))
    assert right["match_2d"].item() == right["point_3d"].item() == 0
    assert all(right[name].item() == 0 for name in losses.SCALES)
    assert all(wrong[name].item() == pytest.approx(0.125, rel=1e-4) for name in ("point_3d", *losses.SCALES))
    assert wrong["match_2d"].item() == pytest.approx(0.5, rel=1e-4)


def test_components_are_scalars_that_reach_every_output_of_the_network() -> None:
    batch = labelled()
    kept = answer(batch, error=0.1)
    result = losses.components(kept, batch, scale_of(batch))
    assert all(isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad for value in result.values())
    reached = {
        "keypoint": "detector_logits",
        "match_2d": "matches",
        "match_likelihood": "search_scores",
        "point_3d": "points",
        "smoothness": "depth_full",
        **{name: name for name in losses.SCALES},
    }
    assert set(reached) == set(result)
    for name, leaf in reached.items():
        (of_leaf,) = torch.autograd.grad(result[name], kept[leaf], retain_graph=True)
        assert of_leaf.any() and torch.isfinite(of_leaf).all(), name


def test_the_full_resolution_map_learns_from_depth_even_below_zero() -> None:
    batch = labelled()
    kept = answer(batch)
    kept["depth_full"] = torch.full_like(kept["depth_full"], -1.0).requires_grad_()
    losses.components(kept, batch, scale_of(batch))["depth_full"].backward()
    measured = batch.mask[:, :1]
    assert (kept["depth_full"].grad[measured] < 0).all() and not kept["depth_full"].grad[~measured].any()


def test_matches_are_pulled_to_the_true_reprojection_not_to_the_anchor_s_pixel() -> None:
    batch = labelled()
    kept = answer(batch)
    aim = kept["matches"].detach()
    start = kept["keypoints"][:, None].expand_as(aim).clone().requires_grad_()
    loss = losses.components({**kept, "matches": start}, batch, scale_of(batch))["match_2d"]
    (of_matches,) = torch.autograd.grad(loss, start)
    counts = kept["usable"]
    assert loss.item() > 1 and (of_matches[counts][:, 0].sign() == (start - aim)[counts][:, 0].sign()).all()
    assert not of_matches[~counts].any()


def test_a_match_counts_where_its_segment_is_usable_and_its_truth_seen() -> None:
    batch = labelled()
    kept = answer(batch, error=0.3)
    seen = kept["usable"]
    for usable in (
        torch.ones_like(seen),
        seen & (torch.rand(seen.shape, generator=torch.Generator().manual_seed(6)) > 0.5),
    ):
        loss = losses.components({**kept, "usable": usable}, batch, scale_of(batch))["match_2d"]
        (of_matches,) = torch.autograd.grad(loss, kept["matches"])
        assert torch.equal(of_matches.any(-1), usable & seen)


def one_of(kept: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    """What is kept of one sample. Searches are rows over all samples."""
    per_sample = kept["usable"][0].numel()
    own = torch.div(kept["search_rows"], per_sample, rounding_mode="floor") == sample
    searches = {
        "search_rows": kept["search_rows"][own] - sample * per_sample,
        "search_scores": kept["search_scores"][own],
    }
    return {name: value[sample : sample + 1] for name, value in kept.items() if name not in searches} | searches


def test_means_are_over_samples() -> None:
    batch = labelled()
    kept = answer(batch, error=0.3)
    with torch.no_grad():
        kept["search_scores"][:, 1] = torch.rand(
            len(kept["search_scores"]), 5, generator=torch.Generator().manual_seed(5)
        )
    both = losses.components(kept, batch, scale_of(batch))
    alone = []
    for sample in range(2):
        own = batch.rows(slice(sample, sample + 1))
        alone.append(losses.components(one_of(kept, sample), own, scale_of(own)))
    for name, value in both.items():
        assert value.item() == pytest.approx((alone[0][name].item() + alone[1][name].item()) / 2, rel=1e-5), name


def test_without_anything_valid_losses_are_zero_and_so_are_their_gradients() -> None:
    batch = replace(labelled(), keypoint_probability=None, mask=torch.zeros(2, 3, *SIZE, dtype=torch.bool))
    kept = answer(batch)
    kept["points"] = torch.full_like(kept["points"], torch.nan).requires_grad_()
    result = losses.components(kept, batch, scale_of(batch))
    del result["smoothness"]
    assert all(value.item() == 0 for value in result.values())
    gradients = torch.autograd.grad(torch.stack([*result.values()]).sum(), [kept[name] for name in LEAVES])
    assert not any(part.any() for part in gradients)


def test_a_point_counts_with_a_usable_view_defined_and_in_range() -> None:
    batch = labelled()
    kept = answer(batch)
    truth = keypoint_truth(kept["keypoints"], batch.depth, batch.mask, batch.K, batch.cam0_T_cam, batch.depth_range)
    all_of = losses.counted_points(kept, truth, batch.depth_range)
    assert torch.equal(all_of, truth.known & kept["usable"].any(1)) and all_of.any()
    assert not losses.counted_points({**kept, "defined": ~kept["defined"]}, truth, batch.depth_range).any()
    assert not losses.counted_points({**kept, "usable": kept["usable"] & False}, truth, batch.depth_range).any()
    for factor in (10, 0.1):
        assert not losses.counted_points({**kept, "points": kept["points"] * factor}, truth, batch.depth_range).any()


def test_in_another_unit_distances_shrink_and_pixels_do_not() -> None:
    batch = labelled()
    kept = answer(batch, error=0.5)
    metres = losses.components(kept, batch, scale_of(batch))
    twos = losses.components(kept, batch, Scale(batch.depth_range, torch.full((2,), 2.0)))
    for name in ("point_3d", *losses.SCALES):
        assert twos[name].item() == pytest.approx(metres[name].item() / 4, rel=1e-4), name
    assert twos["match_2d"].item() == metres["match_2d"].item()
    assert twos["smoothness"].item() == pytest.approx(metres["smoothness"].item() / 2)


@pytest.mark.parametrize("name", [*losses.SCALES, "detector_logits"])
def test_an_output_of_another_size_than_its_truth_is_refused(name: str) -> None:
    batch = labelled()
    kept = answer(batch)
    kept[name] = kept[name][..., :1]
    with pytest.raises(ValueError, match=name):
        losses.components(kept, batch, scale_of(batch))


def test_missing_truth_is_refused() -> None:
    batch = labelled()
    with pytest.raises(ValueError, match="depth, mask and cam0_T_cam are needed"):
        losses.components(answer(batch), replace(batch, depth=None), scale_of(batch))
