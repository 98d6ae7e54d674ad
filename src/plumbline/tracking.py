"""Runs in MLflow: one parent a dvc invocation, one child a stage, logged in one call when the stage has its results.

The files are the truth; this is a copy to browse. It is the only module that imports mlflow, and only when there is
something to log. A store that cannot be reached is warned of once and never ends a run.
"""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from plumbline.config import TrackingConfig, load_params
from plumbline.curve import read_curve
from plumbline.errors import DataError
from plumbline.files import read_image, read_json, sha256_file
from plumbline.process import dvc_root

_LONGEST_VALUE = 6000
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100


def log_stage(
    stage: str,
    *,
    config: TrackingConfig,
    item: str | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    curve: Path | None = None,
    pictures: Mapping[int, Path] | None = None,
    artifacts: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
    ends_pipeline: bool = False,
) -> str | None:
    """Log what a stage did as a run under this dvc invocation's parent; returns the run's id, None when nothing was logged.

    `params` may be nested (flattened by dots); `metrics` go to the parent as well; `curve` is a curve.csv, logged by step
    and, when so configured, written for TensorBoard into `$DVC_ROOT/runs/tensorboard`, with the `pictures` (PNG files by
    step). params.yaml is added to the artifacts. `ends_pipeline` closes the parent: the last stage says so. Any failure
    becomes one warning.
    """
    if not config.enabled:
        return None
    try:
        if curve is not None and config.tensorboard:
            write_tensorboard(curve, dvc_root() / "runs" / "tensorboard" / _label(stage, item), pictures or {})
        entry = Entry(_label(stage, item), flatten(params or {}), dict(metrics or {}), curve, tuple(artifacts))
        return _log(entry, config, {"stage": stage, **provenance(Path.cwd()), **(tags or {})}, ends_pipeline)
    except Exception as error:  # noqa: BLE001  # a tracking store that fails in whatever way must not end a long run
        _warn(error)
        return None


def sync(config: TrackingConfig, *, folder: Path | None = None) -> str | None:
    """Record the results in `folder` (default: here) as a run, for a repro that found every stage cached.

    Reads reports/metrics.json, dvc.lock and params.yaml. Returns the run's id, None when these results are recorded
    already. DataError when there are no results; errors of the tracking store are raised, since this is all it does.
    """
    folder = folder or Path.cwd()
    results = folder / "reports" / "metrics.json"
    metrics = {
        name.replace(".", "/"): float(value) for name, value in flatten(read_json(results)).items() if _number(value)
    }
    if not metrics:
        raise DataError(f"{results}: holds no numbers. Run the pipeline first: dvc repro.")
    params = load_params(folder / "params.yaml") if (folder / "params.yaml").is_file() else {}
    files = [folder / name for name in ("dvc.lock", "reports/metrics.json", "reports/report.html", "reports/report.md")]
    entry = Entry("sync", flatten(params), metrics, None, tuple(path for path in files if path.is_file()))
    tags = {**provenance(folder), "dvc.role": "pipeline", "metrics_sha256": sha256_file(results)}
    with _store(config) as store:
        if store.find(f"tags.metrics_sha256 = '{tags['metrics_sha256']}'"):
            return None
        run = store.create(entry.name, tags)
    store.fill(run, entry, params_file=folder / "params.yaml")
    store.client.set_terminated(run, "FINISHED")
    return run


def serve(port: int) -> int:
    """Serve the MLflow page on this machine until Ctrl-C; returns the server's exit status."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{dvc_root() / 'mlflow.db'}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.run(command, env={**quiet, **os.environ}, check=False).returncode
    except KeyboardInterrupt:
        return 0


@dataclass(frozen=True)
class Entry:
    """What one run shows."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Path | None
    artifacts: tuple[Path, ...]


class Store:
    """An open tracking store and the experiment that runs go into."""

    def __init__(self, client: Any, experiment: str) -> None:
        self.client, self.experiment = client, experiment

    def find(self, query: str) -> list[Any]:
        """The experiment's runs that match an MLflow search query, newest first."""
        return list(self.client.search_runs([self.experiment], query))

    def create(self, name: str, tags: Mapping[str, str], *, started: float | None = None) -> str:
        """A new run with these tags, begun at `started` (seconds since 1970; default now); its id."""
        begun = round(1000 * (started or time.time()))
        run = self.client.create_run(self.experiment, start_time=begun, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def fill(self, run: str, entry: Entry, *, params_file: Path) -> None:
        """Log the entry's parameters, numbers, curve and files to `run`, many a call."""
        from mlflow.entities import Param

        params = [Param(name, _text(value)) for name, value in entry.params.items()]
        for chunk in _chunks(params, _PARAMS_A_CALL):
            self.client.log_batch(run, params=chunk)
        self.measure(run, entry.metrics)
        if entry.curve is not None:
            self._draw(run, read_curve(entry.curve))
        for path in (params_file, *entry.artifacts):
            if path.is_file():
                self.client.log_artifact(run, str(path))
            elif path.is_dir():
                self.client.log_artifacts(run, str(path), path.name)

    def measure(self, run: str, metrics: Mapping[str, float]) -> None:
        """Log single numbers to `run`."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        for chunk in _chunks([Metric(name, value, now, 0) for name, value in metrics.items()], _METRICS_A_CALL):
            self.client.log_batch(run, metrics=chunk)

    def _draw(self, run: str, rows: Sequence[Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        began = time.time() - (rows[-1].get("seconds", 0.0) if rows else 0.0)
        points = [
            Metric(name, value, round(1000 * (began + row.get("seconds", 0.0))), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in {"step", "seconds"}
        ]
        for chunk in _chunks(points, _METRICS_A_CALL):
            self.client.log_batch(run, metrics=chunk)


def _log(entry: Entry, config: TrackingConfig, tags: Mapping[str, str], ends_pipeline: bool) -> str:
    import psutil

    session = dvc_session()
    with _store(config) as store:
        parent = None if session is None else _parent(store, session, tags)
    inherited = {} if parent is None else {"mlflow.parentRunId": parent}
    began = psutil.Process().create_time()
    run = store.create(entry.name, {"dvc.role": "stage", **tags, **inherited}, started=began)
    store.fill(run, entry, params_file=Path("params.yaml"))
    store.client.set_terminated(run, "FINISHED")
    if parent is not None:
        store.measure(parent, entry.metrics)
        if ends_pipeline:
            _end(store, parent, entry, tags)
    return run


def _end(store: Store, parent: str, entry: Entry, tags: Mapping[str, str]) -> None:
    for name, value in _of_pipeline(tags).items():  # dvc.lock has grown since the first stage
        store.client.set_tag(parent, name, value)
    results = Path("reports/metrics.json")
    if results.is_file():
        store.client.set_tag(parent, "metrics_sha256", sha256_file(results))
    store.fill(parent, Entry(entry.name, entry.params, {}, None, (Path("dvc.lock"),)), params_file=Path("params.yaml"))
    store.client.set_terminated(parent, "FINISHED")


@contextlib.contextmanager
def _store(config: TrackingConfig) -> Iterator[Store]:
    """The store, held alone within the block: two processes that open an empty database at once would break it."""
    root = dvc_root()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    with FileLock(root / "mlflow.db.lock", timeout=60):
        client = _client(uri)
        found = client.get_experiment_by_name(config.experiment)
        if found is None:
            artifacts = (root / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            yield Store(client, client.create_experiment(config.experiment, artifact_location=artifacts))
        else:
            yield Store(client, found.experiment_id)


def _client(uri: str) -> Any:
    # All of these only where the user has not chosen: nothing is sent home, and a dead server is found dead in seconds.
    quick = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **quick}.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def dvc_session() -> str | None:
    """`host:pid:start` of the nearest `dvc` process above this one; None when no dvc runs this stage."""
    import psutil

    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # it ended, or is another user's: not the dvc that waits for us
            if _is_dvc(process.cmdline()):
                return _session_key(process)
    return None


def _is_dvc(command: Sequence[str]) -> bool:
    return any(Path(part).name in {"dvc", "dvc.exe"} for part in command[:2]) or list(command[1:3]) == ["-m", "dvc"]


def _session_key(process: Any) -> str:
    return f"{platform.node()}:{process.pid}:{process.create_time():.2f}"


def _parent(store: Store, session: str, tags: Mapping[str, str]) -> str:
    running = store.find("attributes.status = 'RUNNING' and tags.`dvc.role` = 'pipeline'")
    _reap(store, running)
    mine = [run for run in running if run.data.tags.get("dvc.session") == session]
    if mine:
        return str(mine[0].info.run_id)
    own = {"dvc.role": "pipeline", "dvc.session": session}
    name = tags.get("dvc.exp_name") or f"dvc {tags.get('git.commit', '')[:8]}".strip()
    return store.create(name, {**_of_pipeline(tags), **own}, started=float(session.rsplit(":", 1)[1]))


def _of_pipeline(tags: Mapping[str, str]) -> dict[str, str]:
    kept = ("git.", "dvc.exp", "dvc.lock", "seed", "data_md5")
    return {name: value for name, value in tags.items() if name.startswith(kept)}


def _reap(store: Store, running: Sequence[Any]) -> None:
    """Close, as KILLED, the parents of this host whose dvc process is gone."""
    for run in running:
        session = run.data.tags.get("dvc.session", "")
        host, _, rest = session.partition(":")
        if host == platform.node() and not _alive(session, int(rest.partition(":")[0])):
            store.client.set_terminated(run.info.run_id, "KILLED")


def _alive(session: str, pid: int) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        # A process that has ended but was not waited for still has its number.
        return _session_key(process) == session and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def provenance(folder: Path) -> dict[str, str]:
    """Tags that say what produced a result: the commit, the dvc stage and experiment, the lock file, the data's hashes."""
    tags = {
        "git.commit": _git(folder, "rev-parse", "HEAD"),
        "git.branch": _git(folder, "branch", "--show-current"),
        "git.dirty": str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.exp_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    lock = folder / "dvc.lock"
    if lock.is_file():
        tags |= {"dvc.lock_sha256": sha256_file(lock), "data_md5": _data_md5(lock)}
    return {name: value for name, value in tags.items() if value}


def _data_md5(lock: Path) -> str:
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {})
    outs = {out["path"]: out.get("md5", "") for stage in stages.values() for out in stage.get("outs", [])}
    return " ".join(
        f"{path.removeprefix('data/scenes/')}={md5}" for path, md5 in sorted(outs.items()) if "data/scenes" in path
    )


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; empty mappings stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, prefix=f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def write_tensorboard(curve: Path, folder: Path, pictures: Mapping[int, Path] | None = None) -> Path:
    """Write a curve.csv, and PNG files by step, as TensorBoard events into a new folder below `folder`; returns that."""
    from torch.utils.tensorboard.writer import SummaryWriter

    run = folder / time.strftime("%Y%m%d-%H%M%S")
    with SummaryWriter(str(run)) as writer:
        for row in read_curve(curve):
            for name in row.keys() - {"step", "seconds"}:
                writer.add_scalar(name, row[name], int(row["step"]))
        for step, path in (pictures or {}).items():
            writer.add_image("depth", read_image(path), step, dataformats="HWC")
    return run


def _label(stage: str, item: str | None) -> str:
    return stage if item is None else f"{stage}@{item}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_LONGEST_VALUE]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _chunks(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _warn(error: Exception) -> None:
    where = os.environ.get("MLFLOW_TRACKING_URI", "the local MLflow database")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    print(
        f"warning: this stage is not recorded in MLflow ({where}): {reason} Its files are complete; "
        "plumbline sync records the results once the store is there again.",
        file=sys.stderr,
    )
