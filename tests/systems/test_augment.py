"""Varied batches stay true to their geometry: depth of one view still predicts the other's pixels."""

from dataclasses import replace

import pytest
import torch

from plane_scene import scene
from plumbline.geometry import invert, warp
from plumbline.systems.augment import AugmentConfig, augment, degrade, enlarge, mirror, vary_light
from plumbline.systems.deltaz.losses import multiview_consistency
from plumbline.systems.records import Batch

OFF = AugmentConfig(flip=0, zoom=0, brightness=0, contrast=0, gamma=0, colour=0, image_noise=0, degrade=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inconsistency(batch: Batch) -> float:
    """Share of depth by which true depths of the views disagree."""
    scale = batch.depth.flatten(1).mean(1)
    return multiview_consistency(
        batch.depth, batch.K, batch.cam0_T_cam, scale, refined_views=batch.depth.shape[1]
    ).item()


def photometric_error(batch: Batch) -> float:
    """Mean difference between view 0 and view 1 seen through view 0's true depth."""
    cam1_T_cam0 = invert(batch.cam0_T_cam[:, 1])
    warped, valid = warp(batch.image[:, 1], batch.depth[:, 0], batch.K[:, 0], batch.K[:, 1], cam1_T_cam0)
    return (warped - batch.image[:, 0]).abs().mean(1)[valid].mean().item()


def large() -> Batch:
    return scene(size=(96, 120))


def test_the_scene_itself_is_true() -> None:
    assert inconsistency(large()) < 1e-4 and photometric_error(large()) < 0.03


def test_a_mirrored_scene_is_true_and_mirroring_twice_is_nothing() -> None:
    batch, which = large(), torch.tensor([True, False])
    batch.K[..., 0, 2] += 5
    batch = replace(batch, image=large().image)
    mirrored = mirror(batch, which)
    assert inconsistency(mirrored) == pytest.approx(inconsistency(batch), abs=1e-5)
    assert torch.equal(mirrored.image[0], batch.image[0].flip(-1)) and torch.equal(mirrored.image[1], batch.image[1])
    assert torch.linalg.det(mirrored.cam0_T_cam[0, 1, :3, :3]).item() == pytest.approx(1)
    assert photometric_error(mirror(large(), which)) == pytest.approx(photometric_error(large()), abs=1e-4)
    again = mirror(mirrored, which)
    for name in ("image", "K", "cam0_T_cam", "depth", "mask", "initial_depth"):
        assert torch.allclose(getattr(again, name), getattr(batch, name)), name


def test_mirroring_without_its_cameras_would_be_caught() -> None:
    batch = large()
    wrong = replace(mirror(batch, torch.tensor([True, True])), cam0_T_cam=batch.cam0_T_cam)
    assert photometric_error(wrong) > 3 * photometric_error(batch)


def test_an_enlarged_crop_is_true() -> None:
    batch = large()
    zoomed = enlarge(batch, torch.tensor([1.5, 1.0]), torch.tensor([20.0, 0.0]), torch.tensor([10.0, 0.0]))
    # Depth takes the nearest pixel, up to half a pixel away: 1e-3 of depth on this slope.
    assert inconsistency(zoomed) < 2e-3 and photometric_error(zoomed) < 0.05
    assert torch.allclose(zoomed.image[1], batch.image[1], atol=1e-4) and torch.equal(zoomed.depth[1], batch.depth[1])
    assert zoomed.K[0, 0, 0, 0] == pytest.approx(1.5 * batch.K[0, 0, 0, 0].item())


def test_a_crop_of_twice_the_size_repeats_each_pixel_where_it_was() -> None:
    batch = large()
    left, top = torch.tensor([30.0, 30.0]), torch.tensor([24.0, 24.0])
    zoomed = enlarge(batch, torch.tensor([2.0, 2.0]), left, top)
    expected = batch.depth[..., 24:72, 30:90].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(zoomed.depth, expected)


def test_skewed_pixels_are_true_in_a_mirror() -> None:
    batch = large()
    K = batch.K.clone()
    K[..., 0, 1] = 30.0
    pixels = torch.tensor([[7.0, 11.0, 1.0], [80.0, 60.0, 1.0]])
    flipped = torch.tensor([[-7.0, 11.0, 1.0], [-80.0, 60.0, 1.0]]) + torch.tensor([119.0, 0, 0])
    mirrored = mirror(replace(batch, K=K), torch.tensor([True, True])).K
    rays, rays_mirrored = (at @ torch.linalg.inv(k[0, 0]).T for at, k in ((pixels, K), (flipped, mirrored)))
    assert torch.allclose(rays_mirrored, rays * torch.tensor([-1.0, 1, 1]), atol=1e-5)


def test_keypoints_follow_mirror_and_crop_and_keep_their_number() -> None:
    probability = torch.zeros(2, 3, 96, 120)
    probability[:, :, 34, 40] = 1.0
    batch = replace(large(), keypoint_probability=probability)
    mirrored = mirror(batch, torch.tensor([True, False])).keypoint_probability
    assert (mirrored[0, :, 34, 79] == 1).all() and (mirrored[1, :, 34, 40] == 1).all() and mirrored.sum() == 6
    window = torch.tensor([2.0, 1.0]), torch.tensor([30.0, 0.0]), torch.tensor([24.0, 0.0])
    cropped = enlarge(batch, *window).keypoint_probability
    assert (cropped[0, :, 20:22, 20:22] == 0.25).all() and (cropped[1, :, 34, 40] == 1).all()
    assert cropped.flatten(2).sum(2).unique().item() == 1


def test_each_view_may_have_a_light_of_its_own() -> None:
    image = large().image[:, :1].repeat(1, 3, 1, 1, 1)
    shared, own = (
        vary_light(image, AugmentConfig(image_noise=0, shared_light=shares), generator()) for shares in (True, False)
    )
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert (own[:, 0] - own[:, 1]).abs().mean(dim=(1, 2, 3)).min() > 0.02 and own.shape == image.shape


def test_light_is_shared_by_the_views_and_keeps_the_range() -> None:
    batch = large()
    config = AugmentConfig(image_noise=0)
    lit = vary_light(batch.image, config, generator())
    assert lit.min() >= 0 and lit.max() <= 1 and (lit - batch.image).abs().mean() > 0.02
    assert photometric_error(replace(batch, image=lit)) < 0.05
    assert torch.allclose(vary_light(batch.image, OFF, generator()), batch.image, atol=2e-4)


def test_worse_depth_is_worse_in_the_chosen_samples_and_moves_confidence_with_it() -> None:
    batch = large()
    depth, confidence = degrade(batch.initial_depth, batch.initial_confidence, 1.0, generator())
    truth = batch.depth[:, :2]
    assert (depth - truth).abs().mean() > 1.2 * (batch.initial_depth - truth).abs().mean()
    holes = depth == 0
    assert 0.02 < holes.float().mean() < 0.1 and not confidence[holes].any()
    same, sure = degrade(batch.initial_depth, batch.initial_confidence, 0.0, generator())
    assert torch.equal(same, batch.initial_depth) and torch.equal(sure, batch.initial_confidence)


def test_all_together_keep_shapes_truth_and_repeat_with_the_seed() -> None:
    batch, config = large(), AugmentConfig()
    one, two, other = (augment(batch, config, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.image, two.image) and torch.equal(one.initial_depth, two.initial_depth)
    assert not torch.equal(one.image, other.image)
    for name in ("image", "depth", "mask", "initial_depth", "initial_confidence", "K", "cam0_T_cam"):
        assert getattr(one, name).shape == getattr(batch, name).shape, name
    assert inconsistency(one) < 3e-3 and one.mask.dtype == torch.bool


def test_nothing_asked_for_changes_nothing() -> None:
    batch = large()
    same = augment(batch, OFF, generator())
    assert torch.allclose(same.image, batch.image, atol=2e-4) and torch.equal(same.K, batch.K)
    assert torch.equal(same.initial_depth, batch.initial_depth) and torch.equal(same.depth, batch.depth)


def test_a_batch_without_poses_or_initial_depth_is_varied_too() -> None:
    bare = replace(large(), cam0_T_cam=None, initial_depth=None, initial_confidence=None)
    varied = augment(bare, AugmentConfig(), generator())
    assert varied.initial_depth is None and varied.cam0_T_cam is None


def test_views_to_be_rendered_are_varied_with_those_that_are_given() -> None:
    full = large()
    names = ("image", "K", "cam0_T_cam", "depth", "mask")
    seen = {"target_image": full.image, "target_K": full.K, "cam0_T_target": full.cam0_T_cam, "target_mask": full.mask}
    own = {name: getattr(full, name)[:, :1] for name in names}
    split = replace(full, **own, **{name: value[:, 1:] for name, value in seen.items()}, keypoint_probability=None)
    varied = augment(split, AugmentConfig(flip=0.5, zoom=0.5, image_noise=0, degrade=0), generator(3))
    target_T_cam0 = invert(varied.cam0_T_target[:, 0])
    warped, valid = warp(
        varied.target_image[:, 0], varied.depth[:, 0], varied.K[:, 0], varied.target_K[:, 0], target_T_cam0
    )
    assert (varied.image[:, 0] - full.image[:, 0]).abs().mean() > 0.05
    assert (warped - varied.image[:, 0]).abs().mean(1)[valid].mean() < 0.05
    assert varied.target_mask is not None and varied.target_mask.shape == split.target_mask.shape
