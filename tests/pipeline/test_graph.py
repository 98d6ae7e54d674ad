"""The graph as users run it: once, twice, with another step size, queued, killed in the middle, stopped by a gate."""

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
import yaml

from plumbline.runs import stale_stages
from smoke_project import Project

pytestmark = pytest.mark.pipeline
METHODS = ["constant", "median_plane", "plane_sweep", "deltaz", "deltas", "depthsplat"]
TRAINED = ("deltaz", "deltas", "vggt", "depthsplat")
SUITES = ["dtu", "sun3d_gap1", "sun3d_gap5", "sun3d_gap10", "sun3d_gap20"]
NOVEL = ["novel_views", *(f"novel_views_{count}" for count in range(2, 7))]
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
# Where the sample of each gate is from, how many views it has, and how many of them are to be rendered.
SAMPLES = {
    "deltaz": ("dtu", 3, 0),
    "deltas": ("sun3d", 3, 0),
    "vggt": ("aerialmd", 2, 0),
    "depthsplat": ("sun3d", 4, 2),
}
ANGLES = {"rotation_error_deg", "translation_error_deg", "auc5", "auc10", "auc30"}


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "reports/metrics.json").read_text())


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_one_command_gives_metrics_and_a_report(project: Project) -> None:
    metrics = metrics_of(project.folder)
    assert list(metrics) == [*SUITES, "aerialmd", *NOVEL, "overfit"]
    for methods in (metrics[suite] for suite in SUITES):
        assert list(methods) == METHODS
        assert all(sorted(values) == sorted(METRICS) for values in methods.values())
    aligned = {f"{name}_median" for name in METRICS[:-1]}
    assert {method: set(values) for method, values in metrics["aerialmd"].items()} == {
        **dict.fromkeys(METHODS[:3], aligned | set(METRICS)),
        **dict.fromkeys(("identity", "mean_pose"), ANGLES),
        "vggt": aligned | ANGLES | {"coverage", "focal_error"},
    }
    views, depth = {"psnr", "ssim"}, set(METRICS)
    assert {method: set(values) for method, values in metrics["novel_views"].items()} == {
        **dict.fromkeys(("constant", "plane_sweep"), depth),
        **dict.fromkeys(("mean_colour", "nearest_view", "warped_view"), views),
        "depthsplat": depth | views,
    }
    shown = {path.name for path in (project.folder / "predictions/depthsplat").glob("*/orbit.gif")}
    assert shown == {"orbit.gif"} and (project.folder / "predictions/depthsplat/novel_views/gaussians.ply").is_file()
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


# --- the gate in the graph --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SAMPLES)
def test_every_system_has_a_sample_and_a_record(project: Project, system: str) -> None:
    dataset, views, targets = SAMPLES[system]
    described = json.loads((project.folder / "data/pair" / system / "sample/sample.json").read_text())
    roles = ["context"] * (views - targets) + ["target"] * targets
    assert described["dataset"] == dataset and [view["role"] for view in described["views"]] == roles
    folder = project.folder / "runs/overfit" / system
    last = json.loads((folder / "verdict.json").read_text())["run"]["steps"]
    names = {path.name for path in folder.iterdir()}
    assert names == {"curve.csv", "passed.json", "record.md", "step_1.png", f"step_{last}.png", "verdict.json"}
    assert "**Passed.**" in (folder / "record.md").read_text()


def test_a_gate_that_fails_leaves_its_record_and_stops_the_training_alone(project: Project) -> None:
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["overfit"]["deltaz"]["criteria"]["depth_reduction"] = 1e6
    (project.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    try:
        done = project.command(sys.executable, "-m", "dvc", "repro", "--keep-going", "train@deltaz", "train@vggt")
        assert done.returncode != 0 and ran(done.stdout) == {"overfit_pair@deltaz"}
        text = done.stdout + done.stderr
        assert "deltaz does not fit its sample: depth_reduction not met." in text
        assert "The depth error went from " in text and "runs/overfit/deltaz/record.md" in text
        folder = project.folder / "runs/overfit/deltaz"
        assert "**Failed.**" in (folder / "record.md").read_text()
        assert json.loads((folder / "passed.json").read_text()) == {"system": "deltaz", "passed": False}
        assert (folder / "curve.csv").is_file() and (folder / "step_1.png").is_file()
    finally:
        project.command("git", "reset", "-q", "--hard")
        project.dvc("checkout", "--force")


def test_a_gate_that_passes_again_gives_no_cause_to_train_again(project: Project) -> None:
    try:
        output = project.dvc("repro", "--force", "--single-item", "overfit_pair@vggt")
        assert "vggt fits its sample" in output
        assert "Running stage" not in project.dvc("repro", "train@vggt")
    finally:
        project.command("git", "reset", "-q", "--hard")
        project.dvc("checkout", "--force")


def test_the_gate_is_recorded_with_its_curve_and_pictures(project: Project) -> None:
    code = (
        "import mlflow, json; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "c = mlflow.MlflowClient();"
        "runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "r = [r for r in runs if r.data.tags.get('stage') == 'overfit_pair' and r.data.tags.get('system') == 'vggt'][-1];"
        "files = [f.path for f in c.list_artifacts(r.info.run_id, 'vggt')];"
        "steps = [m.step for m in c.get_metric_history(r.info.run_id, 'train/camera')];"
        "print(json.dumps([r.data.tags['verdict'], r.data.metrics['overfit/passed'], sorted(files), steps]))"
    )
    found = json.loads(project.command(sys.executable, "-c", code).stdout.splitlines()[-1])
    assert found[:2] == ["passed", 1.0] and found[3] == [1, 2, 3]
    assert {"vggt/record.md", "vggt/step_1.png", "vggt/step_3.png", "vggt/verdict.json"} <= set(found[2])
