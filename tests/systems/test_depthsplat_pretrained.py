"""Checkpoints: published layouts, partial starts with their report, and files that do not fit."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plumbline.errors import DataError
from plumbline.systems.depthsplat import pretrained
from plumbline.systems.depthsplat.config import Config
from plumbline.systems.depthsplat.encoder import Encoder


class Model(nn.Module):
    """What a system is to a checkpoint."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.encoder = Encoder(Config(**({"preset": "tiny"} | changes)))


def drawn(**changes: object) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {name: torch.randn(value.shape) for name, value in Model(**changes).state_dict().items()}


def equal(model: Model, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_published_file_is_loaded_whole(tmp_path: Path, key: str | None) -> None:
    state = drawn()
    torch.save(state if key is None else {key: state, "global_step": 3}, tmp_path / "gs.ckpt")
    model = Model()
    pretrained.load(model, tmp_path / "gs.ckpt")
    assert equal(model, state)


def test_a_depth_file_fits_a_model_without_gaussians(tmp_path: Path) -> None:
    state = drawn(gaussians=False)
    theirs = {name.removeprefix("encoder.depth_predictor."): value for name, value in state.items()}
    torch.save({"model": theirs}, tmp_path / "depth.pth")
    model = Model(gaussians=False)
    pretrained.load(model, tmp_path / "depth.pth")
    assert equal(model, state)
    with pytest.raises(DataError, match=r"missing: encoder\.feature_upsampler\..*gaussians: false"):
        pretrained.load(Model(), tmp_path / "depth.pth")


def test_gaussians_are_left_out_of_a_model_without_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = drawn()
    torch.save({"state_dict": state}, tmp_path / "gs.ckpt")
    model = Model(gaussians=False)
    with caplog.at_level(logging.INFO, logger="plumbline"):
        pretrained.load(model, tmp_path / "gs.ckpt")
    assert equal(model, state) and "entries of Gaussians" in caplog.text


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = drawn()
    state["encoder.extra"] = torch.ones(1)
    state["encoder.gaussian_head.2.bias"] = torch.ones(3)
    del state["encoder.depth_predictor.backbone.conv1.weight"]
    torch.save(state, tmp_path / "gs.ckpt")
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = (
        r"missing: encoder\.depth_predictor\.backbone\.conv1\.weight; unexpected: encoder\.extra; "
        r"mis-shaped: encoder\.gaussian_head\.2\.bias \(3,\) instead of \(37,\)"
    )
    with pytest.raises(DataError, match=expected):
        pretrained.load(model, tmp_path / "gs.ckpt")
    assert equal(model, before)


def test_a_start_from_unimatch_takes_backbone_and_transformer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, prefix = drawn(), "encoder.depth_predictor."
    theirs = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith((prefix + "backbone.", prefix + "transformer."))
    }
    torch.save({"model": {**theirs, "upsampler.0.weight": torch.ones(2)}}, tmp_path / "gmflow.pth")
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="plumbline"):
        report = pretrained.init_from(model, tmp_path / "gmflow.pth")
    after = model.state_dict()
    assert set(report.taken) == {prefix + name for name in theirs}
    assert all(torch.equal(after[name], state[name]) for name in report.taken)
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert report.unused == (prefix + "upsampler.0.weight",)
    assert f"took {len(theirs)} of {len(before)} entries" in caplog.text
    assert "first weights remain in: depth_predictor.depth_head" in caplog.text


@pytest.mark.parametrize("prefix", ["pretrained.", ""])
def test_a_start_from_depth_anything_or_dinov2_takes_the_vit(tmp_path: Path, prefix: str) -> None:
    vit = "encoder.depth_predictor.pretrained."
    state = {name.removeprefix(vit): value for name, value in drawn().items() if name.startswith(vit)}
    torch.save(
        {prefix + name: value for name, value in {**state, "mask_token": torch.zeros(1, 48)}.items()}, tmp_path / "f"
    )
    model = Model()
    report = pretrained.init_from(model, tmp_path / "f")
    assert len(report.taken) == len(state) and report.unused == (vit + "mask_token",)
    assert all(torch.equal(model.state_dict()[vit + name], value) for name, value in state.items())


def test_a_start_from_another_size_or_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"pretrained.cls_token": torch.zeros(1, 1, 64)}, tmp_path / "large.pth")
    with pytest.raises(DataError, match=r"another size of model: mis-shaped: .*cls_token \(1, 1, 64\)"):
        pretrained.init_from(Model(), tmp_path / "large.pth")
    torch.save({"resnet.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="none of its 1 entries"):
        pretrained.init_from(Model(), tmp_path / "other.pth")


def test_a_file_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    torch.save({"state_dict": Trap()}, tmp_path / "gs.ckpt")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        pretrained.load(Model(), tmp_path / "gs.ckpt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "gs.ckpt")
    with pytest.raises(DataError, match="expected a state dict"):
        pretrained.load(Model(), tmp_path / "gs.ckpt")
    assert not (tmp_path / "ran").exists()
