"""What a score does along three properties of the rows: their length, their pass rate, the place of a step in them.

Long is not good and hard is not useful: these are the numbers that show how far a score says no more than that. All
of it is small and goes into the manifest, so that plots are drawn from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.measures import by_position
from hf_curate.scored import prefix_of
from hf_curate.stats import spearman

if TYPE_CHECKING:
    from hf_curate.account import Choice

GROUPS = 10
LEAST_ROWS = 3
"""A correlation within a group takes so many rows."""
MOST_ROWS = 100_000
"""Rows of a group whose correlations are computed: of more, so many at equal distances, with a standard error of
0.003."""
RATES = 10
"""Bins of the pass rates between 0 and 1, which have bins of their own."""
POSITIONS = 10


def length_account(choice: Choice) -> dict[str, Any] | None:
    """The score against the length of a row, over all rows and within tenths of equal length; None where no length is
    known.

    Returns "of" (the measure: "tokens" of a row, or "length", the mean of its responses), "groups" from the shortest
    to the longest, and "within": the mean of their correlations with length and steps, weighted by rows; where a group
    has more than `MOST_ROWS`, also "within_rows", how many rows of all these correlations are of.
    """
    of = next((name for name in ("tokens", "length") if name in choice.measures), None)
    if of is None:
        return None
    length, steps = choice.measures[of], choice.measures.get("steps")
    scored = np.flatnonzero(np.isfinite(choice.scores) & np.isfinite(length))
    if not len(scored):
        return None
    kept = np.zeros(len(choice.scores), dtype=bool)
    kept[choice.kept] = True
    bounds = np.unique(np.quantile(length[scored], np.arange(1, GROUPS) / GROUPS))
    which = np.searchsorted(bounds, length[scored], side="left").astype(np.uint8)
    together = scored[np.argsort(which, kind="stable")]  # 8 bits are sorted without comparisons
    ends = np.cumsum(np.bincount(which))
    groups = [_group(choice.scores, length, steps, kept, rows) for rows in np.split(together, ends[:-1]) if len(rows)]
    found = {
        "of": of,
        "groups": groups,
        "within": {name: _mean_within(groups, name) for name in ("length", "steps")},
    }
    used = sum(len(_some(range(group["rows"]))) for group in groups)
    return found if used == len(scored) else {**found, "within_rows": used}


def _some(rows: Any) -> Any:
    """At most `MOST_ROWS` of the rows, at equal distances."""
    return rows[:: -(-len(rows) // MOST_ROWS)]


def _group(
    scores: np.ndarray, length: np.ndarray, steps: np.ndarray | None, kept: np.ndarray, rows: np.ndarray
) -> dict[str, Any]:
    own, low, high = scores[rows], float(length[rows].min()), float(length[rows].max())
    quarter, median, three = np.quantile(own, [0.25, 0.5, 0.75])
    some, ranked = _some(rows), _some(own)
    return {
        "from": low,
        "to": high,
        "rows": len(rows),
        "kept": int(kept[rows].sum()),
        "p25": float(quarter),
        "median": float(median),
        "p75": float(three),
        "spearman": {
            "length": spearman(ranked, length[some]) if high > low else None,
            "steps": None if steps is None else spearman(ranked, steps[some]),
        },
    }


def _mean_within(groups: list[dict[str, Any]], name: str) -> float | None:
    known = [(group["rows"], group["spearman"][name]) for group in groups if group["spearman"][name] is not None]
    rows = sum(count for count, _ in known)
    return sum(count * value for count, value in known) / rows if rows else None


def pass_rate_account(choice: Choice) -> dict[str, Any] | None:
    """Kept and dropped rows, and the mean score, by pass rate; None without rollouts.

    The first bin holds the rows that always fail, the last those that always pass, and `RATES` equal ones the rates
    between, each with its lower end.
    """
    rate = choice.measures.get("success_rate")
    if rate is None:
        return None
    scored = np.isfinite(choice.scores) & np.isfinite(rate)
    if not scored.any():
        return None
    inside = 1 + np.minimum((rate[scored] * RATES + 1e-9).astype(np.int64), RATES - 1)
    bins = np.where(rate[scored] == 0.0, 0, np.where(rate[scored] == 1.0, RATES + 1, inside))
    kept = np.zeros(len(rate), dtype=bool)
    kept[choice.kept] = True
    counts = {
        name: np.bincount(bins[mask], minlength=RATES + 2).tolist()
        for name, mask in (("kept", kept[scored]), ("dropped", ~kept[scored]))
    }
    rows = np.bincount(bins, minlength=RATES + 2)
    sums = np.bincount(bins, weights=choice.scores[scored], minlength=RATES + 2)
    means = [float(total / count) if count else None for total, count in zip(sums, rows, strict=True)]
    return {**counts, "mean_score": means}


def steps_account(choice: Choice) -> dict[str, Any] | None:
    """The mean score of a step by its relative place in the trace, in `POSITIONS` equal parts, of kept and of dropped
    rows; None without scores of steps."""
    prefix = prefix_of(choice.column)
    name = f"{prefix}_step_scores" if prefix else ""
    scored = np.isfinite(choice.scores)
    kept = np.zeros(len(scored), dtype=bool)
    kept[choice.kept] = True
    found = by_position(choice.dataset, name, {"kept": kept & scored, "dropped": ~kept & scored}, POSITIONS)
    return None if found is None else {part: _means(*sums) for part, sums in found.items()}


def _means(sums: np.ndarray, counts: np.ndarray) -> Mapping[str, list[Any]]:
    means = [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
    return {"mean": means, "steps": [int(count) for count in counts]}
