"""How far a run is: one bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 30.0
"""Seconds between two lines where stderr is not a terminal."""


class Progress:
    """Rows done, rows and tokens a second, failures, and the time that the remaining rows will take.

    Args:
        rows: of the whole run; None where nobody knows how many there are.
        done: rows that an earlier process has scored; they count as done, and not towards the speed.
        failed: those of them without a score; None where rows cannot fail.
        what: what is going on, "scoring (GRACE)".
        quiet: nothing at all. None: as the bars of `datasets` are.
    """

    def __init__(
        self, rows: int | None, done: int, failed: int | None, what: str, *, quiet: bool | None = None
    ) -> None:
        from datasets import are_progress_bars_disabled

        self.rows, self.done, self.failed, self.what = rows, done, failed, what
        self.tokens = 0
        self._resumed = done
        self._start = self._said = time.monotonic()
        self.quiet = are_progress_bars_disabled() if quiet is None else quiet
        self._bar: Any = None
        if not self.quiet and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=what, total=rows, initial=done, unit="row")
            self._bar.set_postfix(**self._beside())

    def add(self, rows: int, failed: int = 0, tokens: int = 0) -> None:
        """So many more rows are done, so many of them have no score, and so many tokens were read for them."""
        self.done += rows
        self.tokens += tokens
        if self.failed is not None:
            self.failed += failed
        if self._bar is not None:
            self._bar.set_postfix(refresh=False, **self._beside())
            self._bar.update(rows)
        elif not self.quiet and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def _beside(self) -> dict[str, Any]:
        """What a bar shows beside rows, speed and time left."""
        failed = {} if self.failed is None else {"failed": self.failed}
        tokens = f"{self._each_second(self.tokens):,.0f}"
        return {**failed, **({"tokens/s": tokens} if self.tokens else {})}

    def _each_second(self, count: int) -> float:
        seconds = time.monotonic() - self._start
        return count / seconds if seconds > 0 else 0.0

    def line(self) -> str:
        """All of it in one line."""
        speed = self._each_second(self.done - self._resumed)
        parts = [f"{self.done:,} rows"]
        if self.rows is not None:
            parts = [f"{self.done:,} of {self.rows:,} rows ({self.done / self.rows:.0%})"]
        parts.append(f"{speed:,.1f} rows/s" if speed < 1000 else f"{speed:,.0f} rows/s")
        if self.tokens:
            parts.append(f"{self._each_second(self.tokens):,.0f} tokens/s")
        if self.failed is not None:
            parts.append(f"{self.failed:,} failed")
        if self.rows is not None and speed:
            parts.append(f"{duration((self.rows - self.done) / speed)} left")
        return f"{self.what}: {', '.join(parts)}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """5 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def no_bars() -> Iterator[None]:
    """There is one bar, and it is ours."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
