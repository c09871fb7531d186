"""The verifier of mathematical answers: math-verify in processes of its own, each completion under a time limit.

math-verify limits its own time by a signal, which works in the main thread alone, and it says neither which of its
failures was one of time nor that the gold could not be read. Here its limits are off: a process that takes too long is
ended from outside, and the pool goes on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from hf_curate.errors import CurateError, MissingPackageError, RowError
from hf_curate.rollouts.verify import (
    RIGHT,
    UNPARSED,
    WRONG,
    Ids,
    Row,
    Verdict,
    Verifier,
    read_gold,
    same_number,
    seconds,
    shown,
    verdict,
)

NO_GOLD = "no gold"
"""What `judge` says where math-verify finds nothing in the gold answer."""
PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy")

Judged = tuple[str, str]  # an outcome or NO_GOLD, and its detail


class Mathematics(Verifier):
    """The completion's answer is the gold answer as a mathematical object: \\boxed{\\frac{2}{4}} for a gold of 0.5.

    Both are read and compared with math-verify's own settings. A gold without \\boxed, $...$, \\( or \\[ is read as
    one expression in LaTeX. A completion that exceeds the time limit or ends its process could not be parsed.

    Parameters:
        gold: the column of the gold answer; its text after the last "####" counts.
        timeout: seconds for one completion.
        workers: processes; they start with the first completion, by spawn: a script that verifies at its top level
            needs `if __name__ == "__main__":`.
    """

    name = "math"
    version = "1"
    failure_surface = (
        "takes 50% for 50, x = 3 for 3 and several boxes for one set, reads words as products of letters, and its "
        "time limit depends on the machine"
    )

    def __init__(self, gold: str = "answer", timeout: float = 10.0, workers: int = 2) -> None:
        for module, package in (("math_verify", "math-verify"), ("pebble", "pebble")):
            if importlib.util.find_spec(module) is None:
                raise MissingPackageError(package, "math", "verifier 'math'")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise CurateError(f"workers={workers!r} is not a number of processes of 1 or more.")
        super().__init__({"gold": gold}, {"timeout": seconds("timeout", timeout)})
        self.workers = Workers(workers, timeout)

    def verify(
        self, completions: Sequence[str], rows: Sequence[Row], completion_ids: Ids | None = None
    ) -> list[Verdict | RowError]:
        same_number(completions, rows)
        golds = [_gold(row, self.roles["gold"]) for row in rows]
        pairs = [(gold, text) for gold, text in zip(golds, completions, strict=True) if isinstance(gold, str)]
        judged = iter(self.workers.judge(pairs))
        return [gold if isinstance(gold, RowError) else self._result(gold, next(judged)) for gold in golds]

    def _result(self, gold: str, judged: Judged | RowError) -> Verdict | RowError:
        if isinstance(judged, RowError):
            return judged
        if judged[0] == NO_GOLD:
            column = self.roles["gold"]
            return RowError(
                "gold unreadable", f"math-verify finds nothing in {shown(repr(gold))} of column {column!r}"
            )
        return verdict(*judged)

    def packages(self) -> dict[str, str]:
        return {package: importlib.metadata.version(package) for package in PACKAGES}

    def close(self) -> None:
        """Ends the processes; the next completion starts new ones."""
        self.workers.close()


class Workers:
    """Processes that judge; started when first needed, and left behind by pickles and forks."""

    def __init__(self, count: int, timeout: float) -> None:
        self.count, self.timeout = count, timeout
        self._lock = threading.Lock()
        self._pool: Any = None
        self._process = 0
        self._stop: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, (self.count, self.timeout)

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judged | RowError]:
        """What `judge` says of each gold and completion, in their order.

        CurateError where the processes cannot be started.
        """
        results: dict[int, Judged | RowError] = {}
        failures = 0
        while len(results) < len(pairs):
            left = [i for i in range(len(pairs)) if i not in results]
            done = self._attempt({i: pairs[i] for i in left})
            results |= done
            failures = 0 if done else failures + 1
            if failures == 2:
                raise CurateError(
                    f"none of the {self.count} processes of verifier 'math' could start, twice. They import the main "
                    "script: what it runs must stand under if __name__ == '__main__'. Otherwise look at the memory."
                )
        return [results[i] for i in range(len(pairs))]

    def _attempt(self, pairs: dict[int, tuple[str, str]]) -> dict[int, Judged | RowError]:
        """The results that a pool gives before it breaks, if it does: when a process dies while it has no task."""
        results: dict[int, Judged | RowError] = {}
        pool = self._started()
        try:
            futures = {i: pool.schedule(judge, args=pair, timeout=self.timeout) for i, pair in pairs.items()}
        except RuntimeError:  # broken since the last call
            self.close()
            return results
        broken = False
        for i, future in futures.items():
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                broken = True
            else:
                results[i] = future.result() if error is None else self._failed(error)
        if broken:
            self.close()
        return results

    def _failed(self, error: BaseException) -> Judged | RowError:
        from pebble import ProcessExpired

        if isinstance(error, TimeoutError):
            return UNPARSED, f"no verdict within {self.timeout:g} s"
        if isinstance(error, ProcessExpired):
            return UNPARSED, f"the process that judged it ended with exit code {error.exitcode}"
        return RowError("verifier failed", shown(f"{type(error).__name__}: {error}"))

    def _started(self) -> Any:
        from pebble import ProcessPool

        with self._lock:
            if self._pool is None or self._process != os.getpid():
                if multiprocessing.current_process().daemon:
                    raise CurateError(
                        "verifier 'math' needs processes, and a daemon process may start none: call it in the process "
                        "that started this one."
                    )
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPool(max_workers=self.count, initializer=_begin, context=context)
                self._process = os.getpid()
                self._stop = weakref.finalize(self, _end, self._pool, self._process)
        return self._pool

    def close(self) -> None:
        with self._lock:
            if self._stop is not None:
                self._stop()
            self._pool = self._stop = None


def judge(gold: str, completion: str) -> Judged:
    """The outcome of one completion and what was read in it, or `NO_GOLD`. Runs in a worker, without a time limit."""
    from math_verify import parse, verify

    wanted = _parsed_gold(gold)
    if not wanted:
        return NO_GOLD, ""
    found = parse(completion, parsing_timeout=None)  # type: ignore[arg-type]
    if not found:
        return UNPARSED, "math-verify finds no answer"
    outcome = RIGHT if verify(wanted, found, timeout_seconds=None) else WRONG  # gold first: it is not symmetric
    return outcome, next((shown(item) for item in reversed(found) if isinstance(item, str)), "")


@functools.lru_cache(maxsize=64)
def _parsed_gold(gold: str) -> list[Any]:
    from math_verify import parse

    marked = gold.count("$") > 1 or any(mark in gold for mark in ("\\boxed", "\\(", "\\["))
    return parse(gold if marked else f"\\boxed{{{gold}}}", parsing_timeout=None)  # type: ignore[arg-type]


def _gold(row: Row, column: str) -> str | RowError:
    try:
        return read_gold(row, column)
    except RowError as error:
        return error


def _begin() -> None:
    """Imports and builds what judging needs, which is slow, before the first completion's time begins."""
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn that their time limits are off
    judge("1", "$1$")


def _end(pool: Any, process: int) -> None:
    if process == os.getpid():  # not in a fork of the process that started them
        pool.stop()
        pool.join()
