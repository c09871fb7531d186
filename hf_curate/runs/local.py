"""score(): a whole dataset in this process, with typed features, a progress bar and an account of the failures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_curate.errors import ScoreError
from hf_curate.runs.calling import AnyScorer, batch_rows_of, call_if_there, features_of, plain_rows, what_of
from hf_curate.runs.failures import failed_rows, refuse_none_scored, tell
from hf_curate.runs.folder import check_folder, shown_name
from hf_curate.runs.replay import of_call
from hf_curate.runs.resumable import Asked, score_in_folder
from hf_curate.runs.shards import Plan
from hf_curate.runs.stored import RECORD_FILE, SCHEMA, SCORES_FILE, Run, load_record, load_run

if TYPE_CHECKING:
    from datasets import Dataset

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
    dataset: Dataset,
    scorer: AnyScorer,
    *,
    out: str | Path | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    source: str | None = None,
    batch_rows: int | None = None,
    recipe: str | None = None,
) -> Dataset:
    """Scores every row of a map-style dataset, in this process.

    Args:
        dataset: the pool; all its columns are kept.
        scorer: one of ours, or any callable on batches with `.columns` (the Features it adds), `.identity`,
            `.record()`.
        out: a folder for the run, which is then kept shard by shard: the same call again goes on where it was
            stopped, and gives what it would have given in one piece. It ends up with the scored rows
            (`scored.parquet`), the scorer's record (`run.json`) and the recipe that replays it (`recipe.yaml`), as
            `hf-curate score` writes them. None: the scores are in the `datasets` cache alone, as with `map`, when all
            are done.
        shard_rows: rows of a shard, the most that a stop loses. None: one batch of the scorer's, or more where there
            would be over 10,000 shards.
        overwrite: replace a run of other settings or rows in `out`. One of the same goes on all the same.
        strict: an error at the end if any row has no score; the others are kept.
        source: where the rows came from ("org/name@revision:config/split"), recorded in `out` for `hf-curate select`.
        batch_rows: rows read at a time; rows of similar length are batched within them. None: 256, and 16 for the
            scorers of policy gradients.
        recipe: the text of `recipe.yaml`, where a command knows what was typed. None: what this call can be replayed
            by, or comments on what no recipe can hold of it (a live model, a function, a dataset without a source).

    Returns:
        The dataset with the scorer's columns, typed. Rows that cannot be scored have nulls and a reason.

    Raises:
        ScoreError: the dataset is empty, or no row could be scored, or, with `strict`, some could not.
        CurateError: `out` holds something else, is in use by another process, or cannot be written.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ScoreError(
            f"score() takes a datasets.Dataset, this is a {type(dataset).__name__}. One split of a DatasetDict: "
            "score(dataset['train'], ...); an IterableDataset: dataset.map(scorer, batched=True)."
        )
    if not len(dataset):
        raise ScoreError("the dataset is empty: there is nothing to score.")
    Plan.of(len(dataset), batch_rows_of(scorer, batch_rows), shard_rows)  # refuses sizes that are none
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        said = {"source": source, "out": str(out), "shard_rows": shard_rows, "strict": strict}
        recipe = recipe or of_call(scorer, {**said, "batch_rows": batch_rows})
        asked = Asked(shard_rows, batch_rows, overwrite, source, recipe)
        scored = score_in_folder(dataset, scorer, folder, asked)
    elif shard_rows is not None:
        raise ScoreError(f"shard_rows={shard_rows} is for runs that are kept in a folder: give out=, or drop it.")
    else:
        scored = _mapped(dataset, scorer, batch_rows)
    tell(refuse_none_scored(scored, scorer), len(scored), strict, None if folder is None else shown_name(folder))
    return scored


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
