"""Pools of which only a part is worth training on, made of the demo's task families: what 08 and 09 choose from.

`unbalanced`: one problem in ten is of the target family (countdown), the others of the two other families; all are of
levels that the policy has not mastered. `low-utility`: nine in ten are of levels that it has mastered, and one in ten
of the others. The validation problems are of the part of the pool that counts, with rewards that can be trusted. A
problem is in one split alone: selected from, validated with or evaluated on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from one_pass import score_at_once

from hf_curate import AccuracyGreedyScorer, AlignScorer, GradAlignScorer, LearnAlignScorer, RandomScorer, Rollouts
from hf_curate.demo import POLICY, tasks
from hf_curate.scorers.gradalign import STATISTICS

TARGET = "countdown"
MASTERED = 0.9  # pass rate at temperature 1, from which on a level has nothing left to teach
SHARE = 0.1  # of the pool, that counts
SCENARIOS = ("unbalanced", "low-utility")


@dataclass(frozen=True)
class Design:
    """How many problems and rollouts there are, and how often all of it is drawn anew."""

    pool: int = 40
    rollouts: int = 8
    validation: int = 8
    validation_rollouts: int = 8
    evaluation: int = 24
    seeds: int = 1


FULL = Design(600, 16, 64, 64, 300, 5)


@dataclass
class Pool:
    """Problems with rollouts, which of them count ([rows] bool), trusted problems with rollouts of their own, and the
    held-out problems of the part that counts."""

    rows: Dataset
    counts: np.ndarray
    trusted: Dataset
    evaluation: list[dict[str, Any]]


def parts(scenario: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(family, level) of the problems that count, and of the others, by the policy's recorded pass rates."""
    rates = json.loads((POLICY / "training.json").read_text("utf-8"))["pass_rate"]
    levels = [(family, level) for family in tasks.FAMILIES for level in tasks.LEVELS[family]]
    learnable = [(family, level) for family, level in levels if rates[family][str(level)] < MASTERED]
    if scenario == "unbalanced":
        return [part for part in learnable if part[0] == TARGET], [part for part in learnable if part[0] != TARGET]
    return learnable, [part for part in levels if part not in learnable]


def problems(where: list[tuple[str, int]], count: int, seed: int, split: str) -> list[dict[str, Any]]:
    """`count` problems, as even as it goes over families and levels."""
    return [
        row
        for place, (family, level) in enumerate(where)
        if (own := count // len(where) + (place < count % len(where)))
        for row in tasks.problems(family, own, level=level, seed=seed, split=split)
    ]


def draw(scenario: str, design: Design, seed: int) -> Pool:
    """Everything that a seed decides: the problems, their order, and the rollouts of all of them."""
    useful, others = parts(scenario)
    count = round(SHARE * design.pool)
    rows = problems(useful, count, seed, "pool") + problems(others, design.pool - count, seed, "pool")
    order = np.random.default_rng([seed, design.pool]).permutation(design.pool)
    trusted = problems(useful, design.validation, seed, "validation")
    return Pool(
        sampled([rows[index] for index in order], design.rollouts, seed),
        order < count,
        sampled(trusted, design.validation_rollouts, seed),
        problems(useful, design.evaluation, seed, "held_out"),
    )


def grpo(folder: Path, steps: int, prompts: int, answers: int, learning_rate: float, seed: int) -> Any:
    """How 09 and 11 train: `steps` optimizer steps of `prompts` x `answers` rollouts, on the CPU and in silence."""
    from trl.trainer.grpo_config import GRPOConfig  # 08 trains nothing, and does without TRL

    return GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=prompts * answers,
        num_generations=answers,
        max_completion_length=tasks.LONGEST,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        temperature=1.0,
        beta=0.0,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        seed=seed,
    )


def sampled(rows: list[dict[str, Any]], n: int, seed: int, policy: Any = POLICY, tokenizer: Any = None) -> Dataset:
    """The rows with n rollouts each at temperature 1, and their rewards."""
    made = Rollouts(
        policy,
        tasks.solved,
        n,
        max_new_tokens=tasks.LONGEST,
        seed=seed,
        tokenizer=tokenizer,
        dtype="float32" if tokenizer is None else None,
    )
    dataset = Dataset.from_list(rows)
    return dataset.map(made, batched=True, features=made.features(dataset), load_from_cache_file=False)


def scores(pool: Pool, seed: int, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, [rows] scores) by every scorer; null is NaN."""
    gradalign = GradAlignScorer(POLICY, validation=pool.trusted, dtype="float32")
    gradalign.fit(pool.trusted, out=folder / f"validation-{seed}.safetensors")
    at_once = score_at_once(gradalign, pool.rows.to_list())
    yield from ((f"GradAlign, {name}", at_once[name]) for name in STATISTICS)
    align, learnalign = AlignScorer(POLICY, dtype="float32"), LearnAlignScorer(POLICY, dtype="float32")
    others = {
        "Align": align.fit(pool.rows, out=folder / f"align-{seed}.safetensors"),
        "LearnAlign": learnalign.fit(pool.rows, out=folder / f"learnalign-{seed}.safetensors"),
        "accuracy-greedy": AccuracyGreedyScorer(),
        "random": RandomScorer(seed=seed),
    }
    for name, scorer in others.items():
        scored = pool.rows.map(
            scorer, batched=True, batch_size=16, features=scorer.features(pool.rows), load_from_cache_file=False
        )
        yield name, np.array(scored[scorer.column], dtype=np.float64)


def best(found: np.ndarray, kept: int) -> np.ndarray:
    """The rows of the `kept` highest scores, ties by order, NaN last."""
    return np.argsort(-np.nan_to_num(found, nan=-np.inf), kind="stable")[:kept]


def mean_and_error(values: list[float] | np.ndarray, digits: int = 1) -> str:
    """Mean and its standard error; one value has none."""
    values = np.asarray(values, dtype=float)
    error = f"{values.std(ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else "-"
    return f"{values.mean():.{digits}f} +- {error}"
