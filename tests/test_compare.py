"""`plumbline compare` in a small git and DVC repository: one experiment run by DVC, others planted beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plumbline import compare
from plumbline.cli import app
from plumbline.errors import DataError

PARAMS = """\
lr: 1.0e-4
datasets:
  rooms: {image_size: [120, 160], depth_range: [0.5, 10.0]}
suites:
  gap1: {dataset: rooms, max_samples: 8}
systems:
  net: {sparse_depth: true}
"""
GRAPH = """\
stages:
  report:
    cmd: python make.py
    params: [lr, datasets, suites, systems]
    deps: [make.py]
    metrics:
      - reports/metrics.json: {cache: false}
"""
# The error follows the step size, so that each experiment has its own number.
MAKE = """\
import json, pathlib, re
lr = float(re.search(r"lr: (\\S+)", pathlib.Path("params.yaml").read_text())[1])
rows = {"net": {"abs_rel": 1000 * lr, "delta1": 0.9}, "sweep": {"abs_rel": 0.3, "delta1": 0.5}}
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("reports/metrics.json").write_text(json.dumps({"gap1": rows}))
"""


def run(repo: Path, *command: str) -> str:
    programs = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": programs, "HOME": str(repo), "GIT_AUTHOR_NAME": "t", "GIT_COMMITTER_NAME": "t"}
    environment |= {"GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_EMAIL": "t@example.org"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def commit(repo: Path, message: str = "Change") -> str:
    run(repo, "git", "add", "-A")
    run(repo, "git", "commit", "-q", "--allow-empty", "-m", message)
    return run(repo, "git", "rev-parse", "HEAD")


def plant(repo: Path, name: str, params: str, metrics: object, *, baseline: str = "") -> str:
    """An experiment such as DVC leaves one: a commit that only refs/exps names, below its baseline (HEAD's commit)."""
    side, head = repo.parent / "side", run(repo, "git", "rev-parse", "HEAD")
    run(side, "git", "checkout", "-q", "--detach", head)
    (side / "params.yaml").write_text(params)
    (side / "reports").mkdir(exist_ok=True)
    (side / "reports/metrics.json").write_text(json.dumps(metrics))
    made, below = commit(side), baseline or head
    run(repo, "git", "update-ref", f"refs/exps/{below[:2]}/{below[2:]}/{name}", made)
    return made


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main with metrics made by DVC; `slower` run by DVC with another lr; `plain` and `large` planted."""
    root = tmp_path_factory.mktemp("compare") / "repo"
    root.mkdir()
    for name, text in (("params.yaml", PARAMS), ("dvc.yaml", GRAPH), ("make.py", MAKE)):
        (root / name).write_text(text)
    run(root, "git", "init", "-q", "-b", "main")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    commit(root)
    run(root, sys.executable, "-m", "dvc", "exp", "run", "-q", "--name", "slower", "-S", "lr=5e-5")
    run(root, "git", "reset", "-q", "--hard")
    (root / "dvc.lock").unlink()
    run(root, sys.executable, "make.py")
    run(root, "git", "worktree", "add", "-q", "--detach", "../side")
    rows = {"net": {"abs_rel": 0.12, "delta1": 0.88}, "sweep": {"abs_rel": 0.3, "delta1": 0.5}}
    plant(root, "plain", PARAMS.replace("sparse_depth: true", "sparse_depth: false"), {"gap1": rows})
    plant(root, "large", PARAMS.replace("[120, 160]", "[240, 320]"), {"gap1": rows, "gap5": rows})
    return root


@pytest.fixture
def command(repo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repo)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["compare", *arguments])
        if isinstance(done.exception, DataError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return invoke


def cells(rows: tuple[compare.Row, ...]) -> dict[str, tuple[str, ...]]:
    return {".".join(row.label): row.cells for row in rows}


def test_an_experiment_that_dvc_ran_stands_beside_the_workspace(repo: Path) -> None:
    found = compare.compare(compare.read_experiments(repo, ["workspace", "slower"]), metrics=["abs_rel", "delta1"])
    assert cells(found.params) == {"lr": ("0.0001", "5e-05")}
    assert cells(found.metrics) == {
        "gap1.net.abs_rel": ("0.1000", "0.0500 (-50.0%)"),
        "gap1.net.delta1": ("90.0%", "90.0%"),
        "gap1.sweep.abs_rel": ("0.3000", "0.3000"),
        "gap1.sweep.delta1": ("50.0%", "50.0%"),
    }
    assert [row.best for row in found.metrics] == [1, None, None, None]
    assert found.notes == ()


def test_shares_are_better_when_higher_and_told_in_points(repo: Path) -> None:
    found = compare.compare(compare.read_experiments(repo, ["slower", "plain"]), metrics=["delta1"], methods=["net"])
    assert cells(found.metrics) == {"gap1.net.delta1": ("90.0%", "88.0% (-2.0)")}
    assert found.metrics[0].best == 0
    assert cells(found.params)["systems.net.sparse_depth"] == ("true", "false")


def test_a_suite_that_is_another_test_is_said(repo: Path) -> None:
    found = compare.compare(compare.read_experiments(repo, ["plain", "large"]))
    assert cells(found.metrics)["gap5.net.abs_rel"] == ("–", "0.1200")
    assert found.notes[0] == "gap1 may not be the same test in all columns: they differ in datasets.rooms.image_size."


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("suites.gap1.depth_max", True),
        ("suites.gap1.predict_views", False),
        ("suites.gap5.depth_max", False),
        ("datasets.rooms.split.test", True),
        ("datasets.rooms.split.train", False),
        ("datasets.rooms.split", True),
        ("datasets.rooms.source.settings.seed", True),
        ("datasets.halls.image_size", False),
        ("evaluation.average", True),
        ("systems.net.size", False),
    ],
)
def test_what_makes_another_test_is_told(key: str, told: bool) -> None:
    common = {"suites.gap1.dataset": "rooms"}
    metrics = {("gap1", "net", "abs_rel"): 0.1}
    experiments = [compare.Experiment(str(value), {**common, key: value}, metrics) for value in (1, 2)]
    expected = (f"gap1 may not be the same test in all columns: they differ in {key}.",) if told else ()
    assert compare.compare(experiments).notes == expected


def test_long_lists_of_params_are_cut() -> None:
    stale = tuple(f"lr{i}" for i in range(7))
    (note,) = compare.compare([compare.Experiment("x", {}, {("gap1", "net", "abs_rel"): 0.1}, stale)]).notes
    assert "(lr0, lr1, lr2, lr3, lr4 and 2 more)" in note


def test_the_range_that_methods_search_is_no_other_test(repo: Path) -> None:
    params = PARAMS.replace("[0.5, 10.0]", "[0.1, 20.0]")
    plant(repo, "wide", params, {"gap1": {"net": {"abs_rel": 0.2}}})
    found = compare.compare(compare.read_experiments(repo, ["plain", "wide"]))
    assert "datasets.rooms.depth_range" in cells(found.params)
    assert found.notes == ()


def test_metrics_of_another_run_are_said(repo: Path) -> None:
    """Only some stages ran: params.yaml is new, the metrics and what dvc.lock says of them are not."""
    side = repo.parent / "side"
    run(
        side,
        "git",
        "checkout",
        "-q",
        run(repo, "git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/slower"),
    )
    (side / "params.yaml").write_text((side / "params.yaml").read_text().replace("true", "false"))
    half = commit(side)
    (note,) = compare.compare(compare.read_experiments(repo, [half])).notes
    made = "its metrics were made with other params than it has now (systems.net.sparse_depth)"
    assert note == f"{half}: {made}. Run it to its end."


def test_the_command_prints_and_writes_the_tables(command, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    output = command("plain", "slower", "--suite", "gap1", "--metric", "abs_rel", "--out", str(page))
    assert "params that differ" in output
    assert "0.0500 (-58.3%)" in output
    assert page.read_text() == (
        "# plain · slower\n\n## Params that differ\n\n"
        "| param | plain | slower |\n| --- | ---: | ---: |\n"
        "| lr | 0.0001 | 5e-05 |\n| systems.net.sparse_depth | false | true |\n\n"
        "## Results\n\n| suite | method | metric | plain | slower |\n| --- | --- | --- | ---: | ---: |\n"
        "| gap1 | net | abs_rel | 0.1200 | **0.0500 (-58.3%)** |\n| gap1 | sweep | abs_rel | 0.3000 | 0.3000 |\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plain", "slowr"), r"slowr: no such experiment or git revision. Did you mean slower\?"),
        (("plain", "zzz"), r"zzz: no such .* There is: large, plain, .*`dvc exp show` lists experiments."),
        (("HEAD", "slower"), r"HEAD has no reports/metrics.json, so there is nothing to compare. Run it to its end"),
        (("plain", "slower", "--suite", "gap2"), r"none of the experiments has a suite 'gap2'. Did you mean 'gap1'\?"),
        (("plain", "slower", "--metric", "rms"), r"has a metric 'rms'. There is: abs_rel, delta1."),
    ],
)
def test_errors_say_what_there_is(command, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        command(*arguments)


def test_one_name_under_two_baselines_is_settled_by_head_or_refused(repo: Path) -> None:
    first = plant(repo, "twice", PARAMS, {"gap1": {"net": {"abs_rel": 0.5}}}, baseline="1" * 40)
    second = plant(repo, "twice", PARAMS, {"gap1": {"net": {"abs_rel": 0.6}}}, baseline="2" * 40)
    with pytest.raises(
        DataError, match=rf"2 experiments have this name: {first[:7]} \(of 1111111\), {second[:7]} .*Give"
    ):
        compare.read_experiments(repo, ["twice"])
    plant(repo, "twice", PARAMS, {"gap1": {"net": {"abs_rel": 0.7}}})
    found = compare.read_experiments(repo, ["twice", second[:10]])
    assert [experiment.metrics["gap1", "net", "abs_rel"] for experiment in found] == [0.7, 0.6]


def test_outside_a_repository_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a git repository"):
        compare.read_experiments(tmp_path, ["HEAD"])
