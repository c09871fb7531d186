"""Spearman's rank correlation against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_curate.stats import ranks, spearman

FEW = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(-1e6, 1e6), st.sampled_from([float("nan"), float("inf")]))


def slow_ranks(values: list[float]) -> list[float]:
    """How many are smaller, and half of the others that are equal."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]


def slow_spearman(x: list[float], y: list[float]) -> float | None:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]
    if len(pairs) < 3:
        return None
    a, b = (slow_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    middle = (len(pairs) - 1) / 2
    over = sum((p - middle) * (q - middle) for p, q in zip(a, b, strict=True))
    under = (sum((p - middle) ** 2 for p in a) * sum((q - middle) ** 2 for q in b)) ** 0.5
    return over / under if under else None


@given(st.lists(st.tuples(FEW, FEW), max_size=30))
def test_spearman_is_that_of_a_plain_loop_with_ties_and_gaps(pairs: list[tuple[float, float]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    found, expected = spearman(np.array(x), np.array(y)), slow_spearman(x, y)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0]) | st.floats(-10, 10), max_size=30))
def test_ties_share_the_mean_of_their_places(values: list[float]) -> None:
    assert ranks(np.array(values)).tolist() == slow_ranks(values)


def test_the_ends_are_one_and_minus_one_and_any_monotone_change_keeps_them() -> None:
    x = np.array([3.0, 1.0, 2.0, 9.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)


@pytest.mark.parametrize("y", [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, np.nan, np.nan], [np.inf, 1.0, 2.0, np.nan]])
def test_a_constant_side_or_fewer_than_three_pairs_is_none_and_not_nan(y: list[float]) -> None:
    assert spearman(np.arange(4.0), np.array(y)) is None


def test_integers_and_booleans_rank_like_floats() -> None:
    assert spearman(np.arange(5), np.array([False, False, True, True, True])) == pytest.approx(0.8660254)
