"""How a scorer is called: what it is told of the pool, rows in batches as `map` makes them, and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from hf_curate.errors import ScoreError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

BATCH_ROWS = 256
PACKAGES = ("hf_curate", "torch", "transformers")


class AnyScorer(Protocol):
    """What `score` and `select` need of a scorer: a callable on rows or batches with these three."""

    @property
    def columns(self) -> Features: ...
    @property
    def identity(self) -> str: ...
    def record(self) -> dict[str, Any]: ...
    def __call__(self, rows: Any, /) -> Any: ...


def as_table(found: Any, columns: Features, rows: range) -> pa.Table:
    """What a scorer gave for a batch as a table of its columns. ScoreError: it is no such thing."""
    import pyarrow as pa

    if not isinstance(found, Mapping):
        raise ScoreError(f"the scorer gave a {type(found).__name__} for a batch, and score() needs a dict of columns.")
    if set(found) != set(columns):
        raise ScoreError(
            f"the scorer gave the columns {', '.join(map(str, found)) or 'none'}, and its .columns are "
            f"{', '.join(columns)}: both must be the same."
        )
    for name in columns:
        if not hasattr(found[name], "__len__") or len(found[name]) != len(rows):
            count = f"{len(found[name]):,} values" if hasattr(found[name], "__len__") else type(found[name]).__name__
            raise ScoreError(f"the scorer gave {count} of {name!r} for a batch of {len(rows):,} rows.")
    try:
        return pa.table(columns.encode_batch(dict(found)), schema=columns.arrow_schema)
    except (pa.ArrowException, TypeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        where = f"rows {rows.start} to {rows.stop - 1}"
        raise ScoreError(f"what the scorer gave for {where} does not fit its .columns: {why}") from error


def plain_rows(dataset: Dataset) -> Dataset:
    """The dataset without a format: scorers read plain values, not tensors or frames."""
    return dataset if dataset.format["type"] is None else dataset.with_format(None)


def features_of(dataset: Dataset, scorer: Any) -> Features:
    """The features of the scored dataset; checks the columns that the scorer reads on the way."""
    from datasets import Features

    make = getattr(scorer, "features", None)
    return make(dataset) if make is not None else Features({**dataset.features, **scorer.columns})


def record_of(scorer: Any) -> dict[str, Any]:
    """A scorer's record as it comes back from JSON, with its name, its identity and the column to rank by.

    ScoreError: it cannot be written as JSON, or does not say which column that is.
    """
    try:
        said = json.loads(json.dumps(scorer.record()))
    except (TypeError, ValueError) as error:
        raise ScoreError(f"the scorer's record() cannot be written as JSON: {error}.") from error
    column = said.get("column", getattr(scorer, "column", None))
    if column not in scorer.columns:
        raise ScoreError(
            f"the column to rank by is {column!r}, and the scorer's .columns are {', '.join(scorer.columns)}: give it "
            "a .column, or its record() a 'column', that is one of them."
        )
    return {"name": type(scorer).__name__, **said, "column": column, "identity": scorer.identity}


def batch_rows_of(scorer: Any, asked: int | None) -> int:
    return getattr(scorer, "batch_rows", BATCH_ROWS) if asked is None else asked


def what_of(record: Mapping[str, Any]) -> str:
    """What a bar calls the work of a scorer with this record: "scoring (GRACE, representation)", "making rollouts"."""
    if isinstance(record.get("verifier"), Mapping):
        return "making rollouts"
    parts = (record.get("name"), (record.get("settings") or {}).get("proxy"))
    return f"scoring ({', '.join(str(part) for part in parts if part) or 'score'})"


def call_if_there(scorer: Any, method: str, dataset: Dataset) -> Any:
    """`expect`, `complete` and `prepare` are for scorers that need the whole pool; other callables need not have
    them."""
    found = getattr(scorer, method, None)
    return None if found is None else found(dataset)


def conditions_of(scorer: Any) -> dict[str, str]:
    """What changes no score but by rounding, and a run is known to be bit for bit the same under."""
    found = {}
    for name in ("device", "batch_tokens"):
        if (value := getattr(scorer, name, None)) is not None:
            found[name] = str(value)
    return {**found, **packages()}


def packages() -> dict[str, str]:
    """The versions of what computes scores."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
