"""Train the demo model: ``python -m hf_curate.demo.train --out DIR``.

A Qwen3-architecture model of under a million parameters learns clean traces and is stopped while it still makes
mistakes, so that its gradients have something to say. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_curate.demo import make_data, world
from hf_curate.demo.evaluate import greedy_accuracy
from hf_curate.demo.tokenizer import EOS_ID, PAD_ID, build_tokenizer

ACCEPTED = (0.60, 0.95)  # greedy accuracy that the saved model must lie between
STOP_SEED_OFFSET, MEASURE_SEED_OFFSET = 1, 2  # problems to stop by, and problems to report on


@dataclass(frozen=True)
class Settings:
    """Everything that decides the training; counts are optimiser steps or rows, ``target`` a share of 0 to 1."""

    seed: int = 17
    max_steps: int = 1200
    warmup_steps: int = 40
    batch_rows: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    check_every: int = 25
    check_rows: int = 300
    target: float = 0.78
    measure_rows: int = 1500
    threads: int = 2


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A freshly initialised Qwen3 model: 4 layers, width 128, 4 heads on 2 key/value heads, untied embeddings."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=PAD_ID, eos_token_id=EOS_ID, do_sample=False)
    return model


def collate(problems: list[world.Problem], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Clean traces as ``input_ids``, ``attention_mask`` and ``labels``, each (rows, longest trace in tokens).

    Rows are padded on the right; labels are -100 on the prompt and the padding, so that the loss is the mean over the
    completions' tokens and their end token.
    """
    prompts = tokenizer([problem.prompt for problem in problems])["input_ids"]
    completions = tokenizer([world.clean(problem) for problem in problems])["input_ids"]
    longest = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(problems), longest), PAD_ID)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        tokens = torch.tensor([*prompt, *completion, EOS_ID])
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def batches(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of clean traces of the split ``train``, without end."""
    problems = world.stream_problems(random.Random(settings.seed), "train")
    while True:
        yield collate([next(problems) for _ in range(settings.batch_rows)], tokenizer)


def learning_rate_factor(step: int, settings: Settings) -> float:
    """The share of the peak learning rate at a step counted from 0: linear warm-up, then cosine to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> tuple[int, list[dict[str, float]]]:
    """Train in place until the accuracy on the split ``stop`` reaches the target, or ``max_steps``.

    Returns the number of optimiser steps taken and the checks: step, loss in nats per token, accuracy.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    stop_rng = random.Random(settings.seed + STOP_SEED_OFFSET)
    stop_problems = world.draw_problems(settings.check_rows, stop_rng, "stop")
    checks: list[dict[str, float]] = []
    for step, batch in zip(range(1, settings.max_steps + 1), batches(settings, tokenizer), strict=False):
        model.train()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % settings.check_every == 0:
            accuracy = greedy_accuracy(model, tokenizer, stop_problems)["all"]
            checks.append({"step": step, "loss": round(loss.item(), 4), "accuracy": round(accuracy, 4)})
            print(f"step {step}: loss {loss.item():.3f} nats per token, greedy accuracy {accuracy:.3f}", flush=True)
            if accuracy >= settings.target:
                return step, checks
    return settings.max_steps, checks


def measure(folder: Path, settings: Settings) -> dict[str, float]:
    """The greedy accuracy of the SAVED model on the split ``held_out``, its float16 weights computed in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = random.Random(settings.seed + MEASURE_SEED_OFFSET)
    return greedy_accuracy(model, tokenizer, world.draw_problems(settings.measure_rows, rng, "held_out"))


def describe_data() -> dict[str, object]:
    """How the traces were made and how the splits keep problems apart, for ``training.json``."""
    return {
        "traces": {"rows": make_data.ROWS, "damaged_share": make_data.DAMAGED_SHARE, "seed": make_data.SEED},
        "splits_percent": {name: len(percents) for name, percents in world.SPLITS.items()},
        "separation": "by SHA-256 of the prompt, so no problem is in two splits: the model learnt from 'train', was "
        "stopped by 'stop' and is measured on 'held_out'; traces.parquet is drawn from 'traces'",
    }


def write_record(folder: Path, settings: Settings, outcome: dict[str, object]) -> None:
    """Write ``training.json``: settings, data, outcome and the versions it was made with."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["transformers"] = transformers.__version__
    record = {"settings": asdict(settings), "data": describe_data(), **outcome, "versions": versions}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run(folder: Path, settings: Settings) -> dict[str, object]:
    """Train, save to ``folder`` in float16, reload, measure and record; returns the outcome."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(max_length=512)
    model = build_model(tokenizer)
    started = time.perf_counter()
    steps, checks = train(model, tokenizer, settings)
    seconds = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    accuracy = {key: round(value, 4) for key, value in measure(folder, settings).items()}
    outcome: dict[str, object] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "seconds": round(seconds, 1),
        "greedy_accuracy": {"rows": settings.measure_rows, "dtype": "float16 weights, float32 arithmetic", **accuracy},
        "checks": checks,
    }
    write_record(folder, settings, outcome)
    if not ACCEPTED[0] <= accuracy["all"] <= ACCEPTED[1]:
        raise SystemExit(f"greedy accuracy {accuracy['all']} is outside {ACCEPTED}: change the target or the steps")
    return outcome


def main(arguments: list[str] | None = None) -> None:
    """Train with the default settings, the seed and the steps apart, and print the outcome."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--max-steps", type=int, default=Settings.max_steps)
    options = parser.parse_args(arguments)
    outcome = run(options.out, Settings(seed=options.seed, max_steps=options.max_steps))
    print(json.dumps({key: value for key, value in outcome.items() if key != "checks"}, indent=2))


if __name__ == "__main__":
    main()
