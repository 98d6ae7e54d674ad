"""The graph says what it depends on: code by imports, parameters by use. DVC itself would notice neither."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from plumbline.config import (
    DatasetConfig,
    EvaluationConfig,
    PredictionConfig,
    ReportConfig,
    SuiteConfig,
    TrackingConfig,
    load_params,
    section,
    sections,
)
from plumbline.data.parse import reader
from plumbline.data.sources import Source
from plumbline.runs import merged, with_methods, with_training

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
# Code that shows, records or starts things and can change no result.
PLUMBING = {
    "plumbline/__init__.py",
    "plumbline/curve.py",
    "plumbline/errors.py",
    "plumbline/process.py",
    "plumbline/progress.py",
    "plumbline/replay.py",
    "plumbline/stage.py",
    "plumbline/tracking.py",
    "plumbline/data/__init__.py",
    "plumbline/data/progress.py",
    "plumbline/data/sources.py",
}
# What a stage imports by a name that it reads from params.yaml.
BY_NAME = {
    "parse": ["data/dtu.py", "data/sun3d.py", "data/rgbd.py", "data/aerialmd.py", "data/re10k.py"],
    "check_data": ["data/dtu.py", "data/sun3d.py", "data/rgbd.py", "data/aerialmd.py", "data/re10k.py"],
    "evaluate": ["systems/depthsplat/lpips.py"],
}


def stage_bodies() -> dict[str, dict]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: {**stage, **stage.get("do", {})} for name, stage in stages.items()}


def module_file(module: str) -> Path | None:
    path = SOURCE / Path(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.exists():
            return candidate
    return None


@functools.cache
def imported(path: Path) -> frozenset[Path]:
    """Files of this package that `path` imports, anywhere in it, with the packages they are in."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if parts[0] == "plumbline" and (found := module_file(".".join(parts[:end]))):
                yield found


def closure(start: list[Path]) -> set[str]:
    """Paths, relative to src, of everything that `start` imports, directly or not."""
    seen: set[Path] = set()
    todo = list(start)
    while todo:
        for found in imported(todo.pop()):
            if found not in seen:
                seen.add(found)
                todo.append(found)
    return {path.relative_to(SOURCE).as_posix() for path in seen}


def needed(stage: str, code: list[str]) -> set[str]:
    """What deps must cover for one item of a stage whose own code lies at `code` (files or folders)."""
    named = [SOURCE / "plumbline" / name for name in BY_NAME.get(stage, [])]
    own = [path for name in code for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    start = [ROOT / "stages" / f"{stage}.py", *named, *own]
    files = closure(start) | {path.relative_to(SOURCE).as_posix() for path in [*named, *own]}
    return {f"src/{name}" for name in files if name not in PLUMBING} | {f"stages/{stage}.py"}


def items() -> list[tuple[str, list[str], list[str]]]:
    """(stage, own code, deps) of each item; deps that name data are left as they are."""
    found = []
    for name, body in stage_bodies().items():
        loop = body.get("foreach", {})
        entries = loop.items() if isinstance(loop, dict) and loop else [("", {})]
        for _, entry in entries:
            deps = [re.sub(r"\$\{item\.([\w.]+)\}", lambda m, e=entry: _named(e, m), dep) for dep in body["deps"]]
            found.append((name, [entry["code"]] if "code" in entry else [], deps))
    return found


def _named(entry: Any, match: re.Match[str]) -> str:
    """What stands at the match's dotted key of an item's entry; the match itself where nothing does."""
    for key in match[1].split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None
    return match[0] if entry is None else str(entry)


def covered(path: str, deps: list[str]) -> bool:
    return any(path == dep or path.startswith(f"{dep}/") for dep in deps)


@pytest.mark.parametrize(("stage", "code", "deps"), items(), ids=lambda value: value if isinstance(value, str) else "")
def test_deps_cover_the_imports(stage: str, code: list[str], deps: list[str]) -> None:
    missing = sorted(path for path in needed(stage, code) if not covered(path, deps))
    assert not missing, f"dvc.yaml, stage {stage}: add to deps {missing}"


@pytest.mark.parametrize(("stage", "code", "deps"), items(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_dep_names_code_that_is_not_used(stage: str, code: list[str], deps: list[str]) -> None:
    used = {path for one, own, _ in items() if one == stage for path in needed(one, own)}
    listed = [dep for dep in deps if dep.startswith(("src/", "stages/"))]
    assert all((ROOT / dep).exists() for dep in listed)
    idle = sorted(dep for dep in listed if not any(covered(path, [dep]) for path in used))
    assert not idle, f"dvc.yaml, stage {stage}: these deps are not imported: {idle}"


def test_removing_any_code_dep_would_be_noticed() -> None:
    for stage in stage_bodies():
        own = [(needed(stage, code), deps) for one, code, deps in items() if one == stage]
        for dep in {dep for _, deps in own for dep in deps if dep.startswith(("src/", "stages/"))}:
            rests = [(files, [other for other in deps if other != dep]) for files, deps in own]
            assert any(not covered(path, rest) for files, rest in rests for path in files), f"{stage}: {dep}"


READ = re.compile(r"""(?:section|sections|value)\(params, f?["']([\w.{}]+)["']|params\["(\w+)"\]""")


@pytest.mark.parametrize("stage", sorted(path.stem for path in (ROOT / "stages").glob("*.py")))
def test_params_that_a_stage_reads_are_declared(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    read = {(match[0] or match[1]).split(".")[0] for match in READ.findall(text)} - {"tracking"}
    declared = {key.split(".")[0] for key in stage_bodies()[stage]["params"]}
    assert read <= declared
    # The report shows all of params.yaml.
    shown = set(load_params(ROOT / "params.yaml")) - {"graph", "sources", "tracking"} if stage == "report" else set()
    assert declared == read | shown


def params_of(file: str) -> dict:
    """A complete params file, or one that names what differs from params.yaml."""
    usual = load_params(ROOT / "params.yaml")
    return usual if file == "params.yaml" else merged(usual, load_params(ROOT / file))


@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("params*.yaml")))
def test_every_parameter_is_known_to_its_config(file: str) -> None:
    import torch

    from plumbline import systems
    from plumbline.data.checks import CheckConfig
    from plumbline.data.pair import PairConfig
    from plumbline.data.pseudo_labels import PseudoLabelConfig
    from plumbline.overfit import OverfitConfig
    from plumbline.training import TrainConfig

    params = params_of(file)
    known = {"lr", "seed", "graph", "datasets", "checks", "suites", "systems", "train", "prediction", "evaluation"}
    known |= {"pseudo_labels", "pair", "overfit"}
    assert set(params) == known | {"report", "tracking", "sources"}
    for source in params["sources"].values():
        TypeAdapter(Source).validate_python(source)
    for name, dataset in sections(params, "datasets", DatasetConfig).items():
        reader(dataset, name)
    sections(params, "suites", SuiteConfig)
    sections(params, "train", TrainConfig)
    sections(params, "pair", PairConfig)
    gates = sections(params, "overfit", OverfitConfig)
    for key, model in (
        ("checks", CheckConfig),
        ("pseudo_labels", PseudoLabelConfig),
        ("prediction", PredictionConfig),
        ("evaluation", EvaluationConfig),
        ("report", ReportConfig),
        ("tracking", TrackingConfig),
    ):
        section(params, key, model)
    for name, own in params["systems"].items():
        with torch.device("meta"):
            systems.build(name, own or {})
            systems.build(name, {**(own or {}), **(gates[name].system if name in gates else {})})


def keys_of(node: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of a nest of mappings and lists."""
    items = (
        node.items() if isinstance(node, dict) else ((None, item) for item in node) if isinstance(node, list) else ()
    )
    for key, value in items:
        path = above if key is None else (*above, str(key))
        yield path
        yield from keys_of(value, path)


@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("params*.yaml")))
def test_no_parameter_has_a_name_that_dvc_overlooks(file: str) -> None:
    # DVC leaves every key `size` and `nfiles` out of what it looks up earlier runs by (treeverse/dvc issue 10296): with
    # another value it would silently check out the results of the old one. A file's size, like its hash, only verifies.
    overlooked = [path for path in keys_of(params_of(file)) if path[-1] in {"size", "nfiles"}]
    assert [path for path in overlooked if path[-2:-1] != ("files",)] == []


@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("params.*.yaml")))
def test_a_params_file_trains_and_scores_what_it_names(file: str) -> None:
    params, graph = params_of(file), yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert {suite["dataset"] for suite in params["suites"].values()} <= set(params["datasets"])
    assert set(params["graph"]["datasets"]) <= set(params["datasets"])
    graph = with_training(with_methods(graph, list(params["systems"])), params)
    assert list(graph["stages"]["train"]["foreach"]) == list(params["train"])
    for name, item in graph["stages"]["train"]["foreach"].items():
        own = params["train"][name]
        assert set(item["suites"].values()) == {*own["train_suites"], own["val_suite"]}
        assert set(item["datasets"].values()) <= set(params["graph"]["datasets"])
        assert not own.get("init_from") or own["init_from"] in item["learns"].values()


@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("params*.yaml")))
def test_every_method_is_asked_by_a_suite_and_every_suite_asks_one(file: str) -> None:
    from plumbline.prediction import asked_suites, check_methods

    params = params_of(file)
    suites = sections(params, "suites", SuiteConfig)
    check_methods(suites, params["systems"])
    assert all(asked_suites(method, suites) for method in params["systems"])
    tests = [suite for suite in suites.values() if suite.is_test]
    assert all(any(suite.asks(method) for method in params["systems"]) for suite in tests)


def test_the_graph_and_params_name_the_same_things() -> None:
    params, stages = load_params(ROOT / "params.yaml"), yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages["predict"]["foreach"]) == stages["evaluate"]["foreach"] == list(params["systems"])
    assert list(stages["train"]["foreach"]) == list(params["train"])
    assert set(params["graph"]["datasets"]) == set(params["datasets"])
    assert {suite["dataset"] for suite in params["suites"].values()} <= set(params["datasets"])


def test_every_trained_system_passes_a_gate_that_no_step_size_reaches() -> None:
    params, stages = load_params(ROOT / "params.yaml"), yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages["overfit_pair"]["foreach"]) == list(stages["extract_pair"]["foreach"]) == list(params["train"])
    assert list(params["overfit"]) == list(params["pair"]) == list(params["train"])
    for stage in ("extract_pair", "overfit_pair"):
        assert not {"lr", "train"} & {key.split(".")[0] for key in stages[stage]["do"]["params"]}
    assert "runs/overfit/${key}/passed.json" in stages["train"]["do"]["deps"]
    for name, own in params["pair"].items():
        assert stages["extract_pair"]["foreach"][name] == {"dataset": f"${{pair.{name}.dataset}}"}
        assert own["dataset"] in params["graph"]["datasets"]


@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("params.*.yaml")))
def test_a_params_file_has_the_samples_of_its_gates(file: str) -> None:
    params = params_of(file)
    assert all(params["pair"][name]["dataset"] in params["graph"]["datasets"] for name in params["train"])


def test_no_two_stages_share_an_output() -> None:
    outs: list[str] = []
    for body in stage_bodies().values():
        for out in [*body.get("outs", []), *body.get("metrics", [])]:
            outs.append(out if isinstance(out, str) else next(iter(out)))
    assert len(set(outs)) == len(outs)


LAYERS = {
    # package or module -> what it must not import, directly or not
    "plumbline/data": ["plumbline/systems", "plumbline/training.py", "plumbline/prediction.py"],
    "plumbline/metrics.py": ["plumbline/data", "plumbline/systems"],
    "plumbline/report": ["plumbline/systems", "plumbline/training.py", "plumbline/prediction.py"],
    "plumbline/geometry.py": ["plumbline/data", "plumbline/systems"],
    "plumbline/gate.py": ["plumbline/systems", "plumbline/training.py"],
}


def files_of(name: str) -> list[Path]:
    path = SOURCE / name
    return [path] if path.suffix else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    reached = closure(files_of(layer))
    wrong = sorted(path for path in reached if covered(path, LAYERS[layer]))
    # config.py types a data set's source, which is described beside the downloader.
    assert [path for path in wrong if path not in {"plumbline/data/__init__.py", "plumbline/data/sources.py"}] == []


def test_systems_never_import_data() -> None:
    reached = closure(files_of("plumbline/systems")) - {"plumbline/data/__init__.py", "plumbline/data/sources.py"}
    assert [path for path in reached if path.startswith("plumbline/data")] == []


@pytest.mark.parametrize(
    "layer", ["plumbline/data", "plumbline/metrics.py", "plumbline/evaluation.py", "plumbline/report"]
)
def test_no_torch_where_none_is_needed(layer: str) -> None:
    files = files_of(layer) + [SOURCE / path for path in closure(files_of(layer))]
    own = [path for path in files if path.name not in {"tracking.py", "process.py", "progress.py"}]
    for path in own:
        assert not re.search(r"^\s*(import|from) (torch|mlflow)\b", path.read_text(), re.MULTILINE), path


def test_mlflow_is_imported_in_one_place() -> None:
    importers = [
        path.name
        for path in SOURCE.rglob("*.py")
        if re.search(r"^\s*(import|from) mlflow\b", path.read_text(), re.MULTILINE)
    ]
    assert importers == ["tracking.py"]


def test_stages_are_entrypoints() -> None:
    standard = {"inspect", "types", "copy", "report_"}
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path
        assert path.stem not in standard
