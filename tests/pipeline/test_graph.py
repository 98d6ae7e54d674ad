"""The graph as users run it: once, twice, with another step size, queued, killed in the middle."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plumbline.runs import stale_stages
from smoke_project import Project

pytestmark = pytest.mark.pipeline
METHODS = ["constant", "median_plane", "plane_sweep", "deltaz", "deltas"]
TRAINED = ("deltaz", "deltas", "vggt")
SUITES = ["dtu", "sun3d_gap1", "sun3d_gap5", "sun3d_gap10", "sun3d_gap20"]
METRICS = [
    "abs_rel",
    "abs_diff",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "delta1",
    "delta2",
    "delta3",
    "delta105",
    "coverage",
]
ANGLES = {"rotation_error_deg", "translation_error_deg", "auc5", "auc10", "auc30"}


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "reports/metrics.json").read_text())


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_one_command_gives_metrics_and_a_report(project: Project) -> None:
    metrics = metrics_of(project.folder)
    assert list(metrics) == [*SUITES, "aerialmd", "overfit"]
    for methods in (metrics[suite] for suite in SUITES):
        assert list(methods) == METHODS
        assert all(sorted(values) == sorted(METRICS) for values in methods.values())
    aligned = {f"{name}_median" for name in METRICS[:-1]}
    assert {method: set(values) for method, values in metrics["aerialmd"].items()} == {
        **dict.fromkeys(METHODS[:3], aligned | set(METRICS)),
        **dict.fromkeys(("identity", "mean_pose"), ANGLES),
        "vggt": aligned | ANGLES | {"coverage", "focal_error"},
    }
    assert {system: values["passed"] for system, values in metrics["overfit"].items()} == dict.fromkeys(TRAINED, 1.0)
    headline = json.loads((project.folder / "reports/headline.json").read_text())
    assert headline["dtu"]["deltaz"] == metrics["dtu"]["deltaz"]["abs_rel"]
    page = (project.folder / "reports/report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.replace('href="https://', ""))


def test_a_second_run_changes_nothing(project: Project) -> None:
    output = project.dvc("repro")
    assert ran(output) == set()
    assert "up to date" in output
    assert project.command("git", "status", "--porcelain").stdout == ""
    assert stale_stages(project.folder) == []


def test_a_clone_without_data_is_up_to_date(project: Project, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", str(project.folder), str(tmp_path / "bare")], check=True)
    assert stale_stages(tmp_path / "bare") == []


def test_another_step_size_reruns_training_and_what_follows(project: Project) -> None:
    before = metrics_of(project.folder)
    output = project.dvc("exp", "run", "-S", "lr=5e-5", "--name", "slower")
    trained = {f"{stage}@{system}" for stage in ("train", "predict", "evaluate") for system in TRAINED}
    assert ran(output) == {*trained, "report"}
    after = metrics_of(project.folder)
    assert before["dtu"]["plane_sweep"] == after["dtu"]["plane_sweep"]
    assert before["dtu"]["deltaz"] != after["dtu"]["deltaz"]
    difference = json.loads(project.dvc("metrics", "diff", "--json"))
    assert "dtu.deltaz" in difference["reports/headline.json"]
    shown = project.dvc("exp", "show", "--csv")
    assert "slower" in shown
    assert "5e-05" in shown
    project.command("git", "reset", "-q", "--hard")
    project.dvc("checkout")


def test_every_stage_is_recorded_under_one_parent(project: Project) -> None:
    code = (
        "import mlflow, json; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "print(json.dumps([[r.data.tags.get('dvc.role'), r.data.tags.get('stage'), r.info.status,"
        " r.data.tags.get('mlflow.parentRunId'), r.info.run_id, len(r.data.metrics)] for r in runs]))"
    )
    found = json.loads(project.command(sys.executable, "-c", code).stdout.splitlines()[-1])
    parents = [row for row in found if row[0] == "pipeline"]
    first = parents[-1]
    children = [row for row in found if row[3] == first[4]]
    assert len(children) == len(project.dvc("stage", "list", "--name-only").split())
    assert first[2] == "FINISHED"
    assert first[5] >= len(SUITES)


def test_a_wrong_reading_stops_the_graph_before_training(project: Project) -> None:
    done = project.command(
        sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "+datasets.sun3d.options.depth_coding=raw"
    )
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "depth rotated right by 3 bits" in text
    assert "train@deltaz" not in ran(text)


def test_killed_anywhere_the_next_run_gives_the_same_metrics(project: Project, tmp_path: Path) -> None:
    """SIGKILL to whatever runs, again and again at growing intervals, then one run to the end."""
    clone = tmp_path / "killed" / "clone"
    shutil.copytree(project.folder, clone, ignore=shutil.ignore_patterns("tmp", "mlflow.db", "mlartifacts"))
    killed = Project(clone)
    (tmp_path / "killed" / "gitconfig").write_text((project.folder.parent / "gitconfig").read_text())
    expected = metrics_of(clone)
    # Without the run-cache nothing can be restored: what was killed has to be computed.
    shutil.rmtree(clone / ".dvc/cache/runs")
    force = [sys.executable, "-m", "dvc", "repro", "--force", "--downstream", "train@deltaz"]
    for seconds in (4, 9):
        process = subprocess.Popen(
            force,
            cwd=clone,
            env=killed.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        partial = [path for path in clone.rglob("*.part*") if ".resume" not in path.parts]
        assert all(path.name.startswith(".") for path in partial)
    killed.dvc("repro")
    assert metrics_of(clone) == expected
