"""DepthSplat on a folder: depth, a PLY that `plumbline render` opens and sees the same with, and views rendered from others."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from plumbline import checkpoint, systems
from plumbline.cli import app
from plumbline.data import sun3d
from plumbline.data.synthetic import Config, generate
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import read_image, read_npy
from plumbline.folder_prediction import Choice, choose_samples, load_method, open_raw, predict_folder, sample_rule
from plumbline.image_metrics import psnr
from plumbline.rendering.ply import read_gaussians

SIZE = (32, 48)
# `plumbline render` has a black background unless told otherwise.
TINY = {"preset": "tiny", "backend": "torch", "background": "black", "loss": {"lpips": 0.0}}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated SUN3D sequence of 9 views."""
    out = tmp_path_factory.mktemp("raw")
    sequence = {"layout": "sun3d", "scenes": ["house/hall"], "views": 9, "image_size": [64, 96], "seed": 5}
    generate(Config.model_validate(sequence), out, workers=1)
    return out


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated chunks of RealEstate10K's layout: two scenes to test, with their evaluation index."""
    out = tmp_path_factory.mktemp("chunks") / "raw"
    made = {
        "layout": "re10k",
        "scenes": ["train/a", "test/b", "test/c"],
        "views": 12,
        "image_size": [36, 64],
        "seed": 5,
    }
    generate(Config.model_validate(made), out, workers=1)
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's folder, and `published.ckpt`, as the authors lay theirs out."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = systems.build("depthsplat", TINY).state_dict()
    checkpoint.save(folder / "model.pt", {"model": state, "system": "depthsplat", "params": TINY, "step": 1})
    checkpoint.save(folder / "published.ckpt", {"state_dict": state, "global_step": 1})
    depth_alone = systems.build("depthsplat", {**TINY, "gaussians": False}).state_dict()
    checkpoint.save(folder / "depth.pt", {"model": depth_alone})
    return folder


def run(*words: Any) -> tuple[int, str]:
    """The command line: exit status and everything that it says, on one line."""
    result = CliRunner().invoke(app, list(map(str, words)))
    text = result.output + (str(result.exception) if isinstance(result.exception, PlumblineError) else "")
    return result.exit_code, " ".join(text.split())


def predict(out: Path, data: tuple[str, Path], weights: Path, *words: Any) -> str:
    asked = ["--system", "depthsplat", "--weights", weights, "--data", *data, "--size", *SIZE, "--out", out]
    status, text = run("predict", *asked, *words)
    assert status == 0, text
    return text


def test_a_folder_becomes_depth_gaussians_and_pictures_that_render_agrees_with(
    capture: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = predict(out, ("sun3d", capture), weights, "--gap", 2, "--render", "--ply", "--max-samples", 2)
    assert "each with 1 source and 1 view to render (2 frames from the rendered one)" in text
    assert "2 views rendered: PSNR" in text and "views.csv" in text
    rows = list(csv.DictReader((out / "views.csv").open()))
    folder = out / "house/hall"
    given, other = rows[0]["given"].split("+")
    target = rows[0]["target"]
    depth = read_npy(folder / f"{given}.npy")
    assert depth.shape == SIZE and depth.min() >= 0.5 and depth.max() <= 10
    assert len(list(csv.DictReader((out / "metrics.csv").open()))) == 2
    # The PLY lies in the capture's world: every view of the sample sees there what the system rendered.
    assert read_gaussians(folder / f"{given}.ply").means.shape == (1, 2 * SIZE[0] * SIZE[1], 3)
    cameras = json.loads((folder / f"{given}_cameras.json").read_text())
    assert cameras["names"] == [given, other, target] and not np.allclose(cameras["world_T_cam"][0], np.eye(4))
    words = [
        "--ply",
        folder / f"{given}.ply",
        "--cameras",
        folder / f"{given}_cameras.json",
        "--out",
        tmp_path / "seen",
    ]
    assert run("render", *words, "--backend", "torch")[0] == 0
    rendered = read_image(folder / f"{target}_rendered.png")
    again = read_image(tmp_path / "seen" / f"{target}.png")
    assert np.abs(rendered.astype(int) - again).max() <= 1 and rendered.std() > 5
    seen = read_image(folder / f"{target}_compared.jpg")
    assert seen.shape == (SIZE[0], 2 * SIZE[1], 3)
    chosen = choose_samples(open_raw("sun3d", capture, size=SIZE), Choice(sample_rule("sun3d", gap=2, render=True)))
    view = next(sun3d.views(capture, "house/hall", chosen.raw.options, select=[chosen.samples[0].targets[0]]))
    assert view.name == target
    assert float(rows[0]["psnr"]) == pytest.approx(psnr(rendered, seen[:, : SIZE[1]]), abs=0.5)


def test_what_is_finished_is_kept_and_a_ply_that_is_asked_for_later_is_made(
    capture: Path, weights: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "out", ("--gap", 2, "--render", "--max-samples", 1)
    predict(out, ("sun3d", capture), weights, *words)
    before = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    assert "1 of them from before" in predict(out, ("sun3d", capture), weights, *words)
    assert "from before" not in predict(out, ("sun3d", capture), weights, *words, "--ply")
    after = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    assert before.items() <= after.items()
    assert {Path(name).suffix for name in after.keys() - before.keys()} == {".ply", ".json"}
    assert "1 of them from before" in predict(out, ("sun3d", capture), weights, *words, "--ply")


def test_chunks_without_depth_by_their_evaluation_index(chunks: Path, weights: Path, tmp_path: Path) -> None:
    words = ("--index", "evaluation_index.json", "--depth-range", 0.5, 20)
    text = predict(tmp_path / "out", ("re10k", chunks), weights / "published.ckpt", *words, "--preset", "tiny",
                   "--set", "backend=torch")  # fmt: skip
    assert "as evaluation_index.json lists" in text and "No true depth in this folder" in text
    listed = json.loads((chunks / "evaluation_index.json").read_text())
    targets = sum(len(entry["target"]) for entry in listed.values() if entry)
    rows = list(csv.DictReader((tmp_path / "out/views.csv").open()))
    assert len(rows) == targets > 2 and not (tmp_path / "out/metrics.csv").exists()
    assert all(float(row["psnr"]) > 3 for row in rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"render": True, "pairs": True}, r"--render: frames are rendered .*Leave --pairs out; give --gap"),
        ({"index": "a.json", "views": 3}, r"--index: the list says which views are given"),
        ({"index": "a.json", "gap": 3}, r"--gap and --index: .*one rule"),
    ],
)
def test_rules_that_do_not_go_together(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        sample_rule("sun3d", **changes)


def test_every_frame_is_rendered_from_those_around_it() -> None:
    assert sample_rule("sun3d", render=True).model_dump(exclude_defaults=True) == {"kind": "target", "gap": 20}
    assert sample_rule("dtu", render=True, views=4).model_dump() == {
        "kind": "target",
        "count": 4,
        "gap": 1,
        "targets": 1,
    }


def test_a_film_too_short_to_render_from(capture: Path) -> None:
    with pytest.raises(DataError, match=r"has 9 views; --render with --gap 3 needs 13\. Give --gap 2 or less"):
        choose_samples(open_raw("sun3d", capture), Choice(sample_rule("sun3d", gap=3, views=4, render=True)))


@pytest.mark.parametrize(
    ("given", "made", "advice"),
    [
        ({}, {**TINY, "stride": 8}, r"They fit preset 'tiny': add --preset tiny --set stride=8\.$"),
        ({}, TINY, r"They fit preset 'tiny': add --preset tiny\.$"),
        ({"preset": "tiny"}, {**TINY, "gaussians": False}, r"--preset tiny --set gaussians=false\.$"),
    ],
)
def test_weights_of_another_size_say_which(
    given: dict[str, Any], made: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "w.pt", {"model": systems.build("depthsplat", made).state_dict()})
    with pytest.raises(DataError, match=advice):
        load_method("depthsplat", weights=tmp_path / "w.pt", settings=given)


@pytest.mark.parametrize("ply", [True, False])
def test_methods_without_gaussians_say_what_has_them(capture: Path, weights: Path, tmp_path: Path, ply: bool) -> None:
    chosen = choose_samples(open_raw("sun3d", capture, size=SIZE), Choice(sample_rule("sun3d", gap=2, render=not ply)))
    depth_alone = load_method("depthsplat", weights=weights / "depth.pt", settings={**TINY, "gaussians": False})
    for method in (load_method("plane_sweep"), depth_alone):
        with pytest.raises(ConfigError, match=rf"{method.name} predicts no Gaussians\. Use --system depthsplat"):
            predict_folder(method, chosen, tmp_path / "out", ply=ply)
    assert not (tmp_path / "out").exists()


def test_views_without_poses_are_refused(capture: Path, weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    views = sun3d.views
    lost = lambda *args, **more: (replace(view, world_T_cam=None) for view in views(*args, **more))  # noqa: E731
    monkeypatch.setattr(sun3d, "views", lost)
    chosen = choose_samples(open_raw("sun3d", capture, size=SIZE), Choice(sample_rule("sun3d", gap=2, render=True), 1))
    with pytest.raises(DataError, match=r"no camera poses, which depthsplat reads\. Give the capture poses"):
        predict_folder(load_method("depthsplat", weights=weights), chosen, tmp_path / "out", ply=True)
