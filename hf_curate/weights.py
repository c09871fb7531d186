"""Which weights are meant: id[@revision] | folder | live module -> an identity that does not move, and what the config
says. No torch is loaded to answer that, except for the digest of a live model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import ModelError
from hf_curate.hub.resolve import HUB_ID, model_commit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARM_UP_FILE = "hf_curate_warm_up.json"


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
    """sha256 over config, adapters and every tensor of a live model (names, shapes, dtypes, bytes). About 1 s per
    GB."""
    import torch

    parts = [_stable_config(model), *_adapters(model)]
    digest = hashlib.sha256("\0".join(json.dumps(part, sort_keys=True, default=_plain) for part in parts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if not tensor.is_meta and tensor.numel():
            digest.update(memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _stable_config(model: PreTrainedModel) -> dict[str, Any]:
    volatile = {"_name_or_path", "transformers_version"}
    return {key: value for key, value in model.config.to_dict().items() if key not in volatile}


def _adapters(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The settings of a live model's PEFT adapters, and which of them act in each layer and how; [] without any."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return []
    volatile = {"base_model_name_or_path", "revision", "inference_mode", "peft_version"}
    settings = {
        name: {key: value for key, value in config.to_dict().items() if key not in volatile}
        for name, config in configs.items()
    }
    layers = {
        name: [module.disable_adapters, module.active_adapters, module.merged_adapters, getattr(module, "scaling", {})]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)  # a method elsewhere
    }
    return [settings, layers]


def _plain(value: Any) -> Any:
    """Values of configs that JSON does not know: sets in a fixed order, everything else as text."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what turns text into ids: vocabulary, rules, chat template, the tokens that begin and end it."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    rules["truncation"] = rules["padding"] = None  # state of the last call, not of the tokenizer
    roles = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps([rules, roles], sort_keys=True).encode()).hexdigest()


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
    def base(self) -> ModelSource:
        """The source of the full weights: for an adapter folder that of its base, else this one."""
        adapter = Path(self.name) / "adapter_config.json"
        if self.kind != "folder" or not adapter.is_file():
            return self
        config = json.loads(adapter.read_text("utf-8"))
        return ModelSource.of(str(config.get("base_model_name_or_path")), config.get("revision"))

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
            base = self.base
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


def load_config(source: ModelSource) -> Any:
    """The model's configuration, without its weights."""
    if source.live is not None:
        return source.live.config
    from transformers import AutoConfig

    base = source.base
    try:
        return AutoConfig.from_pretrained(base.name, revision=base.commit, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{base.label!r} cannot be read as a model: {first_line(error)}") from error


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


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
