"""Two processes on the CPU: the same losses as one, and a killed worker that is restarted from the checkpoint.

Run by torchrun, this file is the worker: `torchrun ... tests/test_distributed.py OUT [LAST_STEP_OF_RANK_1]`.
"""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plumbline import checkpoint
from plumbline.distributed import Group
from plumbline.errors import ConfigError
from plumbline.training import TrainConfig, fit
from tiny_training import TinyFeed, TinySystem

CONFIG = TrainConfig(steps=6, batch_size=4, val_every=3, checkpoint_every=2, log_every=1, device="cpu")
SOURCES = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parent)]


class FatalFeed(TinyFeed):
    """Kills its process at the n-th load of the first attempt."""

    loads = 0
    fatal = 0

    def load(self, indices, *, step=0):
        type(self).loads += 1
        if self.loads == self.fatal and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(indices)


def train(out, feed=None, config=CONFIG):
    torch.manual_seed(0)
    val = TinyFeed(scenes=1, seed=9)
    settings = {"name": "tiny", "lr": 1e-2, "seed": 3, "params": {}}
    return fit(TinySystem(), feed or TinyFeed(), val, config, out=out / "out", scratch=out / "scratch", **settings)


def torchrun(out, *arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", __file__, str(out), *arguments]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def results(folder):
    with (folder / "out/curve.csv").open() as stream:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    return rows, checkpoint.load(folder / "out/model.pt")["model"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return results(folder)


def assert_same(found, expected):
    assert [row.keys() for row in found[0]] == [row.keys() for row in expected[0]]
    for ours, theirs in zip(found[0], expected[0], strict=True):
        for name in ours.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (name, ours["step"])
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_give_the_losses_of_one_and_a_killed_worker_goes_on_from_the_checkpoint(alone, tmp_path):
    done = torchrun(tmp_path, "4", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "going on from step 3" in done.stderr
    assert_same(results(tmp_path), alone)


def test_shares_are_equal_and_cover_the_batch():
    groups = [Group(rank, 3, torch.device("cpu")) for rank in range(3)]
    assert [i for group in groups for i in range(12)[group.share(12)]] == list(range(12))


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path, monkeypatch):
    from plumbline import training

    with pytest.raises(ConfigError, match="no multiple of 3 processes x accumulate 1 = 3"):
        training.prepare(
            TinySystem(),
            CONFIG,
            Group(0, 3, torch.device("cpu")),
            name="tiny",
            lr=0.1,
            seed=0,
            run="",
            params={},
            scratch=tmp_path,
        )


if __name__ == "__main__":
    FatalFeed.fatal = int(sys.argv[2]) if os.environ["RANK"] == "1" else 0
    train(Path(sys.argv[1]), FatalFeed())
