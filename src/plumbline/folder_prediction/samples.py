"""Samples of raw captures: the project's rules on listings of frames, so that only views that are used get decoded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.config import ByBaseline, ByGap, ByIndex, ByPairs, BySequence, ByTarget, SuiteConfig
from plumbline.data.canonical import fit, validate_view
from plumbline.data.checks.raw import RawData, raw_data
from plumbline.data.geometry import invert
from plumbline.data.samples import build
from plumbline.errors import ConfigError, DataError
from plumbline.progress import progress
from plumbline.records import Listed, Pairs, Sample, SampleArrays, Scene, View

Rule = ByPairs | ByGap | BySequence | ByBaseline | ByTarget | ByIndex
# The published protocol of DELTAS on ScanNet: three views, 20 frames apart.
_GAP = 20
# MVSNet's five views; three elsewhere.
_SOURCES = {"pairs": 4, "baseline": 2}
# Scans of a table-top stand close together.
_RENDER_GAPS = {"dtu": 1}
# DTU's depth maps come in this size; the others in the size that most systems are published for. (height, width)
_SIZES = {"dtu": (128, 160), "re10k": (256, 256)}
_SIZE = (240, 320)
_DEPTH_RANGES = {"dtu": (0.425, 0.935), "re10k": (0.5, 100.0)}
_DEPTH_RANGE = (0.5, 10.0)
_SHOWN, _LEAST = 5, 8


@dataclass(frozen=True)
class Choice:
    """Which samples: how a view gets its sources, at most how many samples (spread evenly), of which scenes (None: all)."""

    rule: Rule
    max_samples: int | None = None
    scenes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RawSamples:
    """Samples of raw scenes and how each scene's views are named. `left_out` says in words which scenes have none."""

    raw: RawData
    choice: Choice
    depth_range: tuple[float, float]
    names: Mapping[str, tuple[str, ...]]
    samples: tuple[Sample, ...]
    left_out: tuple[str, ...]

    @property
    def has_targets(self) -> bool:
        """Whether samples have views that are to be rendered."""
        return bool(self.samples[0].targets)


def open_raw(
    format_name: str, path: Path, *, size: tuple[int, int] | None = None, options: Mapping[str, Any] | None = None
) -> RawData:
    """A raw folder, its reader's options and the size (height, width) that its views are brought to.

    Errors: an unknown format, a folder that is not there, an unknown option, a size below 8 pixels.
    """
    if size is not None and min(size) < _LEAST:
        raise ConfigError(f"--size {size[0]} {size[1]}: expected height and width of at least {_LEAST} pixels.")
    try:
        return raw_data(format_name, path, options or {}, size=size or _SIZES.get(format_name, _SIZE), where="--option")
    except ConfigError as error:
        # Options are checked as those of params.yaml are; here they come from the command line.
        raise ConfigError(str(error).replace("params.yaml: ", "").replace("--option.", "--option ")) from error


def sample_rule(
    format_name: str,
    *,
    gap: int | None = None,
    baseline: tuple[float, float] | None = None,
    pairs: bool = False,
    index: str | None = None,
    views: int | None = None,
    render: bool = False,
) -> Rule:
    """The rule that the command line asks for; by default the pair list of `dtu`, else a gap of 20 frames.

    `baseline` is (least, most) metres between cameras, `index` a list of samples, `views` the size of a sample with its
    reference: by gap, a window of so many frames, as DELTAS is evaluated; else one source before and one after. With
    `render` every frame is one to be rendered, from `views` others (default 2) around it, `gap` and so on frames away.
    ConfigError when two rules are named, or rules that do not go together.
    """
    rules = (("--gap", gap), ("--baseline", baseline), ("--pairs", pairs), ("--index", index))
    asked = [name for name, value in rules if value]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)}: a sample's sources are chosen by one rule. Leave all but one out.")
    if views is not None and views < 2:
        raise ConfigError(f"--views {views}: expected at least 2, the view that is predicted and one source.")
    if index is not None:
        if views is not None or render:
            raise ConfigError(
                "--index: the list says which views are given and which are rendered. Leave the rest out."
            )
        return ByIndex(kind="index", path=index)
    if render:
        if baseline is not None or pairs:
            raise ConfigError(
                f"--render: frames are rendered from those around them. Leave {asked[0]} out; give --gap."
            )
        return ByTarget(kind="target", count=views or 2, gap=gap or _RENDER_GAPS.get(format_name, _GAP))
    if baseline is not None:
        if not 0 < baseline[0] < baseline[1]:
            raise ConfigError(f"--baseline {baseline[0]:g} {baseline[1]:g}: expected 0 < least < most, in metres.")
        count = _SOURCES["baseline"] if views is None else views - 1
        return ByBaseline(kind="baseline", count=count, min_baseline=baseline[0], max_baseline=baseline[1])
    if pairs or (gap is None and format_name == "dtu"):
        return ByPairs(kind="pairs", count=_SOURCES["pairs"] if views is None else views - 1)
    if views is None:
        return ByGap(kind="gap", gap=gap or _GAP)
    return BySequence(kind="sequence", length=views, gap=gap or _GAP)


def choose_samples(raw: RawData, choice: Choice, *, depth_range: tuple[float, float] | None = None) -> RawSamples:
    """The samples of a raw folder. Nothing but lists of frames and camera files is read where the format has these.

    `depth_range` is (nearest, farthest) in metres; None: the format's usual one. Errors: an unknown scene, no poses for a
    baseline, no pair list, or no sample at all, with what would give some.
    """
    near, far = depth_range or _DEPTH_RANGES.get(raw.format, _DEPTH_RANGE)
    if not 0 < near < far:
        raise ConfigError(f"--depth-range {near:g} {far:g}: expected 0 < nearest < farthest, in metres.")
    wanted = _wanted(raw, choice.scenes)
    scenes = _list_scenes(raw, wanted, pairs=isinstance(choice.rule, ByPairs))
    _check_rule(raw, choice.rule, scenes)
    try:
        samples = build(SuiteConfig(dataset=raw.format, split="all", sources=choice.rule), scenes)
    except DataError as error:
        raise DataError(_nothing(raw, choice.rule, scenes)) from error
    used = {sample.scene for sample in samples}
    return RawSamples(
        raw=raw,
        choice=choice,
        depth_range=(near, far),
        names={name: scene.view_names for name, scene in scenes.items()},
        samples=tuple(_spread(samples, choice.max_samples)),
        left_out=tuple(f"{name} ({len(scenes[name].view_names)} views)" for name in wanted if name not in used),
    )


def read_samples(chosen: RawSamples) -> Iterator[tuple[Sample, list[View]]]:
    """Each sample with its views at the canonical size, in order; DataError, with the reader's message, for a broken view.

    A view is decoded once and kept while a later sample needs it: by gap, twice the gap of views are in memory.
    """
    for scene, samples in groupby(chosen.samples, key=lambda sample: sample.scene):
        try:
            yield from _read_scene(chosen.raw, scene, list(samples))
        except DataError as error:
            raise DataError(_as_typed(error)) from error


def stack_views(
    rows: Sequence[Sequence[View]], depth_range: tuple[float, float], targets: Sequence[Sequence[View]] = ()
) -> SampleArrays:
    """Samples of one size as arrays; truth is None when no view of them has any, poses when a view has none.

    `targets` holds the views of each that are to be rendered, of which only the cameras are taken.
    """
    views = [view for row in rows for view in row]
    shape = (len(rows), len(rows[0]))
    measured = any(view.depth is not None for view in views)
    size = views[0].image.shape[:2]
    world_T_cam = _poses(rows)
    return SampleArrays(
        image=np.stack([view.image for view in views]).reshape(*shape, *size, 3),
        K=np.stack([view.K for view in views]).reshape(*shape, 3, 3),
        depth_range=np.tile(np.asarray(depth_range, np.float64), (len(rows), 1)),
        world_T_cam=world_T_cam,
        depth=np.stack([_depth(view) for view in views]).reshape(*shape, *size) if measured else None,
        mask=np.stack([_mask(view) for view in views]).reshape(*shape, *size) if measured else None,
        target_K=np.stack([[view.K for view in row] for row in targets]) if targets and targets[0] else None,
        world_T_target=_poses(targets) if targets and targets[0] and world_T_cam is not None else None,
    )


def _poses(rows: Sequence[Sequence[View]]) -> np.ndarray | None:
    posed = [[view.world_T_cam for view in row if view.world_T_cam is not None] for row in rows]
    return np.stack([np.stack(row) for row in posed]) if list(map(len, posed)) == list(map(len, rows)) else None


def _depth(view: View) -> np.ndarray:
    return np.zeros(view.image.shape[:2], np.float32) if view.depth is None else view.depth


def _mask(view: View) -> np.ndarray:
    return np.ones(view.image.shape[:2], np.bool_) if view.mask is None else view.mask


def _read_scene(raw: RawData, scene: str, samples: Sequence[Sample]) -> Iterator[tuple[Sample, list[View]]]:
    order = list(dict.fromkeys(view for sample in samples for view in sample.views))
    last = {view: row for row, sample in enumerate(samples) for view in sample.views}
    stream = zip(order, raw.reader.views(raw.path, scene, raw.options, select=order), strict=True)
    held: dict[int, View] = {}
    for row, sample in enumerate(samples):
        while not held.keys() >= set(sample.views):
            index, view = next(stream)
            # At the size it was read in: a K of another resolution could fit by chance afterwards.
            validate_view(view, f"{scene} view {view.name}")
            held[index] = fit(view, raw.size)
        yield sample, [held[view] for view in sample.views]
        for view in sample.views:
            if last[view] == row:
                del held[view]


def _wanted(raw: RawData, scenes: Sequence[str] | None) -> list[str]:
    found = raw.reader.scenes(raw.path, raw.options)
    unknown = [name for name in scenes or () if name not in found]
    if unknown:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"{raw.path}: no scene {', '.join(unknown)}. There is: {', '.join(found[:_SHOWN])}{more}. "
            "Name one of these with --scene, or leave it out for all."
        )
    return [name for name in found if scenes is None or name in scenes]


def _list_scenes(raw: RawData, names: Sequence[str], *, pairs: bool) -> dict[str, Scene]:
    if hasattr(raw.reader, "frames"):
        return {name: _listed(raw, name, pairs=pairs) for name in names}
    # Views are decoded for their names and poses, which takes a while for many scenes.
    scenes = {}
    with progress(f"list {raw.format}", total=len(names)) as show:
        for name in names:
            scenes[name] = _listed(raw, name, pairs=pairs)
            show(len(scenes), {})
    return scenes


def _listed(raw: RawData, name: str, *, pairs: bool) -> Scene:
    """A raw scene without its pixels: names, poses and pairs, which is all that sample rules look at."""
    try:
        names, world_T_cam = _frames(raw, name)
        stated = raw.reader.pairs(raw.path, name, raw.options) if pairs else None
        samples = raw.reader.samples(raw.path, name, raw.options) if hasattr(raw.reader, "samples") else {}
    except DataError as error:
        raise DataError(
            f"{_as_typed(error)}\n`plumbline check {raw.format} {raw.path}` tells more about it."
        ) from error
    count = len(names)
    return Scene(
        dataset=raw.format,
        name=name,
        view_names=names,
        images=np.empty((count, 0, 0, 3), np.uint8),
        K=np.empty((count, 3, 3)),
        depth_range=(0.0, 0.0),
        world_T_cam=world_T_cam,
        pairs=None if stated is None else _indexed(stated, names),
        samples=_numbered(samples, names),
    )


def _as_typed(error: DataError) -> str:
    """A reader's message with its options as the command line spells them."""
    return re.sub(r"options\.(\w+)", r"-o \1=...", re.sub(r"options\.(\w+): (\w+)", r"-o \1=\2", str(error)))


def _frames(raw: RawData, name: str) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names and poses of a scene's views, from the reader's list of frames; by reading the views where it has none."""
    if hasattr(raw.reader, "frames"):
        frames = raw.reader.frames(raw.path, name, raw.options)
        posed = [_world_T_cam(frame, getattr(raw.options, "poses", "documented")) for frame in frames]
        return tuple(frame.name for frame in frames), np.stack(posed) if posed else None
    listed = [(view.name, view.world_T_cam) for view in raw.reader.views(raw.path, name, raw.options)]
    known = [T for _, T in listed if T is not None]
    return tuple(name for name, _ in listed), np.stack(known) if known and len(known) == len(listed) else None


def _world_T_cam(frame: Any, poses: str) -> np.ndarray:
    """The pose of a reader's frame, by its option `poses`; chunks and AerialMegaDepth's files hold it as stored."""
    if hasattr(frame, "world_T_cam"):
        stored, inverted = frame.world_T_cam, poses == "inverted"
    else:
        stored = frame.transform if hasattr(frame, "transform") else frame.camera()[1]
        inverted = poses == "world_to_camera"
    return invert(stored) if inverted else np.asarray(stored)


def _numbered(
    samples: Mapping[str, Sequence[tuple[Sequence[str], Sequence[str]]]], names: Sequence[str]
) -> dict[str, Listed]:
    index = {name: i for i, name in enumerate(names)}
    return {
        path: tuple((tuple(index[v] for v in given), tuple(index[v] for v in target)) for given, target in listed)
        for path, listed in samples.items()
    }


def _indexed(stated: Mapping[str, Sequence[tuple[str, float]]], names: tuple[str, ...]) -> Pairs:
    index = {name: i for i, name in enumerate(names)}
    return tuple(tuple((index[o], score) for o, score in stated.get(name, ()) if o in index) for name in names)


def _check_rule(raw: RawData, rule: Rule, scenes: Mapping[str, Scene]) -> None:
    for name, scene in scenes.items():
        if isinstance(rule, ByPairs) and scene.pairs is None:
            raise DataError(
                f"{raw.path}: {name} states no pairs of views ({raw.format}). Choose sources by --gap N or --baseline A B."
            )
        if isinstance(rule, ByBaseline) and scene.world_T_cam is None:
            raise DataError(
                f"{raw.path}: {name} has no camera poses, so sources cannot be chosen by baseline: use --gap."
            )


def _spread(samples: Sequence[Sample], most: int | None) -> Sequence[Sample]:
    if most is None or len(samples) <= most:
        return samples
    return [samples[i] for i in np.linspace(0, len(samples) - 1, most).round().astype(int)]


def _nothing(raw: RawData, rule: Rule, scenes: Mapping[str, Scene]) -> str:
    longest = max(scenes, key=lambda name: len(scenes[name].view_names))
    count = len(scenes[longest].view_names)
    where = f"{raw.path}: the longest of {len(scenes)} scenes, {longest}, has {count} views"
    if isinstance(rule, ByGap | BySequence):
        needed = 2 * rule.gap + 1 if isinstance(rule, ByGap) else rule.length * rule.gap
        fitting = (count - 1) // 2 if isinstance(rule, ByGap) else count // rule.length
        advice = f"Give --gap {fitting} or less" if fitting else "Give a longer capture"
        stride = getattr(raw.options, "stride", 1)
        thinned = f" or a smaller stride than {stride} (-o stride=1)" if stride > 1 else ""
        return f"{where}; --gap {rule.gap} needs at least {needed}. {advice}{thinned}."
    if isinstance(rule, ByTarget):
        before = (rule.count + 1) // 2
        fitting = (count - 1) // (2 * before)
        advice = f"Give --gap {fitting} or less" if fitting else "Give a longer capture"
        return f"{where}; --render with --gap {rule.gap} needs {2 * before * (rule.gap or 1) + 1}. {advice}."
    if isinstance(rule, ByIndex):
        return (
            f"{raw.path}: {rule.path} lists no sample of its {len(scenes)} scenes. Is it the index of another data set?"
        )
    if isinstance(rule, ByPairs):
        return f"{where}, and no view has {rule.count} sources in its pair list. Give a smaller --views."
    span = max((_span(scene) for scene in scenes.values()), default=0.0)
    return (
        f"{where}, and no view has {rule.count} others within {rule.min_baseline:g} to {rule.max_baseline:g} m and "
        f"{rule.max_angle:g}° of it; the cameras of a scene spread over {span:.3g} m. Give another --baseline or fewer --views."
    )


def _span(scene: Scene) -> float:
    if scene.world_T_cam is None:
        return 0.0
    return float(np.ptp(scene.world_T_cam[:, :3, 3], axis=0).max())
