"""Scores of predicted cameras against the canonical ones: a row for each sample, and a summary over all pairs of a suite.

Angles need neither scale nor alignment. Unlike depth, which is averaged by scene, all pairs of a suite count alike, as the
literature has it; a sample's own row is over its own pairs.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from plumbline.camera_metrics import CAMERA_METRICS, HEADLINES, camera_errors, focal_error, summary
from plumbline.data.canonical import read_scene
from plumbline.errors import DataError
from plumbline.records import Scene
from plumbline.stored import Predictions, StoredSample

_KEYS = ("sample", "scene", "views")


@dataclass(frozen=True)
class CameraRow:
    """One sample's camera metrics: medians over its pairs (views for focal lengths), means for the areas under the curve."""

    sample: int
    scene: str
    views: str
    values: Mapping[str, float]


def score_cameras(stored: Predictions, folder: Path) -> tuple[list[CameraRow], dict[str, dict[str, float]]]:
    """The row of every sample, and `camera_metrics.summary` of the suite; nothing for a method without cameras.

    `folder` holds the canonical scenes of the data set. DataError for a scene without true poses.
    """
    if stored.cameras is None:
        return [], {}
    where = f"{stored.about.method} {stored.about.suite}"
    scenes: dict[str, Scene] = {}
    rows, errors, focal = [], [], []
    for index, sample in enumerate(stored.samples):
        if sample.scene not in scenes:
            scenes[sample.scene] = read_scene(folder / sample.scene)
        scene, views = scenes[sample.scene], list(sample.given)
        own = camera_errors(stored.cameras.cam0_T_cam[index], _true_poses(scene, sample, where))
        lengths = [] if stored.cameras.K is None else [focal_error(stored.cameras.K[index], scene.K[views])]
        found = summary([own], lengths, where=f"{where} {sample.label}")
        values = {name: row[HEADLINES[name]] for name, row in found.items()}
        rows.append(CameraRow(index, sample.scene, "+".join(sample.given_names), values))
        errors.append(own)
        focal += lengths
    return rows, summary(errors, focal, where=where)


def headlines(cameras: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The one number for each metric of a suite's summary: medians of errors, means of areas."""
    return {name: row[HEADLINES[name]] for name, row in cameras.items()}


def write_camera_rows(path: Path, rows: Sequence[CameraRow]) -> None:
    """Write `<suite>_cameras.csv`; a metric that a sample has not stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_KEYS, *CAMERA_METRICS])
    for row in rows:
        numbers = [f"{row.values[name]:.9g}" if name in row.values else "" for name in CAMERA_METRICS]
        writer.writerow([row.sample, row.scene, row.views, *numbers])
    path.write_text(text.getvalue(), encoding="utf-8")


def read_camera_rows(path: Path) -> list[CameraRow]:
    """Read back `<suite>_cameras.csv`; [] where there is none, for most methods predict no cameras."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        records = list(csv.DictReader(stream))
    return [
        CameraRow(
            int(r["sample"]), r["scene"], r["views"], {name: float(r[name]) for name in CAMERA_METRICS if r[name]}
        )
        for r in records
    ]


def _true_poses(scene: Scene, sample: StoredSample, where: str) -> Float64[np.ndarray, "v 4 4"]:
    if scene.world_T_cam is None:
        raise DataError(
            f"{where}: {scene.dataset}/{sample.scene} has no true poses, so predicted cameras cannot be evaluated on it. "
            "Leave the method out of this suite: suites.<name>.methods."
        )
    return scene.world_T_cam[list(sample.given)]
