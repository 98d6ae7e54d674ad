"""Films without depth, end to end: params.re10k.yaml scaled down to generated chunks, learnt from, rendered and scored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline import checkpoint, systems
from plumbline.config import DatasetConfig, load_params, section, sections
from plumbline.config import SuiteConfig as Suite
from plumbline.curve import read_curve
from plumbline.data.parse import parse_dataset
from plumbline.data.samples import build, open_split
from plumbline.data.synthetic import Config, generate
from plumbline.errors import ConfigError, DataError
from plumbline.evaluation import evaluate
from plumbline.feed import JoinedFeed
from plumbline.prediction import open_suite, predict, training_feed
from plumbline.runs import expanded, merged
from plumbline.training import TrainConfig, fit, initialise

ROOT = Path(__file__).resolve().parents[1]
MADE = {"layout": "re10k", "scenes": ["train/a", "train/b", "test/d"], "views": 12, "image_size": [36, 64]}
GAPS = {"shortest": [2, 3], "longest": [4, 6], "warm_up": 4}
SMALLER: dict[str, Any] = {
    "datasets": {"re10k": {"image_size": [32, 48], "options!": {"samples": ["evaluation_index.json"]}}},
    "suites": {
        "re10k_train": {"sources": {"targets": 2, "gaps": GAPS}},
        "re10k_val": {"sources": {"targets": 1, "gaps": GAPS}},
        "re10k": {"sources": {"path": "evaluation_index.json"}},
    },
    "systems": {"depthsplat!": {"preset": "tiny", "backend": "torch", "loss": {"lpips": 0.0}}},
    "train": {
        "depthsplat": {
            "steps": 3,
            "batch_size": 2,
            "val_every": 3,
            "checkpoint_every": 3,
            "device": "cpu",
            "threads": 1,
        }
    },
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Params of RealEstate10K scaled down, and the folder of the parsed scenes."""
    folder = tmp_path_factory.mktemp("film")
    generate(Config.model_validate(MADE), folder / "raw", workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_RE10K", str(folder / "raw"))
        patch.setenv("PLUMBLINE_WEIGHTS", str(folder))
        given = expanded(load_params(ROOT / "params.re10k.yaml"))
    params = merged(merged(load_params(ROOT / "params.yaml"), given), SMALLER)
    dataset = section(params, "datasets.re10k", DatasetConfig)
    parse_dataset("re10k", dataset, raw=folder / "raw", identity="", out=folder / "scenes/re10k", scratch=folder)
    return params, folder


def opened(film: tuple[dict[str, Any], Path], name: str) -> Any:
    params, folder = film
    datasets, suites = sections(params, "datasets", DatasetConfig), sections(params, "suites", Suite)
    return open_suite(name, suites[name], datasets=datasets, scenes=folder / "scenes")


def start(folder: Path) -> list[Path]:
    """Files to start from: the ViT and the matching of another tiny network, as their authors lay them out."""
    torch.manual_seed(5)
    state = systems.build("depthsplat", SMALLER["systems"]["depthsplat!"]).encoder.depth_predictor.state_dict()
    vit = {name: x for name, x in state.items() if name.startswith("pretrained.")}
    matching = {name: x for name, x in state.items() if name.startswith(("backbone.", "transformer."))}
    checkpoint.save(folder / "depth_anything_v2_vits.pth", vit)
    checkpoint.save(folder / "gmflow-scale1-things.pth", {"model": matching})
    return [folder / "depth_anything_v2_vits.pth", folder / "gmflow-scale1-things.pth"]


def test_films_are_learnt_from_rendered_and_scored(film: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    params, folder = film
    paths, own = start(folder), params["systems"]["depthsplat"]
    config = section(params, "train.depthsplat", TrainConfig)
    assert [str(path) for path in config.init_partly] == [str(path) for path in paths]
    torch.manual_seed(0)
    system = systems.build("depthsplat", own)
    feed, val = (training_feed(opened(film, name), None) for name in (*config.train_suites, config.val_suite))
    settings = {"name": "depthsplat", "lr": params["lr"], "seed": 0, "params": own}
    summary = fit(
        system, JoinedFeed([feed]), val, config, out=tmp_path / "run", scratch=tmp_path / "scratch", **settings
    )
    assert summary["select"] == "loss" and set(summary["validation"]) == {"image", "loss", "psnr"}
    last = read_curve(tmp_path / "run/curve.csv")[-1]
    assert last["val/psnr"] > 5 and last["train/image"] > 0 and "val/abs_rel" not in last
    moved = system.state_dict()
    for path in paths:
        content = checkpoint.load(path)
        for name, value in content.get("model", content).items():
            if value.is_floating_point():
                torch.testing.assert_close(moved[f"encoder.depth_predictor.{name}"], value, rtol=0.02, atol=2e-3)
    suite = opened(film, "re10k")
    predict(system, method="depthsplat", suites=[suite], out=tmp_path / "predictions/depthsplat")
    scored = evaluate(
        "depthsplat",
        predictions=tmp_path / "predictions/depthsplat",
        suites={"re10k": suite.config},
        scenes=folder / "scenes",
        out=tmp_path / "scores",
        common=tmp_path / "predictions/depthsplat",
    )["suites"]["re10k"]
    assert scored["regions"] == {} and scored["alignment"] is None and scored["views"]["psnr"]["mean"] > 5
    assert scored["about"]["notes"]["depth"] == "not scored: these scenes have no truth"
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["re10k_views.csv", "summary.json"]


def test_depth_of_films_that_nothing_renders_cannot_be_scored(
    film: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    suite = opened(film, "re10k")
    sweep = systems.build("plane_sweep", {"planes": 8})
    predict(sweep, method="plane_sweep", suites=[suite], out=tmp_path / "plane_sweep")
    with pytest.raises(DataError, match=r"re10k/test/d has no truth, so re10k cannot be evaluated"):
        evaluate("plane_sweep", predictions=tmp_path / "plane_sweep", suites={"re10k": suite.config},
                 scenes=film[1] / "scenes", out=tmp_path / "scores")  # fmt: skip


def test_films_that_become_too_short_are_left_out_with_a_word(
    film: tuple[dict[str, Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    params, folder = film
    scenes = open_split(folder / "scenes/re10k", section(params, "datasets.re10k", DatasetConfig), "train")
    config = section(params, "suites.re10k_train", Suite)
    short = {**scenes, "train/short": replace(next(iter(scenes.values())), view_names=("0", "1", "2"))}
    # Three frames do at the first step's gap of 2, and not at the final one of 3.
    assert {sample.scene for sample in build(config, short)} == set(scenes)
    assert "1 of 2 scenes have fewer than the 4 frames that clips need: left out" in caplog.text
    with pytest.raises(DataError, match="no view of 0 scenes"):
        build(config, {"train/short": short["train/short"]})


def test_a_start_needs_a_system_that_takes_parts(tmp_path: Path) -> None:
    config = TrainConfig(init_partly=(tmp_path / "a.pth",), init_from=tmp_path / "b.pt")
    for system, given, why in (
        (systems.build("depthsplat", {"preset": "tiny"}), config, "init_from gives all weights already"),
        (torch.nn.Linear(1, 1), config.model_copy(update={"init_from": None}), "takes no part of a file"),
    ):
        with pytest.raises(ConfigError, match=rf"init_partly .*a\.pth: .*{why}"):
            initialise(system, given)


def test_the_index_names_what_is_rendered(film: tuple[dict[str, Any], Path]) -> None:
    listed = json.loads((film[1] / "raw/evaluation_index.json").read_text())
    (sample,) = opened(film, "re10k").samples
    assert len(sample.given) == 2 and len(sample.targets) == len(listed["d"]["target"])
