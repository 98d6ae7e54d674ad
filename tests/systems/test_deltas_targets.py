"""What DELTAS is trained towards: holes stay holes, keypoints find their truth, and K, poses and occlusion are honoured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plane_scene import scene
from plumbline.geometry import sample
from plumbline.systems.augment import enlarge, mirror
from plumbline.systems.deltas.targets import (
    KeypointTruth,
    backproject_pixels,
    coarser_depth,
    depth_at,
    detector_target,
    inside,
    keypoint_truth,
)
from plumbline.systems.records import Batch

WIDE = torch.tensor([[0.1, 100.0]])


def keypoints_of(batch: Batch, n: int = 400) -> Tensor:
    """Random pixels of each sample, "b n 2"."""
    b, _, _, h, w = batch.image.shape
    draw = torch.rand(b, n, 2, generator=torch.Generator().manual_seed(0))
    return (draw * torch.tensor([w, h])).floor()


def truth_of(batch: Batch, keypoints: Tensor, depth_range: Tensor = WIDE) -> KeypointTruth:
    return keypoint_truth(
        keypoints, batch.depth, batch.mask, batch.K, batch.cam0_T_cam, depth_range.expand(len(batch.image), 2)
    )


def colour_difference(batch: Batch) -> float:
    """Mean difference in colour between keypoints and their true matches: small only when both are one surface point."""
    keypoints = keypoints_of(batch)
    truth = truth_of(batch, keypoints)
    here = sample(batch.image[:, 0], keypoints[:, None])
    differences = []
    for view in range(1, batch.image.shape[1]):
        there = sample(batch.image[:, view], truth.matches[:, None, view - 1])
        differences.append((here - there).abs().mean(1)[:, 0][truth.seen[:, view - 1]])
    return torch.cat(differences).mean().item()


# --- depth maps ------------------------------------------------------------------------------------------------------


def test_holes_do_not_enter_a_coarser_depth() -> None:
    depth = torch.tensor([[[2.0, 0.0, 3.0, 5.0], [0.0, 0.0, 4.0, 8.0], [0.0, 0.0, 7.0, 9.0], [0.0, 0.0, 7.0, 9.0]]])
    coarse, mask = coarser_depth(depth, depth > 0, 2)
    assert torch.equal(coarse, torch.tensor([[[2.0, 5.0], [0.0, 8.0]]]))
    assert torch.equal(mask, torch.tensor([[[True, True], [False, True]]]))


def test_a_masked_depth_counts_for_nothing_even_when_it_is_a_number() -> None:
    depth = torch.tensor([[[2.0, 900.0], [torch.nan, torch.inf]]])
    coarse, mask = coarser_depth(depth, torch.tensor([[[True, False], [False, False]]]), 2)
    assert coarse.item() == 2 and mask.item()


def test_the_authors_way_averages_holes_in_and_is_the_mean_elsewhere() -> None:
    depth = torch.tensor([[[2.0, 0.0, 3.0, 5.0], [0.0, 0.0, 4.0, 8.0]]])
    coarse, mask = coarser_depth(depth, depth > 0, 2, method="bilinear")
    assert torch.allclose(coarse, torch.tensor([[[0.5, 5.0]]])) and mask.all()


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_depth_and_mask_have_one_size_rounded_up(factor: int) -> None:
    depth = torch.full((2, 17, 29), 3.0)
    coarse, mask = coarser_depth(depth, depth > 0, factor)
    assert coarse.shape == mask.shape == (2, -(-17 // factor), -(-29 // factor))
    assert mask.all() and torch.allclose(coarse, torch.tensor(3.0))


# --- keypoints -------------------------------------------------------------------------------------------------------


def test_depth_at_pixels_needs_every_pixel_it_is_made_of() -> None:
    depth = torch.tensor([[[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]])
    at = torch.tensor([[[1.0, 0], [0.5, 0.5], [1.25, 0], [1.5, 1], [2, 0], [2.5, 1], [-0.25, 0], [2, 1], [0, 7]]])
    z, valid = depth_at(depth, depth > 0, at)
    assert torch.equal(z, torch.tensor([[2.0, 2.5, 0, 4.5, 0, 0, 0, 5, 0]]))
    assert torch.equal(valid, z > 0)


def test_true_matches_lie_on_the_same_surface_point() -> None:
    batch = scene(size=(96, 120))
    assert colour_difference(batch) < 0.03
    assert colour_difference(replace(batch, depth=1.2 * batch.depth)) > 0.1


def test_points_and_matches_of_a_known_camera() -> None:
    K = torch.tensor([[10.0, 0, 5], [0, 10, 4], [0, 0, 1]]).repeat(1, 2, 1, 1)
    cam0_T_cam = torch.eye(4).repeat(1, 2, 1, 1)
    cam0_T_cam[0, 1, 0, 3] = 0.4
    depth = torch.full((1, 2, 9, 11), 2.0)
    truth = keypoint_truth(torch.tensor([[[7.0, 3.0]]]), depth, depth > 0, K, cam0_T_cam, WIDE)
    assert torch.allclose(truth.points, torch.tensor([[[0.4, -0.2, 2.0]]]))
    assert torch.allclose(truth.matches, torch.tensor([[[[5.0, 3.0]]]])) and truth.seen.all()


def test_each_view_has_its_own_intrinsics() -> None:
    batch = scene(size=(96, 120))
    keypoints = keypoints_of(batch)
    K = batch.K.clone()
    K[:, 1, 0, 2] += 10
    before, after = truth_of(batch, keypoints).matches, truth_of(replace(batch, K=K), keypoints).matches
    assert torch.allclose(after[:, 0, :, 0], before[:, 0, :, 0] + 10) and torch.equal(after[:, 1], before[:, 1])


def test_a_match_counts_only_with_truth_in_range_and_inside_the_image() -> None:
    batch = scene(size=(32, 40))
    keypoints = keypoints_of(batch)
    truth = truth_of(batch, keypoints)
    assert truth.known.any() and not truth.known.all() and not truth.points[~truth.known].any()
    assert not (truth.seen & ~truth.known[:, None]).any()
    assert torch.equal(truth.seen, inside(truth.matches, (32, 40)) & truth.known[:, None])
    z = truth.points[0, truth.known[0], 2]
    middle = z.median().item()
    for bounds, expected in (((0.1, middle), z <= middle), ((middle, 100.0), z >= middle)):
        assert truth_of(batch, keypoints, torch.tensor([bounds])).known[0].sum() == expected.sum()


def test_a_match_at_the_border_counts_up_to_the_pixel_s_edge() -> None:
    at = torch.tensor([[-0.5, 0.0], [-0.51, 0.0], [9.49, 4.49], [9.5, 0.0], [0.0, 4.5]])
    assert inside(at, (5, 10)).tolist() == [True, False, True, False, False]


def test_a_hidden_keypoint_does_not_count_and_an_unmeasured_one_does() -> None:
    batch = scene(1, size=(48, 64))
    keypoints = keypoints_of(batch)
    free = truth_of(batch, keypoints).seen
    depth = batch.depth.clone()
    depth[:, 1] *= 0.9
    hidden = truth_of(replace(batch, depth=depth), keypoints).seen
    mask = batch.mask.clone()
    mask[:, 1] = False
    unmeasured = truth_of(replace(batch, depth=depth, mask=mask), keypoints).seen
    assert torch.equal(hidden[:, 1], free[:, 1]) and torch.equal(unmeasured, free)
    assert free[:, 0].any() and hidden[:, 0].sum() < 0.3 * free[:, 0].sum()


def test_a_point_behind_a_view_does_not_count() -> None:
    batch = scene(1)
    cam0_T_cam = batch.cam0_T_cam.clone()
    cam0_T_cam[:, 1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    truth = truth_of(replace(batch, cam0_T_cam=cam0_T_cam), keypoints_of(batch))
    assert not truth.seen[:, 0].any() and torch.isfinite(truth.matches).all()


# --- variations ------------------------------------------------------------------------------------------------------


def varied(batch: Batch) -> Batch:
    """Mirrored and cropped."""
    window = torch.tensor([1.5, 1.25]), torch.tensor([20.0, 3.0]), torch.tensor([10.0, 5.0])
    return enlarge(mirror(batch, torch.tensor([True, False])), *window)


def test_true_matches_follow_flips_and_crops() -> None:
    assert colour_difference(varied(scene(size=(96, 120)))) < 0.05


def test_intrinsics_that_do_not_follow_a_crop_are_caught() -> None:
    batch = scene(size=(96, 120))
    cropped = varied(batch)
    assert colour_difference(replace(cropped, K=batch.K)) > 0.15
    only_first = torch.cat([cropped.K[:, :1], batch.K[:, 1:]], dim=1)
    assert colour_difference(replace(cropped, K=only_first)) > 0.15


def test_poses_that_do_not_follow_a_flip_are_caught() -> None:
    batch = scene(size=(96, 120))
    assert colour_difference(replace(varied(batch), cam0_T_cam=batch.cam0_T_cam)) > 0.1


# --- the detector's cells --------------------------------------------------------------------------------------------


def test_cells_are_distributions_in_the_detector_s_order() -> None:
    probability = torch.zeros(1, 16, 24)
    probability[0, 3, 2] = 0.75
    probability[0, 8:12, 16] = 0.5
    target = detector_target(probability)
    assert target.shape == (1, 65, 2, 3) and torch.allclose(target.sum(1), torch.tensor(1.0))
    assert target[0, 3 * 8 + 2, 0, 0] == 0.75 and target[0, 64, 0, 0] == 0.25
    assert torch.equal(target[0, [0, 8, 16, 24], 1, 2], torch.full((4,), 0.25)) and target[0, 64, 1, 2] == 0
    assert (target[0, 64, 0, 1:] == 1).all()


def test_pixels_beyond_the_image_are_no_keypoints() -> None:
    target = detector_target(torch.full((2, 9, 15), 0.01))
    assert target.shape == (2, 65, 2, 2)
    assert target[0, 64, 0, 0].item() == pytest.approx(0.36) and target[0, 64, 1, 1].item() == pytest.approx(0.93)


def test_the_back_projection_is_the_authors_own(golden: Path) -> None:
    with np.load(golden / "deltas.npz", allow_pickle=False) as file:
        keys = ("keypoints", "depth_gt_anchor", "intrinsics", "keypoints3d_gt")
        keypoints, depth, K, expected = (torch.from_numpy(file[f"small/{key}"]).float() for key in keys)
    size = torch.tensor([depth.shape[-1] - 1, depth.shape[-2] - 1])
    z = F.grid_sample(depth[:, None], (2 * keypoints / size - 1)[:, None], align_corners=False)[:, 0, 0]
    assert torch.allclose(backproject_pixels(keypoints, z, K), expected, atol=1e-5)
