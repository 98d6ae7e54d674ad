"""The commands of docs/experiments.md: DVC takes their overrides, and what comes out are params that Plumbline takes."""

import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from plumbline.cli import app
from plumbline.config import DatasetConfig, SuiteConfig, load_params, section, sections
from plumbline.prediction import refined_suites
from plumbline.systems import deltaz
from plumbline.systems.deltas import config as deltas

ROOT = Path(__file__).resolve().parents[1]
GAPS = [f"sun3d_gap{gap}" for gap in (1, 5, 10, 20)]


def commands(program: str) -> list[list[str]]:
    """Words of the commands of the page that start with `program`."""
    text = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```sh\n")[1:]]
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[len(program.split()) :] for line in lines if line[: len(program.split())] == program.split()]


def overridden(arguments: list[str], folder: Path) -> dict[str, Any]:
    """params.yaml after the -S overrides of an experiment, made by DVC's own function."""
    from dvc.utils.hydra import apply_overrides

    file = folder / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    apply_overrides(file, [value for flag, value in pairwise(arguments) if flag == "-S"])
    return load_params(file)


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Params of each experiment, by its name."""
    folder = tmp_path_factory.mktemp("params")
    return {words[words.index("-n") + 1]: overridden(words, folder) for words in commands("dvc exp run")}


def test_every_experiment_has_params_that_are_taken(experiments):
    default = load_params(ROOT / "params.yaml")
    assert len(experiments) == 10
    for name, params in experiments.items():
        sections(params, "datasets", DatasetConfig)
        sections(params, "suites", SuiteConfig)
        section(params, "systems.deltas", deltas.Config)
        assert params != default, name
        assert params["train"] == default["train"], f"{name}: the budget is to be equal"


def test_ablations_switch_off_one_thing_each(experiments):
    def system(name: str) -> deltas.Config:
        return section(experiments[f"deltas-{name}"], "systems.deltas", deltas.Config)

    whole = system("seed1")
    changes = {
        "no-sparse-depth": {"sparse_depth": False},
        "no-confidence": {"matching_confidence": False},
        "random-keypoints": {"detected_share": 0.0},
    }
    for name, change in changes.items():
        assert system(name) == whole.model_copy(update=change) != whole
    assert system("random-keypoints").detected == 0


def test_deltaz_starts_from_systems_that_answer_wherever_it_does(experiments):
    for name in ("deltas", "depthsplat", "vggt"):
        params = experiments[f"deltaz-of-{name}"]
        assert section(params, "systems.deltaz", deltaz.Config).initial == name and name in params["train"]
        suites = sections(params, "suites", SuiteConfig)
        asking = {key for key, suite in suites.items() if suite.is_test and suite.asks("deltaz")}
        assert refined_suites(name, suites, params["systems"], params["train"]) > asking


def test_a_wider_range_leaves_the_cap_of_the_truth(experiments):
    params = experiments["deltas-range-wide"]
    assert section(params, "datasets.sun3d", DatasetConfig).depth_range == (0.1, 20.0)
    caps = {(suite.depth_min, suite.depth_max) for suite in (section(params, f"suites.{s}", SuiteConfig) for s in GAPS)}
    assert caps == {(0.5, 10.0)}


def test_the_two_resolutions_see_the_same_field_of_view(experiments):
    runs = [experiments[f"deltas-{size}"] for size in ("120x160", "240x320")]
    sizes = [section(run, "datasets.sun3d", DatasetConfig).image_size for run in runs]
    raw = experiments["deltas-120x160"]["datasets"]["sun3d"]["source"]["settings"]["image_size"]
    assert sizes == [(120, 160), (240, 320)]
    assert all(height * raw[1] == width * raw[0] for height, width in sizes)


def test_the_comparisons_are_of_these_experiments(experiments):
    command = typer.main.get_command(app)
    compare = command.get_command(click.Context(command), "compare")
    for words in commands("plumbline compare"):
        parsed = compare.make_context("compare", list(words)).params
        assert set(parsed["experiments"]) <= {"HEAD", *experiments}
        assert set(parsed["method"]) <= set(load_params(ROOT / "params.yaml")["systems"]) | {"deltas"}
