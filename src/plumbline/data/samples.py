"""Samples: which views are given together, and their arrays, gathered from canonical scenes."""

import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float16

from plumbline.config import (
    ByBaseline,
    ByClip,
    ByGap,
    ByIndex,
    ByPairs,
    BySequence,
    ByTarget,
    DatasetConfig,
    SuiteConfig,
)
from plumbline.data import view_sampling
from plumbline.data.canonical import list_scenes, read_scene
from plumbline.data.geometry import rotation_angle
from plumbline.errors import ConfigError, DataError
from plumbline.files import read_npy
from plumbline.records import Sample, SampleArrays, Scene

_VAL_SHARE = 0.1
_SHARE_OF_VIEWS = 6
_log = logging.getLogger("plumbline")


def split_scenes(config: DatasetConfig, names: Sequence[str], *, seed: int = 0) -> dict[str, list[str]]:
    """Scene names of the train, val and test split; every split keeps the order of `names`.

    `mvsnet` takes the published DTU lists (by scan, whatever the light), `scannet` those of ScanNet v2 (by space: all scans
    of a room are in one list), `folders` goes by what a name begins with (train/, val/, test/; without val/ a tenth of train/
    is val), `seeded` draws a tenth of the scenes for val and leaves test empty. A listed name that does
    not exist is an error, a scene that no list names is left out.
    """
    if config.split == "seeded":
        shuffled = list(np.random.default_rng(seed).permutation(len(names)))
        held_out = set(shuffled[: max(1, round(_VAL_SHARE * len(names)))])
        chosen = [name for i, name in enumerate(names) if i in held_out]
        return {"train": [name for name in names if name not in chosen], "val": chosen, "test": []}
    if config.split == "folders":
        return _by_folders(names, seed)
    if config.split == "mvsnet":
        return _published("dtu_mvsnet.yaml", names, _scan_number)
    if config.split == "scannet":
        return _published("scannet_v2.yaml", names, _space_number)
    listed = {part: config.split.get(part, []) for part in ("train", "val", "test")}
    absent = sorted({name for part in listed.values() for name in part} - set(names))
    if absent:
        raise ConfigError(
            f"params.yaml: split names scenes that do not exist: {', '.join(absent)}. There is: {', '.join(names)}."
        )
    return {part: [name for name in names if name in wanted] for part, wanted in listed.items()}


def _by_folders(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    parts = {part: [name for name in names if name.startswith(f"{part}/")] for part in ("train", "val", "test")}
    odd = [name for name in names if not any(name in own for own in parts.values())]
    if odd:
        raise DataError(f"{odd[0]}: the folders split expects scenes named train/<name>, val/<name> or test/<name>.")
    if parts["val"] or not parts["train"]:
        return parts
    shuffled = np.random.default_rng(seed).permutation(len(parts["train"]))
    held_out = {parts["train"][i] for i in shuffled[: max(1, round(_VAL_SHARE * len(shuffled)))]}
    train = [name for name in parts["train"] if name not in held_out]
    return {"train": train, "val": sorted(held_out), "test": parts["test"]}


def _published(file: str, names: Sequence[str], number: Callable[[str], int]) -> dict[str, list[str]]:
    lists = yaml.safe_load((resources.files("plumbline.data") / "splits" / file).read_text(encoding="utf-8"))
    return {part: [name for name in names if number(name) in lists[part]] for part in ("train", "val", "test")}


def _space_number(name: str) -> int:
    match = re.fullmatch(r"(?:.*/)?scene(\d{4})_\d\d", name)
    if match is None:
        raise DataError(f"{name}: the scannet split expects scenes named scene<space, 4 digits>_<scan, 2 digits>.")
    return int(match[1])


def _scan_number(name: str) -> int:
    digits = name.split("_")[0].removeprefix("scan")
    if not digits.isdigit():
        raise DataError(f"{name}: the mvsnet split expects scenes named scan<number>.")
    return int(digits)


def open_split(folder: Path, config: DatasetConfig, split: str) -> dict[str, Scene]:
    """The canonical scenes of one split ("all": every scene), opened; quarantined ones are left out."""
    names = [name for name in list_scenes(folder) if name not in config.quarantine]
    chosen = names if split == "all" else split_scenes(config, names)[split]
    return {name: read_scene(folder / name) for name in chosen}


def open_labels(folder: Path, scenes: Mapping[str, Scene]) -> dict[str, Float16[np.ndarray, "v h w"]]:
    """The keypoint probabilities of these scenes below `folder` (data/pseudo_labels/<dataset>), memory-mapped.

    DataError when a scene has none, or has them for other views or another size.
    """
    labels = {}
    for name, scene in scenes.items():
        path, expected = folder / f"{name}.npy", (len(scene.view_names), *scene.images.shape[1:3])
        advice = f"Make them with: dvc repro pseudo_labels@{folder.name}"
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; expected the keypoint labels of this scene. {advice} "
                "(pseudo_labels.splits in params.yaml says which splits get them)."
            )
        labels[name] = read_npy(path, memory_map=True)
        if labels[name].shape != expected or labels[name].dtype != np.float16:
            got = f"{labels[name].dtype} {labels[name].shape}"
            raise DataError(f"{path}: keypoint labels are {got}; expected float16 {expected}. {advice}")
    return labels


def build(suite: SuiteConfig, scenes: Mapping[str, Scene]) -> list[Sample]:
    """The samples of a suite: every view that can be a reference, with its sources; all have the same number of views.

    A reference that has too few sources is no sample. A film that is, or with wider gaps becomes, too short for the rule's
    clips is left out, with a line in the log. With `max_samples` the samples are spread evenly. DataError when nothing is
    left, for a suite without samples would pass every test.
    """
    scenes = _long_enough(suite, scenes)
    samples = [sample for name, scene in scenes.items() for sample in _scene_samples(suite, name, scene)]
    if not samples:
        raise DataError(
            f"suite on {suite.dataset} ({suite.split}): no view of {len(scenes)} scenes has the sources it asks for "
            f"({suite.sources!r}). Loosen the rule or use longer scenes."
        )
    if suite.max_samples is not None and len(samples) > suite.max_samples:
        picked = np.linspace(0, len(samples) - 1, suite.max_samples).round().astype(int)
        samples = [samples[i] for i in picked]
    return samples


def _long_enough(suite: SuiteConfig, scenes: Mapping[str, Scene]) -> Mapping[str, Scene]:
    """The scenes, those without that are too short for the gaps that a rule of clips begins or ends with."""
    rule = suite.sources
    if not isinstance(rule, ByClip):
        return scenes
    # `view_sampling.spread` divides the gaps where few views share a window.
    share = 1 if rule.context == 2 else max(_SHARE_OF_VIEWS // rule.context, 1)
    needed = 1 + max(rule.gaps.at(0)[0], rule.gaps.at(rule.gaps.warm_up)[0]) // share
    kept = {name: scene for name, scene in scenes.items() if len(scene.view_names) >= needed}
    if len(kept) < len(scenes):
        _log.warning(
            "suite on %s (%s): %d of %d scenes have fewer than the %d frames that clips need: left out",
            suite.dataset, suite.split, len(scenes) - len(kept), len(scenes), needed,
        )  # fmt: skip
    return kept


def _scene_samples(suite: SuiteConfig, name: str, scene: Scene) -> list[Sample]:
    rule = suite.sources
    if isinstance(rule, ByIndex):
        return _by_index(rule, suite, name, scene)
    if isinstance(rule, ByTarget):
        return _by_target(rule, name, scene)
    if isinstance(rule, ByClip):
        return [draw(rule, name, scene, step=0, number=number) for number in range(rule.count)]
    if isinstance(rule, ByPairs):
        rows = _by_pairs(rule, name, scene)
    elif isinstance(rule, ByGap):
        rows = _by_gap(rule, len(scene.view_names))
    elif isinstance(rule, BySequence):
        rows = _by_sequence(rule, scene)
    else:
        rows = _by_baseline(rule, name, scene)
    return [Sample(name, row) for row in rows]


def _by_index(rule: ByIndex, suite: SuiteConfig, name: str, scene: Scene) -> list[Sample]:
    """The scene's samples of a published list: the views that are given first, then those to be rendered."""
    if rule.path not in scene.samples:
        raise DataError(
            f"{scene.dataset}/{name}: no list of samples {rule.path!r}; there is {', '.join(scene.samples) or 'none'}. Name the "
            f"file in datasets.{scene.dataset}.options.samples and parse the data set again."
        )
    listed = scene.samples[rule.path]
    if any(len(context) < suite.predict_views for context, _ in listed):
        raise ConfigError(
            f"suite on {suite.dataset}: predict_views {suite.predict_views}, but {rule.path} gives {name} fewer views."
        )
    return [Sample(name, (*context, *target), context=len(context)) for context, target in listed]


def _by_target(rule: ByTarget, name: str, scene: Scene) -> list[Sample]:
    """Each view as the target of the `count` around it, the nearest first; views that have too few are no sample."""
    further, count = rule.targets - 1, len(scene.view_names)
    if rule.gap is None:
        rows = _by_pairs(ByPairs(kind="pairs", count=rule.count + further), name, scene)
    else:
        apart = [*_on_both_sides(rule.gap, rule.count), *_on_both_sides(1, further)]
        rows = [(i, *(i + k for k in apart)) for i in range(count) if all(0 <= i + k < count for k in apart)]
    return [
        Sample(name, (*others[: rule.count], target, *others[rule.count :]), context=rule.count)
        for target, *others in rows
    ]


def _on_both_sides(gap: int, count: int) -> list[int]:
    """-gap, gap, -2 gap, 2 gap and so on."""
    return [(-1, 1)[k % 2] * gap * (1 + k // 2) for k in range(count)]


def draw(rule: ByClip, name: str, scene: Scene, *, step: int, number: int) -> Sample:
    """The scene's sample `number` at a training step: the same for the same step, seed and number.

    DataError for a scene of too few views, or, with more than two given ones, without poses.
    """
    rng = np.random.default_rng((rule.seed, step, number, zlib.crc32(name.encode())))
    gap, frames = rule.gaps.at(step), len(scene.view_names)
    if rule.context == 2:
        drawn = view_sampling.bounded(frames, gap, rng, targets=rule.targets)
    elif scene.world_T_cam is None:
        raise DataError(f"{scene.dataset}/{name}: no camera poses; set context: 2 in its clip rule.")
    else:
        centres = scene.world_T_cam[:, :3, 3]
        drawn = view_sampling.spread(centres, gap, rng, context=rule.context, targets=rule.targets)
    if drawn is None:
        raise DataError(
            f"{scene.dataset}/{name}: {frames} views are too few for clips with gaps of {gap[0]} to {gap[1]} at step {step}. "
            "Lower gaps in the suite's clip rule, or leave the scene out."
        )
    context, targets = drawn
    return Sample(name, (*context, *targets), context=len(context))


def _by_pairs(rule: ByPairs, name: str, scene: Scene) -> list[tuple[int, ...]]:
    if scene.pairs is None:
        raise DataError(f"{scene.dataset}/{name}: no pair list; choose sources by gap or baseline in params.yaml.")
    if rule.each:
        return [(i, other) for i, row in enumerate(scene.pairs) for other, _ in row[: rule.count]]
    rows = [(i, *(other for other, _ in row[: rule.count])) for i, row in enumerate(scene.pairs)]
    return [row for row in rows if len(row) == rule.count + 1]


def sample_scores(scenes: Mapping[str, Scene], samples: Sequence[Sample]) -> list[float]:
    """The score of each sample: the mean of its pairs', the reference with each source, as the data set's pair list has them.

    DataError when a scene has no such list, or the list no such pair.
    """
    scores = {}
    for name in {sample.scene for sample in samples}:
        scene = scenes[name]
        if scene.pairs is None:
            raise DataError(
                f"{scene.dataset}/{name}: no pair list, so its samples have no scores. Set sampling: uniform."
            )
        scores[name] = [dict(row) for row in scene.pairs]
    return [_mean_score(sample, scores[sample.scene]) for sample in samples]


def _mean_score(sample: Sample, scores: Sequence[Mapping[int, float]]) -> float:
    reference, *sources = sample.views
    listed = scores[reference]
    if not sources or not all(source in listed for source in sources):
        raise DataError(
            f"{sample.scene}: sample {sample.views} is not made of pairs that the data set lists, so it has no score. "
            "Choose its sources by pairs, or set sampling: uniform."
        )
    return sum(listed[source] for source in sources) / len(sources)


def _by_gap(rule: ByGap, views: int) -> list[tuple[int, ...]]:
    return [(i, i - rule.gap, i + rule.gap) for i in range(rule.gap, views - rule.gap)]


def _by_sequence(rule: BySequence, scene: Scene) -> list[tuple[int, ...]]:
    """Each frame with the `length` - 1 others of its window, ascending; samples with a frame that was not read are left out.

    DELTAS' selection (Sinha et al., ECCV 2020): a window of `length` frames, `gap` apart, has length // 2 of them before the
    reference, and is moved by whole gaps where it would leave the capture, so that every frame is a reference once. Captures
    of fewer than length * gap frames give none.
    """
    numbers = scene.frames or range(len(scene.view_names))
    count = scene.frame_count or len(numbers)
    if count < rule.length * rule.gap:
        return []
    view_of = {number: view for view, number in enumerate(numbers)}
    windows = {number: _window(number, count, length=rule.length, gap=rule.gap) for number in numbers}
    complete = {number: window for number, window in windows.items() if view_of.keys() >= set(window)}
    return [(view_of[i], *(view_of[k] for k in window if k != i)) for i, window in complete.items()]


def _window(number: int, count: int, *, length: int, gap: int) -> range:
    first = number - (length // 2) * gap
    lowest = number % gap
    highest = number + (count - 1 - number) // gap * gap - (length - 1) * gap
    start = min(max(first, lowest), highest)
    return range(start, start + length * gap, gap)


def _by_baseline(rule: ByBaseline, name: str, scene: Scene) -> list[tuple[int, ...]]:
    if scene.world_T_cam is None:
        raise DataError(f"{scene.dataset}/{name}: no camera poses; sources cannot be chosen by baseline.")
    centres, R = scene.world_T_cam[:, :3, 3], scene.world_T_cam[:, :3, :3]
    middle = 0.5 * (rule.min_baseline + rule.max_baseline)
    rows = []
    for i in range(len(centres)):
        baseline = np.linalg.norm(centres - centres[i], axis=1)
        angle = np.degrees(rotation_angle(np.swapaxes(R[i : i + 1], 1, 2) @ R))
        fits = (baseline >= rule.min_baseline) & (baseline <= rule.max_baseline) & (angle <= rule.max_angle)
        candidates = np.flatnonzero(fits)
        rows.append(
            (i, *_spread(candidates, baseline[candidates], centres[candidates] - centres[i], middle, rule.count))
        )
    return [row for row in rows if len(row) == rule.count + 1]


def _spread(candidates: np.ndarray, baseline: np.ndarray, offsets: np.ndarray, middle: float, count: int) -> list[int]:
    """Up to `count` candidates, each the best in baseline that is not right beside one already taken."""
    order = np.argsort(abs(baseline - middle), kind="stable")
    taken: list[int] = []
    for closeness in (0.5 * middle, 0.0):
        for k in order:
            apart = all(np.linalg.norm(offsets[k] - offsets[t]) >= closeness for t in taken)
            if len(taken) < count and k not in taken and apart:
                taken.append(int(k))
    return [int(candidates[k]) for k in taken]


def gather(scenes: Mapping[str, Scene], samples: Sequence[Sample]) -> SampleArrays:
    """The arrays of `samples`, stacked; images stay u8. All must have one size, one number of views and one of targets.

    Reads each view straight from the memory-mapped stacks into its place: no decoding of raw images, no copy on the way.
    """
    owners = [scenes[sample.scene] for sample in samples]
    given = [(scene, sample.given) for scene, sample in zip(owners, samples, strict=True)]
    targets = [(scene, sample.targets) for scene, sample in zip(owners, samples, strict=True)]
    return SampleArrays(
        image=_stack(given, "images"),
        K=_stack(given, "K"),
        depth_range=np.array([scene.depth_range for scene in owners], np.float64),
        world_T_cam=_stack(given, "world_T_cam"),
        depth=_stack(given, "depth"),
        mask=_stack(given, "mask"),
        target_image=_stack(targets, "images"),
        target_K=_stack(targets, "K"),
        world_T_target=_stack(targets, "world_T_cam"),
        target_mask=_stack(targets, "mask"),
    )


def _stack(chosen: Sequence[tuple[Scene, tuple[int, ...]]], name: str) -> Any:
    """The views' rows of the scenes' stacks `name`, "b v ..."; None where no scene has any, or there is no view.

    Where only some have, the others' masks are true everywhere; all else is 0 there, "not measured".
    """
    stacks = [getattr(scene, name) for scene, _ in chosen]
    known = next((stack for stack in stacks if stack is not None), None)
    if known is None or not chosen[0][1]:
        return None
    first = known[0]
    rows = np.full((len(chosen), len(chosen[0][1]), *first.shape), name == "mask", first.dtype)
    for i, (stack, (_, views)) in enumerate(zip(stacks, chosen, strict=True)):
        for j, view in enumerate(views if stack is not None else ()):
            rows[i, j] = stack[view]
    return rows
