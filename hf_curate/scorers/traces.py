"""Reads rows as tokenised reasoning traces: columns, rendering, spans. Shared by the scorers of traces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_curate.batches import Example, encode
from hf_curate.errors import CurateError, ModelError, RowError
from hf_curate.models import load_tokenizer
from hf_curate.rows import Columns, detect_columns, prompt_key, read_trace
from hf_curate.steps import Splitter, check_splitter
from hf_curate.weights import (
    ModelSource,
    batch_dependent_rope,
    context_length,
    load_config,
    tokenizer_digest,
)


@dataclass
class TraceReader:
    """From a dataset row to an `Example` under one tokenizer.

    asked: column names that the caller gave, by role (prompt, completion, answer, steps, messages), None where not
        given.
    """

    source: ModelSource
    asked: dict[str, str | None]
    split: Splitter = "auto"
    tokenizer_asked: Any = None
    max_length_asked: int | None = None
    _tokenizer: Any = field(default=None, repr=False)
    _limit: tuple[int | None] | None = None
    _found: dict[tuple[str, ...], Columns] = field(default_factory=dict)
    _latest: Columns | None = None

    def __post_init__(self) -> None:
        check_splitter(self.split)
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

    def columns_of(self, names: Sequence[str], first_row: Mapping[str, Any] | None = None) -> Columns:
        """The columns to read; detected once for each set of names."""
        key = tuple(names)
        if key not in self._found:
            self._found[key] = detect_columns(names, first_row, **self.asked)
        self._latest = self._found[key]
        return self._latest

    def reads(self, names: Sequence[str]) -> list[str]:
        """The columns that hold prompt, trace, answer and steps; those called so are read even where others are."""
        found = detect_columns(names, None, **self.asked)  # by name only: no value is looked at
        roles = (found.messages, found.prompt, found.completion, found.answer, found.steps, "answer", "steps")
        return [name for name in names if name in roles]

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """Whether every column holds a list of rows. `Dataset.map` says it by the mapping's type; in a plain mapping
        a row's chat messages are a list of dicts, so look one level deeper."""
        from datasets.formatting.formatting import LazyBatch, LazyRow

        if isinstance(rows, (LazyRow, LazyBatch)):
            return isinstance(rows, LazyBatch)
        names = list(rows)
        if not names or not all(_is_list(rows[name]) for name in names):
            return False
        columns = detect_columns(names, None, **self.asked)  # by name only: the first value may be a whole column
        value = rows[columns.messages or columns.prompt or columns.completion or names[0]]
        if not len(value):  # a row with an empty chat, or no rows at all
            return columns.messages is None and not any(len(rows[name]) for name in names)
        return not any(isinstance(item, Mapping) for item in value)

    def read(self, row: Mapping[str, Any]) -> Example | RowError:
        """The row as tokens, or the reason why it cannot be scored."""
        try:
            trace = read_trace(row, self.columns_of(list(row), row))
            return encode(trace, self.tokenizer, split=self.split, max_length=self.max_length)
        except RowError as error:
            return error

    def prompt_key(self, row: Mapping[str, Any]) -> str:
        return prompt_key(row, self.columns_of(list(row), row))

    def settings(self) -> dict[str, Any]:
        return {
            "split_steps": splitter_name(self.split),
            "max_length": self.max_length,
            "columns": dict(self.asked),
            "tokenizer_sha256": tokenizer_digest(self.tokenizer),
        }

    def record(self) -> dict[str, Any]:
        """The settings with the columns that were found in place of those asked for."""
        found = {} if self._latest is None else {"columns": self._latest.record()}
        return {**self.settings(), **found}


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, Mapping))


def splitter_name(split: Splitter) -> str:
    """A name or regex as it is; a function by its qualified name and a hash of its code."""
    if isinstance(split, str):
        return split
    if isinstance(split, re.Pattern):
        return f"regex {split.pattern!r} flags={int(split.flags)}"
    from datasets.fingerprint import Hasher

    name = f"{getattr(split, '__module__', '?')}.{getattr(split, '__qualname__', type(split).__name__)}"
    return f"{name}#{Hasher.hash(split)}"
