"""Another set of inputs: merged params, a graph with other data sets, a clone of the work tree."""

import subprocess
from pathlib import Path

import pytest

from plumbline import runs
from plumbline.errors import ConfigError


def test_merging_goes_key_by_key_and_replaces_where_told() -> None:
    base = {"lr": 1, "suites": {"a": {"x": 1}, "b": {"x": 2}, "c": {}}, "datasets": {"dtu": 1}}
    over = {"lr": 2, "suites": {"a": {"y": 3}, "c": None}, "datasets!": {"rooms": 1}}
    assert runs.merged(base, over) == {
        "lr": 2,
        "suites": {"a": {"x": 1, "y": 3}, "b": {"x": 2}},
        "datasets": {"rooms": 1},
    }
    assert base["suites"] == {"a": {"x": 1}, "b": {"x": 2}, "c": {}}


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "here")
    assert runs.expanded({"a": ["${SOME_FOLDER}/x"], "b": 1}) == {"a": ["here/x"], "b": 1}
    with pytest.raises(ConfigError, match="ABSENT_FOLDER, which the params file uses, is not set"):
        runs.expanded("${ABSENT_FOLDER}")


def test_stages_on_all_data_sets_follow_the_new_ones_and_training_stays() -> None:
    everything = ["code.py", "data/scenes/dtu", "data/scenes/sun3d", "data/checks/dtu", "data/checks/sun3d"]
    graph = {
        "stages": {
            "predict": {"foreach": ["a"], "do": {"deps": everything}},
            "train": {"deps": ["data/scenes/dtu", "data/scenes/sun3d"]},
            "parse": {"cmd": "x"},
        }
    }
    changed = runs.with_datasets(graph, ["dtu", "sun3d"], ["dtu", "rooms"])["stages"]
    expected = ["code.py", "data/scenes/dtu", "data/scenes/rooms", "data/checks/dtu", "data/checks/rooms"]
    assert changed["predict"]["do"]["deps"] == expected
    assert changed["train"]["deps"] == ["data/scenes/dtu", "data/scenes/sun3d"]


TRAINED = {
    "deltaz": {
        "code": "z",
        "datasets": {"a": "dtu", "b": "sun3d"},
        "suites": {"a": "dtu_train", "b": "dtu_val", "c": "sun3d_train", "d": "sun3d_train"},
        "learns": {
            "a": "predictions/${x}/dtu_train", "b": "predictions/${x}/dtu_val", "c": "predictions/${x}/sun3d_train",
        },
    },
    "deltas": {
        "code": "s",
        "datasets": {"a": "sun3d", "b": "sun3d"},
        "suites": {"a": "sun3d_train", "b": "sun3d_val", "c": "sun3d_val", "d": "sun3d_val"},
        "learns": dict.fromkeys("abc", "data/pseudo_labels/sun3d"),
    },
}  # fmt: skip
ALONE = {
    "code": "src/v",
    "datasets": {"a": "sun3d", "b": "sun3d"},
    "suites": {"a": "sun3d_train", "b": "sun3d_val"},
    "learns": dict.fromkeys("abc", "src/shared"),
}


def training(**deltas: object) -> dict:
    suites = ["dtu_train", "dtu_val", "sun3d_train", "sun3d_val", "scannet_train", "scannet_val"]
    return {
        "suites": {name: {"dataset": name.split("_")[0]} for name in suites},
        "train": {
            "deltaz": {"train_suites": ["dtu_train", "sun3d_train"], "val_suite": "dtu_val"},
            "deltas": {"train_suites": ["sun3d_train"], "val_suite": "sun3d_val", **deltas},
        },
    }


def test_training_waits_for_what_it_learns_from() -> None:
    graph = {"stages": {"train": {"foreach": TRAINED, "do": {}}, "report": {}}}
    assert runs.with_training(graph, training()) == graph
    other = training(train_suites=["scannet_train"], val_suite="scannet_val", init_from="/weights.pt")
    items = runs.with_training(graph, other)["stages"]["train"]["foreach"]
    assert items["deltaz"] == TRAINED["deltaz"]
    assert items["deltas"] == {
        "code": "s",
        "datasets": {"a": "scannet", "b": "scannet"},
        "suites": {"a": "scannet_train", "b": "scannet_val", "c": "scannet_val", "d": "scannet_val"},
        "learns": {"a": "data/pseudo_labels/scannet", "b": "/weights.pt", "c": "/weights.pt"},
    }
    three = training(train_suites=["sun3d_train", "scannet_train", "dtu_train"])
    with pytest.raises(ConfigError, match=r"train\.deltas: datasets sun3d, scannet, dtu: .* has places for 2\."):
        runs.with_training(graph, three)


def test_a_system_that_learns_from_suites_alone_keeps_its_places() -> None:
    def item(**train: object) -> dict:
        params = {**training(), "train": {"vggt": {"train_suites": ["sun3d_train"], "val_suite": "sun3d_val", **train}}}
        graph = {"stages": {"train": {"foreach": {"vggt": ALONE}, "do": {}}}}
        return runs.with_training(graph, params)["stages"]["train"]["foreach"]["vggt"]

    assert item() == ALONE
    assert item(train_suites=["dtu_train"])["datasets"] == {"a": "dtu", "b": "sun3d"}
    assert item(init_from="/weights.pt")["learns"] == {"a": "src/shared", "b": "/weights.pt", "c": "/weights.pt"}


def test_a_method_that_the_graph_lacks_is_predicted_and_scored() -> None:
    item = {"code": "x", "weights": "x", "initial": "x", "shared": "y"}
    stages = {
        "predict": {"foreach": {"a": item}, "do": {}},
        "evaluate": {"foreach": ["a"]},
        "report": {"deps": ["scores/a"]},
    }
    changed = runs.with_methods({"stages": stages}, ["a", "perturbed", "file"])["stages"]
    assert list(changed["predict"]["foreach"]) == ["a", "perturbed", "file"]
    assert changed["predict"]["foreach"]["perturbed"] == dict.fromkeys(item, "src/plumbline/systems/perturbed.py")
    assert changed["evaluate"]["foreach"] == ["a", "perturbed", "file"]
    assert changed["report"]["deps"] == ["scores/a", "scores/perturbed", "scores/file"]
    assert list(stages["predict"]["foreach"]) == ["a"]


def test_a_method_that_params_lack_leaves_the_graph() -> None:
    item = {"code": "x", "weights": "x", "initial": "x"}
    stages = {
        "train": {"foreach": {"b": {}}, "do": {"deps": ["runs/overfit/b"]}},
        "predict": {"foreach": {"a": item, "b": item}, "do": {}},
        "evaluate": {"foreach": ["a", "b"]},
        "report": {
            "deps": ["runs/train/b", "runs/overfit/b", "predictions/b", "scores/a", "scores/b", "data/scenes/b"]
        },
    }
    changed = runs.with_methods({"stages": stages}, ["a"])["stages"]
    assert changed["train"]["foreach"] == {}
    assert list(changed["predict"]["foreach"]) == changed["evaluate"]["foreach"] == ["a"]
    assert changed["report"]["deps"] == ["scores/a", "data/scenes/b"]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_clone_has_the_work_tree_as_it_is(tmp_path: Path) -> None:
    root, clone = tmp_path / "root", tmp_path / "clones" / "x"
    (root / ".dvc").mkdir(parents=True)
    git(root, "init")
    for name in (".dvc/config", "kept.txt", "removed.txt", ".gitignore"):
        (root / name).write_text("ignored.txt" if name == ".gitignore" else "old")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    (root / "kept.txt").write_text("changed")
    (root / "new.txt").write_text("new")
    (root / "ignored.txt").write_text("no")
    (root / "removed.txt").unlink()
    for _ in range(2):
        runs.clone_worktree(root, clone)
        assert (clone / "kept.txt").read_text() == "changed"
        assert (clone / "new.txt").read_text() == "new"
        assert not (clone / "removed.txt").exists()
        assert not (clone / "ignored.txt").exists()
        assert str(root / ".dvc/cache") in (clone / ".dvc/config.local").read_text()
        (clone / "kept.txt").write_text("made by an earlier run")
