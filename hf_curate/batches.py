"""Rows -> token batches: rendering, label positions of the spans, length bucketing under a token budget, a tally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from hf_curate.chat import Messages
from hf_curate.errors import ModelError, RowError
from hf_curate.memory import TokenBudget, attempt
from hf_curate.rows import Trace
from hf_curate.steps import Splitter, find_spans

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

THINK = "<think>"

ENOUGH_TOKENS = 2048
"""Padded tokens that keep a device busy: more of them in a batch are worth little, and padding costs its share."""
MOST_PADDING = 0.04
"""Of the tokens of a batch that large."""


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    input_ids: the whole rendered row; spans: label positions of each step, then of the answer, each sorted, unique and
    non-empty; text and characters: the rendered text, and the character span of each of `spans` in it;
    first_completion_token: index of the first token that reaches into the completion.
    """

    input_ids: list[int]
    spans: list[list[int]]
    text: str
    characters: list[tuple[int, int]]
    first_completion_token: int
    splitter: str
    answer_by: str

    @property
    def labels(self) -> list[int]:
        """Label positions that belong to a step or the answer, sorted, each once."""
        return sorted({position for span in self.spans for position in span})

    @property
    def overlap(self) -> float:
        """Share of the answer's tokens that also occur in a step: a property of the text, not of the model."""
        steps = {self.input_ids[position] for span in self.spans[:-1] for position in span}
        answer = [self.input_ids[position] for position in self.spans[-1]]
        return sum(token in steps for token in answer) / len(answer)


@dataclass(frozen=True)
class Rollout:
    """One sampled response after its prompt, as tokens.

    input_ids: prompt and response; start: index of the first response token, at least 1, so that something predicts
    it.
    """

    input_ids: list[int]
    start: int


def render(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, bool]:
    """(prompt text, completion text, whether the prompt already opened <think>).

    Chat prompts go through the tokenizer's template with add_generation_prompt=True; plain prompts are taken as they
    are. Nothing is inserted in between, and a <think> that the template opened is not repeated.
    """
    prompt = render_prompt(trace.prompt, tokenizer)
    return prompt, continued(prompt, trace.completion), opens_think(prompt)


def render_prompt(
    prompt: str | Messages, tokenizer: PreTrainedTokenizerBase, columns: str = "prompt= and completion= columns"
) -> str:
    """The text of a prompt up to where the completion starts. `columns`: what an error names instead of messages."""
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise ModelError(
            f"the rows hold chat messages, and {type(tokenizer).__name__} has no chat template: "
            f"set tokenizer.chat_template, or pass {columns} with plain text."
        )
    try:
        messages = [dict(message) for message in prompt]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a Jinja template raises what it likes (raise_exception, TypeError, UndefinedError)
        raise RowError("chat template failed", f"{type(error).__name__}: {error}") from error
    assert isinstance(text, str)
    return text


def opens_think(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINK)


def continued(prompt: str, completion: str) -> str:
    """The completion as it follows the prompt's text: without the <think> that the prompt has opened already."""
    if not (opens_think(prompt) and completion.lstrip().startswith(THINK)):
        return completion
    completion = completion.lstrip()[len(THINK) :]
    return completion.lstrip("\r\n") if prompt[-1:].isspace() else completion


def has_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the text starts with the BOS that the tokenizer would put before it once more."""
    return bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))


def encode(
    trace: Trace, tokenizer: PreTrainedTokenizerBase, *, split: Splitter = "auto", max_length: int | None = None
) -> Example:
    """One trace as token ids with the label positions of its steps and answer.

    A token belongs to every span that it overlaps. Raises RowError for rows that cannot be scored; a row that is
    longer than `max_length` tokens is never truncated.
    """
    prompt, completion, opened = render(trace, tokenizer)
    found = find_spans(completion, gold=trace.gold, steps=trace.steps, split=split, think_open=opened)
    text = prompt + completion
    special = isinstance(trace.prompt, str) and not has_bos(text, tokenizer)
    # `verbose=False`: a row over the model's limit is our error, not a warning of the tokenizer
    encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoding["input_ids"]  # type: ignore[assignment]
    if max_length is not None and len(ids) > max_length:
        raise RowError("too long", f"{len(ids):,} tokens, max_length is {max_length:,}")
    start = len(prompt)
    characters = [(start + a, start + b) for a, b in (*found.steps, found.answer)]
    spans = _positions(encoding["offset_mapping"], characters)  # type: ignore[arg-type]
    for index, span in enumerate(spans):
        if not span:
            name = "the answer" if index == len(found.steps) else f"step {index + 1}"
            raise RowError("no label", f"{name} has no token with a token before it")
    first = next((i for i, (_, high) in enumerate(encoding["offset_mapping"]) if high > start), len(ids))
    return Example(ids, spans, text, characters, first, found.splitter, found.answer_by)


def _positions(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Label positions (>= 1) of the tokens that overlap each span; spans are in order of their start."""
    positions: list[list[int]] = []
    first = 0
    for start, end in spans:
        while first < len(offsets) and offsets[first][1] <= start:
            first += 1
        inside, index = [], first
        while index < len(offsets) and offsets[index][0] < end:
            if index > 0 and offsets[index][1] > start:  # whitespace whose offsets were trimmed has none of its own
                inside.append(index)
            index += 1
        positions.append(inside)
    return positions


def bucket(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, longest first, with rows * longest <= batch_tokens (one row always fits). A
    batch that keeps a device busy ends before a row that would make it more padding than `MOST_PADDING`."""
    order, start = _longest_first(lengths), 0
    while start < len(order):
        batch = _batch_from(start, order, lengths, batch_tokens)
        start += len(batch)
        yield batch


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def _batch_from(start: int, order: list[int], lengths: Sequence[int], batch_tokens: int) -> list[int]:
    longest, tokens = max(1, lengths[order[start]]), 0
    batch = order[start : start + max(1, batch_tokens // longest)]
    for count, index in enumerate(batch):
        tokens += lengths[index]
        if count * longest >= ENOUGH_TOKENS and tokens < (1 - MOST_PADDING) * (count + 1) * longest:
            return batch[:count]
    return batch


def in_batches(
    lengths: Sequence[int], budget: TokenBudget, work: Callable[[list[int]], Sequence[T]]
) -> list[T | RowError]:
    """What `work` gives for batches of rows (by index), row by row, in the rows' order.

    The batches are `bucket`'s. One that does not fit into memory is tried again in smaller ones, under a budget that
    shrinks; what was done before stays. A row that does not fit by itself is RowError("out of memory").
    """
    found: dict[int, T | RowError] = {}
    order, start = _longest_first(lengths), 0
    while start < len(order):
        batch = _batch_from(start, order, lengths, budget.now)
        longest = lengths[batch[0]]
        done = attempt(partial(work, batch))
        if done is None and len(batch) > 1:
            budget.shrink(len(batch) * longest)
            continue
        if done is None:
            found[batch[0]] = RowError("out of memory", f"{longest:,} tokens, in a batch of its own")
        else:
            budget.fits()
            found.update(zip(batch, done[0], strict=True))
        start += len(batch)
    return [found[index] for index in range(len(lengths))]


def pad(examples: Sequence[Example] | Sequence[Rollout], device: torch.device) -> torch.Tensor:
    """[B, T] token ids, right-padded with each row's own last token: causal attention never sees it from the left."""
    return pad_ids([example.input_ids for example in examples], device)


def pad_ids(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """As `pad`, of token ids alone."""
    import torch

    longest = max(map(len, rows))
    TALLY.add(sum(map(len, rows)), longest * len(rows))
    padded = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in rows]
    return torch.tensor(padded, dtype=torch.int64, device=device)


class Tally:
    """Counts tokens that the model is given, in all threads of a process. Batches that are tried again count again.

    tokens: of rows, and those that were sampled; padded: the same and the padding beside them.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.tokens = self.padded = 0

    def add(self, tokens: int, padded: int) -> None:
        with self._lock:
            self.tokens += tokens
            self.padded += padded

    def take(self) -> tuple[int, int]:
        """(tokens, padded) since the last time."""
        with self._lock:
            taken = self.tokens, self.padded
            self.tokens = self.padded = 0
        return taken


TALLY = Tally()
