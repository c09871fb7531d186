"""What a selection is shown beside: other orders at the same budget, plain properties of the rows, their rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import MEASURED, keep, preference
from hf_curate.errors import BudgetError
from hf_curate.measures import (
    baseline,
    by_measure,
    correct_above,
    rewards_column,
    rival_columns,
    rollout_measures,
)
from hf_curate.scored import column_of, numbers
from hf_curate.stats import spearman, spearmans

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.account import Choice

OVERLAP_ROWS = 1000
"""Rows of the seeded sample on which the token overlap of steps and answer is measured (it needs the tokenizer)."""
OVERLAP_STREAM = 3
"""The sample's own random stream: one shared with the warm-up or the random baseline would draw the same rows."""
OUTCOMES, REWARDS = "rollouts_outcomes", "rewards"
"""Columns of `Rollouts`: what its verifier said of each response, in words and as numbers."""
SAMPLED = ("n", "temperature", "top_p", "max_new_tokens", "seed")
"""Settings of a `Rollouts` that say how the responses were sampled."""
MIXED = "0 < p < 1"
"""`zero_without_signal` of a scorer whose 0 says that there is no signal only where some rollouts are right and some
wrong: rows that are all right or all wrong score 0 for that reason already."""


def rollouts_account(choice: Choice, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the rollouts of scored and of kept rows are like, over the rows whose rewards can be read; None without
    rewards.

    Rows without signal are those of `silent`.
    """
    measures = choice.measures
    if "rollouts" not in measures:
        return None
    scored = np.isfinite(choice.scores) & np.isfinite(measures["rollouts"])
    kept = np.zeros(len(scored), dtype=bool)
    kept[choice.kept] = scored[choice.kept]
    rate, count = measures["success_rate"], measures["rollouts"][scored]
    masks = {"rows": scored, "without_signal": silent(choice.scores, measures, record)}
    masks |= {"always_right": rate == 1.0, "always_wrong": rate == 0.0}
    spread = (
        {"min": int(count.min()), "median": float(np.median(count)), "max": int(count.max())} if len(count) else None
    )
    means = {
        name: float(rate[mask].mean()) if mask.any() else None for name, mask in (("all", scored), ("kept", kept))
    }
    return {
        **{name: {"scored": int((m & scored).sum()), "kept": int((m & kept).sum())} for name, m in masks.items()},
        "correct_above": correct_above(record),
        "success_rate": means,
        "rollouts_per_row": spread,
    }


def verification(choice: Choice, subset: Dataset, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which contract judged the rollouts, how they were sampled, and its outcomes over all and over kept rows; None
    where neither the scorer nor the data says any of it."""
    own = record.get("rollouts")
    made = own if isinstance(own, Mapping) else record
    contract, settings = made.get("verifier"), made.get("settings") or {}
    own_rewards = rewards_column(record) == REWARDS  # outcomes are of no others
    counts = [outcomes(dataset) if own_rewards else None for dataset in (choice.dataset, subset)]
    if not isinstance(contract, Mapping) and counts[0] is None:
        return None
    named = isinstance(contract, Mapping)
    return {
        "verifier": contract if named else None,
        "policy": made.get("model") if named else None,
        "sampling": {name: settings.get(name) for name in SAMPLED} if named else None,
        "outcomes": None if counts[0] is None else {"all": counts[0], "kept": counts[1]},
    }


def outcomes(dataset: Dataset) -> dict[str, int] | None:
    """Outcome -> rollouts, from the column that `Rollouts` writes."""
    import pyarrow.compute as pc

    if OUTCOMES not in dataset.column_names:
        return None
    found = pc.value_counts(pc.list_flatten(column_of(dataset, OUTCOMES)))  # type: ignore[attr-defined]
    return {str(item["values"]): int(item["counts"]) for item in found.to_pylist()}


def silent(scores: np.ndarray, measures: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> np.ndarray:
    """[n] bool: rows without signal, whose rewards can be read and are all equal up to rounding, or whose gradient
    cancels.

    It cancels where the score is exactly 0.0 by a scorer whose record says `zero_without_signal`: True, or `MIXED`.
    """
    zero, says = scores == 0.0, record.get("zero_without_signal")
    if says == MIXED:
        zero &= measures["mixed"] == 1.0
    elif says is not True:
        zero[:] = False
    return ((measures["signal"] == 0.0) | zero) & np.isfinite(measures["rollouts"])


def silent_rows(dataset: Dataset, column: str, record: Mapping[str, Any]) -> int:
    """How many scored rows are without signal, where the scorer says what a score of 0 means; else 0."""
    if not record.get("zero_without_signal"):
        return 0
    scores, measures = numbers(dataset, column), rollout_measures(dataset, record)
    return int((silent(scores, measures, record) & np.isfinite(scores)).sum()) if "rollouts" in measures else 0


def confounds(choice: Choice, best: np.ndarray, overlap: float | None) -> dict[str, float | None]:
    """Spearman of the score with what it should not merely be: of traces steps, tokens, loss, overlap of steps and
    answer (`overlap_confound`); of rollouts success rate, learnability, length.

    best: all rows with a score, from the highest on.
    """
    measures = choice.measures
    names = ["steps", "tokens", "loss"]
    rollouts = "rollouts" in measures
    if rollouts:
        names = [name for name in names if name in measures] + ["success_rate", "learnability", "length"]
    ranked = spearmans(choice.scores, {name: measures[name] for name in names if name in measures}, best)
    found = {name: ranked.get(name) for name in names}
    return found if rollouts and overlap is None else {**found, "overlap": overlap}


def overlap_confound(dataset: Dataset, scores: np.ndarray, scorer: Any) -> float | None:
    """Spearman of the score with the token overlap of steps and answer, on a sample; None where it cannot be measured.

    A stored run has it measured already.
    """
    if not hasattr(scorer, "overlaps"):
        return getattr(scorer, "overlap", None)
    scored = np.flatnonzero(np.isfinite(scores))
    rows = np.random.default_rng([0, OVERLAP_STREAM]).permutation(scored)[:OVERLAP_ROWS]
    return spearman(scores[rows], scorer.overlaps(dataset.select(rows).with_format(None)))


def baselines(choice: Choice) -> dict[str, dict[str, int]]:
    """What other orders would keep under the same budget, and how much of it is kept here. An order that is shorter
    than the budget keeps fewer rows."""
    kept = np.zeros(len(choice.dataset), dtype=bool)
    kept[choice.kept] = True
    found = {}
    for name, ranked in _rivals(choice):
        strategy = "random" if name == "random" else "top"
        if choice.asked is not None and choice.asked.unit == "tokens":
            try:
                tokens = choice.measures.get("tokens")
                chosen = keep(ranked, choice.asked, tokens, strategy=strategy, seed=choice.seed)
            except BudgetError:  # its first row alone does not fit
                chosen = choice.kept[:0]
        else:
            chosen = preference(ranked, strategy=strategy, seed=choice.seed, most=len(choice.kept), ordered=False)
        found[name] = {"rows": len(chosen), "shared": int(kept[chosen].sum())}
    return found


def _rivals(choice: Choice) -> Iterator[tuple[str, np.ndarray]]:
    """What each other order ranks by: simple ones out of the rows scored here, columns of other scorers out of the
    rows that those scored (under a budget of tokens, out of the rows whose tokens are known)."""
    yield "random", choice.scores
    for name in MEASURED:
        ranked = baseline(name, choice.measures)
        if ranked is not None:
            yield name, by_measure(choice.scores, *ranked)
    tokens = choice.measures.get("tokens")
    for column in rival_columns(choice.dataset, choice.column):
        scores = numbers(choice.dataset, column)
        counted = choice.asked is not None and choice.asked.unit == "tokens" and tokens is not None
        yield column, by_measure(tokens, scores) if counted and tokens is not None else scores
