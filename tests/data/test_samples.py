"""Which views are given together: by pair list, gap, sequence and baseline; splits; stacking."""

from collections.abc import Sequence
from dataclasses import replace
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


def test_each_listed_pair_can_be_a_sample_of_its_own() -> None:
    listed = (((2, 9.0), (1, 5.0)), ((0, 5.0),), ((0, 9.0), (1, 3.0)))
    scenes = {"s": scene(3, pairs=listed)}
    got = samples.build(suite(kind="pairs", count=2, each=True), scenes)
    assert [s.views for s in got] == [(0, 2), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert samples.sample_scores(scenes, got) == [9, 5, 5, 9, 3]
    assert [s.views for s in samples.build(suite(kind="pairs", count=1, each=True), scenes)] == [(0, 2), (1, 0), (2, 0)]


def test_a_samples_score_is_the_mean_of_its_pairs() -> None:
    listed = (((2, 9.0), (1, 5.0)), ((0, 5.0),), ((0, 9.0), (1, 3.0)))
    assert samples.sample_scores({"s": scene(3, pairs=listed)}, [Sample("s", (0, 1, 2)), Sample("s", (1, 0))]) == [7, 5]
    with pytest.raises(DataError, match=r"s: sample \(1, 2\) is not made of pairs that the data set lists"):
        samples.sample_scores({"s": scene(3, pairs=listed)}, [Sample("s", (1, 2))])
    with pytest.raises(DataError, match=r"x/s: no pair list, so its samples have no scores"):
        samples.sample_scores({"s": scene(3)}, [Sample("s", (0, 1))])


def test_every_view_is_a_target_of_those_around_it() -> None:
    listed = (((2, 9.0), (1, 5.0)), ((0, 5.0),), ((0, 9.0), (1, 3.0)))
    got = samples.build(suite(kind="target", count=2), {"s": scene(3, pairs=listed)})
    assert [(s.given, s.targets) for s in got] == [((2, 1), (0,)), ((0, 1), (2,))]
    apart = samples.build(suite(kind="target", count=3, gap=2), {"s": scene(9)})
    assert [(s.given, s.targets) for s in apart] == [((k - 2, k + 2, k - 4), (k,)) for k in (4, 5, 6)]
    with pytest.raises(DataError, match="x/s: no pair list"):
        samples.build(suite(kind="target"), {"s": scene(3)})
    more = samples.build(suite(kind="target", count=1, targets=2), {"s": scene(3, pairs=listed)})
    assert [(s.given, s.targets) for s in more] == [((2,), (0, 1)), ((0,), (2, 1))]
    film = samples.build(suite(kind="target", gap=2, targets=3), {"s": scene(9)})
    assert [s.targets for s in film] == [(k, k - 1, k + 1) for k in (2, 3, 4, 5, 6)]


def test_clips_are_films_between_views_far_apart() -> None:
    gaps = {"shortest": (4, 4), "longest": (8, 8)}
    got = samples.build(suite(kind="clip", context=2, targets=3, gaps=gaps, count=20), {"s": scene()})
    assert len(got) == 20 and len({s.views for s in got}) > 10
    assert all(4 <= s.given[1] - s.given[0] <= 8 and s.given[0] <= min(s.targets) for s in got)
    far = samples.build(
        suite(kind="clip", context=3, targets=3, gaps={"shortest": (8, 8), "longest": (16, 16)}), {"s": scene()}
    )
    assert len(far[0].given) == len(far[0].targets) == 3
    with pytest.raises(DataError, match="no camera poses; set context: 2"):
        samples.build(
            suite(kind="clip", context=3, gaps={"shortest": (8, 8)}), {"s": replace(scene(), world_T_cam=None)}
        )


def test_sources_by_gap_stay_inside() -> None:
    got = samples.build(suite(kind="gap", gap=5), {"s": scene(12)})
    assert [s.views for s in got] == [(5, 0, 10), (6, 1, 11)]


# (length, gap, frames): the sources of every reference, worked by hand from the published rule.
SEQUENCES = {
    (3, 2, 8): {0: "2 4", 1: "3 5", 2: "0 4", 3: "1 5", 4: "2 6", 5: "3 7", 6: "2 4", 7: "3 5"},
    # Even: two frames before the reference, one after it.
    (4, 2, 9): {
        0: "2 4 6", 1: "3 5 7", 2: "0 4 6", 3: "1 5 7", 4: "0 2 6", 5: "1 3 7", 6: "2 4 8", 7: "1 3 5", 8: "2 4 6",
    },
    (5, 1, 7): {0: "1 2 3 4", 1: "0 2 3 4", 2: "0 1 3 4", 3: "1 2 4 5", 4: "2 3 5 6", 5: "2 3 4 6", 6: "2 3 4 5"},
    (2, 3, 6): {0: "3", 1: "4", 2: "5", 3: "0", 4: "1", 5: "2"},
}  # fmt: skip


@pytest.mark.parametrize(("length", "gap", "frames"), SEQUENCES)
def test_a_sequence_has_every_frame_as_reference_once(length: int, gap: int, frames: int) -> None:
    got = samples.build(suite(kind="sequence", length=length, gap=gap), {"s": scene(frames)})
    sources = {s.views[0]: " ".join(map(str, s.views[1:])) for s in got}
    assert sources == SEQUENCES[length, gap, frames]
    assert len(got) == frames


@pytest.mark.parametrize(("length", "gap"), [(3, 20), (4, 15), (5, 12), (7, 10)])
def test_the_published_sequences_stay_inside_and_nearest_the_middle(length: int, gap: int) -> None:
    frames = length * gap + 23
    for sample in samples.build(suite(kind="sequence", length=length, gap=gap), {"s": scene(frames)}):
        window = sorted(sample.views)
        assert np.diff(window).tolist() == [gap] * (length - 1)
        assert window[0] >= 0 and window[-1] < frames
        before = window.index(sample.views[0])
        # One gap farther on would leave the capture, unless the reference stands where it belongs.
        assert before == length // 2 or (before < length // 2 and window[0] < gap) or window[-1] >= frames - gap


def test_a_capture_too_short_for_the_sequence_gives_no_sample() -> None:
    short, long = scene(5), scene(6)
    got = samples.build(suite(kind="sequence", length=3, gap=2), {"short": short, "long": long})
    assert {sample.scene for sample in got} == {"long"}


def with_frames(numbers: Sequence[int], count: int) -> Scene:
    return replace(scene(len(numbers)), frames=tuple(numbers), frame_count=count)


def test_a_gap_counts_frames_that_were_not_read() -> None:
    # Frame 4 of 0..8 was lost: samples that need it are left out, the others keep to their frames.
    got = samples.build(suite(kind="sequence", length=3, gap=2), {"s": with_frames([0, 1, 2, 3, 5, 6, 7, 8], 9)})
    frame_of = [0, 1, 2, 3, 5, 6, 7, 8]
    assert [[frame_of[view] for view in s.views] for s in got] == [[1, 3, 5], [3, 1, 5], [5, 3, 7], [7, 3, 5]]


def test_a_stride_thins_the_references_and_keeps_the_gap() -> None:
    got = samples.build(suite(kind="sequence", length=3, gap=4), {"s": with_frames(range(0, 14, 2), 13)})
    assert [[2 * view for view in s.views] for s in got] == [
        [0, 4, 8], [2, 6, 10], [4, 0, 8], [6, 2, 10], [8, 4, 12], [10, 2, 6], [12, 4, 8],
    ]  # fmt: skip


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
    values = {"format": "dtu", "source": source, "image_size": [8, 10], "depth_range": [1, 2], "split": split}
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


def test_the_scannet_split_goes_by_space() -> None:
    names = [
        "scans/scene0191_00",
        "scans/scene0191_02",
        "scans/scene0568_01",
        "scans_test/scene0707_00",
        "scene0900_00",
    ]
    assert samples.split_scenes(dataset("scannet"), names) == {
        "train": ["scans/scene0191_00", "scans/scene0191_02"],
        "val": ["scans/scene0568_01"],
        "test": ["scans_test/scene0707_00"],
    }
    with pytest.raises(DataError, match="office: the scannet split expects scenes named scene<space, 4 digits>_<scan"):
        samples.split_scenes(dataset("scannet"), ["office"])


def test_the_published_scannet_split_has_every_space_once() -> None:
    spaces = [f"scene{i:04d}_00" for i in range(807)]
    parts = samples.split_scenes(dataset("scannet"), spaces)
    assert {part: len(found) for part, found in parts.items()} == {"train": 565, "val": 142, "test": 100}
    assert len(set().union(*parts.values())) == 807
    assert parts["test"] == spaces[707:]


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


def test_gather_keeps_targets_apart_and_fills_masks() -> None:
    masked = replace(scene(), mask=np.zeros((12, 8, 10), np.bool_))
    got = samples.gather(
        {"s": scene(), "m": masked}, [Sample("s", (3, 1, 5), context=2), Sample("m", (0, 2, 4), context=2)]
    )
    assert got.target_image is not None and got.world_T_target is not None and got.target_mask is not None
    np.testing.assert_array_equal(got.target_image[0, 0], masked.images[5])
    np.testing.assert_allclose(got.world_T_target[1, 0], masked.world_T_cam[4])  # type: ignore[index]
    assert got.target_mask.all(axis=(1, 2, 3)).tolist() == [True, False] and got.image.shape[1] == 2


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
