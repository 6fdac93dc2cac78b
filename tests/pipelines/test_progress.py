"""What people see while they wait."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from simfer.pipelines import progress
from simfer.pipelines.progress import Reporter


def test_lines_show_rate_and_time_left_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    stream = io.StringIO()
    with Reporter(Console(file=stream, width=200)).bar("simulate", 300, "rows") as meter:
        meter.skip(100)
        meter(100)
        meter(100)
    first, second, third = stream.getvalue().splitlines()
    assert first == "simulate 100/300  0 rows/s"
    assert second == "simulate 200/300  2.5 rows/s, 40 s left"
    assert third == "simulate 300/300  3.3 rows/s"


def test_a_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    with Reporter(Console(file=stream, force_terminal=True, width=100)).bar("train", 2, "epochs") as meter:
        meter(1, "loss 1.0")
        meter(1, "loss 0.5")
    assert "━" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(None)
    reporter.say("nothing")
    with reporter.bar("train", 1, "epochs") as meter:
        meter(1)
    assert capsys.readouterr().out == ""
