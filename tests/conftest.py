"""Fixtures shared by all tests: folders of real captures and reference vectors, which are no part of the project."""

import os
from pathlib import Path

import pytest


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder of {what}, which is not part of the project")
    path = Path(value).resolve()
    if not path.is_dir():
        pytest.skip(f"{variable} names {path}, which is no folder: no {what} here")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real captures (research use only, never copied into the project)."""
    return _folder("PLUMBLINE_REAL_DATA", "real captures")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference vectors."""
    return _folder("PLUMBLINE_GOLDEN", "reference vectors")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The graph's tests first: they are the longest file, and would else end alone."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)
