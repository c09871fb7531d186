"""What a run says of how far it is."""

from __future__ import annotations

import io
import itertools
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tqdm.auto
from lengths import Lengths, texts

from hf_curate import score
from hf_curate.runs import progress
from hf_curate.runs.progress import Progress, duration
from hf_curate.scorers.fitting import read_groups


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


def test_tokens_a_second_are_told_where_there_are_any(clock: Clock) -> None:
    made = Progress(1000, 600, 0, "scoring", quiet=True)
    clock.now += 20
    made.add(100, 0, 5000)
    made.add(100, 1, 7000)
    assert made.line() == ("scoring: 800 of 1,000 rows (80%), 10.0 rows/s, 600 tokens/s, 1 failed, 20 s left")


def test_of_work_whose_end_nobody_knows_there_is_no_share_and_no_time_left(clock: Clock) -> None:
    made = Progress(None, 0, None, "reading the stream", quiet=True)
    clock.now += 2
    made.add(120_000)
    assert made.line() == "reading the stream: 120,000 rows, 60,000 rows/s"


def test_a_clock_that_goes_backwards_does_no_harm(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    made = Progress(1000, 0, 0, "scoring", quiet=False)
    clock.now -= 500
    made.add(100, 0, 10)
    assert made.line() == "scoring: 100 of 1,000 rows (10%), 0.0 rows/s, 0 tokens/s, 0 failed"
    clock.now += 550
    made.add(100, 0)
    assert "4.0 rows/s" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_run_does_not_mind_a_day_that_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY", 0.0)
        patch.setattr("datasets.are_progress_bars_disabled", lambda: False)
        patch.setattr("datasets.enable_progress_bars", lambda: None)  # the tests' environment forbids it
        scored = score(texts(50), Lengths(), out=tmp_path / "run", batch_rows=10)
    assert scored.to_list() == score(texts(50), Lengths()).to_list()
    told = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.partition(":")[0] for line in told] == ["scoring (Lengths)"] * 5 + ["writing"]
    assert not [line for line in told if "-" in line]


def test_one_bar_on_a_terminal_which_counts_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm.auto, "tqdm", partial(tqdm.auto.tqdm, disable=False))  # TQDM_DISABLE is set for the tests
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    made = Progress(1000, 600, 5, "scoring", quiet=False)
    bar: Any = made._bar
    made.add(100, 2)
    assert (bar.total, bar.n, bar.format_dict["initial"], bar.postfix) == (1000, 700, 600, "failed=7")
    made.add(100, 0, 1_000_000)
    assert bar.postfix.startswith("failed=7, tokens/s=")
    made.close()
    told = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "800/1000" in told
    assert "row/s" in told


@pytest.mark.parametrize(("terminal", "every"), [(True, 0.1), (False, 30.0)])
def test_a_fit_tells_its_rows_as_seldom_where_there_is_no_terminal(
    terminal: bool, every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda rows, **options: asked.append(options) or rows)
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    reader: Any = SimpleNamespace(reads=list, read=lambda row: row["id"])
    assert list(read_groups(reader, texts(3), "fitting the mean")) == [0, 1, 2]
    assert asked == [{"desc": "fitting the mean", "unit": "row", "mininterval": every}]


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
