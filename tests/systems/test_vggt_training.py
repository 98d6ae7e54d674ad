"""VGGT learns from pairs: the training loop with its groups and scores, exact resume, fine-tuning, and two processes.

Run by torchrun, this file is the worker: `torchrun ... tests/systems/test_vggt_training.py OUT`.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from plane_scene import scene
from plumbline import checkpoint
from plumbline.curve import read_curve
from plumbline.systems.records import Batch, Prediction
from plumbline.systems.vggt import Config, System
from plumbline.training import Schedule, TrainConfig, clip_groups, depth_errors, fit

SMALL: dict[str, Any] = {
    "preset": "tiny", "width": 32, "rounds": 2, "heads": 2, "camera_blocks": 1, "dpt_features": 16,
    "dpt_widths": (8, 8, 8, 8), "dpt_layers": (0, 0, 1, 1),
    # Each process varies its part of a batch in its own way.
    "augment": {"flip": 0.0, "zoom": 0.0, "brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "colour": 0.0,
                "image_noise": 0.0, "degrade": 0.0},
}  # fmt: skip
GROUPS = {"aggregator": 1.0, "camera": 1.0, "depth": 1.0}
CONFIG = TrainConfig(
    steps=6, batch_size=4, accumulate=2, same_scene=False, sampling="score", optimizer="adamw", weight_decay=0.05,
    clip_groups=GROUPS, schedule=Schedule(kind="cosine", warm_up=2), val_every=3, checkpoint_every=2, log_every=1,
    device="cpu", threads=1,
)  # fmt: skip
LR = 2e-3
TESTS = Path(__file__).parents[1]


@cache
def pairs() -> Batch:
    """Six pairs of views of slanted planes at different depths."""
    return scene(b=6, v=2, p=1, size=(24, 32))


@dataclass(frozen=True)
class PairFeed:
    """The pairs; `fatal`: the process ends at that load."""

    fatal: int | None = None
    loads = 0

    scenes_of = property(lambda self: ["plane"] * 6)
    parts_of = property(lambda self: [""] * 6)
    identity = property(lambda self: hashlib.sha256(b"planes").hexdigest())

    def scores(self) -> Sequence[float]:
        return [1.0, 2.0, 1.0, 3.0, 1.0, 2.0]

    def load(self, indices: Sequence[int], *, step: int = 0) -> Batch:
        type(self).loads += 1
        if type(self).loads == self.fatal:
            raise KeyboardInterrupt
        rows = [pairs().rows(slice(int(i), int(i) + 1)) for i in indices]
        names = ("image", "K", "cam0_T_cam", "depth_range", "depth", "mask")
        return Batch(**{name: torch.cat([getattr(row, name) for row in rows]) for name in names})


def train(out: Path, config: TrainConfig = CONFIG, feed: PairFeed | None = None, **options: Any) -> System:
    torch.manual_seed(0)
    PairFeed.loads = 0
    system = System(Config(**(SMALL | options)))
    settings = {"name": "vggt", "lr": LR, "seed": 0, "params": {}, "out": out / "out", "scratch": out / "scratch"}
    fit(system, feed or PairFeed(), PairFeed(), config, **settings)
    return system


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "out/model.pt")["model"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return folder


def test_a_few_pairs_are_learnt(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 60, "val_every": 60, "accumulate": 1})
    system = train(tmp_path, config).eval()
    rows = read_curve(tmp_path / "out/curve.csv")
    assert rows[-1]["train/camera"] < rows[0]["train/camera"] / 3
    batch = pairs()
    with torch.no_grad():
        error = depth_errors(system(batch.select(system.inputs)), batch, aligned=True)["abs_rel_median"][0]
    constant = depth_errors(flat(batch), batch, aligned=True)["abs_rel_median"][0]
    assert rows[-1]["val/abs_rel_median"] == pytest.approx(error, rel=1e-4)
    assert error < constant / 2


def flat(batch: Batch) -> Prediction:
    return Prediction(depth=torch.ones_like(batch.depth[:, :1]))


def test_every_parameter_has_a_group_and_the_curve_their_norms(alone: Path) -> None:
    groups = clip_groups(System(Config(preset="tiny")), GROUPS, name="vggt")
    assert all(groups.values())
    rows = read_curve(alone / "out/curve.csv")
    assert {f"train/grad_norm_{key}" for key in GROUPS} <= set(rows[0])
    assert [row["step"] for row in rows if "val/abs_rel_median" in row] == [3, 6]
    assert all("val/abs_rel" not in row for row in rows)


def test_interrupted_and_resumed_it_is_the_same_run(alone: Path, tmp_path: Path) -> None:
    # Two of the first five loads are a validation's: the fourth step is interrupted.
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, feed=PairFeed(fatal=6))
    assert (tmp_path / "scratch/checkpoint.pt").is_file()
    train(tmp_path)
    assert (tmp_path / "out/model.pt").read_bytes() == (alone / "out/model.pt").read_bytes()


def test_fine_tuning_leaves_the_aggregator_as_it_was(alone: Path, tmp_path: Path) -> None:
    start = parameters(alone)
    config = CONFIG.model_copy(update={"init_from": alone / "out/model.pt", "steps": 3})
    for frozen, resting in ((None, True), ((), False)):
        folder = tmp_path / str(resting)
        system = train(folder, config, frozen=frozen)
        changed = {name.split(".")[0] for name, x in system.state_dict().items() if not torch.equal(x, start[name])}
        assert changed == {"camera_head", "depth_head"} | (set() if resting else {"aggregator"})
        norms = {name for name in read_curve(folder / "out/curve.csv")[0] if name.startswith("train/grad_norm_")}
        assert ("train/grad_norm_aggregator" in norms) is not resting


def test_two_processes_give_the_weights_of_one(alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    sources = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    env = os.environ | {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, value in parameters(alone).items():
        torch.testing.assert_close(parameters(tmp_path)[name], value, rtol=1e-3, atol=2e-4)
    for row, expected in zip(*(read_curve(f / "out/curve.csv") for f in (tmp_path, alone)), strict=True):
        assert row["train/rotation"] == pytest.approx(expected["train/rotation"], rel=0.01)


if __name__ == "__main__":
    train(Path(sys.argv[1]), CONFIG.model_copy(update={"accumulate": 1}))
