"""Point clouds: geometry of fused points, the consistency filter, and thinning."""

import numpy as np
import pytest

from plumbline.pointcloud import agrees, fuse, thin, thin_to, write_cloud

SIZE = (24, 32)
K = np.array([[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]])


def wall(z, *, offset=0.0):
    """A fronto-parallel wall at world z, seen from x = `offset`, z = 0."""
    world_T_cam = np.eye(4)
    world_T_cam[0, 3] = offset
    return np.full(SIZE, z), world_T_cam


def stacked(*walls):
    depth = np.stack([depth for depth, _ in walls])
    images = np.stack([np.full((*SIZE, 3), 40 * (i + 1), np.uint8) for i in range(len(walls))])
    return images, depth, np.repeat(K[None], len(walls), 0), np.stack([T for _, T in walls])


def test_fused_points_lie_on_the_wall_in_the_world():
    images, depth, Ks, poses = stacked(wall(2.0), wall(2.0, offset=0.2))
    points, colours = fuse(images, depth, Ks, poses, neighbours=[[1], [0]])
    assert np.allclose(points[:, 2], 2.0)
    assert points[:, 0].min() == pytest.approx(
        (3 - 15.5) / 30 * 2
    )  # 0.2 m at 2 m are 3 pixels; those beyond are unseen
    assert points.dtype == np.float32 and colours.dtype == np.uint8
    assert set(np.unique(colours)) == {40, 80}
    assert len(points) == 2 * SIZE[0] * (SIZE[1] - 3)


def test_points_without_agreement_are_dropped():
    images, depth, Ks, poses = stacked(wall(2.0), wall(2.2, offset=0.2))
    points, colours = fuse(images, depth, Ks, poses, neighbours=[[1], [0]], tolerance=0.02)
    assert points.shape == (0, 3) and colours.shape == (0, 3)
    kept, _ = fuse(images, depth, Ks, poses, neighbours=[[1], [0]], tolerance=0.2)
    assert len(kept) > 0
    everything, _ = fuse(images, depth, Ks, poses, neighbours=[[], []], min_agreeing=0)
    assert len(everything) == 2 * SIZE[0] * SIZE[1]


def test_unmeasured_pixels_give_no_points_and_no_agreement():
    images, depth, Ks, poses = stacked(wall(2.0), wall(2.0))
    depth[0, :12] = 0
    points, _ = fuse(images, depth, Ks, poses, neighbours=[[1], [0]])
    assert len(points) == 2 * 12 * SIZE[1]
    assert points[:, 1].min() == pytest.approx((12 - 11.5) / 30 * 2)


def test_points_behind_the_camera_do_not_agree():
    depth, world_T_cam = wall(2.0)
    points_world = np.array([[0.0, 0, 2], [0.0, 0, -2], [50.0, 0, 2], [0.0, 0, 2.1]])
    assert agrees(points_world, depth, K, world_T_cam, tolerance=0.02).tolist() == [True, False, False, False]


def test_thinning_keeps_the_mean_of_each_voxel():
    points = np.array([[0, 0, 0], [0.02, 0, 0], [1, 1, 1]], np.float32)
    colours = np.array([[10, 0, 0], [20, 0, 0], [200, 100, 50]], np.uint8)
    thinned, mixed = thin(points, colours, 0.1)
    assert np.allclose(thinned, [[0.01, 0, 0], [1, 1, 1]])
    assert mixed.tolist() == [[15, 0, 0], [200, 100, 50]]
    empty = thin(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), 0.1)
    assert len(empty[0]) == 0


@pytest.mark.parametrize("most", [50, 500, 5000])
def test_a_cloud_is_thinned_to_no_more_than_asked_and_not_to_far_less(most):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (20_000, 3)).astype(np.float32)
    points[:, 2] = 0.1 * points[:, 0]
    thinned, _ = thin_to(points, np.zeros((20_000, 3), np.uint8), most)
    assert most / 4 < len(thinned) <= most


def test_a_single_far_point_does_not_coarsen_the_cloud():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (20_000, 3)).astype(np.float32)
    points[0] = [9000, 9000, 9000]
    thinned, _ = thin_to(points, np.zeros((20_000, 3), np.uint8), 5000)
    assert len(thinned) > 1000


def test_a_cloud_is_written_as_ply(tmp_path):
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    count = write_cloud(tmp_path / "a.ply", (points, np.full((300, 3), 7, np.uint8)), max_points=100)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    assert f"element vertex {count}".encode() in header
    assert count <= 100 and len(body) == 15 * count
