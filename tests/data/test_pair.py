"""One sample as a data set of its own: what is chosen, written and read back; the other sample; what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricated import write_dataset
from plumbline.config import DatasetConfig
from plumbline.data import pair
from plumbline.data.canonical import fit, read_scene, views_of, write_scene
from plumbline.data.samples import build, gather
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import read_json, write_json
from plumbline.records import Sample, Scene

SCENES = ["flat/hall", "flat/kitchen"]
DATASETS = {
    "rooms": DatasetConfig.model_validate(
        {
            "format": "sun3d",
            "source": {"kind": "folder", "path": "x"},
            "image_size": [24, 32],
            "depth_range": [0.5, 8.0],
            "split": {"train": SCENES, "val": ["flat/hall"]},
        }
    )
}


def config(**changes: Any) -> pair.PairConfig:
    """Triplets of neighbours, the reference in the middle: three a scene."""
    values = {"dataset": "rooms", "sources": {"kind": "gap", "gap": 1}, "context": 3, **changes}
    return pair.PairConfig.model_validate(values)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, "rooms", SCENES)
    return folder


def extract(scenes: Path, out: Path, **changes: Any) -> pair.Pair:
    return pair.extract_pair(config(**changes), datasets=DATASETS, scenes=scenes, out=out)


def test_a_sample_is_written_in_its_own_order_with_all_that_its_views_have(scenes: Path, tmp_path: Path) -> None:
    found = extract(scenes, tmp_path / "deltas", sample=4, predict_views=2)
    whole = read_scene(scenes / "rooms/flat/kitchen")
    assert found.scene.view_names == ("0002", "0001", "0003") and found.sample.views == (0, 1, 2)
    assert found.roles == ("context",) * 3 and found.predict_views == 2
    assert [view["number"] for view in found.origin["views"]] == [2, 1, 3]
    expected = gather({"flat/kitchen": whole}, [Sample("flat/kitchen", (2, 1, 3))])
    got = gather({found.sample.scene: found.scene}, [found.sample])
    for name in ("image", "K", "world_T_cam", "depth", "depth_range"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deltas"]


def test_roles_follow_the_order_of_the_sample(scenes: Path, tmp_path: Path) -> None:
    found = extract(scenes, tmp_path / "splat", context=2, target=1)
    assert found.roles == ("context", "context", "target")
    assert found.only("context").views == (0, 1) and found.only("target").views == (2,)
    assert pair.read_pair(tmp_path / "splat").roles == found.roles


TARGET = {"kind": "target", "gap": 1}


def test_a_rule_with_targets_says_itself_which_views_are_rendered(scenes: Path, tmp_path: Path) -> None:
    found = extract(scenes, tmp_path / "splat", sources=TARGET, context=None, sample=1, predict_views=2)
    assert found.scene.view_names == ("0001", "0003", "0002") and found.roles == ("context", "context", "target")
    assert (found.sample.given, found.sample.targets) == ((0, 1), (2,)) and found.predict_views == 2
    assert extract(scenes, tmp_path / "same", sources=TARGET, context=2, target=1).roles == found.roles
    whole = {
        "flat/kitchen": read_scene(scenes / "rooms/flat/kitchen"),
        "flat/hall": read_scene(scenes / "rooms/flat/hall"),
    }
    expected = gather(whole, [Sample("flat/hall", (1, 3, 2), context=2)])
    got = gather({found.sample.scene: found.scene}, [found.sample])
    for name in ("image", "target_image", "target_K", "world_T_target"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_a_clip_that_renders_what_it_gives_is_no_sample_for_a_gate(scenes: Path, tmp_path: Path) -> None:
    near = {"shortest": [1, 1], "longest": [1, 1]}
    clip = {"kind": "clip", "targets": 2, "gaps": near, "count": 3}
    with pytest.raises(
        ConfigError, match=r"sample 2 of rooms \(train\) gives views \(\d, \d\) and has .* rendered: one stands"
    ):
        extract(scenes, tmp_path / "splat", sources=clip, context=None, sample=2)
    wide = config(
        sources={**clip, "targets": 1, "gaps": {"shortest": [4, 4], "longest": [4, 4]}, "count": 40}, context=None
    )
    opened = {name: read_scene(scenes / "rooms" / name) for name in SCENES}
    number = next(k for k, sample in enumerate(build(wide, opened)) if sample.targets[0] in {1, 2, 3})
    found, other = pair.choose(wide.model_copy(update={"sample": number}), opened)
    assert found.given == (0, 4) and found.targets[0] in {1, 2, 3}
    assert other is not None and other.scene != found.scene and not {*other.given} & {*other.targets}


def test_views_come_to_another_size_with_their_cameras_and_depth(scenes: Path, tmp_path: Path) -> None:
    found = extract(scenes, tmp_path / "half", image_size=[12, 16])
    assert found.scene.images.shape == (3, 12, 16, 3) and found.scene.depth is not None
    whole = read_scene(scenes / "rooms/flat/hall")
    for place, number in enumerate((1, 0, 2)):
        view = fit(list(views_of(whole))[number], (12, 16))
        np.testing.assert_array_equal(found.scene.images[place], view.image)
        np.testing.assert_array_equal(found.scene.K[place], view.K)
        np.testing.assert_array_equal(found.scene.depth[place], view.depth)
    assert pair.read_pair(tmp_path / "half").scene.images.shape[1:3] == (12, 16)
    other = pair.read_other(tmp_path / "half")
    assert other is not None and other.scene.images.shape == (3, 12, 16, 3)


def test_masks_come_to_another_size_with_their_views(tmp_path: Path) -> None:
    whole = with_everything(tmp_path)
    pair.write_sample(tmp_path / "out", Sample("whole", (3, 0, 4)), whole, config(image_size=[12, 16]))
    scene = pair.read_sample(tmp_path / "out").scene
    assert scene.mask is not None and scene.depth is not None
    np.testing.assert_array_equal(scene.mask, np.asarray(scene.depth) > 2)


def test_fewer_views_are_the_leading_ones(scenes: Path, tmp_path: Path) -> None:
    assert extract(scenes, tmp_path / "a", context=2).scene.view_names == ("0001", "0000")


def test_the_other_sample_is_of_another_scene_where_there_is_one(scenes: Path, tmp_path: Path) -> None:
    found = extract(scenes, tmp_path / "a", sample=1)
    other = pair.read_other(tmp_path / "a")
    assert other is not None and (found.sample.scene, other.sample.scene) == ("flat/hall", "flat/kitchen")
    extract(scenes, tmp_path / "b", sample=1, other=2)
    named = pair.read_other(tmp_path / "b")
    assert named is not None and named.scene.view_names == ("0003", "0002", "0004")


def test_in_one_scene_the_other_sample_shares_the_fewest_views(scenes: Path, tmp_path: Path) -> None:
    extract(scenes, tmp_path / "a", split="val", sample=0)
    other = pair.read_other(tmp_path / "a")
    assert other is not None and other.scene.view_names == ("0003", "0002", "0004")
    extract(scenes, tmp_path / "b", split="val", sample=0, max_samples=1)
    assert pair.read_other(tmp_path / "b") is None


def test_a_pair_in_both_orders_is_no_other_sample() -> None:
    assert pair._unlike([Sample("a", (0, 1)), Sample("a", (1, 0))], 0) is None


def with_everything(folder: Path) -> Scene:
    """A scene with masks, pair scores, frame numbers and JPEG images."""
    write_dataset(folder, "rooms", ["raw"])
    plain = read_scene(folder / "rooms/raw")
    assert plain.depth is not None
    full = replace(plain, mask=np.array(plain.depth > 2), frames=(0, 2, 3, 7, 9), frame_count=12)
    names = plain.view_names
    listed = {name: [(names[(i + 2) % 5], 5.0), (names[(i + 1) % 5], 3.0)] for i, name in enumerate(names)}
    write_scene(
        folder / "whole", dataset="rooms", name="whole", views=views_of(full), depth_range=(0.5, 8.0), pairs=listed,
        storage="jpeg",
    )  # fmt: skip
    return read_scene(folder / "whole")


def test_masks_scores_and_decoded_images_come_along(tmp_path: Path) -> None:
    whole = with_everything(tmp_path)
    rule = config(sources={"kind": "pairs", "count": 2})
    pair.write_sample(tmp_path / "out", Sample("whole", (3, 0, 4)), whole, rule)
    found = pair.read_sample(tmp_path / "out")
    assert found.scene.pairs == (((1, 5.0), (2, 3.0)), (), ((1, 3.0),)) and found.scene.frames is None
    assert found.scene.mask is not None and whole.mask is not None
    for place, view in enumerate((3, 0, 4)):
        np.testing.assert_array_equal(found.scene.images[place], whole.images[view])
        np.testing.assert_array_equal(found.scene.mask[place], whole.mask[view])


def test_facts_count_what_is_measured_and_usable(tmp_path: Path) -> None:
    depth = np.array([[0, 2, 3], [4, 5, 6]], np.float32)
    facts = pair.view_facts("a", depth, depth != 6)
    assert (facts.measured, facts.pixels, facts.nearest, facts.farthest) == (4, 6, 2, 5)
    assert str(facts) == "4/6 valid (66.7%), depth [2.00, 5.00] m"
    assert str(pair.view_facts("b", depth * 0)) == "0/6 valid (0.0%)"
    whole = with_everything(tmp_path)
    pair.write_sample(tmp_path / "out", Sample("whole", (1, 2, 0)), whole, config())
    found = pair.facts(pair.read_sample(tmp_path / "out"))
    assert [view.name for view in found] == ["0001", "0002", "0000"]
    assert whole.mask is not None and found[0].measured == int(np.count_nonzero(whole.mask[1]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample": 6}, r"sample 6 of rooms \(train\) was asked for; there are 6, from 0"),
        ({"other": 9}, "sample 9 of rooms"),
        ({"context": 3, "target": 1}, r"3 context and 1 target views were asked for, but the samples .* have 3 views"),
        (
            {"sources": {"kind": "target", "gap": 1}, "context": 3},
            r"3 context views were asked for, but the rule gives the samples of rooms \(train\) 2\. Say so in sources",
        ),
        ({"sources": {"kind": "target", "gap": 1}, "context": 2, "target": 2}, "2 target views were asked for"),
        ({"dataset": "halls"}, r"no data set 'halls'\. There is: rooms"),
        ({"sources": {"kind": "gap", "gap": 3}}, "no view of 2 scenes has the sources"),
    ],
    ids=["sample", "other", "views", "the rule's context", "the rule's targets", "data set", "rule"],
)
def test_what_cannot_be_had_is_named_and_nothing_is_written(
    scenes: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlumblineError, match=words):
        extract(scenes, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


def test_labels_of_the_sample_are_those_of_its_views_in_its_order(scenes: Path, tmp_path: Path) -> None:
    found = extract(scenes, tmp_path / "deltas", sample=4)
    stored = np.arange(5 * 24 * 32, dtype=np.float16).reshape(5, 24, 32)
    folder = tmp_path / "rooms"
    (folder / "flat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"kitchen\.npy: no such file; .*dvc repro pseudo_labels@rooms"):
        pair.read_labels(folder, found)
    np.save(folder / "flat/kitchen.npy", stored)
    np.testing.assert_array_equal(pair.read_labels(folder, found), stored[[2, 1, 3]])
    for wrong in (stored[:3], stored[:, :20], stored.astype(np.float32)):
        np.save(folder / "flat/kitchen.npy", wrong)
        with pytest.raises(DataError, match=r"keypoint labels are .*; expected float16 \(more than 3, 24, 32\)"):
            pair.read_labels(folder, found)


@pytest.mark.parametrize(
    "changes",
    [
        {"predict_views": 4},
        {"predict_views": 3, "context": 2, "target": 1},
        {"predict_views": 3, "context": None, "sources": TARGET},
        {"other": 0},
        {"context": 0},
        {"context": None},
        {"image_size": [0, 4]},
        {"views": 2},
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        config(**changes)


def test_what_reads_back_otherwise_is_not_kept(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(folder: Path) -> Scene:
        scene = read_scene(folder)
        assert scene.depth is not None
        return replace(scene, depth=scene.depth * 8)

    extract(scenes, tmp_path / "out")
    before = read_json(tmp_path / "out/sample/sample.json")
    monkeypatch.setattr(pair, "read_scene", corrupted)
    with pytest.raises(DataError, match="depth reads back as something else than was written"):
        extract(scenes, tmp_path / "out", sample=2)
    assert read_json(tmp_path / "out/sample/sample.json") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("views", [], "name different views"),
        ("views", "all", "describes no sample"),
        ("format_version", 2, "format 2, expected 1"),
    ],
)
def test_a_broken_description_is_named(scenes: Path, tmp_path: Path, key: str, value: object, words: str) -> None:
    extract(scenes, tmp_path / "deltas")
    file = tmp_path / "deltas/sample/sample.json"
    write_json(file, {**read_json(file), key: value})
    with pytest.raises(DataError, match=rf"{words}.*dvc repro extract_pair@deltas"):
        pair.read_pair(tmp_path / "deltas")


def test_the_same_choice_gives_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        extract(scenes, tmp_path / name, sample=3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 12
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_configurations_are_read_as_sections_of_params() -> None:
    from plumbline.config import section

    params = {"pair": {"vggt": {"dataset": "aerialmd", "sources": {"kind": "pairs", "count": 1}, "contxt": 2}}}
    with pytest.raises(ConfigError, match=r"pair\.vggt\.contxt: unknown key\. Did you mean 'context'"):
        section(params, "pair.vggt", pair.PairConfig)
