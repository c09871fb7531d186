"""The engine of several processes on this machine: one device each, the CPU's threads divided between them.

A process is handed one batch at a time. One that dies (the system ends it for its memory, a signal, a crash in
compiled code) is replaced, and its batch is tried again; what kills three of them is a row without a score, and why.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from hf_curate.errors import CurateError, RowError
from hf_curate.runs.shards import Plan
from hf_curate.runs.travel import as_bytes, as_table, packed, receive, send, unpacked
from hf_curate.runs.work import Batch, Found, Pool, Shard, joined, lost, refuse_first, variables
from hf_curate.scorers.model import ModelScorer

logger = logging.getLogger("hf_curate")

TRIES = 3
"""Workers that may die over one batch, or at their start."""
PATIENCE = 5.0
"""Seconds that a worker has to end by itself."""


class DiedError(Exception):
    """A worker is gone; the text says how it ended."""


class Worker:
    """One process, seen from the one that started it.

    Args:
        rank: its number, from 0 on; it chooses the device.
        threads: what it computes with.
    """

    def __init__(self, rank: int, threads: int) -> None:
        self.rank = rank
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hf_curate.runs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **variables(threads), "PYTHONPATH": _module_path()},
        )

    def begin(self, scorer: bytes, features: bytes, kept: list[str]) -> None:
        """Hands over the scorer, the features of batches and the wanted columns. Raises as `score` does."""
        self._ask("begin", scorer, features, kept, self.rank, logger.getEffectiveLevel())

    def score(self, batch: bytes, rows: range) -> Found:
        """Raises what the scorer raises, and DiedError."""
        scores, about = self._ask("score", batch, rows)
        return Found(as_table(scores), about)

    def _ask(self, kind: str, *values: Any) -> tuple[Any, ...]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, kind, *values)  # type: ignore[arg-type]
            told, found = receive(process.stdout)  # type: ignore[arg-type]
            while told in ("log", "warning"):
                pass_on(told, *found)
                told, found = receive(process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError):
            raise DiedError(_how(self._ended())) from None
        if told == "error":  # outside, as a scorer raises OSErrors too
            raise error_of(*found)
        return found

    def _ended(self) -> int:
        """The exit code of a process whose pipes are closed."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        with suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Lets the process end: it does when nobody can ask it anything."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):
                assert stream is not None
                stream.close()
        self._ended()


def workers(
    scorer: Any, pool: Pool, kept: list[str], plan: Plan, shards: Iterable[int], count: int, proven: bool
) -> Generator[Batch | Shard]:
    """The engine: shards are handed to whichever of `count` workers is free. proven: some row of the run has a score
    already; otherwise a first batch that fails entirely is an error.

    Raises what the scorer raises in any of them, and CurateError where they cannot be started or the scorer cannot
    travel; all of them are gone then.
    """
    numbers = list(shards)
    begin = (packed(scorer), packed(pool.features), kept)
    if isinstance(scorer, ModelScorer):
        scorer.release()  # a fit may have loaded it here, where the first worker's belongs
    team = _Team(scorer, pool, plan, numbers, begin, proven)
    try:
        team.start(min(count, len(numbers)))
        yield from team.events(len(numbers))
    finally:
        team.stop()


class _Team:
    """Workers, each with a thread that hands it batches; what they find comes through one queue."""

    def __init__(
        self,
        scorer: Any,
        pool: Pool,
        plan: Plan,
        numbers: list[int],
        begin: tuple[bytes, bytes, list[str]],
        proven: bool,
    ) -> None:
        self.scorer, self.pool, self.plan, self.begin = scorer, pool, plan, begin
        self._first, self._waiting = None if proven else numbers[0], iter(numbers)
        self._found: queue.SimpleQueue[Batch | Shard | BaseException] = queue.SimpleQueue()
        self._lock = threading.Lock()  # around the pool, the waiting shards and the workers that are alive
        self._alive: dict[int, Worker] = {}
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        for rank in range(count):
            thread = threading.Thread(target=self._serve, args=(rank,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def events(self, shards: int) -> Iterator[Batch | Shard]:
        while shards:
            event = self._found.get()
            if isinstance(event, BaseException):
                raise event
            shards -= isinstance(event, Shard)
            yield event

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for worker in self._alive.values():
                worker.kill()
        for thread in self._threads:
            if thread.ident is not None:  # the system may have refused to start it
                thread.join()

    # -- in a worker's thread -----------------------------------------------------------------------------------------

    def _serve(self, rank: int) -> None:
        try:
            while (number := self._next()) is not None:
                found = []
                for rows in self.plan.batches(number):
                    found.append(self._score(rank, rows, first=number == self._first and not found))
                    self._found.put(found[-1].about)
                self._found.put(joined(number, found))
        except BaseException as error:  # noqa: BLE001 - it is raised where the events are read
            self._found.put(error)
        finally:
            with self._lock:
                worker = self._alive.pop(rank, None)
            if worker is not None:
                worker.close()

    def _next(self) -> int | None:
        with self._lock:
            return None if self._stopped else next(self._waiting, None)

    def _score(self, rank: int, rows: range, first: bool) -> Found:
        """One batch, from a worker that lives; without scores, if it kills as many as it may."""
        with self._lock:
            batch = as_bytes(self.pool.of(rows))
        notes: list[str] = []
        why = ""
        for number in range(1, TRIES + 1):
            worker = self._worker(rank)
            try:
                found = worker.score(batch, rows)
            except DiedError as error:
                self._bury(rank)
                notes.append(f"worker {rank} died ({error}) over rows {rows.start} to {rows.stop - 1}")
                logger.warning("%s%s", notes[-1], ": tried again" if number < TRIES else "")
                why = str(error)
            else:
                if first:
                    refuse_first(self.scorer, found)
                return Found(found.scores, with_notes(found.about, notes))
        reason = RowError("worker died", f"{TRIES} times over this row's batch, last by {why}")
        found = lost(self.scorer, rows, reason, self.begin[2])
        return Found(found.scores, with_notes(found.about, notes))

    def _worker(self, rank: int) -> Worker:
        """The worker of this rank; a new one if there is none."""
        with self._lock:
            worker = self._alive.get(rank)
        for number in range(1, TRIES + 1):
            if worker is not None:
                return worker
            worker = self._started(rank)
            try:
                worker.begin(*self.begin)
            except DiedError as error:
                self._bury(rank)
                worker = None
                if number == TRIES:
                    raise CurateError(
                        f"a worker process died {TRIES} times at its start ({error}): its own messages, if it had "
                        "any, are above. With workers=1 all is done in this process."
                    ) from error
        assert worker is not None
        return worker

    def _started(self, rank: int) -> Worker:
        """A process that `stop` knows of before it is asked anything."""
        with self._lock:
            if self._stopped:
                raise CurateError("stopped")
            self._alive[rank] = Worker(rank, self.plan.threads)
            return self._alive[rank]

    def _bury(self, rank: int) -> None:
        with self._lock:
            worker = self._alive.pop(rank)
            stopped = self._stopped
        worker.close()
        if stopped:
            raise CurateError("stopped")


def _module_path() -> str:
    """Where this process finds modules, for another one to find them too."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def pass_on(kind: str, *said: Any) -> None:
    """A line of the log ("log", level, text) or a warning ("warning", category, text) of a worker, told here."""
    if kind == "log":
        logger.log(*said)
    else:
        warnings.warn(said[1], category_of(said[0]), stacklevel=2)


def with_notes(about: Batch, notes: list[str]) -> Batch:
    return Batch(about.rows, about.failed, about.tokens, (*notes, *about.notes))


def _how(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name
    return f"signal {-code}"


def category_of(name: str) -> type[Warning]:
    found = getattr(__builtins__, name, None) if not isinstance(__builtins__, dict) else __builtins__.get(name)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning


def error_of(data: bytes | None, text: str) -> BaseException:
    """The error of a worker, with its traceback there."""
    last = text.strip().rpartition("\n")[2]
    error = RuntimeError(f"a worker process failed: {last}") if data is None else unpacked(data)
    error.__cause__ = _InWorkerError(f"\n\n{text}")
    return error


class _InWorkerError(Exception):
    """The traceback of an error in a worker process, as text."""
