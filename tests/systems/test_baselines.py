"""The trivial methods, by numbers worked by hand."""

from dataclasses import replace

import pytest
import torch

from plane_scene import scene
from plumbline.errors import DataError
from plumbline.systems import build
from plumbline.systems.records import Batch


@pytest.fixture
def batch() -> Batch:
    return scene(size=(4, 5))


def test_constant_is_the_training_median_of_each_sample_s_data_set(batch: Batch) -> None:
    depth = build("constant", {})(replace(batch, constant_depth=torch.tensor([1.5, 3.0]))).depth
    assert depth.shape == (2, 2, 4, 5)
    assert (depth[0] == 1.5).all() and (depth[1] == 3).all()


@pytest.mark.parametrize("value", [None, torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.nan])])
def test_constant_needs_a_positive_median(batch: Batch, value: torch.Tensor | None) -> None:
    with pytest.raises(DataError, match="training-split median"):
        build("constant", {})(replace(batch, constant_depth=value))


def test_median_plane_takes_the_median_of_measured_pixels_of_each_view(batch: Batch) -> None:
    depth = torch.zeros_like(batch.depth)
    depth[:, :, 0, :3] = torch.tensor([1.0, 2.0, 9.0])
    depth[1, 1] *= 2
    depth[:, :, 3] = 50
    mask = torch.ones_like(batch.mask)
    mask[:, :, 3] = False
    planes = build("median_plane", {})(replace(batch, depth=depth, mask=mask)).depth
    assert planes[:, :, 0, 0].tolist() == [[2.0, 2.0], [2.0, 4.0]]
    assert (planes == planes[:, :, :1, :1]).all()


def test_median_plane_abstains_where_nothing_is_measured(batch: Batch) -> None:
    depth = batch.depth.clone()
    depth[0, 1] = 0
    planes = build("median_plane", {})(replace(batch, depth=depth, mask=None)).depth
    assert (planes[0, 1] == 0).all() and (planes[0, 0] > 0).all()


def test_median_plane_needs_truth(batch: Batch) -> None:
    with pytest.raises(DataError, match="needs true depth"):
        build("median_plane", {})(replace(batch, depth=None))


def test_identity_says_that_every_camera_is_the_first(batch: Batch) -> None:
    cameras = build("identity", {})(batch.select(frozenset()))
    assert cameras.K is None
    assert torch.equal(cameras.cam0_T_cam, torch.eye(4).expand(2, 3, 4, 4))


def test_mean_pose_answers_its_data_set_s_pose_for_every_source(batch: Batch) -> None:
    system = build("mean_pose", {})
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[:, 0, 3] = torch.tensor([1.0, 2.0])
    cameras = system(replace(batch, constant_pose=poses).select(system.inputs))
    assert cameras.K is None and torch.equal(cameras.cam0_T_cam[:, 0], torch.eye(4).expand(2, 4, 4))
    assert cameras.cam0_T_cam[:, :, 0, 3].tolist() == [[0.0, 1.0, 1.0], [0.0, 2.0, 2.0]]
    with pytest.raises(DataError, match="needs the mean pose of a training split"):
        system(replace(batch, constant_pose=None))


def test_mean_colour_is_the_mean_of_all_given_pixels_of_a_sample() -> None:
    system, seen = build("mean_colour", {}), scene(v=2, t=2, size=(4, 5))
    image = torch.zeros(2, 2, 3, 4, 5)
    image[0, 1], image[1, :, 2] = 0.5, 0.75
    rendered = system(replace(seen, image=image).select(system.inputs))
    assert rendered.image.shape == (2, 2, 3, 4, 5) and rendered.depth is None
    assert (rendered.image[0] == 0.25).all()
    assert (rendered.image[1, :, 2] == 0.75).all() and not rendered.image[1, :, :2].any()


def facing(x: float, degrees: float) -> torch.Tensor:
    """A camera at (x, 0, 0) turned about the vertical axis."""
    angle = torch.deg2rad(torch.tensor(degrees))
    pose = torch.eye(4)
    pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    pose[0, 3] = x
    return pose


@pytest.mark.parametrize(
    ("cameras", "nearest"),
    [
        ([(0, 0), (1, 0), (3, 0)], 1),
        ([(0, 0), (1.4, 170), (3, 0)], 1),
        ([(0, 0), (1, 5), (2, 4), (1, 30)], 2),
        ([(0, 20), (1, -9), (2, 10)], 1),
    ],
)
def test_nearest_view_goes_by_position_and_ties_by_angle(cameras: list[tuple[float, float]], nearest: int) -> None:
    image = torch.rand(1, len(cameras), 3, 4, 5, generator=torch.Generator().manual_seed(0))
    poses = torch.stack([facing(*camera) for camera in cameras])[None]
    system, batch = build("nearest_view", {}), scene(b=1, v=len(cameras), t=1, size=(4, 5))
    batch = replace(batch, image=image, cam0_T_cam=poses).select(frozenset({"image", "cam0_T_cam", "cam0_T_target"}))
    for target, expected in ((facing(1.5, 0), nearest), (facing(0.1, 90), 0)):
        rendered = system(replace(batch, cam0_T_target=target[None, None])).image
        assert torch.equal(rendered[:, 0], image[:, expected])


def test_nearest_view_needs_poses() -> None:
    with pytest.raises(DataError, match="nearest_view: needs poses"):
        build("nearest_view", {})(replace(scene(t=1), cam0_T_cam=None))
