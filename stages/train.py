"""Fit one system: runs/train/<system>. Many GPUs: torchrun --nproc-per-node N stages/train.py <system>."""

from pathlib import Path

import torch

from plumbline import systems
from plumbline.config import DatasetConfig, SuiteConfig, load_params, section, sections, value
from plumbline.feed import JoinedFeed
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
    labels = Path("data/pseudo_labels") if getattr(model, "labels", None) else None
    named = (*config.train_suites, config.val_suite)
    opened = {name: open_suite(name, suites[name], datasets=datasets, scenes=Path("data/scenes")) for name in named}
    feed = JoinedFeed([training_feed(opened[name], initial, labels) for name in config.train_suites])
    val_feed = training_feed(opened[config.val_suite], initial, labels)
    summary = fit(model, feed, val_feed, config, name=system, lr=params["lr"], seed=params["seed"], params=own, out=out)
    if summary:
        logged = {"lr": params["lr"], "seed": params["seed"], "train": params["train"][system], "system": own}
        files = {"curve": out / "curve.csv", "artifacts": [out / "summary.json"]}
        tags = {"dataset": ", ".join(sorted({suites[name].dataset for name in config.train_suites}))}
        found = {f"val/{summary['select']}": summary["best"]}
        record("train", system, params, params=logged, metrics=found, tags=tags, **files)


if __name__ == "__main__":
    run(main)
