"""What a sample's Gaussians give: a PLY with its cameras, and pictures of the views that are rendered from them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from plumbline.errors import ConfigError
from plumbline.files import atomic_path, read_image, write_jpg, write_json, write_png
from plumbline.folder_prediction import output
from plumbline.folder_prediction.method import Method
from plumbline.folder_prediction.samples import RawSamples
from plumbline.image_metrics import psnr
from plumbline.records import View
from plumbline.rendering import Gaussians
from plumbline.rendering.moving import moved
from plumbline.rendering.ply import write_gaussians


@dataclass(frozen=True)
class ViewScore:
    """How near a rendered view is to what was seen: PSNR in dB, of 8-bit pictures in [0, 1], the whole of them."""

    scene: str
    given: str
    target: str
    psnr: float


def require_gaussians(method: Method, chosen: RawSamples, *, ply: bool) -> None:
    """ConfigError when Gaussians are to be written or rendered and the method predicts none."""
    if (ply or chosen.has_targets) and not method.makes_gaussians:
        asked = "--ply" if ply else "samples with views to be rendered (--render, --index)"
        raise ConfigError(
            f"{asked}: {method.name} predicts no Gaussians. Use --system depthsplat with weights that have them, or leave "
            "that out for depth alone."
        )


def write_scene(files: output.ViewFiles, gaussians: Gaussians, views: Sequence[View], size: tuple[int, int]) -> None:
    """Write one scene's `gaussians`, given in the frame of `views[0]`, in the capture's world frame, and the views' cameras.

    Both are what `plumbline render` reads. Views have poses.
    """
    poses = [view.world_T_cam for view in views if view.world_T_cam is not None]
    write_gaussians(files.gaussians, moved(gaussians.to("cpu", torch.float64), torch.from_numpy(poses[0])[None]))
    cameras = {"K": [view.K.tolist() for view in views], "world_T_cam": [pose.tolist() for pose in poses]}
    write_json(files.cameras, {**cameras, "size": list(size), "names": [view.name for view in views]})


def write_pictures(
    out: Path, scene: str, given: Sequence[View], targets: Sequence[View], pictures: UInt8[np.ndarray, "t h w 3"]
) -> list[ViewScore]:
    """Write what the `targets` see, alone and beside what was really seen there; how near each is."""
    names, scores = "+".join(view.name for view in given), []
    for view, picture in zip(targets, pictures, strict=True):
        alone, beside = output.rendered_files(out, scene, view.name)
        write_png(alone, picture)
        write_jpg(beside, np.hstack([view.image, picture]))
        scores.append(ViewScore(scene, names, view.name, psnr(picture, view.image)))
    return scores


def read_pictures(
    out: Path, scene: str, targets: Sequence[View], size: tuple[int, int]
) -> UInt8[np.ndarray, "t h w 3"] | None:
    """The pictures that an earlier run wrote of all `targets`; None when one is missing."""
    paths = [output.rendered_files(out, scene, view.name)[0] for view in targets]
    if not all(path.is_file() for path in paths):
        return None
    return np.stack([read_image(path) for path in paths]) if paths else np.empty((0, *size, 3), np.uint8)


def write_view_scores(path: Path, scores: Sequence[ViewScore]) -> None:
    """Write a row for each rendered view."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "target", "given", "psnr"])
    writer.writerows([score.scene, score.target, score.given, f"{score.psnr:.9g}"] for score in scores)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
