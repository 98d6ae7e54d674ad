"""Depth that another system refines: which suites it is wanted in, and how one of unknown scale is learnt from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plumbline.config import SuiteConfig, load_params, sections
from plumbline.feed import SampleFeed, true_scales
from plumbline.prediction import Suite, predict, refined_suites, training_feed
from plumbline.records import Sample, Scene
from plumbline.stored import read_predictions
from plumbline.systems.records import Batch, Prediction

ROOT = Path(__file__).resolve().parents[1]
SIZE = (6, 8)


def scene() -> Scene:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (4, *SIZE)).astype(np.float32)
    depth[:, :2] = 0
    return Scene(
        dataset="rooms",
        name="a",
        view_names=("0", "1", "2", "3"),
        images=rng.integers(0, 256, (4, *SIZE, 3), dtype=np.uint8),
        K=np.tile(np.array([[7.0, 0, 3.5], [0, 7, 2.5], [0, 0, 1]]), (4, 1, 1)),
        depth_range=(0.5, 8.0),
        depth=depth,
        world_T_cam=np.tile(np.eye(4), (4, 1, 1)),
    )


SAMPLES = [Sample("a", (1, 0)), Sample("a", (2, 3))]


class Unitless:
    """The true depth over the number of its view, as a method answers that does not know the scale."""

    inputs = frozenset({"depth"})

    def __init__(self, *, known: bool) -> None:
        self.known = known

    def __call__(self, batch: Batch) -> Prediction:
        assert batch.depth is not None
        unit = batch.depth[:, :2].amax(dim=(1, 2, 3), keepdim=True)
        internals = {"scale_known": torch.full((len(batch.depth),), self.known)}
        return Prediction(batch.depth[:, :2] / unit, internals=internals)

    def eval(self) -> "Unitless":
        return self


@pytest.mark.parametrize("known", [False, True])
def test_depth_of_unknown_scale_is_learnt_from_at_the_true_one(tmp_path: Path, known: bool) -> None:
    config = SuiteConfig.model_validate(
        {"dataset": "rooms", "split": "train", "sources": {"kind": "gap", "gap": 1}, "predict_views": 2}
    )
    suite = Suite("rooms", config, {"a": scene()}, SAMPLES)
    predict(Unitless(known=known), method="unitless", suites=[suite], out=tmp_path / "unitless")
    assert read_predictions(tmp_path / "unitless/rooms").about.metric is known
    feed = training_feed(suite, tmp_path / "unitless")
    batch = feed.load([1])
    assert batch.initial_depth is not None and batch.depth is not None
    assert torch.allclose(batch.initial_depth, batch.depth, rtol=1e-5) is not known
    assert isinstance(feed, SampleFeed) and (feed.initial_scale is None) is known


def test_the_scale_is_that_of_pixels_that_both_have() -> None:
    made = scene()
    assert made.depth is not None
    depth = np.stack([made.depth[[1, 0]] / 4, made.depth[[2, 3]] * 2])
    depth[0, 0, :, 4:] = 0
    # Outside the mask truth is none, and the second view's own factor counts for nothing.
    mask = np.ones((4, *SIZE), np.bool_)
    mask[2, :, :3] = False
    depth[1, 0, :, :3] = 99
    depth[0, 1] *= 7
    scales = true_scales({"a": replace(made, mask=mask)}, SAMPLES, depth)
    np.testing.assert_allclose(scales, [4, 0.5], rtol=1e-6)
    assert true_scales({"a": replace(made, depth=None)}, SAMPLES, depth).tolist() == [1, 1]
    assert true_scales({"a": made}, SAMPLES, np.zeros_like(depth)).tolist() == [1, 1]


def test_the_scale_makes_another_run(tmp_path: Path) -> None:
    feed = SampleFeed({"a": scene()}, SAMPLES, initial_depth=np.ones((2, 2, *SIZE), np.float32))
    assert feed.identity != replace(feed, initial_scale=np.full(2, 2, np.float32)).identity


def test_the_initial_method_answers_wherever_its_refiner_does() -> None:
    params = load_params(ROOT / "params.yaml")
    suites = sections(params, "suites", SuiteConfig)
    asking = {name for name, suite in suites.items() if suite.is_test and suite.asks("deltaz")}
    learnt = {*params["train"]["deltaz"]["train_suites"], params["train"]["deltaz"]["val_suite"]}
    assert refined_suites("plane_sweep", suites, params["systems"], params["train"]) >= asking | learnt
    assert refined_suites("vggt", suites, params["systems"], params["train"]) == set()
    changed = {**params["systems"], "deltaz": {**params["systems"]["deltaz"], "initial": "vggt"}}
    assert refined_suites("vggt", suites, changed, params["train"]) == asking | learnt
