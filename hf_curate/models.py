"""id[@revision] | folder | live module -> a causal LM with its tokenizer on a device, and an identity of its weights.

Safe by construction: safetensors only, `trust_remote_code=False`, Hub models pinned to a commit before anything is
loaded. Supported placements: one device (default), `model_kwargs={"device_map": ...}` over several devices, quantised
linear layers (4-bit, 8-bit) as long as the LM head stays in floating point; what cannot be scored exactly is refused
by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import MissingPackageError, ModelError
from hf_curate.hub.resolve import HUB_ID, model_commit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_curate.gradients.head import Head

WARM_UP_FILE = "hf_curate_warm_up.json"

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_mark_forked)


def _digest_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _digest_text(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


_folder_digests: dict[tuple, str] = {}


def folder_digest(folder: Path) -> str:
    """sha256 over config, adapter config and every safetensors file; read again only when one of them changed."""
    names = ["config.json", "adapter_config.json"]
    paths = [folder / name for name in names if (folder / name).is_file()] + sorted(folder.glob("*.safetensors"))
    key = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    if key not in _folder_digests:
        _folder_digests[key] = _digest_files(paths)
    return _folder_digests[key]


def weights_digest(model: PreTrainedModel) -> str:
    """sha256 over config and every tensor of a live model (names, shapes, dtypes, bytes). About 1 s per GB."""
    import torch

    digest = hashlib.sha256(json.dumps(_stable_config(model), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if not tensor.is_meta and tensor.numel():
            digest.update(memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _stable_config(model: PreTrainedModel) -> dict[str, Any]:
    volatile = {"_name_or_path", "transformers_version"}
    return {key: value for key, value in model.config.to_dict().items() if key not in volatile}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what turns text into ids: vocabulary, rules, special tokens, chat template."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    rules["truncation"] = rules["padding"] = None  # state of the last call, not of the tokenizer
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    return hashlib.sha256((json.dumps(rules, sort_keys=True) + template).encode()).hexdigest()


@dataclass
class ModelSource:
    """Which weights are meant, resolved to something that does not move: a commit, or a digest.

    kind: "hub", "folder" or "live"; name: Hub id, folder, or the class of a live model; revision: what was asked for.
    """

    kind: str
    name: str
    revision: str | None = None
    live: PreTrainedModel | None = field(default=None, repr=False, compare=False)
    _commit: str | None = None

    @classmethod
    def of(cls, model: Any, revision: str | None = None) -> ModelSource:
        if not isinstance(model, (str, Path)):
            if not hasattr(model, "state_dict") or not hasattr(model, "config"):
                raise ModelError(
                    f"model is a {type(model).__name__}; pass a Hub id ('org/name' or 'org/name@revision'), a folder, "
                    "or a transformers model with its tokenizer."
                )
            return cls("live", type(model).__name__, live=model)
        text = str(model)
        if text and Path(text).expanduser().is_dir():
            if revision:
                raise ModelError(
                    f"revision={revision!r} was given with the folder {Path(text).name!r}: folders have none."
                )
            folder = Path(text).expanduser().resolve()
            _check_folder(folder)
            return cls("folder", str(folder))
        name, _, at = text.partition("@")
        if at and revision and at != revision:
            raise ModelError(f"two revisions of {name}: {at!r} in the id and revision={revision!r}. Give one.")
        if isinstance(model, Path) or not HUB_ID.fullmatch(name):
            raise ModelError(
                f"model {text!r} is neither a folder that exists nor a Hub id ('org/name', 'org/name@revision')."
            )
        return cls("hub", name, at or revision or "main")

    @property
    def commit(self) -> str | None:
        """40 hex digits for a Hub model (asked for once, from the cache when offline), else None."""
        if self.kind == "hub" and self._commit is None:
            self._commit, why = model_commit(self.name, self.revision or "main")
            if self._commit is None:
                asked = f"{self.name}@{self.revision}"
                raise ModelError(f"{asked} cannot be resolved to a commit: {why}.")
        return self._commit

    @property
    def digest(self) -> str | None:
        """sha256 of the weights of a folder or a live model, else None. A live model is read again at every call."""
        if self.kind == "folder":
            base = _base_source(self)
            own = folder_digest(Path(self.name))
            return own if base is self else _digest_text(own, json.dumps(base.identity(), sort_keys=True))
        return weights_digest(self.live) if self.live is not None else None

    @property
    def label(self) -> str:
        """What records and cards call the model: never a path."""
        return {"hub": self.name, "folder": Path(self.name).name, "live": f"live {self.name}"}[self.kind]

    @property
    def warm_up(self) -> dict[str, Any] | None:
        """The record that `warmed_up` left beside the weights, if any."""
        path = Path(self.name) / WARM_UP_FILE
        return json.loads(path.read_text("utf-8")) if self.kind == "folder" and path.is_file() else None

    def identity(self) -> dict[str, str | None]:
        if self.kind == "hub":
            return {"id": self.name, "commit": self.commit}
        return {"digest": self.digest}


def _check_folder(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    if not files & {"config.json", "adapter_config.json"}:
        raise ModelError(f"the folder {folder.name!r} holds no config.json: it is not a transformers model.")
    adapter = "adapter_config.json" in files
    if not any(name == "adapter_model.safetensors" if adapter else name.endswith(".safetensors") for name in files):
        pickles = sorted(n for n in files if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
        raise ModelError(
            f"the folder {folder.name!r} holds no safetensors weights"
            + (f", only {', '.join(pickles)}, and pickle files can run code when loaded" if pickles else "")
            + ". Convert them once on a machine you trust: model.save_pretrained(folder)."
        )


@dataclass
class LanguageModel:
    """A loaded model, ready to be scored with. `decoder` ends after the final norm; `head` starts there."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    decoder: torch.nn.Module
    head: Head
    device: torch.device

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] right-padded ids -> [B, T, d] head inputs.

        No attention mask: under causal attention a real token never sees the padding to its right.
        """
        out = self.decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        return out.to(self.head.weight.device)

    def is_current(self) -> bool:
        """Whether `head` still is the model's: the weights of a live model may be replaced, cast or moved."""
        now = _inner(self.model).get_output_embeddings().weight
        return now.data_ptr() == self.head.weight.data_ptr() and now.dtype == self.head.weight.dtype


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


def _inner(model: Any) -> Any:
    """The causal LM inside a PEFT model, else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _base_source(source: ModelSource) -> ModelSource:
    """The source of the full weights: for an adapter folder, its base."""
    adapter = Path(source.name) / "adapter_config.json"
    if source.kind != "folder" or not adapter.is_file():
        return source
    config = json.loads(adapter.read_text("utf-8"))
    return ModelSource.of(str(config.get("base_model_name_or_path")), config.get("revision"))


def load_config(source: ModelSource) -> Any:
    """The model's configuration, without its weights."""
    if source.live is not None:
        return source.live.config
    from transformers import AutoConfig

    base = _base_source(source)
    try:
        return AutoConfig.from_pretrained(base.name, revision=base.commit, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{base.label!r} cannot be read as a model: {_first_line(error)}") from error


def config_dtype(config: Any) -> str:
    """The dtype a checkpoint declares, as "bfloat16"; "auto" if it declares none."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    dtype = getattr(config, "dtype", None) or getattr(text, "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype else "auto"


def context_length(config: Any) -> int | None:
    """Positions that rows may have: those the model was made for, or None if the config does not say.

    Rotary tables of the types "longrope" and "dynamic" depend on the longest row of a batch beyond the original
    length; scores must not, so rows end there.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if batch_dependent_rope(config):
        rope = getattr(text, "rope_parameters", None) or {}
        original = rope.get("original_max_position_embeddings")
        length = original or getattr(text, "original_max_position_embeddings", None) or length
    return int(length) if length else None


def batch_dependent_rope(config: Any) -> str | None:
    """The rotary type whose tables depend on the batch beyond `context_length`, if the model has one."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = (getattr(text, "rope_parameters", None) or {}).get("rope_type")
    return kind if kind in ("longrope", "dynamic") else None


def pick_device(asked: str | torch.device | None, rank: int | None) -> torch.device:
    """The asked device; else the rank's CUDA device; else MPS; else the CPU."""
    import torch

    if asked is not None:
        device = torch.device(asked)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device={str(asked)!r}, but torch {torch.__version__} sees no CUDA device.")
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
        raise ModelError(f"a live {source.name} needs its tokenizer: GraceScorer(model, tokenizer=tokenizer).")
    if tokenizer is None or isinstance(tokenizer, (str, Path)):
        other = _tokenizer_source(source if tokenizer is None else tokenizer)
        try:
            tokenizer = AutoTokenizer.from_pretrained(other.name, revision=other.commit, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"no tokenizer could be loaded from {other.label!r}: {_first_line(error)}") from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without its files
            raise ModelError(
                f"{other.label!r} holds no tokenizer: save it there (tokenizer.save_pretrained), or pass tokenizer=."
            )
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, which the spans of steps need: "
            "pass a fast tokenizer (PreTrainedTokenizerFast) as tokenizer=."
        )
    return tokenizer


def _tokenizer_source(tokenizer: str | Path | ModelSource) -> ModelSource:
    """Where the tokenizer is; an adapter folder without one has its base's."""
    if isinstance(tokenizer, ModelSource):
        return tokenizer if any(Path(tokenizer.name).glob("tokenizer*")) else _base_source(tokenizer)
    folder = Path(tokenizer).expanduser()
    return ModelSource("folder", str(folder.resolve())) if folder.is_dir() else ModelSource.of(str(tokenizer))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


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
    refused = sorted({"trust_remote_code", "use_safetensors", "revision"} & set(kwargs))
    if refused:
        raise ModelError(f"model_kwargs may not set {', '.join(refused)}: safetensors without remote code, revision=.")
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
    return _ready(model, tokenizer, place)  # type: ignore[arg-type]


def _from_pretrained(source: ModelSource, dtype: Any, kwargs: dict[str, Any]) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    base = _base_source(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.name, revision=base.commit, dtype=dtype, use_safetensors=True, trust_remote_code=False, **kwargs
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{base.label!r} cannot be loaded as a causal LM: {_first_line(error)}") from error
    if base is not source:
        try:
            from peft import PeftModel
        except ImportError as error:
            raise MissingPackageError("peft", "peft", f"the adapter {source.label!r}") from error
        try:
            return PeftModel.from_pretrained(model, source.name)  # type: ignore[return-value]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the adapter {source.label!r} cannot be loaded onto {base.label!r}: {_first_line(error)}"
            ) from error
    return model


def _ready(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> LanguageModel:
    import torch

    from hf_curate.gradients.head import check_head, head_of

    inner = _inner(model)
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
