"""What an engine does: it scores the batches of shards, wherever that happens, and hands over what it finds.

An engine is a generator of `Batch` and `Shard`: a `Batch` for each batch that is scored, and after the last of a shard
the `Shard`. Shards come in any order; what is in them does not depend on the engine.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_curate.batches import TALLY
from hf_curate.errors import CurateError, RowError, ScoreError
from hf_curate.runs.calling import as_table
from hf_curate.runs.failures import error_column, failed_in
from hf_curate.runs.shards import Plan
from hf_curate.scorers.base import FIRST_BATCH, Scorer, all_failed

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features


@dataclass(frozen=True)
class Batch:
    """That so many rows were scored, how many of them have no score, the tokens that were read for it, and notes for
    the log."""

    rows: int
    failed: int
    tokens: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """The score columns of a shard that is scored, in the order of its rows."""

    number: int
    scores: pa.Table
    failed: int


@dataclass(frozen=True)
class Found:
    """The score columns of a batch, and what `Batch` says of it."""

    scores: pa.Table
    about: Batch


class Pool:
    """The rows to score, as Arrow batches of the columns that the scorer looks at."""

    def __init__(self, dataset: Dataset, scorer: Any) -> None:
        names = scorer.reads(dataset.column_names) if isinstance(scorer, Scorer) else dataset.column_names
        rows = dataset.select_columns(names) if names else dataset
        self.features: Features = rows.features
        self._rows = rows.with_format("arrow")

    def of(self, rows: range) -> pa.Table:
        return self._rows[rows.start : rows.stop]  # type: ignore[return-value]


class Scoring:
    """A scorer on Arrow batches: rows are handed to it as `map` hands them, read one column at a time, when it is
    looked at.

    Args:
        scorer: ready to score.
        features: of the batches.
        kept: the score columns that are wanted.
        rank: which of several processes this is; it chooses the device.
    """

    def __init__(self, scorer: Any, features: Features, kept: Sequence[str], rank: int | None = None) -> None:
        from datasets.formatting import get_formatter

        self.scorer, self.columns, self.kept, self.rank = scorer, scorer.columns, list(kept), rank
        self._formatter = get_formatter(None, features=features, lazy=True)

    def of(self, batch: pa.Table, rows: range) -> Found:
        """Scores the batch, which holds these rows of the pool. Raises whatever the scorer raises."""
        given = self._formatter.format_batch(batch)
        TALLY.take()
        found = self.scorer(given, self.rank) if isinstance(self.scorer, Scorer) else self.scorer(given)
        tokens, _ = TALLY.take()
        scores = as_table(found, self.columns, rows).select(self.kept)
        return Found(scores, Batch(len(rows), failed_in(found, self.scorer), tokens, self._notes()))

    def _notes(self) -> tuple[str, ...]:
        return self.scorer.take_notes() if isinstance(self.scorer, Scorer) else ()


def joined(number: int, found: Sequence[Found]) -> Shard:
    """A shard of its batches."""
    import pyarrow as pa

    return Shard(number, pa.concat_tables([one.scores for one in found]), sum(one.about.failed for one in found))


def in_turn(scoring: Scoring, pool: Pool, plan: Plan, shards: Iterable[int]) -> Generator[Batch | Shard]:
    """The engine of this process: one batch after the other."""
    for number in shards:
        found = []
        for rows in plan.batches(number):
            found.append(scoring.of(pool.of(rows), rows))
            yield found[-1].about
        yield joined(number, found)


def lost(scorer: Any, rows: range, reason: RowError, kept: Sequence[str]) -> Found:
    """A batch whose rows have no score for this reason. kept: the score columns that are wanted. CurateError: the
    scorer has no column for reasons."""
    column, columns = error_column(scorer), scorer.columns
    if column is None:
        raise CurateError(
            f"rows {rows.start} to {rows.stop - 1} cannot be scored ({reason}), and the scorer has no column that "
            "ends in _error to say so: give it one, or leave these rows out."
        )
    nulls: dict[str, Any] = {name: [None] * len(rows) for name in columns}
    table = as_table({**nulls, column: [str(reason)] * len(rows)}, columns, rows).select(kept)
    return Found(table, Batch(len(rows), len(rows), notes=(f"rows {rows.start} to {rows.stop - 1}: {reason}",)))


def refuse_first(scorer: Any, found: Found) -> None:
    """What a scorer of ours does by itself with a first batch that fails entirely, for engines whose scorers cannot
    know which batch is the first. ScoreError: it is one."""
    if not isinstance(scorer, Scorer) or not FIRST_BATCH <= found.about.rows == found.about.failed:
        return
    column, reasons = error_column(scorer), {}
    for reason in found.scores[column].to_pylist() if column in found.scores.column_names else ():
        reasons[reason] = reasons.get(reason, 0) + 1
    raise ScoreError(all_failed(found.about.rows, reasons, scorer.advice()))


def variables(threads: int) -> dict[str, str]:
    """What the environment of a process says that scores with so many threads for another one."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(names, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # there is one bar, in the process of the run
    }
