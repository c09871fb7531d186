"""Budgets and strategies: (scores, budget, seed) -> row indices. numpy only.

A strategy is an order of preference over the rows; a budget is how far to go in it. So the subsets of one strategy at
growing budgets are nested, also when they are stratified by group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

import numpy as np

from hf_curate.errors import BudgetError

STRATEGIES = ("top", "threshold", "stratified", "random", "longest", "most_steps", "lowest_loss", "highest_loss")
MEASURED = {
    "longest": ("tokens", 1.0),
    "most_steps": ("steps", 1.0),
    "lowest_loss": ("loss", -1.0),
    "highest_loss": ("loss", 1.0),
}
"""Baselines that rank by a measure of the row: (measure, sign)."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_FORMS = "a share ('20%'), a number of rows (5000 or '5000 rows'), or tokens ('2M tokens')"


@dataclass(frozen=True)
class Budget:
    """amount: a share in percent, rows, or tokens; unit: "percent", "rows" or "tokens"; asked: as it was given."""

    amount: Decimal
    unit: str
    asked: str

    def rows(self, pool: int) -> int:
        """Rows to keep out of a pool of so many input rows; a share is rounded up, exactly."""
        if self.unit == "percent":
            return int((self.amount * pool / 100).to_integral_value(ROUND_CEILING))
        return int(self.amount)


def parse_budget(budget: Any) -> Budget:
    """'20%', 5000, '5000 rows', '5k', '2M tokens' -> Budget. Raises BudgetError for anything else, and for nothing at
    all."""
    if isinstance(budget, (int, np.integer)) and not isinstance(budget, bool):
        found = Budget(Decimal(int(budget)), "rows", f"{int(budget)} rows")
    else:
        found = _parse_text(budget)
    if found.amount <= 0 or (found.unit == "percent" and found.amount > 100):
        raise BudgetError(
            f"budget {budget!r} is out of range: a share is above 0% and at most 100%, a count at least 1."
        )
    if found.unit != "percent" and found.amount != found.amount.to_integral_value():
        raise BudgetError(f"budget {budget!r} is not a whole number of {found.unit}. Give {_FORMS}.")
    return found


def _parse_text(budget: Any) -> Budget:
    if not isinstance(budget, str):
        hint = f" Did you mean '{budget * 100:g}%'?" if isinstance(budget, float) and 0 < budget <= 1 else ""
        raise BudgetError(f"budget {budget!r} cannot be read. Give {_FORMS}.{hint}")
    text = budget.strip().lower().replace(",", "").replace("_", "")
    found = re.fullmatch(r"([+-]?(?:\d{1,18}(?:\.\d{0,12})?|\.\d{1,12}))\s*(?:(%)|([kmb]?)\s*(rows?|tokens?)?)", text)
    if found is None:
        raise BudgetError(f"budget {budget!r} cannot be read. Give {_FORMS}.")
    number, percent, scale, unit = found.groups()
    if percent:
        return Budget(Decimal(number), "percent", budget.strip())
    amount = Decimal(number) * _UNITS[scale or ""]
    return Budget(amount, "tokens" if unit and unit.startswith("token") else "rows", budget.strip())


def preference(
    scores: np.ndarray,
    *,
    strategy: str = "top",
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """All rows with a finite score, best first.

    Args:
        scores: [n] float; higher is better, NaN is a row that cannot be selected.
        strategy: "random" permutes the rows by the seed; "stratified" takes the best of each group in turn, by
            Sainte-Lague (the group of g scored rows gets its s-th row at priority g / (2 s - 1)); everything else
            sorts by score.
        groups: [n] hashable group keys, for "stratified".

    Returns:
        [m] int64 indices; ties in row order.
    """
    scores = np.asarray(scores, dtype=np.float64)
    valid = np.flatnonzero(~np.isnan(scores))
    if strategy == "random":
        return valid[np.random.default_rng(seed).permutation(len(valid))]
    best = valid[np.argsort(-scores[valid], kind="stable")]
    if strategy != "stratified":
        return best
    if groups is None:
        raise BudgetError("strategy='stratified' needs group=COLUMN: the column whose shares are kept.")
    codes = _codes(groups)[best]
    sizes = np.bincount(codes)
    by_group = np.argsort(codes, kind="stable")
    place = np.empty(len(best), dtype=np.int64)
    place[by_group] = np.arange(len(best)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return best[np.lexsort((codes, -(sizes[codes] / (2.0 * place + 1.0))))]


def _codes(groups: Sequence[Any] | np.ndarray) -> np.ndarray:
    """[n] group numbers in order of first appearance; null is a group of its own."""
    seen: dict[Any, int] = {}
    return np.fromiter((seen.setdefault(group, len(seen)) for group in groups), dtype=np.int64, count=len(groups))


def take(order: np.ndarray, budget: Budget, pool: int, tokens: np.ndarray | None = None) -> np.ndarray:
    """The prefix of an order of preference that the budget pays for.

    A token budget stops at the first row that does not fit. More rows than the order holds is an error.
    """
    if budget.unit == "tokens":
        if tokens is None:
            raise BudgetError(
                f"budget {budget.asked!r} counts tokens, and the scores hold no token column: give a share or rows."
            )
        total = np.cumsum(np.asarray(tokens)[order].astype(np.int64))
        return order[: int(np.searchsorted(total, int(budget.amount), side="right"))]
    wanted = budget.rows(pool)
    if wanted > len(order):
        raise BudgetError(
            f"budget {budget.asked!r} asks for {wanted:,} of {pool:,} rows, but only {len(order):,} can be selected "
            f"(the others have no score or are below min_score). The largest share is "
            f"'{np.floor(len(order) / max(pool, 1) * 1000) / 10:g}%'."
        )
    return order[:wanted]
