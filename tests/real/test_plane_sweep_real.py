"""The plane sweep on real captures against the oracle plane: with one set of parameters it must be well below it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.data import rgbd, sun3d
from plumbline.data.canonical import fit
from plumbline.records import SampleArrays, View
from plumbline.systems import build
from plumbline.systems.records import Batch, to_batch

SIZE = (128, 160)
# Capture: reader, references, frames from a reference to its sources, depth range in metres, and the largest allowed
# mean error relative to that of each image's own median depth.
CASES: dict[str, tuple[Any, range, tuple[int, ...], tuple[float, float], float]] = {
    "seven_scenes": (rgbd, range(10, 190, 30), (-5, 5, -10, 10), (0.5, 8.0), 0.6),
    "rgbd_objects": (rgbd, range(6, 44, 10), (-3, 3, -6, 6), (0.3, 2.0), 0.85),
    # A nearly textureless cabinet on a bare floor.
    "sun3d_tum_cabinet": (sun3d, range(2, 56, 9), (-1, 1, -2, 2), (0.5, 8.0), 0.95),
}


def samples(capture: str, raw: Path) -> Batch:
    """Each reference with its four sources, read and scaled as the canonical scenes are."""
    reader, references, gaps, depth_range, _ = CASES[capture]
    options = reader.Options()
    name = reader.scenes(raw / capture, options)[0]
    indices = sorted({i + gap for i in references for gap in (0, *gaps)})
    views = reader.views(raw / capture, name, options, select=indices)
    by_index = {i: fit(view, SIZE) for i, view in zip(indices, views, strict=True)}
    rows = [[by_index[i + gap] for gap in (0, *gaps)] for i in references]
    return to_batch(stacked(rows, depth_range))


def stacked(rows: list[list[View]], depth_range: tuple[float, float]) -> SampleArrays:
    def field(name: str) -> np.ndarray:
        return np.stack([np.stack([getattr(view, name) for view in row]) for row in rows])

    return SampleArrays(
        image=field("image"),
        K=field("K"),
        world_T_cam=field("world_T_cam"),
        depth=field("depth"),
        depth_range=np.tile(np.array(depth_range), (len(rows), 1)),
    )


def errors(depth: Tensor, batch: Batch) -> list[Tensor]:
    """The relative errors of each sample's measured pixels within 0.1 to 10 m."""
    truth = batch.depth[:, 0]
    valid = (truth >= 0.1) & (truth <= 10)
    return [((d - t).abs() / t)[m] for d, t, m in zip(depth[:, 0], truth, valid, strict=True)]


@pytest.mark.parametrize("capture", CASES)
def test_the_sweep_is_better_than_the_best_plane_and_knows_where(capture: str, real_data: Path) -> None:
    batch = samples(capture, real_data)
    prediction = build("plane_sweep", {})(batch)
    swept = errors(prediction.depth, batch)
    oracle = torch.stack([e.mean() for e in errors(build("median_plane", {})(batch).depth, batch)]).mean()
    assert torch.stack([e.mean() for e in swept]).mean() < CASES[capture][-1] * oracle
    measured = [(t >= 0.1) & (t <= 10) for t in batch.depth[:, 0]]
    halves = [
        e[c[m].argsort(descending=True)].chunk(2)
        for e, c, m in zip(swept, prediction.confidence[:, 0], measured, strict=True)
    ]
    surer, others = (torch.stack([half[i].mean() for half in halves]).mean() for i in (0, 1))
    assert surer < 0.7 * others
