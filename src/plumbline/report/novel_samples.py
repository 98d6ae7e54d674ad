"""Rendered views in pictures: the best, median and worst sample of a system beside other methods, and its orbit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from plumbline.config import SuiteConfig
from plumbline.data.canonical import read_scene
from plumbline.records import Scene
from plumbline.report.chosen import Tile, places
from plumbline.report.novel import views_file
from plumbline.report.numbers import Number, pointer
from plumbline.report.pictures import colour_map, movie, picture
from plumbline.stored import Predictions, StoredSample, read_predictions, shown_sample
from plumbline.view_scores import ViewRow, read_view_rows

RULE = "highest, middle and lowest PSNR of the system over the samples of the suite; of equals, the first"
# Shown beside a system, where they render: what it must beat by more than a trifle.
BESIDE = ("nearest_view", "warped_view")


@dataclass(frozen=True)
class ViewChosen:
    """A sample with its pictures, in rows. `where` names the shown view and the given ones, `numbers` has its PSNR by method.

    `error_limits` (of a colour's full range) and `depth_limits` (metres, None without depth) are the scales that tiles share.
    """

    rank: str
    where: str
    ours: Number
    numbers: tuple[tuple[str, Number], ...]
    rows: tuple[tuple[Tile, ...], ...]
    error_limits: tuple[str, str]
    depth_limits: tuple[str, str] | None

    @property
    def columns(self) -> int:
        """Tiles of the longest row, as many as a wide page has place for."""
        return min(7, max(map(len, self.rows)))


@dataclass(frozen=True)
class Orbit:
    """A film of a system's Gaussians as a data URI, and the sample that they are of."""

    image: str
    where: str


@dataclass(frozen=True)
class _Target:
    """The view that is shown: its sample, the truth, and what methods rendered, by method."""

    sample: StoredSample
    truth: UInt8[np.ndarray, "h w 3"]
    rendered: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    depth: Mapping[str, Float32[np.ndarray, "h w"]]


def choose_views(
    root: Path, system: str, suite_name: str, suite: SuiteConfig, beside: Sequence[str]
) -> list[ViewChosen]:
    """The pictures of the best, median and worst sample; [] where the system renders nothing. Of a sample, its first target.

    `beside` are the methods whose renderings stand beside the system's.
    """
    methods = [*beside, system]
    rows = {method: read_view_rows(root / views_file(method, suite_name)) for method in methods}
    stored = {method: read_predictions(root / "predictions" / method / suite_name) for method in methods}
    return [
        _chosen(root / "data/scenes" / suite.dataset, label, sample, stored, rows)
        for label, sample in rank_views(rows[system])
    ]


def rank_views(rows: Sequence[ViewRow]) -> list[tuple[str, int]]:
    """Return ("best" | "median" | "worst", sample) by the mean PSNR of a sample's targets, highest first."""
    of_sample: dict[int, list[float]] = {}
    for row in rows:
        of_sample.setdefault(row.sample, []).append(row.values["psnr"])
    ordered = sorted(of_sample, key=lambda sample: (-float(np.mean(of_sample[sample])), sample))
    return [(name, ordered[place]) for name, place in places(len(ordered)).items()]


def read_orbit(root: Path, system: str, suite: str) -> Orbit | None:
    """The orbit that was written beside the predictions, of the sample that stands for the suite; None where there is none."""
    folder = root / "predictions" / system / suite
    if not (folder / "orbit.gif").is_file():
        return None
    samples = read_predictions(folder).samples
    shown = samples[shown_sample(len(samples))]
    return Orbit(movie(folder / "orbit.gif"), f"{shown.scene} from {'+'.join(shown.given_names)}")


def _chosen(
    folder: Path,
    label: str,
    index: int,
    stored: Mapping[str, Predictions],
    rows: Mapping[str, Sequence[ViewRow]],
) -> ViewChosen:
    system = list(stored)[-1]
    sample = stored[system].samples[index]
    scene = read_scene(folder / sample.scene)
    shown = _target(scene, sample, index, stored)
    first = {method: [row for row in found if row.sample == index] for method, found in rows.items()}
    suite = stored[system].about.suite
    numbers = [(method, _psnr(method, suite, found[:1])) for method, found in first.items()]
    errors, error_limits = _errors(shown)
    depths, depth_limits = _depths(scene, shown)
    given = [Tile("given view", picture(np.asarray(scene.images[view])), is_photo=True) for view in sample.given]
    views = [Tile(f"rendered: {method}", picture(image), is_photo=True) for method, image in shown.rendered.items()]
    return ViewChosen(
        rank=label,
        where=f"{sample.scene}/{sample.target_names[0]} from {'+'.join(sample.given_names)}",
        ours=_psnr(system, suite, first[system]),
        numbers=tuple(numbers),
        rows=((*given, Tile("truth", picture(shown.truth), is_photo=True), *views), (*depths, *errors)),
        error_limits=error_limits,
        depth_limits=depth_limits,
    )


def _psnr(method: str, suite: str, rows: Sequence[ViewRow]) -> Number:
    """The mean PSNR of some targets of a sample."""
    file = views_file(method, suite)
    sources = [pointer(file, str(row.sample), row.target, "psnr") for row in rows]
    mean = float(np.mean([row.values["psnr"] for row in rows]))
    return Number(mean, " ".join(sources), ".2f", "value" if len(rows) == 1 else "mean")


def _target(scene: Scene, sample: StoredSample, index: int, stored: Mapping[str, Predictions]) -> _Target:
    rendered, depth = {}, {}
    for method, predictions in stored.items():
        if predictions.rendered is None:
            raise ValueError(f"{method} was scored, so it has rendered views")
        rendered[method] = np.asarray(predictions.rendered[index, 0])
        if predictions.rendered_depth is not None:
            depth[method] = np.asarray(predictions.rendered_depth[index, 0])
    return _Target(sample, np.asarray(scene.images[sample.targets[0]]), rendered, depth)


def _errors(shown: _Target) -> tuple[list[Tile], tuple[str, str]]:
    """Mean absolute difference over the channels, on one scale up to the worst method's 95th percentile."""
    truth = shown.truth.astype(np.float32)
    errors = {m: np.abs(image.astype(np.float32) - truth).mean(axis=2) / 255 for m, image in shown.rendered.items()}
    top = max(1e-3, *(float(np.percentile(error, 95)) for error in errors.values()))
    everywhere = np.ones(truth.shape[:2], np.bool_)
    tiles = [
        Tile(f"error: {method}", colour_map(error, everywhere, (0.0, top), "error")) for method, error in errors.items()
    ]
    return tiles, ("0", f"{top:.2g} of the full range")


def _depths(scene: Scene, shown: _Target) -> tuple[list[Tile], tuple[str, str] | None]:
    """Rendered depth and, where it is measured, the true one, on one scale."""
    if not shown.depth:
        return [], None
    truth = None if scene.depth is None else np.asarray(scene.depth[shown.sample.targets[0]])
    # the truth, where there is any, decides the scale
    maps = {} if truth is None else {"true depth": truth}
    maps |= {f"rendered depth: {method}": depth for method, depth in shown.depth.items()}
    known = [depth[depth > 0] for depth in maps.values() if (depth > 0).any()]
    if not known:
        return [], None
    low, high = (float(value) for value in np.percentile(known[0], (1, 99)))
    tiles = [Tile(title, colour_map(depth, depth > 0, (low, high), "depth")) for title, depth in maps.items()]
    return tiles, (f"{low:.3g} m", f"{high:.3g} m")
