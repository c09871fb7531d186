"""What the demo's two models learn, and how each is stopped, measured and accepted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_curate.demo import make_data, tasks, tokenizer, world
from hf_curate.demo.evaluate import greedy_accuracy, pass_rates

STOP_SEED_OFFSET, MEASURE_SEED_OFFSET = 1, 2  # problems to stop by, and problems to report on
ACCEPTED = (0.60, 0.95)  # greedy accuracy that the saved arithmetic model must lie between
MASTERED = 0.9  # pass rate at temperature 1: some levels of the tasks lie above it, and some of each family below
DTYPE = "float16 weights, float32 arithmetic"


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


@dataclass(frozen=True)
class Recipe:
    """One of the models.

    Attributes:
        settings: the defaults.
        shape: what of Qwen3's configuration differs between the models.
        max_length, characters: of the model and its tokenizer.
        examples: prompts and clean completions of the split "train", without end.
        check: what is compared with the target during training, a share of 0 to 1, on the split "stop".
        measure: what the record says of the SAVED model, on the split "held_out".
        data: what the record says of the data.
        complaint: why a measured model is refused, "" if it is not.
        optimizers: what takes the steps, each with the learning rate's peak.
    """

    settings: Settings
    shape: Mapping[str, Any]
    max_length: int
    characters: str
    examples: Callable[[random.Random], Iterator[tuple[str, str]]]
    check: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Settings], float]
    measure: Callable[[Path, Settings], dict[str, Any]]
    data: Callable[[], dict[str, Any]]
    complaint: Callable[[dict[str, Any]], str]
    optimizers: Callable[[torch.nn.Module, Settings], list[torch.optim.Optimizer]]


# -- chained arithmetic, for gradients of traces ----------------------------------------------------------------------


def _traces(rng: random.Random) -> Iterator[tuple[str, str]]:
    for problem in world.stream_problems(rng, "train"):
        yield problem.prompt, world.clean(problem)


def _greedy_at_stop(model: PreTrainedModel, reader: PreTrainedTokenizerBase, settings: Settings) -> float:
    rng = random.Random(settings.seed + STOP_SEED_OFFSET)
    return greedy_accuracy(model, reader, world.draw_problems(settings.check_rows, rng, "stop"))["all"]


def _greedy_held_out(folder: Path, settings: Settings) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reader = AutoTokenizer.from_pretrained(folder)
    rng = random.Random(settings.seed + MEASURE_SEED_OFFSET)
    found = greedy_accuracy(model, reader, world.draw_problems(settings.measure_rows, rng, "held_out"))
    accuracy = {key: round(value, 4) for key, value in found.items()}
    return {"greedy_accuracy": {"rows": settings.measure_rows, "dtype": DTYPE, **accuracy}}


def _about_traces() -> dict[str, Any]:
    return {
        "traces": {"rows": make_data.ROWS, "damaged_share": make_data.DAMAGED_SHARE, "seed": make_data.SEED},
        "splits_percent": {name: len(percents) for name, percents in world.SPLITS.items()},
        "separation": "by SHA-256 of the prompt, so no problem is in two splits: the model learnt from 'train', was "
        "stopped by 'stop' and is measured on 'held_out'; traces.parquet is drawn from 'traces'",
    }


def _outside(measured: dict[str, Any]) -> str:
    accuracy = measured["greedy_accuracy"]["all"]
    return "" if ACCEPTED[0] <= accuracy <= ACCEPTED[1] else f"greedy accuracy {accuracy} is outside {ACCEPTED}"


def _adamw(model: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    decay = settings.weight_decay
    return [torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=decay)]


ARITHMETIC = Recipe(
    settings=Settings(),
    shape={"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 32},
    max_length=512,
    characters=tokenizer.CHARACTERS,
    examples=_traces,
    check=_greedy_at_stop,
    measure=_greedy_held_out,
    data=_about_traces,
    complaint=_outside,
    optimizers=_adamw,
)


# -- task families, for reinforcement learning ------------------------------------------------------------------------

MIXTURE = {  # share of the training rows, by family and level
    "chain": (0.36, 0.20, 0.03),
    "countdown": (0.09, 0.10, 0.10),
    "sort": (0.08, 0.03, 0.01),
}


def _tasks(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Problems in the shares of `MIXTURE`, drawn anew each time: a problem of countdown has several solutions."""
    kinds = [(family, level) for family, levels in tasks.LEVELS.items() for level in levels]
    shares = [share for family in tasks.FAMILIES for share in MIXTURE[family]]
    streams = {(family, level): tasks.stream(family, rng, "train", level) for family, level in kinds}
    while True:
        row = next(streams[rng.choices(kinds, shares)[0]])
        yield row["prompt"], tasks.clean(row)


def _problems(rows: int, seed: int, split: str, levels: slice = slice(None)) -> list[tasks.Row]:
    """So many problems of each of these levels of each family."""
    kinds = [(family, level) for family, own in tasks.LEVELS.items() for level in own[levels]]
    return [row for f, level in kinds for row in tasks.problems(f, rows, level=level, seed=seed, split=split)]


def _easiest_at_stop(model: PreTrainedModel, reader: PreTrainedTokenizerBase, settings: Settings) -> float:
    """The pass rate at temperature 1 of each family's easiest level; of the family where it is lowest."""
    seed = settings.seed + STOP_SEED_OFFSET
    rows = _problems(settings.check_rows, seed, "stop", slice(1))
    found = pass_rates(model, rows, tokenizer=reader, seed=seed)
    return min(share for levels in found.values() for share in levels.values())


def _sampled_held_out(folder: Path, settings: Settings) -> dict[str, Any]:
    seed = settings.seed + MEASURE_SEED_OFFSET
    rows = _problems(settings.measure_rows, seed, "held_out")
    measured: dict[str, Any] = {}
    for name, temperature in (("pass_rate", 1.0), ("greedy_accuracy", 0.0)):
        found = pass_rates(folder, rows, temperature=temperature, seed=seed)
        shares = {family: {level: round(p, 4) for level, p in levels.items()} for family, levels in found.items()}
        measured[name] = {"rows_a_level": settings.measure_rows, "temperature": temperature, "dtype": DTYPE, **shares}
    return measured


def _about_tasks() -> dict[str, Any]:
    return {
        "levels": {family: list(levels) for family, levels in tasks.LEVELS.items()},
        "mixture": {family: list(weights) for family, weights in MIXTURE.items()},
        "splits_percent": {name: len(percents) for name, percents in tasks.SPLITS.items()},
        "separation": "by SHA-256 of the prompt, so no problem is in two splits: the policy learnt from 'train', was "
        "stopped by 'stop' and is measured on 'held_out'; 'validation' and 'pool' were never used",
    }


def _nothing_to_choose(measured: dict[str, Any]) -> str:
    rates = {family: list(measured["pass_rate"][family].values()) for family in tasks.FAMILIES}
    for family, own in rates.items():
        if min(own) >= MASTERED:
            return f"{family} has pass rates {own}, and needs one below {MASTERED}"
    if max(map(max, rates.values())) < MASTERED:
        return f"no level has a pass rate of {MASTERED}: {rates}"
    return ""


def _muon(model: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW at half of its learning rate for the rest."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    rest = [p for name, p in model.named_parameters() if name not in matrices]
    rate, decay = settings.learning_rate, settings.weight_decay
    return [
        torch.optim.Muon(matrices.values(), lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate / 2, weight_decay=decay),
    ]


TASKS = Recipe(
    settings=Settings(
        max_steps=2600,
        batch_rows=64,
        learning_rate=1e-2,
        check_every=50,
        check_rows=200,
        target=0.93,
        measure_rows=500,
        threads=1,
    ),
    shape={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 24},
    max_length=128,
    characters=tasks.CHARACTERS,
    examples=_tasks,
    check=_easiest_at_stop,
    measure=_sampled_held_out,
    data=_about_tasks,
    complaint=_nothing_to_choose,
    optimizers=_muon,
)

RECIPES = {"arithmetic": ARITHMETIC, "tasks": TASKS}
