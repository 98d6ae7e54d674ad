"""Which views are given together: by pair list, gap and baseline; splits; stacking."""

from pathlib import Path

import numpy as np
import pytest

from plumbline.config import DatasetConfig, SuiteConfig
from plumbline.data import samples
from plumbline.errors import ConfigError, DataError
from plumbline.records import Sample, Scene


def scene(views: int = 12, *, step: float = 0.1, pairs: object = None) -> Scene:
    rng = np.random.default_rng(0)
    world_T_cam = np.tile(np.eye(4), (views, 1, 1))
    world_T_cam[:, 0, 3] = step * np.arange(views)
    return Scene(
        dataset="x",
        name="s",
        view_names=tuple(str(i) for i in range(views)),
        images=rng.integers(0, 255, (views, 8, 10, 3)).astype(np.uint8),
        K=np.tile(np.diag([10.0, 10, 1]), (views, 1, 1)),
        depth_range=(0.5, 5.0),
        depth=rng.random((views, 8, 10)).astype(np.float32),
        world_T_cam=world_T_cam,
        pairs=pairs,  # type: ignore[arg-type]
    )


def suite(**sources: object) -> SuiteConfig:
    return SuiteConfig.model_validate({"dataset": "x", "sources": sources})


def test_sources_by_score() -> None:
    listed = (((2, 9.0), (1, 5.0)), ((0, 5.0),), ((0, 9.0), (1, 3.0)))
    got = samples.build(suite(kind="pairs", count=2), {"s": scene(3, pairs=listed)})
    assert [s.views for s in got] == [(0, 2, 1), (2, 0, 1)]


def test_sources_by_gap_stay_inside() -> None:
    got = samples.build(suite(kind="gap", gap=5), {"s": scene(12)})
    assert [s.views for s in got] == [(5, 0, 10), (6, 1, 11)]


def test_sources_by_baseline_keep_to_the_limits_and_apart() -> None:
    got = samples.build(suite(kind="baseline", count=4, min_baseline=0.15, max_baseline=0.45), {"s": scene(12)})
    for sample in got:
        offsets = [abs(view - sample.views[0]) for view in sample.views[1:]]
        assert all(2 <= offset <= 4 for offset in offsets)
        assert len(set(sample.views)) == 5


def test_a_turned_view_is_no_source() -> None:
    turned = scene(12)
    assert turned.world_T_cam is not None
    turned.world_T_cam[5, :3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    got = samples.build(suite(kind="baseline", count=2, min_baseline=0.05, max_baseline=0.45), {"s": turned})
    assert all(5 not in sample.views for sample in got)


def test_max_samples_are_spread_evenly() -> None:
    config = suite(kind="gap", gap=1).model_copy(update={"max_samples": 3})
    got = samples.build(config, {"s": scene(13)})
    assert [s.views[0] for s in got] == [1, 6, 11]


def test_no_sample_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no view of 1 scenes has the sources"):
        samples.build(suite(kind="gap", gap=6), {"s": scene(12)})
    with pytest.raises(DataError, match="no pair list"):
        samples.build(suite(kind="pairs", count=1), {"s": scene(12)})


def dataset(split: object) -> DatasetConfig:
    source = {"kind": "folder", "path": "x"}
    values = {"format": "dtu", "source": source, "size": [8, 10], "depth_range": [1, 2], "split": split}
    return DatasetConfig.model_validate(values)


def test_splits() -> None:
    names = ["scan2", "scan3", "scan1", "scan2_light5"]
    assert samples.split_scenes(dataset("mvsnet"), names) == {
        "train": ["scan2", "scan2_light5"],
        "val": ["scan3"],
        "test": ["scan1"],
    }
    many = [str(i) for i in range(20)]
    seeded = samples.split_scenes(dataset("seeded"), many)
    assert len(seeded["val"]) == 2
    assert sorted(seeded["train"] + seeded["val"]) == sorted(many)
    assert seeded == samples.split_scenes(dataset("seeded"), many)
    assert samples.split_scenes(dataset({"test": ["b"]}), ["a", "b"])["test"] == ["b"]
    with pytest.raises(ConfigError, match="do not exist: c"):
        samples.split_scenes(dataset({"test": ["c"]}), ["a", "b"])


def test_the_published_splits_are_disjoint() -> None:
    names = [f"scan{i}" for i in range(1, 129)]
    parts = samples.split_scenes(dataset("mvsnet"), names)
    assert {part: len(found) for part, found in parts.items()} == {"train": 79, "val": 18, "test": 22}
    assert len(set().union(*parts.values())) == 119


def test_gather_stacks_the_right_views() -> None:
    one = scene()
    assert one.depth is not None
    got = samples.gather({"s": one}, [Sample("s", (3, 1)), Sample("s", (0, 11))])
    np.testing.assert_array_equal(got.image[0, 0], one.images[3])
    np.testing.assert_array_equal(got.image[1, 1], one.images[11])
    assert got.depth is not None
    np.testing.assert_array_equal(got.depth[0, 1], one.depth[1])
    assert got.world_T_cam is not None
    np.testing.assert_allclose(got.world_T_cam[1, 1, 0, 3], 1.1)
    assert got.mask is None


def test_labels_are_those_of_the_scenes_asked_for(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((12, 8, 10)).astype(np.float16)
    (tmp_path / "x/house").mkdir(parents=True)
    np.save(tmp_path / "x/house/hall.npy", stack)
    np.save(tmp_path / "x/other.npy", stack[:3])
    opened = samples.open_labels(tmp_path / "x", {"house/hall": scene()})
    assert isinstance(opened["house/hall"], np.memmap)
    np.testing.assert_array_equal(opened["house/hall"], stack)
    with pytest.raises(DataError, match=r"none.npy: no such file.*dvc repro pseudo_labels@x \(pseudo_labels\.splits"):
        samples.open_labels(tmp_path / "x", {"none": scene()})
    with pytest.raises(DataError, match=r"float16 \(3, 8, 10\); expected float16 \(12, 8, 10\)"):
        samples.open_labels(tmp_path / "x", {"other": scene()})
