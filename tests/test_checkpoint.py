"""What a checkpoint keeps, how runs are told apart, and what is refused."""

import random
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from plumbline import checkpoint
from plumbline.errors import DataError
from plumbline.process import dvc_root


def test_random_states_come_back(tmp_path):
    checkpoint.seed_everything(5)
    random.gauss(0, 1), np.random.standard_normal(), torch.rand(3)  # noqa: NPY002  # half a pair stays in both gauss caches
    checkpoint.save(tmp_path / "state.pt", {"generators": checkpoint.rng_state()})

    def draw():
        normal = np.random.standard_normal(3)  # noqa: NPY002
        return random.gauss(0, 1), random.random(), normal.tolist(), torch.rand(3).tolist()

    expected = draw()
    checkpoint.seed_everything(6)
    assert draw() != expected
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "state.pt")["generators"])
    assert draw() == expected


def test_equal_states_give_equal_bytes_under_any_name(tmp_path):
    for name in ("a.pt", "b.pt"):
        checkpoint.save(tmp_path / name, {"model": {"w": torch.arange(5.0)}, "step": 3})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})
    with pytest.raises(Exception, match=r"pickle|lambda"):
        checkpoint.save(path, {"step": lambda: 2})
    assert checkpoint.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(DataError, match=r"a\.pt: no such file"):
        checkpoint.load(path)
    path.write_bytes(b"PK broken")
    with pytest.raises(DataError, match=r"a\.pt: not a readable checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"step": 1})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.pt: not a readable checkpoint"):
        checkpoint.load(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="holds a list"):
        checkpoint.load(path)


def test_fingerprint_depends_on_every_part_and_not_on_key_order():
    first = checkpoint.fingerprint({"a": 1, "b": [1, 2.5]}, "x")
    assert first == checkpoint.fingerprint({"b": [1, 2.5], "a": 1}, "x")
    assert len({first, checkpoint.fingerprint({"a": 1, "b": [1, 2.4]}, "x"), checkpoint.fingerprint("x")}) == 3


def test_code_digest_follows_imports_and_nothing_else(tmp_path, monkeypatch):
    sources = {
        "pack": "",
        "pack.system": "from pack.blocks import block\nimport json\n",
        "pack.blocks": "def block(): return 1\n",
        "pack.other": "x = 1\n",
    }
    folder = tmp_path / "pack"
    folder.mkdir()
    for name, text in sources.items():
        (folder / f"{name.partition('.')[2] or '__init__'}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("pack.system"), __import__("pack.other")
    assert isinstance(sys.modules["pack.blocks"], ModuleType)
    before = checkpoint.code_digest("pack.system")
    (folder / "other.py").write_text("x = 2\n")
    assert checkpoint.code_digest("pack.system") == before
    (folder / "blocks.py").write_text("def block(): return 2\n")
    assert checkpoint.code_digest("pack.system") != before
    for name in sources:
        monkeypatch.delitem(sys.modules, name)


def test_scratch_lies_in_the_main_workspace_even_from_a_clone_of_it(tmp_path, monkeypatch):
    (tmp_path / "main/.dvc").mkdir(parents=True)
    clone = tmp_path / "main/.dvc/tmp/exps/clone"
    (clone / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(clone)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    expected = tmp_path / "main/.resume/train-deltaz-abc"
    assert checkpoint.scratch_folder("train", "deltaz", "abc") == expected
    monkeypatch.delenv("DVC_ROOT")
    assert dvc_root() == clone
    assert dvc_root(tmp_path / "main/.dvc/tmp") == tmp_path / "main"
