"""curve.csv: rows appended, rows past a checkpoint dropped, a cut last line forgotten."""

import pytest

from plumbline.curve import Curve, read_curve
from plumbline.errors import DataError

COLUMNS = ["step", "loss", "val"]


def test_rows_past_the_checkpoint_go_and_the_rest_stays(tmp_path):
    path = tmp_path / "curve.csv"
    first = Curve(path, after=0)
    for step in (2.0, 4.0, 6.0):
        first.append({"step": step, "loss": 1 / step}, columns=COLUMNS)
    with path.open("a") as stream:
        stream.write("8,0.1")  # the process was killed here
    second = Curve(path, after=4)
    second.append({"step": 6.0, "loss": 0.5, "val": 0.25}, columns=COLUMNS)
    assert path.read_bytes() == b"step,loss,val\n2,0.5,\n4,0.25,\n6,0.5,0.25\n"
    assert read_curve(path) == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 0.25},
        {"step": 6, "loss": 0.5, "val": 0.25},
    ]


def test_what_is_no_curve_is_named(tmp_path):
    with pytest.raises(DataError, match=r"curve\.csv: no such file"):
        read_curve(tmp_path / "curve.csv")
    (tmp_path / "curve.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'step', only \['a', 'b'\]"):
        read_curve(tmp_path / "curve.csv")
