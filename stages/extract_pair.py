"""One sample of a parsed data set for one system's overfit gate: data/pair/<system>."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.pair import PairConfig, extract_pair, facts
from plumbline.stage import record, run


def main(system: str) -> None:
    """Extract the sample that pair.<system> chooses, read it back, and say what it holds."""
    params = load_params()
    config = section(params, f"pair.{system}", PairConfig)
    datasets = {config.dataset: section(params, f"datasets.{config.dataset}", DatasetConfig)}
    pair = extract_pair(config, datasets=datasets, scenes=Path("data/scenes"), out=Path("data/pair") / system)
    views = facts(pair)
    for view, role in zip(views, pair.roles, strict=True):
        print(f"{config.dataset}/{pair.scene.name} {view.name} ({role}): {view}")
    shares = {f"pair/valid_share/{number}": view.share for number, view in enumerate(views)}
    own = params["pair"][system]
    record("extract_pair", system, params, params=own, metrics=shares, tags={"dataset": config.dataset})


if __name__ == "__main__":
    run(main)
