"""Budgets and strategies: (scores, budget, seed) -> row indices. numpy only.

A strategy is an order of preference over the rows; a budget is how far to go in it. So the subsets of one strategy at
growing budgets are nested, also when they are stratified by group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

import numpy as np

from hf_curate.errors import BudgetError
from hf_curate.stats import ascending

MEASURED = {
    "longest": (("tokens", "length"), 1.0),
    "most_steps": (("steps",), 1.0),
    "lowest_loss": (("loss",), -1.0),
    "highest_loss": (("loss",), 1.0),
    "accuracy_greedy": (("off_half",), -1.0),
    "pass_rate_band": (("mixed",), 1.0),
}
"""Baselines that rank by a measure of the row: (measures, the first that is known counts; sign)."""
STRATEGIES = ("top", "threshold", "stratified", "random", *MEASURED)

MOST = 10**18
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_WRITTEN = re.compile(  # commas and underscores only between thousands: "1,5%" must not be read as 15 %
    r"([+-]?(?:\d{1,3}(?:[,_]\d{3}){1,5}|\d{1,18})(?:\.\d{0,12})?|[+-]?\.\d{1,12})"
    r"\s*(?:(%)|([kmb]?)\s*(rows?|tokens?)?)",
    re.ASCII,
)
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
        rows = min(max(int(budget), -1), MOST)
        found = Budget(Decimal(rows), "rows", f"{rows} rows")
    else:
        found = _parse_text(budget)
    if found.amount <= 0 or found.amount > (100 if found.unit == "percent" else MOST - 1):
        raise BudgetError(
            f"budget {_short(budget)} is out of range: a share is above 0% and at most 100%, a count at least 1 and "
            "below 10^18."
        )
    if found.unit != "percent" and found.amount != found.amount.to_integral_value():
        raise BudgetError(f"budget {_short(budget)} is not a whole number of {found.unit}. Give {_FORMS}.")
    return found


def _short(budget: Any) -> str:
    """The budget as it was typed; what nobody types by hand is not repeated in full."""
    if isinstance(budget, int) and not -MOST <= budget <= MOST:
        return f"of {budget.bit_length():,} bits"
    text = repr(budget.item() if isinstance(budget, np.generic) else budget)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse_text(budget: Any) -> Budget:
    if not isinstance(budget, str):
        hint = f" Did you mean '{budget * 100:g}%'?" if isinstance(budget, float) and 0 < budget <= 1 else ""
        raise BudgetError(f"budget {_short(budget)} cannot be read. Give {_FORMS}.{hint}")
    found = _WRITTEN.fullmatch(budget.strip().lower())
    if found is None:
        raise BudgetError(f"budget {_short(budget)} cannot be read. Give {_FORMS}.")
    number, percent, scale, unit = found.groups()
    number = number.replace(",", "").replace("_", "")
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
    most: int | None = None,
    ordered: bool = True,
    best: np.ndarray | None = None,
) -> np.ndarray:
    """All rows with a finite score, best first.

    Args:
        scores: [n] float; higher is better, NaN or infinite is a row that cannot be selected.
        strategy: "random" permutes the rows by the seed; "stratified" takes the best of each group in turn, by
            Sainte-Lague (the group of g scored rows gets its s-th row at priority g / (2 s - 1)); everything else
            sorts by score.
        groups: [n] hashable group keys, for "stratified".
        most, ordered: only so many from the front of the order are needed, and those in any order unless `ordered`;
            both save time.
        best: [m] the rows with a finite score from the highest on, ties in row order, where they are known.

    Returns:
        [m] int64 indices, or the first `most` of them; ties in row order.
    """
    scores = np.asarray(scores, dtype=np.float64)
    valid = np.flatnonzero(np.isfinite(scores))
    if strategy == "random":
        return valid[np.random.default_rng(seed).permutation(len(valid))[:most]]
    if strategy != "stratified":
        return valid[_highest(scores[valid], most, ordered)] if best is None else best[:most]
    if groups is None:
        raise BudgetError("strategy='stratified' needs group=COLUMN: the column whose shares are kept.")
    best = valid[_highest(scores[valid])] if best is None else best
    codes = _codes(groups)[best]
    sizes = np.bincount(codes)
    small = codes.astype(np.uint16) if len(sizes) <= 2**16 else codes  # 16 bits are sorted without comparisons
    by_group = np.argsort(small, kind="stable")
    place = np.arange(len(best)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return best[by_group[_highest(np.repeat(sizes, sizes) / (2.0 * place + 1.0), most, ordered)]]


def _highest(values: np.ndarray, most: int | None = None, ordered: bool = True) -> np.ndarray:
    """The places of the `most` highest values, of equals the first; from the highest on if `ordered`."""
    if most is None or not 0 < most < len(values):
        return (ascending(-values) if ordered else np.arange(len(values)))[:most]
    least = np.partition(values, len(values) - most)[len(values) - most]
    above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
    above = above[ascending(-values[above])] if ordered else above
    return np.concatenate([above, level[: most - len(above)]])


def _codes(groups: Sequence[Any] | np.ndarray) -> np.ndarray:
    """[n] group numbers in order of first appearance; null is a group of its own, and so is NaN."""
    if isinstance(groups, np.ndarray) and groups.dtype.kind in "iu":
        if len(groups) and groups.min() >= 0 and groups.max() <= len(groups):  # numbers of groups: no need to sort
            first = np.full(len(groups) + 1, len(groups))
            np.minimum.at(first, groups, np.arange(len(groups)))
            return np.argsort(np.argsort(first))[groups]
        _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[codes]
    seen: dict[Any, int] = {}
    keys = (group if group == group else "NaN" for group in groups)
    return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), dtype=np.int64, count=len(groups))


def keep(
    scores: np.ndarray,
    budget: Budget,
    tokens: np.ndarray | None = None,
    *,
    strategy: str = "top",
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The rows that `take` takes of the `preference`, out of a pool of len(scores) rows: [m] int64, ascending.

    No more of the order is made than they need.
    """
    most, ordered = _enough(scores, budget, tokens), budget.unit == "tokens"
    while True:
        order = preference(scores, strategy=strategy, groups=groups, seed=seed, most=most, ordered=ordered)
        kept = take(order, budget, len(scores), tokens)
        if most is None or not ordered or len(kept) < len(order) or len(order) < most:
            return np.sort(kept)
        most *= 4


def _enough(scores: np.ndarray, budget: Budget, tokens: np.ndarray | None) -> int | None:
    """Rows that the budget does not go beyond, or is not likely to; None: all may be needed."""
    if budget.unit != "tokens":
        return budget.rows(len(scores))
    paid = np.empty(0) if tokens is None else np.asarray(tokens, dtype=np.float64)[np.isfinite(scores)]
    total = float(paid.sum())
    likely = 2.0 * len(paid) * int(budget.amount) / total if 0 < total < math.inf else math.inf
    return int(likely) + 1 if likely < len(paid) else None


def take(order: np.ndarray, budget: Budget, pool: int, tokens: np.ndarray | None = None) -> np.ndarray:
    """The prefix of an order of preference that the budget pays for.

    A token budget stops at the first row that does not fit. More rows than the order holds is an error.
    """
    if budget.unit == "tokens":
        if tokens is None:
            raise BudgetError(
                f"budget {budget.asked!r} counts tokens, and the scores hold no token column: give a share or rows."
            )
        paid = np.asarray(tokens, dtype=np.float64)[order]
        if not np.isfinite(paid).all():
            raise BudgetError(
                f"budget {budget.asked!r} counts tokens, and {int((~np.isfinite(paid)).sum()):,} rows with a score "
                "have no number of tokens: give a share or rows."
            )
        fitting = order[: int(np.searchsorted(np.cumsum(paid.astype(np.int64)), int(budget.amount), side="right"))]
        if len(order) and not len(fitting):
            raise BudgetError(
                f"budget {budget.asked!r} pays for no row: the first has {int(paid[0]):,} tokens. "
                f"Give '{int(paid[0])} tokens' or more."
            )
        return fitting
    wanted = budget.rows(pool)
    if wanted > len(order):
        raise BudgetError(
            f"budget {budget.asked!r} asks for {wanted:,} of {pool:,} rows, but only {len(order):,} can be selected "
            f"(the others have no score or are below min_score). {_largest(len(order), pool)}"
        )
    return order[:wanted]


def _largest(rows: int, pool: int) -> str:
    if not rows:
        return "Look at why: hf-curate inspect RUN, or the column <name>_error."
    share = Decimal(1000 * rows // pool) / 10  # rounded down, so that it can be filled
    return f"Give {rows} rows or fewer" + (f", or '{share:f}%'." if share else ".")
