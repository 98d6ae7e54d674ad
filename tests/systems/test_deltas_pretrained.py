"""The published checkpoint's format: strict both ways, readable whatever harmless things lie beside the weights."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plumbline import checkpoint
from plumbline.errors import DataError
from plumbline.systems import build
from plumbline.systems.deltas import System, pretrained

SMALL: dict[str, Any] = {
    "preset": "tiny", "encoder_stem": 4, "encoder_widths": (4, 4, 4, 4), "depth_stem": 2, "depth_widths": (2, 2, 2, 2),
    "decoder_widths": (4, 4, 4, 4, 4), "aspp_width": 4, "keypoints": 8,
}  # fmt: skip


class Trap:
    """What a malicious file would run."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("a checkpoint ran code",)


def system(seed: int = 0, **changes: Any) -> System:
    torch.manual_seed(seed)
    return build("deltas", {**SMALL, **changes})


def official(made: System) -> dict[str, Any]:
    """The published layout, as torch.save of an old script would have it."""
    return {key: made.get_submodule(part).state_dict() for part, key in pretrained.KEYS.items()}


def same(one: System, other: System) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_published_checkpoint_is_loaded_and_its_other_keys_ignored(tmp_path: Path) -> None:
    source, target = system(1), system(2)
    others = {
        "epoch": 5,
        "args": argparse.Namespace(lr=1e-4, name="deltas"),
        "best": np.float64(0.07),
        "count": np.int64(3),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }
    torch.save({**official(source), **others}, tmp_path / "checkpoint.pth.tar")
    assert not same(source, target)
    target.load_pretrained(tmp_path / "checkpoint.pth.tar")
    assert same(source, target)


def test_weights_survive_both_conversions(tmp_path: Path) -> None:
    source, between, end = system(1), system(2), system(3)
    pretrained.to_official(source, tmp_path / "published.pth.tar")
    content = torch.load(tmp_path / "published.pth.tar", weights_only=True)
    assert list(content) == ["state_dict", "state_dict_tri", "state_dict_depth"]
    assert {key: list(state) for key, state in content.items()} == {k: list(v) for k, v in official(source).items()}
    assert all(value.is_contiguous() for state in content.values() for value in state.values())
    pretrained.from_official(between, tmp_path / "published.pth.tar", tmp_path / "model.pt", params=SMALL)
    saved = checkpoint.load(tmp_path / "model.pt")
    assert (saved["system"], saved["step"], saved["params"]) == ("deltas", 0, SMALL)
    end.load_pretrained(tmp_path / "model.pt")
    assert same(source, between) and same(source, end)


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    content = official(system(1))
    del content["state_dict"]["convPa.bias"]
    content["state_dict_tri"]["bn_match_convD.extra"] = torch.zeros(1)
    content["state_dict_depth"]["conv_final.weight"] = torch.zeros(1, 9, 3, 3)
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    made, untouched = system(2), system(2)
    with pytest.raises(DataError) as raised:
        made.load_pretrained(tmp_path / "checkpoint.pth.tar")
    message = str(raised.value)
    assert "missing: state_dict/convPa.bias;" in message
    assert "unexpected: state_dict_tri/bn_match_convD.extra;" in message
    assert "mis-shaped: state_dict_depth/conv_final.weight (1, 9, 3, 3) instead of (1, 4, 3, 3)" in message
    assert "preset=full" in message
    assert same(made, untouched)


@pytest.mark.parametrize("instead", [None, 3, {}, {"weight": "none"}])
def test_a_net_without_weights_is_named(instead: Any, tmp_path: Path) -> None:
    torch.save({**official(system()), "state_dict_tri": instead}, tmp_path / "checkpoint.pth.tar")
    with pytest.raises(DataError, match="no state dict under state_dict_tri; a DELTAS checkpoint has state_dict, "):
        system().load_pretrained(tmp_path / "checkpoint.pth.tar")


def test_this_project_s_checkpoints_are_strict_too(tmp_path: Path) -> None:
    torch.save({"model": system(descriptor_channels=7).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"mis-shaped: front\.convDd\.bias \(7,\) instead of"):
        system().load_pretrained(tmp_path / "model.pt")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({**official(system()), "args": Trap()}, tmp_path / "checkpoint.pth.tar")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        system().load_pretrained(tmp_path / "checkpoint.pth.tar")


def test_absent_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file. Expected DELTAS' pretrained_checkpoint.pth.tar or a model.pt"):
        system().load_pretrained(tmp_path / "none.pth.tar")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds a list; expected a dictionary"):
        system().load_pretrained(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        system().load_pretrained(tmp_path / "text.pt")
