"""Cameras there and back, and the unit of a scene."""

import math

import pytest
import torch

from plane_scene import scene
from plumbline.geometry import backproject, invert, transform
from plumbline.quaternions import to_matrices
from plumbline.systems.vggt.encoding import decode, encode, to_scene_units


def test_a_camera_by_hand_and_back() -> None:
    K = torch.tensor([[50.0, 0, 60], [0, 40, 40], [0, 0, 1]])
    cam_T_world = torch.eye(4)
    cam_T_world[:3, 3] = torch.tensor([1.0, 2, 3])
    encoding = encode(cam_T_world, K, (80, 120))
    fov = [2 * math.atan(40 / 40), 2 * math.atan(60 / 50)]
    torch.testing.assert_close(encoding, torch.tensor([1.0, 2, 3, 0, 0, 0, 1, *fov]))
    back, K_back = decode(encoding, (80, 120))
    torch.testing.assert_close(back, cam_T_world)
    torch.testing.assert_close(K_back, K)
    assert decode(torch.zeros(9), (80, 120))[1].isfinite().all()


def test_a_scene_in_its_unit_has_points_at_a_mean_distance_of_one() -> None:
    batch = scene(v=3)
    units = to_scene_units(batch.depth, batch.mask, batch.K, invert(batch.cam0_T_cam))
    distance = units.points_cam0.norm(dim=-1)
    means = [float(distance[i][batch.mask[i]].mean()) for i in range(2)]
    assert means == pytest.approx([1.0, 1.0], abs=1e-5)
    torch.testing.assert_close(units.depth * units.scale[:, None, None, None], batch.depth)
    points = transform(invert(units.cam_T_cam0), backproject(units.depth, batch.K))
    torch.testing.assert_close(points, units.points_cam0, rtol=1e-5, atol=1e-5)


def test_neither_the_world_nor_its_unit_matters() -> None:
    batch, world = scene(b=1), torch.eye(4)
    world[:3, :3], world[:3, 3] = to_matrices(torch.tensor([1.0, 2, 3, 8])), torch.tensor([3.0, -1, 2])
    cam_T_cam0 = invert(batch.cam0_T_cam)
    larger = cam_T_cam0.clone()
    larger[..., :3, 3] *= 1000
    one = to_scene_units(batch.depth, batch.mask, batch.K, cam_T_cam0)
    other = to_scene_units(batch.depth * 1000, batch.mask, batch.K, larger @ world)
    torch.testing.assert_close(one.depth, other.depth)
    torch.testing.assert_close(one.cam_T_cam0, other.cam_T_cam0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(1000 * one.scale, other.scale)


def test_what_is_not_finite_or_not_measured_counts_nowhere() -> None:
    batch = scene(b=1)
    depth, mask = batch.depth.clone(), batch.mask.clone()
    depth[0, 1, 3, 4], depth[0, 2, 5, 6] = torch.nan, torch.inf
    mask[0, 1, 3, 4] = mask[0, 2, 5, 6] = False
    units = to_scene_units(depth, mask, batch.K, invert(batch.cam0_T_cam))
    assert units.depth.isfinite().all() and units.points_cam0.isfinite().all()
    clean = to_scene_units(batch.depth, mask, batch.K, invert(batch.cam0_T_cam))
    torch.testing.assert_close(units.scale, clean.scale)
    nothing = to_scene_units(depth, torch.zeros_like(mask), batch.K, invert(batch.cam0_T_cam))
    assert nothing.scale.item() == pytest.approx(1e-6)
