"""score(): a whole dataset in this process, with typed features, a progress bar and an account of the failures."""

from __future__ import annotations

import glob
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_curate.comparisons import overlap_confound
from hf_curate.errors import CurateError, ScoreError
from hf_curate.scored import numbers
from hf_curate.scorers.base import all_failed, reasons_of
from hf_curate.sources import public_name

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger("hf_curate")

SCHEMA = "hf_curate/run/1"
BATCH_ROWS = 256
RECORD_FILE = "run.json"
SCORES_FILE = "scored.parquet"


class AnyScorer(Protocol):
    """What `score` and `select` need of a scorer: a callable on rows or batches with these three."""

    @property
    def columns(self) -> Features: ...
    @property
    def identity(self) -> str: ...
    def record(self) -> dict[str, Any]: ...
    def __call__(self, rows: Any, /) -> Any: ...


def score(
    dataset: Dataset,
    scorer: AnyScorer,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    source: str | None = None,
    batch_rows: int | None = None,
) -> Dataset:
    """Scores every row of a map-style dataset, in this process.

    Args:
        dataset: the pool; all its columns are kept.
        scorer: one of ours, or any callable on batches with `.columns` (the Features it adds), `.identity`,
            `.record()`.
        out: a folder for the scored rows (`scored.parquet`) and the scorer's record (`run.json`), as `hf-curate
            score` writes them. The scores are also in the `datasets` cache, as with `map`.
        overwrite: replace a run of other settings in `out`.
        source: where the rows came from ("org/name@revision:config/split"), recorded in `out` for `hf-curate select`.
        batch_rows: rows read at a time; rows of similar length are batched within them. None: 256, and 16 for the
            scorers of policy gradients.

    Returns:
        The dataset with the scorer's columns, typed. Rows that cannot be scored have nulls and a reason.

    Raises:
        ScoreError: the dataset is empty, or no row could be scored.
    """
    from datasets import Dataset, Features

    if not isinstance(dataset, Dataset):
        raise ScoreError(
            f"score() takes a datasets.Dataset, this is a {type(dataset).__name__}. One split of a DatasetDict: "
            "score(dataset['train'], ...); an IterableDataset: dataset.map(scorer, batched=True)."
        )
    if not len(dataset):
        raise ScoreError("the dataset is empty: there is nothing to score.")
    fingerprint = dataset._fingerprint
    make = getattr(scorer, "features", None)
    features = make(dataset) if make is not None else Features({**dataset.features, **scorer.columns})
    _call_if_there(scorer, "expect", dataset)
    if out is not None:
        check_folder(Path(out), scorer, fingerprint, overwrite)
    dataset = _call_if_there(scorer, "complete", dataset) or dataset
    _call_if_there(scorer, "prepare", dataset)
    record = scorer.record()
    name = ", ".join(str(part) for part in (record.get("name"), (record.get("settings") or {}).get("proxy")) if part)
    if dataset.format["type"] is not None:  # scorers read plain values, not tensors or frames
        dataset = dataset.with_format(None)
    scored = dataset.map(
        scorer,
        batched=True,
        batch_size=batch_rows or getattr(scorer, "batch_rows", BATCH_ROWS),
        features=features,
        desc=f"scoring ({name or 'score'})",
    )
    failures = failed_rows(scored, scorer)
    if sum(failures.values()) == len(scored):
        raise ScoreError(all_failed(len(scored), failures, "Look at one row: hf-curate inspect SOURCE --rows 3."))
    if failures:
        logger.info("%d of %d rows have no score:\n%s", sum(failures.values()), len(scored), reasons_of(failures))
    if out is not None:
        _write(Path(out), scored, scorer, source, fingerprint)
    return scored


def _call_if_there(scorer: AnyScorer, method: str, dataset: Dataset) -> Any:
    """`expect`, `complete` and `prepare` are for scorers that need the whole pool; other callables need not have
    them."""
    found = getattr(scorer, method, None)
    return None if found is None else found(dataset)


def failed_rows(scored: Dataset, scorer: AnyScorer) -> Counter[str]:
    """Reason -> rows, from the scorer's error column."""
    column = next((name for name in scorer.columns if name.endswith("_error")), None)
    if column is None:
        return Counter()
    return Counter(reason for reason in scored.with_format("arrow")[column].to_pylist() if reason)


def _overlap(scored: Dataset, scorer: AnyScorer) -> float | None:
    column = getattr(scorer, "column", None)
    return overlap_confound(scored, numbers(scored, column), scorer) if column else None


def check_folder(folder: Path, scorer: AnyScorer, fingerprint: str, overwrite: bool) -> None:
    """The folder is new, empty, or holds a run of the same scorer (or of another one that may be replaced)."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CurateError(f"{folder.name!r} is a file, and out= takes a folder: give the run its own folder.")
    names = {path.name for path in folder.iterdir()} - {f".{SCORES_FILE}", f".{RECORD_FILE}"}  # of a run that died
    if not names:
        return
    if names == {SCORES_FILE}:
        if not overwrite:
            raise CurateError(
                f"the folder {folder.name!r} holds {SCORES_FILE} and no {RECORD_FILE} (a run that died?): give "
                "another folder, or overwrite=True (--overwrite)."
            )
        return
    if RECORD_FILE not in names:
        raise CurateError(
            f"the folder {folder.name!r} holds other files and no {RECORD_FILE}: give the run its own folder."
        )
    if overwrite:
        return
    try:
        stored = load_record(folder)
        before, rows = stored["scorer"]["identity"], stored.get("fingerprint")
    except CurateError:
        before, rows = "not readable", None
    if before != scorer.identity:
        raise CurateError(
            f"the folder {folder.name!r} holds a run of another scorer or other settings (identity "
            f"{str(before)[:12]}, now {scorer.identity[:12]}): give another folder, or overwrite=True (--overwrite)."
        )
    if rows != fingerprint:
        raise CurateError(
            f"the folder {folder.name!r} holds a run over another dataset (fingerprint {rows}, now {fingerprint}): "
            "give another folder, or overwrite=True (--overwrite)."
        )


def _write(folder: Path, scored: Dataset, scorer: AnyScorer, source: str | None, fingerprint: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{SCORES_FILE}"
    scored.to_parquet(unfinished)
    record = {
        "schema": SCHEMA,
        "source": public_name(source),
        "rows": len(scored),
        "fingerprint": fingerprint,
        "overlap": _overlap(scored, scorer),
        "score_columns": list(scorer.columns),
        "scorer": scorer.record(),
    }
    (folder / f".{RECORD_FILE}").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / RECORD_FILE).unlink(missing_ok=True)  # so that no record stands beside another scorer's numbers
    unfinished.replace(folder / SCORES_FILE)
    (folder / f".{RECORD_FILE}").replace(folder / RECORD_FILE)


@dataclass(frozen=True)
class Run:
    """A finished run read back from its folder. Stands in for the scorer in `select(run.dataset, run, ...)`."""

    dataset: Dataset
    stored: dict[str, Any]

    @property
    def source(self) -> str | None:
        return self.stored["source"]

    @property
    def fingerprint(self) -> str | None:
        """Of the dataset that was scored."""
        return self.stored.get("fingerprint")

    @property
    def overlap(self) -> float | None:
        """Spearman of the score with the token overlap of steps and answer, measured when the run was scored."""
        return self.stored.get("overlap")

    @property
    def columns(self) -> Features:
        from datasets import Features

        return Features({name: self.dataset.features[name] for name in self.stored["score_columns"]})

    @property
    def column(self) -> str:
        return self.stored["scorer"]["column"]

    @property
    def identity(self) -> str:
        return self.stored["scorer"]["identity"]

    def record(self) -> dict[str, Any]:
        return self.stored["scorer"]

    def __call__(self, rows: Any) -> Any:
        raise CurateError("a stored run cannot score rows: build the scorer again.")


def load_run(folder: str | Path) -> Run:
    """Reads what `score(..., out=folder)` wrote."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    path = Path(folder).expanduser()
    stored = load_record(path)
    try:
        dataset = load_dataset("parquet", data_files=glob.escape(str(path / SCORES_FILE)), split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise CurateError(
            f"{SCORES_FILE} of the run {path.name!r} cannot be read ({type(error).__name__}): score again with "
            "overwrite=True (--overwrite)."
        ) from error
    lacking = [name for name in stored["score_columns"] if name not in dataset.column_names]  # type: ignore[union-attr]
    if stored["rows"] != len(dataset) or lacking:  # type: ignore[arg-type]
        raise CurateError(
            f"{RECORD_FILE} of the run {path.name!r} speaks of {stored['rows']!r} rows with the columns "
            f"{', '.join(stored['score_columns'])}, and {SCORES_FILE} has {len(dataset):,} rows"  # type: ignore[arg-type]
            + (f" without {', '.join(lacking)}" if lacking else "")
            + ": score again with overwrite=True (--overwrite)."
        )
    return Run(dataset, stored)  # type: ignore[arg-type]


def load_record(folder: Path) -> dict[str, Any]:
    """What run.json holds, checked for what this room relies on."""
    try:
        stored = json.loads((folder / RECORD_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CurateError(
            f"{folder.name!r} is not a run folder: its {RECORD_FILE} cannot be read ({type(error).__name__}). "
            "Make one: score(..., out=) or hf-curate score --out."
        ) from error
    schema = stored.get("schema") if isinstance(stored, dict) else None
    if schema != SCHEMA:
        raise CurateError(
            f"{folder.name}/{RECORD_FILE} has the schema {str(schema)[:60]!r}; this version reads {SCHEMA!r}."
        )
    scorer, columns, source = stored.get("scorer"), stored.get("score_columns"), stored.get("source")
    whole = isinstance(scorer, dict) and all(
        isinstance(scorer.get(key), str) for key in ("name", "column", "identity")
    )
    whole = whole and isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not whole or not isinstance(source, str | None):
        raise CurateError(
            f"{folder.name}/{RECORD_FILE} is not complete: score again with overwrite=True (--overwrite)."
        )
    return stored
