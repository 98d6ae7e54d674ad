"""README's table comes from reports/headline.json and from nowhere else."""

from pathlib import Path

import pytest

from plumbline.errors import DataError
from plumbline.files import read_json
from plumbline.report import ORACLES
from plumbline.report.readme import results_table, with_results

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_table_is_what_the_files_give() -> None:
    headline = read_json(ROOT / "reports/headline.json")
    assert results_table(headline, oracles=ORACLES) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_best_that_is_no_oracle_is_bold() -> None:
    table = results_table({"dtu": {"a": 0.2, "median_plane": 0.1}}, oracles=ORACLES)
    assert table == "| abs_rel | dtu |\n|---|---|\n| a | **0.2000** |\n| median_plane (oracle) | 0.1000 |\n"


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(DataError, match="markers"):
        with_results("# nothing", "| |")
