"""Budgets are read exactly, strategies are orders of preference, and a budget is a prefix of one."""

from __future__ import annotations

import math
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate.budgets import STRATEGIES, Budget, parse_budget, preference, take
from hf_curate.errors import BudgetError

NAN = float("nan")
GROUPS = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d"]))
SCORES = st.one_of(st.sampled_from([0.0, 0.5, 1.0, NAN]), st.floats(-3, 3))


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("20%", "20", "percent"),
        ("20 %", "20", "percent"),
        (" 0.1% ", "0.1", "percent"),
        ("100%", "100", "percent"),
        (5000, "5000", "rows"),
        (np.int64(5000), "5000", "rows"),
        ("5000", "5000", "rows"),
        ("5000 rows", "5000", "rows"),
        ("1 row", "1", "rows"),
        ("5k", "5000", "rows"),
        ("2.5k rows", "2500", "rows"),
        ("5,000", "5000", "rows"),
        ("1_000_000 rows", "1000000", "rows"),
        ("2M tokens", "2000000", "tokens"),
        ("1.5 b tokens", "1500000000", "tokens"),
        ("2,000,000 tokens", "2000000", "tokens"),
    ],
)
def test_a_budget_is_read_as_a_person_means_it(text: Any, amount: str, unit: str) -> None:
    found = parse_budget(text)
    assert (found.amount, found.unit) == (Decimal(amount), unit)


@pytest.mark.parametrize(
    "budget",
    [
        *[
            "0%",
            "101%",
            "100.0001%",
            "-3",
            "-3%",
            0,
            -3,
            "0",
            "0 rows",
            "abc",
            "",
            " ",
            None,
            0.2,
            1.5,
            True,
            False,
            NAN,
        ],
        *[math.inf, "nan", "inf", "1e3", "1e3%", "2.5 rows", "5k%", "20%%", "% 20", "20% rows", "5000 cats", "0x10"],
        *[
            "1,5%",
            "2,5M tokens",
            "1,00",
            "1,0000",
            "1__000",
            "٣%",
            "½",
            "5 000",
            [20],
            {"share": 20},
            b"20%",
            "20\n%x",
        ],
        *[
            Fraction(1, 5),
            10**18,
            10**5000,
            -(10**5000),
            "999999999999999999b tokens",
            np.float32(0.2),
            np.bool_(True),
        ],
    ],
    ids=lambda budget: ascii(budget)[:20] if not isinstance(budget, int) else f"int of {budget.bit_length()} bits",
)
def test_what_cannot_be_meant_is_refused_with_the_budget_in_the_text(budget: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(budget)
    text = str(caught.value)
    assert text.startswith("budget ")
    assert len(text) < 400
    if not isinstance(budget, int) or abs(budget) < 10**18:
        assert repr(budget.item() if isinstance(budget, np.generic) else budget)[:50] in text


def test_a_fraction_gets_the_hint_that_a_share_is_text() -> None:
    with pytest.raises(BudgetError, match=r"Did you mean '20%'\?"):
        parse_budget(0.2)


@pytest.mark.parametrize(
    "budget",
    ["9" * 10**6, "1" + "0" * 10**6 + "%", "1," * 10**5, " " * 10**6, "1_000" * 10**5],
    ids=["digits", "zeros", "commas", "spaces", "thousands"],
)
def test_endless_text_is_refused_at_once(budget: str) -> None:
    start = time.perf_counter()
    with pytest.raises(BudgetError) as caught:
        parse_budget(budget)
    assert time.perf_counter() - start < 0.5
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("budget", "pool", "rows"),
    [
        *[("20%", 101, 21), ("7%", 100, 7), ("0.1%", 1000, 1), ("0.1%", 1001, 2), ("100%", 7, 7), ("29%", 100, 29)],
        *[
            ("57%", 100, 57),
            ("14%", 50, 7),
            ("0.000000000001%", 3, 1),
            ("33.3%", 1000, 333),
            ("5", 3, 5),
            ("5%", 0, 0),
        ],
    ],
)
def test_a_share_is_of_all_input_rows_rounded_up_in_exact_decimals(budget: str, pool: int, rows: int) -> None:
    assert parse_budget(budget).rows(pool) == rows


@given(st.integers(1, 10**6), st.integers(0, 10**9))
def test_every_share_is_the_exact_ceiling(tenthousandths: int, pool: int) -> None:
    share = f"{tenthousandths / 10**4:.4f}%"
    assert parse_budget(share).rows(pool) == math.ceil(Fraction(tenthousandths, 10**6) * pool)


def test_ties_go_by_row_order_and_rows_without_a_finite_score_are_never_chosen() -> None:
    scores = np.array([1.0, NAN, 2.0, math.inf, 1.0, -math.inf, 2.0])
    assert preference(scores).tolist() == [2, 6, 0, 4]
    for strategy in STRATEGIES:
        order = preference(scores, strategy=strategy, groups=list("aabbaab"))
        assert sorted(order.tolist()) == [0, 2, 4, 6], strategy


def test_no_rows_and_no_scores_are_an_empty_order() -> None:
    for scores in (np.array([]), np.array([NAN, NAN])):
        for strategy in STRATEGIES:
            assert preference(scores, strategy=strategy, groups=[1] * len(scores)).tolist() == []


def test_random_depends_on_the_seed_alone() -> None:
    scores = np.arange(50.0)
    assert (
        preference(scores, strategy="random", seed=1).tolist()
        == preference(-scores, strategy="random", seed=1).tolist()
    )
    assert (
        preference(scores, strategy="random", seed=1).tolist()
        != preference(scores, strategy="random", seed=2).tolist()
    )


def sainte_lague(scores: np.ndarray, groups: list[Any]) -> list[int]:
    """Seat after seat to the group with the highest quotient g / (2 s + 1); ties to the group that came first."""
    members: dict[Any, list[int]] = {group: [] for group in groups}
    for row in np.argsort(-scores, kind="stable"):
        if np.isfinite(scores[row]):
            members[groups[row]].append(int(row))
    taken, seats = [], dict.fromkeys(members, 0)
    while any(seats[group] < len(rows) for group, rows in members.items()):
        free = [group for group, rows in members.items() if seats[group] < len(rows)]
        best = max(free, key=lambda group: Fraction(len(members[group]), 2 * seats[group] + 1))  # the first of equals
        taken.append(members[best][seats[best]])
        seats[best] += 1
    return taken


@given(st.lists(st.tuples(SCORES, GROUPS), max_size=40))
def test_strata_are_those_of_sainte_lague_done_seat_by_seat(rows: list[tuple[float, Any]]) -> None:
    scores, groups = np.array([score for score, _ in rows]), [group for _, group in rows]
    assert preference(scores, strategy="stratified", groups=groups).tolist() == sainte_lague(scores, groups)


def test_strata_keep_their_shares_and_null_is_a_group() -> None:
    groups = ["a"] * 60 + [None] * 30 + ["c"] * 10
    order = preference(np.arange(100.0), strategy="stratified", groups=groups)
    for budget in (10, 20, 50):
        chosen = [groups[row] for row in order[:budget]]
        assert [chosen.count(group) for group in ("a", None, "c")] == [0.6 * budget, 0.3 * budget, 0.1 * budget]
    assert order[0] == 59


def test_nan_is_one_group_and_not_one_for_each_row() -> None:
    groups = [1.0, 1.0, 1.0, NAN, float("nan"), float("nan")]
    order = preference(np.arange(6.0), strategy="stratified", groups=groups)
    assert sorted(order[:2].tolist()) == [2, 5]
    assert order.tolist() == preference(np.arange(6.0), strategy="stratified", groups=list("xxxyyy")).tolist()


@given(st.lists(st.tuples(SCORES, GROUPS), min_size=1, max_size=40), st.sampled_from(STRATEGIES), st.data())
def test_growing_budgets_give_nested_subsets(
    rows: list[tuple[float, Any]], strategy: str, data: st.DataObject
) -> None:
    scores, groups = np.array([score for score, _ in rows]), [group for _, group in rows]
    order = preference(scores, strategy=strategy, groups=groups, seed=3)
    assert len(set(order.tolist())) == len(order) == int(np.isfinite(scores).sum())
    if not len(order):
        return
    small = data.draw(st.integers(1, len(order)))
    large = data.draw(st.integers(small, len(order)))
    again = preference(scores, strategy=strategy, groups=groups, seed=3)
    chosen = [set(take(o, parse_budget(n), len(rows)).tolist()) for o, n in ((order, small), (again, large))]
    assert len(chosen[0]) == small
    assert chosen[0] <= chosen[1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 400), st.integers(0, 400))
def test_a_token_budget_stops_at_the_first_row_that_does_not_fit(tokens: list[int], small: int, more: int) -> None:
    order = np.random.default_rng(len(tokens)).permutation(len(tokens))
    expected, spent = [], 0
    for row in order:
        spent += tokens[row]
        if spent > small:
            break
        expected.append(row)
    found = take(order, parse_budget(f"{small} tokens"), len(tokens), np.array(tokens))
    assert found.tolist() == expected
    assert (
        take(order, parse_budget(f"{small + more} tokens"), len(tokens), np.array(tokens))[: len(found)].tolist()
        == expected
    )


def test_a_token_budget_that_pays_for_no_row_says_what_the_first_costs() -> None:
    with pytest.raises(BudgetError, match=r"the first has 9 tokens\. Give '9 tokens' or more"):
        take(np.array([1, 0]), parse_budget("8 tokens"), 2, np.array([5, 9]))


def test_a_token_budget_needs_the_tokens_of_every_row_with_a_score() -> None:
    with pytest.raises(BudgetError, match="no token column"):
        take(np.array([0]), parse_budget("8 tokens"), 1)
    with pytest.raises(BudgetError, match="1 rows with a score have no number of tokens"):
        take(np.array([0, 1]), parse_budget("8 tokens"), 3, np.array([5.0, NAN, 5.0]))


@given(st.integers(1, 3000), st.data())
@settings(max_examples=200)
def test_too_large_a_budget_names_a_number_and_a_share_that_can_be_had(pool: int, data: st.DataObject) -> None:
    scored = data.draw(st.integers(1, pool))
    order = np.arange(scored)
    with pytest.raises(BudgetError) as caught:
        take(order, parse_budget(scored + 1), pool)
    text = str(caught.value)
    assert f"only {scored:,} can be selected" in text
    assert f"Give {scored} rows or fewer" in text
    for share in [word.strip("'.") for word in text.split() if word.strip("'.").endswith("%")]:
        assert 0 < len(take(order, parse_budget(share), pool)) <= scored


def test_no_scored_row_at_all_points_at_the_reasons_and_at_no_share() -> None:
    with pytest.raises(BudgetError, match=r"only 0 can be selected.*Look at why"):
        take(np.array([], dtype=np.int64), parse_budget("20%"), 5)


@pytest.mark.parametrize("strategy", ["top", "random", "stratified"])
def test_a_million_rows_take_less_than_two_seconds(strategy: str) -> None:
    rng = np.random.default_rng(0)
    scores, groups = rng.normal(size=10**6), rng.integers(0, 50, size=10**6).tolist()
    start = time.process_time()
    order = preference(scores, strategy=strategy, groups=groups)
    assert len(take(order, parse_budget("20%"), len(scores))) == 200_000
    assert time.process_time() - start < 2.0


def test_a_budget_remembers_how_it_was_asked_for() -> None:
    assert parse_budget(" 2M tokens ").asked == "2M tokens"
    assert parse_budget(np.int32(7)).asked == "7 rows"
    assert parse_budget("20 %") == Budget(Decimal(20), "percent", "20 %")
