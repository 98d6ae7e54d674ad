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
