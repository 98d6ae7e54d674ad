"""DELTAS at 240x320 with three views: matching, triangulation and the whole network against the way they are usually written."""

import copy
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import allocator
from plumbline.geometry import invert
from plumbline.systems.deltas import Config, System, keypoints
from plumbline.systems.deltas.dense import UpProjection, enlarge_and_convolve_reference, sparse_depth_image
from plumbline.systems.deltas.matching import match_reference, sample_descriptors, search, search_segments
from plumbline.systems.deltas.resnet import Pointwise
from plumbline.systems.deltas.triangulation import projections, triangulate, triangulate_svd
from plumbline.systems.records import Batch
from timing import Bench, Contender

SIZE = (240, 320)
VIEWS, POINTS, CHANNELS = 3, 512, 128
RANGE = (0.5, 10.0)


def benches(_: Path) -> list[Bench]:
    """Each part forward and with its backward pass, and the whole network forward."""
    return [
        *matching(),
        *triangulation(512, targets=(5.0, 1.5)),
        *triangulation(8192, targets=(15.0, 7.0)),
        whole_network(),
    ]


def cameras() -> tuple[Tensor, Tensor]:
    """K of every view and cam_T_cam0 of two sources to either side, as in a hand-held capture."""
    K = torch.tensor([[290.0, 0, 159.5], [0, 290, 119.5], [0, 0, 1]]).expand(1, VIEWS, 3, 3).contiguous()
    cam_T_cam0 = torch.eye(4).repeat(1, VIEWS - 1, 1, 1)
    cam_T_cam0[0, :, :3, 3] = torch.tensor([[0.06, 0.02, 0.01], [-0.06, -0.01, 0.02]])
    return K, cam_T_cam0


def matching() -> list[Bench]:
    """Matches of 512 keypoints in two sources, random descriptors."""
    torch.manual_seed(0)
    descriptors = F.normalize(torch.randn(1, VIEWS, CHANNELS, SIZE[0] // 8, SIZE[1] // 8), dim=2).requires_grad_()
    points = torch.rand(1, POINTS, 2) * torch.tensor([SIZE[1] - 1.0, SIZE[0] - 1.0])
    segments = search_segments(points, *cameras(), torch.tensor([RANGE]), SIZE)
    maps = descriptors.detach()[:, 1:].flatten(-2).requires_grad_()
    anchors = sample_descriptors(descriptors.detach()[:, 0], points).requires_grad_()

    def score(correlations: Tensor) -> Tensor:
        return F.relu(10 * correlations)

    def peer() -> Tensor:
        matches, best = match_reference(descriptors, points, segments, score=score)
        return torch.cat([matches.flatten(), best.flatten()])

    def ours() -> Tensor:
        found = search(descriptors, points, segments, score=score)
        return torch.cat([found.matches.flatten(), found.best.flatten()])

    def check() -> None:
        assert 0.5 < segments.usable.float().mean() < 1
        same([ours, peer], [descriptors], atol=1e-3)

    return both_ways(
        "deltas_match_512",
        ("sample descriptors, then dot", "search: correlate, then sample", "one matmul, keypoints x cells"),
        (peer, ours, lambda: anchors[:, None] @ maps),
        leaves=[descriptors, maps, anchors],
        targets=(10.0, 20.0),
        check=check,
    )


def triangulation(count: int, *, targets: tuple[float, float]) -> list[Bench]:
    """Points from their pixels in three views, half a pixel off."""
    torch.manual_seed(1)
    P = projections(*cameras())
    points = torch.cat([torch.rand(1, count, 2) - 0.5, torch.ones(1, count, 1)], dim=-1) * (
        0.5 + 5 * torch.rand(1, count, 1)
    )
    seen = F.pad(points, (0, 1), value=1.0)[:, None] @ P.mT
    pixels = (seen[..., :2] / seen[..., 2:] + 0.5 * torch.randn(1, VIEWS, count, 2)).requires_grad_()
    weights = (0.5 + 0.5 * torch.rand(1, VIEWS, count)).requires_grad_()
    A = torch.rand(count, 2 * VIEWS, 4).requires_grad_()

    def check() -> None:
        runs = [lambda f=f: f(pixels, weights, P)[0] for f in (triangulate, triangulate_svd)]
        same(runs, [pixels, weights], atol=1e-3, rtol=1e-3)

    return both_ways(
        f"deltas_triangulate_{count}",
        ("singular value decomposition", "triangulate: closed form", "one pass over the equations"),
        (lambda: triangulate_svd(pixels, weights, P)[0], lambda: triangulate(pixels, weights, P)[0], lambda: A * 2),
        leaves=[pixels, weights, A],
        targets=targets,
        check=check,
    )


def both_ways(
    name: str,
    names: Sequence[str],
    runs: Sequence[Callable[[], Tensor]],
    *,
    leaves: Sequence[Tensor],
    targets: tuple[float, float],
    check: Callable[[], None],
) -> list[Bench]:
    """A bench forward and one with the backward pass, of the peer, ours and what bounds it."""
    ahead = (allocator.plain, allocator.kept, allocator.kept)
    ways = {
        "forward": [lambda run=run: forward(run) for run in runs],
        "forward_backward": [lambda run=run: backward(run, leaves) for run in runs],
    }
    found = []
    for (way, calls), target in zip(ways.items(), targets, strict=True):
        turns = [Contender(label, call, before) for label, call, before in zip(names, calls, ahead, strict=True)]
        found.append(Bench(f"{name}_{way}", turns[0], turns[1], target=target, check=check, limit=turns[2]))
    return found


def forward(run: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return run()


def backward(run: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Tensor:
    for leaf in leaves:
        leaf.grad = None
    result = run()
    result.sum().backward()
    return result


def same(runs: Sequence[Callable[[], Tensor]], leaves: Sequence[Tensor], *, atol: float, rtol: float = 1e-4) -> None:
    """Raise unless both give the same and, relative to their size, the same gradients."""
    found = []
    for run in runs:
        result = run()
        found.append((result.detach(), torch.autograd.grad(result.sum(), leaves)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=atol, rtol=rtol)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def whole_network() -> Bench:
    """The published size with random weights; both find the same keypoints."""
    torch.manual_seed(2)
    system, batch = with_statistics(System(Config()).eval()), sample()
    usual = as_usual(system)

    def check() -> None:
        mine, points = forward(lambda: system(batch).internals["depth_full"]), system(batch).internals["keypoints"]
        other, usual_points = usual_forward(usual, batch)
        assert torch.equal(points, usual_points)
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)

    def narrow() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(lambda: system(batch).depth)

    return Bench(
        "deltas_forward_3x240x320",
        Contender(
            "plain layers, all views, sampled descriptors, SVD", lambda: usual_forward(usual, batch), allocator.plain
        ),
        Contender("System", lambda: forward(lambda: system(batch).depth), allocator.kept),
        target=1.7,
        check=check,
        limit=Contender("its multiply-adds in 3x3 convolutions of 256 channels", convolutions(68.4e9), allocator.kept),
        rounds=3,
        variants=(Contender("System in bfloat16", narrow, allocator.kept),),
    )


def with_statistics(system: System) -> System:
    """Batch norms with statistics of their own, so that no step is the identity."""
    for module in system.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.normal_(module.running_mean, std=0.1)
    return system


def sample() -> Batch:
    """Views of smooth noise, which differ by a shift."""
    K, cam_T_cam0 = cameras()
    noise = F.interpolate(torch.rand(1, 3, 60, 90), size=(SIZE[0], SIZE[1] + 40), mode="bilinear")
    images = [noise[..., offset : offset + SIZE[1]] for offset in (20, 24, 16)]
    cam0_T_cam = torch.cat([torch.eye(4)[None, None], invert(cam_T_cam0)], dim=1)
    return Batch(image=torch.stack(images, dim=1), K=K, cam0_T_cam=cam0_T_cam, depth_range=torch.tensor([RANGE]))


def as_usual(system: System) -> System:
    """The same weights in torch's default memory layout, with every convolution written out."""
    usual = copy.deepcopy(system).to(memory_format=torch.contiguous_format)
    for module in usual.modules():
        if isinstance(module, Pointwise):
            module.forward = types.MethodType(nn.Conv2d.forward, module)
        if isinstance(module, UpProjection):
            module._enlarged = types.MethodType(enlarged_as_usual, module)
    return usual


def enlarged_as_usual(block: UpProjection, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    weights = (block.conv1.weight, block.sc_conv1.weight)
    return tuple(enlarge_and_convolve_reference(x, weight, size) for weight in weights)


@torch.no_grad()
def usual_forward(system: System, batch: Batch) -> tuple[Tensor, Tensor]:
    """Dense depth and keypoints: detector and suppression on all views, descriptors sampled, the decomposition."""
    maps = system.front(batch.image.flatten(0, 1))
    with mock.patch.object(keypoints, "maximum_filter", keypoints.maximum_filter_reference):
        points = system._keypoints(system.front.detect(maps), batch)[0][:1]
    cam_T_cam0 = invert(batch.cam0_T_cam[:, 1:])
    segments = search_segments(points, batch.K, cam_T_cam0, batch.depth_range, SIZE)
    matches, best = match_reference(maps.descriptors[None], points, segments, score=system.tri.score)
    pixels, weights = torch.cat([points[:, None], matches], dim=1), system.tri._weights(best, segments.usable)
    z = triangulate_svd(pixels, weights, projections(batch.K, cam_T_cam0))[0][..., 2]
    known = segments.usable.any(1) & (z > RANGE[0]) & (z < RANGE[1])
    sparse = sparse_depth_image(points, z, known, SIZE)
    return system.dense(sparse[:, None], maps.rows(slice(0, None, VIEWS))).full, points


def convolutions(multiply_adds: float) -> Callable[[], None]:
    """As many multiply-adds in the layers that run best: without inserted zeros and without other views' keypoints."""
    layer = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.rand(1, 256, 60, 80).contiguous(memory_format=torch.channels_last)
    count = round(multiply_adds / (layer.weight.numel() * 60 * 80))

    def run() -> None:
        with torch.no_grad():
            for _ in range(count):
                layer(x)

    return run
