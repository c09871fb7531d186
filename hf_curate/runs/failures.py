"""Rows without a score: how many, why, and when they are an error."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_curate.errors import ScoreError
from hf_curate.scored import column_of
from hf_curate.scorers.base import all_failed, reasons_of

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("hf_curate")

TOGETHER = 10_000
"""Rows whose reasons are in memory at a time; reasons may all differ."""


def error_column(scorer: Any) -> str | None:
    """The column that says why a row has no score: the last of its kind, as rollouts bring their own before it."""
    return next((name for name in reversed(list(scorer.columns)) if name.endswith("_error")), None)


def failed_rows(scored: Dataset, scorer: Any) -> Counter[str]:
    """Reason -> rows, from the scorer's error column; each kind of failure in the words of its first row."""
    import pyarrow.compute as pc

    column, counts, words = error_column(scorer), Counter(), {}
    if column is None:
        return counts
    if column not in scored.column_names:
        column_of(scored, column)  # which raises
    rows = scored.select_columns([column]).with_format("arrow")
    for table in rows.iter(batch_size=TOGETHER):
        for found in pc.value_counts(table[column]).to_pylist():  # type: ignore[attr-defined]
            reason, count = found["values"], found["counts"]
            if reason:
                counts[words.setdefault(reason.partition(":")[0], reason)] += count
    return counts


def failed_in(found: Mapping[str, Any], scorer: Any) -> int:
    """Rows without a score in what a scorer gave for a batch."""
    column = error_column(scorer)
    return 0 if column is None else sum(bool(reason) for reason in found[column])


def refuse_none_scored(scored: Dataset, scorer: Any) -> Counter[str]:
    """The failures by reason. ScoreError: there is no other row."""
    failures = failed_rows(scored, scorer)
    if sum(failures.values()) == len(scored):
        raise ScoreError(all_failed(len(scored), failures, "Look at one row: hf-curate inspect SOURCE --rows 3."))
    return failures


def tell(failures: Counter[str], rows: int, strict: bool, folder: str | None) -> None:
    """Logs how many rows have no score, and why. ScoreError: with `strict` this is an error; the rows stay in the
    folder, where there is one."""
    if not failures:
        return
    failed, reasons = sum(failures.values()), reasons_of(failures)
    if strict:
        kept = "" if folder is None else f" (all rows are kept in {folder!r})"
        raise ScoreError(f"{failed:,} of {rows:,} rows have no score, and strict=True asks for all{kept}:\n{reasons}")
    logger.info("%d of %d rows have no score:\n%s", failed, rows, reasons)
