"""The gate as its stage runs it: a system of params.yaml on an extracted sample, with what that stage leaves behind."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fabricated import write_dataset
from plumbline.config import DatasetConfig
from plumbline.data.checks import CheckConfig
from plumbline.data.pair import Pair, PairConfig, extract_pair, read_pair
from plumbline.errors import ConfigError, DataError
from plumbline.files import read_image, read_json
from plumbline.overfit import OverfitConfig
from plumbline.overfit_stage import Places, run_gate, sample_batch
from test_overfit import DEPTHSPLAT

SCENES = ["flat/hall", "flat/kitchen"]
ROOMS = DatasetConfig.model_validate(
    {
        "format": "sun3d",
        "source": {"kind": "folder", "path": "x"},
        "image_size": [24, 32],
        "depth_range": [0.5, 8.0],
        "split": {"train": SCENES},
    }
)
SHORT: dict[str, Any] = {
    "steps": 3,
    "log_steps": [1, 2],
    "device": "cpu",
    "threads": 1,
    # The rooms were written with cameras that do not move: no check could tell.
    "criteria": {"preset": "deltaz", "data": False, "depth_reduction": None, "input_ratio": None},
}
DELTAZ: dict[str, Any] = {"preset": "tiny", "initial": "plane_sweep", "base_channels": 8, "depth": 1}


def gate(places: Places, name: str = "deltaz", own: dict[str, Any] = DELTAZ, **changes: Any) -> Any:
    config = OverfitConfig.model_validate({**SHORT, **changes})
    return run_gate(name, own, config, CheckConfig(), seed=0, places=places)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    write_dataset(tmp_path / "scenes", "rooms", SCENES)
    values = {"dataset": "rooms", "sources": {"kind": "gap", "gap": 1}, "context": 2, "predict_views": 1}
    found = Places(tmp_path / "pair/deltaz", tmp_path / "labels", tmp_path / "runs/overfit/deltaz")
    config = PairConfig.model_validate(values)
    extract_pair(config, datasets={"rooms": ROOMS}, scenes=tmp_path / "scenes", out=found.pair)
    return found


def sample(places: Places) -> Pair:
    return read_pair(places.pair)


def test_a_system_is_judged_on_its_sample_and_leaves_a_record(places: Places) -> None:
    verdict = gate(places)
    assert verdict.passed, verdict.diagnosis
    pictures = ["step_1.png", "step_2.png", "step_3.png"]
    files = ["curve.csv", "passed.json", "record.md", *pictures, "verdict.json"]
    assert sorted(path.name for path in places.out.iterdir()) == files
    heights = {read_image(places.out / name).shape for name in pictures}
    assert len(heights) == 1
    assert read_json(places.out / "passed.json") == {"system": "deltaz", "passed": True}


def test_what_the_gate_builds_otherwise_stands_in_the_record(places: Places) -> None:
    gate(places, system={"inputs": ["rgb", "initial_depth"], "patch": 2})
    stored = read_json(places.out / "verdict.json")["configuration"]
    assert stored["system"] == {"inputs": ["rgb", "initial_depth"], "patch": 2}
    assert stored["built from"] == {**DELTAZ, "inputs": ["rgb", "initial_depth"], "patch": 2}
    assert stored["initial depth"] == "2 m everywhere, the middle of the depth range"
    assert "| initial depth | `2 m everywhere" in (places.out / "record.md").read_text()


def test_a_wrong_key_of_the_gate_s_own_system_is_named(places: Places) -> None:
    with pytest.raises(ConfigError, match=r"systems\.deltaz\.patsch: unknown key\. Did you mean 'patch'"):
        gate(places, system={"patsch": 2})


def test_two_runs_give_the_same_numbers(places: Places) -> None:
    curves = []
    for _ in range(2):
        gate(places)
        curves.append((places.out / "curve.csv").read_bytes())
    assert curves[0] == curves[1]


def test_a_refiner_starts_from_a_constant_and_only_a_refiner_does(places: Places) -> None:
    batch = sample_batch(sample(places), frozenset({"image", "initial_depth"}))
    assert batch.initial_depth is not None and batch.initial_depth.shape == (1, 1, 24, 32)
    assert torch.equal(batch.initial_depth.unique(), torch.tensor([math.sqrt(0.5 * 8.0)]))
    assert batch.initial_confidence is None and batch.image.shape == (1, 2, 3, 24, 32)
    assert sample_batch(sample(places), frozenset({"image"})).initial_depth is None


def test_views_that_are_to_be_rendered_are_not_shown(tmp_path: Path) -> None:
    write_dataset(tmp_path / "scenes", "rooms", SCENES)
    config = PairConfig.model_validate(
        {"dataset": "rooms", "sources": {"kind": "gap", "gap": 1}, "context": 2, "target": 1}
    )
    pair = extract_pair(config, datasets={"rooms": ROOMS}, scenes=tmp_path / "scenes", out=tmp_path / "pair/splat")
    batch = sample_batch(pair, frozenset({"image"}))
    assert batch.image.shape[1] == 2 and pair.roles == ("context", "context", "target")
    assert batch.target_image is not None and batch.target_image.shape == (1, 1, 3, 24, 32)
    shown = (255 * batch.target_image[0, 0].movedim(0, -1)).round()
    np.testing.assert_array_equal(shown.numpy(), np.array(pair.scene.images[2], np.float32))


def test_a_system_that_renders_is_judged_by_its_target_views_too(tmp_path: Path) -> None:
    write_dataset(tmp_path / "scenes", "rooms", SCENES)
    values = {"dataset": "rooms", "sources": {"kind": "target", "gap": 1}, "predict_views": 2, "image_size": [16, 32]}
    places = Places(tmp_path / "pair/depthsplat", tmp_path / "labels", tmp_path / "runs/overfit/depthsplat")
    config = PairConfig.model_validate(values)
    extract_pair(config, datasets={"rooms": ROOMS}, scenes=tmp_path / "scenes", out=places.pair)
    criteria = {"preset": "depthsplat", "data": False, "depth_reduction": None, "psnr": 1.0, "input_ratio": None}
    own = {**DEPTHSPLAT, "vit_grid": 4}
    verdict = gate(places, "depthsplat", own, criteria=criteria, steps=4, log_steps=[1])
    assert verdict.passed, verdict.diagnosis
    stored = read_json(places.out / "verdict.json")
    assert [o["name"] for o in stored["criteria"] if o["name"] == "psnr"] and stored["run"]["trained"]["psnr"] > 1
    assert "val/psnr" in (places.out / "curve.csv").read_text().splitlines()[0]
    text = (places.out / "record.md").read_text()
    assert "| PSNR of targets, dB |" in text and "0002" in text
    picture = read_image(places.out / "step_4.png").shape
    assert picture[0] == 3 * (46 + 160) + 36


def test_a_system_that_learns_from_labels_gets_those_of_its_views_and_does_without_none(places: Places) -> None:
    with pytest.raises(DataError, match=r"labels/rooms/flat/hall\.npy: no such file; .*pseudo_labels@rooms"):
        gate(places, "deltas", {"preset": "tiny"})
    (places.labels / "rooms/flat").mkdir(parents=True)
    stored = np.random.default_rng(0).random((5, 24, 32)).astype(np.float16)
    np.save(places.labels / "rooms/flat/hall.npy", stored)
    batch = sample_batch(sample(places), frozenset({"image"}), labels=places.labels)
    assert batch.keypoint_probability is not None
    np.testing.assert_array_equal(batch.keypoint_probability[0].numpy(), stored[[1, 0]].astype(np.float32))
