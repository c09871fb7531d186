"""The work of the benchmarks: Qwen3-shaped models with random weights, and rows like those of reasoning data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_curate.batches import bucket
from hf_curate.gradients.head import head_of
from hf_curate.models import LanguageModel

VOCABULARY = 151_936
Row = tuple[list[int], list[list[int]]]
"""Token ids, and the label positions of each step and of the answer."""
Batches = list[tuple[torch.Tensor, torch.Tensor, list[list[list[int]]]]]
"""[B, T] ids, the places of all labels in them (flat), and the rows' label positions."""

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "layers": 28},
    "Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "layers": 28},
    "Qwen3-8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "layers": 36},
}
"""As on the Hub; all have 8 key-value heads of 128. The head of the 8B model is its own, the others' is tied."""


def make_config(shape: str, layers: int | None = None, **other: Any) -> Qwen3Config:
    """The shape with so many of its layers; `other` replaces any of it, for something smaller."""
    own = dict(SHAPES[shape])
    depth = own.pop("layers")
    settings = {
        "vocab_size": VOCABULARY,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape != "Qwen3-8B",
        **own,
        "num_hidden_layers": depth if layers is None else layers,
        **other,
    }
    return Qwen3Config(**settings)


def as_loaded(model: Any, tokenizer: Any = None) -> LanguageModel:
    device = next(model.parameters()).device
    return LanguageModel(model, tokenizer, model.get_decoder(), head_of(model), device)


def make_model(
    layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    shape: str = "Qwen3-0.6B",
    device: str = "cpu",
    **other: Any,
) -> LanguageModel:
    """Random weights, made in their type and where they stay; ids need no tokenizer."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(make_config(shape, layers, **other)).eval()
    finally:
        torch.set_default_dtype(before)
    return as_loaded(model)


def make_lengths(rows: int, median: int, longest: int, seed: int = 0) -> list[int]:
    """Log-normal, as reasoning data has them: one row in twenty is over 2.7 times the median."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 0.6, rows)
    return np.clip(drawn, min(64, median), longest).astype(int).tolist()


def make_rows(lengths: list[int], steps: tuple[int, int] = (8, 20), vocabulary: int = VOCABULARY) -> list[Row]:
    """A third of each row is prompt, the last 4 tokens are the answer, and the steps share what lies between."""
    rng, made = np.random.default_rng(1), []
    for length in lengths:
        cuts = np.linspace(length // 3, length - 4, int(rng.integers(steps[0], steps[1] + 1)) + 1).astype(int)
        spans = [list(range(a, b)) for a, b in pairwise(cuts) if b > a]
        made.append((rng.integers(0, vocabulary, length).tolist(), [*spans, list(range(length - 4, length))]))
    return made


def batch_of(rows: list[Row], device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, list[list[list[int]]]]:
    """One padded batch."""
    width = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows], device=device)
    places = [
        number * width + place
        for number, (_, spans) in enumerate(rows)
        for place in sorted({place for span in spans for place in span})
    ]
    return padded, torch.tensor(places, device=device), [spans for _, spans in rows]


def make_batches(rows: int, median: int, longest: int, batch_tokens: int) -> tuple[Batches, int]:
    """Rows of similar length together, as the scorers batch them, and the tokens of all."""
    made = make_rows(make_lengths(rows, median, longest))
    groups = bucket([len(ids) for ids, _ in made], batch_tokens)
    return [batch_of([made[i] for i in group]) for group in groups], sum(len(ids) for ids, _ in made)
