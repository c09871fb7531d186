"""Reads rows as groups of tokenised rollouts with their rewards. Shared by the scorers of policy gradients."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_curate.batches import Rollout, continued, has_bos, render_prompt
from hf_curate.chat import Messages
from hf_curate.errors import ColumnsError, RowError
from hf_curate.groups import GroupColumns, detect_group_columns, read_group
from hf_curate.scorers.reading import Reader, is_list, said_batch
from hf_curate.weights import ModelSource, load_config


@dataclass(frozen=True, eq=False)
class Group:
    """One problem with its K >= 1 rollouts, in the order of the row; rewards: [K] float64, finite."""

    rollouts: list[Rollout]
    rewards: np.ndarray


@dataclass
class GroupReader(Reader[GroupColumns]):
    """From a dataset row to a `Group` under one tokenizer.

    Prompt and response are tokenised apart, as they were when the response was sampled: the prompt by the chat
    template or, if it is plain text, with the tokenizer's special tokens; the response without any, and EOS after it
    unless it ends so. `response_ids` are taken as they are. A text does not say that sampling was cut short and gets
    its EOS all the same; ids do not.

    asked: column names that the caller gave, by role (prompt, messages, responses, response_ids, rewards), None where
        not given.
    """

    source: ModelSource
    asked: dict[str, str | None]
    tokenizer_asked: Any = None
    max_length_asked: int | None = None
    _tokenizer: Any = field(default=None, repr=False)
    _limit: tuple[int | None] | None = None
    _found: dict[tuple[str, ...], GroupColumns] = field(default_factory=dict)
    _latest: GroupColumns | None = None
    _vocabulary: int | None = None

    def __post_init__(self) -> None:
        self._check_limit()

    def _detect(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> GroupColumns:
        return detect_group_columns(names, first_row, **self.asked)

    @property
    def vocabulary(self) -> int:
        """Ids that the model has an embedding for: those below this number."""
        live = self.source.live
        if live is not None:  # not kept: its embeddings may be resized
            return live.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr,return-value]
        if self._vocabulary is None:
            config = load_config(self.source)
            text = config.get_text_config() if hasattr(config, "get_text_config") else config
            self._vocabulary = int(text.vocab_size)
        return self._vocabulary

    def reads(self, names: Sequence[str]) -> list[str]:
        """The columns that hold the prompt, the responses and the rewards; all of them where these are not found, so
        that `columns_of` can say with a row at hand which could be meant."""
        try:
            found = self._detect(names, None)
        except ColumnsError:
            return list(names)
        roles = (found.messages, found.prompt, found.response_ids, found.responses, found.rewards)
        return [name for name in names if name in roles]

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """Whether every column holds a list of rows. `Dataset.map` says it by the mapping's type; in a plain mapping
        a row's responses, rewards and chat messages are lists too, so look one level deeper."""
        if (said := said_batch(rows)) is not None:
            return said
        names = list(rows)
        if not names or not all(is_list(rows[name]) for name in names):
            return False
        columns = self._detect(names, None)
        prompts, rewards = rows[columns.messages or columns.prompt or "prompt"], rows[columns.rewards]
        if len({len(rows[name]) for name in names}) > 1 or any(isinstance(item, Mapping) for item in prompts):
            return False
        if not len(prompts):  # a row with an empty chat, or no rows at all
            return columns.messages is None
        readable = any(isinstance(item, str) or is_list(item) for item in prompts)
        return readable or all(item is None or is_list(item) for item in rewards)

    def read(self, row: Mapping[str, Any]) -> Group | RowError:
        """The row as tokens, or the reason why it cannot be scored."""
        try:
            group = read_group(row, self.columns_of(list(row), row))
            text, prompt = prompt_tokens(group.prompt, self.tokenizer)
            if group.response_ids is not None:
                responses = [self._known(ids, number) for number, ids in enumerate(group.response_ids, 1)]
            else:
                responses = [self._ended(text, item, number) for number, item in enumerate(group.responses or (), 1)]
            for number, ids in enumerate(responses, 1):
                self._check_length(len(prompt) + len(ids), number)
            _check_mean(group.rewards)
        except RowError as error:
            return error
        return Group([Rollout(prompt + ids, len(prompt)) for ids in responses], group.rewards)

    def _ended(self, prompt: str, response: str, number: int) -> list[int]:
        """The tokens of a response's text and EOS."""
        ids, eos = tokens_of(continued(prompt, response), self.tokenizer, special=False), self.tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos]:
            ids = [*ids, eos]
        if not ids:
            raise RowError("empty response", f"response {number} has no token, and the tokenizer has no EOS to append")
        return ids

    def _known(self, ids: Sequence[int], number: int) -> list[int]:
        if max(ids) >= self.vocabulary:
            detail = f"response {number} holds id {max(ids):,}, the model knows {self.vocabulary:,}"
            raise RowError("unknown token id", detail)
        return list(ids)

    def _check_length(self, tokens: int, number: int) -> None:
        if self.max_length is not None and tokens > self.max_length:
            detail = f"prompt and response {number} have {tokens:,} tokens, max_length is {self.max_length:,}"
            raise RowError("too long", detail)


def prompt_tokens(prompt: str | Messages, tokenizer: Any) -> tuple[str, list[int]]:
    """The prompt's text and its tokens, at least one; chat messages go through the template. Raises RowError."""
    text = render_prompt(prompt, tokenizer, "a prompt= column")
    ids = tokens_of(text, tokenizer, special=isinstance(prompt, str) and not has_bos(text, tokenizer))
    if not ids:
        raise RowError("no prompt", f"{len(text)} characters that give no token: nothing predicts the response")
    return text, ids


def tokens_of(text: str, tokenizer: Any, *, special: bool) -> list[int]:
    # `verbose=False`: a text over the model's limit is our error, not a warning of the tokenizer
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _check_mean(rewards: np.ndarray) -> None:
    largest = float(np.abs(rewards).max())
    if largest > sys.float_info.max / 2 / len(rewards):
        raise RowError("reward not finite", f"the mean of {len(rewards):,} rewards of up to {largest:g} overflows")
