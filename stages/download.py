"""Raw files, fetched or generated, and verified: data/raw/<dataset>.json lists them; the files are no DVC output."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.download import fetch
from plumbline.data.manifest import write_manifest
from plumbline.stage import raw_root, run


def main(dataset: str) -> None:
    """Bring the raw files of `dataset` to this machine."""
    config = section(load_params(), f"datasets.{dataset}", DatasetConfig)
    manifest = fetch(dataset, config.source, root=raw_root())
    write_manifest(Path("data/raw") / f"{dataset}.json", manifest)


if __name__ == "__main__":
    run(main)
