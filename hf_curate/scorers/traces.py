"""Reads rows as tokenised reasoning traces: columns, rendering, spans. Shared by the scorers of traces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_curate.batches import Example, encode
from hf_curate.errors import RowError
from hf_curate.rows import Columns, detect_columns, prompt_key, read_trace
from hf_curate.scorers.reading import Reader, is_list, said_batch
from hf_curate.steps import Splitter, check_splitter
from hf_curate.weights import ModelSource


@dataclass
class TraceReader(Reader[Columns]):
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
        self._check_limit()

    def _detect(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> Columns:
        return detect_columns(names, first_row, **self.asked)

    def reads(self, names: Sequence[str]) -> list[str]:
        """The columns that hold prompt, trace, answer and steps; those called so are read even where others are."""
        found = detect_columns(names, None, **self.asked)  # by name only: no value is looked at
        roles = (found.messages, found.prompt, found.completion, found.answer, found.steps, "answer", "steps")
        return [name for name in names if name in roles]

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """Whether every column holds a list of rows. `Dataset.map` says it by the mapping's type; in a plain mapping
        a row's chat messages are a list of dicts, so look one level deeper."""
        if (said := said_batch(rows)) is not None:
            return said
        names = list(rows)
        if not names or not all(is_list(rows[name]) for name in names):
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
        return {"split_steps": splitter_name(self.split), **super().settings()}


def splitter_name(split: Splitter) -> str:
    """A name or regex as it is; a function by its qualified name and a hash of its code."""
    if isinstance(split, str):
        return split
    if isinstance(split, re.Pattern):
        return f"regex {split.pattern!r} flags={int(split.flags)}"
    from datasets.fingerprint import Hasher

    name = f"{getattr(split, '__module__', '?')}.{getattr(split, '__qualname__', type(split).__name__)}"
    return f"{name}#{Hasher.hash(split)}"
