"""Train one of the demo's models: ``python -m hf_curate.demo.train --model arithmetic --out DIR`` (or ``tasks``).

A Qwen3-architecture model of under a million parameters learns clean completions and is stopped while it still makes
mistakes, so that its gradients have something to say. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from hf_curate.demo.recipes import RECIPES, Recipe, Settings
from hf_curate.demo.tokenizer import EOS_ID, PAD_ID, build_tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Qwen3ForCausalLM:
    """A freshly initialised Qwen3 model of the recipe's shape: 4 heads on 2 key/value heads, untied embeddings."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=recipe.max_length,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        **recipe.shape,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=PAD_ID, eos_token_id=EOS_ID, do_sample=False)
    return model


def collate(examples: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Prompts and completions as ``input_ids``, ``attention_mask`` and ``labels``, each (rows, longest in tokens).

    Rows are padded on the right; labels are -100 on the prompt and the padding, so that the loss is the mean over the
    completions' tokens and their end token.
    """
    prompts = tokenizer([prompt for prompt, _ in examples])["input_ids"]
    completions = tokenizer([completion for _, completion in examples])["input_ids"]
    longest = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(examples), longest), PAD_ID)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        tokens = torch.tensor([*prompt, *completion, EOS_ID])
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def batches(
    recipe: Recipe, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of clean completions of the split ``train``, without end."""
    examples = recipe.examples(random.Random(settings.seed))
    while True:
        yield collate(list(islice(examples, settings.batch_rows)), tokenizer)


def learning_rate_factor(step: int, settings: Settings) -> float:
    """The share of the peak learning rate at a step counted from 0: linear warm-up, then cosine to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, settings: Settings
) -> tuple[int, list[dict[str, float]]]:
    """Train in place until the recipe's check reaches the target, or ``max_steps``.

    Returns the number of optimiser steps taken and the checks: step, loss in nats per token, accuracy (0 to 1).
    """
    optimizers = recipe.optimizers(model, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
        for optimizer in optimizers
    ]
    checks: list[dict[str, float]] = []
    for step, batch in zip(range(1, settings.max_steps + 1), batches(recipe, settings, tokenizer), strict=False):
        model.train()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if step % settings.check_every == 0:
            accuracy = recipe.check(model, tokenizer, settings)
            checks.append({"step": step, "loss": round(loss.item(), 4), "accuracy": round(accuracy, 4)})
            print(f"step {step}: loss {loss.item():.3f} nats per token, accuracy {accuracy:.3f}", flush=True)
            if accuracy >= settings.target:
                return step, checks
    return settings.max_steps, checks


def write_record(folder: Path, recipe: Recipe, settings: Settings, outcome: dict[str, Any]) -> None:
    """Write ``training.json``: settings, data, outcome and the versions it was made with."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    record = {"settings": asdict(settings), "data": recipe.data(), **outcome, "versions": versions}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run(folder: Path, recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Train, save to ``folder`` in float16, measure what was saved and record; returns the outcome."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(recipe.max_length, recipe.characters)
    model = build_model(tokenizer, recipe)
    started = time.perf_counter()
    steps, checks = train(model, tokenizer, recipe, settings)
    seconds = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    outcome: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "seconds": round(seconds, 1),
        **recipe.measure(folder, settings),
        "checks": checks,
    }
    write_record(folder, recipe, settings, outcome)
    if complaint := recipe.complaint(outcome):
        raise SystemExit(f"{complaint}: change the target or the steps")
    return outcome


def main(arguments: list[str] | None = None) -> None:
    """Train with the recipe's settings, the seed and the steps apart, and print the outcome."""
    parser = argparse.ArgumentParser(description="Train one of the demo's models.")
    parser.add_argument("--model", choices=list(RECIPES), default="arithmetic")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, help="default: the recipe's")
    parser.add_argument("--max-steps", type=int, help="default: the recipe's")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.model]
    given = {"seed": options.seed, "max_steps": options.max_steps}
    settings = replace(recipe.settings, **{name: value for name, value in given.items() if value is not None})
    outcome = run(options.out, recipe, settings)
    print(json.dumps({key: value for key, value in outcome.items() if key != "checks"}, indent=2))


if __name__ == "__main__":
    main()
