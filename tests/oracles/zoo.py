"""Tiny random decoder-only transformers, one per way of building a block or a head. No network, seeded.

Weights are drawn anew after construction, larger than the libraries' defaults, so that the softmax is far from
uniform, norms and biases matter, and soft caps bite. The float64 form of a model has the weights of its float32 form.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from hf_curate.gradients.recompute import blocks_of
from hf_curate.models import LanguageModel, prepared

VOCABULARY = 61
WIDTH = 24


class _KeepDouble(TorchFunctionMode):
    """Turns the casts to float32 that models hard-code (norms, softmax, rotary tables) into casts to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            return args[0].double()
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})

    @staticmethod
    def around(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def inside(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(mode, _KeepDouble) for mode in _get_current_function_mode_stack()):
                return forward(*args, **kwargs)  # once is enough, and each costs time with every product
            with _KeepDouble():
                return forward(*args, **kwargs)

        return inside


class _Tokenizer:
    """Only a length: these tests start from token ids."""

    def __len__(self) -> int:
        return VOCABULARY


@dataclass(frozen=True)
class Species:
    """How to build one model: its class, its config, and the names of the weights that `last` is defined by.

    head_gain: standard deviation of the logits before any scale or cap, about; last: names within the last block, ()
    if the proxy is refused.
    """

    model: str
    config: str
    options: dict[str, Any]
    last: tuple[str, ...]
    block: str = "model.layers.1"
    head_gain: float = 3.0


COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = COMMON | {"head_dim": 8}
_PLAIN = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
_LOOP = {"experts_implementation": "eager"}  # grouped products have no float64
_GATED = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

ZOO: dict[str, Species] = {
    "qwen3": Species("Qwen3ForCausalLM", "Qwen3Config", _HEADS | {"tie_word_embeddings": True}, _GATED),
    "llama": Species("LlamaForCausalLM", "LlamaConfig", COMMON | {"tie_word_embeddings": False}, _GATED),
    "qwen2": Species("Qwen2ForCausalLM", "Qwen2Config", COMMON, _GATED),
    "gemma2": Species(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _HEADS
        | {
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 8,
            "sliding_window": 6,
            "attn_implementation": "eager",
        },
        _GATED,
    ),
    "gemma3": Species(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _HEADS | {"query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": None},
        _GATED,
        head_gain=1.0,
    ),
    "granite": Species(
        "GraniteForCausalLM",
        "GraniteConfig",
        COMMON
        | {
            "logits_scaling": 4.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.8,
            "embedding_multiplier": 2.0,
        },
        _GATED,
        head_gain=10.0,
    ),
    "cohere": Species(
        "CohereForCausalLM",
        "CohereConfig",
        COMMON | {"logit_scale": 0.25, "use_qk_norm": True},
        _GATED,
        head_gain=10.0,
    ),
    "gpt2": Species(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "n_inner": 40,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        block="transformer.h.1",
    ),
    "phi": Species(
        "PhiForCausalLM",
        "PhiConfig",
        _PLAIN | {"partial_rotary_factor": 1.0},
        ("self_attn.dense", "mlp.fc1", "mlp.fc2"),
    ),
    "gpt_neox": Species(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        _PLAIN | {"use_parallel_residual": True},
        ("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        block="gpt_neox.layers.1",
    ),
    "olmo2": Species("Olmo2ForCausalLM", "Olmo2Config", COMMON, _GATED),
    # clips queries, keys and values in place
    "olmo": Species("OlmoForCausalLM", "OlmoConfig", COMMON | {"clip_qkv": 2.0}, _GATED),
    "opt": Species(
        "OPTForCausalLM",
        "OPTConfig",
        {name: value for name, value in _PLAIN.items() if name != "intermediate_size"}
        | {"ffn_dim": 40, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": True},
        ("self_attn.out_proj", "fc1", "fc2"),
        block="model.decoder.layers.1",
    ),
    # one norm, attention and MLP in parallel, added in place
    "falcon": Species(
        "FalconForCausalLM",
        "FalconConfig",
        {name: value for name, value in _PLAIN.items() if name != "intermediate_size"}
        | {"ffn_hidden_size": 40, "parallel_attn": True, "multi_query": True, "new_decoder_architecture": False},
        ("self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        block="transformer.h.1",
    ),
    "mixtral": Species(
        "MixtralForCausalLM", "MixtralConfig", COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2} | _LOOP, ()
    ),
    "qwen3_moe": Species(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} | _LOOP,
        (),
    ),
}
DENSE = [name for name, species in ZOO.items() if species.last]
SPARSE = [name for name, species in ZOO.items() if not species.last]


@torch.no_grad()
def _redraw(model: nn.Module, head_gain: float) -> None:
    generator = torch.Generator().manual_seed(7)
    head = model.get_output_embeddings()  # type: ignore[operator]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter is head.weight:
            parameter.copy_(noise * head_gain / WIDTH**0.5)
        elif id(parameter) in tables:
            parameter.copy_(noise)
        elif parameter.dim() >= 2:
            parameter.copy_(noise * 1.5 / WIDTH**0.5)
        else:  # norm weights stay near their own start (1, or 0 where the model adds the 1), biases near 0
            parameter.add_(0.2 * noise)


@functools.cache
def _float32(name: str) -> nn.Module:
    species = ZOO[name]
    torch.manual_seed(0)
    config = getattr(transformers, species.config)(**species.options)
    model = getattr(transformers, species.model)(config).eval()
    _redraw(model, species.head_gain)
    return model


@functools.cache
def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The transformers model. Cached: leave it as you found it, or deepcopy it."""
    model = copy.deepcopy(_float32(name)).to(dtype)
    if dtype == torch.float64:
        model.forward = _KeepDouble.around(model.forward)
        decoder = model.get_decoder()  # type: ignore[operator]
        for part in (decoder, *blocks_of(decoder)):  # blocks are also run by themselves, in a backward pass
            part.forward = _KeepDouble.around(part.forward)
    return model


def ready(model: nn.Module) -> LanguageModel:
    """As the library wraps a model that it loaded."""
    return prepared(model, _Tokenizer(), torch.device("cpu"))  # type: ignore[arg-type]


@functools.cache
def language_model(name: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    return ready(build(name, dtype))


ROWS = (
    # four steps and an answer; tokens 7 and 13 lie in two segments, 1-3 in none; the last label is the last token
    (19, [[4, 5, 6, 7], [7, 8], [9, 10, 11, 12, 13], [13], [16, 17, 18]]),
    # one step of one token; the answer shares it; label 1 is the first that there is
    (6, [[1], [1, 2]]),
    # more tokens than the sliding windows; the answer stands inside the second of three steps
    (31, [[2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22, 23], [8, 9]]),
)
"""(length, spans) of the rows that every model is compared on."""


def batch(rows: tuple[tuple[int, list[list[int]]], ...] = ROWS) -> tuple[Tensor, list[list[list[int]]]]:
    """[B, T] ids, padded with ids that differ per row, and the spans."""
    generator = torch.Generator().manual_seed(11)
    longest = max(length for length, _ in rows)
    ids = torch.randint(3, VOCABULARY, (len(rows), longest), generator=generator)
    return ids, [spans for _, spans in rows]
