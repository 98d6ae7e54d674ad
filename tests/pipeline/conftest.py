"""The whole graph at smoke size, run once for all tests here."""

import pytest

from smoke_project import Project, make_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which the whole graph has run once and its lock is committed."""
    made = make_project(tmp_path_factory.mktemp("pipeline") / "clone")
    made.dvc("repro")
    made.command("git", "add", "-A")
    made.command("git", "commit", "-qm", "results")
    return made
