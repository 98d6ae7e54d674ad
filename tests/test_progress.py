"""Progress lines: when they come and what they say."""

import io

from plumbline.progress import Plain, duration, progress


def test_a_line_every_ten_seconds_and_at_the_end():
    now, stream = [0.0], io.StringIO()
    plain = Plain("train tiny", 100, start=20, stream=stream, clock=lambda: now[0])
    for step in range(21, 101):
        now[0] += 0.5
        plain.show(step, {"loss": 1.0 / step, "best abs_rel": 0.25})
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"train tiny: step {step}/100" for step in (40, 60, 80, 100)]
    assert "loss 0.025, best abs_rel 0.25, 2 steps/s, 30 s left, " in lines[0] and lines[0].endswith(" GB")
    assert ", 0 s left, " in lines[-1]


def test_no_bar_in_a_log():
    stream = io.StringIO()
    with progress("train tiny", total=2, stream=stream) as show:
        show(2, {"loss": 1.0})
    assert stream.getvalue().startswith("train tiny: step 2/2, loss 1, ")


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    stream = io.StringIO()
    stream.isatty = lambda: True
    with progress("train tiny", total=2, stream=stream) as show:
        show(1, {"loss": 0.5})
    assert "train tiny" in capsys.readouterr().err


def test_durations():
    assert [duration(s) for s in (5.0, 283.0, 11520.0, float("inf"))] == ["5 s", "4 min 43 s", "3 h 12 min", "?"]
