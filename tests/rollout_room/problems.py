"""The demo's arithmetic as problems without rollouts, the shipped model to sample them, a contract to judge them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from datasets import Dataset

from hf_curate import Rollouts, verifier
from hf_curate.demo import MODEL, world
from hf_curate.rollouts.verify import Verifier

Row = dict[str, Any]
CONTEXT = 512
"""Tokens of the shipped model; one for each character."""


def problem_rows(count: int = 6, seed: int = 0) -> list[Row]:
    """Problems that the shipped model was not trained on, some of which it solves sometimes."""
    drawn = world.draw_problems(count, random.Random(seed), "held_out")
    return [{"prompt": one.prompt, "answer": str(world.true_answer(one.prompt))} for one in drawn]


def problems(count: int = 6, seed: int = 0) -> Dataset:
    return Dataset.from_list(problem_rows(count, seed))


def answers(**options: Any) -> Verifier:
    """The number of the last answer line, "#71", is the gold one."""
    return verifier("exact", **{"pattern": r"(?m)^#(\d+)$", **options})


def roller(judge: Any = None, n: int = 4, **options: Any) -> Rollouts:
    return Rollouts(MODEL, judge or answers(), n, **{"max_new_tokens": 40, "dtype": "float32", **options})


def rolled(dataset: Dataset, made: Rollouts, **options: Any) -> Dataset:
    return dataset.map(made, **{"batched": True, "features": made.features(dataset), **options})


@contextmanager
def sampling() -> Iterator[list[int]]:
    """A list of how many problems were sampled at a time."""
    seen: list[int] = []
    before = Rollouts._sample

    def counted(self: Rollouts, asked: Any, rank: int | None) -> Any:
        seen.append(len(asked))
        return before(self, asked, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollouts, "_sample", counted)
        yield seen
