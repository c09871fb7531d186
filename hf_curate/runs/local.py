"""score(): a whole dataset in this process, with typed features, a progress bar and an account of the failures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hf_curate.errors import CurateError, ScoreError
from hf_curate.runs.calling import AnyScorer, batch_rows_of, call_if_there, features_of, plain_rows, what_of
from hf_curate.runs.failures import failed_rows, refuse_none_scored, tell
from hf_curate.runs.folder import check_folder, shown_name
from hf_curate.runs.replay import of_call
from hf_curate.runs.resumable import Asked, score_in_folder
from hf_curate.runs.spool import read_once
from hf_curate.runs.stored import RECORD_FILE, SCHEMA, SCORES_FILE, Run, load_record, load_run

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = [
    "RECORD_FILE",
    "SCHEMA",
    "SCORES_FILE",
    "AnyScorer",
    "Run",
    "check_folder",
    "failed_rows",
    "load_record",
    "load_run",
    "score",
]


def score(
    dataset: Dataset | IterableDataset,
    scorer: AnyScorer,
    *,
    out: str | Path | None = None,
    shard_rows: int | None = None,
    workers: int = 1,
    threads: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    source: str | None = None,
    batch_rows: int | None = None,
    dry_run: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    recipe: str | None = None,
) -> Dataset:
    """Scores every row of a dataset.

    Args:
        dataset: the pool; all its columns are kept. An `IterableDataset` is read once, into `out`, in the memory of
            1,000 rows, and then scored from there like any other; an endless one needs its `.take(n)`. The same call
            again takes the rows that are there if types and the first 256 rows are the same.
        scorer: one of ours, or any callable on batches with `.columns` (the Features it adds), `.identity`,
            `.record()`.
        out: a folder for the run, which is then kept shard by shard: the same call again goes on where it was
            stopped, and gives what it would have given in one piece. It ends up with the scored rows
            (`scored.parquet`), the scorer's record (`run.json`) and the recipe that replays it (`recipe.yaml`), as
            `hf-curate score` writes them. None: the scores are in the `datasets` cache alone, as with `map`, when all
            are done.
        shard_rows: rows of a shard, the most that a stop loses. None: one batch of the scorer's, or more where there
            would be over 10,000 shards.
        workers: processes that score, one device each; with `out` alone. One that dies is replaced, and what it was
            at is tried again; rows that kill three of them have nulls and the reason. 1: this process scores.
        threads: of the CPU, for each process that scores. None: as many as torch has, divided between the workers; a
            run that goes on keeps those it was begun with, as sums depend on how they are split. With equal `threads`
            and `shard_rows` any number of workers gives the same bits.
        overwrite: replace a run of other settings or rows in `out`. One of the same goes on all the same; a stream is
            read again for it.
        strict: an error at the end if any row has no score; the others are kept.
        source: where the rows came from ("org/name@revision:config/split"), recorded in `out` for `hf-curate select`.
        batch_rows: rows read at a time; rows of similar length are batched within them. None: 256, and 16 for the
            scorers of policy gradients.
        dry_run: score a probe of a few hundred random rows instead, print what the run would take (time, tokens, disk
            space) and the card of a selection, and return the probe's scored rows. Nothing is written to `out`.
        engine: "local": the workers are processes of this machine. "ray": they are actors on a Ray cluster
            (`pip install 'hf_curate[ray]'`), and this process keeps what they find; with `out` alone. With equal
            `threads`, on CPUs of one kind, both give the same bits.
        ray_address: of the cluster, "host:port" or "auto". None: the one that this process is connected to, else the
            one that RAY_ADDRESS names, else one of this machine that ends with the call.
        recipe: the text of `recipe.yaml`, where a command knows what was typed. None: what this call can be replayed
            by, or comments on what no recipe can hold of it (a live model, a function, a dataset without a source).

    Returns:
        The dataset with the scorer's columns, typed. Rows that cannot be scored have nulls and a reason.

    Raises:
        ScoreError: the dataset is empty, or no row could be scored, or, with `strict`, some could not.
        CurateError: `out` holds something else, is in use by another process, or cannot be written.
    """
    from datasets import Dataset, IterableDataset

    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise ScoreError(
            f"score() takes a datasets.Dataset or IterableDataset, this is a {type(dataset).__name__}. One split of a "
            "DatasetDict: score(dataset['train'], ...)."
        )
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ScoreError("the dataset is empty: there is nothing to score.")
    _check_sizes({"batch_rows": batch_rows, "shard_rows": shard_rows, "workers": workers, "threads": threads})
    _check_engine(engine, ray_address, scorer)
    if workers > 1 and ":" in (device := str(getattr(scorer, "device", None))):
        raise ScoreError(
            f"workers={workers} would all be on device={device!r}: leave the number after the colon away."
        )
    folder = None if out is None else Path(out).expanduser()
    streamed = isinstance(dataset, IterableDataset)
    if dry_run:
        from hf_curate.runs.probe import told

        return told(dataset, scorer, folder, shard_rows, batch_rows, source, workers, strict)
    if isinstance(dataset, IterableDataset):
        if folder is None:
            raise ScoreError(
                "score() reads a stream once, into the folder of its run: give it one, out='runs/NAME'. Without a "
                "folder nothing is kept: stream.map(scorer, batched=True)."
            )
        dataset = read_once(dataset, folder, source=source, scorer=scorer, overwrite=overwrite)
    if folder is not None:
        said = {"source": source, "out": str(out), "shard_rows": shard_rows, "threads": threads, "strict": strict}
        said |= {"workers": None if workers == 1 else workers, "streaming": streamed}
        said |= {"engine": None if engine == "local" else engine, "ray_address": ray_address}
        recipe = recipe or of_call(scorer, {**said, "batch_rows": batch_rows})
        asked = Asked(shard_rows, batch_rows, workers, threads, overwrite, source, recipe, engine, ray_address)
        scored = score_in_folder(dataset, scorer, folder, asked)
    else:
        kept = {"shard_rows": shard_rows, "workers": workers, "threads": threads, "engine": engine}
        for name, given in kept.items():
            if given not in (None, {"workers": 1, "engine": "local"}.get(name)):
                raise ScoreError(f"{name}={given!r} is for runs that are kept in a folder: give out=, or drop it.")
        scored = _mapped(dataset, scorer, batch_rows)
    tell(refuse_none_scored(scored, scorer), len(scored), strict, None if folder is None else shown_name(folder))
    return scored


def _check_sizes(sizes: Mapping[str, int | None]) -> None:
    """Raises CurateError for sizes that are none."""
    for name, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CurateError(f"{name}={value!r} must be a whole number from 1 on.")


def _check_engine(engine: str, ray_address: str | None, scorer: AnyScorer) -> None:
    """Raises CurateError for an engine that there is none of, that is not installed, or that has no such device."""
    if engine == "ray":
        from hf_curate.runs.ray_cluster import check_address, check_device

        check_address(ray_address)
        check_device(scorer)
    elif engine != "local":
        raise CurateError(f"engine={engine!r} is none: 'local' or 'ray'.")
    elif ray_address is not None:
        raise CurateError(f"ray_address={ray_address!r} is for engine='ray', and this is engine='local': give both.")


def _mapped(dataset: Dataset, scorer: AnyScorer, batch_rows: int | None) -> Dataset:
    features = features_of(dataset, scorer)
    call_if_there(scorer, "expect", dataset)
    dataset = call_if_there(scorer, "complete", dataset) or dataset
    call_if_there(scorer, "prepare", dataset)
    return plain_rows(dataset).map(
        scorer,
        batched=True,
        batch_size=batch_rows_of(scorer, batch_rows),
        features=features,
        desc=what_of(scorer.record()),
    )
