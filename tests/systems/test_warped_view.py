"""Views warped through depth: where geometry is exact, so is the picture."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plane_scene import scene
from plumbline.errors import ConfigError, DataError
from plumbline.systems import build
from plumbline.systems.records import Batch, Rendered
from plumbline.systems.warped_view import merge, not_behind, splat

K = torch.tensor([[20.0, 0, 9.5], [0, 20, 7.5], [0, 0, 1]])
SIZE = (16, 20)


def warp(batch: Batch, **config: object) -> Rendered:
    system = build("warped_view", config)
    rendered: Rendered = system(batch.select(system.inputs))
    return rendered


def moved(*offsets: tuple[float, float, float]) -> Tensor:
    """Cameras at these places, all facing ahead."""
    poses = torch.eye(4).repeat(1, len(offsets), 1, 1)
    poses[0, :, :3, 3] = torch.tensor(offsets)
    return poses


def flat(depth: Tensor, image: Tensor, given: Tensor, target: Tensor, confidence: Tensor | None = None) -> Batch:
    """A sample of given views with their depth (p h w), and cameras to be rendered."""
    v = len(image)
    return Batch(
        image=image[None],
        K=K.repeat(1, v, 1, 1),
        cam0_T_cam=given,
        depth_range=torch.tensor([[0.5, 8.0]]),
        initial_depth=depth[None],
        initial_confidence=None if confidence is None else confidence[None],
        target_K=K.repeat(1, target.shape[1], 1, 1),
        cam0_T_target=target,
        predict_views=len(depth),
    )


def noise(views: int, seed: int = 0) -> Tensor:
    return torch.rand(views, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor | float, atol: float = 1e-4) -> None:
    torch.testing.assert_close(one, torch.as_tensor(other, dtype=one.dtype).expand_as(one), atol=atol, rtol=0)


def test_a_wall_moves_by_its_disparity() -> None:
    image, depth = noise(1), torch.full((1, *SIZE), 2.0)
    # 20 pixels of focal length over 2 m: a step of 0.3 m to the right moves the wall 3 pixels to the left.
    seen = warp(flat(depth, image, moved((0, 0, 0)), moved((0.3, 0, 0), (0, 0, 0))))
    close(seen.image[0, 0, :, :, :-3], image[0, :, :, 3:])
    close(seen.depth[0, 0, :, :-3], 2.0)
    assert not seen.depth[0, 0, :, -3:].any()
    close(seen.image[0, 1], image[0])
    close(seen.depth[0, 1], 2.0)


def test_what_no_view_shows_looks_like_its_surroundings() -> None:
    image = torch.full((1, 3, *SIZE), 0.25)
    image[0, 1] = 0.75
    seen = warp(flat(torch.full((1, *SIZE), 2.0), image, moved((0, 0, 0)), moved((0.5, 0.2, 0))))
    assert not (seen.depth > 0).all()
    close(seen.image[0, 0], image[0], 1e-6)


def test_the_exact_depth_of_slanted_planes_gives_the_picture_between_two_views() -> None:
    batch = scene(v=3, p=3, t=2, size=(48, 60))
    seen = warp(replace(batch, initial_depth=batch.depth, initial_confidence=torch.ones_like(batch.depth)))
    shown = seen.depth[:, 1] > 0
    assert shown.float().mean() > 0.97
    error = (seen.image[:, 1] - batch.target_image[:, 1]).abs().mean(dim=1)
    nearest = (batch.image[:, 0] - batch.target_image[:, 1]).abs().mean(dim=1)
    assert error[shown].mean() < 0.15 * nearest[shown].mean()


def test_the_nearer_surface_hides_the_farther_one() -> None:
    image, depth = noise(1), torch.full((1, *SIZE), 4.0)
    depth[0, 4:12, 6:14] = 1.0
    seen = warp(flat(depth, image, moved((0, 0, 0)), moved((0.1, 0, 0))))
    # The box moves 2 pixels, the wall half a pixel.
    close(seen.depth[0, 0, 4:12, 4:12], 1.0)
    close(seen.image[0, 0, :, 4:12, 4:12], image[0, :, 4:12, 6:14])
    assert not seen.depth[0, 0, 5:11, 12].any()
    close(seen.depth[0, 0, :3, :19], 4.0)


def test_pixels_without_depth_take_no_part() -> None:
    image, depth = 0.9 * noise(1), torch.full((1, *SIZE), 2.0)
    depth[0, :, 10:] = 0
    image[0, :, :, 10:] = 1
    seen = warp(flat(depth, image, moved((0, 0, 0)), moved((0, 0, 0))))
    assert not seen.depth[0, 0, :, 10:].any() and (seen.depth[0, 0, :, :10] > 0).all()
    assert seen.image.max() <= 0.9
    nothing = warp(flat(torch.zeros(1, *SIZE), image, moved((0, 0, 0)), moved((0, 0, 0))))
    assert not nothing.image.any() and not nothing.depth.any()


def test_points_behind_the_target_are_not_seen() -> None:
    seen = warp(flat(torch.full((1, *SIZE), 2.0), noise(1), moved((0, 0, 0)), moved((0, 0, 3.0))))
    assert not seen.depth.any()


def test_a_sure_view_outweighs_an_unsure_one_and_doubt_is_left_out() -> None:
    image = torch.stack([torch.full((3, *SIZE), 0.2), torch.full((3, *SIZE), 0.8)])
    depth = torch.stack([torch.full(SIZE, 2.0), torch.full(SIZE, 1.0)])
    places = moved((0, 0, 0), (0, 0, 0)), moved((0, 0, 0))
    sure = torch.ones(2, *SIZE)
    sure[1] = 0.65
    close(warp(flat(depth, image, *places, sure)).image, (0.2 + 0.8 * 0.65**4) / (1 + 0.65**4))
    sure[1] = 0.5
    close(warp(flat(depth, image, *places, sure)).image, 0.2)
    # Without a confidence the nearer surface is believed.
    close(warp(flat(depth, image, *places)).image, 0.8)


def test_views_that_agree_are_weighted_by_nearness() -> None:
    image = torch.stack([torch.zeros(3, *SIZE), torch.ones(3, *SIZE)])
    seen = warp(flat(torch.full((2, *SIZE), 2.0), image, moved((0, 0, 0), (0.4, 0, 0)), moved((0.1, 0, 0))))
    close(seen.image[0, 0, 0, 8, 8:12], 0.25)


def test_a_splat_keeps_the_nearest_and_averages_one_surface() -> None:
    uv, z = torch.full((1, 3, 6, 2), -9.0), torch.zeros(1, 3, 6)
    uv[0, 0] = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [3.5, 1.0], [-5.0, 0.0], [1e12, 1e12]])
    z[0, 0] = torch.tensor([2.0, 2.02, 3.0, 4.0, 1.0, 1.0])
    expected = torch.zeros(3, 6)
    expected[1, 2], expected[1, 3:5] = 2.01, 4.0
    close(splat(uv, z, tolerance=0.02)[0], expected, 1e-6)


def test_merging_divides_by_the_weight_there_is() -> None:
    image = torch.tensor([0.2, 0.6]).reshape(1, 2, 1, 1, 1).repeat(1, 1, 3, 1, 3)
    z = torch.tensor([[[[2.0, 2.0, 0.0]], [[2.02, 3.0, 0.0]]]])
    assert not_behind(z, 0.02).tolist() == [[[[True, True, False]], [[True, False, False]]]]
    merged, depth = merge(image, z, not_behind(z, 0.02).float())
    close(merged[0, 0, 0], torch.tensor([0.4, 0.2, 0.0]), 1e-6)
    close(depth[0, 0], torch.tensor([2.01, 2.0, 0.0]), 1e-6)


def test_what_is_missing_is_named() -> None:
    batch = scene(t=1)
    with pytest.raises(DataError, match="needs poses, and an initial depth"):
        warp(replace(batch, initial_depth=None))
    with pytest.raises(ConfigError, match="sure"):
        build("warped_view", {"sure": 2})
