"""Gaussians on the true depth of two real views must show, from between them, what the camera there saw."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.data import rgbd, sun3d
from plumbline.data.canonical import fit
from plumbline.records import SampleArrays
from plumbline.rendering.gaussians import Gaussians
from plumbline.systems.depthsplat import Config, System
from plumbline.systems.depthsplat.gaussians import OPACITY, ROTATION, adapt
from plumbline.systems.depthsplat.system import normalised
from plumbline.systems.depthsplat.views import Views
from plumbline.systems.records import Batch, to_batch

SIZE = (120, 160)
# Capture: reader, targets, frames from a target to its two context views, least PSNR (dB) of the mean error. The
# cabinet's exposure changes between frames.
CASES: dict[str, tuple[Any, range, int, float]] = {
    "seven_scenes": (rgbd, range(4, 196, 24), 4, 27.0),
    "sun3d_tum_cabinet": (sun3d, range(5, 57, 6), 1, 27.0),
}
# A Gaussian is faint, so that it does not hide its neighbours; its colour is then what is seen over how much is covered.
FAINT, LEAST_ALPHA = -3.0, 0.04
BORDER = 4


def triplets(capture: str, raw: Path) -> list[tuple[Batch, Tensor]]:
    """Two context views with their target, and the target's true depth (h, w)."""
    reader, targets, gap, _ = CASES[capture]
    name = reader.scenes(raw / capture, reader.Options())[0]
    wanted = sorted({i + k for i in targets for k in (-gap, 0, gap)})
    read = reader.views(raw / capture, name, reader.Options(), select=wanted)
    views = {i: fit(view, SIZE) for i, view in zip(wanted, read, strict=True)}

    def batch(i: int) -> Batch:
        given, target = (views[i - gap], views[i + gap]), views[i]
        stacked = {x: np.stack([getattr(v, x) for v in given])[None] for x in ("image", "K", "world_T_cam", "depth")}
        seen = {f"target_{x}": getattr(target, x)[None, None] for x in ("image", "K")}
        pose = target.world_T_cam[None, None]
        return to_batch(SampleArrays(**stacked, **seen, world_T_target=pose, depth_range=np.array([[0.5, 8.0]])))

    return [(batch(i), torch.from_numpy(views[i].depth)) for i in targets]


def measured_gaussians(batch: Batch) -> Gaussians:
    """One faint Gaussian at every pixel of the context views with true depth, of its colour."""
    v, (h, w) = batch.image.shape[1], SIZE
    near, far = (batch.depth_range[:, k, None].expand(-1, v) for k in (0, 1))
    views = Views(batch.image, normalised(batch.K, SIZE), batch.cam0_T_cam, near, far)
    raw = torch.zeros(1, v, 37, h, w)
    raw[:, :, OPACITY], raw[:, :, ROTATION] = FAINT, torch.eye(4)[3, :, None, None]
    whole = adapt(raw, batch.depth.clamp(min=1e-3), views, Config(preset="tiny"))
    kept = batch.mask.flatten()
    return Gaussians(**{f.name: getattr(whole, f.name)[:, kept] for f in fields(whole)})


def error_by_shift(batch: Batch, depth: Tensor, shifts: Tensor) -> tuple[Tensor, float]:
    """Mean squared error of the target rendered with its principal point moved by each of `shifts` (n, 2), pixels; and the
    share of the measured pixels at which the rendered depth is the true one, where alone colours are compared.
    """
    gaussians, system = measured_gaussians(batch), System(Config(preset="tiny"))
    K = batch.target_K.expand(-1, len(shifts), -1, -1).clone()
    K[..., :2, 2] += shifts
    poses = batch.cam0_T_target.expand(-1, len(shifts), -1, -1)
    with torch.no_grad():
        shown = system.render(gaussians, K, poses, SIZE, nearest=batch.depth_range[:, 0])
    inner = torch.zeros(SIZE, dtype=torch.bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    measured = inner & (depth > 0)
    same = (shown.depth[0, 0] / shown.alpha[0, 0] / depth - 1).abs() < 0.02
    compared = measured & same & (shown.alpha[0] > LEAST_ALPHA).all(0)
    colour = shown.colour[0] / shown.alpha[0, :, None].clamp(min=LEAST_ALPHA)
    errors = (colour - batch.target_image[0]).square()[..., compared].mean(dim=(1, 2))
    return errors, float(compared.sum() / measured.sum())


@pytest.mark.parametrize("capture", CASES)
def test_true_depth_shows_the_view_between_where_it_was_seen(capture: str, real_data: Path) -> None:
    """A mirrored axis, an inverted pose or a shifted grid anywhere between files and pictures would show."""
    shifts = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    found = [error_by_shift(batch, depth, shifts) for batch, depth in triplets(capture, real_data)]
    here, left, right, up, down = torch.stack([errors for errors, _ in found]).mean(0)
    assert -10 * torch.log10(here) > CASES[capture][-1]
    # The bottom of the parabola through three errors, each moved by a pixel.
    x, y = ((less - more) / (2 * (less + more - 2 * here)) for less, more in ((left, right), (up, down)))
    assert x.abs() < 0.3 and y.abs() < 0.3, f"rendered views lie ({x:.2f}, {y:.2f}) pixels off"
    assert np.mean([share for _, share in found]) > 0.75
