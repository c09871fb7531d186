"""Baselines that look at text: the longest, the one with most steps, the one the model finds likeliest or least so.

They read rows with rollouts (means over the rollouts) as well as rows with one trace; the columns say which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import Example, in_batches, opens_think, render_prompt
from hf_curate.errors import RowError
from hf_curate.groups import read_group
from hf_curate.models import evaluating
from hf_curate.scorers.either import EitherReader
from hf_curate.scorers.groups import Group
from hf_curate.scorers.model import ModelScorer, one_of
from hf_curate.steps import Splitter, find_spans

if TYPE_CHECKING:
    import torch
    from datasets import Features

    from hf_curate.models import LanguageModel

NO_WEIGHTS = dict.fromkeys(("dtype", "device", "model_kwargs", "batch_tokens"))
PREFER = {"lowest": -1.0, "highest": 1.0}


def score_columns(prefix: str) -> Features:
    """<prefix>_score and <prefix>_error."""
    from datasets import Features, Value

    return Features({f"{prefix}_score": Value("float32"), f"{prefix}_error": Value("string")})


class TextScorer(ModelScorer):
    """Base of the scorers that read rows with rollouts or with a trace, and write one number."""

    reader: EitherReader

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take(given)
        self.reader = EitherReader(self.source, given)

    @property
    def columns(self) -> Features:
        return score_columns(self.prefix)

    @property
    def column(self) -> str:
        return f"{self.prefix}_score"

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        results: list[Any] = [self.reader.read(row) for row in rows]
        good = [index for index, item in enumerate(results) if not isinstance(item, RowError)]
        items = [results[index] for index in good]
        self._warn_about_unknown_tokens([ids for item in items for ids, _ in sequences_of(item)])
        for index, value in zip(good, self.values([rows[index] for index in good], items, rank), strict=True):
            results[index] = value if isinstance(value, RowError) else {self.column: np.float32(value)}
        return results

    @abstractmethod
    def values(
        self, rows: Sequence[Mapping[str, Any]], items: Sequence[Group | Example], rank: int | None
    ) -> list[float | RowError]:
        """The score of each row that could be read, or the reason why it has none."""


def sequences_of(item: Group | Example) -> list[tuple[list[int], list[int]]]:
    """(token ids, label positions) of each rollout's response, or of a trace's steps and answer."""
    if isinstance(item, Example):
        return [(item.input_ids, item.labels)]
    return [(rollout.input_ids, list(range(rollout.start, len(rollout.input_ids)))) for rollout in item.rollouts]


class TokenizerScorer(TextScorer):
    """Base of the scorers that need a model's tokenizer and none of its weights."""

    def __init__(
        self,
        model: Any,
        *,
        revision: str | None = None,
        tokenizer: Any = None,
        prompt: str | None = None,
        completion: str | None = None,
        answer: str | None = None,
        steps: str | None = None,
        messages: str | None = None,
        split_steps: Splitter = "auto",
        responses: str | None = None,
        response_ids: str | None = None,
        rewards: str | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self._take(locals())

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take({**NO_WEIGHTS, **given})
        self._arguments = {name: value for name, value in self._arguments.items() if name not in NO_WEIGHTS}

    def settings(self) -> dict[str, Any]:
        return self.reader.settings()

    def record(self) -> dict[str, Any]:
        return {**super().record(), "model": None}

    def model_record(self) -> dict[str, Any]:
        return {}  # the tokenizer's digest is among the settings

    def _portable_arguments(self) -> dict[str, Any]:
        arguments = super()._portable_arguments()
        return {name: value for name, value in arguments.items() if name not in NO_WEIGHTS}

    def values(
        self, rows: Sequence[Mapping[str, Any]], items: Sequence[Group | Example], rank: int | None
    ) -> list[float | RowError]:
        return [self._value(row, item) for row, item in zip(rows, items, strict=True)]

    def _value(self, row: Mapping[str, Any], item: Group | Example) -> float | RowError:
        try:
            return self.value(row, item)
        except RowError as error:
            return error

    @abstractmethod
    def value(self, row: Mapping[str, Any], item: Group | Example) -> float:
        """The score of one row. Raises RowError."""


class LongestScorer(TokenizerScorer):
    """Scores rows by their number of tokens. Of the model only the tokenizer and the config are read.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): Hub id, folder, or a live causal LM together with `tokenizer`.
        revision, tokenizer: as for `GraceScorer`.
        prompt, messages, completion, answer, steps, split_steps: of rows with a trace, as for `GraceScorer`.
        prompt, messages, responses, response_ids, rewards: of rows with rollouts, as for `GradAlignScorer`. Rows are
            read as rollouts where there are `rewards` and `responses` or `response_ids`, or where one of these three
            arguments is given; as a trace otherwise.
        max_length (`int`, *optional*): longer rows are null. Defaults to the model's context.

    Adds `longest_score` (float32: the mean number of response tokens, or the tokens of the whole row with its trace)
    and `longest_error` (string, "" when scored).

    Raises: `ColumnsError` for columns that cannot be read, `ModelError` for a tokenizer that cannot be loaded.
    """

    name = "Longest"
    prefix = "longest"
    algorithm_version = 1

    def value(self, row: Mapping[str, Any], item: Group | Example) -> float:
        if isinstance(item, Example):
            return float(len(item.input_ids))
        return float(np.mean([len(rollout.input_ids) - rollout.start for rollout in item.rollouts]))


class MostStepsScorer(TokenizerScorer):
    """Scores rows by their number of steps. Of the model only the tokenizer and the config are read.

    Args: as for `LongestScorer`.
        split_steps (`str`, `re.Pattern` or callable, *optional*, defaults to `"auto"`): how steps are found, as for
            `GraceScorer`; also in responses.

    Adds `most_steps_score` (float32: the steps of the trace, or the mean number of steps over the responses) and
    `most_steps_error` (string, "" when scored). A response may have no answer, then its steps go to its end; or no
    step, which counts as 0. `response_ids` are decoded without special tokens.

    Raises: `ColumnsError`, `ModelError` as `LongestScorer`; `CurateError` for a splitter that is not known.
    """

    name = "Most steps"
    prefix = "most_steps"
    algorithm_version = 1

    def value(self, row: Mapping[str, Any], item: Group | Example) -> float:
        if isinstance(item, Example):
            return float(len(item.spans) - 1)
        tokenizer = self.reader.tokenizer
        group = read_group(row, self.reader.groups.columns_of(list(row), row))
        opened = opens_think(render_prompt(group.prompt, tokenizer, "a prompt= column"))
        texts = group.responses
        if texts is None:
            plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            texts = [str(tokenizer.decode(list(ids), **plain)) for ids in group.response_ids or ()]
        return float(np.mean([count_steps(text, self.reader.traces.split, opened) for text in texts]))


def count_steps(text: str, split: Splitter = "auto", think_open: bool = False) -> int:
    """Steps of a response; 0 where there are none. Raises RowError: "splitter failed"."""
    try:
        return len(find_spans(text, split=split, think_open=think_open).steps)
    except RowError as error:
        if error.kind == "no step":
            return 0
        if error.kind != "no answer":
            raise
    return count_steps(f"{text}\nFinal answer: none", split, think_open)  # of a response that was cut short


class LossScorer(TextScorer):
    """Scores rows by the model's loss on them, in nats per token.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): Hub id ("org/name" or "org/name@revision"), folder (also a PEFT
            adapter folder), or a live causal LM together with `tokenizer`.
        prefer (`str`, *optional*, defaults to `"lowest"`): "lowest" or "highest" loss first. Neither is a quality: in
            this project's experiments (examples/evidence/RESULTS.md) the highest kept hopeless or wrong rows (below
            random in 5 of the 8 conditions with room, above in 1), the lowest mostly mastered ones (above in 5,
            below in 1).
        dtype, device, model_kwargs: as for `GraceScorer`.
        batch_tokens (`int`, *optional*): padded tokens per forward; changes speed and memory, not scores. Fewer after
            they did not fit. Defaults to 8,192 on the CPU and 32,768 elsewhere.
        others: as for `LongestScorer`.

    Adds `lowest_loss_score` (float32: minus the loss) or, with "highest", `highest_loss_score` (the loss), so that
    higher is better, and `lowest_loss_error` or `highest_loss_error` (string, "" when scored). The loss of a trace is
    the mean over the tokens of its steps and answer, that of rollouts the mean over rollouts of the mean over response
    tokens.

    Raises: `ModelError` for models that cannot be loaded or scored exactly, `ColumnsError`, `CurateError`.
    """

    name = "Loss"
    algorithm_version = 1
    batch_rows = 64
    """Rows that `score` hands over at a time: a row may hold many rollouts, and the bar should move."""

    def __init__(
        self,
        model: Any,
        *,
        prefer: str = "lowest",
        revision: str | None = None,
        tokenizer: Any = None,
        prompt: str | None = None,
        completion: str | None = None,
        answer: str | None = None,
        steps: str | None = None,
        messages: str | None = None,
        split_steps: Splitter = "auto",
        responses: str | None = None,
        response_ids: str | None = None,
        rewards: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self._take(locals())
        self.prefer = one_of(prefer, tuple(PREFER), "prefer")
        self.name, self.prefix = f"{self.prefer.capitalize()} loss", f"{self.prefer}_loss"

    def settings(self) -> dict[str, Any]:
        return {"prefer": self.prefer, "model_kwargs": self.model_kwargs_record, **self.reader.settings()}

    def values(
        self, rows: Sequence[Mapping[str, Any]], items: Sequence[Group | Example], rank: int | None
    ) -> list[float | RowError]:
        if not items:
            return []
        sequences = [(place, ids, own) for place, item in enumerate(items) for ids, own in sequences_of(item)]
        losses: list[list[float | RowError]] = [[] for _ in items]
        for (place, _, _), loss in zip(sequences, self._losses(sequences, self.load(rank)), strict=True):
            losses[place].append(loss)
        return [self._value(own) for own in losses]

    def _losses(
        self, sequences: Sequence[tuple[int, list[int], list[int]]], model: LanguageModel
    ) -> list[float | RowError]:
        """Mean loss of each sequence, or the first token whose loss is not finite, or that it does not fit."""
        from hf_curate.gradients.losses import sequence_losses
        from hf_curate.gradients.upstream import byte_budget

        room = byte_budget(model.device)

        def work(chosen: list[int]) -> list[float | RowError]:
            batch = [sequences[index][1:] for index in chosen]
            with evaluating(model.model):
                parts = sequence_losses(model, batch, byte_budget=room)
            return [_mean(losses.numpy(), own) for (_, own), losses in zip(batch, parts, strict=True)]

        return in_batches([len(ids) for _, ids, _ in sequences], self.token_budget(model), work)

    def _value(self, losses: Sequence[float | RowError]) -> float | RowError:
        bad = next((loss for loss in losses if isinstance(loss, RowError)), None)
        return bad if bad is not None else PREFER[self.prefer] * float(np.mean([float(loss) for loss in losses]))  # type: ignore[arg-type]


def _mean(losses: np.ndarray, positions: Sequence[int]) -> float | RowError:
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        where = f"token {positions[int(bad[0])]}"
        return RowError("not finite", f"the model's logits for {where} give a loss that is NaN or infinite")
    return float(losses.mean(dtype=np.float64))
