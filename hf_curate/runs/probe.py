"""A dry run: a few hundred rows are scored, and what the whole would take is told from them.

How: one call to warm up, then random rows of a fixed seed, as many at a time as the run hands over, so that they are
padded as the run pads them, until 2 seconds are over and for a minute at most (always 8 rows). The time of a token is
that of the probe, without its first batch where there are others: a process that has just begun is slower with it. How
many tokens there are is told by the lengths of up to 2,000 random rows, which are read without the model. Scorers that
read no tokens have a time for each row.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import TALLY
from hf_curate.errors import CurateError, NoSignalError, RowError
from hf_curate.runs.calling import as_table, batch_rows_of, features_of, plain_rows
from hf_curate.runs.estimate import SCORING, Estimate, Phase
from hf_curate.runs.failures import refuse_none_scored
from hf_curate.runs.folder import check_place
from hf_curate.runs.progress import no_bars
from hf_curate.runs.shards import Plan
from hf_curate.runs.spool import head_of
from hf_curate.scorers.base import Scorer

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

STREAM = 4
"""The probe's own random stream: no other draws the same rows."""
SAMPLE_ROWS = 2000
"""Rows whose lengths are read; of a stream, all that are looked at."""
WARM_ROWS = 2
FEWEST_ROWS = 8
LEAST_SECONDS, MOST_SECONDS = 2.0, 60.0
MOST_BATCHES = 8
BUDGET = "20%"
"""Of the selection whose card is shown."""
PER_STREAM = 1_000_000
"""Rows that a stream is reckoned for: nobody knows how many it has."""


def told(
    dataset: Dataset | IterableDataset,
    scorer: Any,
    folder: Path | None,
    shard_rows: int | None,
    batch_rows: int | None,
    source: str | None,
    workers: int = 1,
    strict: bool = False,
) -> Dataset:
    """What `score(dry_run=True)` does: prints the estimate and the card of a selection, returns the probe's rows."""
    if folder is not None:
        check_place(folder)
    scored, estimate, twin = probe(dataset, scorer, batch_rows=batch_rows, shard_rows=shard_rows)
    if folder is not None:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        estimate.free = shutil.disk_usage(there).free
    if workers > 1:
        estimate.notes.append(
            f"{workers} workers take 1/{workers} of the scoring's time at best, and each holds a model of its own"
        )
    if strict and estimate.failed:
        estimate.notes.append(f"{estimate.failed:,} rows of the probe failed: strict=True (--strict) ends in an error")
    print(estimate)
    print(f"\n{card(scored, twin, source)}", flush=True)
    return scored


def card(scored: Dataset, scorer: Any, source: str | None) -> str:
    """The card of a selection of the probe, which says that it is one."""
    from hf_curate.selection import select

    head = f"The card would look like this; its numbers are those of the {len(scored):,} rows of the probe alone."
    try:
        picked = select(scored, scorer, BUDGET, source=source)
    except CurateError as error:
        return f"No card can be shown of so few rows: {error}"
    picked.manifest.update(config_name="probe", split="train")
    return f"{head}\n\n{picked.card.render()}"


def probe(
    dataset: Dataset | IterableDataset,
    scorer: Any,
    *,
    batch_rows: int | None = None,
    shard_rows: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Dataset, Estimate, Any]:
    """Scores a probe of the rows; the scorer stays as it was.

    Returns the probe's rows with their scores, in the order of the dataset; the estimate; and the scorer that scored
    them, which may be fitted on the probe alone. Raises whatever the scorer raises.
    """
    from datasets import Dataset

    streamed = not isinstance(dataset, Dataset)
    pool: Any = head_of(dataset, SAMPLE_ROWS) if streamed else plain_rows(dataset)
    features_of(pool, scorer)
    with tempfile.TemporaryDirectory() as place, no_bars():
        return _Probe(pool, scorer, streamed, batch_rows, shard_rows, clock, Path(place)).taken()


class _Probe:
    """One dry run. place: a folder for what a fit writes."""

    def __init__(
        self,
        pool: Dataset,
        scorer: Any,
        streamed: bool,
        batch_rows: int | None,
        shard_rows: int | None,
        clock: Callable[[], float],
        place: Path,
    ) -> None:
        self.pool, self.scorer, self.clock, self.place = pool, _twin(scorer), clock, place
        self.size, self.shard_rows = batch_rows_of(scorer, batch_rows), shard_rows
        self.streamed = streamed
        self.rows = np.random.default_rng([0, STREAM]).permutation(len(pool))
        known = not streamed or len(pool) < SAMPLE_ROWS
        self.estimate = Estimate(len(pool) if known else PER_STREAM, known)

    def taken(self) -> tuple[Dataset, Estimate, Any]:
        drawn = self._made_ready(self._drawn(min(len(self.rows), self.size * MOST_BATCHES)))
        scores, counted, before = self._scored(drawn)
        scored = self._beside(drawn, scores)
        self.estimate.probed = len(scored)
        self.estimate.failed = sum(refuse_none_scored(scored, self.scorer).values())
        self._tokens(counted, before, drawn.column_names)
        self._disk(scored)
        self._memory()
        return scored, self.estimate, self.scorer

    def _beside(self, drawn: Dataset, scores: pa.Table) -> Dataset:
        """The rows that were scored, in the order of the pool, with their scores."""
        import pyarrow as pa
        from datasets import Dataset, Features

        features, rows = Features({**drawn.features, **self.scorer.columns}), drawn.with_format("arrow")[: len(scores)]
        columns = {name: (scores if name in scores.column_names else rows)[name] for name in features}
        order = np.argsort(self.rows[: len(scores)])
        return Dataset(pa.table(columns, schema=features.arrow_schema).take(order))  # type: ignore[arg-type]

    def _drawn(self, count: int) -> Dataset:
        """So many random rows, in memory."""
        from datasets import Dataset

        return Dataset(self.pool.select(self.rows[:count]).with_format("arrow")[:])  # type: ignore[arg-type]

    @contextmanager
    def _timed(self, phase: Phase, rows: int) -> Iterator[None]:
        """Around work on so many rows: adds them, the time and the tokens to the phase."""
        TALLY.take()
        start = self.clock()
        try:
            yield
        finally:
            phase.seconds += self.clock() - start
            phase.rows += rows
        tokens, padded = TALLY.take()
        phase.tokens, phase.padded = phase.tokens + tokens, phase.padded + padded

    def _affordable(self, most: int, call: Callable[[int], Any]) -> int:
        """How many rows at a time, at most so many, take no more than a minute; by two calls with 2 rows, of which the
        first also loads what is to be loaded."""
        loading, warm = Phase(""), Phase("")
        for phase in (loading, warm):
            with self._timed(phase, min(most, WARM_ROWS)):
                call(min(most, WARM_ROWS))
        self.estimate.loading += loading.seconds
        if isinstance(self.scorer, Scorer):
            self.scorer.goes_on(0, 0)  # these rows come again
        each = max(warm.seconds / warm.rows, 1e-9)
        return min(most, max(int(MOST_SECONDS / each), FEWEST_ROWS))

    # -- before the scores --------------------------------------------------------------------------------------------

    def _made_ready(self, drawn: Dataset) -> Dataset:
        """The rows with the rollouts that they lack; the scorer, fitted."""
        scorer = self.scorer
        if getattr(scorer, "_makes", lambda _: False)(drawn.column_names):
            most = min(len(drawn), max(self.size, scorer.rollouts.batch_rows))
            count = self._affordable(most, lambda rows: scorer.complete(drawn.select(range(rows))))
            rolled, drawn = Phase("making rollouts"), drawn.select(range(count))
            with self._timed(rolled, count):
                drawn = scorer.complete(drawn)
            self.estimate.phases.append(rolled)
            rolled.whole = rolled.seconds / count * self.estimate.rows
        if getattr(scorer, "fitted", scorer) is None:
            loading = Phase("")
            with self._timed(loading, 0):
                scorer.load()
            self.estimate.loading += loading.seconds
            self._fit(drawn)
        return drawn

    def _fit(self, drawn: Dataset) -> None:
        """Fits the scorer as the run would: on its validation set, which is kept, or on the pool, which is the probe
        here."""
        fitting = Phase("fitting")
        self.estimate.phases.append(fitting)
        if getattr(self.scorer, "validation", None) is not None:
            with self._timed(fitting, len(self.scorer.validation)):
                self.scorer.prepare(drawn)
            fitting.whole = fitting.seconds
            self.estimate.notes.append("the fit on the validation set is kept, and the run does not do it again")
            return
        for pool in (drawn.select(range(min(len(drawn), self.size))), drawn):
            try:
                with self._timed(fitting, len(pool)):
                    self.scorer.fit(pool, out=self.place / f"{len(pool)}{self.scorer._suffix()}")
                break
            except NoSignalError as error:  # in the first few rows; more of them may have one
                if len(pool) == len(drawn):
                    raise NoSignalError(f"of the {len(pool):,} random rows of the probe: {error}") from error
        fitting.whole = fitting.seconds / fitting.rows * self.estimate.rows
        self.estimate.notes.append("the probe's scores are by a fit on the probe, those of the run by one on all rows")

    # -- the scores ---------------------------------------------------------------------------------------------------

    def _scored(self, drawn: Dataset) -> tuple[pa.Table, Phase, int]:
        """The scores of the first rows of those that were drawn; what they took, all or those that come after the
        first batch; and how many come before these."""
        import pyarrow as pa

        first, counted, found = Phase(SCORING), Phase(SCORING), []
        size = self._affordable(min(self.size, len(drawn)), lambda rows: self._batch(drawn, range(rows)))
        for start in range(0, len(drawn), size):
            rows = range(start, min(start + size, len(drawn)))
            with self._timed(counted if found else first, len(rows)):
                found.append(self._batch(drawn, rows))
            if first.seconds + counted.seconds >= LEAST_SECONDS:
                break
        if size < min(self.size, len(drawn)):
            self.estimate.notes.append(
                f"the run hands {self.size:,} rows over at a time, and pads less than these {size:,} of the probe"
            )
        if not counted.rows:
            return pa.concat_tables(found), first, 0
        self.estimate.loading += max(first.seconds - counted.seconds / counted.rows * first.rows, 0.0)
        return pa.concat_tables(found), counted, first.rows

    def _batch(self, drawn: Dataset, rows: range) -> pa.Table:
        from datasets.formatting import get_formatter

        table: Any = drawn.with_format("arrow")[rows.start : rows.stop]
        given = get_formatter(None, features=drawn.features, lazy=True).format_batch(table)
        return as_table(self.scorer(given), self.scorer.columns, rows)

    # -- the whole ----------------------------------------------------------------------------------------------------

    def _tokens(self, counted: Phase, before: int, names: list[str]) -> None:
        """How long the scoring of all rows takes, by their tokens where tokens are read. before: rows of the probe
        that are not counted."""
        self.estimate.phases.append(counted)
        counted.whole = counted.seconds / counted.rows * self.estimate.rows
        if not counted.tokens:
            return
        longer = self._longer(before, counted.rows) if names == self.pool.column_names else 1.0
        self.estimate.tokens = counted.tokens / counted.rows * longer * self.estimate.rows
        counted.whole *= longer

    def _longer(self, before: int, counted: int) -> float:
        """How many times as long as the counted rows of the probe a row is, by a larger sample; 1 where that cannot be
        read."""
        read = getattr(getattr(self.scorer, "reader", None), "read", None)
        if read is None or len(self.pool) == counted:
            return 1.0
        rows = self.pool.select_columns(self.scorer.reads(self.pool.column_names)).select(self.rows[:SAMPLE_ROWS])
        lengths = [_length(read(row)) for row in rows]
        mean = float(np.mean(lengths[before : before + counted]))
        return float(np.mean(lengths)) / mean if mean else 1.0

    def _disk(self, scored: Dataset) -> None:
        """Bytes of the parts, of the table, and of the rows that `datasets` keeps; and the time that they take."""
        rows, writing = self.estimate.rows, Phase("writing")
        plan = Plan.of(rows, self.size, self.shard_rows)
        some, half = min(plan.shard_rows, len(scored)), len(scored) // 2
        scores = scored.select_columns(list(self.scorer.columns)).select(range(some))
        less = _parquet(scored.select(range(half))) if half else 0  # which warms up, too
        with self._timed(writing, some):
            part = _parquet(scores)
        for_a_part = writing.seconds
        with self._timed(writing, len(scored)):
            table = _parquet(scored)
        self.estimate.disk = {
            "parts": part * plan.shard_rows / some * plan.shards,
            "scored.parquet": table + (table - less) / (len(scored) - half) * (rows - len(scored)),
            "kept by datasets": scored.data.nbytes / len(scored) * rows,
        }
        if self.streamed:
            self.estimate.disk["rows of the stream"] = self.pool.data.nbytes / len(self.pool) * rows
        for_a_row = (writing.seconds - for_a_part) / len(scored)
        writing.whole = for_a_part * plan.shards + for_a_row * rows
        self.estimate.phases.append(writing)

    def _memory(self) -> None:
        """What this process has taken at most, where the system says it, and the GPU where there is one."""
        with suppress(ImportError):  # Windows has no such module
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            self.estimate.memory["of this process at most"] = most
        torch = sys.modules.get("torch")  # it is there if a model is
        if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            self.estimate.memory["of the GPU at most"] = torch.cuda.max_memory_allocated()


def _twin(scorer: Any) -> Any:
    """A scorer with the same model that counts and fits for itself; others than ours are taken as they are."""
    if not isinstance(scorer, Scorer):
        return scorer
    twin = object.__new__(type(scorer))
    vars(twin).update(vars(scorer), notes=[], _reasons=Counter(), keep=None)
    if getattr(twin, "_budget", None) is not None:  # it tells the scorer that made it of memory that ran out
        twin._budget = None  # type: ignore[attr-defined]
    if getattr(twin, "rollouts", None) is not None:
        twin.rollouts = _twin(twin.rollouts)  # type: ignore[attr-defined]
    if getattr(twin, "_implicit", False):  # fitted by an earlier run, on what may have been another pool
        twin.fitted = None  # type: ignore[attr-defined]
    return twin


def _length(item: Any) -> int:
    """Tokens of a row that was read; 0 of one that cannot be scored."""
    if isinstance(item, RowError):
        return 0
    rollouts = getattr(item, "rollouts", None)
    return len(item.input_ids) if rollouts is None else sum(len(rollout.input_ids) for rollout in rollouts)


def _parquet(dataset: Dataset) -> int:
    """Bytes of a dataset as a parquet file."""
    file = io.BytesIO()
    dataset.to_parquet(file)
    return file.tell()
