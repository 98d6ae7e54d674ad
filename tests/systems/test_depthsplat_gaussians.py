"""From raw channels to Gaussians: where they are, how large, how they are turned, and which colour they show."""

import math

import pytest
import torch
from torch import Tensor

from plumbline.quaternions import to_matrices
from plumbline.rendering.harmonics import C0, basis, to_standard
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.gaussians import (
    HARMONICS,
    OPACITY,
    adapt,
    gaussian_head,
    rotate_harmonics,
    true_turn,
)
from plumbline.systems.depthsplat.views import Views

SIZE = (4, 6)


def rotations(count: int) -> Tensor:
    """Rotations by up to half a turn, with the identity and a half turn among them."""
    generator = torch.Generator().manual_seed(0)
    w = 2 * torch.rand(count, 3, generator=generator)
    w[0] = 0
    w[1] = torch.tensor([torch.pi, 0, 0])
    o = torch.zeros(count)
    skew = torch.stack([o, -w[:, 2], w[:, 1], w[:, 2], o, -w[:, 0], -w[:, 1], w[:, 0], o], dim=-1).view(count, 3, 3)
    return torch.linalg.matrix_exp(skew)


def views(b: int = 1, v: int = 2) -> Views:
    generator = torch.Generator().manual_seed(1)
    world_T_cam = torch.eye(4).repeat(b, v, 1, 1)
    world_T_cam[..., :3, :3] = rotations(b * v + 2)[2:].reshape(b, v, 3, 3)
    world_T_cam[..., :3, 3] = torch.randn(b, v, 3, generator=generator)
    K = torch.tensor([[0.8, 0, 0.53], [0, 1.2, 0.46], [0, 0, 1]]).repeat(b, v, 1, 1)
    image = torch.rand(b, v, 3, *SIZE, generator=generator)
    return Views(image, K, world_T_cam, torch.ones(b, v), torch.full((b, v), 10.0))


def raw(b: int = 1, v: int = 2, *, seed: int = 2) -> Tensor:
    return torch.randn(b, v, 37, *SIZE, generator=torch.Generator().manual_seed(seed))


def test_centres_are_seen_where_their_pixels_are_at_their_depth() -> None:
    given, depth = views(), torch.rand(1, 2, *SIZE) + 2
    gaussians = adapt(raw(), depth, given, Config())
    points = torch.unflatten(gaussians.means, 1, (2, *SIZE))
    for i in range(2):
        seen = (points[0, i] - given.world_T_cam[0, i, :3, 3]) @ given.world_T_cam[0, i, :3, :3]
        torch.testing.assert_close(seen[..., 2], depth[0, i])
        at = (seen / seen[..., 2:]) @ given.K[0, i].T
        offset = raw()[0, i, 1:3].sigmoid() - 0.5
        for axis, size, grid in ((0, SIZE[1], torch.arange(6.0)), (1, SIZE[0], torch.arange(4.0)[:, None])):
            torch.testing.assert_close(at[..., axis] * size - 0.5, grid + offset[axis], atol=1e-4, rtol=0)


def test_extents_are_turned_from_the_camera_into_the_world() -> None:
    given = views()
    gaussians = adapt(raw(), torch.full((1, 2, *SIZE), 3.0), given, Config())
    channels = raw().movedim(2, -1).flatten(2, 3)
    scales = torch.nn.functional.softplus(channels[..., 3:6] - 4)
    torch.testing.assert_close(gaussians.scales, scales.flatten(1, 2))
    for i in (0, 1):
        for k in range(0, 24, 5):
            q = channels[0, i, k, 6:10].double()
            x, y, z, w = (q / q.norm()).tolist()
            Q = torch.tensor(
                [
                    [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                    [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                    [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
                ]
            )
            axes = given.world_T_cam[0, i, :3, :3] @ Q
            expected = axes @ torch.diag(scales[0, i, k] ** 2) @ axes.T
            found = 24 * i + k
            torch.testing.assert_close(gaussians.covariances[0, found], expected, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(to_matrices(gaussians.rotations[0, found]), axes, atol=1e-5, rtol=0)


def test_scales_in_pixels_grow_with_depth() -> None:
    given, config = views(), Config(scale_unit="pixel", scale_range=(1e-3, 100.0))
    near = adapt(raw(), torch.full((1, 2, *SIZE), 2.0), given, config)
    far = adapt(raw(), torch.full((1, 2, *SIZE), 6.0), given, config)
    torch.testing.assert_close(far.scales, 3 * near.scales)
    # A pixel at depth 2 is 2 / (0.8 * 6) wide.
    expected = torch.nn.functional.softplus(raw()[0, 0, 3:6, 0, 0] - 4) * 2 / 4.8
    torch.testing.assert_close(near.scales[0, 0], expected)


@pytest.mark.parametrize("quirks", [True, False])
def test_colours_turn_with_the_camera_but_for_the_quirk(quirks: bool) -> None:
    given = views()
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(3)), dim=-1)
    channels = 20 * raw()
    gaussians = adapt(channels, torch.full((1, 2, *SIZE), 3.0), given, Config(official_quirks=quirks))
    identity = torch.eye(4).expand(1, 2, 4, 4)
    in_camera = Views(given.image, given.K, identity, given.near, given.far)
    own = adapt(channels, torch.full((1, 2, *SIZE), 3.0), in_camera, Config(official_quirks=quirks))
    flip = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    for k in (3, 30):
        R = given.world_T_cam[0, k // 24, :3, :3]
        seen = basis(directions, 2) @ gaussians.harmonics[0, k].T
        true, quirky = (basis(directions @ T, 2) @ own.harmonics[0, k].T for T in (R, flip @ R @ flip))
        torch.testing.assert_close(seen, quirky if quirks else true, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(seen, true if quirks else quirky, atol=1e-2)


def test_a_turn_of_harmonics_is_a_turn_of_the_function() -> None:
    R = rotations(6)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(4)), dim=-1)
    given = torch.randn(3, 9, generator=torch.Generator().manual_seed(5))
    for turn in R:
        turned = rotate_harmonics(given[None, None, None], true_turn(turn)[None, None, None, None])[0, 0, 0]
        before, after = (basis(d, 2) @ to_standard(a).T for d, a in ((directions @ turn, given), (directions, turned)))
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_harmonics_up_to_any_degree(degree: int) -> None:
    given, config = views(), Config(sh_degree=degree)
    channels = raw()[:, :, : 10 + 3 * config.harmonics]
    gaussians = adapt(channels, torch.full((1, 2, *SIZE), 3.0), given, config)
    assert gaussians.harmonics.shape == (1, 48, 3, (degree + 1) ** 2)


def test_without_learnt_colour_a_gaussian_shows_its_pixel_from_everywhere() -> None:
    given, channels = views(), raw()
    channels[:, :, HARMONICS] = 0
    gaussians = adapt(channels, torch.full((1, 2, *SIZE), 3.0), given, Config())
    shown = gaussians.harmonics[..., 0] * C0 + 0.5
    torch.testing.assert_close(shown, given.image.movedim(2, -1).flatten(1, 3))
    assert not gaussians.harmonics[..., 1:].any()


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_the_first_gaussians_are_small_and_have_the_image_s_colour(preset: str) -> None:
    config = Config(preset=preset)
    head = gaussian_head(config)
    entered = config.gaussian_width + 4 + config.gaussian_features
    out = head(torch.randn(2, entered, *SIZE))
    given = views()
    gaussians = adapt(out[None].detach(), torch.full((1, 2, *SIZE), 3.0), given, config)
    expected = 0.01815 if preset == "small" else math.log1p(math.exp(-2.8)) * 3 / 4.8
    assert gaussians.scales.unique().numel() == 1 and float(gaussians.scales[0, 0, 0]) == pytest.approx(
        expected, rel=0.01
    )
    torch.testing.assert_close(gaussians.harmonics[..., 0] * C0 + 0.5, given.image.movedim(2, -1).flatten(1, 3))


def test_an_opacity_s_shift_is_added_to_its_logit() -> None:
    given, channels, depth = views(), raw(), torch.full((1, 2, *SIZE), 3.0)
    shifted = adapt(channels, depth, given, Config(opacity_shift=-0.7)).opacities
    channels[:, :, OPACITY] -= 0.7
    torch.testing.assert_close(shifted, adapt(channels, depth, given, Config()).opacities)


def test_gradients_reach_every_raw_channel_and_the_depth() -> None:
    channels, depth = raw().double().requires_grad_(), torch.full((1, 2, *SIZE), 3.0).double().requires_grad_()
    given = views()
    doubled = Views(*(getattr(given, name).double() for name in ("image", "K", "world_T_cam", "near", "far")))
    gaussians = adapt(channels, depth, doubled, Config(scale_unit="pixel", scale_range=(1e-3, 10.0)))
    parts = (gaussians.means, gaussians.covariances, gaussians.harmonics, gaussians.opacities)
    weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(7)).double() for part in parts]
    sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)).backward()
    assert depth.grad.all() and channels.grad.flatten(3).any(dim=-1).all()
