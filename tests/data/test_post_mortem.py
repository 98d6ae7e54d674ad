"""Each fault of docs/post-mortem.md, planted anew: it is named, and its errors have the signature that the page shows."""

from collections.abc import Mapping

import pytest

from data import post_mortem
from data.post_mortem import GAPS, READINGS, SHORT, THREES, Row

FLAT = ("depth bits not rotated", "all four")
NAMED = {
    "depth bits not rotated": "depth rotated right by 3 bits",
    "poses four rows at a time": "poses read 3 rows at a time",
    "cy = fy": "cy at the image centre",
    "depth paired by index": "frames paired by nearest time",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return post_mortem.measured(tmp_path_factory.mktemp("post_mortem"), SHORT)


def spread(by_gap: Mapping[int, float]) -> float:
    """How far the largest lies above the smallest, over the gaps of the report."""
    values = [by_gap[gap] for gap in GAPS]
    return max(values) / min(values) - 1


def assert_signature(rows: Mapping[str, Row], *, flat: float) -> None:
    right = rows["read right"]
    assert spread(right.abs_rel) > 0.5
    assert right.abs_rel[10] < 0.15
    for label in FLAT:
        assert spread(rows[label].abs_rel) < flat, label
        # Truth eight times too far: a method that is right is 7/8 off, and one that guesses is hardly less.
        assert rows[label].abs_rel[10] == pytest.approx(7 / 8, abs=0.07)
        assert rows[label].delta1[10] == 0
        assert rows[label].inside < 0.2 < right.inside
    for label in set(READINGS) - {"read right"}:
        assert all(rows[label].abs_rel[gap] > 1.05 * right.abs_rel[gap] for gap in (5, 10, 20)), label
    assert min(rows["poses four rows at a time"].abs_rel[gap] for gap in GAPS) > 0.5


def assert_segments(rows: Mapping[str, Row]) -> None:
    right = [rows["read right"].usable[gap] for gap in GAPS]
    assert right == sorted(right, reverse=True)
    assert right[0] > 0.9 and right[-1] > 0.4
    for label in ("poses four rows at a time", "all four"):
        assert all(rows[label].usable[gap] < 0.01 for gap in GAPS)
        assert all(rows[label].usable[gap] > 0.7 for gap in THREES)


def test_faults_make_errors_large_and_those_of_the_report_equal_at_every_gap(rows):
    assert_signature(rows, flat=0.05)


def test_poses_out_of_step_leave_nothing_to_search_but_at_gaps_of_three(rows):
    assert_segments(rows)


@pytest.mark.parametrize("label", NAMED)
def test_check_data_names_each_fault(rows, label):
    (check,) = rows[label].checked
    assert check.verdict == "wrong"
    assert f"with {NAMED[label]}" in check.diagnosis


def test_what_is_read_right_is_taken(rows):
    (check,) = rows["read right"].checked
    assert (check.verdict, rows["read right"].parsing) == ("ok", "")


def test_parsing_refuses_what_cannot_be_a_camera_before_anything_is_checked(rows):
    assert "not a rotation" in rows["poses four rows at a time"].parsing
    assert "Rows may be read with the wrong stride" in rows["poses four rows at a time"].parsing
    for label in ("cy = fy", "all four"):
        assert "K of the image cannot fit a 72x96 image" in rows[label].parsing


def test_the_page_is_of_this_code_and_has_the_signature():
    text = post_mortem.PAGE.read_text(encoding="utf-8").split(post_mortem.BEGIN)[1].split(post_mortem.END)[0]
    errors, segments, said = (table.splitlines() for table in text.strip().split("\n\n"))
    found = {}
    for error, segment in zip(errors[2:], segments[2:], strict=True):
        label, *numbers = (cell.strip() for cell in error.strip("|").split("|"))
        usable = [float(cell.strip(" %")) / 100 for cell in segment.strip("|").split("|")[1:]]
        abs_rel = dict(zip(GAPS, map(float, numbers)))
        shares = [float(cell.rstrip("%")) / 100 for cell in numbers[len(GAPS) :]]
        by_gap = dict(zip((*GAPS, *THREES), usable, strict=True))
        found[label] = Row(abs_rel, {10: shares[0]}, shares[1], by_gap, "", ())
    assert list(found) == list(READINGS)
    assert len(said) == 2 + len(READINGS)
    assert_signature(found, flat=0.02)
    assert_segments(found)


def test_a_page_without_numbers_keeps_its_words(tmp_path, rows):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{post_mortem.BEGIN}old\n{post_mortem.END}\nafter\n")
    post_mortem.update_page(page, post_mortem.tables(rows))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{post_mortem.END}\nafter\n") and "old" not in text
    assert text.count("| all four |") == 3
