"""The base models: shapes, what they learn before any selection, and their folders for the scorers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from evidence.language import CHARACTERS, Language, Row, verbose, written
from evidence.stack import Parameters, Shape, Stack, stacked
from evidence.training import Texts, encode, optimise
from hf_curate.demo.tokenizer import EOS_ID, PAD_ID, build_tokenizer

MIXTURE: tuple[tuple[str, tuple[int, ...], float, float], ...] = (
    ("+-", (2, 3, 4), 1.0, 0.38),
    ("+-*", (8,), 1.0, 0.36),
    ("*", (2, 3, 4), 1.0, 0.12),
    ("@&", (2, 3), 0.5, 0.07),
    ("^", (2, 3), 0.3, 0.04),
    ("~", (2, 3), 0.2, 0.03),
)
"""(symbols, lengths, part of the operands, share) of the problems that a base learns from. The first ones it masters;
of the others it sees small operands alone, and of "!" nothing."""
VERBOSE = 0.1


@dataclass(frozen=True)
class Pretraining:
    """How a base learns: updates, rows of each, learning rate."""

    updates: int = 1500
    rows: int = 32
    rate: float = 5e-3
    sorted_together: int = 16
    """Batches whose rows are sorted by length among them, so that little is padding."""


def tokenizer(shape: Shape) -> PreTrainedTokenizerBase:
    return build_tokenizer(shape.longest, CHARACTERS)


def empty(shape: Shape, seed: int) -> Qwen3ForCausalLM | LlamaForCausalLM:
    """transformers' model of a shape with fresh weights."""
    torch.manual_seed(seed)
    config = {"qwen3": Qwen3Config, "llama": LlamaConfig}[shape.architecture](
        vocab_size=len(tokenizer(shape)),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head,
        max_position_embeddings=shape.longest,
        rms_norm_eps=shape.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
    )
    model = Qwen3ForCausalLM(config) if shape.architecture == "qwen3" else LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=PAD_ID, eos_token_id=EOS_ID, do_sample=False)
    return model


def examples(language: Language, rng: random.Random) -> Iterator[Row]:
    """What a base learns from, without end: right traces of the split "train", some of them verbose."""
    shares = [share for *_, share in MIXTURE]
    while True:
        signs, lengths, part, _ = rng.choices(MIXTURE, shares)[0]
        problem = language.draw(signs, lengths, rng, "train", round(part * language.modulus))
        steps = language.work_out(problem)
        yield {"prompt": problem.prompt, "completion": (verbose if rng.random() < VERBOSE else written)(steps)}


def batches(
    language: Language, settings: Pretraining, seed: int, texts: Callable[[list[Row]], Texts]
) -> Iterator[tuple[Tensor, Tensor]]:
    """ids and labels [1, rows, length], without end."""
    source, rng = examples(language, random.Random(seed)), np.random.default_rng([seed, 1])
    while True:
        drawn = texts(list(islice(source, settings.rows * settings.sorted_together)))
        places = drawn.lengths.argsort().view(settings.sorted_together, settings.rows)
        for chosen in rng.permutation(settings.sorted_together):
            yield drawn.batch(places[chosen][None])


def pretrain(shape: Shape, settings: Pretraining, seed: int, language: Language, device: str = "cpu") -> Parameters:
    """A stack of one model that has learnt the mixture."""
    reader = tokenizer(shape)
    parameters = {name: value.to(device) for name, value in stacked([empty(shape, seed).state_dict()]).items()}
    source = batches(language, settings, seed, lambda rows: encode(rows, reader, device))
    optimise(Stack(shape), parameters, source, settings.updates, settings.rate)
    return parameters


def save(parameters: Parameters, shape: Shape, folder: Path) -> None:
    """The only model of a stack as transformers' model and tokenizer, in float32 safetensors."""
    model = empty(shape, 0)
    model.load_state_dict({name: value[0] for name, value in parameters.items()})
    model.save_pretrained(folder)
    tokenizer(shape).save_pretrained(folder)


def load(folder: Path, device: str = "cpu") -> Parameters:
    """What `save` wrote, as a stack of one."""
    return {name: value[None].to(device) for name, value in load_file(folder / "model.safetensors").items()}
