"""Keypoint labels for the images that are trained on, once: data/pseudo_labels/<dataset>."""

from pathlib import Path

from plumbline.config import DatasetConfig, load_params, section
from plumbline.data.pseudo_labels import Labeller, PseudoLabelConfig, TeacherFile, write_labels
from plumbline.process import dvc_root
from plumbline.stage import record, run, scratch_root


def main(dataset: str) -> None:
    """Label the training and validation scenes of `dataset`."""
    params = load_params()
    source = section(params, f"datasets.{dataset}", DatasetConfig)
    config = section(params, "pseudo_labels", PseudoLabelConfig)
    teacher = None if config.teacher is None else load(config.teacher)
    found = write_labels(
        dataset,
        source,
        config,
        scenes=Path("data/scenes") / dataset,
        out=Path("data/pseudo_labels") / dataset,
        scratch=scratch_root(),
        teacher=teacher,
    )
    metrics = {f"keypoints_per_image/{scene}": count for scene, count in found.items()}
    record("pseudo_labels", dataset, params, params=params["pseudo_labels"] or {}, metrics=metrics)


def load(file: TeacherFile) -> Labeller:
    """The teacher network as a function; torch is imported only for it."""
    from plumbline.systems.superpoint import load_teacher

    return load_teacher(dvc_root() / file.path, sha256=file.sha256)


if __name__ == "__main__":
    run(main)
