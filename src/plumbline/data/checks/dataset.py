"""Check whole data sets: canonical scenes of the pipeline, or any raw folder through its reader."""

import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from plumbline.config import DatasetConfig
from plumbline.data.canonical import fit, list_scenes, read_scene, validate_view, write_scene
from plumbline.data.checks.pictures import draw_sheet
from plumbline.data.checks.records import CheckConfig, DatasetCheck, SceneCheck
from plumbline.data.checks.scene import Reread, Rereader, check_scene, pairs_of
from plumbline.data.checks.verdict import percent
from plumbline.data.parse import reader
from plumbline.errors import DataError, PlumblineError
from plumbline.files import write_json
from plumbline.pointcloud import fuse, write_cloud
from plumbline.process import end_with_parent
from plumbline.records import Scene, View

_FOLDER_SIZE = (192, 256)
_FOLDER_RANGE = (0.05, 200.0)
_FOLDER_VIEWS = 600
_FUSED_VIEWS = 24


@dataclass(frozen=True)
class Job:
    """One scene for a worker: its canonical folder, and where its raw files and reader are (None: arrays alone)."""

    folder: Path
    config: CheckConfig
    out: Path | None
    raw: Path | None
    dataset: DatasetConfig | None


def check_dataset(
    scenes: Path, config: CheckConfig, *, out: Path, dataset: DatasetConfig, raw: Path, workers: int = 2
) -> DatasetCheck:
    """Check every canonical scene below `scenes` and write out/<scene>.{json,png,ply} and out/checks.json.

    `dataset` and `raw` let the reader's own misreadings be tried on the raw files. PlumblineError with the table when a
    scene is wrong, after everything is written.
    """
    jobs = [Job(scenes / name, config, out, raw, dataset) for name in list_scenes(scenes)]
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


def check_folder(
    format_name: str,
    path: Path,
    *,
    out: Path | None = None,
    options: Mapping[str, Any] | None = None,
    config: CheckConfig | None = None,
) -> DatasetCheck:
    """Check every scene of a raw folder (`format_name`: dtu, sun3d or rgbd; `options` of that reader), without the pipeline.

    A scene that cannot be read is wrong, with the reader's message; when one of the usual misreadings reads it, that is
    named too. With `out`, pictures, clouds and numbers are written there. DataError when the folder holds no scene.
    """
    dataset = DatasetConfig(
        format=format_name,  # type: ignore[arg-type]
        source={},
        size=_FOLDER_SIZE,
        depth_range=_FOLDER_RANGE,
        split="seeded",
        options=dict(options or {}),
    )
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder that holds the {format_name} data.")
    module, read_options = reader(dataset, path.name)
    found = []
    for name in module.scenes(path, read_options):
        found.append(_check_raw_scene(name, path, module, read_options, dataset, config or CheckConfig(), out))
    check = DatasetCheck(dataset=format_name, scenes=tuple(found))
    if out is not None:
        write_summary(check, out)
    return check


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
    reread = None
    if job.raw is not None and job.dataset is not None:
        module, options = reader(job.dataset, scene.dataset)
        reread = rereader(module, job.raw, scene.name, options, size=job.dataset.size)
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


def fuse_scene(scene: Scene, pairs: Sequence[tuple[int, int]]) -> Any:
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


def rereader(module: ModuleType, raw: Path, scene: str, options: Any, *, size: tuple[int, int]) -> Rereader:
    """A function that reads given views of a raw scene again, once for each of the reader's alternatives, at `size`."""

    def reread(select: Sequence[int], *, only: Sequence[str] | None = None) -> Iterable[Reread]:
        for label, alternative in module.alternatives(raw, scene, options):
            if only is not None and label not in only:
                continue
            try:
                views = tuple(fit(view, size) for view in module.views(raw, scene, alternative, select=select))
                for view in views:
                    validate_view(view, f"{scene} view {view.name}")
                yield Reread(label, views)
            except DataError as error:
                yield Reread(label, failure=str(error))

    return reread


def _start() -> None:
    end_with_parent()
    cv2.setNumThreads(1)


def _check_raw_scene(
    name: str,
    raw: Path,
    module: ModuleType,
    options: Any,
    dataset: DatasetConfig,
    config: CheckConfig,
    out: Path | None,
) -> SceneCheck:
    with tempfile.TemporaryDirectory(prefix="plumbline-check-") as scratch:
        folder = Path(scratch) / "scene"
        try:
            _write_raw_scene(folder, name, raw, module, options, dataset)
        except DataError as error:
            return _unreadable(name, raw, module, options, dataset, config, error)
        scene = read_scene(folder)
        check = check_scene(scene, config, reread=rereader(module, raw, name, options, size=dataset.size))
        if out is not None:
            write_check(scene, check, out, config)
        return check


def _write_raw_scene(
    folder: Path, name: str, raw: Path, module: ModuleType, options: Any, dataset: DatasetConfig
) -> None:
    write_scene(
        folder,
        dataset=dataset.format,
        name=name,
        views=_fitted(module.views(raw, name, _limited(module, raw, name, options)), name, dataset.size),
        depth_range=dataset.depth_range,
        pairs=module.pairs(raw, name, options),
    )


def _fitted(views: Iterable[View], name: str, size: tuple[int, int]) -> Iterator[View]:
    for view in views:
        validate_view(view, f"{name} view {view.name}")
        yield fit(view, size)


def _limited(module: ModuleType, raw: Path, name: str, options: Any) -> Any:
    # Readers of long sequences can list their frames without decoding any: then a few hundred, evenly, are enough.
    if not hasattr(module, "frames"):
        return options
    count = len(module.frames(raw, name, options))
    return options.model_copy(update={"stride": options.stride * max(-(-count // _FOLDER_VIEWS), 1)})


def _unreadable(
    name: str,
    raw: Path,
    module: ModuleType,
    options: Any,
    dataset: DatasetConfig,
    config: CheckConfig,
    error: DataError,
) -> SceneCheck:
    """A scene the reader refuses: wrong, with its message and the first of the usual misreadings under which it is true."""
    diagnosis = f"{dataset.format}/{name}: cannot be read: {error}"
    for label, alternative in _alternatives(module, raw, name, options):
        with tempfile.TemporaryDirectory(prefix="plumbline-check-") as scratch:
            try:
                _write_raw_scene(Path(scratch) / "scene", name, raw, module, alternative, dataset)
            except DataError:
                continue
            found = check_scene(read_scene(Path(scratch) / "scene"), config)
        if found.verdict == "ok" and found.as_read is not None:
            diagnosis += f" It can, with {percent(found.as_read.error)} median error, with {label}."
            break
    return SceneCheck(dataset=dataset.format, scene=name, views=0, verdict="wrong", diagnosis=diagnosis)


def _alternatives(module: ModuleType, raw: Path, name: str, options: Any) -> list[tuple[str, Any]]:
    try:
        return list(module.alternatives(raw, name, options))
    except DataError:
        # Listing them looks at the same broken files: the first error says all there is to say.
        return []
