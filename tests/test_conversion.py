"""DELTAS weights from one format to the other and back: every entry, and no silent mix-up."""

import pytest
import torch

from plumbline import checkpoint, systems
from plumbline.conversion import convert
from plumbline.errors import ConfigError, DataError
from plumbline.systems.deltas import pretrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training: model.pt of a fresh tiny system."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    system = systems.build("deltas", {"preset": "tiny"})
    content = {"model": system.state_dict(), "system": "deltas", "params": {"preset": "tiny"}, "step": 9}
    checkpoint.save(folder / "model.pt", content)
    return folder


def test_there_and_back_every_entry_is_the_same(run, tmp_path):
    said = convert(run, tmp_path / "deltas.pth.tar")
    assert "published checkpoint's layout" in said and "(preset tiny), so that the authors' own code cannot" in said
    assert set(pretrained.read(tmp_path / "deltas.pth.tar")) == {"state_dict", "state_dict_tri", "state_dict_depth"}
    assert convert(tmp_path / "deltas.pth.tar", tmp_path / "back.pt").endswith("a training's model.pt, preset tiny.")
    first, back = checkpoint.load(run / "model.pt"), checkpoint.load(tmp_path / "back.pt")
    assert (back["system"], back["params"]) == ("deltas", {"preset": "tiny"})
    assert first["model"].keys() == back["model"].keys()
    assert all(torch.equal(value, back["model"][name]) for name, value in first["model"].items())


def test_a_target_that_is_there_is_kept(run, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine: is there already\. Give another name"):
        convert(run, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"model": {"w": torch.zeros(1)}, "system": "deltaz", "params": {}},
            r"expected DELTAS' published checkpoint .* holds model",
        ),
        ({"w": torch.zeros(1)}, r"or the model\.pt of a DELTAS training; this holds w\."),
    ],
)
def test_other_weights_are_refused(content, expected, tmp_path):
    checkpoint.save(tmp_path / "a.pt", content)
    with pytest.raises(DataError, match=expected):
        convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_a_checkpoint_with_an_entry_of_no_preset_is_refused(run, tmp_path, monkeypatch):
    convert(run, tmp_path / "a.tar")
    content = pretrained.read(tmp_path / "a.tar")
    content["state_dict"]["extra"] = torch.zeros(1)
    checkpoint.save(tmp_path / "a.tar", content)
    # The published size, of half a gigabyte, is not needed to say what is wrong.
    build = systems.build
    monkeypatch.setattr(systems, "build", lambda name, params: build(name, {"preset": "tiny"}))
    with pytest.raises(
        DataError, match=r"unexpected: state_dict/extra\. .*\nIt fits no other preset either \(full, tiny\)"
    ):
        convert(tmp_path / "a.tar", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.tar").write_text("hello")
    with pytest.raises(DataError, match=r"a\.tar: not a readable checkpoint \("):
        convert(tmp_path / "a.tar", tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"model\.pt: no such file"):
        convert(tmp_path, tmp_path / "b.pt")
