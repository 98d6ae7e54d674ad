"""Check whole data sets: the canonical scenes of the pipeline, with their raw files at hand for the reader's misreadings."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from plumbline.config import DatasetConfig
from plumbline.data.canonical import list_scenes, read_scene
from plumbline.data.checks.pictures import draw_sheet
from plumbline.data.checks.raw import RawData, raw_data, rereader
from plumbline.data.checks.records import CheckConfig, DatasetCheck, SceneCheck
from plumbline.data.checks.scene import check_scene, pairs_of
from plumbline.data.checks.verdict import percent
from plumbline.errors import PlumblineError
from plumbline.files import write_json
from plumbline.pointcloud import Cloud, fuse, write_cloud
from plumbline.process import end_with_parent
from plumbline.records import Scene

_FUSED_VIEWS = 24


@dataclass(frozen=True)
class Job:
    """One scene for a worker: its canonical folder, where to write, and its raw files (None: only what arrays show)."""

    folder: Path
    config: CheckConfig
    out: Path | None
    raw: RawData | None


def check_dataset(
    scenes: Path, config: CheckConfig, *, out: Path, dataset: DatasetConfig, raw: Path, workers: int = 2
) -> DatasetCheck:
    """Check every canonical scene below `scenes` and write out/<scene>.{json,png,ply} and out/checks.json.

    `dataset` and `raw` let the reader's own misreadings be tried on the raw files. PlumblineError with the table when a
    scene is wrong, after everything is written.
    """
    source = raw_data(
        dataset.format, raw, dataset.options, size=dataset.image_size, where=f"datasets.{scenes.name}.options"
    )
    jobs = [Job(scenes / name, config, out, source) for name in list_scenes(scenes)]
    if workers > 1 and len(jobs) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start) as pool:
            found = list(pool.map(check_one, jobs))
    else:
        found = [check_one(job) for job in jobs]
    check = DatasetCheck(dataset=scenes.name, scenes=tuple(found))
    write_summary(check, out)
    require_true(check)
    return check


def _start() -> None:
    end_with_parent()
    cv2.setNumThreads(1)


def require_true(check: DatasetCheck) -> None:
    """PlumblineError with the table of verdicts when any scene is wrong."""
    if check.wrong:
        count = f"{len(check.wrong)} of {len(check.scenes)} scenes are not true as read"
        advice = f"Mend the reading, or leave scenes out under datasets.{check.dataset}.quarantine in params.yaml."
        raise PlumblineError(f"{check.dataset}: {count}.\n\n{verdict_table(check)}\n\n{advice}")


def verdict_table(check: DatasetCheck) -> str:
    """The verdicts as text, wrong ones first: verdict, median error, inliers, overlap, texture correlation, diagnosis."""
    order = {"wrong": 0, "cannot tell": 1, "ok": 2}
    rows = [("verdict", "error", "inliers", "overlap", "texture", "pairs", "")]
    for scene in sorted(check.scenes, key=lambda scene: (order[scene.verdict], scene.scene)):
        found = scene.as_read
        numbers = ("",) * 4
        if found is not None:
            texture = "" if found.photometric is None else f"{found.photometric:.2f}"
            numbers = (percent(found.error), f"{100 * found.inliers:.0f} %", f"{100 * found.overlap:.0f} %", texture)
        rows.append((scene.verdict, *numbers, str(len(scene.pairs)), "; ".join([scene.diagnosis, *scene.remarks])))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join("  ".join([*(row[i].rjust(w) for i, w in enumerate(widths)), row[6]]).rstrip() for row in rows)


def write_summary(check: DatasetCheck, out: Path) -> None:
    """Write out/checks.json: for each scene its verdict, diagnosis, remarks and the numbers as read."""
    kept = {"verdict", "diagnosis", "remarks", "as_read", "baseline", "angle", "depth", "views"}
    scenes = {scene.scene: scene.model_dump(mode="json", include=kept) for scene in check.scenes}
    counts = {verdict: sum(s.verdict == verdict for s in check.scenes) for verdict in ("ok", "wrong", "cannot tell")}
    write_json(out / "checks.json", {"dataset": check.dataset, "verdicts": counts, "scenes": scenes})


def check_one(job: Job) -> SceneCheck:
    """Check one canonical scene and, with an `out` folder, write its numbers, picture and cloud."""
    scene = read_scene(job.folder)
    reread = None if job.raw is None else rereader(job.raw, scene.name)
    check = check_scene(scene, job.config, reread=reread)
    if job.out is not None:
        write_check(scene, check, job.out, job.config)
    return check


def write_check(scene: Scene, check: SceneCheck, out: Path, config: CheckConfig) -> None:
    """Write out/<scene>.json (everything measured), .png (contact sheet) and, where depth and poses are, .ply."""
    write_json(out / f"{scene.name}.json", check.model_dump(mode="json"))
    draw_sheet(scene, check, out / f"{scene.name}.png", views=config.sheet_views)
    if scene.depth is not None and scene.world_T_cam is not None:
        cloud = fuse_scene(scene, pairs_of(scene, config))
        write_cloud(out / f"{scene.name}.ply", cloud, max_points=config.max_points)


def fuse_scene(scene: Scene, pairs: Sequence[tuple[int, int]]) -> Cloud:
    """The scene's measured points, of views in `pairs` confirmed by their partners; of some views as they are without pairs."""
    if scene.depth is None or scene.world_T_cam is None:
        raise ValueError(f"{scene.dataset}/{scene.name} has no depth or no poses")
    count = len(scene.view_names)
    used = sorted({view for pair in pairs for view in pair})[:: max(2 * len(pairs) // _FUSED_VIEWS, 1)]
    used = used or [round(i * (count - 1) / 3) for i in range(min(4, count))]
    place = {view: i for i, view in enumerate(used)}
    partners: list[list[int]] = [[] for _ in used]
    for first, second in pairs:
        if first in place and second in place:
            partners[place[first]].append(place[second])
            partners[place[second]].append(place[first])
    depth = np.asarray(scene.depth[used], np.float64)
    return fuse(
        np.stack([np.asarray(scene.images[i]) for i in used]),
        depth if scene.mask is None else np.where(scene.mask[used], depth, 0.0),
        np.asarray(scene.K[used]),
        np.asarray(scene.world_T_cam[used]),
        neighbours=partners,
        min_agreeing=1 if pairs else 0,
        tolerance=0.05,
    )
