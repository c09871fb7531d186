"""GRACE (arXiv 2605.13130): value of a reasoning trace for SFT, from the alignment of its steps' gradients.

With u_t = dL_t/dh_t the gradient of a token's loss at the input of the LM head and g(T) the mean of u_t over the
tokens of a segment, step k scores alpha * cos(g_k, g_answer) + (1 - alpha) * cos(g_k, mean of the earlier g_j), the
first step by its first term alone; the value of the trace is the mean over its steps.

Differences from the paper: the spans of the targets `steps+answer` and `suffix`, step splitting, answer extraction and
rendering are our reconstruction; a token that overlaps two spans counts in both. `outer`, `last` and `exact` are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import Example, in_batches, pad
from hf_curate.errors import CurateError, RowError
from hf_curate.gradients.alignment import PROXIES, TARGETS, History, step_scores
from hf_curate.models import evaluating
from hf_curate.scorers.base import in_worker
from hf_curate.scorers.model import ModelScorer, one_of
from hf_curate.scorers.traces import TraceReader
from hf_curate.steps import Splitter

if TYPE_CHECKING:
    import torch
    from datasets import Features

    from hf_curate.models import LanguageModel


class GraceScorer(ModelScorer):
    """Scores reasoning traces by GRACE. Use it as `dataset.map(GraceScorer(model), batched=True)`.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): Hub id ("org/name" or "org/name@revision"), folder (also a PEFT
            adapter folder), or a live causal LM together with `tokenizer`.
        revision (`str`, *optional*): branch, tag or commit of a Hub model; resolved to a commit at once.
        tokenizer (`str` or tokenizer, *optional*): defaults to the model's own. It must give character offsets.
        prompt, completion, answer, steps, messages (`str`, *optional*): names of columns. Without them: `messages`,
            then `conversations`, then `prompt` + `completion`, then the usual aliases (question, solution, ...).
        split_steps (`str`, `re.Pattern` or callable, *optional*, defaults to `"auto"`): "numbered", "gsm8k", "think",
            "blank_lines", "lines", "sentences", a regex of the separators, or a function of the completion.
        alpha (`float`, *optional*, defaults to 0.7): weight of the answer's alignment, in [0, 1]; the rest is the
            history's. The paper's default; leaving out either term made no difference that was shown
            (examples/evidence/RESULTS.md).
        history (*optional*, defaults to `"uniform"`): `"uniform"`, `("window", W)` or `("ema", beta)`.
        target (`str`, *optional*, defaults to `"answer"`): `"answer"`, `"steps+answer"` or `"suffix"`.
        proxy (`str`, *optional*, defaults to `"representation"`): whose gradients. `"representation"`: the LM head's
            input (the paper's; one forward pass). `"outer"`: a linear map before the LM head. `"last"`: the last
            block's MLP and attention output (one short backward). `"exact"`: all linear layers, one backward per
            step; slow. The default is the paper's and the cheapest: no proxy was shown to choose better rows to
            train on than another (examples/evidence/RESULTS.md).
        dtype (`str` or `torch.dtype`, *optional*): defaults to the checkpoint's own.
        device (`str`, *optional*): defaults to CUDA, else MPS, else CPU. `map(with_rank=True)` spreads ranks over
            devices.
        model_kwargs (`dict`, *optional*): passed to `from_pretrained` (attn_implementation, device_map,
            quantization_config).
        max_length (`int`, *optional*): rows with more tokens are null, never truncated. Defaults to the model's
            context.
        batch_tokens (`int`, *optional*): padded tokens per forward; changes speed and memory, not scores. Fewer after
            they did not fit. Defaults to 8,192 on the CPU and 32,768 elsewhere.
        keep_gram (`bool`, *optional*, defaults to `False`): also store the inner products of the segments.

    Adds `grace_step_scores` (list of float32, one per step), `grace_value` (float32, their mean), `grace_tokens`
    (int32, the whole rendered row), `grace_loss` (float32, nats per token over step and answer tokens) and
    `grace_error` (string, "" when scored); with `keep_gram` also `grace_gram` ((K+1)^2 float32, row by row) and
    `grace_gram_tokens` (K+1 int32).

    Raises: `ModelError` for models that cannot be loaded or scored exactly, `ColumnsError` for columns that cannot be
    read, `ScoreError` when a first batch of 8 rows or more fails entirely. Rows that cannot be scored get nulls and a
    reason.

    Source: GRACE, arXiv 2605.13130, sections on step scores and trace values. Differences from the paper: see the
        module.

    Example:
        >>> scored = dataset.map(GraceScorer("Qwen/Qwen3-0.6B"), batched=True, batch_size=256)  # doctest: +SKIP
    """

    name = "GRACE"
    prefix = "grace"
    algorithm_version = 1
    reader: TraceReader

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
        alpha: float = 0.7,
        history: History = "uniform",
        target: str = "answer",
        proxy: str = "representation",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        keep_gram: bool = False,
    ) -> None:
        super().__init__()
        self._take(locals())
        asked = {"prompt": prompt, "completion": completion, "answer": answer, "steps": steps, "messages": messages}
        self.reader = TraceReader(self.source, asked, split_steps, tokenizer, max_length)
        self.alpha, self.history = _checked_alpha(alpha), _checked_history(history)
        self.target, self.proxy = one_of(target, TARGETS, "target"), one_of(proxy, PROXIES, "proxy")
        self.keep_gram = bool(keep_gram)
        self.last_audit: dict[str, Any] | None = None
        self._warned = False

    # -- what a Scorer answers ----------------------------------------------------------------------------------------

    @property
    def columns(self) -> Features:
        from datasets import Features, List, Value

        columns: dict[str, Any] = {
            "grace_step_scores": List(Value("float32")),
            "grace_value": Value("float32"),
            "grace_tokens": Value("int32"),
            "grace_loss": Value("float32"),
            "grace_error": Value("string"),
        }
        if self.keep_gram:
            columns |= {"grace_gram": List(Value("float32")), "grace_gram_tokens": List(Value("int32"))}
        return Features(columns)

    @property
    def column(self) -> str:
        return "grace_value"

    def settings(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "history": self.history if isinstance(self.history, str) else list(self.history),
            "target": self.target,
            "proxy": self.proxy,
            "keep_gram": self.keep_gram,
            "model_kwargs": self.model_kwargs_record,
            **self.reader.settings(),
        }

    def record(self) -> dict[str, Any]:
        return {**super().record(), "audit": self.last_audit}

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        read = [self.reader.read(row) for row in rows]
        self._warn_about_unknown_tokens([item.input_ids for item in read if isinstance(item, Example)])
        good = [(index, item) for index, item in enumerate(read) if isinstance(item, Example)]
        results: list[Any] = list(read)
        if not good:
            return results
        model = self.load(rank)
        lengths = [len(example.input_ids) for _, example in good]
        scored = in_batches(
            lengths, self.token_budget(model), lambda batch: self._score(model, [good[place][1] for place in batch])
        )
        for (index, _), result in zip(good, scored, strict=True):
            results[index] = result
        return results

    def token_limit(self, model: LanguageModel) -> int:
        """Exact gradients go through the model row by row in any batch: each row is one."""
        return 1 if self.proxy == "exact" else super().token_limit(model)

    # -- the work -----------------------------------------------------------------------------------------------------

    def _before_load(self) -> None:
        """Once per scorer, in the user's process: workers are silent."""
        if self._warned or self.source.warm_up is not None or in_worker():
            return
        self._warned = True
        warnings.warn(
            "GRACE's authors score with a model that was warmed up on 5 % of the pool; this one has had no "
            "warm-up, and its records will say so. See GraceScorer.warmed_up. In this project's own small "
            "experiments it made no difference that could be shown.",
            UserWarning,
            stacklevel=6,
        )

    def _score(self, model: LanguageModel, examples: Sequence[Example]) -> list[dict[str, Any] | RowError]:
        from hf_curate.gradients.segments import segment_grams
        from hf_curate.gradients.upstream import byte_budget

        ids = pad(examples, model.device)
        spans = [example.spans for example in examples]
        budget = byte_budget(model.device)
        with evaluating(model.model):
            grams = segment_grams(model, ids, spans, self.proxy, byte_budget=budget)
        return [
            self._row(example, gram.numpy(), losses.numpy())
            for example, (gram, losses) in zip(examples, grams, strict=True)
        ]

    def _row(self, example: Example, gram: np.ndarray, losses: np.ndarray) -> dict[str, Any] | RowError:
        if not np.isfinite(losses).all():
            position = example.labels[int(np.flatnonzero(~np.isfinite(losses))[0])]
            return RowError(
                "not finite", f"the model's logits for token {position} give a loss that is NaN or infinite"
            )
        if not np.isfinite(gram).all():
            return RowError("not finite", "a gradient of this row overflows")
        tokens = np.array([len(span) for span in example.spans])
        scores = step_scores(gram, tokens, alpha=self.alpha, history=self.history, target=self.target)
        result = {
            "grace_step_scores": scores.astype(np.float32),
            "grace_value": np.float32(scores.mean()),
            "grace_tokens": np.int32(len(example.input_ids)),
            "grace_loss": np.float32(losses.mean(dtype=np.float64)),
        }
        if self.keep_gram:
            result |= {"grace_gram": gram.astype(np.float32).ravel(), "grace_gram_tokens": tokens.astype(np.int32)}
        return result

    def overlaps(self, rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """[n] share of each row's answer tokens that also occur in its steps, NaN for rows that cannot be read."""
        read = [self.reader.read(row) for row in rows]
        return np.array([np.nan if isinstance(item, RowError) else item.overlap for item in read])

    # -- around it ----------------------------------------------------------------------------------------------------

    def audit(self, dataset: Any, rows: int = 64, *, parameters: str = "linear", seed: int = 0) -> dict[str, Any]:
        """Compares the proxy with the exact gradients on a seeded sample; the result goes into `record()`.

        Args:
            dataset: a map-style dataset (scored or not).
            rows: size of the sample; rows that cannot be scored are left out.
            parameters: "linear" (all linear layers but the LM head) or "all". Rankings of proxies depend on it.

        Returns:
            {"rows", "steps", "parameters", "proxy", "seed", "spearman": {"alignment", "history", "value"},
            "time_ratio"}: rank correlations of A_k and H_k over the sample's steps and of the value over its rows
            (None where a side is constant), and the seconds of the proxy divided by those of the exact gradients, one
            row at a time.
        """
        from hf_curate.scorers.audit import audit

        self.last_audit = audit(self, dataset, rows, parameters=parameters, seed=seed)
        return self.last_audit

    @classmethod
    def warmed_up(
        cls,
        model: Any,
        dataset: Any,
        fraction: float = 0.05,
        seed: int = 0,
        *,
        out: str | Path,
        method: str | None = None,
        learning_rate: float = 1e-4,
        epochs: int = 1,
        batch_rows: int = 16,
        **arguments: Any,
    ) -> GraceScorer:
        """A scorer on a copy of the model that was trained briefly on a random part of the dataset.

        Args:
            model: Hub id, folder or live model, as for the scorer.
            dataset: the pool; `fraction` of its rows, drawn with `seed`, are trained on (completion tokens only).
            out: folder for the warmed-up weights (safetensors), the tokenizer and the record of the training.
            method: "lora" (rank 8, alpha 32, all linear layers; needs peft) or "full". None: "full" under 10 M
                parameters.
            learning_rate, epochs, batch_rows: AdamW with 3 % linear warm-up, then constant.
            arguments: of the scorer.

        The rows trained on stay in the pool, and are not counted in a budget. The recipe is the authors'
        post-training one; their text leaves that of the warm-up open.
        """
        from hf_curate.scorers.warm_up import warm_up

        base = cls(model, **arguments)
        warm_up(
            base,
            dataset,
            Path(out),
            fraction=fraction,
            seed=seed,
            method=method,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_rows=batch_rows,
        )
        keep = {name: value for name, value in arguments.items() if name not in ("revision", "tokenizer")}
        return cls(Path(out), **keep)


def _checked_alpha(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0.0 <= alpha <= 1.0:
        raise CurateError(f"alpha={alpha!r} must be a number from 0 to 1 (the authors use 0.7).")
    return float(alpha)


def _checked_history(history: Any) -> History:
    if history == "uniform":
        return "uniform"
    if isinstance(history, (tuple, list)) and len(history) == 2:
        kind, value = history
        if kind == "window" and isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1:
            return ("window", int(value))
        if kind == "ema" and isinstance(value, Real) and 0.0 < float(value) < 1.0:
            return ("ema", float(value))
    raise CurateError(
        f"history={history!r} must be 'uniform', ('window', W) with W = 1, 2, ..., or ('ema', beta) with 0 < beta < 1."
    )
