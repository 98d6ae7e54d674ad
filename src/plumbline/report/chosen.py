"""The system's best, median and worst sample of a suite, by a fixed rule, as pictures on one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from plumbline.alignment import align
from plumbline.camera_scores import read_camera_rows
from plumbline.config import SuiteConfig
from plumbline.data.canonical import read_scene
from plumbline.evaluation import REGION, Scored, read_rows
from plumbline.metrics import valid_mask
from plumbline.report.numbers import Number
from plumbline.report.pictures import colour_map, picture
from plumbline.report.results import CAMERA_COLUMNS
from plumbline.stored import Predictions, read_predictions

RULE = "lowest, middle and highest abs_rel of the system over the samples of the suite; of equals, the first"


@dataclass(frozen=True)
class Tile:
    """One picture with its caption."""

    title: str
    image: str
    is_photo: bool = False


@dataclass(frozen=True)
class Chosen:
    """A sample with its pictures. `depth_limits` (metres) and `error_limits` are the scales all its tiles share.

    `cameras` holds what the system's predicted cameras are off by: (what, number); empty without predicted cameras.
    """

    rank: str
    where: str
    ours: Number
    initial: Number | None
    cameras: tuple[tuple[str, Number], ...]
    tiles: tuple[Tile, ...]
    depth_limits: tuple[str, str]
    error_limits: tuple[str, str]


@dataclass(frozen=True)
class _Maps:
    """Depth maps by title (metres), the truth, and where it counts."""

    predicted: Mapping[str, Float32[np.ndarray, "h w"]]
    truth: Float32[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]


def choose(root: Path, system: str, suite_name: str, suite: SuiteConfig, *, alignment: str = "none") -> list[Chosen]:
    """Return the pictures of the best, median and worst sample; [] where the system compares nothing.

    Depth is shown under `alignment`, which the samples are ranked by as well.
    """
    stored = read_predictions(root / "predictions" / system / suite_name)
    start = stored.about.notes.get("initial depth")
    initial = None if start is None else read_predictions(root / "predictions" / start / suite_name)
    scored = _headline_rows(root, system, suite_name, alignment)
    starts = {} if start is None else {row.sample: row for row in _headline_rows(root, start, suite_name, alignment)}
    picked = rank([row for row in scored if "abs_rel" in row.row.values])
    return [
        _chosen(root, label, row, suite, stored, initial, _number(starts.get(row.sample), start, suite_name))
        for label, row in picked
    ]


def rank(rows: Sequence[Scored]) -> list[tuple[str, Scored]]:
    """Return ("best" | "median" | "worst", row) by abs_rel; fewer when there are fewer than three rows."""
    ordered = sorted(rows, key=lambda scored: (scored.row.values["abs_rel"], scored.sample))
    return [(name, ordered[place]) for name, place in places(len(ordered)).items()]


def places(count: int) -> dict[str, int]:
    """Where best, median and worst stand among `count` rows in order, best first; fewer with fewer than three rows."""
    last = count - 1
    if last > 1:
        return {"best": 0, "median": last // 2, "worst": last}
    return {"best": 0, "worst": 1} if last == 1 else {"only": 0} if count else {}


def _headline_rows(root: Path, method: str, suite: str, alignment: str) -> list[Scored]:
    path = root / "scores" / method / f"{suite}.csv"
    if not path.is_file():
        return []
    return [row for row in read_rows(path) if (row.region, row.alignment) == (REGION, alignment)]


def _number(row: Scored | None, method: str | None, suite: str) -> Number | None:
    if row is None or "abs_rel" not in row.row.values:
        return None
    return Number(
        row.row.values["abs_rel"], f"scores/{method}/{suite}.csv#{row.sample}/{REGION}/{row.alignment}/abs_rel"
    )


def _camera_numbers(root: Path, row: Scored, stored: Predictions) -> tuple[tuple[str, Number], ...]:
    """The angles and the focal error of the sample; a single pair has no curve to take an area of."""
    file = f"scores/{stored.about.method}/{stored.about.suite}_cameras.csv"
    values = next((found.values for found in read_camera_rows(root / file) if found.sample == row.sample), {})
    names = {name: column for name, column in CAMERA_COLUMNS.items() if name in values and not name.startswith("auc")}
    return tuple(
        (label, Number(values[name], f"{file}#{row.sample}/{name}", spec)) for name, (label, spec) in names.items()
    )


def _chosen(
    root: Path,
    label: str,
    row: Scored,
    suite: SuiteConfig,
    stored: Predictions,
    initial: Predictions | None,
    start: Number | None,
) -> Chosen:
    sample = stored.samples[row.sample]
    scene = read_scene(root / "data/scenes" / suite.dataset / sample.scene)
    if scene.depth is None:
        raise ValueError(f"{sample.scene} was scored, so it has a truth")
    view = sample.views[0]
    truth = np.asarray(scene.depth[view])
    mask = None if scene.mask is None else np.asarray(scene.mask[view])
    valid = valid_mask(truth, mask=mask, depth_min=suite.depth_min, depth_max=suite.depth_max)
    maps = {} if initial is None else {f"initial ({initial.about.method})": np.asarray(initial.maps[row.sample, 0])}
    maps[stored.about.method] = np.asarray(stored.maps[row.sample, 0])
    predicted = {
        name: align(depth[None], truth[None], valid[None], row.alignment, floor=suite.depth_min)[0]
        for name, depth in maps.items()
    }
    tiles, depth_limits, error_limits = _tiles(_Maps(predicted, truth, valid))
    ours = _number(row, stored.about.method, stored.about.suite)
    if ours is None:
        raise ValueError("only rows with abs_rel are chosen")
    photographs = [Tile("reference image", picture(np.asarray(scene.images[view])), is_photo=True)]
    if stored.cameras is not None:
        others = (picture(np.asarray(scene.images[other])) for other in sample.views[1:])
        photographs += [Tile("source image", image, is_photo=True) for image in others]
    shown = (*photographs, *tiles)
    cameras = _camera_numbers(root, row, stored)
    return Chosen(label, sample.label, ours, start, cameras, shown, depth_limits, error_limits)


def _tiles(maps: _Maps) -> tuple[list[Tile], tuple[str, str], tuple[str, str]]:
    low, high = (float(value) for value in np.percentile(maps.truth[maps.valid], (1, 99)))
    errors = {name: _relative_error(depth, maps) for name, depth in maps.predicted.items()}
    compared = {name: maps.valid & (depth > 0) for name, depth in maps.predicted.items()}
    tops = [float(np.percentile(error[compared[name]], 95)) for name, error in errors.items() if compared[name].any()]
    top = max(1e-3, *tops)
    tiles = [
        Tile(f"depth: {name}", colour_map(depth, depth > 0, (low, high), "depth"))
        for name, depth in maps.predicted.items()
    ]
    tiles.append(Tile("depth: truth", colour_map(maps.truth, maps.valid, (low, high), "depth")))
    tiles += [
        Tile(f"error: {name}", colour_map(error, compared[name], (0.0, top), "error")) for name, error in errors.items()
    ]
    return tiles, (f"{low:.3g} m", f"{high:.3g} m"), ("0", f"{top:.2g} of the depth")


def _relative_error(depth: Float32[np.ndarray, "h w"], maps: _Maps) -> Float32[np.ndarray, "h w"]:
    return np.abs(depth - maps.truth) / np.where(maps.valid, maps.truth, 1).astype(np.float32)
