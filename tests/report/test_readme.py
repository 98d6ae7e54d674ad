"""README's tables come from reports/metrics.json and from nowhere else."""

from pathlib import Path

import pytest

from plumbline.errors import DataError
from plumbline.files import read_json
from plumbline.report import ORACLES
from plumbline.report.readme import results_tables, with_results

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_table_is_what_the_files_give() -> None:
    metrics = read_json(ROOT / "reports/metrics.json")
    assert results_tables(metrics, oracles=ORACLES) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_best_that_is_no_oracle_is_bold() -> None:
    table = results_tables({"dtu": {"a": {"abs_rel": 0.2}, "median_plane": {"abs_rel": 0.1}}}, oracles=ORACLES)
    assert table == "| abs_rel | dtu |\n|---|---|\n| a | **0.2000** |\n| median_plane (oracle) | 0.1000 |\n"


def test_a_suite_without_scale_says_so_and_cameras_have_a_table() -> None:
    towns = {
        "constant": {"abs_rel": 0.9, "abs_rel_median": 0.2},
        "identity": {"rotation_error_deg": 40.0, "translation_error_deg": 180.0, "auc30": 0.0},
        "vggt": {"abs_rel_median": 0.25, "rotation_error_deg": 8.0, "translation_error_deg": 9.5, "auc30": 0.7},
    }
    rooms = {"constant": {"abs_rel": 0.3}, "deltaz": {"abs_rel": 0.1}}
    text = results_tables({"rooms": rooms, "towns": towns, "overfit": {"vggt": {"abs_rel": 0.01}}}, oracles=ORACLES)
    assert text == (
        "| abs_rel | rooms | towns (median-aligned) |\n|---|---|---|\n"
        "| constant | 0.3000 | 0.2000 (oracle) |\n| deltaz | **0.1000** | – |\n| vggt | – | **0.2500** |\n\n"
        "| cameras, towns | rotation, ° | translation, ° | AUC@30 |\n|---|---|---|---|\n"
        "| identity | 40.00 | 180.00 | 0.0% |\n| vggt | **8.00** | **9.50** | **70.0%** |\n"
    )


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(DataError, match="markers"):
        with_results("# nothing", "| |")


def test_rendered_views_have_a_table_in_place_of_depth() -> None:
    metrics = {
        "dtu": {"a": {"abs_rel": 0.2}},
        "dtu_new": {
            "a": {"abs_rel": 0.1},
            "nearest": {"psnr": 17.0, "ssim": 0.5},
            "b": {"psnr": 20.004, "ssim": 0.625},
        },
        "dtu_new_6": {"b": {"psnr": 21.0, "ssim": 0.7}, "peeks": {"psnr": 50.0, "ssim": 0.99}},
        "overfit": {"b": {"psnr": 31.0}},
    }
    assert results_tables(metrics, oracles=frozenset({"peeks"})) == (
        "| abs_rel | dtu |\n|---|---|\n| a | **0.2000** |\n\n"
        "| PSNR, dB / SSIM | dtu_new | dtu_new_6 |\n|---|---|---|\n"
        "| nearest | 17.00 / 0.500 | – |\n| b | **20.00** / 0.625 | **21.00** / 0.700 |\n"
        "| peeks (oracle) | – | 50.00 / 0.990 |\n"
    )
