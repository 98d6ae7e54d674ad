"""Is the geometry true? Numbers, pictures and a verdict for each scene: data/checks/<dataset>; fails when one is wrong."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.checks import CheckConfig, check_dataset
from plumbline.data.sources import raw_folder
from plumbline.stage import raw_root, record, run


def main(dataset: str) -> None:
    """Check every canonical scene of `dataset`."""
    params = load_params()
    config = section(params, f"datasets.{dataset}", DatasetConfig)
    raw = raw_folder(dataset, config.source, root=raw_root())
    checks, out = section(params, "checks", CheckConfig), Path("data/checks") / dataset
    found = check_dataset(Path("data/scenes") / dataset, checks, out=out, dataset=config, raw=raw)
    errors = {f"median_error/{s.scene}": s.as_read.error for s in found.scenes if s.as_read is not None}
    record("check_data", dataset, params, metrics=errors, artifacts=sorted(out.rglob("*.png")))


if __name__ == "__main__":
    run(main)
