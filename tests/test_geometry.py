"""Geometry in torch and its numpy twins: by round trip, on a known plane, against each other, and by gradcheck."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline import geometry
from plumbline.data import geometry as twin

SIZE = (7, 9)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def intrinsics(skew: float = 0.0) -> Tensor:
    return torch.tensor([[11.0, skew, 4.3], [0, 10.5, 2.9], [0, 0, 1]], dtype=torch.float64)


def motion(angle: float = 0.1) -> Tensor:
    """A rotation about (1, 2, 3) and a translation, as `a_T_b`."""
    x, y, z = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / math.sqrt(14)
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    a_T_b = torch.eye(4, dtype=torch.float64)
    a_T_b[:3, :3] = torch.linalg.matrix_exp(angle * generator)
    a_T_b[:3, 3] = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64)
    return a_T_b


def random_depth(rng: torch.Generator) -> Tensor:
    return 1 + torch.rand(SIZE, generator=rng, dtype=torch.float64)


def warp_arguments(rng: torch.Generator) -> tuple[Tensor, ...]:
    image = torch.rand(1, 2, 8, 10, generator=rng, dtype=torch.float64)
    return image, random_depth(rng)[None], intrinsics()[None], intrinsics()[None] * 1.0, motion()[None]


def test_torch_and_numpy_agree(rng: torch.Generator) -> None:
    depth, K, a_T_b = random_depth(rng), intrinsics(skew=0.3), motion()
    points_b = geometry.backproject(depth, K)
    points_a = geometry.transform(a_T_b, points_b)
    uv, z = geometry.project(points_a, K)
    numpy_points_a = twin.transform(a_T_b.numpy(), twin.backproject(depth.numpy(), K.numpy()))
    numpy_uv, numpy_z = twin.project(numpy_points_a, K.numpy())
    np.testing.assert_allclose(points_a.numpy(), numpy_points_a, atol=1e-13)
    np.testing.assert_allclose(uv.numpy(), numpy_uv, atol=1e-11)
    np.testing.assert_allclose(z.numpy(), numpy_z, atol=1e-13)
    np.testing.assert_allclose(geometry.invert(a_T_b).numpy(), twin.invert(a_T_b.numpy()), atol=1e-15)
    np.testing.assert_array_equal(geometry.pixel_grid(SIZE).numpy(), twin.pixel_grid(SIZE))


def test_projection_undoes_back_projection(rng: torch.Generator) -> None:
    depth, K = random_depth(rng), intrinsics(skew=0.3)
    uv, z = geometry.project(geometry.backproject(depth, K), K)
    torch.testing.assert_close(uv, geometry.pixel_grid(SIZE, dtype=torch.float64))
    torch.testing.assert_close(z, depth)


def test_a_motion_and_its_inverse_cancel(rng: torch.Generator) -> None:
    points = geometry.backproject(random_depth(rng), intrinsics())
    back = geometry.transform(geometry.invert(motion()), geometry.transform(motion(), points))
    torch.testing.assert_close(back, points)
    torch.testing.assert_close(geometry.invert(motion()) @ motion(), torch.eye(4, dtype=torch.float64))


def test_intrinsics_are_inverted_in_closed_form() -> None:
    K = intrinsics(skew=0.3)
    torch.testing.assert_close(geometry.invert_intrinsics(K), torch.linalg.inv(K))


def test_back_projected_points_of_a_plane_lie_on_it() -> None:
    K, normal, offset = intrinsics(), torch.tensor([0.2, -0.1, 1.0], dtype=torch.float64), 2.5
    ones = torch.ones(*SIZE, 1, dtype=torch.float64)
    rays = torch.cat([geometry.pixel_grid(SIZE, dtype=torch.float64), ones], dim=-1) @ torch.linalg.inv(K).T
    points = geometry.backproject(offset / (rays @ normal), K)
    torch.testing.assert_close(points @ normal, torch.full(SIZE, offset, dtype=torch.float64))


def test_a_known_pixel_is_projected_by_hand() -> None:
    K = torch.tensor([[100.0, 0, 50], [0, 200, 40], [0, 0, 1]])
    uv, z = geometry.project(torch.tensor([[[1.0, -0.5, 4.0]]]), K)
    assert uv.flatten().tolist() == [75.0, 15.0] and z.item() == 4.0


def test_points_behind_the_camera_are_finite_and_told_by_z() -> None:
    points = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, -2.0]]], requires_grad=True)
    uv, z = geometry.project(points, torch.eye(3))
    uv.sum().backward()
    assert torch.isfinite(uv).all() and (z <= 0).all() and torch.isfinite(points.grad).all()


def test_one_matrix_replaces_three_steps(rng: torch.Generator) -> None:
    depth, K_ref, K_src, src_T_ref = (
        random_depth(rng)[None],
        intrinsics(0.3)[None],
        intrinsics()[None] * 1.0,
        motion()[None],
    )
    uv, z = geometry.warp_grid(depth, geometry.compose(K_ref, K_src, src_T_ref))
    by_steps, z_by_steps = geometry.project(geometry.transform(src_T_ref, geometry.backproject(depth, K_ref)), K_src)
    torch.testing.assert_close(uv, by_steps)
    torch.testing.assert_close(z, z_by_steps)


def test_normalised_coordinates_hit_pixel_centres() -> None:
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    P = geometry.normalise(torch.eye(3, 4)[None], (3, 4))
    grid, _ = geometry.warp_grid(torch.ones(1, 3, 4), P)
    torch.testing.assert_close(torch.nn.functional.grid_sample(image, grid, align_corners=False), image)


def test_sampling_is_bilinear_and_zero_outside() -> None:
    image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    uv = torch.tensor([[[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [5.0, 0.0]]]])
    assert geometry.sample(image, uv).flatten().tolist() == [0.0, 3.0, 1.5, 0.0]


def test_a_sideways_camera_shifts_a_plane_by_its_disparity() -> None:
    """Focal length 10, 0.2 m to the right, depth 2 m: one pixel to the left in the source."""
    K = torch.tensor([[[10.0, 0, 4], [0, 10, 3], [0, 0, 1]]])
    src_T_ref = torch.eye(4)[None].clone()
    src_T_ref[:, 0, 3] = -0.2
    source = torch.rand(1, 1, *SIZE)
    warped, valid = geometry.warp(source, torch.full((1, *SIZE), 2.0), K, K, src_T_ref)
    torch.testing.assert_close(warped[..., 1:], source[..., :-1])
    assert valid[0, :, 1:].all() and not valid[0, :, 0].any()


def test_the_fast_warp_equals_the_readable_one(rng: torch.Generator) -> None:
    arguments = [x.requires_grad_() for x in warp_arguments(rng)]
    outputs = [function(*arguments) for function in (geometry.warp, geometry.warp_by_steps)]
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1]) and 0 < outputs[0][1].float().mean() < 1
    weights = torch.rand(outputs[0][0].shape, generator=rng, dtype=torch.float64)
    fast, slow = (torch.autograd.grad((warped * weights).sum(), arguments) for warped, _ in outputs)
    for name, one, other in zip(("image", "depth", "K_ref", "K_src", "src_T_ref"), fast, slow, strict=True):
        mask = torch.ones_like(one, dtype=torch.bool)
        if name.startswith("K"):
            # The last row of K is (0, 0, 1) by definition; the two ways differ only in how they would use another one.
            mask[..., 2, :] = False
            mask[..., 1, 0] = False
        torch.testing.assert_close(one[mask], other[mask], msg=lambda text, name=name: f"{name}: {text}")


def test_a_view_warped_onto_itself_is_valid_everywhere(rng: torch.Generator) -> None:
    image, depth, K, _, _ = (x.float() for x in warp_arguments(rng))
    for function in (geometry.warp, geometry.warp_by_steps):
        warped, valid = function(image[..., :7, :9], depth, K, K, torch.eye(4)[None])
        torch.testing.assert_close(warped, image[..., :7, :9], atol=1e-4, rtol=0)
        assert valid.all()


def test_pixels_without_depth_or_view_are_invalid_and_harmless() -> None:
    K, src_T_ref = intrinsics()[None].float(), torch.eye(4)[None].clone()
    src_T_ref[:, 2, 3] = -1.5
    depth = torch.full((1, *SIZE), 2.0)
    depth[0, 0], depth[0, 1] = 0, 1.0
    depth.requires_grad_()
    warped, valid = geometry.warp(torch.rand(1, 3, *SIZE), depth, K, K, src_T_ref)
    warped.sum().backward()
    assert not valid[0, :2].any() and valid[0, 2:].any()
    assert torch.isfinite(warped).all() and torch.isfinite(depth.grad).all()


def test_gradients_are_exact(rng: torch.Generator) -> None:
    depth, K, a_T_b = random_depth(rng).requires_grad_(), intrinsics(0.3).requires_grad_(), motion().requires_grad_()
    uv_and_z = lambda d, k, t: geometry.project(geometry.transform(t, geometry.backproject(d, k)), k)  # noqa: E731
    assert torch.autograd.gradcheck(uv_and_z, (depth, K, a_T_b))
    image, depth, *cameras = warp_arguments(rng)
    inputs = (image.requires_grad_(), depth.requires_grad_(), *cameras)
    assert torch.autograd.gradcheck(lambda *x: geometry.warp(*x)[0], inputs)
