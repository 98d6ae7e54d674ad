"""Checkpoints: the published layout, heads that are left out, and files that do not fit."""

import logging
from pathlib import Path

import pytest
import torch

from plumbline.errors import DataError
from plumbline.systems.vggt import Config, System, pretrained

SMALL = {
    "preset": "reference",
    "width": 16,
    "heads": 2,
    "embedder_blocks": 1,
    "rounds": 1,
    "dpt_layers": (0, 0, 0, 0),
    "dpt_features": 8,
    "dpt_widths": (4, 4, 4, 4),
    "camera_blocks": 1,
}


def build(**changes: object) -> System:
    return System(Config(**(SMALL | changes)))


def published(path: Path, **changes: object) -> dict[str, torch.Tensor]:
    """A file as the authors' is: the plain state dict, its track head included; returns what else it holds."""
    torch.manual_seed(7)
    state = build(**changes).state_dict()
    track = {"track_head.tracker.norm.weight": torch.ones(3), "track_head.feature_extractor.norm.bias": torch.ones(3)}
    torch.save({**state, **track}, path)
    return state


def test_a_published_file_is_loaded_without_its_track_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = published(tmp_path / "model.pt")
    system = build()
    with caplog.at_level(logging.INFO, logger="plumbline"):
        system.load_pretrained(tmp_path / "model.pt")
    assert all(torch.equal(value, state[name]) for name, value in system.state_dict().items())
    assert "left out the 2 entries of track_head" in caplog.text


@pytest.mark.parametrize("head", ["camera", "point"])
def test_a_head_is_left_out_when_the_configuration_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    published(tmp_path / "model.pt")
    with caplog.at_level(logging.INFO, logger="plumbline"):
        build(**{head: False}).load_pretrained(tmp_path / "model.pt")
    assert f"entries of {head}_head" in caplog.text


def test_a_missing_head_is_an_error_when_the_configuration_has_it(tmp_path: Path) -> None:
    published(tmp_path / "model.pt", point=False)
    with pytest.raises(DataError, match=r"missing: point_head\.norm\.weight"):
        build().load_pretrained(tmp_path / "model.pt")


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = dict(build().state_dict())
    state["aggregator.extra"] = torch.ones(1)
    state["aggregator.camera_token"] = torch.ones(1, 2, 1, 8)
    del state["depth_head.norm.bias"]
    torch.save({"model": state}, tmp_path / "model.pt")
    system = build()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    expected = (
        r"missing: depth_head\.norm\.bias; unexpected: aggregator\.extra; "
        r"mis-shaped: aggregator\.camera_token \(1, 2, 1, 8\) instead of \(1, 2, 1, 16\).*preset=full"
    )
    with pytest.raises(DataError, match=expected):
        system.load_pretrained(tmp_path / "model.pt")
    assert all(torch.equal(value, before[name]) for name, value in system.state_dict().items())


def test_weights_survive_both_formats(tmp_path: Path) -> None:
    system = build()
    pretrained.to_official(system, tmp_path / "theirs.pt")
    pretrained.from_official(build(), tmp_path / "theirs.pt", tmp_path / "ours.pt", params=SMALL)
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert content["system"] == "vggt" and content["params"]["width"] == 16
    fresh = build()
    fresh.load_pretrained(tmp_path / "ours.pt")
    assert all(torch.equal(value, system.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_a_file_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    torch.save({"model": Trap()}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        build().load_pretrained(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()
