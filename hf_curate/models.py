"""A source of weights -> a causal LM with its tokenizer on a device.

Safe by construction: safetensors only, `trust_remote_code=False`, Hub models pinned to a commit before anything is
loaded. Supported placements: one device (default), `model_kwargs={"device_map": ...}` over several devices, quantised
linear layers (4-bit, 8-bit) as long as the LM head stays in floating point; what cannot be scored exactly is refused
by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import MissingPackageError, ModelError
from hf_curate.weights import ModelSource, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_curate.gradients.head import Head

REFUSED = {
    "dtype",
    "revision",
    "state_dict",
    "subfolder",
    "torch_dtype",
    "trust_remote_code",
    "use_safetensors",
}
"""Model arguments that would load other weights than the identity says, or run code."""

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_mark_forked)


@dataclass
class LanguageModel:
    """A loaded model, ready to be scored with. `decoder` ends after the final norm; `head` starts there.

    autocast: the type of products, where it is not that of the weights; original: the weight that `head` was cast
    from. See `as_now`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    decoder: torch.nn.Module
    head: Head
    device: torch.device
    autocast: torch.dtype | None = None
    original: torch.Tensor | None = None

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] right-padded ids -> [B, T, d] head inputs.

        No attention mask: under causal attention a real token never sees the padding to its right.
        """
        return self.states(input_ids=input_ids, use_cache=False)

    def states(self, **inputs: Any) -> torch.Tensor:
        """[B, T, d] head inputs, from what the decoder takes; in the head's type and on its device."""
        with self.computing():
            out = self.decoder(**inputs).last_hidden_state
        return out.to(self.head.weight)

    def computing(self) -> AbstractContextManager[Any]:
        """Around what a module of the decoder computes: the `autocast`, where there is one."""
        import torch

        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def as_now(self, autocast: torch.dtype | None = None, *, narrow_head: bool = True) -> LanguageModel:
        """A live model again: where it is now, with the head that it has now, and as a trainer computes with it under
        autocast, in products of that type from weights as they are. The head is cast here, once, unless its products
        stay as they are (narrow_head=False): after a step of the optimizer this has to be called again."""
        from hf_curate.gradients.head import head_of

        head, device = head_of(causal_lm(self.model)), next(self.model.parameters()).device
        cast = head
        if autocast is not None and narrow_head:
            cast = replace(
                head, weight=head.weight.to(autocast), bias=None if head.bias is None else head.bias.to(autocast)
            )
        return replace(self, head=cast, device=device, autocast=autocast, original=head.weight)

    def is_current(self) -> bool:
        """Whether `head` still is the model's: the weights of a live model may be replaced, cast or moved."""
        now = causal_lm(self.model).get_output_embeddings().weight
        held = self.head.weight if self.original is None else self.original
        return now.data_ptr() == held.data_ptr() and now.dtype == held.dtype


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout. A live model that is being trained is left in training mode, module by module."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def causal_lm(model: Any) -> Any:
    """The causal LM inside a PEFT model, else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def pick_device(asked: str | torch.device | None, rank: int | None) -> torch.device:
    """The asked device, the rank's where "cuda" is asked for; else the rank's CUDA device; else MPS; else the CPU."""
    import torch

    if asked is not None:
        device = torch.device(asked)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device={str(asked)!r}, but torch {torch.__version__} sees no CUDA device.")
        if device.type == "cuda" and device.index is None and rank is not None:
            device = torch.device("cuda", rank % torch.cuda.device_count())
    elif torch.cuda.is_available():
        device = torch.device("cuda", (rank or 0) % torch.cuda.device_count())
    else:
        device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if _forked and device.type == "cuda":
        raise ModelError(
            "CUDA cannot be used in a forked worker. Before map(num_proc=...): "
            "import multiprocess; multiprocess.set_start_method('spawn')."
        )
    return device


def settle_after_fork() -> None:
    """In a forked worker, before torch computes anything: the parent's OpenMP threads do not survive a fork, and a
    parallel region would hang."""
    if _forked:
        import torch

        torch.set_num_threads(1)


def load_tokenizer(source: ModelSource, tokenizer: Any = None) -> PreTrainedTokenizerBase:
    """The given tokenizer (object, id or folder), else the model's own; refused unless it gives character offsets."""
    from transformers import AutoTokenizer

    if tokenizer is None and source.kind == "live":
        raise ModelError(f"a live {source.name} needs its tokenizer: pass it beside the model, tokenizer=tokenizer.")
    if tokenizer is None or isinstance(tokenizer, (str, Path)):
        other = _tokenizer_source(source if tokenizer is None else tokenizer)
        try:
            tokenizer = AutoTokenizer.from_pretrained(other.name, revision=other.commit, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"no tokenizer could be loaded from {other.label!r}: {first_line(error)}") from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without its files
            raise ModelError(
                f"{other.label!r} holds no tokenizer: save it there (tokenizer.save_pretrained), or pass tokenizer=."
            )
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets and does not show its rules, and scores need both "
            "(to find steps, and to say which tokenizer it was): pass a fast tokenizer (PreTrainedTokenizerFast) as "
            "tokenizer=."
        )
    return tokenizer


def _tokenizer_source(tokenizer: str | Path | ModelSource) -> ModelSource:
    """Where the tokenizer is; an adapter folder without one has its base's."""
    if isinstance(tokenizer, ModelSource):
        return tokenizer if any(Path(tokenizer.name).glob("tokenizer*")) else tokenizer.base
    folder = Path(tokenizer).expanduser()
    return ModelSource("folder", str(folder.resolve())) if folder.is_dir() else ModelSource.of(str(tokenizer))


def as_dtype(dtype: Any) -> Any:
    """None -> "auto" (the checkpoint's own); "bfloat16", "torch.bfloat16" or a torch.dtype -> torch.dtype."""
    import torch

    if dtype is None:
        return "auto"
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype={dtype!r} is not a floating point dtype: 'float32', 'bfloat16' or 'float16'.")
    return found


def load_model(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: Any = None,
    device: str | torch.device | None = None,
    rank: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Loads (or takes) the model, puts it on its device in eval mode, and proves its head on a few tokens."""
    kwargs = dict(model_kwargs or {})
    refused = sorted(REFUSED & set(kwargs))
    if refused:
        raise ModelError(
            f"model_kwargs may not set {', '.join(refused)}: what is loaded are the safetensors at the top of the "
            "named model, without remote code; for another type or commit use dtype= or revision=."
        )
    settle_after_fork()
    place = pick_device(device, rank)
    if source.live is not None:
        if dtype is not None or kwargs:
            raise ModelError(
                "dtype= and model_kwargs= are for models that are loaded here; a live model is taken as it is."
            )
        model = source.live
        place = next(model.parameters()).device
    else:
        model = _from_pretrained(source, as_dtype(dtype), kwargs)
        if "device_map" not in kwargs and not getattr(model, "is_quantized", False):
            model.to(place)  # type: ignore[arg-type]
        else:
            place = model.get_input_embeddings().weight.device  # type: ignore[union-attr,assignment]
        model.eval()
    return prepared(model, tokenizer, place)  # type: ignore[arg-type]


def _from_pretrained(source: ModelSource, dtype: Any, kwargs: dict[str, Any]) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    base = source.base
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.name, revision=base.commit, dtype=dtype, use_safetensors=True, trust_remote_code=False, **kwargs
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{base.label!r} cannot be loaded as a causal LM: {first_line(error)}") from error
    if base is not source:
        try:
            from peft import PeftModel
        except ImportError as error:
            raise MissingPackageError("peft", "peft", f"the adapter {source.label!r}") from error
        try:
            return PeftModel.from_pretrained(model, source.name)  # type: ignore[return-value]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the adapter {source.label!r} cannot be loaded onto {base.label!r}: {first_line(error)}"
            ) from error
    return model


def prepared(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> LanguageModel:
    """A model that is in its place, ready to be scored with; raises for what cannot be scored exactly."""
    import torch

    from hf_curate.gradients.head import check_head, head_of

    inner = causal_lm(model)
    adapters = getattr(model, "peft_config", {}).values()
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters):
        raise ModelError(
            "adapters that put virtual tokens before each row (prompt learning) cannot be scored: use LoRA."
        )
    if getattr(inner.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(inner).__name__} is an encoder-decoder model; scores are defined for decoder-only models."
        )
    head = head_of(inner)
    loaded = LanguageModel(model, tokenizer, inner.get_decoder(), head, device)
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model {vocabulary:,} embeddings: they do not match."
        )
    with torch.no_grad(), evaluating(model):
        probe = torch.arange(min(8, vocabulary), device=device)[None]
        logits = inner(input_ids=probe, use_cache=False).logits[0]
        check_head(inner, head, loaded.hidden(probe)[0], logits)
    return loaded
