"""DeltaZ's losses: values worked by hand, gradients where they must be, and consistency of true geometry."""

import math

import pytest
import torch
from torch import Tensor

from plumbline.geometry import invert_intrinsics, pixel_grid
from plumbline.systems.deltaz import losses

SIZE = (24, 32)


def cameras(*, baseline: float = 0.2, angle: float = 0.05) -> tuple[Tensor, Tensor]:
    """Two cameras, "1 2 3 3" and "1 2 4 4": the second moved along x and turned about y."""
    K = torch.tensor([[30.0, 0, 15.0], [0, 30.0, 11.0], [0, 0, 1]], dtype=torch.float64).repeat(1, 2, 1, 1)
    cam0_T_cam = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    cam0_T_cam[0, 1, :3, :3] = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    cam0_T_cam[0, 1, 0, 3] = baseline
    return K, cam0_T_cam


def plane_depth(K: Tensor, cam0_T_cam: Tensor, size: tuple[int, int] = SIZE) -> Tensor:
    """True depth "1 2 h w" of the plane n . X = 2 in both views, from the ray equation."""
    normal = torch.tensor([0.2, -0.1, 1.0], dtype=torch.float64)
    grid = pixel_grid(size, dtype=torch.float64)
    rays = torch.cat([grid, torch.ones(*size, 1, dtype=torch.float64)], dim=-1)
    maps = []
    for view in range(K.shape[1]):
        directions = rays @ invert_intrinsics(K[0, view]).T
        rotation, centre = cam0_T_cam[0, view, :3, :3], cam0_T_cam[0, view, :3, 3]
        maps.append((2.0 - normal @ centre) / (directions @ (rotation.T @ normal)))
    return torch.stack(maps)[None]


def consistency(depths: Tensor, K: Tensor, cam0_T_cam: Tensor, **options: float) -> Tensor:
    scale = torch.ones(depths.shape[0], dtype=depths.dtype)
    return losses.multiview_consistency(depths, K, cam0_T_cam, scale, refined_views=2, **options)


def test_masked_losses_by_hand() -> None:
    refined = torch.tensor([[[[1.0, 2.0], [3.0, 9.0]]]])
    truth = torch.tensor([[[[1.5, 2.0], [2.0, 0.0]]]])
    initial = torch.tensor([[[[1.0, 4.0], [3.0, 9.0]]]])
    mask = truth > 0
    assert losses.depth_error(refined, truth, mask).item() == pytest.approx(0.5)
    assert losses.relative_error(refined, truth, mask).item() == pytest.approx((0.5 / 1.5 + 1 / 2) / 3)
    assert losses.improvement(refined, initial, truth, mask).item() == pytest.approx(-2 / 3)
    assert losses.direct_supervision(refined - initial, initial, truth, mask).item() == pytest.approx(0.5)
    assert losses.correction_magnitude(refined - initial).item() == pytest.approx(0.5)
    assert losses.relative_magnitude(refined - initial, initial).item() == pytest.approx(2 / 4.001 / 4)


def test_delta_z_has_the_gradient_of_depth_and_none_for_the_initial_depth() -> None:
    refined = torch.rand(2, 1, 4, 5, requires_grad=True)
    initial = torch.rand(2, 1, 4, 5, requires_grad=True)
    truth = torch.rand(2, 1, 4, 5)
    mask = truth > 0.3
    (of_depth,) = torch.autograd.grad(losses.depth_error(refined, truth, mask), refined)
    loss = losses.improvement(refined, initial, truth, mask)
    (of_delta,) = torch.autograd.grad(loss, refined)
    assert torch.equal(of_depth, of_delta)
    assert not torch.autograd.functional.jacobian(
        lambda z0: losses.improvement(refined.detach(), z0, truth, mask), initial
    ).any()


def test_a_sample_without_truth_counts_as_zero_and_means_are_over_samples() -> None:
    refined, truth = torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), 1.0)
    mask = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    assert losses.depth_error(refined, truth, mask).item() == pytest.approx(0.5)
    assert losses.depth_error(refined, truth, mask & False).item() == 0


def test_point_error_is_the_length_of_the_ray_difference() -> None:
    K = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 1]]).repeat(1, 1, 1, 1)
    refined, truth = torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 2), 2.0)
    expected = (1 + math.sqrt(1 + 0.5**2)) / 2
    assert losses.point_error(refined, truth, truth > 0, K).item() == pytest.approx(expected, rel=1e-5)


def test_point_error_is_finite_and_has_no_nan_gradient_where_depth_is_exact() -> None:
    K = torch.eye(3).repeat(1, 1, 1, 1)
    refined = torch.full((1, 1, 2, 2), 2.0, requires_grad=True)
    losses.point_error(refined, refined.detach().clone(), torch.ones(1, 1, 2, 2, dtype=torch.bool), K).backward()
    assert refined.grad is not None and torch.isfinite(refined.grad).all()


def test_smoothness_spares_image_edges() -> None:
    delta = torch.tensor([[[[0.0, 1.0]]]])
    flat = torch.zeros(1, 1, 3, 1, 2)
    edge = flat.clone()
    edge[..., 1] = 0.3
    assert losses.smoothness(delta, flat).item() == pytest.approx(1.0)
    assert losses.smoothness(delta, edge).item() == pytest.approx(math.exp(-3.0), rel=1e-5)


def test_surface_smoothness_is_zero_on_a_slope_and_counts_bends() -> None:
    slope = torch.arange(5.0).repeat(1, 1, 4, 1)
    assert losses.surface_smoothness(slope).item() == 0
    bend = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    assert losses.surface_smoothness(bend).item() == pytest.approx(1.0)


def test_confidence_target_is_detached_and_falls_with_the_error() -> None:
    truth = torch.full((1, 1, 1, 2), 2.0)
    refined = torch.tensor([[[[2.0, 2.1]]]], requires_grad=True)
    confidence = torch.tensor([[[[1.0, 0.0]]]], requires_grad=True)
    loss = losses.confidence_error(confidence, refined, truth, truth > 0)
    assert loss.item() == pytest.approx(math.exp(-1) / 2, rel=1e-5)
    loss.backward()
    assert refined.grad is None and confidence.grad is not None


def test_true_depth_of_a_plane_is_consistent() -> None:
    K, cam0_T_cam = cameras()
    depths = plane_depth(K, cam0_T_cam)
    term = consistency(depths, K, cam0_T_cam)
    assert 0 < term.item() < 0.001 * depths.mean().item()


def test_intrinsics_of_another_resolution_are_inconsistent() -> None:
    K, cam0_T_cam = cameras()
    depths = plane_depth(K, cam0_T_cam)
    wrong = K.clone()
    wrong[..., :2, :] *= 2
    assert consistency(depths, wrong, cam0_T_cam) > 10 * consistency(depths, K, cam0_T_cam)


def test_multiview_term_matches_its_numerical_gradient_in_both_views() -> None:
    K, cam0_T_cam = cameras()
    noise = torch.Generator().manual_seed(0)
    depths = plane_depth(K, cam0_T_cam, (6, 8))
    depths = (depths + 0.02 * torch.rand(depths.shape, generator=noise, dtype=torch.float64)).requires_grad_()
    K = K.clone()
    K[..., :2, :] /= 4
    loss = consistency(depths, K, cam0_T_cam)
    (gradient,) = torch.autograd.grad(loss, depths)
    assert gradient[0, 0].abs().sum() > 0 and gradient[0, 1].abs().sum() > 0
    assert torch.autograd.gradcheck(lambda z: consistency(z, K, cam0_T_cam), depths, eps=1e-7, atol=1e-5)


def test_a_hidden_pixel_does_not_count() -> None:
    K, cam0_T_cam = cameras(angle=0.0)
    depths = torch.full((1, 2, *SIZE), 4.0, dtype=torch.float64)
    depths[0, 1, :, 8:16] = 2.0
    assert consistency(depths, K, cam0_T_cam).item() == pytest.approx(0, abs=1e-9)
    assert consistency(depths, K, cam0_T_cam, occlusion_threshold=1.0) > 0.1


def test_invalid_depth_of_either_view_does_not_count() -> None:
    K, cam0_T_cam = cameras(angle=0.0)
    depths = torch.full((1, 2, *SIZE), 4.0, dtype=torch.float64)
    depths[0, 0] = 4.2
    whole = consistency(depths, K, cam0_T_cam).item()
    assert whole == pytest.approx(0.2)
    depths[..., ::2] = 0
    assert consistency(depths, K, cam0_T_cam).item() == 0


def test_one_view_alone_gives_zero_with_a_gradient() -> None:
    K, cam0_T_cam = cameras()
    depths = torch.full((1, 1, *SIZE), 4.0, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(1, dtype=torch.float64)
    term = losses.multiview_consistency(depths, K[:, :1], cam0_T_cam[:, :1], scale, refined_views=1)
    term.backward()
    assert term.item() == 0 and depths.grad is not None and not depths.grad.any()


def test_points_behind_the_other_camera_do_not_count() -> None:
    K, cam0_T_cam = cameras(angle=math.pi)
    depths = torch.full((1, 2, *SIZE), 4.0, dtype=torch.float64, requires_grad=True)
    term = consistency(depths, K, cam0_T_cam)
    term.backward()
    assert term.item() == 0 and torch.isfinite(depths.grad).all()
