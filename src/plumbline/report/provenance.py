"""What made the numbers: the lock file, the code, the data, the versions, the machine."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

_PACKAGES = ("torch", "numpy", "opencv-python-headless", "scipy", "pydantic", "dvc", "mlflow", "matplotlib")
_CODE = ("src/plumbline", "stages")
_CODE_SUFFIXES = frozenset({".py", ".jinja", ".yaml"})


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage made, with its hash from dvc.lock."""

    stage: str
    path: str
    md5: str
    size: int | None
    files: int | None


@dataclass(frozen=True)
class Provenance:
    """Everything by which a report can be matched with what is in the repository, and made again."""

    lock_sha256: str | None
    code_sha256: str
    parent_commit: str | None
    outputs: tuple[Output, ...]
    versions: tuple[tuple[str, str], ...]
    machine: tuple[tuple[str, str], ...]
    params: str


def collect(root: Path, *, packages: Iterable[str] = _PACKAGES) -> Provenance:
    """Read it all below `root`; without dvc.lock or git the entries that need them are None or empty."""
    lock = _lock(root)
    text = (root / "params.yaml").read_text(encoding="utf-8") if (root / "params.yaml").is_file() else ""
    return Provenance(
        lock_sha256=None if lock is None else lock_digest(lock),
        code_sha256=code_digest(root),
        parent_commit=_commit(root),
        outputs=() if lock is None else tuple(_outputs(lock)),
        versions=(("Python", platform.python_version()), *_versions(packages)),
        machine=_machine(),
        params=text,
    )


def lock_digest(stages: Mapping[str, Any]) -> str:
    """SHA-256 of the stages of dvc.lock without `report`, whose own entry is written only after the report is made."""
    chosen = {name: stage for name, stage in stages.items() if name != "report"}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def code_digest(root: Path) -> str:
    """SHA-256 over the names and contents of all code, templates and lists of the package and the stages."""
    digest = hashlib.sha256()
    for folder in _CODE:
        files = [path for path in (root / folder).rglob("*") if path.suffix in _CODE_SUFFIXES and path.is_file()]
        for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _lock(root: Path) -> dict[str, Any] | None:
    if not (root / "dvc.lock").is_file():
        return None
    stages: dict[str, Any] = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return stages


def _outputs(stages: Mapping[str, Any]) -> Iterable[Output]:
    for name, stage in sorted(stages.items()):
        for out in stage.get("outs", []) if name != "report" else []:
            yield Output(name, out["path"], out.get("md5", ""), out.get("size"), out.get("nfiles"))


def _commit(root: Path) -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    installed = {name: metadata.version(name) for name in packages if _is_installed(name)}
    return installed.items()


def _is_installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def _machine() -> tuple[tuple[str, str], ...]:
    facts = [("system", f"{platform.system()} {platform.machine()}"), ("processor", _processor())]
    facts.append(("cores", str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())))
    if sys.platform == "linux":
        facts.append(("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"))
    return tuple(facts)


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
