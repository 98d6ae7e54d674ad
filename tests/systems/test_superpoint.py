"""SuperPoint as a teacher: layers by hand, probabilities of a cell, strict weights, and what the labels' stage makes of it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from fabricated import write_dataset
from plumbline.data import pseudo_labels
from plumbline.errors import ConfigError, DataError
from plumbline.files import sha256_file
from plumbline.systems.superpoint import SuperPoint, load_teacher, probabilities

ROOT = Path(__file__).resolve().parents[2]
# The public format: name -> (inputs, outputs, side of the kernel).
LAYERS = {
    "conv1a": (1, 64, 3),
    "conv1b": (64, 64, 3),
    "conv2a": (64, 64, 3),
    "conv2b": (64, 64, 3),
    "conv3a": (64, 128, 3),
    "conv3b": (128, 128, 3),
    "conv4a": (128, 128, 3),
    "conv4b": (128, 128, 3),
    "convPa": (128, 256, 3),
    "convPb": (256, 65, 1),
    "convDa": (128, 256, 3),
    "convDb": (256, 256, 1),
}


def random_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (inputs, outputs, side) in LAYERS.items():
        scale = (2 / (inputs * side * side)) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return state


def brightest_of_a_cell(*, factor: float, bias: float) -> dict[str, Tensor]:
    """Weights that hand the grey value on, so that pooling leaves each cell's largest: logit 10 = factor x it + bias."""
    state = {name: torch.zeros_like(value) for name, value in random_weights().items()}
    for name in ("conv1a", "conv1b", "conv2a", "conv2b", "conv3a", "conv3b", "conv4a", "conv4b", "convPa"):
        state[f"{name}.weight"][0, 0, 1, 1] = 1
    state["convPb.weight"][10, 0] = factor
    state["convPb.bias"][10] = bias
    return state


def saved(state: object, folder: Path) -> Path:
    torch.save(state, folder / "superpoint.pth")
    return folder / "superpoint.pth"


def teacher_of(state: object, folder: Path):
    file = saved(state, folder)
    return load_teacher(file, sha256=sha256_file(file))


def test_the_names_and_shapes_are_those_of_the_public_format() -> None:
    own = {name: tuple(value.shape) for name, value in SuperPoint().state_dict().items()}
    assert own == {name: tuple(value.shape) for name, value in random_weights().items()}


def test_the_layers_are_in_their_order() -> None:
    state, x = random_weights(), torch.rand(2, 1, 32, 40, generator=torch.Generator().manual_seed(1))
    network = SuperPoint()
    network.load_state_dict(state)

    def layer(x: Tensor, name: str) -> Tensor:
        padding = state[f"{name}.weight"].shape[-1] // 2
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    with torch.no_grad():
        found = network(x)
        for name in ("1a", "1b", "pool", "2a", "2b", "pool", "3a", "3b", "pool", "4a", "4b", "Pa"):
            x = F.max_pool2d(x, 2, 2) if name == "pool" else layer(x, f"conv{name}").clamp(min=0)
        torch.testing.assert_close(found, layer(x, "convPb"))
    assert found.shape == (2, 65, 4, 5)
    assert (found < 0).any()


def test_a_logit_belongs_to_its_pixel_and_the_last_to_none() -> None:
    logits = torch.zeros(1, 65, 2, 3)
    logits[0, 8 * 3 + 5, 1, 2] = 100
    logits[0, 64, 0, 0] = 100
    found = probabilities(logits)[0]
    assert found.shape == (16, 24)
    assert found[8 + 3, 16 + 5].item() == pytest.approx(1)
    torch.testing.assert_close(found[:8, :8], torch.zeros(8, 8))
    torch.testing.assert_close(found[8:, :8], torch.full((8, 8), 1 / 65))


def test_a_cell_never_sums_to_more_than_one() -> None:
    logits = 5 * torch.randn(3, 65, 4, 5, generator=torch.Generator().manual_seed(0))
    cells = probabilities(logits).reshape(3, 4, 8, 5, 8).sum(dim=(2, 4))
    torch.testing.assert_close(cells, 1 - logits.softmax(dim=1)[:, 64])
    assert (cells < 1 + 1e-6).all()


def test_images_are_seen_grey_between_0_and_1(tmp_path: Path) -> None:
    teacher = teacher_of(brightest_of_a_cell(factor=3.0, bias=-1.0), tmp_path)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[0, 3, 4] = 255
    images[1, 15, 15] = (200, 0, 0)
    found = teacher(images, ["a", "b"])
    assert found.dtype == np.float32
    assert found.shape == (2, 16, 16)

    def tenth(grey: float) -> float:
        return float(np.exp(3 * grey - 1) / (np.exp(3 * grey - 1) + 64))

    # Channel 10 is the pixel at row 1, column 2 of each cell; red counts 0.299 in grey.
    assert found[0, 1, 2] == pytest.approx(tenth(1.0), rel=1e-5)
    assert found[0, 9, 10] == pytest.approx(tenth(0.0), rel=1e-5)
    assert found[1, 9, 10] == pytest.approx(tenth(60 / 255), rel=1e-5)
    assert found[0, 0, 0] == pytest.approx((1 - tenth(1.0)) / 64, rel=1e-5)


def test_sizes_that_are_no_multiple_of_a_cell_are_padded_with_what_is_at_the_edge(tmp_path: Path) -> None:
    teacher = teacher_of(random_weights(), tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (1, 20, 27, 3)).astype(np.uint8)
    whole = np.pad(image, ((0, 0), (0, 4), (0, 5), (0, 0)), mode="edge")
    found = teacher(image, ["a"])
    assert found.shape == (1, 20, 27)
    np.testing.assert_allclose(found, teacher(whole, ["a"])[:, :20, :27], atol=1e-6)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pth: no such file; expected SuperPoint's weights"):
        load_teacher(tmp_path / "none.pth", sha256="0" * 64)
    file = saved(random_weights(), tmp_path)
    with pytest.raises(ConfigError, match=f"has SHA-256 {sha256_file(file)}; pseudo_labels.teacher.sha256"):
        load_teacher(file, sha256="0" * 64)
    state = random_weights()
    state["convPb.bias"], state["extra"] = torch.zeros(64), state.pop("conv2a.bias")
    with pytest.raises(DataError, match=r"(?s)missing.*conv2a\.bias.*unexpected.*extra.*convPb\.bias \(64,\)"):
        teacher_of(state, tmp_path)


def test_the_stage_writes_the_teacher_s_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data/scenes", "rooms", ["flat/a"])
    (tmp_path / ".dvc").mkdir()
    file = saved(random_weights(), tmp_path)
    dataset = {
        "format": "rgbd",
        "source": {"kind": "folder", "path": "x"},
        "image_size": [24, 32],
        "depth_range": [0.5, 8],
        "split": {"train": ["flat/a"]},
    }
    teacher = {"path": file.name, "sha256": sha256_file(file)}
    params = {"seed": 0, "datasets": {"rooms": dataset}, "tracking": {"enabled": False}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params | {"pseudo_labels": {"teacher": teacher}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    spec = importlib.util.spec_from_file_location("stage", ROOT / "stages/pseudo_labels.py")
    assert spec is not None and spec.loader is not None
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    stage.main("rooms")
    stored = np.load("data/pseudo_labels/rooms/flat/a.npy")
    images = np.load("data/scenes/rooms/flat/a/images.npy")
    expected = load_teacher(file, sha256=sha256_file(file))(images, [""] * len(images))
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-6)
    cells = stored.astype(np.float64).reshape(5, 3, pseudo_labels.CELL, 4, pseudo_labels.CELL).sum(axis=(2, 4))
    assert (cells <= 1).all()
    assert cells.max() > 0.9
