"""Fit one system: runs/train/<system>. Many GPUs: torchrun --nproc-per-node N stages/train.py <system>."""

from pathlib import Path

import torch

from plumbline import systems
from plumbline.config import DatasetConfig, SuiteConfig, load_params, section, sections, value
from plumbline.prediction import open_suite, training_feed
from plumbline.stage import record, run
from plumbline.training import TrainConfig, fit


def main(system: str) -> None:
    """Train `system` on the suites that train.<system> names."""
    params = load_params()
    config, own = section(params, f"train.{system}", TrainConfig), value(params, f"systems.{system}")
    torch.manual_seed(params["seed"])
    model, out = systems.build(system, own), Path("runs/train") / system
    datasets, suites = sections(params, "datasets", DatasetConfig), sections(params, "suites", SuiteConfig)
    initial = Path("predictions") / own["initial"] if "initial" in own else None
    feeds = []
    for name in (config.train_suite, config.val_suite):
        dataset = suites[name].dataset
        suite = open_suite(name, suites[name], dataset=datasets[dataset], folder=Path("data/scenes") / dataset)
        feeds.append(training_feed(suite, initial))
    summary = fit(model, *feeds, config, name=system, lr=params["lr"], seed=params["seed"], params=own, out=out)
    if summary:
        logged = {"lr": params["lr"], "seed": params["seed"], "train": params["train"][system], "system": own}
        files = {"curve": out / "curve.csv", "artifacts": [out / "summary.json"]}
        tags = {"dataset": suites[config.train_suite].dataset}
        record("train", system, params, params=logged, metrics={"val/abs_rel": summary["best"]}, tags=tags, **files)


if __name__ == "__main__":
    run(main)
