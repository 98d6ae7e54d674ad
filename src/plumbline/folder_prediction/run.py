"""The loop over a folder's samples: read, predict, write, compare; what is finished stays whatever happens later."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from plumbline import __version__
from plumbline.checkpoint import code_digest
from plumbline.depth_sheet import SheetRow, draw_sheet
from plumbline.errors import ConfigError, DataError
from plumbline.evaluation import Scored
from plumbline.folder_prediction import output, views
from plumbline.folder_prediction.method import Method
from plumbline.folder_prediction.samples import RawSamples, read_samples, stack_views
from plumbline.metrics import measure, valid_mask
from plumbline.progress import progress
from plumbline.records import Sample, View
from plumbline.rendering import Gaussians
from plumbline.rendering.orbit import to_8_bit
from plumbline.systems.depthsplat.system import gaussians_of
from plumbline.systems.records import Prediction, Rendered, to_batch

_Item = TypeVar("_Item")
_OVERVIEW_ROWS = 6
_GPU_BATCH = 8


@dataclass
class FolderResult:
    """What came of a folder: metrics of the views that have truth, of those rendered, and how many views are finished.

    `kept` of them were finished by an earlier run; `far` counts views with depth that the PNG cannot hold.
    """

    out: Path
    total: int
    rows: list[Scored] = field(default_factory=list)
    rendered: list[views.ViewScore] = field(default_factory=list)
    finished: int = 0
    kept: int = 0
    far: int = 0


@dataclass(frozen=True)
class _Row:
    """A sample with what was read of it."""

    index: int
    sample: Sample
    given: Sequence[View]
    targets: Sequence[View]

    @property
    def label(self) -> str:
        return f"{self.sample.scene}/{self.given[0].name}"


@dataclass(frozen=True)
class _Answer:
    """Depth of the first given view, what the targets see, and the scene's Gaussians where they are asked for."""

    depth: Float32[np.ndarray, "h w"]
    pictures: UInt8[np.ndarray, "t h w 3"]
    gaussians: Gaussians | None = None


def predict_folder(
    method: Method,
    chosen: RawSamples,
    out: Path,
    *,
    batch_size: int | None = None,
    overwrite: bool = False,
    ply: bool = False,
) -> FolderResult:
    """Predict view 0 of each sample and write `out`: depth maps, pictures, about.json, and metrics.csv where there is truth.

    With `ply` each sample's Gaussians are written too, and where samples have views to be rendered, these, with views.csv.
    `batch_size` None: 8 samples at once on a GPU, else 1. Truth counts inside the depth range, beyond which no method looks.
    Views that an earlier run of the same making finished are kept. KeyboardInterrupt passes on, with a text that says how
    far it came; files of finished views, and metrics.csv of these, are there by then. Errors: DataError and ConfigError
    that say what to do.
    """
    views.require_gaussians(method, chosen, ply=ply)
    output.open_folder(out, _about(method, chosen), overwrite=overwrite)
    result = FolderResult(out, len(chosen.samples))
    shown: list[SheetRow] = []
    at_once = batch_size or (_GPU_BATCH if method.device.type == "cuda" else 1)
    picked = set(np.linspace(0, result.total - 1, min(_OVERVIEW_ROWS, result.total)).round().astype(int).tolist())
    try:
        with progress(f"predict {method.name}", total=result.total) as show:
            for row, answer, kept in _answered(method, chosen, out, at_once, ply=ply):
                sheet = _finish(method, chosen, result, row, answer, kept=kept)
                shown += [sheet] if row.index in picked else []
                show(result.finished, _latest(result.rows))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(result)) from None
    finally:
        _write_summary(result, shown, method)
    return result


def _write_summary(result: FolderResult, shown: Sequence[SheetRow], method: Method) -> None:
    if result.rows:
        output.write_scores(result.out / output.SCORES, result.rows)
    if result.rendered:
        views.write_view_scores(result.out / output.VIEW_SCORES, result.rendered)
    if shown:
        draw_sheet(shown, result.out / output.OVERVIEW, method=method.name)


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


def _answered(
    method: Method, chosen: RawSamples, out: Path, batch_size: int, *, ply: bool
) -> Iterator[tuple[_Row, _Answer, bool]]:
    """Each sample with its answer, and whether an earlier run gave it."""
    for group in _groups(_rows(chosen), batch_size):
        before = [_answer_before(row, chosen, out, ply=ply) for row in group]
        missing = [row for row, answer in zip(group, before, strict=True) if answer is None]
        fresh = iter(_answers(method, missing, chosen, ply=ply) if missing else [])
        for row, answer in zip(group, before, strict=True):
            yield row, next(fresh) if answer is None else answer, answer is not None


def _rows(chosen: RawSamples) -> Iterator[_Row]:
    for index, (sample, seen) in enumerate(read_samples(chosen)):
        count = len(sample.given)
        yield _Row(index, sample, seen[:count], seen[count:])


def _answer_before(row: _Row, chosen: RawSamples, out: Path, *, ply: bool) -> _Answer | None:
    """What an earlier run wrote of a sample; None when something of it is missing."""
    files = output.view_files(out, row.sample.scene, row.given[0].name)
    depth = output.read_depth(files, chosen.raw.size)
    pictures = views.read_pictures(out, row.sample.scene, row.targets, chosen.raw.size)
    written = not ply or (files.gaussians.is_file() and files.cameras.is_file())
    return _Answer(depth, pictures) if depth is not None and pictures is not None and written else None


def _groups(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _answers(method: Method, rows: Sequence[_Row], chosen: RawSamples, *, ply: bool) -> list[_Answer]:
    """What the method says of each row; DataError when something that it reads is missing, or its answer is bad."""
    arrays = stack_views([row.given for row in rows], chosen.depth_range, [row.targets for row in rows])
    if arrays.world_T_cam is None and "cam0_T_cam" in method.reads:
        raise DataError(
            f"{rows[0].label}: no camera poses, which {method.name} reads. Give the capture poses (for instance by running "
            "structure from motion on it), or a system that needs none."
        )
    if arrays.depth is None and method.oracle:
        raise DataError(
            f"{rows[0].label}: {method.name} reads the true depth, and this folder has none. Use another --system."
        )
    try:
        prediction, rendered = method.answer(to_batch(arrays))
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"{method.name}: the GPU's memory does not hold {len(rows)} samples of {chosen.raw.size[0]}x{chosen.raw.size[1]}. "
            "Give a smaller --batch-size or --size, or --device cpu."
        ) from error
    depths = prediction.depth[:, 0].float().cpu().numpy()
    for depth, row in zip(depths, rows, strict=True):
        if not (np.isfinite(depth) & (depth >= 0)).all():
            raise DataError(
                f"{row.label}: {method.name} answered depth between {depth.min()} and {depth.max()}; expected finite metres, "
                "0 for none. Look at the weights, and check the capture with `plumbline check`."
            )
    return [_answer(depth, prediction, rendered, i, ply=ply) for i, depth in enumerate(depths)]


def _answer(
    depth: Float32[np.ndarray, "h w"], prediction: Prediction, rendered: Rendered | None, row: int, *, ply: bool
) -> _Answer:
    pictures = np.empty((0, *depth.shape, 3), np.uint8)
    if rendered is not None:
        pictures = np.stack([to_8_bit(picture) for picture in rendered.image[row]])
    return _Answer(depth, pictures, gaussians_of(prediction).rows(slice(row, row + 1)) if ply else None)


def _finish(
    method: Method, chosen: RawSamples, result: FolderResult, row: _Row, answer: _Answer, *, kept: bool
) -> SheetRow:
    """Write the files of a view and count it; its row for the overview."""
    files = output.view_files(result.out, row.sample.scene, row.given[0].name)
    scored, valid = _score(row, answer, chosen)
    sheet = _sheet_row(row, answer, scored, valid)
    if not kept or not files.sheet.is_file():
        draw_sheet([sheet], files.sheet, method=method.name)
    result.rendered += views.write_pictures(result.out, row.sample.scene, row.given, row.targets, answer.pictures)
    if answer.gaussians is not None:
        views.write_scene(files, answer.gaussians, [*row.given, *row.targets], chosen.raw.size)
    if not kept:
        output.write_depth(files, answer.depth)
    result.rows += [] if scored is None else [scored]
    result.finished += 1
    result.kept += kept
    result.far += bool((answer.depth > output.FARTHEST).any())
    return sheet


def _score(row: _Row, answer: _Answer, chosen: RawSamples) -> tuple[Scored | None, Bool[np.ndarray, "h w"] | None]:
    view, (low, high) = row.given[0], chosen.depth_range
    if view.depth is None:
        return None, None
    valid = valid_mask(view.depth, mask=view.mask, depth_min=low, depth_max=high)
    names = "+".join(view.name for view in row.given)
    label = f"{row.sample.scene}/{names}"
    mask = None if view.mask is None else view.mask[None]
    truth = view.depth[None]
    (measured,) = measure(answer.depth[None], truth, mask=mask, depth_min=low, depth_max=high, names=[label])
    return Scored(row.index, row.sample.scene, names, "all", "none", measured), valid


def _sheet_row(row: _Row, answer: _Answer, scored: Scored | None, valid: Bool[np.ndarray, "h w"] | None) -> SheetRow:
    view, *sources = row.given
    return SheetRow(
        title=f"{row.sample.scene}   {view.name}",
        sources=tuple(source.name for source in sources),
        image=view.image,
        prediction=answer.depth,
        truth=None if valid is None or view.depth is None else np.where(valid, view.depth, np.float32(0)),
        metrics={} if scored is None else scored.row.values,
    )


def _latest(rows: Sequence[Scored]) -> dict[str, float]:
    return {"abs_rel": rows[-1].row.values["abs_rel"]} if rows and "abs_rel" in rows[-1].row.values else {}
