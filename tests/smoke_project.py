"""A temporary clone of the work tree as it is, with params at smoke size."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from plumbline.config import Dumper, load_params
from plumbline.runs import clone_worktree, merged

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "tests" / "pipeline" / "smoke.yaml"


@dataclass(frozen=True)
class Project:
    """A clone to run commands in."""

    folder: Path

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this environment's programs; its output is kept, its status not checked."""
        return subprocess.run(
            arguments, cwd=self.folder, env=self.environment(**environment), text=True, capture_output=True, check=False
        )

    def environment(self, **more: str) -> dict[str, str]:
        """What a user's shell has, without what the tests themselves set."""
        dropped = ("DVC_", "MLFLOW_", "PYTHONPATH", "PYTEST", "GIT_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        return {**kept, "PATH": programs, "GIT_CONFIG_GLOBAL": str(self.folder.parent / "gitconfig"), **more}

    def dvc(self, *arguments: str) -> str:
        """Run dvc and return what it printed; fails the test with that text when dvc fails."""
        done = self.command(sys.executable, "-m", "dvc", *arguments)
        assert done.returncode == 0, f"dvc {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr


def make_project(folder: Path) -> Project:
    """A clone of the work tree in `folder` with a DVC cache of its own, smoke-size params, and all of it committed."""
    clone_worktree(ROOT, folder)
    (folder / ".dvc" / "config.local").unlink()
    params = merged(load_params(ROOT / "params.yaml"), load_params(SMOKE))
    (folder / "params.yaml").write_text(yaml.dump(params, Dumper=Dumper, sort_keys=False))
    for stale in ("dvc.lock", "reports/metrics.json", "reports/headline.json"):
        (folder / stale).unlink(missing_ok=True)
    (folder.parent / "gitconfig").write_text(
        "[user]\n\tname = t\n\temail = t@example.org\n[commit]\n\tgpgsign = false\n"
    )
    project = Project(folder)
    project.command("git", "add", "-A")
    project.command("git", "commit", "-qm", "smoke")
    return project
