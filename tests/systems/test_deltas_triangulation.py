"""DELTAS' triangulation: the closed form against the singular value decomposition, and what has no point to meet in."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plumbline.systems.deltas.config import Config
from plumbline.systems.deltas.matching import candidates, correlate_reference, search_segments
from plumbline.systems.deltas.triangulation import Triangulation, projections, triangulate, triangulate_svd

SIZE = (240, 320)


def rig(*, views: int = 3, baseline: float = 0.15) -> Tensor:
    """Projections of cameras beside each other that look at the same place, the first of them at the origin."""
    random = torch.Generator().manual_seed(4)
    K = torch.tensor([[290.0, 0, 160], [0, 285, 120], [0, 0, 1]], dtype=torch.float64)
    cam_T_cam0 = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    for index in range(1, views):
        x, y, z = 0.1 * torch.randn(3, generator=random, dtype=torch.float64)
        generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        cam_T_cam0[index, :3, :3] = torch.linalg.matrix_exp(generator)
        cam_T_cam0[index, :3, 3] = baseline * torch.randn(3, generator=random, dtype=torch.float64)
    return projections(K.expand(1, views, 3, 3), cam_T_cam0[None, 1:])


def project(P: Tensor, points: Tensor) -> Tensor:
    seen = F.pad(points, (0, 1), value=1.0)[:, None] @ P.mT
    return seen[..., :2] / seen[..., 2:]


def observed(P: Tensor, *, count: int, noise: float, contradict: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, weights and true points at 0.5 to 6 m. With `contradict` each view sees another point of the ray."""
    random = torch.Generator().manual_seed(5)
    uniform = lambda *shape: torch.rand(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    rays = torch.cat([uniform(1, count, 2) - 0.5, torch.ones(1, count, 1, dtype=torch.float64)], dim=-1)
    points = rays * (0.5 + 5.5 * uniform(1, count, 1))
    views = P.shape[1]
    seen = [
        project(P[:, i : i + 1], rays / (0.1 + 1.9 * uniform(1, count, 1)) if contradict else points)
        for i in range(views)
    ]
    uv = torch.cat(seen, dim=1)
    uv[:, 1:] += noise * torch.randn(uv[:, 1:].shape, generator=random, dtype=torch.float64)
    weights = 0.5 + 0.5 * uniform(1, views, count)
    weights[:, 0] = 1
    return uv, weights, points


def gradients(function: object, uv: Tensor, weights: Tensor, P: Tensor) -> tuple[Tensor, ...]:
    """Points, and the gradients of a fixed combination of them."""
    uv, weights = uv.clone().requires_grad_(), weights.clone().requires_grad_()
    points, defined = function(uv, weights, P)
    assert defined.all()
    mix = torch.linspace(-1, 1, points.numel(), dtype=points.dtype).view_as(points)
    return points.detach(), *torch.autograd.grad((points * mix).sum(), (uv, weights))


@pytest.mark.parametrize("views", [2, 3, 6])
def test_exact_pixels_give_exact_points(views: int) -> None:
    P = rig(views=views)
    uv, weights, points = observed(P, count=50, noise=0.0)
    for function in (triangulate, triangulate_svd):
        found, defined = function(uv, weights, P)
        assert defined.all()
        torch.testing.assert_close(found, points, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("contradict", [False, True])
@pytest.mark.parametrize(("noise", "views"), [(0.5, 2), (0.5, 3), (3.0, 3), (1.0, 6)])
def test_the_closed_form_is_the_decomposition_s_and_so_are_its_gradients(
    noise: float, views: int, contradict: bool
) -> None:
    P = rig(views=views)
    uv, weights, _ = observed(P, count=200, noise=noise, contradict=contradict)
    for name, one, other in zip(
        ("points", "uv", "weights"),
        gradients(triangulate, uv, weights, P),
        gradients(triangulate_svd, uv, weights, P),
        strict=True,
    ):
        # Where matches contradict each other, a few singular values nearly meet: compared by their own size.
        error = (one - other).abs() / (1e-3 * other.abs().max() + other.abs())
        assert error.max() < 1e-6, name


def test_float32_loses_nothing_to_the_normal_equations() -> None:
    """Depth against the decomposition in float64: median 4e-7 and 99 % 4e-6 are what one in float32 reaches."""
    P = rig()
    uv, weights, _ = observed(P, count=4000, noise=0.5)
    narrow = [tensor.float() for tensor in (uv, weights, P)]
    wide = [tensor.double() for tensor in narrow]
    truth = triangulate_svd(*wide)[0][..., 2]
    error = ((triangulate(*narrow)[0][..., 2] - truth) / truth).abs()
    assert error.median() < 4e-7 and error.quantile(0.99) < 4e-6 and error.max() < 1e-5
    for one, other in zip(gradients(triangulate, *narrow), gradients(triangulate_svd, *wide), strict=True):
        assert ((one - other).norm() / other.norm()) < 1e-6


def test_a_baseline_of_a_millimetre_is_no_trouble() -> None:
    P = rig(baseline=1e-3)
    uv, weights, points = observed(P, count=100, noise=0.0)
    torch.testing.assert_close(triangulate(uv, weights, P)[0], points, rtol=1e-5, atol=1e-5)


def test_gradients_are_exact() -> None:
    P = rig()
    uv, weights, _ = observed(P, count=4, noise=1.0)
    inputs = (uv.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda u, w: triangulate(u, w, P)[0], inputs, fast_mode=True)


def test_a_view_of_small_weight_cannot_spoil_a_point() -> None:
    P = rig(views=4)
    uv, weights, points = observed(P, count=20, noise=0.0)
    uv[:, 3], weights[:, 3] = 0, 1e-6
    torch.testing.assert_close(triangulate(uv, weights, P)[0], points, rtol=1e-4, atol=1e-4)
    weights[:, 3] = 1
    assert (triangulate(uv, weights, P)[0] - points).norm(dim=-1).min() > 0.01


def test_a_point_behind_the_cameras_is_found_there() -> None:
    """Two lines meet where they meet; that the depth is negative tells."""
    P = rig()
    points = torch.tensor([[[0.2, -0.1, -2.0], [0.1, 0.3, -4.0]]], dtype=torch.float64)
    found, defined = triangulate(project(P, points), torch.ones(1, 3, 2, dtype=torch.float64), P)
    assert defined.all()
    torch.testing.assert_close(found, points, rtol=1e-7, atol=1e-7)


def undefined_cases() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Three points each, of which the second alone has something to it."""
    P = rig(views=2)
    uv, weights, _ = observed(P, count=3, noise=0.0)
    cases = {}
    for name, value in (("not a number", math.nan), ("infinite", math.inf)):
        broken = uv.clone()
        broken[0, 1, [0, 2], 0] = value
        cases[name] = (broken, weights, P)
    unweighted = weights.clone()
    unweighted[:, 1, [0, 2]] = 0
    cases["one ray"] = (uv, unweighted, P)
    nothing = weights.clone()
    nothing[:, :, [0, 2]] = 0
    cases["no ray"] = (uv, nothing, P)
    aside = torch.eye(4, dtype=torch.float64)[None, None].clone()
    aside[..., 0, 3] = -0.1
    K = torch.tensor([[256.0, 0, 128], [0, 256, 128], [0, 0, 1]], dtype=torch.float64).expand(1, 2, 3, 3)
    parallel = torch.full((1, 2, 3, 2), 64.0, dtype=torch.float64)
    parallel[0, 0, 1, 0] = 74
    cases["parallel rays"] = (parallel, torch.ones_like(weights), projections(K, aside))
    return cases


@pytest.mark.parametrize("name", undefined_cases())
def test_what_has_no_point_is_undefined_and_harmless(name: str) -> None:
    uv, weights, P = undefined_cases()[name]
    leaves = (uv.clone().requires_grad_(), weights.clone().requires_grad_())
    points, defined = triangulate(*leaves, P)
    assert defined.tolist() == [[False, True, False]]
    assert not points[:, [0, 2]].any() and torch.isfinite(points).all() and points[0, 1, 2] > 0.4
    for gradient in torch.autograd.grad(points.sum(), leaves):
        assert torch.isfinite(gradient).all() and gradient[:, :, 1].any()
        assert not gradient[:, :, [0, 2]].any()


def test_cameras_in_one_place_see_no_depth() -> None:
    P = rig(baseline=0.0)
    uv, weights, _ = observed(P, count=10, noise=0.5)
    points, defined = triangulate(uv, weights, P)
    assert not defined.any() and not points.any()


@pytest.fixture
def net() -> Triangulation:
    """Scores that spread: a correlation of 1 scores 6."""
    made = Triangulation(Config(match_gain=6.0, samples=24)).eval()
    assert made.bn_match_convD.weight.item() == 6
    return made


def sample(*, seed: int = 6, b: int = 2, v: int = 3, n: int = 40) -> dict[str, object]:
    random = torch.Generator().manual_seed(seed)
    K = torch.tensor([[290.0, 0, 160], [0, 285, 120], [0, 0, 1]]).repeat(b, v, 1, 1)
    cam_T_cam0 = torch.eye(4).repeat(b, v - 1, 1, 1)
    cam_T_cam0[..., :3, 3] = 0.1 * torch.randn(b, v - 1, 3, generator=random)
    return {
        "descriptors": F.normalize(torch.randn(b, v, 16, 30, 40, generator=random), dim=2),
        "keypoints": torch.rand(b, n, 2, generator=random) * torch.tensor([319.0, 239.0]),
        "K": K,
        "cam_T_cam0": cam_T_cam0,
        "depth_range": torch.tensor([[0.5, 10.0]]).repeat(b, 1),
        "size": SIZE,
    }


def test_the_entries_are_the_published_ones(net: Triangulation) -> None:
    names = [
        *(f"bn_match_convD.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *("convD_confa.weight", "convD_confa.bias"),
        *(f"bnconvD_confa.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]  # fmt: skip
    assert list(net.state_dict()) == names and sum(p.numel() for p in net.parameters()) == 14
    assert [name for name, p in net.named_parameters() if p.requires_grad] == names[:2]


def test_a_view_counts_by_its_best_score_and_hardly_without_a_segment(net: Triangulation) -> None:
    found = net(**sample())
    assert found.confidence.shape == (2, 40, 3) and (found.confidence[..., 0] == 1).all()
    usable = found.usable.mT
    assert (found.confidence[..., 1:][usable] > 0.5).all() and (found.confidence[..., 1:][~usable] < 1e-3).all()
    assert not found.matches[~found.usable].any() and 0.2 < usable.float().mean() < 1
    assert torch.equal(found.defined, usable.any(-1)) and not found.points[~found.defined].any()
    plain = Triangulation(Config(matching_confidence=False, samples=24)).eval()(**sample())
    torch.testing.assert_close(plain.confidence[..., 1:], usable + 1e-3)


def test_a_batch_of_two_is_two_batches_of_one(net: Triangulation) -> None:
    both = net(**sample())
    for row in range(2):
        alone = net(**{k: v if k == "size" else v[row : row + 1] for k, v in sample().items()})
        torch.testing.assert_close(alone.points[0], both.points[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.confidence[0], both.confidence[row])


def test_a_keypoint_given_twice_has_one_point(net: Triangulation) -> None:
    inputs = sample()
    inputs["keypoints"][:, 1::2] = inputs["keypoints"][:, ::2]
    found = net(**inputs)
    torch.testing.assert_close(found.points[:, 1::2], found.points[:, ::2])
    torch.testing.assert_close(found.matches[:, :, 1::2], found.matches[:, :, ::2])


def test_every_view_has_intrinsics_of_its_own(net: Triangulation) -> None:
    """A source of twice the focal length sees everything twice as far from its centre."""
    inputs = sample(b=1)
    inputs["keypoints"] = inputs["keypoints"] * 0.3 + torch.tensor([110.0, 80.0])
    inputs["K"][:, 1, :2, :2] *= 2
    inputs["cam_T_cam0"] *= torch.tensor(0.3).where(torch.eye(4) == 0, 1.0)
    found, halved = net(**inputs), net(**{**inputs, "K": inputs["K"][:, :1].expand(1, 3, 3, 3)})
    assert found.usable[:, 0].float().mean() > 0.3
    centre, depth = torch.tensor([160.0, 120.0]), inputs["depth_range"].new_tensor([[0.5, 10.0]])
    wide = search_segments(inputs["keypoints"], inputs["K"], inputs["cam_T_cam0"], depth, SIZE)
    narrow = search_segments(
        inputs["keypoints"], inputs["K"][:, :1].expand(1, 3, 3, 3), inputs["cam_T_cam0"], depth, SIZE
    )
    both = wide.usable[:, 0] & narrow.usable[:, 0]
    torch.testing.assert_close(
        (wide.centre - centre)[:, 0][both], 2 * (narrow.centre - centre)[:, 0][both], atol=1e-2, rtol=1e-3
    )
    assert not torch.allclose(found.points, halved.points)


@pytest.mark.parametrize("blind", ["pure rotation", "no overlap"])
def test_without_a_usable_view_nothing_is_defined_and_training_goes_on(net: Triangulation, blind: str) -> None:
    inputs = sample()
    inputs["cam_T_cam0"][..., :3, 3] = 0.0 if blind == "pure rotation" else 50.0
    inputs["descriptors"].requires_grad_()
    found = net.train()(**inputs)
    assert not found.usable.any() and not found.defined.any() and not found.points.any() and not found.matches.any()
    (found.points.sum() + found.matches.sum() + found.confidence.sum()).backward()
    assert torch.isfinite(inputs["descriptors"].grad).all()


def test_gradients_reach_every_view(net: Triangulation) -> None:
    inputs = sample()
    inputs["descriptors"].requires_grad_()
    found = net(**inputs)
    near = (found.points.detach().abs() < 20).all(-1)
    (found.points[near].sum() + found.confidence.sum()).backward()
    assert (inputs["descriptors"].grad.flatten(2).abs().sum(-1) > 0).all()
    assert torch.isfinite(inputs["descriptors"].grad).all() and net.bn_match_convD.weight.grad.abs() > 0


def test_the_stage_reproduces_the_reference_vectors(golden: Path) -> None:
    with np.load(golden / "deltas.npz", allow_pickle=False) as stored:
        case = {k.removeprefix("small/"): torch.from_numpy(stored[k]) for k in stored.files if k.startswith("small/")}
    net = Triangulation(Config()).eval()
    with torch.no_grad():
        for name, value in (("weight", 3.0), ("bias", 0.3), ("running_mean", 0.9), ("running_var", 0.0025)):
            getattr(net.bn_match_convD, name).fill_(value)
    # Stored view by view, each with the whole batch.
    descriptors = case["descriptors"].view(3, 2, *case["descriptors"].shape[1:]).transpose(0, 1)
    K, depth_range, size = case["intrinsics"][:, None].expand(2, 3, 3, 3), torch.tensor([[0.5, 10.0]] * 2), (112, 160)
    segments = search_segments(case["keypoints"], K, case["pose"], depth_range, size)
    shape = torch.cat([segments.centre, segments.length[..., None]], dim=-1)
    torch.testing.assert_close(shape, case["segment_xc_yc_len"], atol=1e-3, rtol=0)
    correlations = correlate_reference(descriptors, case["keypoints"], candidates(segments, 100))[:, :, :8]
    reversed_too = torch.stack([correlations, correlations.flip(-1, -2)])
    assert (reversed_too - case["corr_first8"]).abs().amax((-1, -2)).amin(0).max() < 1e-5
    with torch.no_grad():
        found = net(descriptors, case["keypoints"], K, case["pose"], depth_range, size)
    assert torch.equal(found.usable, case["range_kp"])
    torch.testing.assert_close(found.confidence, case["confidence"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.matches, case["multiview_matches"], atol=1e-3, rtol=0)
    seen = case["range_kp"].any(1)
    torch.testing.assert_close(found.points[seen], case["keypoints_3d"][seen], atol=1e-4, rtol=0)


def test_projections_take_points_of_the_anchor_s_frame_to_pixels() -> None:
    inputs = sample(b=1)
    point = torch.tensor([0.1, -0.2, 2.0])
    P = projections(inputs["K"], inputs["cam_T_cam0"])
    in_source = inputs["cam_T_cam0"][0, 0] @ F.pad(point, (0, 1), value=1.0)
    for row, seen in ((0, point), (1, in_source[:3])):
        pixel = inputs["K"][0, row] @ seen
        torch.testing.assert_close(project(P[:, row : row + 1], point[None, None])[0, 0, 0], pixel[:2] / pixel[2])
