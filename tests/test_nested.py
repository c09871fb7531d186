"""What a selection says of other budgets: held against selections that were made at them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Scorer, plain, pool

from hf_curate import select
from hf_curate.nested import BUDGETS

OPTIONS: list[dict[str, Any]] = [
    {},
    {"strategy": "random", "seed": 3},
    {"strategy": "stratified", "group": "topic"},
    {"strategy": "longest"},
    {"min_score": -0.5},
]


def mass_of(scores: np.ndarray, rows: np.ndarray) -> float:
    """The share of the sum of scores, each counted from the lowest, that these rows have."""
    low = np.nanmin(scores)
    return float((scores[rows] - low).sum() / np.nansum(scores - low))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_budget_is_what_a_selection_at_it_keeps(options: dict[str, Any]) -> None:
    data = pool(200, failed=10)
    scores = np.array([np.nan if value is None else value for value in data["grace_value"]])
    picked = select(data, Scorer(), "20%", **options)
    before: set[int] = set()
    for found, budget in zip(picked.manifest["nested"]["budgets"], BUDGETS, strict=True):
        there = select(data, Scorer(), budget, **options)
        rows = set(there.indices.tolist())
        assert found["budget"] == budget
        assert before <= rows
        assert (found["rows"], found["added"]) == (len(rows), len(rows - before))
        assert found["shared"] == len(rows & set(picked.indices.tolist()))
        assert found["threshold"] == there.manifest["budget"]["threshold"]
        assert found["score_mass"] == pytest.approx(mass_of(scores, there.indices))
        before = rows
    assert picked.manifest["nested"]["score_mass"] == pytest.approx(mass_of(scores, picked.indices))


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.one_of(st.floats(-1e150, 1e150), st.integers(-2, 2).map(float), st.none()), min_size=1),
    rows=st.integers(1, 5),
)
def test_the_curve_never_falls_and_ends_at_one(scores: list[float | None], rows: int) -> None:
    known = sum(score is not None for score in scores)
    if known < rows:
        return
    nested = select(plain(scores), "score", rows).manifest["nested"]
    json.dumps(nested, allow_nan=False)
    curve = nested["curve"]
    if len({score for score in scores if score is not None}) == 1:
        assert curve is None
        assert nested["score_mass"] is None
        return
    if curve is None:  # values so far apart, or so near, that floats cannot tell
        return
    assert curve["rows"][0] == 0
    assert curve["rows"][-1] == known
    assert curve["score_mass"][-1] == pytest.approx(1.0)
    assert all(a <= b + 1e-12 for a, b in zip(curve["score_mass"], curve["score_mass"][1:], strict=False))


def test_a_budget_beyond_the_scored_rows_says_how_many_there_are() -> None:
    budgets = select(plain([1.0, None, None, None]), "score", 1).manifest["nested"]["budgets"]
    assert [one["rows"] for one in budgets] == [1, 1, 1, 1]
    assert [one["added"] for one in budgets] == [1, 0, 0, 0]
