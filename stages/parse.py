"""Raw files to canonical scenes: data/scenes/<dataset>."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.manifest import read_manifest, verify
from plumbline.data.parse import parse_dataset
from plumbline.data.sources import raw_folder
from plumbline.files import sha256_file
from plumbline.stage import raw_root, record, run, scratch_root


def main(dataset: str) -> None:
    """Write the canonical scenes of `dataset`."""
    params = load_params()
    config = section(params, f"datasets.{dataset}", DatasetConfig)
    listed, out = Path("data/raw") / f"{dataset}.json", Path("data/scenes") / dataset
    raw = raw_folder(dataset, config.source, root=raw_root())
    verify(read_manifest(listed), raw)
    scenes = parse_dataset(dataset, config, raw=raw, identity=sha256_file(listed), out=out, scratch=scratch_root())
    record("parse", dataset, params, params=params["datasets"][dataset], metrics={"scenes": len(scenes)})


if __name__ == "__main__":
    run(main)
