"""Samples as batches: rows of the initial depth belong to their samples, and another choice has another identity."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from plumbline.config import ByClip, SuiteConfig
from plumbline.data.samples import build
from plumbline.errors import DataError
from plumbline.feed import Feed, JoinedFeed, SampleFeed
from plumbline.records import Sample, Scene
from plumbline.systems.records import Batch

SIZE = (6, 8)


def scene(name, views=3, seed=0):
    generator = np.random.default_rng(seed)
    world_T_cam = np.tile(np.eye(4), (views, 1, 1))
    world_T_cam[:, 0, 3] = np.arange(views)
    return Scene(
        dataset="made",
        name=name,
        view_names=tuple(f"v{i}" for i in range(views)),
        images=generator.integers(0, 256, (views, *SIZE, 3), dtype=np.uint8),
        K=np.tile(np.array([[7.0, 0, 3.5], [0, 7, 2.5], [0, 0, 1]]), (views, 1, 1)),
        depth_range=(0.5, 4.0),
        depth=generator.uniform(0.5, 4, (views, *SIZE)).astype(np.float32),
        world_T_cam=world_T_cam,
    )


@pytest.fixture
def feed(tmp_path):
    samples = [Sample("a", (0, 1)), Sample("a", (1, 2)), Sample("b", (2, 0)), Sample("b", (0, 1))]
    initial = np.lib.format.open_memmap(tmp_path / "depth.npy", "w+", np.float32, (4, 2, *SIZE))
    initial[:] = np.arange(4)[:, None, None, None] + 1
    scenes = {"a": scene("a"), "b": scene("b", seed=1)}
    return SampleFeed(scenes, samples, initial_depth=initial, constant_depth=1.5, predict_views=2)


def test_rows_belong_to_their_samples(feed):
    assert isinstance(feed, Feed) and feed.scenes_of == ["a", "a", "b", "b"]
    batch = feed.load([3, 1])
    assert batch.initial_depth.flatten(1).mean(1).tolist() == [4.0, 2.0]
    assert (batch.predict_views, batch.constant_depth.tolist()) == (2, [1.5, 1.5])
    expected = feed.scenes["b"].images[1].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(batch.image[0, 1].numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(batch.cam0_T_cam[1, 1, :3, 3], torch.tensor([1.0, 0, 0]))
    assert replace(feed, initial_depth=None, constant_depth=None).load([0]).initial_depth is None


def labels(scenes):
    return {name: np.random.default_rng(7).random((3, *SIZE)).astype(np.float16) for name in scenes}


def test_labels_belong_to_the_views_of_their_samples(feed):
    assert feed.load([2]).keypoint_probability is None
    stacks = labels("ab")
    stacks["b"][1] = 0
    batch = replace(feed, keypoint_probability=stacks).load([2, 3])
    assert batch.keypoint_probability.dtype == torch.float32
    expected = [[stacks["b"][2], stacks["b"][0]], [stacks["b"][0], stacks["b"][1]]]
    np.testing.assert_array_equal(batch.keypoint_probability, np.array(expected, np.float32))


def test_views_to_be_rendered_come_with_their_cameras(feed):
    given = replace(
        feed, initial_depth=None, samples=[Sample("a", (2, 1, 0), context=2), Sample("b", (0, 1, 2), context=2)]
    )
    batch = given.load([0, 1])
    assert batch.image.shape == (2, 2, 3, *SIZE) and batch.depth.shape == (2, 2, *SIZE)
    expected = feed.scenes["a"].images[0].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(batch.target_image[0, 0].numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(batch.cam0_T_target[:, 0, :3, 3], torch.tensor([[-2.0, 0, 0], [2.0, 0, 0]]))
    torch.testing.assert_close(batch.target_K, batch.K[:, :1])
    assert feed.load([0]).target_image is None
    seen = batch.select(frozenset({"image", "target_K", "cam0_T_target"}))
    assert seen.target_image is None and seen.cam0_T_target is not None
    assert given.identity != replace(given, samples=[replace(sample, context=1) for sample in given.samples]).identity


def test_a_clip_is_drawn_anew_for_each_step(feed):
    rule = ByClip(kind="clip", targets=1, gaps={"shortest": (1, 1), "longest": (2, 2), "warm_up": 0})
    samples = build(SuiteConfig(dataset="made", split="all", sources=rule), feed.scenes)
    drawn = replace(feed, initial_depth=None, samples=samples, clip=rule)
    steps = [drawn.load([0, 1], step=step) for step in range(20)]
    torch.testing.assert_close(drawn.load([0, 1], step=7).target_image, steps[7].target_image)
    gaps = {float(batch.cam0_T_cam[0, 1, 0, 3]) for batch in steps}
    assert gaps == {1.0, 2.0}
    with pytest.raises(DataError, match=r"made/a: 3 views are too few for clips with gaps of 3 to 4 at step 5"):
        longer = {"shortest": (3, 3), "longest": (4, 4)}
        replace(drawn, clip=ByClip(kind="clip", gaps=longer)).load([0], step=5)


def test_identity_changes_with_samples_and_data(feed):
    scenes = dict(feed.scenes)
    brighter = replace(scenes["a"], images=scenes["a"].images // 2)
    moved = replace(scenes["b"], world_T_cam=scenes["b"].world_T_cam + 0.25)
    others = [
        replace(feed, samples=feed.samples[::-1]),
        replace(feed, scenes=scenes | {"a": brighter}),
        replace(feed, scenes=scenes | {"b": moved}),
        replace(feed, initial_depth=np.asarray(feed.initial_depth) + 1),
        replace(feed, initial_depth=None),
        replace(feed, constant_depth=2.0),
        replace(feed, predict_views=1),
        replace(feed, keypoint_probability=labels("ab")),
        replace(feed, keypoint_probability={name: stack * 0 for name, stack in labels("ab").items()}),
    ]
    assert len({feed.identity, *(other.identity for other in others)}) == 10
    assert replace(feed, scenes=dict(reversed(scenes.items()))).identity == feed.identity


@pytest.mark.parametrize("shape", [(3, 2, *SIZE), (4, 2, 6, 9), (4, *SIZE)])
def test_depth_of_other_samples_is_refused(feed, shape):
    with pytest.raises(DataError, match=r"initial_depth has shape .*expected \(4, p, 6, 8\).* predict it again"):
        replace(feed, initial_depth=np.zeros(shape, np.float32))


class _Part:
    """Three samples of two scenes, loaded as batches whose constant depth tells part and number."""

    def __init__(self, base: int) -> None:
        self.base, self.identity = base, str(base)
        self.scenes_of, self.parts_of = ["a", "a", "b"], ["", "", ""]

    def scores(self) -> list[float]:
        return [self.base + place for place in (1.0, 2.0, 3.0)]

    def load(self, indices: list[int], *, step: int = 0) -> Batch:
        told = torch.tensor([float(self.base + index) for index in indices])
        n = len(indices)
        return Batch(torch.zeros(n, 1, 3, 8, 8), torch.zeros(n, 1, 3, 3), None, None, constant_depth=told)


def test_joined_feeds_number_on_and_keep_batches_in_one_part():
    joined = JoinedFeed([_Part(10), _Part(20)])
    assert joined.scenes_of == ["0:a", "0:a", "0:b", "1:a", "1:a", "1:b"]
    assert joined.parts_of == ["0", "0", "0", "1", "1", "1"]
    assert joined.scores() == [11, 12, 13, 21, 22, 23]
    assert joined.load([0, 2]).constant_depth.tolist() == [10, 12]
    assert joined.load([5, 3]).constant_depth.tolist() == [22, 20]
    with pytest.raises(ValueError, match="of several feeds"):
        joined.load([2, 3])
    assert joined.identity != JoinedFeed([_Part(20), _Part(10)]).identity
