"""Scores from files: `predictions/<method>` against the canonical truth, written to `scores/<method>`.

Protocol: view 0 of every sample, in suites with target views all views that were predicted, of which a sample's row has the
mean; truth inside the suite's caps and the data set's mask; three alignments, of which `none` is the
headline, but `median` for a method that does not know the scale, for which `none` is not measured; metrics per sample, mean
over the samples of a scene, then mean over scenes, so that long scenes weigh no more than short ones (to repeat published
figures: DELTAS' means of batches); 95 % interval by bootstrap over scenes. Region `all` is every valid pixel; region `common`
keeps the pixels on which a reference method (the classical baseline) speaks, so that a method that abstains is compared on
equal ground. Predicted cameras and rendered views are scored beside (`plumbline.camera_scores`, `plumbline.view_scores`).
"""

import csv
import io
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from plumbline.alignment import ALIGNMENTS, align
from plumbline.camera_scores import headlines, score_cameras, write_camera_rows
from plumbline.config import SuiteConfig
from plumbline.data.canonical import read_scene
from plumbline.errors import DataError
from plumbline.files import atomic_folder, read_json, write_json
from plumbline.image_metrics import VIEW_METRICS
from plumbline.metrics import ERRORS, MEDIAN, METRICS, Row, ause, check_values, measure, sparsification, valid_mask
from plumbline.records import Scene
from plumbline.stored import About, Predictions, StoredSample, read_cost, read_predictions, suite_fingerprint
from plumbline.view_scores import Distance, ViewRow, score_views, write_view_rows
from plumbline.view_scores import scene_means as view_means

COLUMNS = (*METRICS, "ause")
REGION = "all"
# In metrics.json, beside the suites: what the overfit gates measured.
OVERFIT = "overfit"
_KEYS = ("sample", "scene", "views", "region", "alignment", "valid", "compared")
_BLOCK = 32
_CURVE_STEPS = 50
_NO_LPIPS = (
    "lpips of rendered views is not measured: it needs weights that do not come with this project (evaluation.lpips)."
)
_log = logging.getLogger("plumbline")


@dataclass(frozen=True)
class Scored:
    """The row of one sample for one region (all or common) and one alignment."""

    sample: int
    scene: str
    views: str
    region: str
    alignment: str
    row: Row


@dataclass(frozen=True)
class Interval:
    """A mean over scenes with its 95 % bootstrap interval; no interval (None) with fewer than two scenes."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Block:
    """One predicted view of samples, its maps in memory: prediction, truth, valid pixels, and those of the common region."""

    first: int
    samples: Sequence[StoredSample]
    prediction: Float32[np.ndarray, "m h w"]
    truth: Float32[np.ndarray, "m h w"]
    valid: Bool[np.ndarray, "m h w"]
    common: Bool[np.ndarray, "m h w"] | None
    confidence: Float32[np.ndarray, "m h w"] | None


def evaluate(
    method: str,
    *,
    predictions: Path,
    suites: Mapping[str, SuiteConfig],
    scenes: Path,
    out: Path,
    common: Path | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    distance: Distance | None = None,
) -> dict[str, Any]:
    """Write `out` (scores/<method>) whole and return its summary.

    `predictions` is predictions/<method>, `scenes` data/scenes, `common` the predictions of the reference method of the common
    region. Written: `<suite>.csv` (a row for each sample, region and alignment), `<suite>_scenes.csv`, for methods with a
    confidence `<suite>_sparsification.csv`, for those with cameras `<suite>_cameras.csv`, for rendered views `<suite>_views.csv`,
    and `summary.json`; a method without depth, or on scenes without truth, has the last ones only. `distance` measures LPIPS;
    without it there is none.
    With `batch_size` the summary's means of depth are `batch_means`, which have no interval. Raises DataError when predictions
    are missing, belong to another definition of the suite, or give an impossible score.
    """
    cost = read_cost(predictions)
    totals = {"parameters": cost.parameters, "peak_memory_gb": cost.peak_memory_gb}
    summary: dict[str, Any] = {"method": method, **totals, "suites": {}}
    with atomic_folder(out) as temporary:
        for name, suite in suites.items():
            stored = _comparable(_read(predictions / name, suite), scenes / suite.dataset)
            speaks = common is not None and suite.asks(common.name) and stored.depth is not None
            reference = _read(common / name, suite) if common is not None and speaks else None
            rows, curves = _score_suite(stored, reference, suite, scenes / suite.dataset)
            scene_rows = scene_means(rows)
            groups = scene_rows if batch_size is None else batch_means(rows, batch_size=batch_size)
            resamples = bootstrap if batch_size is None else 0
            if stored.depth is not None:
                _write_csv(temporary / f"{name}.csv", _KEYS, [_sample_record(row) for row in rows])
                _write_csv(temporary / f"{name}_scenes.csv", _KEYS[1:2] + _KEYS[3:5], _scene_records(scene_rows))
            if curves:
                _write_curves(temporary / f"{name}_sparsification.csv", curves)
            camera_rows, cameras = score_cameras(stored, scenes / suite.dataset)
            if camera_rows:
                write_camera_rows(temporary / f"{name}_cameras.csv", camera_rows)
            view_rows = score_views(stored, scenes / suite.dataset, distance)
            if view_rows:
                write_view_rows(temporary / f"{name}_views.csv", view_rows)
            summary["suites"][name] = {
                **_summary(stored, reference, suite, rows, groups, bootstrap=resamples, seed=seed),
                "cameras": cameras,
                "views": _view_intervals(view_rows, bootstrap=bootstrap, seed=seed),
                "seconds": cost.seconds[name],
                "diagnostics": _medians(stored.diagnostics),
            }
        write_json(temporary / "summary.json", summary)
    if distance is None and any(scored["views"] for scored in summary["suites"].values()):
        _log.warning(_NO_LPIPS)
    return summary


def scene_means(rows: Sequence[Scored]) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return {(region, alignment): {scene: {metric: mean over its samples}}}, scenes in the order of their samples.

    A metric that no sample of a scene has (nothing to compare) is absent from that scene.
    """
    collected: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = defaultdict(dict)
    for scored in rows:
        values = collected[scored.region, scored.alignment].setdefault(scored.scene, {})
        for name, value in scored.row.values.items():
            values.setdefault(name, []).append(value)
    return {
        key: {scene: {name: float(np.mean(v)) for name, v in values.items()} for scene, values in by_scene.items()}
        for key, by_scene in collected.items()
    }


def batch_means(rows: Sequence[Scored], *, batch_size: int) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return {(region, alignment): {batch: {metric: mean}}}, to be averaged as DELTAS' test script does (ECCV 2020).

    Batches are of consecutive samples. A sample without truth adds 0 to the errors and counts as one (a fault of that
    script, kept so that its figures are met); one on which the method abstains everywhere, which that script does not know,
    counts in coverage alone. A short last batch weighs as much as a full one.
    """
    batches: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(dict)
    for scored in rows:
        batch = f"batch {scored.sample // batch_size}"
        batches[scored.region, scored.alignment].setdefault(batch, []).append(scored.row)
    return {key: {name: _batch_mean(of) for name, of in by_batch.items()} for key, by_batch in batches.items()}


def _batch_mean(rows: Sequence[Row]) -> dict[str, float]:
    counted = [row for row in rows if row.compared or not row.valid]
    values = {name: [row.values[name] for row in rows if name in row.values] for name in COLUMNS}
    sizes = {name: len(counted) if name in ERRORS else len(found) for name, found in values.items()}
    return {name: float(sum(found)) / sizes[name] for name, found in values.items() if sizes[name]}


def interval(values: Float64[np.ndarray, " s"], *, bootstrap: int = 1000, seed: int = 0) -> Interval:
    """Return the mean over scenes and the 2.5 % and 97.5 % quantiles of `bootstrap` means of scenes drawn with replacement.

    The same `seed` draws the same scenes for every metric and method. No interval when `bootstrap` is 0.
    """
    mean = float(values.mean())
    if len(values) < 2 or not bootstrap:
        return Interval(mean, None, None)
    drawn = np.random.default_rng(seed).integers(0, len(values), (bootstrap, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(mean, float(low), float(high))


def paired(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    metric: str,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the mean of first - second over the scenes both have, with its interval: two methods on the same scenes."""
    shared = [scene for scene in first if metric in first[scene] and metric in second.get(scene, {})]
    if not shared:
        raise DataError(f"the two methods share no scene with a value of {metric}; nothing can be compared.")
    differences = np.array([first[scene][metric] - second[scene][metric] for scene in shared])
    return interval(differences, bootstrap=bootstrap, seed=seed)


def assemble_metrics(scores: Path, methods: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return {suite: {method: {metric: value}}}, region all, from `scores/<method>/summary.json`.

    In a suite in which some method does not know the scale every method also has its metrics under median alignment, with
    `_median` after their names: so they can be compared.
    """
    summaries = {method: read_summary(scores / method)["suites"] for method in methods}
    loose = scale_free(summaries)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for method, suites in summaries.items():
        for suite, summary in suites.items():
            table.setdefault(suite, {})[method] = _flat(summary, aligned=suite in loose)
    return table


def scale_free(summaries: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The suites in which a method predicts depth and does not know its scale; `summaries` are by method and suite."""
    return frozenset(
        suite for suites in summaries.values() for suite, summary in suites.items() if summary["alignment"] == "median"
    )


def tracked_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """`test/<suite>/<method>/<metric>` for the tracking store: region all, names as in metrics.json."""
    return {
        f"test/{suite}/{summary['method']}/{name}": value
        for suite, scored in summary["suites"].items()
        for name, value in _flat(scored, aligned=scored["alignment"] == "median").items()
    }


def headline(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return {suite: {method: abs_rel}}, or abs_rel_median for all methods of a suite in which one has no scale.

    A method that compares nothing in a suite, or predicts cameras alone, is left out there; so is what gates measured.
    """
    found = {}
    for suite, methods in metrics.items():
        name = headline_metric(methods)
        if suite != OVERFIT:
            found[suite] = {method: values[name] for method, values in methods.items() if name in values}
    return found


def headline_metric(methods: Mapping[str, Mapping[str, float]]) -> str:
    """The metric that stands for a suite in headline.json, from its entry in metrics.json."""
    return "abs_rel" + (MEDIAN if any("abs_rel" + MEDIAN in values for values in methods.values()) else "")


def oracles_in(methods: Mapping[str, Mapping[str, float]], oracles: Collection[str]) -> frozenset[str]:
    """Which methods of a suite's entry in metrics.json are oracles: `oracles`, and `constant` where the headline is aligned.

    One depth for all images becomes an image's true median once it is aligned by the median.
    """
    return frozenset(oracles) | ({"constant"} if headline_metric(methods).endswith(MEDIAN) else frozenset())


def _flat(summary: Mapping[str, Any], *, aligned: bool) -> dict[str, float]:
    """Metric by name from a suite's summary: as predicted, aligned by the median where asked for, of cameras, of views."""
    regions = summary["regions"].get(REGION, {})
    plain = {name: values["mean"] for name, values in regions.get("none", {}).items() if name in METRICS}
    median = regions.get("median", {}) if aligned else {}
    found = {f"{name}{MEDIAN}": median[name]["mean"] for name in ERRORS if name in median}
    coverage = {"coverage": median["coverage"]["mean"]} if "coverage" in median else {}
    views = {name: values["mean"] for name, values in summary["views"].items()}
    return {**plain, **found, **coverage, **headlines(summary["cameras"]), **views}


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `scores/<method>/summary.json`; DataError when it is not there."""
    if not (folder / "summary.json").is_file():
        raise DataError(f"{folder}/summary.json: no such file. Evaluate the method first: `dvc repro evaluate`.")
    summary: dict[str, Any] = read_json(folder / "summary.json")
    return summary


def read_rows(path: Path) -> list[Scored]:
    """Read back `scores/<method>/<suite>.csv`."""
    return [_parse_record(record) for record in _records(path)]


def read_scene_means(path: Path, region: str = "all", alignment: str = "none") -> dict[str, dict[str, float]]:
    """Read {scene: {metric: value}} of one region and alignment from `scores/<method>/<suite>_scenes.csv`."""
    chosen = [r for r in _records(path) if (r["region"], r["alignment"]) == (region, alignment)]
    return {record["scene"]: _values(record) for record in chosen}


def read_curve(path: Path) -> Float64[np.ndarray, "k 3"]:
    """Read `scores/<method>/<suite>_sparsification.csv`: share of pixels removed, error left, error left by the oracle."""
    names = ("removed", "error", "oracle")
    return np.array([[float(record[name]) for name in names] for record in _records(path)])


def _read(folder: Path, suite: SuiteConfig) -> Predictions:
    stored = read_predictions(folder)
    if stored.about.suite_fingerprint != suite_fingerprint(suite):
        raise DataError(
            f"{folder} was predicted for another definition of this suite than params.yaml has now. Predict it again."
        )
    return stored


def _comparable(stored: Predictions, folder: Path) -> Predictions:
    """The predictions; without their depth where views were rendered and no scene has truth: then the views alone count."""
    names = {sample.scene for sample in stored.samples}
    if stored.rendered is None or any(read_scene(folder / name).depth is not None for name in names):
        return stored
    notes = {**stored.about.notes, "depth": "not scored: these scenes have no truth"}
    return replace(stored, depth=None, confidence=None, about=replace(stored.about, notes=notes))


def _score_suite(
    stored: Predictions, reference: Predictions | None, suite: SuiteConfig, folder: Path
) -> tuple[list[Scored], dict[str, list[Float64[np.ndarray, "2 k"]]]]:
    """Return the rows of all samples, and each scene's sparsification curves (empty without a confidence, or without depth)."""
    if stored.depth is None:
        return [], {}
    if reference is not None and [s.label for s in reference.samples] != [s.label for s in stored.samples]:
        raise DataError(
            f"{stored.about.method} and {reference.about.method} were predicted for different samples of "
            f"{stored.about.suite}. Predict both again."
        )
    rows: list[Scored] = []
    curves: dict[str, list[Float64[np.ndarray, "2 k"]]] = defaultdict(list)
    for block in _blocks(stored, reference, suite, folder):
        where, kinds = f"{stored.about.method} {stored.about.suite}", _alignments(stored.about)
        rows += _add_uncertainty(_measure_block(block, suite, where, kinds), block, kinds[0], curves)
    return _over_views(rows), dict(curves)


def _over_views(rows: Sequence[Scored]) -> list[Scored]:
    """The rows, those of one sample's views made one: means of what the views have, sums of their pixels."""
    together: dict[tuple[int, str, str], list[Scored]] = {}
    for scored in rows:
        together.setdefault((scored.sample, scored.region, scored.alignment), []).append(scored)
    return [
        of if not others else replace(of, row=_mean_row([of.row, *(o.row for o in others)]))
        for of, *others in together.values()
    ]


def _mean_row(rows: Sequence[Row]) -> Row:
    found = {name: [row.values[name] for row in rows if name in row.values] for name in COLUMNS}
    values = {name: float(np.mean(of)) for name, of in found.items() if of}
    reasons = [row.reason for row in rows if row.reason]
    # A sample is left out only where none of its views can be compared.
    reason = reasons[0] if len(reasons) == len(rows) else ""
    return Row(values, sum(row.valid for row in rows), sum(row.compared for row in rows), reason)


def _blocks(stored: Predictions, reference: Predictions | None, suite: SuiteConfig, folder: Path) -> Iterator[_Block]:
    opened: dict[str, Scene] = {}
    views = stored.maps.shape[1] if stored.samples[0].targets else 1
    for first, view in product(range(0, len(stored.samples), _BLOCK), range(views)):
        rows = slice(first, first + _BLOCK)
        samples = stored.samples[rows]
        for sample in samples:
            if sample.scene not in opened:
                opened[sample.scene] = read_scene(folder / sample.scene)
        truth, mask = _truth(samples, opened, stored, view)
        valid = valid_mask(truth, mask=mask, depth_min=suite.depth_min, depth_max=suite.depth_max)
        yield _Block(
            first,
            samples,
            np.ascontiguousarray(stored.maps[rows, view]),
            truth,
            valid,
            None if reference is None else valid & (reference.maps[rows, view] > 0),
            None if stored.confidence is None else np.ascontiguousarray(stored.confidence[rows, view]),
        )


def _truth(
    samples: Sequence[StoredSample], scenes: Mapping[str, Scene], stored: Predictions, place: int
) -> tuple[Float32[np.ndarray, "m h w"], Bool[np.ndarray, "m h w"] | None]:
    size = stored.maps.shape[2:]
    depth, mask = np.empty((len(samples), *size), np.float32), np.ones((len(samples), *size), np.bool_)
    masked = False
    for index, sample in enumerate(samples):
        scene, view = scenes[sample.scene], sample.given[place]
        if scene.depth is None:
            raise DataError(
                f"{scene.dataset}/{sample.scene} has no truth, so {stored.about.suite} cannot be evaluated on it."
            )
        if scene.depth.shape[1:] != size:
            raise DataError(
                f"{stored.about.method} {sample.label}: prediction is {size}, truth {scene.depth.shape[1:]}. Predict again."
            )
        depth[index] = scene.depth[view]
        if scene.mask is not None:
            mask[index], masked = scene.mask[view], True
    return depth, mask if masked else None


def _alignments(about: About) -> Sequence[str]:
    """The alignments that a method is measured under, the headline first."""
    return ALIGNMENTS if about.metric else ALIGNMENTS[1:]


def _measure_block(block: _Block, suite: SuiteConfig, where: str, kinds: Sequence[str]) -> list[Scored]:
    names = [f"{where} {sample.label}" for sample in block.samples]
    regions = {"all": block.valid} | ({} if block.common is None else {"common": block.common})
    rows: list[Scored] = []
    for region, chosen in regions.items():
        for kind in kinds:
            aligned = align(block.prediction, block.truth, chosen, kind, floor=suite.depth_min)
            measured = measure(aligned, block.truth, mask=chosen, names=names)
            for index, (sample, row) in enumerate(zip(block.samples, measured, strict=True)):
                named = replace(row, reason=_reason(row, suite, region))
                views = "+".join(sample.given_names)
                rows.append(Scored(block.first + index, sample.scene, views, region, kind, named))
    return sorted(rows, key=lambda scored: scored.sample)


def _reason(row: Row, suite: SuiteConfig, region: str) -> str:
    if row.valid:
        return row.reason
    place = "where the reference method speaks" if region == "common" else "inside the mask"
    return f"no truth between {suite.depth_min:g} and {suite.depth_max:g} m {place}"


def _add_uncertainty(
    rows: list[Scored], block: _Block, kind: str, curves: dict[str, list[Float64[np.ndarray, "2 k"]]]
) -> list[Scored]:
    """The rows with the area between the sparsification curves in those of the headline, whose alignment is `kind`."""
    if block.confidence is None:
        return rows
    areas, prediction = {}, align(block.prediction, block.truth, block.valid, kind)
    for index, sample in enumerate(block.samples):
        chosen = block.valid[index] & (block.prediction[index] > 0)
        if not chosen.any():
            continue
        truth = block.truth[index][chosen]
        error = np.abs(prediction[index][chosen] - truth) / truth
        curve, oracle = sparsification(error, block.confidence[index][chosen], steps=_CURVE_STEPS)
        curves[sample.scene].append(np.stack([curve, oracle]))
        areas[block.first + index] = max(0.0, ause(curve, oracle))
    return [_with_area(scored, kind, areas) for scored in rows]


def _with_area(scored: Scored, kind: str, areas: Mapping[int, float]) -> Scored:
    if (scored.region, scored.alignment) != (REGION, kind) or scored.sample not in areas:
        return scored
    values = scored.row.values | {"ause": areas[scored.sample]}
    return replace(scored, row=replace(scored.row, values=values))


def _summary(
    stored: Predictions,
    reference: Predictions | None,
    suite: SuiteConfig,
    rows: Sequence[Scored],
    groups: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]],
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    regions: dict[str, dict[str, Any]] = {}
    for (region, alignment), by_group in groups.items():
        values = _intervals(by_group, bootstrap=bootstrap, seed=seed)
        check_values(
            {name: values[name].mean for name in values},
            f"{stored.about.method} {stored.about.suite} {region} {alignment}",
        )
        regions.setdefault(region, {})[alignment] = {name: asdict(value) for name, value in values.items()}
    kind = None if stored.depth is None else _alignments(stored.about)[0]
    dropped = [s for s in rows if (s.region, s.alignment) == (REGION, kind) and s.row.reason]
    return {
        "about": _about(stored.about),
        "alignment": kind,
        "samples": len(stored.samples),
        "scenes": len({sample.scene for sample in stored.samples}),
        "caps": {
            "depth_min": suite.depth_min,
            "depth_max": suite.depth_max if math.isfinite(suite.depth_max) else None,
        },
        "common_with": None if reference is None else reference.about.method,
        "dropped": [{"sample": s.sample, "scene": s.scene, "views": s.views, "reason": s.row.reason} for s in dropped],
        "regions": regions,
    }


def _view_intervals(rows: Sequence[ViewRow], *, bootstrap: int, seed: int) -> dict[str, dict[str, float | None]]:
    """{metric: mean over scenes with its interval}; {} where nothing was rendered."""
    scenes = view_means(rows).values()
    names = [name for name in VIEW_METRICS if rows and name in rows[0].values]
    return {
        name: asdict(interval(np.array([of[name] for of in scenes]), bootstrap=bootstrap, seed=seed)) for name in names
    }


def _medians(diagnostics: Mapping[str, Float64[np.ndarray, " n"]]) -> dict[str, float]:
    """The median over samples of each of a method's own measures; one that no sample has is left out."""
    known = {name: values[np.isfinite(values)] for name, values in diagnostics.items()}
    return {name: float(np.median(values)) for name, values in known.items() if len(values)}


def _intervals(by_group: Mapping[str, Mapping[str, float]], *, bootstrap: int, seed: int) -> dict[str, Interval]:
    chosen = {name: [values[name] for values in by_group.values() if name in values] for name in COLUMNS}
    return {
        name: interval(np.array(values), bootstrap=bootstrap, seed=seed) for name, values in chosen.items() if values
    }


def _about(about: About) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(about).items()}


def _sample_record(scored: Scored) -> dict[str, str]:
    keys = (
        scored.sample,
        scored.scene,
        scored.views,
        scored.region,
        scored.alignment,
        scored.row.valid,
        scored.row.compared,
    )
    return dict(zip(_KEYS, map(str, keys), strict=True)) | _texts(scored.row.values) | {"reason": scored.row.reason}


def _scene_records(
    scene_rows: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]],
) -> list[dict[str, str]]:
    return [
        {"scene": scene, "region": region, "alignment": alignment} | _texts(values)
        for (region, alignment), by_scene in scene_rows.items()
        for scene, values in by_scene.items()
    ]


def _texts(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{values[name]:.9g}" if name in values else "" for name in COLUMNS}


def _write_csv(path: Path, keys: Sequence[str], records: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*keys, *COLUMNS, *(("reason",) if "sample" in keys else ())], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    path.write_text(text.getvalue(), encoding="utf-8")


def _write_curves(path: Path, curves: Mapping[str, list[Float64[np.ndarray, "2 k"]]]) -> None:
    mean = np.mean([np.mean(of_scene, axis=0) for of_scene in curves.values()], axis=0)
    lines = ["removed,error,oracle"]
    lines += [f"{k / _CURVE_STEPS:g},{mean[0, k]:.9g},{mean[1, k]:.9g}" for k in range(_CURVE_STEPS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _records(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Evaluate the method first: `dvc repro evaluate`.")
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _parse_record(record: Mapping[str, str]) -> Scored:
    row = Row(_values(record), int(record["valid"]), int(record["compared"]), record["reason"])
    keys = (record["scene"], record["views"], record["region"], record["alignment"])
    return Scored(int(record["sample"]), *keys, row)


def _values(record: Mapping[str, str]) -> dict[str, float]:
    return {name: float(record[name]) for name in COLUMNS if record.get(name)}
