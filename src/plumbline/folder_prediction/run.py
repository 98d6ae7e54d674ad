"""The loop over a folder's samples: read, predict, write, compare; what is finished stays whatever happens later."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32

from plumbline import __version__
from plumbline.checkpoint import code_digest
from plumbline.depth_sheet import SheetRow, draw_sheet
from plumbline.errors import ConfigError, DataError
from plumbline.evaluation import Scored
from plumbline.folder_prediction import output
from plumbline.folder_prediction.method import Method
from plumbline.folder_prediction.samples import RawSamples, read_samples, stack_views
from plumbline.metrics import measure, valid_mask
from plumbline.progress import progress
from plumbline.records import Sample, View
from plumbline.systems.records import to_batch

_Item = TypeVar("_Item")
_OVERVIEW_ROWS = 6
_GPU_BATCH = 8


@dataclass
class FolderResult:
    """What came of a folder: metrics of the views that have truth, and how many views are finished.

    `kept` of them were finished by an earlier run; `far` counts views with depth that the PNG cannot hold.
    """

    out: Path
    total: int
    rows: list[Scored] = field(default_factory=list)
    finished: int = 0
    kept: int = 0
    far: int = 0


@dataclass(frozen=True)
class _Finished:
    """A view with its depth, and its truth where it has one."""

    index: int
    sample: Sample
    views: Sequence[View]
    depth: Float32[np.ndarray, "h w"]
    kept: bool


def predict_folder(
    method: Method, chosen: RawSamples, out: Path, *, batch_size: int | None = None, overwrite: bool = False
) -> FolderResult:
    """Predict view 0 of each sample and write `out`: depth maps, pictures, about.json, and metrics.csv where there is truth.

    `batch_size` None: 8 samples at once on a GPU, else 1. Truth counts inside the depth range, beyond which no method looks.
    Views that an earlier run of the same making finished are kept. KeyboardInterrupt passes on, with a text that says how
    far it came; files of finished views, and metrics.csv of these, are there by then. Errors: DataError and ConfigError
    that say what to do.
    """
    output.open_folder(out, _about(method, chosen), overwrite=overwrite)
    result = FolderResult(out, len(chosen.samples))
    shown: list[SheetRow] = []
    at_once = batch_size or (_GPU_BATCH if method.device.type == "cuda" else 1)
    picked = set(np.linspace(0, result.total - 1, min(_OVERVIEW_ROWS, result.total)).round().astype(int).tolist())
    try:
        with progress(f"predict {method.name}", total=result.total) as show:
            for finished in _finished(method, chosen, out, at_once):
                row = _finish(method, chosen, finished, result)
                shown += [row] if finished.index in picked else []
                show(result.finished, _latest(result.rows))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(result)) from None
    finally:
        if result.rows:
            output.write_scores(out / output.SCORES, result.rows)
        if shown:
            draw_sheet(shown, out / output.OVERVIEW, method=method.name)
    return result


def _stopped(result: FolderResult) -> str:
    return (
        f"Stopped: {result.finished} of {result.total} views are finished in {result.out}. "
        "The same command goes on from there."
    )


def _about(method: Method, chosen: RawSamples) -> dict[str, Any]:
    raw, choice = chosen.raw, chosen.choice
    return {
        "plumbline": __version__,
        "method": method.describe(),
        "data": {"format": raw.format, "path": str(raw.path.resolve()), "options": raw.options.model_dump(mode="json")},
        "size": list(raw.size),
        "depth range": list(chosen.depth_range),
        "samples": {
            "rule": choice.rule.model_dump(mode="json"),
            "max_samples": choice.max_samples,
            "scenes": None if choice.scenes is None else list(choice.scenes),
        },
        "code": code_digest(*method.modules, raw.reader.__name__, "plumbline.data.canonical", "plumbline.data.samples"),
        "units": "depth z in metres (.npy) and whole millimetres (.png); 0 = none; beyond 65.535 m 0 in the .png alone",
    }


def _finished(method: Method, chosen: RawSamples, out: Path, batch_size: int) -> Iterator[_Finished]:
    samples = enumerate(read_samples(chosen))
    for group in _groups(samples, batch_size):
        rows = [views for _, (_, views) in group]
        files = [output.view_files(out, sample.scene, views[0].name) for _, (sample, views) in group]
        before = [output.read_depth(file, chosen.raw.size) for file in files]
        missing = [i for i, depth in enumerate(before) if depth is None]
        labels = [f"{sample.scene}/{views[0].name}" for _, (sample, views) in group]
        fresh: dict[int, np.ndarray] = {}
        if missing:
            made = _depth(method, [rows[i] for i in missing], chosen, [labels[i] for i in missing])
            fresh = dict(zip(missing, made, strict=True))
        for i, (index, (sample, views)) in enumerate(group):
            depth = before[i]
            yield _Finished(index, sample, views, fresh[i] if depth is None else depth, depth is not None)


def _groups(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _depth(
    method: Method, rows: Sequence[Sequence[View]], chosen: RawSamples, labels: Sequence[str]
) -> Float32[np.ndarray, "b h w"]:
    """Depth of view 0 of each row of views; DataError when something that the method reads is missing, or its answer is bad."""
    arrays = stack_views(rows, chosen.depth_range)
    if arrays.world_T_cam is None and "cam0_T_cam" in method.reads:
        raise DataError(
            f"{labels[0]}: no camera poses, which {method.name} reads. Give the capture poses (for instance by running "
            "structure from motion on it), or a system that needs none."
        )
    if arrays.depth is None and method.oracle:
        raise DataError(
            f"{labels[0]}: {method.name} reads the true depth, and this folder has none. Use another --system."
        )
    try:
        predicted = method.predict(to_batch(arrays)).depth[:, 0].float().cpu().numpy()
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"{method.name}: the GPU's memory does not hold {len(rows)} samples of {chosen.raw.size[0]}x{chosen.raw.size[1]}. "
            "Give a smaller --batch-size or --size, or --device cpu."
        ) from error
    for depth, label in zip(predicted, labels, strict=True):
        if not (np.isfinite(depth) & (depth >= 0)).all():
            raise DataError(
                f"{label}: {method.name} answered depth between {depth.min()} and {depth.max()}; expected finite metres, 0 for "
                "none. Look at the weights, and check the capture with `plumbline check`."
            )
    return predicted


def _finish(method: Method, chosen: RawSamples, finished: _Finished, result: FolderResult) -> SheetRow:
    """Write the files of a view and count it; its row for the overview."""
    files = output.view_files(result.out, finished.sample.scene, finished.views[0].name)
    scored, valid = _score(finished, chosen)
    row = _sheet_row(finished, scored, valid)
    if not finished.kept or not files.sheet.is_file():
        draw_sheet([row], files.sheet, method=method.name)
    if not finished.kept:
        output.write_depth(files, finished.depth)
    if scored is not None:
        result.rows.append(scored)
    result.finished += 1
    result.kept += finished.kept
    result.far += bool((finished.depth > output.FARTHEST).any())
    return row


def _score(finished: _Finished, chosen: RawSamples) -> tuple[Scored | None, Bool[np.ndarray, "h w"] | None]:
    view, (low, high) = finished.views[0], chosen.depth_range
    if view.depth is None:
        return None, None
    valid = valid_mask(view.depth, mask=view.mask, depth_min=low, depth_max=high)
    names = "+".join(view.name for view in finished.views)
    label = f"{finished.sample.scene}/{names}"
    mask = None if view.mask is None else view.mask[None]
    truth = view.depth[None]
    (row,) = measure(finished.depth[None], truth, mask=mask, depth_min=low, depth_max=high, names=[label])
    return Scored(finished.index, finished.sample.scene, names, "all", "none", row), valid


def _sheet_row(finished: _Finished, scored: Scored | None, valid: Bool[np.ndarray, "h w"] | None) -> SheetRow:
    view, *sources = finished.views
    return SheetRow(
        title=f"{finished.sample.scene}   {view.name}",
        sources=tuple(source.name for source in sources),
        image=view.image,
        prediction=finished.depth,
        truth=None if valid is None or view.depth is None else np.where(valid, view.depth, np.float32(0)),
        metrics={} if scored is None else scored.row.values,
    )


def _latest(rows: Sequence[Scored]) -> dict[str, float]:
    return {"abs_rel": rows[-1].row.values["abs_rel"]} if rows and "abs_rel" in rows[-1].row.values else {}
