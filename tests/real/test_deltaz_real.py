"""DeltaZ's multi-view term on real captures: true depth must be consistent, and wrong readings must not."""

from pathlib import Path

import pytest
import torch

from plumbline.config import ByBaseline, SuiteConfig
from plumbline.data import rgbd, sun3d
from plumbline.data.canonical import fit, read_scene, write_scene
from plumbline.data.samples import build, gather
from plumbline.systems.deltaz.losses import multiview_consistency
from plumbline.systems.records import Batch, to_batch

CAPTURES = {
    "seven_scenes": (rgbd, rgbd.Options(colour_focal=528.0, stride=4)),
    "rgbd_objects": (rgbd, rgbd.Options(stride=2)),
    "sun3d_tum_cabinet": (sun3d, sun3d.Options()),
}
# The Kinect depth and motion-capture poses of the cabinet disagree by 0.9 % in the median between neighbours.
LIMITS = {"seven_scenes": 0.01, "rgbd_objects": 0.01, "sun3d_tum_cabinet": 0.02}


def pairs(capture: str, raw: Path, folder: Path) -> Batch:
    """Pairs of views of a real capture, 0.05 to 0.25 m apart, with true depth."""
    reader, options = CAPTURES[capture]
    name = reader.scenes(raw / capture, options)[0]
    views = [fit(view, (120, 160)) for view in reader.views(raw / capture, name, options)]
    write_scene(folder, dataset=capture, name=name, views=views, depth_range=(0.2, 5.0))
    sources = ByBaseline(kind="baseline", count=1, min_baseline=0.05, max_baseline=0.25)
    scenes = {name: read_scene(folder)}
    samples = build(SuiteConfig(dataset=capture, sources=sources, max_samples=12), scenes)
    return to_batch(gather(scenes, samples), predict_views=2)


def term(batch: Batch, K: torch.Tensor | None = None) -> float:
    """The multi-view term of true depth, as a share of the median depth."""
    depth = batch.depth * batch.mask
    scale = depth[batch.mask].median().expand(len(depth))
    K = batch.K if K is None else K
    return multiview_consistency(depth, K, batch.cam0_T_cam, scale, refined_views=2).item()


@pytest.mark.parametrize("capture", CAPTURES)
def test_true_depth_is_consistent(capture: str, real_data: Path, tmp_path: Path) -> None:
    batch = pairs(capture, real_data, tmp_path / "scene")
    wrong = batch.K.clone()
    wrong[..., :2, :] *= 2
    consistent = term(batch)
    assert 0 < consistent < LIMITS[capture]
    # Disagreements beyond the occlusion threshold of 5 % do not count, so that a wrong K cannot reach its true 50 %.
    assert term(batch, wrong) > 1.5 * consistent
