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
