"""The graph on other inputs, in a clone of its own, and the question whether committed results are up to date."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plumbline.config import Dumper, load_params, value
from plumbline.errors import ConfigError, PlumblineError
from plumbline.files import atomic_path, read_json

_SCENE_FILES = re.compile(r"^data/(scenes|checks)/(\w+)$")
# Below these folders each method has one of its own.
_MADE = ("data/pair", "runs/overfit", "runs/train", "predictions", "scores")
_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")


def run_params(params: Path, *, name: str, root: Path) -> int:
    """Run the graph with `params` in `.runs/<name>`; copy its report to reports/<name>.html and .json. Returns the status.

    The clone shares the DVC cache, so that what was computed before is not computed again, and takes the work tree as it
    is, uncommitted changes included. A kept clone goes on where it stopped.
    """
    usual = load_params(root / "params.yaml")
    complete = merged(usual, expanded(load_params(params)))
    clone = root / ".runs" / name
    clone_worktree(root, clone)
    _write_yaml(clone / "params.yaml", complete)
    graph = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    graph = with_datasets(graph, value(usual, "graph.datasets"), value(complete, "graph.datasets"))
    graph = with_methods(graph, list(value(complete, "systems")))
    _write_yaml(clone / "dvc.yaml", with_training(graph, complete))
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=clone, env=_environment(clone), check=False
    ).returncode
    if status == 0:
        _copy(clone / "reports/report.html", root / "reports" / f"{name}.html")
        _copy(clone / "reports/metrics.json", root / "reports" / f"{name}.json")
        _show_results(clone, root / "reports" / f"{name}.html")
    return status


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, key by key. A key that ends in "!" replaces its whole section, null removes it."""
    result = dict(base)
    for key, new in over.items():
        old = result.get(key)
        if key.endswith("!"):
            result[key[:-1]] = new
        elif new is None:
            result.pop(key, None)
        else:
            result[key] = merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return result


def expanded(node: Any) -> Any:
    """`node` with ${VARIABLE} in its texts replaced from the environment; ConfigError when a variable is not set."""
    if isinstance(node, Mapping):
        return {key: expanded(child) for key, child in node.items()}
    if isinstance(node, list):
        return [expanded(child) for child in node]
    return _ENVIRONMENT.sub(_variable, node) if isinstance(node, str) else node


def _variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
        raise ConfigError(f"the environment variable {match[1]}, which the params file uses, is not set.")
    return os.environ[match[1]]


def with_datasets(graph: Mapping[str, Any], old: Sequence[str], new: Sequence[str]) -> dict[str, Any]:
    """dvc.yaml's content for other data sets: a stage that depends on all of `old` then depends on all of `new`.

    DVC cannot take a list of deps from params.yaml. Training stays as it is: `with_training` sees to it.
    """
    stages = dict(graph["stages"])
    for name in stages.keys() - {"train"}:
        body = stages[name].get("do", stages[name])
        changed = {**body, "deps": _with_datasets(body.get("deps", []), old, new)}
        stages[name] = {**stages[name], "do": changed} if "do" in stages[name] else changed
    return {**graph, "stages": stages}


def _with_datasets(deps: Sequence[str], old: Sequence[str], new: Sequence[str]) -> list[str]:
    result: list[str] = []
    for dep in deps:
        match = _SCENE_FILES.match(dep)
        swaps = match is not None and all(f"data/{match[1]}/{name}" in deps for name in old)
        swapped = [f"data/{match[1]}/{name}" for name in new] if match is not None and swaps else [dep]
        result += [item for item in swapped if item not in result]
    return result


def with_training(graph: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """dvc.yaml's content in which each trained system waits for what `params` lets it learn from, and for nothing else.

    That is its suites and their data sets, another method's predictions or keypoint labels, and weights to start from.
    ConfigError when these are more than the training stage has places for.
    """
    train = graph["stages"]["train"]
    items = {name: _training_item(name, item, params) for name, item in train["foreach"].items()}
    return {**graph, "stages": {**graph["stages"], "train": {**train, "foreach": items}}}


def _training_item(name: str, item: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    config = value(params, f"train.{name}")
    suites = list(dict.fromkeys([*config["train_suites"], config["val_suite"]]))
    datasets = list(dict.fromkeys(value(params, f"suites.{suite}.dataset") for suite in suites))
    learns = _learnt(item, datasets, suites)
    learns += [*config.get("init_partly", ()), *([config["init_from"]] if config.get("init_from") else [])]
    wanted = {"datasets": datasets, "suites": suites, "learns": learns}
    return {**item, **{kind: _placed(item[kind], found, f"train.{name}: {kind}") for kind, found in wanted.items()}}


def _learnt(item: Mapping[str, Any], datasets: Sequence[str], suites: Sequence[str]) -> list[str]:
    first = item["learns"]["a"]
    # Code stays where there is nothing but suites to learn from.
    if first.startswith("src/"):
        return [first]
    source = first.rpartition("/")[0]
    return [f"{source}/{part}" for part in (datasets if source == "data/pseudo_labels" else suites)]


def _placed(places: Mapping[str, str], values: Sequence[str], where: str) -> dict[str, str]:
    if set(places.values()) == set(values):
        return dict(places)
    if len(values) > len(places):
        raise ConfigError(f"{where} {', '.join(values)}: dvc.yaml's training stage has places for {len(places)}.")
    return dict(zip(places, [*values, *[values[-1]] * (len(places) - len(values))], strict=True))


def with_methods(graph: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """dvc.yaml's content with `methods` and no others: each predicted and scored, those that are trained also trained.

    A method that the graph lacks (another estimator's depth in files, perturbed truth) is one that is not trained: its code is
    all it is made from. Of one that `methods` lacks every item goes, and whatever the report reads of it.
    """
    dropped = [method for method in graph["stages"]["predict"]["foreach"] if method not in methods]
    stages = {name: _without(body, dropped) for name, body in graph["stages"].items()}
    items = dict(stages["predict"]["foreach"])
    places = {place for item in graph["stages"]["predict"]["foreach"].values() for place in item}
    new = [method for method in methods if method not in items]
    for method in new:
        code = f"src/plumbline/systems/{method}.py" if method != "file" else "src/plumbline/prediction.py"
        items[method] = dict.fromkeys(sorted(places), code)
    stages["predict"] = {**stages["predict"], "foreach": items}
    stages["evaluate"] = {**stages["evaluate"], "foreach": [*stages["evaluate"]["foreach"], *new]}
    scores = [f"scores/{method}" for method in new]
    stages["report"] = {**stages["report"], "deps": [*stages["report"]["deps"], *scores]}
    return {**graph, "stages": stages}


def _without(stage: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """A stage without the items of `methods`, and without deps on what those make or parameters of theirs."""
    made = {f"{folder}/{method}" for method in methods for folder in _MADE}
    body: dict[str, Any] = dict(stage)
    if "do" in body:
        body["do"] = _without(body["do"], methods)
    if "deps" in body:
        body["deps"] = [dep for dep in body["deps"] if dep not in made]
    if "params" in body:
        # DVC refuses a stage that names a parameter which is not there.
        gone = tuple(f"{section}.{method}." for method in methods for section in ("systems", "train"))
        body["params"] = [key for key in body["params"] if not key.startswith(gone)]
    items = body.get("foreach")
    if isinstance(items, Mapping):
        body["foreach"] = {name: item for name, item in items.items() if name not in methods}
    elif isinstance(items, list):
        body["foreach"] = [item for item in items if item not in methods]
    return body


def clone_worktree(root: Path, clone: Path) -> None:
    """Make or refresh `clone`: a git clone of `root` with its work tree as it is now, sharing its DVC cache."""
    if not (clone / ".git").exists():
        clone.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(clone, ignore_errors=True)
        _git(root, "clone", "--quiet", "--no-hardlinks", str(root), str(clone))
    else:
        _git(clone, "fetch", "--quiet", str(root), "HEAD")
        _git(clone, "reset", "--quiet", "--hard", "FETCH_HEAD")
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for path in filter(None, listed):
        if (root / path).is_file():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            _copy(root / path, clone / path)
        else:
            (clone / path).unlink(missing_ok=True)
    local = f"[cache]\n    dir = {root / '.dvc/cache'}\n"
    (clone / ".dvc/config.local").write_text(local, encoding="utf-8")


def _environment(clone: Path) -> dict[str, str]:
    drop = {"DVC_ROOT", "DVC_STAGE", "PYTHONPATH"}
    kept = {key: text for key, text in os.environ.items() if key not in drop}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _copy(source: Path, target: Path) -> None:
    # Files as they are where nothing changed: DVC then need not hash them again.
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    with atomic_path(target) as temporary:
        shutil.copy2(source, temporary)


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        text = yaml.dump(dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlumblineError(f"git {arguments[0]} failed in {folder}: {done.stderr.strip()}")
    return done.stdout


def _show_results(clone: Path, report: Path) -> None:
    from plumbline.report import ORACLES, print_results

    print_results(read_json(clone / "reports/metrics.json"), report=report, oracles=ORACLES)


def stale_stages(root: Path) -> list[str]:
    """Names of the stages that `dvc repro` would run in `root`, without needing their data; [] when all is up to date.

    The text is what counts: the exit status of `dvc repro --dry` is 0 either way.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    names = re.findall(r"Running stage '([^']+)'", done.stdout)
    if not names and "up to date" not in done.stdout:
        raise PlumblineError(
            f"dvc could not tell whether the results are up to date: {(done.stderr or done.stdout).strip()}"
        )
    return names
