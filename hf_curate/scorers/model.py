"""What every scorer with a model shares: which weights, on which device, loaded when; its record, call and pickles."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError
from hf_curate.memory import TokenBudget
from hf_curate.models import as_dtype, load_model, settle_after_fork
from hf_curate.scorers.base import Scorer
from hf_curate.weights import ModelSource, config_dtype, folder_digest, load_config

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel

logger = logging.getLogger("hf_curate")

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


class ModelScorer(Scorer):
    """Base of the scorers that read rows with a model.

    A subclass calls `_take` first in its constructor, with `locals()`, and then sets `reader` (a `reading.Reader`).
    """

    reader: Any
    placing = ("model", "revision", "tokenizer", "model_kwargs", "device", "batch_tokens")
    """Arguments that `call` writes in its own way, or leaves out because they change no numbers."""

    def _take(self, given: Mapping[str, Any]) -> None:
        """The constructor's arguments: kept for pickles, and those that say which model and where."""
        self._arguments = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        self.source = self._source_of(given)
        self.dtype, self.device = given["dtype"], given["device"]
        self.model_kwargs = dict(given["model_kwargs"] or {})
        self.batch_tokens = given["batch_tokens"]
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise CurateError(f"batch_tokens={self.batch_tokens} must be 1 or more.")
        self.model_kwargs_record = _recorded(self.model_kwargs)
        as_dtype(self.dtype)
        self._loaded: LanguageModel | None = None
        self._on_disk: str | None = None  # digest of the folder that was loaded
        self._warned_unknown = self._warned_memory = False
        self._budget: TokenBudget | None = None

    def _source_of(self, given: Mapping[str, Any]) -> ModelSource:
        return ModelSource.of(given["model"], given["revision"])

    # -- what a Scorer answers ----------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        record = super().record()
        return {**record, "settings": {**record["settings"], **self.reader.record()}}

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
        given = {n: v for n, v in self._arguments.items() if n not in self.placing and v != defaults[n]}
        names = {
            "live": "model, tokenizer=tokenizer",
            "awaited": "model=None",
            "folder": repr(f"./{self.source.label}"),
        }
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

    # -- the model ----------------------------------------------------------------------------------------------------

    def load(self, rank: int | None = None) -> LanguageModel:
        """The model on its device; loaded at the first call, one per process."""
        settle_after_fork()  # a function that holds a loaded scorer may have been forked with it
        on_disk = folder_digest(Path(self.source.name)) if self.source.kind == "folder" else None
        gone = self.source.live is not None and self._loaded is not None and not self._loaded.is_current()
        if self._loaded is None or gone or on_disk != self._on_disk:  # a trainer may save to the same folder again
            self._on_disk = on_disk
            self._before_load()
            self._loaded = load_model(
                self.source,
                self.reader.tokenizer,
                dtype=self.dtype,
                device=self.device,
                rank=rank,
                model_kwargs=self.model_kwargs,
            )
        return self._loaded

    def release(self) -> None:
        """Lets go of the model and what lies beside it on its device; it is loaded again where it is needed."""
        self._loaded = None

    def _before_load(self) -> None:
        """Called before weights are read."""

    def token_limit(self, model: LanguageModel) -> int:
        """Padded tokens in one forward."""
        return self.batch_tokens or (8192 if model.device.type == "cpu" else 32768)

    def token_budget(self, model: LanguageModel) -> TokenBudget:
        """The same, and fewer after they did not fit into memory."""
        limit = self.token_limit(model)
        if self._budget is None or self._budget.limit != limit:
            self._budget = TokenBudget(limit, self._say_memory)
        return self._budget

    def _say_memory(self, sentence: str) -> None:
        """Every time in the notes; a warning once."""
        self.notes.append(sentence)
        logger.log(logging.INFO if self._warned_memory else logging.WARNING, "%s: %s", self.name, sentence)
        self._warned_memory = True

    def _warn_about_unknown_tokens(self, rows: Sequence[Sequence[int]]) -> None:
        """Once: a tokenizer that does not know the text gives numbers all the same."""
        unknown = self.reader.tokenizer.unk_token_id
        if self._warned_unknown or unknown is None or not rows:
            return
        share = sum(list(row).count(unknown) for row in rows) / sum(map(len, rows))
        if share > UNKNOWN_SHARE:
            self._warned_unknown = True
            warnings.warn(
                f"{share:.0%} of the tokens are unknown to the tokenizer of {self.source.label}: scores of text that "
                "the model cannot read mean nothing. Is it the right model?",
                UserWarning,
                stacklevel=6,
            )

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
                f"a live {self.source.name} cannot travel to a worker process (num_proc= or workers= is set): save it "
                "with model.save_pretrained(folder) and tokenizer.save_pretrained(folder) and pass the folder or a "
                "Hub id, or leave num_proc= and workers= away."
            )
        self._before_load()
        return {**self._arguments, **self._pinned_model()}

    def _pinned_model(self) -> dict[str, Any]:
        if self.source.live is not None:
            return {"model": None}
        return {"model": self.source.name, "revision": self.source.commit}


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


def one_of(value: str, known: Sequence[str], name: str) -> str:
    if value not in known:
        raise CurateError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")
    return value
