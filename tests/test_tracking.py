"""Runs in MLflow: what is logged, who is whose child, first use by two at once, and a server that does not answer."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from plumbline import tracking
from plumbline.config import TrackingConfig
from plumbline.errors import DataError
from plumbline.files import sha256_file, write_json, write_png

CONFIG = TrackingConfig(experiment="test")


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """A folder in which two processes logged at once into a database that was not there; what they said, how they ended."""
    folder = tmp_path_factory.mktemp("raced")
    code = textwrap.dedent("""
        from plumbline import tracking
        from plumbline.config import TrackingConfig
        assert tracking.log_stage("train", config=TrackingConfig(experiment="race"), metrics={"loss": 1.0}), "not logged"
    """)
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    return folder, errors, [process.returncode for process in both]


@pytest.fixture
def root(tmp_path, monkeypatch, raced):
    # Making the tables takes seconds: each test starts from a copy of those made once.
    shutil.copyfile(raced[0] / "mlflow.db", tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("lr: 1e-4\nseed: 3\n")
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  parse@dtu:\n    outs:\n    - {path: data/scenes/dtu, md5: abc.dir}\n    - {path: other, md5: def}\n"
    )
    (tmp_path / "curve.csv").write_text(
        "step,lr,seconds,train/loss,val/abs_rel\n10,0.1,1.5,0.5,\n20,0.1,3,0.25,0.125\n"
    )
    return tmp_path


def runs(root):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("test")
    return client, {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


def as_dvc(monkeypatch, session):
    monkeypatch.setattr(tracking, "dvc_session", lambda: session)


def this_session():
    import psutil

    return tracking._session_key(psutil.Process())


def test_a_stage_is_logged_in_full(root, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train@deltaz")
    run_id = tracking.log_stage(
        "train",
        item="deltaz",
        config=CONFIG,
        params={"lr": 1e-4, "train": {"deltaz": {"steps": 20, "betas": [0.9, 0.999]}}},
        metrics={"test/dtu/deltaz/abs_rel": 0.1},
        curve=root / "curve.csv",
        artifacts=[root / "curve.csv"],
        tags={"system": "deltaz", "seed": "3"},
    )
    client, found = runs(root)
    run = found[run_id]
    assert run.info.run_name == "train@deltaz" and run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.0001", "train.deltaz.steps": "20", "train.deltaz.betas": "[0.9, 0.999]"}
    history = [(m.step, m.value) for m in client.get_metric_history(run_id, "train/loss")]
    assert history == [(10, 0.5), (20, 0.25)]
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "val/abs_rel")] == [(20, 0.125)]
    assert run.data.metrics["test/dtu/deltaz/abs_rel"] == 0.1
    tags = run.data.tags
    assert (tags["stage"], tags["system"], tags["seed"], tags["dvc.stage"]) == ("train", "deltaz", "3", "train@deltaz")
    assert (tags["data_md5"], tags["dvc.lock_sha256"]) == ("dtu=abc.dir", sha256_file(root / "dvc.lock"))
    assert {file.path for file in client.list_artifacts(run_id)} == {"params.yaml", "curve.csv"}
    assert (root / "mlartifacts").is_dir() and "mlflow.parentRunId" not in tags


def test_stages_of_one_dvc_are_children_of_one_parent_which_the_last_ends(root, monkeypatch):
    as_dvc(monkeypatch, this_session())
    first = tracking.log_stage("train", config=CONFIG, metrics={"val/abs_rel": 0.5}, tags={"seed": "3"})
    _, found = runs(root)
    parent = found[first].data.tags["mlflow.parentRunId"]
    assert found[parent].info.status == "RUNNING" and found[parent].data.metrics == {"val/abs_rel": 0.5}
    (root / "reports").mkdir()
    write_json(root / "reports/metrics.json", {"deltaz": {"abs_rel": 0.25}})
    (root / "dvc.lock").write_text((root / "dvc.lock").read_text().replace("abc", "def"))
    last = tracking.log_stage("report", config=CONFIG, metrics={"test/abs_rel": 0.25}, ends_pipeline=True)
    client, found = runs(root)
    assert len(found) == 3 and found[last].data.tags["mlflow.parentRunId"] == parent
    assert found[parent].info.status == "FINISHED"
    assert found[parent].data.metrics == {"val/abs_rel": 0.5, "test/abs_rel": 0.25}
    assert found[parent].data.tags["dvc.role"] == "pipeline" and found[first].data.tags["dvc.role"] == "stage"
    assert found[parent].data.tags["data_md5"] == "dtu=def.dir" and "stage" not in found[parent].data.tags
    assert {file.path for file in client.list_artifacts(parent)} == {"params.yaml", "dvc.lock"}
    assert tracking.sync(CONFIG) is None, "these results were recorded by the pipeline itself"


def test_parents_whose_dvc_is_gone_are_closed(root, monkeypatch):
    import psutil

    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    as_dvc(monkeypatch, tracking._session_key(psutil.Process(gone.pid)))
    tracking.log_stage("train", config=CONFIG)
    _, found = runs(root)
    (old,) = [key for key, run in found.items() if run.data.tags["dvc.role"] == "pipeline"]
    assert found[old].info.status == "RUNNING"
    gone.communicate(b"\n")
    as_dvc(monkeypatch, this_session())
    tracking.log_stage("train", config=CONFIG)
    _, found = runs(root)
    states = {key: run.info.status for key, run in found.items() if run.data.tags["dvc.role"] == "pipeline"}
    assert states.pop(old) == "KILLED" and list(states.values()) == ["RUNNING"]


def test_sync_records_cached_results_once(root):
    with pytest.raises(DataError, match="no such file"):
        tracking.sync(CONFIG)
    (root / "reports").mkdir()
    write_json(root / "reports/metrics.json", {"deltaz": {"dtu": {"abs_rel": 0.25}}, "note": "text"})
    run_id = tracking.sync(CONFIG)
    assert tracking.sync(CONFIG) is None
    _, found = runs(root)
    assert list(found) == [run_id]
    assert found[run_id].data.metrics == {"deltaz/dtu/abs_rel": 0.25}
    assert found[run_id].data.params == {"lr": "0.0001", "seed": "3"}


def test_two_processes_may_open_an_empty_store_at_once(raced):
    _, errors, codes = raced
    assert codes == [0, 0], errors
    with sqlite3.connect(raced[0] / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (2,)


def test_a_dead_server_warns_once_and_costs_seconds(root, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert tracking.log_stage("train", config=CONFIG, curve=root / "curve.csv", metrics={"a": 1.0}) is None
    assert time.monotonic() - began < 10
    said = capsys.readouterr().err
    assert said.count("warning: this stage is not recorded in MLflow") == 1
    assert f"127.0.0.1:{port}" in said and "plumbline sync" in said


def test_switched_off_it_touches_nothing(root):
    before = sorted(root.iterdir())
    assert tracking.log_stage("train", config=TrackingConfig(enabled=False)) is None
    assert sorted(root.iterdir()) == before


def test_tensorboard_files_hold_the_curve(root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_png(root / "step_20.png", np.full((4, 6, 3), 90, np.uint8))
    pictures = {20: root / "step_20.png"}
    events = EventAccumulator(str(tracking.write_tensorboard(root / "curve.csv", root / "board", pictures)))
    events.Reload()
    assert [(e.step, e.width, e.height) for e in events.Images("depth")] == [(20, 6, 4)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 0.5), (20, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("val/abs_rel")] == [(20, 0.125)]


def test_dvc_is_recognised_by_its_command():
    assert tracking._is_dvc(["/venv/bin/python", "/venv/bin/dvc", "repro"])
    assert tracking._is_dvc(["dvc", "exp", "run"])
    assert tracking._is_dvc(["python", "-m", "dvc", "repro"])
    assert not tracking._is_dvc(["python", "stages/train.py", "dvc"])
    assert not tracking._is_dvc(["vim", "dvc.yaml"])


def test_flatten_joins_by_dots():
    assert tracking.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
