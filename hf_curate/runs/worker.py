"""The process of one worker: scores the batches that come through its standard input until that is closed.

It ends at once when the process that started it is gone, whatever it is doing then.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

from hf_curate.runs.travel import as_bytes, as_table, receive, send, unpacked


def main() -> None:
    """Reads messages from standard input and answers on what was standard output; prints go to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    try:
        _work(asked, answers)
    except BrokenPipeError:
        os._exit(1)


def _listen(stream: BinaryIO, asked: queue.SimpleQueue[tuple[str, tuple[Any, ...]]]) -> None:
    while True:
        try:
            asked.put(receive(stream))
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:  # noqa: BLE001 - memory ran out; whoever asked must not wait for an answer
            traceback.print_exc()
            os._exit(1)


def _work(asked: queue.SimpleQueue[tuple[str, tuple[Any, ...]]], answers: BinaryIO) -> None:
    lock = threading.Lock()  # a scorer's own threads may have something to say too

    def tell(*message: Any) -> None:
        with lock:
            send(answers, *message)

    relay(tell)
    scoring: Any = None
    while True:
        kind, values = asked.get()
        try:
            if kind == "begin":
                scoring = begin(*values)
                tell("ready")
            else:
                data, rows = values
                found = scoring.of(as_table(data), rows)
                tell("found", as_bytes(found.scores), found.about)
        except BrokenPipeError:
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised where the run is
            tell("error", *as_told(error))


def begin(scorer: bytes, features: bytes, kept: list[str], rank: int, level: int = logging.WARNING) -> Any:
    """What scores here from now on. level: of the lines that the process that started this one wants to hear."""
    from datasets import disable_progress_bars

    from hf_curate.runs.work import Scoring
    from hf_curate.scorers.base import Scorer, work_for_others

    disable_progress_bars()
    work_for_others()
    logging.getLogger("hf_curate").setLevel(level)
    found = unpacked(scorer)
    if isinstance(found, Scorer):
        found.goes_on(1, 0)  # whether the first of all batches fails is seen by who hands them out
    return Scoring(found, unpacked(features), kept, rank)


def as_told(error: BaseException) -> tuple[bytes | None, str]:
    """An error as it travels: itself, where it can, and its traceback."""
    from hf_curate.runs.travel import packed

    if isinstance(error, SystemExit):  # it would end the run as if all were well
        error = RuntimeError(f"the scorer ended its process: sys.exit({error.code!r})").with_traceback(
            error.__traceback__
        )
    try:
        data = packed(error)
        unpacked(data)
    except Exception:  # noqa: BLE001 - what others raise may not travel
        data = None
    return data, "".join(traceback.format_exception(error))


def relay(tell: Callable[..., None]) -> None:
    """Warnings and log lines go to the process that started this one, which shows each once."""

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell("log", record.levelno, record.getMessage())

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        name = category.__name__ if category.__module__ == "builtins" else "UserWarning"
        tell("warning", name, str(message))

    ours = logging.getLogger("hf_curate")
    ours.addHandler(Relay())
    ours.propagate = False
    warnings.showwarning = show  # type: ignore[assignment]


if __name__ == "__main__":
    main()
