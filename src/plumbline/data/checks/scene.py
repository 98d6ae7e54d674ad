"""Check one canonical scene: choose pairs, measure every reading on them, judge."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float32, Float64

from plumbline.data.checks.hypotheses import NULLS, Hypothesis, hypotheses
from plumbline.data.checks.measure import Reading, Score, score, texture_of
from plumbline.data.checks.pairs import choose_pairs
from plumbline.data.checks.records import CheckConfig, DepthSummary, Found, SceneCheck
from plumbline.data.checks.verdict import Evidence, judge, may_gain
from plumbline.data.geometry import invert, rotation_angle
from plumbline.records import Scene, View

Pair = tuple[int, int]


@dataclass(frozen=True)
class Reread:
    """A reader's alternative for some views: the views at the scene's size, or why they cannot be read so."""

    label: str
    views: tuple[View, ...] = ()
    failure: str | None = None


# Reads views (indices) of a raw scene again, once for each of the reader's alternatives, or for those with these labels.
Rereader = Callable[[Sequence[int], Sequence[str] | None], Iterable[Reread]]


def check_scene(scene: Scene, config: CheckConfig, *, reread: Rereader | None = None) -> SceneCheck:
    """Is the geometry of `scene` true? The verdict, and every reading that was measured.

    `reread` reads the views with the given indices again from the raw files, once for each of the reader's alternatives;
    without it only misreadings that the canonical arrays still show are compared.
    """
    reason = _not_checkable(scene)
    if reason is not None:
        return _cannot_tell(scene, reason)
    pairs = pairs_of(scene, config)
    if not pairs:
        return _cannot_tell(scene, _too_close(scene, config))
    chosen, local = _only(pairs)
    reading = read_views(scene, chosen)
    depth = _summary(reading.depth, scene.depth_range)
    known = [*hypotheses(depth.median, scene.depth_range), *_shifts(scene, chosen)]
    evidence = Evidence(
        as_read=measure("as read", reading, local, config),
        others=[
            *_reread_all(reread, chosen, reading, local, config),
            *(measure(hypothesis.label, hypothesis.change(reading), local, config) for hypothesis in known),
        ],
        nulls=[measure(null.label, null.change(reading), local, config) for null in NULLS],
        depth=depth,
        depth_range=scene.depth_range,
        pairs=len(pairs),
    )
    return _finished(scene, pairs, evidence, config)


def pairs_of(scene: Scene, config: CheckConfig) -> list[Pair]:
    """The pairs of views a scene is judged by; empty when its cameras do not move enough (needs poses)."""
    if scene.world_T_cam is None:
        return []
    return choose_pairs(
        scene.world_T_cam,
        scene.pairs,
        count=config.anchors,
        min_baseline=config.min_baseline,
        min_angle=config.min_angle,
        max_angle=config.max_angle,
    )


def read_views(scene: Scene, chosen: Sequence[int]) -> Reading:
    """Some views of a scene with depth and poses as a reading; depth outside the mask counts as not measured."""
    if scene.depth is None or scene.world_T_cam is None:
        raise ValueError(f"{scene.dataset}/{scene.name} has no depth or no poses")
    index = list(chosen)
    return Reading(
        texture=np.stack([texture_of(np.asarray(scene.images[i])) for i in index]),
        depth=_masked(scene, index),
        K=np.asarray(scene.K[index], np.float64),
        world_T_cam=np.asarray(scene.world_T_cam[index], np.float64),
    )


def _masked(scene: Scene, index: list[int]) -> Float32[np.ndarray, "v h w"]:
    depth = np.asarray(scene.depth[index], np.float32) if scene.depth is not None else np.zeros((0, 1, 1), np.float32)
    return depth if scene.mask is None else np.where(scene.mask[index], depth, np.float32(0))


def measure(label: str, reading: Reading, pairs: Sequence[Pair], config: CheckConfig) -> Found:
    """One reading, measured on pairs of its views."""
    found: Score = score(
        reading, pairs, samples=config.samples, tolerance=config.tolerance, min_overlap=config.min_overlap
    )
    return Found(
        label=label,
        error=found.error,
        inliers=found.inliers,
        overlap=found.overlap,
        photometric=found.photometric,
        pairs=found.pairs,
    )


def _shifts(scene: Scene, chosen: list[int]) -> list[Hypothesis]:
    """Depth, poses or images that belong to the view before or after."""
    count = len(scene.view_names)
    found = []
    for step, where in ((1, "next"), (-1, "previous")):
        index = [min(max(i + step, 0), count - 1) for i in chosen]
        depth = _masked(scene, index)
        texture = np.stack([texture_of(np.asarray(scene.images[i])) for i in index])
        found.append(Hypothesis(f"the image of the {where} view", partial(_with_texture, texture)))
        found.append(Hypothesis(f"the depth of the {where} view", partial(_with_depth, depth)))
        if scene.world_T_cam is not None:
            poses = np.asarray(scene.world_T_cam[index], np.float64)
            found.append(Hypothesis(f"the pose of the {where} view", partial(_with_poses, poses)))
    return found


def _with_depth(depth: Float32[np.ndarray, "v h w"], reading: Reading) -> Reading:
    return replace(reading, depth=depth)


def _with_texture(texture: Float32[np.ndarray, "v h w"], reading: Reading) -> Reading:
    return replace(reading, texture=texture)


def _with_poses(world_T_cam: Float64[np.ndarray, "v 4 4"], reading: Reading) -> Reading:
    return replace(reading, world_T_cam=world_T_cam)


def _reread_all(
    reread: Rereader | None, chosen: list[int], reading: Reading, pairs: list[Pair], config: CheckConfig
) -> list[Found]:
    """The reader's alternatives, measured on a few pairs; those that gain there, on all pairs (files are slow to read)."""
    if reread is None:
        return []
    few = pairs[:: max(len(pairs) // config.reread_pairs, 1)][: config.reread_pairs]
    needed, local = _only(few)
    as_read = measure("as read", _select(reading, needed), local, config)
    first = [_measure_again(item, local, config) for item in reread([chosen[i] for i in needed], None)]
    gaining = [found.label for found in first if may_gain(as_read, found)]
    if gaining and len(few) < len(pairs):
        again = {item.label: _measure_again(item, pairs, config) for item in reread(chosen, gaining)}
    else:
        again = {found.label: found for found in first if found.label in gaining}
    return [again.get(found.label) or found.model_copy(update={"reference": as_read.error}) for found in first]


def _only(pairs: Sequence[Pair]) -> tuple[list[int], list[Pair]]:
    """The views of some pairs, and the pairs as places among them."""
    views = sorted({view for pair in pairs for view in pair})
    place = {view: i for i, view in enumerate(views)}
    return views, [(place[a], place[b]) for a, b in pairs]


def _measure_again(item: Reread, pairs: list[Pair], config: CheckConfig) -> Found:
    if item.failure is not None:
        return Found(label=item.label, error=None, note=item.failure)
    depth = [view.depth for view in item.views if view.depth is not None]
    poses = [view.world_T_cam for view in item.views if view.world_T_cam is not None]
    if len(depth) < len(item.views) or len(poses) < len(item.views):
        return Found(label=item.label, error=None, note="views without depth or pose")
    reading = Reading(
        texture=np.stack([texture_of(view.image) for view in item.views]),
        depth=np.stack(depth),
        K=np.stack([view.K for view in item.views]),
        world_T_cam=np.stack(poses),
    )
    return measure(item.label, reading, pairs, config)


def _select(reading: Reading, index: list[int]) -> Reading:
    return Reading(reading.texture[index], reading.depth[index], reading.K[index], reading.world_T_cam[index])


def _not_checkable(scene: Scene) -> str | None:
    if scene.depth is None:
        return "no depth to check"
    if scene.world_T_cam is None:
        return "no camera poses to check"
    return "a single view" if len(scene.view_names) < 2 else None


def _too_close(scene: Scene, config: CheckConfig) -> str:
    centres = np.zeros((1, 3)) if scene.world_T_cam is None else scene.world_T_cam[:, :3, 3]
    span = float(np.linalg.norm(np.ptp(centres, axis=0)))
    need = f"pairs need {1000 * config.min_baseline:.0f} mm or {config.min_angle:g} degrees between them"
    return (
        f"too little parallax: the cameras span {1000 * span:.0f} mm; {need}, and at most {config.max_angle:g} degrees"
    )


def _cannot_tell(scene: Scene, reason: str) -> SceneCheck:
    return SceneCheck(
        dataset=scene.dataset,
        scene=scene.name,
        views=len(scene.view_names),
        verdict="cannot tell",
        diagnosis=f"{scene.dataset}/{scene.name}: {reason}",
    )


def _summary(depth: Float32[np.ndarray, "v h w"], depth_range: tuple[float, float]) -> DepthSummary:
    measured = depth[depth > 0]
    if measured.size == 0:
        return DepthSummary(nearest=0, median=0, farthest=0, coverage=0, in_range=0)
    nearest, median, farthest = np.percentile(measured, [1, 50, 99]).tolist()
    inside = (measured >= depth_range[0]) & (measured <= depth_range[1])
    coverage = measured.size / depth.size
    return DepthSummary(
        nearest=nearest, median=median, farthest=farthest, coverage=coverage, in_range=float(inside.mean())
    )


def _finished(scene: Scene, pairs: list[Pair], evidence: Evidence, config: CheckConfig) -> SceneCheck:
    judgement = judge(evidence, config)
    poses = np.eye(4)[None].repeat(len(scene.view_names), 0) if scene.world_T_cam is None else scene.world_T_cam
    first, second = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    between = invert(poses[first]) @ poses[second]
    return SceneCheck(
        dataset=scene.dataset,
        scene=scene.name,
        views=len(scene.view_names),
        verdict=judgement.verdict,
        diagnosis=f"{scene.dataset}/{scene.name}: {judgement.diagnosis}",
        remarks=judgement.remarks,
        as_read=evidence.as_read,
        others=tuple(evidence.others),
        nulls=tuple(evidence.nulls),
        pairs=tuple(pairs),
        baseline=float(np.median(np.linalg.norm(between[:, :3, 3], axis=1))),
        angle=float(np.degrees(np.median(rotation_angle(between[:, :3, :3])))),
        depth=evidence.depth,
    )
