"""Gaussians in another frame look the same from cameras that moved along."""

from dataclasses import replace

import pytest
import torch

from plumbline.quaternions import to_matrices
from plumbline.rendering import Cameras, render
from plumbline.rendering.moving import moved, turned
from plumbline.rendering.ply import scales_and_rotations
from rendering_scenes import gaussians


def rigid(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.eye(4, dtype=torch.float64)[None].clone()
    made[:, :3, :3] = to_matrices(torch.randn(1, 4, generator=generator, dtype=torch.float64))
    made[:, :3, 3] = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    return made


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_scene_and_its_camera_moved_together_give_the_same_picture(degree: int) -> None:
    scene, b_T_a = gaussians(60, degree=degree, grad=False).to(dtype=torch.float64), rigid()
    K = torch.tensor([[24.0, 0, 14.5], [0, 24.0, 9.5], [0, 0, 1]], dtype=torch.float64)[None, None]
    a_T_cam = torch.eye(4, dtype=torch.float64)[None, None]
    before = render(scene, Cameras(K, a_T_cam), (20, 30), backend="dense")
    after = render(moved(scene, b_T_a), Cameras(K, b_T_a[:, None] @ a_T_cam), (20, 30), backend="dense")
    assert before.alpha.mean() > 0.02
    torch.testing.assert_close(after.colour, before.colour, rtol=0, atol=1e-9)
    torch.testing.assert_close(after.depth, before.depth, rtol=0, atol=1e-9)


def test_rotations_and_scales_still_make_the_covariances() -> None:
    plain = gaussians(40, grad=False).to(dtype=torch.float64)
    scales, rotations = scales_and_rotations(plain.covariances)
    scene = moved(replace(plain, scales=scales, rotations=rotations), rigid(3))
    assert scene.rotations is not None and scene.scales is not None
    axes = to_matrices(scene.rotations) * scene.scales[..., None, :]
    torch.testing.assert_close(axes @ axes.mT, scene.covariances)


def test_a_quarter_turn_takes_the_lobe_of_x_to_y() -> None:
    """Degree 1 is -y, z, -x: a colour that grows along x grows along y after a quarter turn about z."""
    along_x = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    along_x[..., 3] = -1.0
    quarter = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    expected = torch.zeros_like(along_x)
    expected[..., 1] = -1.0
    torch.testing.assert_close(turned(along_x, quarter), expected)
