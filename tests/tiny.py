"""Tiny tokenizers and models made on the spot, and scripts run in a process of their own. No network."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
import transformers
import warm
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
TEXTS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
    "Let us think step by step.\r\nStep 1: 2 + 2 = 4\r\nStep 2: so \\boxed{4}",
    "<think>\nfirst, add the two numbers\n\nthen check\n</think>\n\nThe answer is 12.",
    "السؤال: كم يساوي ٢ + ٢؟ الجواب: أربعة",
    "emoji 🎉👩‍👩‍👧 and e\u0301 combining, naïve café, 日本語",
]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(texts: list[str] | None = None, *, size: int = 400, bos: bool = False, **options: Any):
    """Byte-level BPE, as GPT and Qwen have it; `bos` makes it put <s> before plain text, as Llama does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts or TEXTS, trainer)
    return _wrapped(backend, bos, **options)


def unigram(texts: list[str] | None = None, *, size: int = 150, bos: bool = False, **options: Any):
    """Unigram over words with a marked space and NFKC, as sentencepiece models have it."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(texts or TEXTS, trainer)
    return _wrapped(backend, bos, **options)


def _wrapped(backend: Tokenizer, bos: bool, **options: Any) -> PreTrainedTokenizerFast:
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | options
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: value for name, value in named.items() if value is not None}
    )


def tiny(kind: str = "Qwen3", vocabulary: int = 400, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random causal LM of some ten thousand parameters, in eval mode."""
    if kind == "GPT2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
        options = {"bos_token_id": 1, "eos_token_id": 2} | options
        config, model = transformers.GPT2Config, transformers.GPT2LMHeadModel
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024}
        config, model = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(seed)
    return model(config(vocab_size=vocabulary, **(sizes | options))).eval()


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder with both in it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_script(folder: Path, code: str, *arguments: Any, timeout: float = 100, **environment: str) -> Any:
    """Runs a Python script in a new process and returns what it printed last, as JSON. A hang fails the test."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    command = [sys.executable, str(script), *map(str, arguments)]
    done = warm.run(
        command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | environment, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
