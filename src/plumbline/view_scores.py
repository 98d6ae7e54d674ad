"""Scores of rendered views against what was seen: a row for each target view, and means of a suite.

Means are taken over the targets of a sample, then over the samples of a scene, then over scenes, as those of depth are.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from plumbline.data.canonical import read_scene
from plumbline.errors import DataError
from plumbline.image_metrics import VIEW_METRICS, psnr, ssim
from plumbline.records import Scene
from plumbline.stored import Predictions, StoredSample

Picture = UInt8[np.ndarray, "h w 3"]
# LPIPS of a rendered picture and what was seen; it takes weights that the user brings.
Distance = Callable[[Picture, Picture], float]
_KEYS = ("sample", "scene", "views", "target")


@dataclass(frozen=True)
class ViewRow:
    """The metrics of one rendered view; `lpips` only where it is measured."""

    sample: int
    scene: str
    views: str
    target: str
    values: Mapping[str, float]


def score_views(stored: Predictions, folder: Path, distance: Distance | None = None) -> list[ViewRow]:
    """A row for every target view of every sample, in their order; [] for a method that renders nothing.

    `folder` holds the canonical scenes of the data set. DataError where pictures have another size than the scene's.
    """
    if stored.rendered is None:
        return []
    scenes: dict[str, Scene] = {}
    rows = []
    for index, sample in enumerate(stored.samples):
        if sample.scene not in scenes:
            scenes[sample.scene] = read_scene(folder / sample.scene)
        for place, (view, name) in enumerate(zip(sample.targets, sample.target_names, strict=True)):
            rendered = np.asarray(stored.rendered[index, place])
            seen = _seen(scenes[sample.scene], view, rendered, stored, sample)
            given = "+".join(sample.given_names)
            rows.append(ViewRow(index, sample.scene, given, name, measure_view(rendered, seen, distance)))
    return rows


def measure_view(rendered: Picture, seen: Picture, distance: Distance | None = None) -> dict[str, float]:
    """`VIEW_METRICS` of one picture; `lpips` where there is a `distance`."""
    values = {"psnr": psnr(rendered, seen), "ssim": ssim(rendered, seen)}
    return values if distance is None else {**values, "lpips": distance(rendered, seen)}


def scene_means(rows: Sequence[ViewRow]) -> dict[str, dict[str, float]]:
    """Return {scene: {metric: mean}}, over the targets of a sample, then over the scene's samples."""
    targets: dict[str, dict[int, list[Mapping[str, float]]]] = defaultdict(dict)
    for row in rows:
        targets[row.scene].setdefault(row.sample, []).append(row.values)
    return {
        scene: {name: float(np.mean([_mean(name, views) for views in samples.values()])) for name in rows[0].values}
        for scene, samples in targets.items()
    }


def write_view_rows(path: Path, rows: Sequence[ViewRow]) -> None:
    """Write `<suite>_views.csv`; a metric that is not measured stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_KEYS, *VIEW_METRICS])
    for row in rows:
        numbers = [f"{row.values[name]:.9g}" if name in row.values else "" for name in VIEW_METRICS]
        writer.writerow([row.sample, row.scene, row.views, row.target, *numbers])
    path.write_text(text.getvalue(), encoding="utf-8")


def read_view_rows(path: Path) -> list[ViewRow]:
    """Read back `<suite>_views.csv`; [] where there is none, for most methods render nothing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        records = list(csv.DictReader(stream))
    return [
        ViewRow(
            int(r["sample"]),
            r["scene"],
            r["views"],
            r["target"],
            {name: float(r[name]) for name in VIEW_METRICS if r[name]},
        )
        for r in records
    ]


def _mean(name: str, views: Sequence[Mapping[str, float]]) -> float:
    return float(np.mean([values[name] for values in views]))


def _seen(scene: Scene, view: int, rendered: Picture, stored: Predictions, sample: StoredSample) -> Picture:
    seen = np.asarray(scene.images[view])
    if seen.shape != rendered.shape:
        raise DataError(
            f"{stored.about.method} {stored.about.suite} {sample.label}: rendered views are {rendered.shape[:2]}, the scene's "
            f"{seen.shape[:2]}. Predict again."
        )
    return seen
