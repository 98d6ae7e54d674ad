"""DELTAS' matching: search segments by hand and by projection, the fast correlation against sampled descriptors."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plumbline.systems.deltas import matching
from plumbline.systems.deltas.matching import (
    Segments,
    candidates,
    match_reference,
    sample_descriptors,
    search_segments,
    soft_match,
)

SIZE = (48, 64)
RANGE = (0.5, 10.0)


def match(descriptors: Tensor, keypoints: Tensor, segments: Segments, **options: Any) -> tuple[Tensor, Tensor]:
    """What `match_reference` returns, of the fast path."""
    found = matching.search(descriptors, keypoints, segments, **options)
    return found.matches, found.best


def camera(*, focal: float = 50.0, views: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    K = torch.tensor([[focal, 0, 31.5], [0, focal, 23.5], [0, 0, 1]], dtype=dtype)
    return K.expand(1, views, 3, 3).clone()


def moved(*translations: tuple[float, float, float], dtype: torch.dtype = torch.float32) -> Tensor:
    """Sources that see the anchor's points shifted by `translations`."""
    cam_T_cam0 = torch.eye(4, dtype=dtype).repeat(1, len(translations), 1, 1)
    cam_T_cam0[0, :, :3, 3] = torch.tensor(translations, dtype=dtype)
    return cam_T_cam0


def turned(angle: float, axis: int) -> Tensor:
    """A rotation about a coordinate axis."""
    cam_T_cam0 = torch.eye(4).repeat(1, 1, 1, 1)
    one, other = (i for i in range(3) if i != axis)
    cam_T_cam0[0, 0, one, one] = cam_T_cam0[0, 0, other, other] = math.cos(angle)
    cam_T_cam0[0, 0, one, other], cam_T_cam0[0, 0, other, one] = -math.sin(angle), math.sin(angle)
    return cam_T_cam0


def search(
    keypoints: list[tuple[float, float]],
    cam_T_cam0: Tensor,
    *,
    K: Tensor | None = None,
    depths: tuple[float, ...] = RANGE,
) -> Segments:
    K = camera(views=1 + cam_T_cam0.shape[1]) if K is None else K
    return search_segments(torch.tensor([keypoints]), K, cam_T_cam0, torch.tensor([depths]), SIZE)


@pytest.mark.parametrize(("end", "usable"), [(-0.5, True), (-0.25, True), (-0.75, False), (0.0, True)])
def test_a_segment_may_reach_the_border_of_the_outermost_pixel(end: float, usable: bool) -> None:
    """A focal length of 64, a step of 1/128 m to the left and depths 0.5 and infinity (almost): one pixel exactly."""
    K, step, far = camera(focal=64.0), moved((-1 / 128, 0, 0)), 2.0**40
    down = moved((0, -1 / 128, 0))
    assert search([(end + 1, 10.0)], step, K=K, depths=(0.5, far)).usable.item() is usable
    assert search([(10.0, end + 1)], down, K=K, depths=(0.5, far)).usable.item() is usable


@pytest.mark.parametrize(("gap", "usable"), [(0.5, False), (0.75, True), (0.25, False), (1.0, True)])
def test_the_far_border_itself_is_outside(gap: float, usable: bool) -> None:
    K, step, far = camera(focal=64.0), moved((1 / 128, 0, 0)), 2.0**40
    assert search([(SIZE[1] - gap - 1, 10.0)], step, K=K, depths=(0.5, far)).usable.item() is usable
    down = moved((0, 1 / 128, 0))
    assert search([(10.0, SIZE[0] - gap - 1)], down, K=K, depths=(0.5, far)).usable.item() is usable


def test_an_unusable_segment_is_a_point_at_the_origin() -> None:
    segments = search([(1.0, 10.0)], moved((-0.1, 0, 0)))
    assert segments.centre.tolist() == [[[[0, 0]]]] and segments.length.item() == 0 and not segments.usable.item()


def test_the_ends_are_what_a_point_projects_to_at_both_depths() -> None:
    """Two samples with cameras and depth ranges of their own, a source with another focal length."""
    random = torch.Generator().manual_seed(0)
    keypoints = 20 + 20 * torch.rand(2, 5, 2, generator=random)
    K = torch.cat([camera(views=3), camera(focal=45.0, views=3)])
    K[:, 2, :2, :2] *= 0.9
    cam_T_cam0 = torch.cat(
        [moved((0.05, 0.02, 0.01), (-0.03, 0.04, -0.02)), moved((0.02, 0.0, 0.05), (0.0, 0.03, 0.0))]
    )
    cam_T_cam0[:, 1] = turned(0.05, 1)[0] @ cam_T_cam0[:, 1]
    depth_range = torch.tensor([[0.5, 10.0], [1.0, 4.0]])
    segments = search_segments(keypoints, K, cam_T_cam0, depth_range, SIZE)
    rays = F.pad(keypoints, (0, 1), value=1.0) @ torch.linalg.inv(K[:, 0]).mT
    ends = []
    for depth in depth_range.unbind(1):
        points = F.pad(rays * depth[:, None, None], (0, 1), value=1.0)
        seen = points[:, None] @ (K[:, 1:] @ cam_T_cam0[:, :, :3]).mT
        ends.append(seen[..., :2] / seen[..., 2:])
    assert segments.usable.all()
    torch.testing.assert_close(segments.centre, (ends[0] + ends[1]) / 2)
    torch.testing.assert_close(segments.length, (ends[0] - ends[1]).norm(dim=-1), atol=1e-4, rtol=1e-4)
    difference = F.normalize(ends[1] - ends[0], dim=-1)
    torch.testing.assert_close((difference * segments.direction).sum(-1).abs(), torch.ones(2, 2, 5))


def test_without_a_baseline_nothing_can_be_searched() -> None:
    segments = search([(30.0, 20.0), (5.0, 40.0)], turned(0.1, 2))
    assert not segments.usable.any() and torch.isfinite(segments.direction).all()
    torch.testing.assert_close(segments.direction.norm(dim=-1), torch.ones(1, 1, 2))


def test_a_source_in_which_everything_is_behind_is_unusable_or_finite() -> None:
    """Half a turn: as published, the sign of the depth is not tested, so the mirrored pixels count."""
    behind = turned(math.pi, 1)
    behind[0, 0, 0, 3] = 0.02
    segments = search([(30.0, 20.0), (5.0, 40.0)], behind)
    assert torch.isfinite(segments.centre).all() and torch.isfinite(segments.length).all()
    touching = search([(31.5, 23.5)], moved((0.0, 0.0, -0.5)))
    assert not touching.usable.any() and torch.isfinite(touching.centre).all()


def test_candidates_lie_on_three_lines_along_the_segment() -> None:
    segments = Segments(torch.tensor([[10.0, 20.0]]), torch.tensor([4.0]), torch.tensor([[0.6, 0.8]]))
    places = candidates(segments, 5)
    assert places.shape == (1, 3, 5, 2)
    torch.testing.assert_close(
        places[0, 1], torch.tensor([10.0, 20.0]) + torch.tensor([[0.6, 0.8]]) * torch.arange(-2, 3)[:, None]
    )
    side = torch.tensor([[-0.8, 0.6]])
    torch.testing.assert_close(places[0, 2] - places[0, 1], side.expand(5, 2))
    torch.testing.assert_close(places[0, 1] - places[0, 0], side.expand(5, 2))


def test_descriptors_are_read_where_the_published_network_reads_them() -> None:
    """Pixel 3.5 is half a cell before the first one, pixel 8 w - 1 half a cell behind the last."""
    maps = torch.ones(1, 2, 2, 4)
    maps[0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    pixels = torch.tensor([15.0, 21.0])
    read = sample_descriptors(maps, torch.stack([pixels, torch.tensor([8.0, 8.0])], dim=-1)[None])[0]
    column = (pixels - 3.5) / (4 * 8 - 4.5) * 4 - 0.5
    torch.testing.assert_close(read[:, 0] / read[:, 1], column + 1)
    torch.testing.assert_close(read.norm(dim=-1), torch.ones(2))
    assert not sample_descriptors(maps, torch.tensor([[[-9.0, 8.0]]])).any()


def test_the_soft_match_counts_half_a_pixel_across() -> None:
    segments = Segments(torch.tensor([[10.0, 20.0]]), torch.tensor([4.0]), torch.tensor([[1.0, 0.0]]))
    scores = torch.full((1, 3, 5), -1e4)
    scores[0, 2, 4] = 0
    torch.testing.assert_close(soft_match(scores, segments), torch.tensor([[12.0, 20.5]]))
    scores[0, 0, 4] = 0
    torch.testing.assert_close(soft_match(scores, segments), torch.tensor([[12.0, 20.0]]))
    torch.testing.assert_close(soft_match(torch.zeros(1, 3, 5), segments), segments.centre)


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Segments]:
    """Two samples, three sources of which one sees little: segments over the whole image and over its borders."""
    random = torch.Generator().manual_seed(1)
    descriptors = F.normalize(torch.randn(2, 4, 6, 6, 8, generator=random, dtype=dtype), dim=2)
    keypoints = torch.rand(2, 30, 2, generator=random, dtype=dtype) * torch.tensor([63.0, 47.0], dtype=dtype)
    keypoints[:, :4] = torch.tensor([[0, 0], [63, 0], [63, 47], [0, 47]], dtype=dtype)
    cam_T_cam0 = moved((0.1, 0.02, 0.0), (-0.02, 0.1, 0.3), (0.4, 0.0, 0.0), dtype=dtype).repeat(2, 1, 1, 1)
    K = camera(views=4, dtype=dtype).repeat(2, 1, 1, 1)
    segments = search_segments(keypoints, K, cam_T_cam0, torch.tensor([RANGE, (1.0, 5.0)], dtype=dtype), SIZE)
    assert 0.3 < segments.usable.double().mean() < 0.9
    return descriptors, keypoints, segments


@pytest.mark.parametrize(
    ("dtype", "tolerance", "cell"), [(torch.float32, 1e-5, 8), (torch.float64, 1e-10, 8), (torch.float64, 1e-10, 4)]
)
def test_correlating_and_then_sampling_equals_sampling_and_then_correlating(
    dtype: torch.dtype, tolerance: float, cell: int
) -> None:
    descriptors, keypoints, segments = problem(dtype)
    weights = torch.randn(2, 3, 30, 2, generator=torch.Generator().manual_seed(2), dtype=dtype)
    found = []
    for function in (match, match_reference):
        leaf = descriptors.clone().requires_grad_()
        gain = torch.ones((), dtype=dtype, requires_grad=True)
        options = {"score": lambda c, gain=gain: F.relu(3 * gain * c), "samples": 20, "cell": cell}
        matches, best = function(leaf, keypoints, segments, **options)
        loss = (matches * weights).mean() + best.mean()
        found.append((matches, best, *torch.autograd.grad(loss, (leaf, gain))))
    for name, one, other in zip(("matches", "best", "descriptors", "gain"), *found, strict=True):
        limit = tolerance * (SIZE[1] if name == "matches" else 1)
        torch.testing.assert_close(
            one, other, atol=limit, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    unusable = ~segments.usable
    assert not found[0][0][unusable].any()
    # With cells of 4 pixels the map ends before the image does, and the origin's descriptors disagree.
    assert found[0][1][unusable].any() or cell == 4


def test_gradients_are_exact() -> None:
    random = torch.Generator().manual_seed(3)
    descriptors = torch.randn(1, 2, 3, 3, 4, generator=random, dtype=torch.float64).requires_grad_()
    keypoints = torch.tensor([[[3.0, 4.0], [20.0, 11.0], [31.0, 23.0]]], dtype=torch.float64)
    K, cam_T_cam0 = camera(focal=20.0, dtype=torch.float64), moved((0.1, 0.05, 0.1), dtype=torch.float64)
    segments = search_segments(keypoints, K, cam_T_cam0, torch.tensor([RANGE], dtype=torch.float64), (24, 32))
    assert segments.usable.any() and not segments.usable.all()
    # No maximum over places: its gradient jumps where two places score the same.
    matches = lambda d: match(d, keypoints, segments, score=torch.tanh, samples=4)[0]  # noqa: E731
    assert torch.autograd.gradcheck(matches, (descriptors,), fast_mode=True)


def test_unusable_segments_cost_three_reads() -> None:
    descriptors, keypoints, segments = problem(torch.float32)
    read: list[int] = []

    def score(correlations: Tensor) -> Tensor:
        read.append(correlations.numel())
        return correlations

    matching.search(descriptors, keypoints, segments, score=score, samples=20)
    usable = int(segments.usable.sum())
    assert read == [usable * 60 + (segments.usable.numel() - usable) * 3]


@pytest.mark.parametrize("usable", [True, False])
def test_all_or_no_segments_may_be_usable(usable: bool) -> None:
    descriptors, keypoints, segments = problem(torch.float32)
    length = torch.ones_like(segments.length) if usable else torch.zeros_like(segments.length)
    segments = Segments(segments.centre, length, segments.direction)
    descriptors.requires_grad_()
    matches, best = match(descriptors, keypoints, segments, score=lambda c: c, samples=7)
    (matches.sum() + best.sum()).backward()
    assert bool(matches.any()) == usable and torch.isfinite(descriptors.grad).all() and torch.isfinite(best).all()


def test_a_planted_match_is_found() -> None:
    """Every cell has a descriptor of its own, and the source sees the anchor's cells two cells to the right."""
    anchor = torch.eye(48).view(1, 48, 6, 8)
    descriptors = torch.stack([anchor, anchor.roll(2, dims=-1)], dim=1)
    K, cam_T_cam0 = camera(focal=64.0), moved((0.25, 0.0, 0.0))
    keypoints = torch.tensor([[[20.0, 20.0], [28.0, 28.0]]])
    # One metre away the shift is 16 pixels.
    segments = search_segments(keypoints, K, cam_T_cam0, torch.tensor([[0.6, 10.0]]), SIZE)
    matches, best = match(descriptors, keypoints, segments, score=lambda c: 60 * c, samples=100)
    assert segments.usable.all() and (best > 50).all()
    torch.testing.assert_close(matches[0, 0], keypoints[0] + torch.tensor([16.0, 0.0]), atol=1.0, rtol=0)
