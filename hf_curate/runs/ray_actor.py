"""One actor of the engine on Ray: the process that scores the batches it is handed, on whatever node it is.

What it finds, raises and has to say comes back as the answer to what it was asked, so Ray has nothing to print.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_curate.runs.calling import packages
from hf_curate.runs.travel import as_bytes, as_table
from hf_curate.runs.work import Batch
from hf_curate.runs.worker import as_told, begin, relay
from hf_curate.scorers.threads import with_threads


@dataclass(frozen=True)
class Answer:
    """What an actor has to say to what it was asked.

    Attributes:
        scores: the score columns of a batch as an Arrow stream, and `about` what `Batch` says of it; None where it
            was asked to begin.
        packages: name -> version of those that change numbers, as this actor has them.
        error: what was raised, and its traceback, as they travel.
        said: warnings ("warning", category, text) and lines of the log ("log", level, text).
    """

    scores: bytes | None = None
    about: Batch | None = None
    packages: dict[str, str] | None = None
    error: tuple[bytes | None, str] | None = None
    said: tuple[tuple[Any, ...], ...] = ()


class ScoringActor:
    """Scores batches in a process of a Ray cluster.

    Args:
        folder: where the run was started; relative paths mean the same here, if this node has it.
        path: where the run finds modules; they are found here too, after this node's own.
        threads: of the CPU, to score with.
    """

    def __init__(self, folder: str, path: Sequence[str], threads: int) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path.extend(entry for entry in path if entry not in sys.path and os.path.exists(entry))
        self._threads, self._scoring = threads, None
        self._said: list[tuple[Any, ...]] = []
        relay(lambda *message: self._said.append(message))

    def begin(self, scorer: bytes, features: bytes, kept: list[str], rank: int, level: int) -> Answer:
        """Makes the scorer ready. level: of the log lines that the run shows."""

        def work() -> Answer:
            self._scoring = begin(scorer, features, kept, rank, level)
            return Answer(packages=packages())

        return self._told(work)

    def score(self, batch: bytes, rows: range) -> Answer:
        """Scores these rows of the pool, an Arrow stream of the columns that the scorer looks at."""

        def work() -> Answer:
            assert self._scoring is not None
            with with_threads(self._threads, self._scoring.scorer):
                found = self._scoring.of(as_table(batch), rows)
            return Answer(as_bytes(found.scores), found.about)

        return self._told(work)

    def alive(self) -> None:
        """Answers if it can."""

    def _told(self, work: Callable[[], Answer]) -> Answer:
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the run is
            answer = Answer(error=as_told(error))
        answer = replace(answer, said=tuple(self._said))
        self._said.clear()
        return answer
