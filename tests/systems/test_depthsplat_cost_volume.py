"""DepthSplat's plane sweep: hypotheses, matched views and costs against slow definitions, with and without the quirks."""

import pytest
import torch
from torch import Tensor

from plumbline.geometry import invert, invert_intrinsics
from plumbline.systems.depthsplat.cost_volume import cost_volume, even_candidates, refined_candidates, sampling_grid
from plumbline.systems.depthsplat.views import Views, matched_views


def poses(count: int) -> Tensor:
    """Cameras side by side, slightly turned."""
    world_T_cam = torch.eye(4).repeat(1, count, 1, 1)
    for i in range(count):
        turn = torch.tensor([[0, -0.02, 0.05], [0.02, 0, 0.03], [-0.05, -0.03, 0]]) * i
        world_T_cam[0, i, :3, :3] = torch.linalg.matrix_exp(turn)
        world_T_cam[0, i, :3, 3] = torch.tensor([0.3 * i, 0.02 * i, -0.01 * i])
    return world_T_cam


def intrinsics(count: int, size: tuple[int, int]) -> Tensor:
    """A longer lens and another principal point for each further view."""
    K = torch.zeros(1, count, 3, 3)
    for i in range(count):
        K[0, i] = torch.tensor([[10.0 + 2 * i, 0, size[1] / 2 + i], [0, 11.0 + i, size[0] / 2], [0, 0, 1]])
    return K


def bilinear(image: Tensor, u: float, v: float) -> Tensor:
    """`image` "c h w" at a pixel, 0 outside."""
    h, w = image.shape[-2:]
    u0, v0 = int(u // 1), int(v // 1)
    total = torch.zeros(image.shape[0])
    for y, x in ((v0, u0), (v0, u0 + 1), (v0 + 1, u0), (v0 + 1, u0 + 1)):
        if 0 <= y < h and 0 <= x < w:
            total += image[:, y, x] * (1 - abs(u - x)) * (1 - abs(v - y))
    return total


def slow(
    features: Tensor, candidates: Tensor, K: Tensor, world_T_cam: Tensor, neighbours: Tensor, quirk: bool
) -> Tensor:
    """The definition, pixel by pixel."""
    _, views, c, h, w = features.shape
    cost = torch.zeros(1, views, candidates.shape[2], h, w)
    for i in range(views):
        for j in neighbours[0, i].tolist():
            T = invert(world_T_cam[0, j]) @ world_T_cam[0, i]
            target = K[0, i] if quirk else K[0, j]
            for d in range(candidates.shape[2]):
                for v in range(h):
                    for u in range(w):
                        inverse = candidates[0, i, d].expand(h, w)[v, u]
                        ray = invert_intrinsics(K[0, i]) @ torch.tensor([float(u), float(v), 1.0])
                        point = T[:3, :3] @ ray / inverse + T[:3, 3]
                        if not quirk and point[2] <= 1e-3:
                            continue
                        x, y, _ = (target @ point / point[2].clamp(min=1e-3)).tolist()
                        seen = bilinear(features[0, j], x, y)
                        cost[0, i, d, v, u] += (features[0, i, :, v, u] @ seen) / c**0.5 / neighbours.shape[-1]
    return cost


@pytest.mark.parametrize("quirk", [True, False])
def test_costs_are_those_of_the_definition(quirk: bool) -> None:
    torch.manual_seed(0)
    size = (5, 6)
    features, world_T_cam, K = torch.randn(1, 3, 4, *size), poses(3), intrinsics(3, size)
    candidates = torch.rand(1, 3, 3, *size) * 0.5 + 0.1
    # One view behind the others, looking away from what they see.
    world_T_cam[0, 2, :3, :3] = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    neighbours = matched_views(world_T_cam, 2)
    found = cost_volume(features, candidates, K, world_T_cam, neighbours, quirk=quirk)
    expected = slow(features, candidates, K, world_T_cam, neighbours, quirk)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_neighbours_of_another_focal_length_match_at_the_true_depth_only_without_the_quirk() -> None:
    depth = 4.0
    world_T_cam = torch.eye(4).repeat(1, 2, 1, 1)
    world_T_cam[0, 1, 0, 3] = 0.5
    K = torch.tensor([[[30.0, 0, 15], [0, 30, 12], [0, 0, 1]], [[45.0, 0, 17], [0, 45, 11], [0, 0, 1]]])[None]
    v, u = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    features = []
    for i in range(2):
        x = (u - K[0, i, 0, 2]) / K[0, i, 0, 0] * depth + world_T_cam[0, i, 0, 3]
        y = (v - K[0, i, 1, 2]) / K[0, i, 1, 1] * depth
        waves = torch.stack([f(k * a) for a in (x, y) for k in (3.0, 7.0) for f in (torch.sin, torch.cos)])
        features.append(waves)
    volume = even_candidates(torch.full((1, 2, 1, 1, 1), 0.1), torch.full((1, 2, 1, 1, 1), 0.5), 33)
    best, perfect = {}, 4 / 8**0.5
    for quirk in (True, False):
        cost = cost_volume(torch.stack(features)[None], volume, K, world_T_cam, torch.tensor([[[1], [0]]]), quirk=quirk)
        agreed = cost[0, 0, :, 8:16, 10:20].mean(dim=(1, 2))
        best[quirk] = (volume[0, 0, agreed.argmax(), 0, 0].item(), agreed.max().item() / perfect)
    assert best[False][0] == pytest.approx(1 / depth, abs=0.013) and best[False][1] > 0.95
    assert best[True][1] < 0.8


def test_blocks_and_recomputation_change_no_value() -> None:
    torch.manual_seed(0)
    size = (5, 6)
    world_T_cam, K, neighbours = poses(2), intrinsics(2, size), torch.tensor([[[1], [0]]])
    candidates = torch.rand(1, 2, 7, 1, 1) + 0.1
    results = []
    for options in ({}, {"block_elements": 2 * 4 * 30 * 2}, {"checkpointing": True}):
        features = torch.randn(1, 2, 4, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
        cost = cost_volume(features, candidates, K, world_T_cam, neighbours, quirk=False, **options)
        cost.square().sum().backward()
        results.append((cost.detach(), features.grad))
    for cost, gradient in results[1:]:
        torch.testing.assert_close(cost, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_depth_hypotheses_are_even_in_inverse_depth() -> None:
    low, high = torch.full((1, 1, 1, 1, 1), 0.01), torch.full((1, 1, 1, 1, 1), 2.0)
    values = even_candidates(low, high, 128)
    assert values.shape == (1, 1, 128, 1, 1)
    assert float(values.min()) == pytest.approx(0.01) and float(values.max()) == pytest.approx(2.0)
    centre = torch.tensor([1.0, 0.02, 2.0]).reshape(1, 1, 1, 1, 3).requires_grad_()
    fine = refined_candidates(centre, low, high, coarse=128, count=32)
    assert not fine.requires_grad
    step = 1.99 / 127 / 2
    assert fine[0, 0, 16, 0, 0] == pytest.approx(1.0, abs=1e-6)
    assert (fine[0, 0, 1:, 0, 0] - fine[0, 0, :-1, 0, 0]).tolist() == pytest.approx([step] * 31, rel=1e-4)
    # At the ends of the range the values lie closer.
    assert fine[0, 0, 0, 0, 1] == pytest.approx(0.01) and fine[0, 0, -1, 0, 1] == pytest.approx(0.02 + 15 * step)
    assert fine[0, 0, 0, 0, 2] == pytest.approx(2.0 - 16 * step) and fine[0, 0, -1, 0, 2] == pytest.approx(2.0)


def test_points_behind_a_neighbour_are_outside_unless_the_quirk_says_otherwise() -> None:
    P = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]])
    candidates = torch.ones(1, 1, 1, 1)
    assert (sampling_grid(P, candidates, (3, 3), behind=False) == 2).all()
    assert not (sampling_grid(P, candidates, (3, 3), behind=True) == 2).any()


def test_few_views_are_matched_with_all_others_and_many_with_the_nearest() -> None:
    assert matched_views(poses(3), 2)[0].tolist() == [[1, 2], [0, 2], [0, 1]]
    world_T_cam = torch.eye(4).repeat(1, 5, 1, 1)
    world_T_cam[0, :, 0, 3] = torch.tensor([0.0, 1.0, 1.0, 5.0, 7.5])
    nearest = matched_views(world_T_cam, 2)[0].tolist()
    assert nearest[3] == [4, 1] and nearest[4] == [3, 1]
    # Two views in one place are each other's neighbours, never their own.
    assert nearest[1] == [2, 0] and nearest[2] == [1, 0]


def test_feature_intrinsics_see_a_pixel_s_point_where_the_feature_is() -> None:
    K = torch.tensor([[0.8, 0, 0.5], [0, 1.2, 0.45], [0, 0, 1]]).expand(1, 1, 3, 3)
    views = Views(torch.zeros(1, 1, 3, 32, 64), K, torch.eye(4)[None, None], torch.ones(1, 1), torch.ones(1, 1))
    point = torch.tensor([0.3, -0.2, 1.0])
    u, v, _ = (K[0, 0] @ point).tolist()
    pixel = (u * 64 - 0.5, v * 32 - 0.5)
    x, y, _ = (views.feature_K(4, quirk=False)[0, 0] @ point).tolist()
    assert (4 * x, 4 * y) == pytest.approx(pixel, abs=1e-4)
    x, y, _ = (views.feature_K(4, quirk=True)[0, 0] @ point).tolist()
    assert (4 * x, 4 * y) == pytest.approx((pixel[0] + 0.5, pixel[1] + 0.5), abs=1e-4)
