"""Batches: scaling, relative poses, and what a system may look at."""

import numpy as np
import pytest
import torch

from plumbline import systems
from plumbline.errors import ConfigError
from plumbline.records import SampleArrays
from plumbline.systems.records import to_batch


def arrays() -> SampleArrays:
    rng = np.random.default_rng(0)
    world_T_cam = np.tile(np.eye(4), (2, 3, 1, 1))
    world_T_cam[..., :3, 3] = 1e5 + rng.random((2, 3, 3))
    depth = rng.random((2, 3, 8, 10)).astype(np.float32)
    depth[:, :, 0] = 0
    mask = np.ones(depth.shape, np.bool_)
    mask[:, :, -1] = False
    return SampleArrays(
        image=rng.integers(0, 256, (2, 3, 8, 10, 3)).astype(np.uint8),
        K=np.tile(np.diag([10.0, 10, 1]), (2, 3, 1, 1)),
        depth_range=np.array([[0.5, 5], [0.5, 5]]),
        world_T_cam=world_T_cam,
        depth=depth,
        mask=mask,
        keypoint_probability=rng.random(depth.shape).astype(np.float32),
    )


def test_a_batch_is_what_was_stacked() -> None:
    given = arrays()
    batch = to_batch(given, predict_views=2)
    np.testing.assert_allclose(batch.image[1, 2].permute(1, 2, 0), given.image[1, 2] / np.float32(255), atol=1e-7)
    assert batch.mask is not None
    assert not batch.mask[:, :, 0].any()
    assert not batch.mask[:, :, -1].any()
    assert batch.mask[:, :, 1:-1].all()
    assert batch.predict_views == 2
    assert batch.keypoint_probability is not None
    np.testing.assert_array_equal(batch.keypoint_probability, given.keypoint_probability)


def test_poses_are_relative_to_view_0_and_keep_their_precision() -> None:
    given = arrays()
    cam0_T_cam = to_batch(given).cam0_T_cam
    assert cam0_T_cam is not None
    assert given.world_T_cam is not None
    torch.testing.assert_close(cam0_T_cam[:, 0], torch.eye(4).expand(2, 4, 4))
    offset = given.world_T_cam[0, 2, :3, 3] - given.world_T_cam[0, 0, :3, 3]
    # A float32 world position 100 km away would be off by millimetres.
    np.testing.assert_allclose(cam0_T_cam[0, 2, :3, 3], offset, atol=1e-6)


def test_a_system_sees_only_what_its_inputs_name() -> None:
    seen = to_batch(arrays()).select(frozenset({"K", "cam0_T_cam"}))
    assert seen.depth is None
    assert seen.mask is None
    assert seen.depth_range is None
    assert seen.keypoint_probability is None
    assert not seen.image.any()
    assert seen.K.any()
    with pytest.raises(ValueError, match="unknown inputs"):
        seen.select(frozenset({"poses"}))


def test_systems_are_found_by_name() -> None:
    assert {"constant", "median_plane", "plane_sweep", "deltaz", "deltas", "vggt", "perturbed"} <= set(systems.names())
    # Sizes alone: the largest published network would fill gigabytes.
    with torch.device("meta"):
        for name in systems.names():
            assert isinstance(systems.build(name, {}).inputs, frozenset)
    with pytest.raises(ConfigError, match=r"no system .deltax.\. There is: constant"):
        systems.build("deltax", {})
    with pytest.raises(ConfigError, match=r"systems\.deltaz\.base_chanels: unknown key"):
        systems.build("deltaz", {"base_chanels": 8})
