"""What the readers of traces and of rollouts share: the tokenizer, the longest row, the columns that were found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from hf_curate.errors import CurateError, ModelError
from hf_curate.groups import GroupColumns, PromptColumns
from hf_curate.models import load_tokenizer
from hf_curate.rows import Columns
from hf_curate.weights import ModelSource, batch_dependent_rope, context_length, load_config, tokenizer_digest

Found = TypeVar("Found", Columns, GroupColumns, PromptColumns)


class Reader(ABC, Generic[Found]):
    """Base of the readers, which are dataclasses with these fields.

    asked: column names that the caller gave, by role, None where not given; tokenizer_asked, max_length_asked: as
    given to the scorer, None for the model's own.
    """

    source: ModelSource
    asked: dict[str, str | None]
    tokenizer_asked: Any
    max_length_asked: int | None
    _tokenizer: Any
    _limit: tuple[int | None] | None
    _found: dict[tuple[str, ...], Found]
    _latest: Found | None

    @abstractmethod
    def _detect(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> Found:
        """The columns to read, under the names that were asked for."""

    def _check_limit(self) -> None:
        if self.max_length_asked is not None and self.max_length_asked < 2:
            raise CurateError(
                f"max_length={self.max_length_asked} leaves no room for a prediction: give 2 tokens or more."
            )

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.source, self.tokenizer_asked)
        return self._tokenizer

    @property
    def max_length(self) -> int | None:
        """Tokens a row may have: what was asked for, else the model's context, else no limit."""
        if self._limit is None:
            config = load_config(self.source)
            context, asked, rope = context_length(config), self.max_length_asked, batch_dependent_rope(config)
            if asked is not None and context is not None and asked > context and rope:
                raise ModelError(
                    f"max_length={asked}, but beyond {context} tokens the {rope!r} rotary tables of this model depend "
                    f"on the longest row of the batch, and scores must not: give at most {context}."
                )
            self._limit = (context if asked is None else asked,)
        return self._limit[0]

    def columns_of(self, names: Sequence[str], first_row: Mapping[str, Any] | None = None) -> Found:
        """The columns to read; detected once for each set of names."""
        key = tuple(names)
        if key not in self._found:
            self._found[key] = self._detect(names, first_row)
        self._latest = self._found[key]
        return self._latest

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around rows of another dataset, whose columns are not those that the record speaks of."""
        latest = self._latest
        try:
            yield
        finally:
            self._latest = latest

    def settings(self) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "columns": dict(self.asked),
            "tokenizer_sha256": tokenizer_digest(self.tokenizer),
        }

    def record(self) -> dict[str, Any]:
        """The settings with the columns that were found in place of those asked for."""
        found = {} if self._latest is None else {"columns": self._latest.record()}
        return {**self.settings(), **found}


def said_batch(rows: Mapping[str, Any]) -> bool | None:
    """What `Dataset.map` says by the mapping's type: a batch or a row; None for a plain mapping."""
    from datasets.formatting.formatting import LazyBatch, LazyRow

    return isinstance(rows, LazyBatch) if isinstance(rows, (LazyRow, LazyBatch)) else None


def is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, Mapping))
