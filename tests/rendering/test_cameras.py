"""Cameras of other conventions."""

import pytest
import torch

from plumbline.rendering import Cameras, centre_origin, corner_origin, symmetric


def test_the_half_pixel_of_other_libraries() -> None:
    """COLMAP and gsplat say (0.5, 0.5) of the centre of the top-left pixel, which is (0, 0) here."""
    K = torch.tensor([[50.0, 0.1, 31.5], [0, 60, 23.5], [0, 0, 1]])
    theirs = corner_origin(K)
    assert theirs.tolist() == [[50.0, pytest.approx(0.1), 32.0], [0, 60, 24.0], [0, 0, 1]]
    torch.testing.assert_close(centre_origin(theirs), K)


def test_a_symmetric_frustum_keeps_a_centred_camera_and_the_angles_of_another() -> None:
    size = (48, 64)
    centred = torch.tensor([[50.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(symmetric(centred, size), centred)
    off = centred.clone()
    off[:2, 2] = torch.tensor([20.0, 30.0])
    made = symmetric(off, size)
    assert made[:2, 2].tolist() == [31.5, 23.5]

    def angle(K: torch.Tensor, axis: int, length: int) -> float:
        ends = (torch.tensor([-0.5, length - 0.5], dtype=torch.float64) - K[axis, 2]) / K[axis, axis]
        return float(ends.atan().diff())

    for axis, length in ((0, 64), (1, 48)):
        assert angle(made, axis, length) == pytest.approx(angle(off, axis, length))
        assert made[axis, axis] != off[axis, axis]


def test_rows_and_views() -> None:
    cameras = Cameras(torch.eye(3).repeat(2, 3, 1, 1), torch.eye(4).repeat(2, 3, 1, 1), torch.rand(2, 3))
    some = cameras.rows(slice(1, 2)).views(slice(0, 2))
    assert some.K.shape == (1, 2, 3, 3)
    assert isinstance(some.near, torch.Tensor)
    assert torch.equal(some.near, cameras.near[1:, :2])
    assert cameras.to(dtype=torch.float64).near.dtype == torch.float64
    assert Cameras(cameras.K, cameras.world_T_cam, 0.3).rows(slice(0, 1)).near == 0.3
