"""What a run says of how far it is."""

from __future__ import annotations

import io
import sys
from functools import partial
from typing import Any

import pytest
import tqdm.auto

from hf_curate.runs import progress
from hf_curate.runs.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_speed_and_time_left_are_those_of_the_rows_of_this_call(clock: Clock) -> None:
    made = Progress(1000, 600, 5, "scoring", quiet=True)
    assert made.line() == "scoring: 600 of 1,000 rows (60%), 0.0 rows/s, 5 failed"
    clock.now += 20
    made.add(100, 2)
    assert made.line() == "scoring: 700 of 1,000 rows (70%), 5.0 rows/s, 7 failed, 60 s left"


def test_a_line_every_thirty_seconds_where_there_is_no_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    made = Progress(1000, 0, 0, "scoring (GRACE)", quiet=False)
    for _ in range(100):
        clock.now += 1
        made.add(1, 0)
    made.close()
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.partition(" of")[0] for line in lines] == [f"scoring (GRACE): {rows}" for rows in (30, 60, 90)]
    assert lines[0].endswith("(3%), 1.0 rows/s, 0 failed, 16 min left")


def test_one_bar_on_a_terminal_which_counts_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm.auto, "tqdm", partial(tqdm.auto.tqdm, disable=False))  # TQDM_DISABLE is set for the tests
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    made = Progress(1000, 600, 5, "scoring", quiet=False)
    bar: Any = made._bar
    made.add(100, 2)
    assert (bar.total, bar.n, bar.format_dict["initial"], bar.postfix) == (1000, 700, 600, "failed=7")
    made.close()
    told = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "700/1000" in told
    assert "row/s" in told


def test_a_quiet_one_says_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    made = Progress(10, 0, 0, "scoring", quiet=True)
    clock.now += 100
    made.add(10, 0)
    made.close()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"), (3600, "1 h 00 min"), (11100, "3 h 05 min")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said
