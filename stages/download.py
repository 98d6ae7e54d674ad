"""Raw files, fetched or generated, and verified: data/raw/<dataset>.json lists them; the files are no DVC output."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.download import fetch
from plumbline.data.manifest import write_manifest
from plumbline.stage import raw_root, record, run


def main(dataset: str) -> None:
    """Bring the raw files of `dataset` to this machine."""
    params = load_params()
    config = section(params, f"datasets.{dataset}", DatasetConfig)
    manifest = fetch(dataset, config.source, root=raw_root())
    write_manifest(Path("data/raw") / f"{dataset}.json", manifest)
    size = sum(file.size for file in manifest.files)
    record("download", dataset, params, params=manifest.source, metrics={"files": len(manifest.files), "bytes": size})


if __name__ == "__main__":
    run(main)
