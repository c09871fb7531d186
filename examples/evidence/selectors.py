"""Everything that is compared: name -> a score for each row of a pool, higher is kept.

Scores come from the package's scorers. Two are made here, of what those give: IFD, and a null that looks at tokens
alone. `full` and `oracle` are no scores: the first keeps all, the second knows the families.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from evidence.language import Row
from evidence.worlds import World
from hf_curate import GraceScorer, LongestScorer, LossScorer, MostStepsScorer, RandomScorer, step_scores

FULL, RANDOM, ORACLE = "full", "random", "oracle"
PROXIES = ("representation", "outer", "last", "exact")
GRACE = {proxy: f"GRACE, {proxy}" for proxy in PROXIES}
COLUMNS: dict[str, Any] = {"prompt": "prompt", "completion": "completion", "answer": "answer", "split_steps": "lines"}
NAMES = (
    FULL,
    RANDOM,
    "longest",
    "most steps",
    "lowest loss",
    "middle loss",
    "highest loss",
    "IFD",
    "token overlap",
    *GRACE.values(),
    "GRACE, no warm-up",
    "GRACE, no history",
    "GRACE, no answer term",
    ORACLE,
)
"""The rows of a table, in order."""


def scores(pool: Sequence[Row], base: Path, folder: Path, seed: int, rate: float) -> dict[str, np.ndarray]:
    """Name -> [rows] float64 of each row of the pool by the base model in a folder; null is NaN.

    Losses, IFD and "no warm-up" are of the base as it is; every other GRACE is of a copy that was warmed up on 5 % of
    the pool with the lab's own recipe, which is written to ``folder``. ``rate`` is the recipe's learning rate.
    """
    rows = Dataset.from_list([{name: row[name] for name in ("prompt", "completion", "answer")} for row in pool])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GRACE's authors score with a model that was warmed up")
        cold = _column(rows, GraceScorer(base, **COLUMNS))
    found = {
        RANDOM: _column(rows, RandomScorer(seed=seed))["random_score"],
        "longest": _column(rows, LongestScorer(base, **COLUMNS))["longest_score"],
        "most steps": _column(rows, MostStepsScorer(base, **COLUMNS))["most_steps_score"],
        **by_loss(cold["grace_loss"], -_column(alone(rows), LossScorer(base, **COLUMNS))["lowest_loss_score"]),
        "token overlap": np.array([token_overlap(row["completion"]) for row in pool]),
        "GRACE, no warm-up": cold["grace_value"],
    }
    return found | warm_scores(rows, base, folder, seed, rate)


def warm_scores(rows: Dataset, base: Path, folder: Path, seed: int, rate: float) -> dict[str, np.ndarray]:
    """Every GRACE of a warmed-up copy of the base."""
    recipe: dict[str, Any] = {"method": "full", "learning_rate": rate, "epochs": 4, "batch_rows": 8}
    first = GraceScorer.warmed_up(base, rows, 0.05, seed, out=folder, keep_gram=True, **recipe, **COLUMNS)
    kept = _column(rows, first, "grace_gram", "grace_gram_tokens")
    found = {GRACE["representation"]: kept["grace_value"]}
    for proxy in PROXIES[1:]:
        found[GRACE[proxy]] = _column(rows, GraceScorer(folder, proxy=proxy, **COLUMNS))["grace_value"]
    for name, alpha in (("GRACE, no history", 1.0), ("GRACE, no answer term", 0.0)):
        grams = zip(kept["grace_gram"], kept["grace_gram_tokens"], strict=True)
        found[name] = np.array([_value(gram, tokens, alpha) for gram, tokens in grams])
    return found


def _value(gram: Sequence[float], tokens: Sequence[int], alpha: float) -> float:
    """A row's value with another alpha, from its stored inner products."""
    side = len(tokens)
    return float(step_scores(np.reshape(gram, (side, side)), np.array(tokens), alpha=alpha).mean())


def by_loss(loss: np.ndarray, unconditional: np.ndarray) -> dict[str, np.ndarray]:
    """The four selectors that look at losses. IFD (arXiv 2308.12032) is the loss of a trace with its prompt over the
    loss without it; as its authors do, rows where the prompt does not help (1 or more) come last."""
    ratio = loss / unconditional
    return {
        "lowest loss": -loss,
        "middle loss": -np.abs(loss - np.nanmedian(loss)),
        "highest loss": loss,
        "IFD": np.where(ratio < 1.0, ratio, -ratio),
    }


def alone(rows: Dataset) -> Dataset:
    """The rows with an empty line in place of the prompt."""
    return rows.map(lambda row: {"prompt": "\n"}, load_from_cache_file=False)


def token_overlap(completion: str, alpha: float = 0.7) -> float:
    """GRACE's formula with counts of characters (which are the tokens here) in the place of gradients: no model."""
    *lines, answer = completion.split("\n")
    segments = [*lines, answer.removeprefix("#")]
    symbols = sorted(set("".join(segments)))
    counts = np.array([[segment.count(symbol) / len(segment) for symbol in symbols] for segment in segments])
    return float(step_scores(counts @ counts.T, np.array([len(own) for own in segments]), alpha=alpha).mean())


FURTHER = ("GRACE less overlap", "GRACE of middle loss")
"""Scores that were tried after the main table, and what for is in benchmarks/LOG.md."""


def further(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two scores at the cost of GRACE, from what it gives: its value less what token overlap explains of it (the
    residual of a line through the pool), and its value among the half of the rows whose loss is nearest the median."""
    value, overlap = values[GRACE["representation"]], values["token overlap"]
    known = np.isfinite(value)
    slope, level = np.polyfit(overlap[known], value[known], 1)
    middle = values["middle loss"]
    near = middle >= np.nanmedian(middle)
    return dict(zip(FURTHER, (value - slope * overlap - level, np.where(near, value, -np.inf)), strict=True))


def _column(rows: Dataset, scorer: Any, *more: str) -> dict[str, Any]:
    """What a scorer adds, as columns; only numbers, and ``more`` as they are."""
    added = rows.map(scorer, batched=True, batch_size=256, features=scorer.features(rows), load_from_cache_file=False)
    names = [name for name in scorer.columns if name.endswith(("_score", "_value", "_loss"))]
    return {name: np.array(added[name], dtype=np.float64) for name in names} | {name: added[name] for name in more}


def kept(values: np.ndarray, budget: float) -> np.ndarray:
    """The places of the highest ceil(budget * rows) scores, ties by row order, null last: as `select` does."""
    rows = math.ceil(budget * len(values) - 1e-9)
    return np.sort(np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:rows])


def oracle(world: World, pool: Sequence[Row], budget: float, seed: int) -> np.ndarray:
    """Places of rows of useful families alone, as many of each as there are useful families (random among its own);
    where those have fewer rows than the budget asks, all of them."""
    rows = math.ceil(budget * len(pool) - 1e-9)
    rng = np.random.default_rng([seed, rows])
    useful = [name for name, family in world.families.items() if family.useful]
    queues = [list(rng.permutation([i for i, row in enumerate(pool) if row["family"] == name])) for name in useful]
    turns = [queue[turn] for turn in range(len(pool)) for queue in queues if turn < len(queue)]
    return np.sort(np.array(turns[:rows]))


def chosen(
    world: World, pool: Sequence[Row], values: Mapping[str, np.ndarray], budget: float, seed: int
) -> dict[str, np.ndarray]:
    """Name -> places, for all of `NAMES`."""
    found = {FULL: np.arange(len(pool)), ORACLE: oracle(world, pool, budget, seed)}
    return {name: found[name] if name in found else kept(values[name], budget) for name in NAMES}
