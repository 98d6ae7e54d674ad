"""A saved batch is computed again, sample by sample, and points at the one that broke the run."""

import math

import pytest
import torch

from plumbline import checkpoint
from plumbline.errors import DataError
from plumbline.replay import main, replay, table
from plumbline.training import NonFiniteError, TrainConfig, fit
from tiny_training import TinyFeed, TinySystem


@pytest.fixture
def broken(tmp_path):
    torch.manual_seed(0)
    config = TrainConfig(steps=20, batch_size=4, device="cpu")
    with pytest.raises(NonFiniteError):
        fit(
            TinySystem(),
            TinyFeed(broken=7),
            None,
            config,
            name="tiny",
            lr=1e-2,
            seed=3,
            params={},
            out=tmp_path / "out",
            scratch=tmp_path / "scratch",
        )
    (path,) = (tmp_path / "scratch").glob("nonfinite-*.pt")
    return path


def test_replay_points_at_the_sample(broken):
    saved, rows = checkpoint.load(broken), replay(broken, TinySystem())
    assert [math.isnan(row["total"]) for row in rows] == [index == 7 for index in saved["indices"]]
    lines = table(saved, rows).splitlines()
    assert lines[0] == f"tiny, step {saved['step']}, scene scene1"
    assert [("nan" in line) for line in lines[2:]] == [line.split()[0] == "7" for line in lines[2:]]


def test_command_names_what_it_needs(broken, tmp_path, capsys):
    assert main([]) == 2
    assert main([str(tmp_path / "absent.pt")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main([str(broken)]) == 1, "the tiny system cannot be built by name"
    assert "no system 'tiny'" in capsys.readouterr().err
    checkpoint.save(tmp_path / "model.pt", {"model": {}})
    with pytest.raises(DataError, match="holds no batch"):
        replay(tmp_path / "model.pt")
