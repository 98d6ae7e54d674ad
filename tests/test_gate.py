"""The gate in temporary git repositories: each kind of failure fails, slack passes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from plumbline import gate
from plumbline.errors import ConfigError, DataError
from plumbline.gate import Line, Pattern, Rule, Tolerances, compare

RULES = """
rules:
  - {metric: "delta*", direction: higher, absolute: 0.01, source: a}
  - {method: constant, direction: either, absolute: 1e-6, source: b}
  - {metric: abs_rel, direction: lower, absolute: 0.001, relative: 0.1, source: c}
retired:
  - {method: old_*, source: replaced by the new one}
"""
BEFORE = {"dtu": {"deltaz": {"abs_rel": 0.1, "delta1": 0.9}, "constant": {"abs_rel": 0.4}}}


def git(repo: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=repo, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repo: Path, metrics: object | None, message: str = "Change") -> None:
    if metrics is not None:
        (repo / "reports").mkdir(exist_ok=True)
        (repo / "reports/metrics.json").write_text(json.dumps(metrics))
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "--allow-empty", "-m", message)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository on main with one commit that holds BEFORE and the rules."""
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/tolerances.yaml").write_text(RULES)
    commit(tmp_path, BEFORE)
    return tmp_path


def changed(repo: Path, values: dict[str, dict[str, float | None]]) -> gate.GateReport:
    """The report after the work tree's metrics were changed: {method: {metric: value}}; None takes one away."""
    after = json.loads(json.dumps(BEFORE))
    for method, metrics in values.items():
        for name, value in metrics.items():
            after["dtu"].setdefault(method, {})[name] = value
            if value is None:
                del after["dtu"][method][name]
    (repo / "reports/metrics.json").write_text(json.dumps(after))
    return gate.run_gate(repo, base="HEAD")


def verdicts(report: gate.GateReport) -> dict[str, str]:
    return {f"{line.method}.{line.metric}": line.verdict for line in report.lines if line.verdict != "same"}


def test_unchanged_metrics_pass(repo: Path) -> None:
    report = gate.run_gate(repo, base="HEAD")
    assert report.passed
    assert {line.verdict for line in report.lines} == {"same"}
    assert len(report.lines) == 3


def test_move_inside_the_slack_passes(repo: Path) -> None:
    report = changed(repo, {"deltaz": {"abs_rel": 0.1109, "delta1": 0.891}})
    assert report.passed
    assert verdicts(report) == {"deltaz.abs_rel": "within", "deltaz.delta1": "within"}


@pytest.mark.parametrize(
    ("method", "metric", "value"),
    [("deltaz", "abs_rel", 0.1111), ("deltaz", "delta1", 0.889), ("constant", "abs_rel", 0.399)],
)
def test_worse_beyond_the_slack_fails(repo: Path, method: str, metric: str, value: float) -> None:
    report = changed(repo, {method: {metric: value}})
    assert not report.passed
    assert verdicts(report) == {f"{method}.{metric}": "worse"}
    assert "1 worse" in gate.summary(report).splitlines()[0]


def test_better_beyond_the_slack_passes_and_is_named(repo: Path) -> None:
    report = changed(repo, {"deltaz": {"abs_rel": 0.08, "delta1": 0.95}})
    assert report.passed
    assert set(verdicts(report).values()) == {"better"}


def test_missing_metric_fails_and_a_retired_one_does_not(repo: Path) -> None:
    assert verdicts(changed(repo, {"deltaz": {"delta1": None}})) == {"deltaz.delta1": "missing"}
    assert not changed(repo, {"deltaz": {"delta1": None}}).passed
    before = {"dtu": {**BEFORE["dtu"], "old_net": {"abs_rel": 0.2}}}
    commit(repo, before)
    report = changed(repo, {})
    assert report.passed
    assert verdicts(report) == {"old_net.abs_rel": "retired"}


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.1", True])
def test_what_is_no_finite_number_fails(repo: Path, value: object) -> None:
    report = changed(repo, {"deltaz": {"abs_rel": value}})
    assert not report.passed
    assert verdicts(report) == {"deltaz.abs_rel": "not finite"}
    assert json.loads(json.dumps(gate.to_json(report), allow_nan=False))["passed"] is False


def test_new_metric_is_listed_and_passes(repo: Path) -> None:
    report = changed(repo, {"deltas": {"abs_rel": 0.2}})
    assert report.passed
    assert verdicts(report) == {"deltas.abs_rel": "new"}


def test_metric_without_a_rule_fails(repo: Path) -> None:
    report = changed(repo, {"deltaz": {"rmse": 0.2}})
    assert not report.passed
    assert verdicts(report) == {"deltaz.rmse": "no rule"}
    assert "add a rule to reports/tolerances.yaml" in gate.summary(report)


def test_nothing_in_common_fails(repo: Path) -> None:
    (repo / "reports/metrics.json").write_text(json.dumps({"dtu": {"new": {"abs_rel": 0.1}}}))
    report = gate.run_gate(repo, base="HEAD")
    assert not report.passed
    assert "nothing compared" in gate.summary(report)


@pytest.mark.parametrize("content", [None, "{}"])
def test_absent_or_empty_metrics_fail(repo: Path, content: str | None) -> None:
    (repo / "reports/metrics.json").unlink()
    if content:
        (repo / "reports/metrics.json").write_text(content)
    report = gate.run_gate(repo, base="HEAD")
    assert not report.passed
    assert len(report.failures) == 3
    assert "nothing compared. Run make repro first." in report.problem


def test_first_metrics_pass_only_when_said_to_be_first(repo: Path) -> None:
    git(repo, "rm", "-q", "--cached", "reports/metrics.json")
    git(repo, "commit", "-q", "--amend", "-m", "No metrics")
    report = gate.run_gate(repo, base="HEAD")
    assert not report.passed
    assert "nothing compared. When this commit brings the first ones, say --first." in report.problem
    assert gate.run_gate(repo, base="HEAD", first=True).passed
    (repo / "reports/metrics.json").write_text(json.dumps({"dtu": {"deltaz": {"abs_rel": math.nan}}}))
    assert not gate.run_gate(repo, base="HEAD", first=True).passed


def test_first_does_not_excuse_a_base_with_metrics(repo: Path) -> None:
    (repo / "reports/metrics.json").write_text(json.dumps({"dtu": {"new": {"abs_rel": 0.1}}}))
    assert not gate.run_gate(repo, base="HEAD", first=True).passed


def test_single_commit_has_nothing_to_compare_with(repo: Path) -> None:
    report = gate.run_gate(repo)
    assert not report.passed
    assert "HEAD~1 (no such commit): nothing compared" in report.problem


def test_base_is_the_merge_base_on_a_branch_and_the_commit_before_on_main(repo: Path) -> None:
    first = git(repo, "rev-parse", "HEAD")
    git(repo, "switch", "-q", "-c", "work")
    commit(repo, {"dtu": {"deltaz": {"abs_rel": 0.2}}})
    commit(repo, None)
    assert gate.base_revision(repo) == first
    git(repo, "switch", "-q", "main")
    assert gate.base_revision(repo) == "HEAD~1"
    git(repo, "merge", "-q", "--ff-only", "work")
    assert gate.base_revision(repo) == "HEAD~1"


def test_detached_checkout_with_only_the_remote_main(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = git(repo, "rev-parse", "HEAD")
    git(repo, "switch", "-q", "-c", "work")
    commit(repo, None)
    clone = tmp_path_factory.mktemp("clone")
    git(clone, "clone", "-q", str(repo), ".")
    git(clone, "checkout", "-q", "--detach")
    assert "main" not in git(clone, "branch", "--format=%(refname:short)").split()
    assert gate.base_revision(clone) == first


def test_unknown_base_is_an_error(repo: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such commit in .*fetch-depth: 0"):
        gate.run_gate(repo, base="nowhere", first=True)


@pytest.mark.parametrize("content", ["{", "[1]", '{"dtu": 1}'])
def test_broken_metrics_are_an_error(repo: Path, content: str) -> None:
    (repo / "reports/metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics.json: not JSON of the form suite, method, metric, number"):
        gate.run_gate(repo, base="HEAD")


def test_folder_without_git_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a git repository"):
        gate.run_gate(tmp_path)


def test_numbers_are_checked_against_what_dvc_shows(repo: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=repo, check=True, capture_output=True)
    (repo / "dvc.yaml").write_text("metrics:\n- reports/metrics.json\n")
    commit(repo, BEFORE)
    report = changed(repo, {"deltaz": {"abs_rel": math.nan}})
    shown = gate._dvc_diff(repo, "HEAD", gate.METRICS)
    assert shown["dtu", "constant", "abs_rel"] == (0.4, 0.4)
    assert shown["dtu", "deltaz", "abs_rel"][0] == 0.1
    assert verdicts(report) == {"deltaz.abs_rel": "not finite"}


def test_dvc_that_shows_other_numbers_is_an_error(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_dvc_diff", lambda *_: {("dtu", "deltaz", "abs_rel"): (0.1, 0.2)})
    with pytest.raises(DataError, match=r"shows dtu.deltaz.abs_rel as 0.1 -> 0.2, the files hold 0.1 -> 0.1"):
        gate.run_gate(repo, base="HEAD")


def test_command_prints_changes_and_returns_the_status(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.gate_command(repo, base="HEAD") == 0
    assert "PASS: 3 same." in capsys.readouterr().out
    changed(repo, {"deltaz": {"abs_rel": 0.2}})
    assert gate.gate_command(repo, base="HEAD") == 1
    out = capsys.readouterr().out
    assert "worse" in out and "+0.1" in out and "0.011" in out
    assert "constant" not in out
    assert gate.gate_command(repo, base="HEAD", all_rows=True) == 1
    assert "constant" in capsys.readouterr().out
    assert gate.gate_command(repo, base="HEAD", as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_first_rule_that_fits_counts() -> None:
    strict = Rule(metric="abs_rel", direction="lower", source="strict")
    loose = Rule(direction="lower", relative=10.0, source="loose")
    before, after = (
        {("s", "m", "abs_rel"): 1.0, ("s", "m", "rmse"): 1.0},
        {("s", "m", "abs_rel"): 1.1, ("s", "m", "rmse"): 1.1},
    )
    lines = compare(before, after, Tolerances(rules=(strict, loose)))
    assert [(line.metric, line.verdict, line.source) for line in lines] == [
        ("abs_rel", "worse", "strict"),
        ("rmse", "within", "loose"),
    ]


def test_value_that_was_not_finite_before_is_new_now() -> None:
    rules = Tolerances(rules=(Rule(direction="lower", source="x"),), retired=(Pattern(method="none", source="x"),))
    lines = compare({("s", "m", "a"): math.nan}, {("s", "m", "a"): 1.0}, rules)
    assert lines == (Line("s", "m", "a", lines[0].before, 1.0, None, None, "new", "x"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", r"rules: .*at least 1 item"),
        ("rules: [{direction: lower}]", r"rules.0.source: Field required"),
        ("rules: [{direction: down, source: x}]", r"rules.0.direction: Input should be 'lower', 'higher' or 'either'"),
        ("rules: [{direction: lower, source: x, absolut: 1}]", r"rules.0.absolut: Extra inputs"),
        ("rules: [{direction: lower, source: x, relative: -0.1}]", r"rules.0.relative: .*greater than or equal to 0"),
    ],
)
def test_wrong_tolerances_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        gate.read_tolerances(tmp_path / "t.yaml")


def test_committed_tolerances_cover_every_metric_of_every_method() -> None:
    from plumbline.metrics import HIGHER_IS_BETTER, METRICS

    rules = gate.read_tolerances(Path(__file__).parents[1] / "reports/tolerances.yaml").rules
    for method in ("constant", "median_plane", "plane_sweep", "deltaz"):
        for metric in METRICS:
            rule = next(rule for rule in rules if rule.fits(("dtu", method, metric)))
            assert rule.direction == "either" or (rule.direction == "higher") == (metric in HIGHER_IS_BETTER), (
                method,
                metric,
            )
