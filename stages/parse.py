"""Raw files to canonical scenes: data/scenes/<dataset>."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.manifest import read_manifest, verify
from plumbline.data.parse import parse_dataset
from plumbline.data.sources import raw_folder
from plumbline.files import sha256_file
from plumbline.stage import raw_root, run, scratch_root


def main(dataset: str) -> None:
    """Write the canonical scenes of `dataset`."""
    config = section(load_params(), f"datasets.{dataset}", DatasetConfig)
    listed = Path("data/raw") / f"{dataset}.json"
    raw = raw_folder(dataset, config.source, root=raw_root())
    verify(read_manifest(listed), raw)
    out = Path("data/scenes") / dataset
    parse_dataset(dataset, config, raw=raw, identity=sha256_file(listed), out=out, scratch=scratch_root())


if __name__ == "__main__":
    run(main)
