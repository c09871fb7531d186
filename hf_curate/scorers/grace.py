"""GRACE (arXiv 2605.13130): value of a reasoning trace for SFT, from the alignment of its steps' gradients.

With u_t = dL_t/dh_t the gradient of a token's loss at the input of the LM head and g(T) the mean of u_t over the
tokens of a segment, step k scores alpha * cos(g_k, g_answer) + (1 - alpha) * cos(g_k, mean of the earlier g_j), the
first step by its first term alone; the value of the trace is the mean over its steps.

Differences from the paper: the spans of the targets `steps+answer` and `suffix`, step splitting, answer extraction and
rendering are our reconstruction; a token that overlaps two spans counts in both. `outer`, `last` and `exact` are ours.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import Example, bucket, pad
from hf_curate.errors import CurateError, RowError
from hf_curate.gradients.alignment import PROXIES, TARGETS, History, step_scores
from hf_curate.models import as_dtype, evaluating, load_model, settle_after_fork
from hf_curate.scorers.base import Scorer
from hf_curate.scorers.traces import TraceReader
from hf_curate.steps import Splitter
from hf_curate.weights import ModelSource, config_dtype, load_config

if TYPE_CHECKING:
    import torch
    from datasets import Features

    from hf_curate.models import LanguageModel


class GraceScorer(Scorer):
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
        alpha (`float`, *optional*, defaults to 0.7): weight of the answer's alignment, in [0, 1].
        history (*optional*, defaults to `"uniform"`): `"uniform"`, `("window", W)` or `("ema", beta)`.
        target (`str`, *optional*, defaults to `"answer"`): `"answer"`, `"steps+answer"` or `"suffix"`.
        proxy (`str`, *optional*, defaults to `"representation"`): whose gradients. `"representation"`: the LM head's
            input (the paper's; one forward pass). `"outer"`: a linear map before the LM head. `"last"`: the last
            block's MLP and attention output (one short backward). `"exact"`: all linear layers, one backward per
            step; slow.
        dtype (`str` or `torch.dtype`, *optional*): defaults to the checkpoint's own.
        device (`str`, *optional*): defaults to CUDA, else MPS, else CPU. `map(with_rank=True)` spreads ranks over
            devices.
        model_kwargs (`dict`, *optional*): passed to `from_pretrained` (attn_implementation, device_map,
            quantization_config).
        max_length (`int`, *optional*): rows with more tokens are null, never truncated. Defaults to the model's
            context.
        batch_tokens (`int`, *optional*): padded tokens per forward; changes speed and memory, not scores. Defaults to
            8,192 on the CPU and 32,768 elsewhere.
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
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.source = ModelSource.of(model, revision)
        asked = {"prompt": prompt, "completion": completion, "answer": answer, "steps": steps, "messages": messages}
        self.reader = TraceReader(self.source, asked, split_steps, tokenizer, max_length)
        self.alpha, self.history = _checked_alpha(alpha), _checked_history(history)
        self.target, self.proxy = _one_of(target, TARGETS, "target"), _one_of(proxy, PROXIES, "proxy")
        self.dtype, self.device, self.model_kwargs = dtype, device, dict(model_kwargs or {})
        self.batch_tokens, self.keep_gram = batch_tokens, bool(keep_gram)
        if batch_tokens is not None and batch_tokens < 1:
            raise CurateError(f"batch_tokens={batch_tokens} must be 1 or more.")
        self.model_kwargs_record = _recorded(self.model_kwargs)
        as_dtype(dtype)
        self.last_audit: dict[str, Any] | None = None
        self._loaded: LanguageModel | None = None
        self._warned = self._warned_unknown = False

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
        record = super().record()
        return {**record, "settings": {**record["settings"], **self.reader.record()}, "audit": self.last_audit}

    def model_record(self) -> dict[str, Any]:
        config = load_config(self.source)
        asked = as_dtype(self.dtype)  # "float", "torch.float32" and torch.float32 are one dtype
        dtype = config_dtype(config) if asked == "auto" else str(asked).removeprefix("torch.")
        architectures = getattr(config, "architectures", None) or [None]
        if self.source.live is not None:
            dtype = str(self.source.live.dtype).removeprefix("torch.")
            architectures = [type(self.source.live).__name__]
        return {
            "id": self.source.label,
            "sha": self.source.commit,
            "digest": self.source.digest,
            "dtype": dtype,
            "architecture": architectures[0],
            "warm_up": self.source.warm_up,
        }

    def call(self) -> str:
        """The arguments that differ from their defaults; a folder by its name, a live model as a variable."""
        defaults = {name: p.default for name, p in inspect.signature(type(self).__init__).parameters.items()}
        hidden = ("model", "revision", "tokenizer", "model_kwargs", "device", "batch_tokens")
        given = {n: v for n, v in self._arguments.items() if n not in hidden and v != defaults[n]}
        names = {"live": "model, tokenizer=tokenizer", "folder": repr(f"./{self.source.label}")}
        parts = [names.get(self.source.kind, repr(self.source.label))]
        parts += [f"revision={self.source.commit!r}"] if self.source.commit else []
        parts += ["tokenizer=tokenizer"] if self._arguments["tokenizer"] is not None and not self.source.live else []
        parts += [f"model_kwargs={self.model_kwargs_record!r}"] if self.model_kwargs_record else []
        for name, value in given.items():
            parts.append(f"{name}={value.__name__ if callable(value) else value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __repr__(self) -> str:
        return f"<{self.call()}>"

    def reads(self, names: Sequence[str]) -> list[str]:
        return self.reader.reads(names)

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        return self.reader.is_batch(rows)

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        self.reader.columns_of(names, first_row)

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        read = [self.reader.read(row) for row in rows]
        self._warn_about_unknown_tokens(read)
        good = [(index, item) for index, item in enumerate(read) if isinstance(item, Example)]
        results: list[Any] = list(read)
        if not good:
            return results
        model = self.load(rank)
        limit = self.batch_tokens or (8192 if model.device.type == "cpu" else 32768)
        for group in bucket([len(example.input_ids) for _, example in good], limit):
            batch = [good[place] for place in group]
            scored = self._score(model, [example for _, example in batch])
            for (index, _), result in zip(batch, scored, strict=True):
                results[index] = result
        return results

    # -- the work -----------------------------------------------------------------------------------------------------

    def load(self, rank: int | None = None) -> LanguageModel:
        """The model on its device; loaded at the first call, one per process."""
        settle_after_fork()  # a function that holds a loaded scorer may have been forked with it
        if self._loaded is None or (self.source.live is not None and not self._loaded.is_current()):
            self._warn_without_warm_up()
            self._loaded = load_model(
                self.source,
                self.reader.tokenizer,
                dtype=self.dtype,
                device=self.device,
                rank=rank,
                model_kwargs=self.model_kwargs,
            )
        return self._loaded

    def _warn_without_warm_up(self) -> None:
        """Once per scorer, in the user's process: workers are silent."""
        from multiprocess import parent_process  # type: ignore[import-untyped]

        if self._warned or self.source.warm_up is not None or parent_process() is not None:
            return
        self._warned = True
        warnings.warn(
            "GRACE's authors score with a model that was warmed up on 5 % of the pool; this one has had no "
            "warm-up, and its records will say so. See GraceScorer.warmed_up.",
            UserWarning,
            stacklevel=6,
        )

    def _warn_about_unknown_tokens(self, read: Sequence[Example | RowError]) -> None:
        """Once: a tokenizer that does not know the text gives numbers all the same."""
        unknown = self.reader.tokenizer.unk_token_id
        rows = [item.input_ids for item in read if isinstance(item, Example)]
        if self._warned_unknown or unknown is None or not rows:
            return
        share = sum(row.count(unknown) for row in rows) / sum(map(len, rows))
        if share > UNKNOWN_SHARE:
            self._warned_unknown = True
            warnings.warn(
                f"{share:.0%} of the tokens are unknown to the tokenizer of {self.source.label}: scores of text that "
                "the model cannot read mean nothing. Is it the right model?",
                UserWarning,
                stacklevel=6,
            )

    def _score(self, model: LanguageModel, examples: Sequence[Example]) -> list[dict[str, Any] | RowError]:
        from hf_curate.gradients.segments import segment_grams
        from hf_curate.gradients.upstream import BYTE_BUDGET

        ids = pad(examples, model.device)
        spans = [example.spans for example in examples]
        budget = BYTE_BUDGET if model.device.type == "cpu" else 4 * BYTE_BUDGET
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

    # -- pickles ------------------------------------------------------------------------------------------------------

    def _portable_arguments(self) -> dict[str, Any]:
        arguments = {name: value for name, value in self._arguments.items() if name not in ("device", "batch_tokens")}
        arguments |= self._pinned_model()
        kwargs = {name: value for name, value in self.model_kwargs.items() if name not in UNRECORDED}
        arguments["model_kwargs"] = kwargs or None
        if not isinstance(arguments["tokenizer"], (str, Path, type(None))):
            arguments |= {"model": None, "tokenizer": None}  # told apart by digests; no pickle can rebuild it
        return arguments

    def _travelling_arguments(self) -> dict[str, Any]:
        if self.source.live is not None:
            raise CurateError(
                f"a live {self.source.name} cannot travel to a worker process (num_proc is set): save it with "
                "model.save_pretrained(folder) and tokenizer.save_pretrained(folder) and pass the folder or a Hub id, "
                "or map without num_proc."
            )
        self._warn_without_warm_up()
        return {**self._arguments, **self._pinned_model()}

    def _pinned_model(self) -> dict[str, Any]:
        if self.source.live is not None:
            return {"model": None}
        return {"model": self.source.name, "revision": self.source.commit}


UNKNOWN_SHARE = 0.05
UNRECORDED = {
    "cache_dir",
    "device_map",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "proxies",
    "token",
}
"""Model arguments that change where and how weights are fetched and placed, and no numbers. Some are secret."""


def _recorded(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The model arguments that may change numbers, as JSON: plain values, and configs by their `to_dict`."""
    found = {}
    for name, value in sorted(model_kwargs.items()):
        if name in UNRECORDED:
            continue
        plain = value.to_dict() if hasattr(value, "to_dict") else value
        try:
            found[name] = json.loads(json.dumps(plain, sort_keys=True, default=_named_dtype))
        except TypeError:
            raise CurateError(
                f"model_kwargs[{name!r}] is a {type(value).__name__}, and it has to be written into the record: "
                "pass text, numbers, lists of them, or a config of transformers."
            ) from None
    return found


def _named_dtype(value: Any) -> str:
    if type(value).__name__ == "dtype":
        return str(value)
    raise TypeError


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


def _one_of(value: str, known: Sequence[str], name: str) -> str:
    if value not in known:
        raise CurateError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")
    return value
