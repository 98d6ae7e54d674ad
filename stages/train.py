"""Fit one system: runs/train/<system>. Many GPUs: torchrun --nproc-per-node N stages/train.py <system>."""

from pathlib import Path

import torch

from plumbline import systems
from plumbline.config import load_params, section, value
from plumbline.prediction import open_feed
from plumbline.stage import record, run
from plumbline.training import TrainConfig, fit


def main(system: str) -> None:
    """Train `system` on the suites that train.<system> names."""
    params = load_params()
    config, own = section(params, f"train.{system}", TrainConfig), value(params, f"systems.{system}")
    torch.manual_seed(params["seed"])
    model, out = systems.build(system, own), Path("runs/train") / system
    feeds = [open_feed(params, suite, initial=own.get("initial")) for suite in (config.train_suite, config.val_suite)]
    summary = fit(model, *feeds, config, name=system, lr=params["lr"], seed=params["seed"], params=own, out=out)
    if summary:
        logged = {"lr": params["lr"], "seed": params["seed"], "train": params["train"][system], "system": own}
        record("train", system, params, params=logged, curve=out / "curve.csv", artifacts=[out / "summary.json"])


if __name__ == "__main__":
    run(main)
