"""score(out=): shard after shard, each of them kept when it is done, so that the next call goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.comparisons import overlap_confound
from hf_curate.errors import CurateError, ScoreError
from hf_curate.runs.calling import (
    batch_rows_of,
    call_if_there,
    conditions_of,
    features_of,
    plain_rows,
    record_of,
    what_of,
)
from hf_curate.runs.digest import table_digest
from hf_curate.runs.failures import refuse_none_scored
from hf_curate.runs.folder import (
    ROLLOUTS,
    ROWS_DIGEST,
    SCORES_DIGEST,
    VALIDATION_ROLLOUTS,
    Begun,
    RunFolder,
    check_folder,
    shown_name,
    writing,
)
from hf_curate.runs.progress import Progress, no_bars
from hf_curate.runs.shards import ROW, DamagedPartError, Plan
from hf_curate.runs.stored import SCHEMA, load_record
from hf_curate.runs.work import Batch, Pool, Scoring, Shard, in_turn
from hf_curate.scored import numbers
from hf_curate.scorers.base import Scorer
from hf_curate.scorers.threads import cores, threads_now, with_threads
from hf_curate.sources import public_name

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger("hf_curate")

TOGETHER = 1000
"""Rows that are put beside their scores at a time, at least."""

ENGINE = ("engine", "ray_address")
"""What of `Asked` says where scorers work."""


@dataclass(frozen=True)
class Asked:
    """What a caller asks for beside the rows and the scorer, as `score` takes it.

    recipe: the text of recipe.yaml; None for runs inside others, which the others' recipes make again.
    threads_of_new: what a new run inside another is begun with, where `threads` are not asked for.
    """

    shard_rows: int | None = None
    batch_rows: int | None = None
    workers: int = 1
    threads: int | None = None
    overwrite: bool = False
    source: str | None = None
    recipe: str | None = None
    engine: str = "local"
    ray_address: str | None = None
    threads_of_new: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        given = {"shard_rows": self.shard_rows, "batch_rows": self.batch_rows, "threads": self.threads}
        return {name: size for name, size in given.items() if size is not None}


def score_in_folder(dataset: Dataset, scorer: Any, folder: Path, asked: Asked) -> Dataset:
    """Scores what the folder lacks of the run; returns the whole, as `score` does.

    Raises `CurateError` for a folder that cannot be used and for a disk that is full, and whatever the scorer raises;
    the shards that are finished by then are kept.
    """
    fingerprint, dataset = dataset._fingerprint, plain_rows(dataset)
    features_of(dataset, scorer)  # which checks the columns
    if ROW in scorer.columns:
        raise ScoreError(f"a score column cannot be called {ROW!r}, as the column of row numbers is: rename it.")
    call_if_there(scorer, "expect", dataset)
    digest = table_digest(dataset)
    source = public_name(asked.source)
    check_folder(folder, scorer, digest, asked.overwrite, asked.sizes, source)
    try:
        with writing(shown_name(folder)):
            folder.mkdir(parents=True, exist_ok=True)
    except CurateError as error:
        if not isinstance(error.__cause__, (NotADirectoryError, FileNotFoundError)):
            raise
        why = error.__cause__.strerror
        raise CurateError(
            f"the folder {shown_name(folder)!r} cannot be made ({why}): give another out= (--out)."
        ) from error
    run = RunFolder(folder)
    with run.held():
        check_folder(
            folder, scorer, digest, asked.overwrite, asked.sizes, source
        )  # it may have changed until it was locked
        threads = asked.threads or asked.threads_of_new or max(1, threads_now(scorer) // asked.workers)
        plan = Plan.of(len(dataset), batch_rows_of(scorer, asked.batch_rows), asked.shard_rows, threads)
        _warn_of_crowds(asked, threads)
        begun = run.begin(Begun(plan, record_of(scorer), digest, conditions_of(scorer), source), asked.sizes)
        if asked.recipe is not None:
            run.keep_recipe(asked.recipe)
        try:
            return _Scoring(dataset, scorer, run, begun, asked).whole(fingerprint)
        except BaseException as error:
            with suppress(CurateError):  # a full disk, which is being reported
                run.log(f"stopped: {_named(error)}")
            raise


def _warn_of_crowds(asked: Asked, threads: int) -> None:
    if asked.engine == "local" and asked.workers > 1 and asked.workers * threads > cores():
        logger.warning(
            "%d workers of %d threads on %d cores: they wait for each other, and each holds a model of its own",
            *(asked.workers, threads, cores()),
        )


class _Scoring:
    """One call of `score` on a folder that is locked."""

    def __init__(self, dataset: Dataset, scorer: Any, run: RunFolder, begun: Begun, asked: Asked) -> None:
        self.dataset, self.scorer, self.columns = dataset, scorer, scorer.columns
        self.run, self.begun, self.asked = run, begun, asked
        self.plan, self.parts = begun.plan, run.parts(begun)
        self.made: set[str] = set()  # columns that another scorer has made for this one; they are in its own parts

    def whole(self, fingerprint: str) -> Dataset:
        """The scored dataset, when all of it is in the folder. fingerprint: of the dataset as it was given."""
        done = self._done()
        self._say_how_it_begins(done)
        with with_threads(self.plan.threads, self.scorer):
            with self._keeps_rollouts():
                pool = call_if_there(self.scorer, "complete", self.dataset) or self.dataset
                call_if_there(self.scorer, "prepare", pool)
            features_of(pool, self.scorer)  # the record names the columns that are read, whoever reads them
            self._score(pool, done)
        scored = self._put_together(pool)
        try:
            refuse_none_scored(scored, self.scorer)
        except ScoreError:
            self.parts.clear()  # nothing of it is worth keeping, and other settings may come into the folder
            raise
        self._finish(scored, fingerprint, rewrite=len(done) < self.plan.shards)
        return scored

    # -- what is there ------------------------------------------------------------------------------------------------

    def _done(self) -> dict[int, int]:
        """Finished shard -> rows of it that failed. What is damaged is told, and will be done again."""
        done = {}
        for number in range(self.plan.shards):
            try:
                failed = self.parts.failed(number)
            except DamagedPartError as error:
                rows = self.plan.shard(number)
                self.run.log(f"shard {number} (rows {rows.start} to {rows.stop - 1}) is done again: {error}")
                logger.warning("shard %d of the run %r is scored again: %s", number, self.run.shown, error)
            else:
                if failed is not None:
                    done[number] = failed
        return done

    def _say_how_it_begins(self, done: Mapping[int, int]) -> None:
        plan, now = self.plan, conditions_of(self.scorer)
        name = f"{self.begun.scorer.get('name')} (identity {self.begun.identity[:12]})"
        if not done:
            self.run.log(
                f"begun: {name}, {plan.rows} rows with the sha256 {self.begun.rows_sha256[:12]}, {plan.shards} shards "
                f"of {plan.shard_rows} rows in batches of {plan.batch_rows}"
            )
        else:
            self.run.log(f"goes on: {name}, {len(done)} of {plan.shards} shards are done")
        if done and len(done) < plan.shards:
            logger.info("%d of %d shards of the run %r are done already", len(done), plan.shards, self.run.shown)
            self._tell_of_other_conditions(now)

    def _tell_of_other_conditions(self, now: Mapping[str, str]) -> None:
        before = self.begun.conditions
        others = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if others:
            told = ", ".join(
                f"{name} {before.get(name, 'default')}, now {now.get(name, 'default')}" for name in others
            )
            text = f"goes on under other conditions ({told}): its rows may differ by rounding from a run in one piece"
            self.run.log(text)
            logger.warning("the run %r %s", self.run.shown, text)

    @contextmanager
    def _keeps_rollouts(self) -> Iterator[None]:
        """While this lasts, rollouts that the scorer makes for rows without any are kept as runs inside this one."""
        if not isinstance(self.scorer, Scorer):
            yield
            return

        def keep(rows: Dataset, maker: Scorer) -> Dataset:
            mine = table_digest(rows) == self.begun.rows_sha256
            if mine:
                self.made |= set(maker.columns)
            mine_too = {name: getattr(self.asked, name) for name in ("workers", "threads", "overwrite", *ENGINE)}
            mine_too["threads_of_new"] = self.plan.threads
            asked = Asked(**mine_too, source=self.asked.source if mine else None)
            folder = self.run.path / (ROLLOUTS if mine else VALIDATION_ROLLOUTS)
            return score_in_folder(rows.with_format(None), maker, folder, asked)

        self.scorer.keep = keep
        try:
            yield
        finally:
            self.scorer.keep = None

    def _own_columns(self) -> list[str]:
        """The score columns that are kept in the parts."""
        return [name for name in self.columns if name not in self.made]

    # -- scoring ------------------------------------------------------------------------------------------------------

    def _score(self, pool: Dataset, done: Mapping[int, int]) -> None:
        """Scores the shards that are not done, and keeps each."""
        left = [number for number in range(self.plan.shards) if number not in done]
        if not left:
            return
        scored_rows, failed_before = sum(len(self.plan.shard(number)) for number in done), sum(done.values())
        proven = failed_before < scored_rows
        if isinstance(self.scorer, Scorer) and proven:
            self.scorer.goes_on(scored_rows, failed_before)
        progress = Progress(self.plan.rows, scored_rows, failed_before, what_of(self.begun.scorer))
        try:
            with closing(self._engine(Pool(pool, self.scorer), left, proven)) as events:
                for event in events:
                    if isinstance(event, Batch):
                        self._tell_of(event, progress)
                    else:
                        self._keep(event)
        except ScoreError:
            if progress.failed == progress.done:
                self.parts.clear()  # as above
            raise
        finally:
            progress.close()

    def _engine(self, pool: Pool, left: list[int], proven: bool) -> Generator[Batch | Shard]:
        """What scores the shards that are left. proven: some row has a score already."""
        kept = self._own_columns()
        if self.asked.engine == "ray":
            from hf_curate.runs.ray import on_ray

            address = self.asked.ray_address
            return on_ray(self.scorer, pool, kept, self.plan, left, self.asked.workers, proven, address)
        if self.asked.workers == 1:
            return in_turn(Scoring(self.scorer, pool.features, kept), pool, self.plan, left)
        from hf_curate.runs.workers import workers

        return workers(self.scorer, pool, kept, self.plan, left, self.asked.workers, proven)

    def _tell_of(self, batch: Batch, progress: Progress) -> None:
        progress.add(batch.rows, batch.failed, batch.tokens)
        for note in batch.notes:
            self.run.log(note)

    def _keep(self, shard: Shard) -> None:
        with writing(self.run.shown):
            self.parts.write(shard.number, shard.scores, shard.failed)
        rows = len(self.plan.shard(shard.number))
        self.run.log(f"shard {shard.number}: {rows} rows, {shard.failed} failed")

    # -- the end ------------------------------------------------------------------------------------------------------

    def _put_together(self, pool: Dataset) -> Dataset:
        """The rows with their scores, from the parts; as `map` makes it, with its cache."""
        from datasets import Features

        features, own = Features({**pool.features, **self.columns}), set(self._own_columns())

        def beside(table: pa.Table, indices: list[int]) -> pa.Table:
            import pyarrow as pa

            scores = pa.concat_tables(self.parts.tables(range(indices[0], indices[-1] + 1)))
            progress.add(len(indices))
            return pa.table({name: (scores if name in own else table)[name] for name in features})

        size, progress = self.plan.shard_rows, Progress(self.plan.rows, 0, None, "writing")
        try:
            what = [self.begun.key, self.parts.digest(), repr(features)]
            with writing(self.run.shown), no_bars():
                scored = pool.with_format("arrow").map(
                    beside,
                    with_indices=True,
                    batched=True,
                    batch_size=size * max(1, TOGETHER // size),
                    features=features,
                    new_fingerprint=hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32],
                )
        except DamagedPartError as error:
            raise CurateError(
                f"a shard of the run {self.run.shown!r} was damaged while it went on ({error}): run the same again."
            ) from error
        finally:
            progress.close()
        return scored.with_format(None)

    def _finish(self, scored: Dataset, fingerprint: str, rewrite: bool) -> None:
        """Writes the table and the record, or the record alone where the table is there."""
        scorer = record_of(self.scorer)
        if scorer["identity"] != self.begun.identity:
            self.parts.clear()
            raise CurateError(
                f"the scorer has changed while the run {self.run.shown!r} went on (identity "
                f"{self.begun.identity[:12]}, now {scorer['identity'][:12]}; is its model still being trained?): "
                "its shards are of both, and were removed. Run the same again on a model that stays."
            )
        record = {
            "schema": SCHEMA,
            "source": public_name(self.asked.source),
            "rows": len(scored),
            "fingerprint": fingerprint,
            ROWS_DIGEST: self.begun.rows_sha256,
            "overlap": _overlap(scored, self.scorer),
            "score_columns": list(self.columns),
            "scorer": scorer,
        }
        if rewrite or not self.run.is_whole():
            with no_bars():
                self.run.finish(scored, record)
            self.run.log(f"finished: {len(scored)} rows")
        else:
            self.run.write_record({**record, SCORES_DIGEST: load_record(self.run.path)[SCORES_DIGEST]})
            self.run.log("nothing was left to do")


def _overlap(scored: Dataset, scorer: Any) -> float | None:
    column = getattr(scorer, "column", None)
    return overlap_confound(scored, numbers(scored, column), scorer) if column else None


def _named(error: BaseException) -> str:
    """An error as the log has it: our own with their text, of others the name alone, as their texts may hold paths."""
    if isinstance(error, CurateError):
        return f"{type(error).__name__}: {error}"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
