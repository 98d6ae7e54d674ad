"""Depth for a folder of raw captures: the right samples, whole files, true numbers, and a way on after every failure."""

import csv
import json
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data import raw_folders
from plumbline import checkpoint, systems
from plumbline.cli import app
from plumbline.config import SuiteConfig
from plumbline.data import sun3d
from plumbline.data.canonical import read_scene
from plumbline.data.checks.raw import write_raw_scene
from plumbline.data.samples import build, gather
from plumbline.data.synthetic import Config, generate
from plumbline.depth_sheet import ERROR_SHOWN, SheetRow, depth_limits, draw_sheet
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import read_image, read_npy, read_png16
from plumbline.folder_prediction import (
    Choice,
    Method,
    choose_samples,
    load_method,
    open_raw,
    plan_text,
    predict_folder,
    sample_rule,
)
from plumbline.folder_prediction import samples as samples_module
from plumbline.folder_prediction.output import to_millimetres
from plumbline.folder_prediction.samples import read_samples, stack_views
from plumbline.folder_prediction.show import mean_of_scenes, remarks, score_table
from plumbline.metrics import reference_errors
from plumbline.prediction import Suite, predict_files
from plumbline.stored import read_predictions
from plumbline.systems.deltas import pretrained
from plumbline.systems.records import Prediction

SIZE = (48, 64)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """Two generated SUN3D sequences: house/hall of 12 views, house/nook of 3."""
    out = tmp_path_factory.mktemp("raw")
    for name, views in (("house/hall", 12), ("house/nook", 3)):
        sequence = {"layout": "sun3d", "scenes": [name], "views": views, "image_size": list(SIZE), "seed": 5}
        generate(Config.model_validate(sequence), out, workers=1)
    return out


@pytest.fixture(scope="module")
def without_depth(tmp_path_factory):
    """DTU's test layout, which has no depth."""
    out = tmp_path_factory.mktemp("dtu")
    truth = raw_folders.capture(5, size=SIZE)
    raw_folders.write_dtu_test(out, 1, truth, K=raw_folders.K * [[2], [2], [1]])
    return out


def chosen_from(path, format_name="sun3d", *, size=SIZE, options=None, depth_range=None, most=None, **rule):
    raw = open_raw(format_name, path, size=size, options=options)
    choice = Choice(sample_rule(format_name, **(rule or {"gap": 2})), most)
    return choose_samples(raw, choice, depth_range=depth_range)


class Scaled(torch.nn.Module):
    """Answers the truth times a factor, and 0 where there is none; can be stopped as by Ctrl-C."""

    inputs = frozenset({"depth"})

    def __init__(self, factor=1.1, *, stop_after=None):
        super().__init__()
        self.factor, self.left, self.calls = factor, stop_after, 0

    def forward(self, batch):
        if self.left is not None and self.calls == self.left:
            raise KeyboardInterrupt
        self.calls += 1
        return Prediction(batch.depth[:, :1] * self.factor)


def method_of(system, name="scaled"):
    return Method(name, system, torch.device("cpu"), {})


def run(*words):
    """The command line: exit status and everything that it says, on one line."""
    result = CliRunner().invoke(app, ["predict", *map(str, words)])
    text = result.output + (str(result.exception) if isinstance(result.exception, PlumblineError) else "")
    return result.exit_code, " ".join(text.split())


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """One generated DTU scan, with masks and a pair list."""
    out = tmp_path_factory.mktemp("scan")
    generate(
        Config.model_validate({"layout": "dtu", "scenes": ["scan1"], "views": 6, "image_size": [512, 640]}),
        out,
        workers=1,
    )
    return out


def canonical(chosen, folder):
    """The scenes of the samples, parsed as the graph does it."""
    names = dict.fromkeys(sample.scene for sample in chosen.samples)
    for name in names:
        write_raw_scene(folder / name, chosen.raw, name, depth_range=chosen.depth_range)
    return {name: read_scene(folder / name) for name in names}


@pytest.mark.parametrize(("kind", "rule"), [("sun3d", {"gap": 3}), ("dtu", {"pairs": True, "views": 3})])
def test_views_read_one_by_one_are_those_of_the_canonical_scene(kind, rule, request, tmp_path):
    path = request.getfixturevalue("capture" if kind == "sun3d" else "scan")
    chosen = chosen_from(path, kind, size=SIZE if kind == "sun3d" else (128, 160), **rule)
    scenes = canonical(chosen, tmp_path)
    suite = SuiteConfig(dataset=kind, sources=chosen.choice.rule.model_dump())
    assert list(chosen.samples) == build(suite, scenes)
    expected = gather(scenes, chosen.samples)
    found = stack_views([views for _, views in read_samples(chosen)], chosen.depth_range)
    for name in ("image", "K", "depth", "world_T_cam", "depth_range"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert np.array_equal(found.mask, np.ones_like(found.mask) if expected.mask is None else expected.mask)
    assert kind == "sun3d" or not found.mask.all()


def test_the_maps_are_a_method_of_the_graph(capture, tmp_path):
    chosen = chosen_from(capture, gap=3)
    predict_folder(method_of(Scaled()), chosen, tmp_path / "maps/rooms")
    config = SuiteConfig(dataset="rooms", sources={"kind": "gap", "gap": 3})
    suite = Suite("rooms", config, canonical(chosen, tmp_path / "scenes"), chosen.samples)
    predict_files(tmp_path / "maps", suites=[suite], out=tmp_path / "file")
    stored = read_predictions(tmp_path / "file/rooms")
    (first, *_), *_ = (views for _, views in read_samples(chosen))
    assert len(stored.depth) == len(chosen.samples) and np.allclose(stored.depth[0, 0], 1.1 * first.depth)


def test_each_view_is_decoded_once_and_let_go(capture, monkeypatch):
    fitted, fit, alive = [], samples_module.fit, []

    def fit_and_watch(view, size):
        done = fit(view, size)
        fitted.append((view.name, weakref.ref(done)))
        return done

    monkeypatch.setattr(samples_module, "fit", fit_and_watch)
    samples = chosen_from(capture, gap=2).samples
    for _, views in read_samples(chosen_from(capture, gap=2)):
        alive.append(sum(reference() is not None for _, reference in fitted))
        del views
    names = [name for name, _ in fitted]
    assert len(samples) == 8 and len(names) == len(set(names)) == 12
    assert max(alive) <= 5


def test_scenes_too_short_for_a_sample_are_named(capture):
    chosen = chosen_from(capture, gap=2)
    assert {sample.scene for sample in chosen.samples} == {"house/hall"} and len(chosen.samples) == 8
    text = plan_text(method_of(Scaled()), chosen)
    assert "scaled: 8 views of 1 scene, each with 2 sources (2 frames away), 48x64 pixels, on cpu" in text
    assert text.endswith("left out: house/nook (3 views)")


def test_the_rule_follows_what_is_asked_for():
    assert sample_rule("dtu").model_dump(exclude_defaults=True) == {"kind": "pairs", "count": 4}
    assert sample_rule("dtu", gap=2).model_dump() == {"kind": "gap", "gap": 2}
    assert sample_rule("rgbd").model_dump() == {"kind": "gap", "gap": 20}
    assert sample_rule("rgbd", gap=7, views=5).model_dump() == {"kind": "sequence", "length": 5, "gap": 7}
    rule = sample_rule("sun3d", baseline=(0.1, 0.3), views=4)
    assert (rule.count, rule.min_baseline, rule.max_baseline) == (3, 0.1, 0.3)


def test_files_hold_the_depth_and_metrics_are_those_of_the_truth(capture, tmp_path):
    chosen = chosen_from(capture, most=3, depth_range=(0.5, 3.0))
    result = predict_folder(method_of(Scaled(1.1)), chosen, tmp_path / "out", batch_size=2)
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert len(rows) == result.total == result.finished == 3 and result.kept == 0
    for row, (_, views) in zip(rows, read_samples(chosen), strict=True):
        view = views[0]
        stem = tmp_path / "out/house/hall" / view.name
        depth = read_npy(stem.parent / f"{stem.name}.npy")
        assert depth.dtype == np.float32 and np.allclose(depth, 1.1 * view.depth)
        assert np.array_equal(read_png16(stem.parent / f"{stem.name}.png"), np.rint(depth.astype(np.float64) * 1000))
        assert read_image(stem.parent / f"{stem.name}_sheet.jpg").shape[1] == 4 * 328 + 8
        inside = (view.depth >= 0.5) & (view.depth <= 3)
        assert (row["scene"], row["view"]) == ("house/hall", view.name)
        assert row["sources"] == "+".join(source.name for source in views[1:])
        assert int(row["valid"]) == int(row["compared"]) == inside.sum()
        for name, value in reference_errors(depth[inside], view.depth[inside]).items():
            assert float(row[name]) == pytest.approx(value, abs=1e-6), name
    assert read_image(tmp_path / "out/overview.jpg").shape[0] > 3 * 240
    about = json.loads((tmp_path / "out/about.json").read_text())
    assert about["method"]["system"] == "scaled" and about["samples"]["rule"] == {"kind": "gap", "gap": 2}


def test_a_stopped_run_keeps_what_is_finished_and_goes_on(capture, tmp_path):
    chosen, whole = chosen_from(capture, most=5), tmp_path / "whole"
    predict_folder(method_of(Scaled()), chosen, whole)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match=r"Stopped: 2 of 5 views are finished in .*out\. The same command"):
        predict_folder(method_of(Scaled(stop_after=2)), chosen, out)
    assert len((out / "metrics.csv").read_text().splitlines()) == 3 and len(list(out.rglob("*.npy"))) == 2
    again = Scaled()
    result = predict_folder(method_of(again), chosen, out)
    assert again.calls == 3 and (result.finished, result.kept) == (5, 2)
    assert {p.name: p.read_bytes() for p in out.rglob("*.*") if p.is_file()} == {
        p.name: p.read_bytes() for p in whole.rglob("*.*") if p.is_file()
    }


def test_depth_of_another_making_is_never_mixed_in(capture, tmp_path):
    out = tmp_path / "out"
    predict_folder(method_of(Scaled()), chosen_from(capture, most=2), out)
    other = chosen_from(capture, gap=3, most=2, depth_range=(0.5, 4.0))
    with pytest.raises(ConfigError, match=r"made with other depth range and samples .*about\.json.*--overwrite"):
        predict_folder(method_of(Scaled()), other, out)
    predict_folder(method_of(Scaled()), other, out, overwrite=True)
    assert len(list(out.rglob("*.npy"))) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(capture, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ConfigError, match=r"no prediction wrote it\. Give another --out"):
        predict_folder(method_of(Scaled()), chosen_from(capture), tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_png_cannot_hold_is_none_there_and_said(capture, tmp_path):
    depth = np.array([[0, 0.0004, 0.0006, 65.535, 65.5356, 200]], np.float32)
    assert to_millimetres(depth).tolist() == [[0, 0, 1, 65535, 0, 0]]
    chosen = chosen_from(capture, most=1)
    result = predict_folder(method_of(Scaled(100)), chosen, tmp_path / "out")
    assert "1 view with depth beyond 65.535 m, which a 16-bit PNG cannot hold: 0 there, kept in the .npy." in remarks(
        result, method_of(Scaled()), chosen
    )


def test_without_truth_there_are_maps_and_no_metrics(without_depth, tmp_path):
    status, text = run(
        "--system", "plane_sweep", "--data", "dtu", without_depth, "--size", 24, 32, "--max-samples", 2,
        "-o", "camera_scale=1", "--views", 3, "--out", tmp_path / "out", "--set", "planes=8",
    )  # fmt: skip
    assert status == 0, text
    assert "No true depth in this folder: nothing to compare with, so there are no metrics." in text
    assert len(list(tmp_path.rglob("*.npy"))) == 2 and not (tmp_path / "out/metrics.csv").exists()
    assert read_image(tmp_path / "out/overview.jpg").shape[1] == 2 * 328 + 8


def test_the_table_counts_as_the_report_does():
    means = {"a": {"abs_rel": 0.1, "coverage": 1.0}, "b": {"abs_rel": 0.3, "coverage": 0.5}, "c": {"coverage": 0.0}}
    assert mean_of_scenes(means) == pytest.approx({"abs_rel": 0.2, "coverage": 0.5})


def test_the_table_has_a_row_for_each_scene_and_one_for_all(capture, tmp_path):
    result = predict_folder(method_of(Scaled(1.1)), chosen_from(capture, gap=1, most=3), tmp_path / "out")
    table = score_table(result.rows, title="scaled")
    assert list(table.columns[0].cells) == ["house/hall", "house/nook", "mean of 2 scenes"]
    assert list(table.columns[2].cells) == ["0.1000"] * 3 and list(table.columns[8].cells) == ["100.0%"] * 3


ERRORS = {
    "a misspelt system": ({"--system": "plane_swep"}, r"no system 'plane_swep'\. Did you mean 'plane_sweep'\?"),
    "an unknown format": ({"--data": ("sund3", "{raw}")}, r"'sund3' is no format\. There is: dtu, sun3d, rgbd"),
    "no such folder": ({"--data": ("sun3d", "{raw}/house/hal")}, r"hal: no such folder"),
    "a gap longer than the sequence": ({"--gap": 6}, r"house/hall, has 12 views; --gap 6 needs at least 13\. Give --gap 5"),
    "a window longer than the sequence": ({"--gap": 3, "--views": 5}, r"--gap 3 needs at least 15\. Give --gap 2 or less"),
    "no pair list": ({"--pairs": None}, r"states no pairs of views \(sun3d\)\. Choose sources by --gap N or --baseline A B"),
    "two rules": ({"--gap": 2, "--baseline": (0.1, 0.2)}, r"--gap and --baseline: .* one rule"),
    "a baseline that no pair has": ({"--baseline": (5, 6)}, r"no view has 2 others within 5 to 6 m .* spread over 0\.\d+ m"),
    "a baseline upside down": ({"--baseline": (2, 1)}, r"--baseline 2 1: expected 0 < least < most"),
    "an unknown scene": ({"--scene": "house/hal"}, r"no scene house/hal\. There is: house/hall, house/nook"),
    "a reader's option": ({"-o": "strid=2"}, r"--option strid: unknown key\. Did you mean 'stride'\?"),
    "a reader's advice": ({"-o": "extrinsics=no.txt"}, r"-o extrinsics=.*`plumbline check sun3d"),
    "a setting": ({"--set": "planez=4"}, r"--set planez: unknown key\. Did you mean 'planes'\?"),
    "an option that is no pair": ({"--set": "planes"}, r"expected key=value"),
    "a size too small": ({"--size": (4, 8)}, r"--size 4 8: expected height and width of at least 8"),
    "a depth range": ({"--depth-range": (3, 1)}, r"--depth-range 3 1: expected 0 < nearest < farthest"),
    "weights for none": ({"--weights": "{raw}/house/hall/intrinsics.txt"}, r"plane_sweep has no weights: leave --weights"),
    "a preset for none": ({"--preset": "tiny"}, r"plane_sweep has no presets"),
    "a start for none": ({"--initial": "constant"}, r"plane_sweep starts from images"),
    "no weights": ({"--system": "deltas"}, r"deltas needs weights: give --weights, the folder of a finished training"),
    "weights not there": ({"--system": "deltas", "--weights": "{raw}/no.pt"}, r"no\.pt: no such file or folder"),
    "a folder without weights": ({"--system": "deltas", "--weights": "{raw}"}, r"holds no model\.pt"),
    "a file that is no weights": (
        {"--system": "deltas", "--preset": "tiny", "--weights": "{raw}/house/hall/intrinsics.txt"},
        r"intrinsics\.txt: holds no weights that can be read\. Give the model\.pt of a training, or the file that",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_is_told_with_what_to_do(name, capture, tmp_path):
    changes, expected = ERRORS[name]
    words = {"--system": "plane_sweep", "--data": ("sun3d", "{raw}"), "--out": tmp_path / "out", **changes}
    flat = [word for key, value in words.items() for word in (key, *_listed(value))]
    status, text = run(*(str(word).replace("{raw}", str(capture)) for word in flat))
    assert status != 0
    assert re.search(expected, text), text
    assert not (tmp_path / "out").exists()


def _listed(value):
    return () if value is None else value if isinstance(value, tuple) else (value,)


def posed(monkeypatch, change):
    views = sun3d.views
    monkeypatch.setattr(sun3d, "views", lambda *args, **more: (change(view) for view in views(*args, **more)))


def test_views_without_poses_are_refused_by_methods_that_read_them(capture, tmp_path, monkeypatch):
    posed(monkeypatch, lambda view: replace(view, world_T_cam=None))
    chosen = chosen_from(capture, most=1)
    with pytest.raises(
        DataError, match=r"house/hall/\S+: no camera poses, which plane_sweep reads\. Give the capture poses"
    ):
        predict_folder(load_method("plane_sweep"), chosen, tmp_path / "a")
    assert predict_folder(method_of(Scaled()), chosen, tmp_path / "b").finished == 1


def test_an_oracle_asks_for_truth(without_depth, tmp_path):
    chosen = chosen_from(without_depth, "dtu", options={"camera_scale": 1}, most=1, views=2, pairs=True)
    with pytest.raises(DataError, match=r"median_plane reads the true depth, and this folder has none"):
        predict_folder(load_method("median_plane"), chosen, tmp_path / "out")


@pytest.mark.parametrize("factor", [float("nan"), -1.0])
def test_an_impossible_answer_is_refused(capture, tmp_path, factor):
    with pytest.raises(DataError, match=r"house/hall/\S+: scaled answered depth between .*expected finite metres"):
        predict_folder(method_of(Scaled(factor)), chosen_from(capture, most=1), tmp_path / "out")
    assert not list(tmp_path.rglob("*.npy"))


def test_the_constant_of_a_folder_is_the_middle_of_its_range(capture, tmp_path):
    chosen, method = chosen_from(capture, most=1, depth_range=(1.0, 4.0)), load_method("constant")
    result = predict_folder(method, chosen, tmp_path / "out")
    assert np.allclose(read_npy(next(tmp_path.rglob("*.npy"))), 2)
    assert "The constant is 2 m, the geometric mean of the depth range." in remarks(result, method, chosen)


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda: torch finds no GPU here"):
        load_method("plane_sweep", device="cuda")
    assert load_method("plane_sweep").device.type == "cpu"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights as files of each kind, of fresh tiny systems: a training's folder, a plain state dict, the published layout."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in ("deltas", "deltaz"):
        system = systems.build(name, {"preset": "tiny"})
        content = {"model": system.state_dict(), "system": name, "params": {"preset": "tiny"}, "step": 1}
        checkpoint.save(folder / name / "model.pt", content)
    deltas = systems.build("deltas", {"preset": "tiny"})
    deltas.load_pretrained(folder / "deltas/model.pt")
    checkpoint.save(folder / "plain.pt", {"model": deltas.state_dict()})
    # The weights of deltaz without what training writes beside them.
    checkpoint.save(folder / "other.pt", checkpoint.load(folder / "deltaz/model.pt")["model"])
    pretrained.to_official(deltas, folder / "published.pth.tar")
    return folder


def test_deltas_answers_the_same_from_every_kind_of_file(capture, trained, tmp_path):
    chosen = chosen_from(capture, most=1, size=(32, 40))
    kinds = {"deltas": None, "plain.pt": "tiny", "published.pth.tar": "tiny"}
    for kind, preset in kinds.items():
        method = load_method("deltas", weights=trained / kind, preset=preset)
        predict_folder(method, chosen, tmp_path / kind)
    maps = [[read_npy(path) for path in sorted((tmp_path / kind).rglob("*.npy"))] for kind in kinds]
    assert len(maps[0]) == 1 and maps[0][0].std() > 0
    for other in maps[1:]:
        assert np.array_equal(np.stack(maps[0]), np.stack(other))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("deltaz", {"weights": "other.pt"}, r"mis-shaped: .* \d+ more.*\nThey fit preset 'tiny': add --preset tiny\."),
        ("deltas", {"weights": "deltas", "preset": "full"}, r"these weights are of preset 'tiny'\. Leave --preset out"),
        ("deltas", {"weights": "deltaz"}, r"these are weights of deltaz, not of deltas"),
        ("deltas", {"weights": "plain.pt", "preset": "huge"}, r"^--preset: Input should be 'full' or 'tiny'"),
    ],
)
def test_weights_that_do_not_fit_say_what_would(trained, name, options, expected):
    with pytest.raises(PlumblineError, match=expected):
        load_method(name, **{**options, "weights": trained / options["weights"]})


def test_deltaz_refines_the_depth_of_another_method(capture, trained, tmp_path):
    chosen = chosen_from(capture, most=1)
    method = load_method("deltaz", weights=trained / "deltaz", initial="constant")
    assert "deltaz from the depth of constant: 1 view" in plan_text(method, chosen)
    seen = []
    object.__setattr__(method.system, "forward", lambda b, f=method.system.forward: seen.append(b) or f(b))
    predict_folder(method, chosen, tmp_path / "out")
    assert torch.allclose(seen[0].initial_depth, torch.tensor(5.0**0.5))
    assert seen[0].depth is None and not method.oracle
    assert method.modules == ("plumbline.systems.deltaz.system", "plumbline.systems.baselines")
    assert load_method("deltaz", weights=trained / "deltaz", initial="median_plane").oracle
    with pytest.raises(ConfigError, match=r"deltas needs weights: give --initial-weights"):
        load_method("deltaz", weights=trained / "deltaz", initial="deltas")


def a_row(**changes):
    truth = np.tile(np.linspace(1, 3, 64, dtype=np.float32), (48, 1))
    image = np.zeros((48, 64, 3), np.uint8)
    return replace(SheetRow("a   0001", ("0000", "0002"), image, truth.copy(), truth, {"abs_rel": 0.0}), **changes)


def tile(sheet, column):
    left = 8 + column * 328
    return sheet[46 + 20 : 46 + 220, left + 20 : left + 300]


def test_pictures_show_error_from_black_to_the_end_of_the_scale(tmp_path):
    row = a_row()
    for factor in (1.0, 1 + ERROR_SHOWN, 2.0):
        draw_sheet([replace(row, prediction=row.truth * np.float32(factor))], tmp_path / f"{factor}.png", method="x")
    exact, end, beyond = (read_image(tmp_path / f"{factor}.png") for factor in (1.0, 1 + ERROR_SHOWN, 2.0))
    assert tile(exact, 3).max() < 16 and tile(end, 3).min() > 100
    assert np.array_equal(tile(end, 3), tile(beyond, 3)) and np.array_equal(tile(exact, 1), tile(exact, 2))


def test_pictures_are_grey_where_there_is_nothing(tmp_path):
    row = a_row(prediction=np.zeros((48, 64), np.float32))
    draw_sheet([row], tmp_path / "sheet.png", method="x")
    sheet = read_image(tmp_path / "sheet.png")
    assert (tile(sheet, 1) == 128).all() and (tile(sheet, 3) == 128).all() and not (tile(sheet, 2) == 128).all()


def test_the_depth_scale_is_that_of_the_truth():
    wild = a_row(prediction=np.full((48, 64), 50, np.float32))
    assert depth_limits([wild]) == pytest.approx(np.percentile(wild.truth, (2, 98)))
    assert depth_limits([replace(wild, truth=None)]) == pytest.approx((50, 51))
    nothing = replace(wild, truth=None, prediction=np.zeros((48, 64), np.float32))
    assert depth_limits([nothing]) == (0.0, 1.0)


def test_help_names_every_output_and_shows_examples():
    status, text = run("--help")
    assert status == 0
    for word in (
        "<view>.npy",
        "<view>.png",
        "<view>_sheet.jpg",
        "metrics.csv",
        "65.535 m",
        "plumbline predict --system",
    ):
        assert word in text
