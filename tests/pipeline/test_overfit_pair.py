"""The gate in the graph: what it reads and leaves, what it lets through, and what it stops."""

import json
import re
import sys

import pytest
import yaml

from smoke_project import Project

pytestmark = pytest.mark.pipeline
SYSTEMS = {"deltaz": ("dtu", 3), "deltas": ("sun3d", 3), "vggt": ("aerialmd", 2)}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_a_sample_and_a_record(project: Project, system: str) -> None:
    dataset, views = SYSTEMS[system]
    described = json.loads((project.folder / "data/pair" / system / "sample/sample.json").read_text())
    assert described["dataset"] == dataset and [view["role"] for view in described["views"]] == ["context"] * views
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
        ran = set(re.findall(r"Running stage '([^']+)'", done.stdout))
        assert done.returncode != 0 and ran == {"overfit_pair@deltaz"}
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
