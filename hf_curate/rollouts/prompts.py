"""Reads rows as problems: the prompt as tokens, before there is any response to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_curate.chat import Messages
from hf_curate.errors import RowError
from hf_curate.groups import PromptColumns, detect_prompt_columns, read_problem
from hf_curate.scorers.groups import prompt_tokens
from hf_curate.scorers.reading import Reader, is_list, said_batch
from hf_curate.weights import ModelSource


@dataclass(frozen=True)
class Problem:
    """One prompt. asked: as the row holds it; text: rendered; ids: its tokens, at least one."""

    asked: str | Messages
    text: str
    ids: list[int]


@dataclass
class PromptReader(Reader[PromptColumns]):
    """From a dataset row to a `Problem` under one tokenizer.

    asked: column names that the caller gave, by role (prompt, messages), None where not given.
    """

    source: ModelSource
    asked: dict[str, str | None]
    tokenizer_asked: Any = None
    max_length_asked: int | None = None
    _tokenizer: Any = field(default=None, repr=False)
    _limit: tuple[int | None] | None = None
    _found: dict[tuple[str, ...], PromptColumns] = field(default_factory=dict)
    _latest: PromptColumns | None = None

    def __post_init__(self) -> None:
        self._check_limit()

    def _detect(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> PromptColumns:
        return detect_prompt_columns(names, first_row, **self.asked)

    def reads(self, names: Sequence[str]) -> list[str]:
        found = self._detect(names, None)
        return [name for name in names if name in (found.messages, found.prompt)]

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """As `Dataset.map` says it; in a plain mapping a prompt that is a list of texts or of chats is a batch."""
        if (said := said_batch(rows)) is not None:
            return said
        found = self._detect(list(rows), None)
        prompts = rows[found.messages or found.prompt or "prompt"]
        if not is_list(prompts) or any(isinstance(item, Mapping) for item in prompts):
            return False
        return bool(len(prompts)) or found.messages is None  # a row with an empty chat, or no rows at all

    def read(self, row: Mapping[str, Any]) -> Problem | RowError:
        """The prompt of a row, or the reason why there is none."""
        try:
            asked = read_problem(row, self.columns_of(list(row), row))
            text, ids = prompt_tokens(asked, self.tokenizer)
        except RowError as error:
            return error
        return Problem(asked, text, ids)
