"""DELTAS' published loader and metrics on ScanNet's sample frames, met by our reader, resize and averaging as options.

The reference values were made with the official code (`deltas_scannet_sample.json`); only raw frames are read here. Images
are 8-bit in a canonical scene, where the official loader keeps the fractions of its interpolation.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.config import SuiteConfig
from plumbline.data import rgbd, samples
from plumbline.data.canonical import fit, read_scene, validate_view, write_scene
from plumbline.evaluation import Scored, batch_means
from plumbline.metrics import THRESHOLDS, measure
from plumbline.records import Sample, Scene

OPTIONS = rgbd.Options(cameras="scene_txt", scene_list="scannetv2_sample.txt")
SIZE = (240, 320)
CAPS = {"depth_min": 0.5, "depth_max": 10.0}
# Their names for our metrics.
NAMES = {
    "abs_rel": "abs_rel",
    "abs_diff": "abs_diff",
    "sq_rel": "sq_rel",
    "a1": "delta1",
    "a2": "delta2",
    "a3": "delta3",
}


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "deltas_scannet_sample.json").read_text())


@pytest.fixture(scope="module")
def scene(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The sample as a canonical scene, read and resized as the official loader does."""
    raw, folder = real_data / "scannet_sample", tmp_path_factory.mktemp("scannet") / "scene"
    (name,) = rgbd.scenes(raw, OPTIONS)
    views = list(rgbd.views(raw, name, OPTIONS))
    for view in views:
        validate_view(view, name)
    fitted = (fit(view, SIZE, resize="bilinear") for view in views)
    write_scene(folder, dataset="scannet", name=name, views=fitted, depth_range=(0.5, 10.0), storage="png")
    return read_scene(folder)


@pytest.fixture(scope="module")
def drawn(scene: Scene) -> list[Sample]:
    suite = {"dataset": "scannet", "split": "all", "sources": {"kind": "sequence", "length": 3, "gap": 1}}
    return samples.build(SuiteConfig.model_validate(suite), {scene.name: scene})


def test_the_same_frames_are_given_together(scene: Scene, drawn: list[Sample], expected: dict[str, Any]) -> None:
    got = [{"target": f"{s.views[0]}.jpg", "refs": [f"{view}.jpg" for view in s.views[1:]]} for s in drawn]
    assert got == [{key: row[key] for key in ("target", "refs")} for row in expected["samples"]]
    assert scene.view_names == ("0", "1", "2")


def test_cameras(scene: Scene, drawn: list[Sample], expected: dict[str, Any]) -> None:
    assert scene.world_T_cam is not None
    for sample, row in zip(drawn, expected["samples"], strict=True):
        target, first = sample.views[:2]
        np.testing.assert_allclose(scene.K[target], row["intrinsics"], rtol=1e-7)
        # Files hold six decimals, so a rotation's transpose is its inverse to 1e-6 only; Batches hold this inverse too.
        relative = np.linalg.inv(scene.world_T_cam[first]) @ scene.world_T_cam[target]
        np.testing.assert_allclose(relative[:3], row["rel_pose_first_ref"], atol=2e-7)


def test_images(scene: Scene, drawn: list[Sample], expected: dict[str, Any]) -> None:
    for sample, row in zip(drawn, expected["samples"], strict=True):
        image = (scene.images[sample.views[0]].astype(np.float64) / 255 - 0.5) / 0.5
        assert list(image.transpose(2, 0, 1).shape) == row["image_shape"]
        assert image.mean() == pytest.approx(row["image_mean"], abs=3e-5)
        assert image.std() == pytest.approx(row["image_std"], abs=3e-5)


def test_depth_with_its_holes_averaged_in(scene: Scene, drawn: list[Sample], expected: dict[str, Any]) -> None:
    assert scene.depth is not None
    for sample, row in zip(drawn, expected["samples"], strict=True):
        depth = scene.depth[sample.views[0]]
        valid = depth[(depth >= 0.5) & (depth <= 10)]
        assert list(depth.shape) == row["depth_shape"]
        assert valid.size == row["valid_pixels"]
        assert np.count_nonzero(depth == 0) == row["zeros"]
        assert np.count_nonzero((depth > 0) & (depth < 0.5)) == row["pixels_below_0.5m_but_nonzero"]
        assert valid.mean(dtype=np.float64) == pytest.approx(row["depth_valid_mean"], rel=1e-6)
        assert (valid.min(), valid.max()) == (
            pytest.approx(row["depth_min"], abs=1e-6), pytest.approx(row["depth_max"], abs=1e-6)
        )  # fmt: skip


@pytest.mark.parametrize("key", ["metrics_constant_2m", "metrics_gt_times_1.1"])
def test_metrics_with_the_official_average(
    scene: Scene, drawn: list[Sample], expected: dict[str, Any], key: str
) -> None:
    truth = np.stack([scene.depth[sample.views[0]] for sample in drawn])
    prediction = np.full_like(truth, 2) if "constant" in key else truth * np.float32(1.1)
    rows = [Scored(i, scene.name, "", "all", "none", row) for i, row in enumerate(measure(prediction, truth, **CAPS))]
    (values,) = batch_means(rows, batch_size=16)["all", "none"].values()
    for theirs, ours in NAMES.items():
        slack = ties(prediction, truth, THRESHOLDS[ours]) if ours in THRESHOLDS else 0
        assert values[ours] == pytest.approx(expected[key][theirs], rel=2e-6, abs=slack), theirs


def ties(prediction: np.ndarray, truth: np.ndarray, limit: float) -> float:
    """The share of pixels whose ratio is the limit itself: depth in whole millimetres has them, rounding decides on them."""
    valid = (truth >= CAPS["depth_min"]) & (truth <= CAPS["depth_max"])
    ratio = np.abs(np.log(prediction[valid].astype(np.float64) / truth[valid]))
    return float(np.mean(np.abs(ratio - np.log(limit)) < 1e-6))
