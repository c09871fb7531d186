"""How a selection scales: what the same order keeps at smaller and larger budgets, and what each adds.

Subsets at growing budgets are nested, because a strategy is an order and a budget is how far to go in it. The score
mass of a subset is its share of the sum of all scores, each counted from the lowest one: 0 for no row and 1 for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import parse_budget, preference
from hf_curate.measures import baseline, rank_by

if TYPE_CHECKING:
    from hf_curate.account import Choice

BUDGETS = ("5%", "10%", "20%", "50%")
POINTS = 20
"""Points of the curve, at equal distances in rows."""


def nested_account(choice: Choice, best: np.ndarray) -> dict[str, Any] | None:
    """The budgets of `BUDGETS` under the same strategy, and the score mass along the whole order; None where no row
    could be kept.

    best: all rows with a score, from the highest on.
    Of each budget: rows; threshold (the lowest score in it, where scores rank); added: rows that the next smaller one
    lacks; shared: rows that are kept here too; score_mass.
    """
    order = _order(choice, best)
    if not len(order):
        return None
    kept = np.zeros(len(choice.scores), dtype=bool)
    kept[choice.kept] = True
    scores = choice.scores[order]
    shared, mass = np.cumsum(kept[order]), _mass(choice.scores, scores)
    by_score, before, budgets = choice.strategy in ("top", "threshold"), 0, []
    for budget in BUDGETS:
        rows = min(parse_budget(budget).rows(len(choice.scores)), len(order))
        budgets.append(
            {
                "budget": budget,
                "rows": rows,
                "threshold": float(scores[rows - 1]) if by_score else None,
                "added": rows - before,
                "shared": int(shared[rows - 1]),
                "score_mass": _at(mass, rows),
            }
        )
        before = rows
    places = sorted({-(-len(order) * point // POINTS) for point in range(1, POINTS + 1)})
    curve = {"rows": [0, *places], "score_mass": [0.0, *(_at(mass, rows) for rows in places)]}
    return {
        "budgets": budgets,
        "score_mass": _at(mass, len(choice.kept)),
        "curve": None if mass is None else curve,
    }


def _order(choice: Choice, best: np.ndarray) -> np.ndarray:
    """The rows that could be kept, best first; ties in row order."""
    least, eligible = choice.min_score, choice.scores
    if least is not None:
        eligible, best = np.where(eligible >= least, eligible, np.nan), best[eligible[best] >= least]
    ranked = rank_by(choice.strategy, eligible, choice.measures)
    by_score = best if baseline(choice.strategy, choice.measures) is None else None
    return preference(ranked, strategy=choice.strategy, groups=choice.groups, seed=choice.seed, best=by_score)


def _mass(scores: np.ndarray, ordered: np.ndarray) -> np.ndarray | None:
    """The score mass of the first rows of an order; None where all scores are equal.

    scores: of all rows, NaN where there is none; ordered: those of the order.
    """
    scored = scores[np.isfinite(scores)]
    low, high = float(scored.min()), float(scored.max())
    if not high > low:
        return None
    scale = high - low  # divided by first: the sum of large scores would overflow
    total = float(((scored - low) / scale).sum())
    return np.cumsum((ordered - low) / scale) / total


def _at(mass: np.ndarray | None, rows: int) -> float | None:
    return None if mass is None else float(mass[rows - 1])
