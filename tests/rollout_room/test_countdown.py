"""Countdown expressions, against an evaluator of its own kind."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_curate import verifier
from hf_curate.errors import RowError
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Verdict


def judged(completion: str, numbers: Any = (3, 5, 7), target: Any = 22, **options: Any) -> Verdict:
    row = {"numbers": list(numbers), "target": target}
    [result] = verifier("countdown", **options).verify([completion], [row])
    assert isinstance(result, Verdict), result
    return result


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>3 * 5 + 7</answer>",
        "<answer>1+1</answer> no: <answer> (3 × 5) + 7 = 22 </answer> done",
        r"so \boxed{3 \times 5 + 7}",
        r"\boxed{\left(3 \cdot 5\right) + 7}",
        "let me think\n3*5+7",
        "let me think\r\n$3*5+7 = 22$.\n\n",
        "<answer>7 − -(3*5)</answer>",
        "<answer>+7+3*5</answer>",
    ],
)
def test_an_expression_is_found_and_right(completion: str) -> None:
    assert judged(completion).outcome == RIGHT


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("3+5+7", "the value is 15, the target 22"),
        ("3*5+7 = 23", "= 23 is written, the target is 22"),
        ("3*5+8", "8 is none of the numbers 3, 5, 7"),
        ("3*5+7.0", "7.0 is none of the numbers"),
        ("5*5-3", "5 is used more often than it is given"),
        ("3*5", "7 is not used"),
        ("3/(5-5)+7", "5 is used more often"),
        ("22", "22 is none of the numbers"),
    ],
)
def test_a_rule_that_is_broken_is_wrong(completion: str, said: str) -> None:
    result = judged(completion)
    assert result.outcome == WRONG
    assert said in result.detail


def test_a_division_by_zero_is_wrong() -> None:
    result = judged("4/(2-1-1)", (1, 1, 2, 4), 4)
    assert (result.outcome, "a division by zero" in result.detail) == (WRONG, True)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "   \n ",
        "<answer></answer>",
        r"\boxed{}",
        r"\boxed{3*5+7",
        "3**5",
        "3//5",
        "3 5",
        "3(5)",
        "()",
        "(3,5)",
        "abs(3)",
        "__import__('os')",
        "3 if 5 else 7",
        "3 < 5",
        "3 % 5",
        "3 & 5",
        "3e5",
        "0x3",
        "3_5",
        "22 = 3*5+7",
        "3*5+7 = x",
        "3*5+7 =",
        "the answer is 3*5+7",
        "03*5+7",
        "٣*5+7",
        "3*5+7\x00",
    ],
)
def test_anything_else_cannot_be_parsed(completion: str) -> None:
    assert judged(completion).outcome == UNPARSED


def test_fractions_are_exact() -> None:
    assert judged("8/(3-8/3)", (8, 3, 8, 3), 24).outcome == RIGHT
    assert judged("1/3*3", (1, 3, 3), 1).outcome == RIGHT


def test_not_all_numbers_need_be_used_where_that_is_said() -> None:
    assert judged("3*5", target=15).outcome == WRONG
    assert judged("3*5", target=15, use_all=False).outcome == RIGHT
    assert judged("5*3*5", target=75, use_all=False).outcome == WRONG


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"target": 22}, "gold missing: column 'numbers' holds None"),
        ({"numbers": [], "target": 22}, "gold missing: column 'numbers' holds an empty list"),
        ({"numbers": [3]}, "gold missing: column 'target' holds None"),
        ({"numbers": "3", "target": 22}, "wrong type: column 'numbers' holds str, expected a list of whole numbers"),
        ({"numbers": [3, 0.5], "target": 22}, "wrong type: number 2 of column 'numbers' holds float, expected"),
        (
            {"numbers": [3, -5], "target": 22},
            "gold unreadable: column 'numbers' holds -5, expected numbers of 0 or more",
        ),
        ({"numbers": [3], "target": float("nan")}, "wrong type: column 'target' holds float, expected a whole number"),
        ({"numbers": [3], "target": True}, "wrong type: column 'target' holds bool, expected a whole number"),
    ],
)
def test_a_row_without_a_task_is_not_judged(row: dict[str, Any], said: str) -> None:
    [result] = verifier("countdown").verify(["3"], [row])
    assert isinstance(result, RowError)
    assert str(result).startswith(said)


def test_the_columns_can_be_renamed() -> None:
    contract = verifier("countdown", numbers="nums", target="goal")
    assert contract.columns == ("nums", "goal")
    assert contract(completions=["3*5+7"], nums=[[3, 5, 7.0]], goal=[22]) == [1.0]


@pytest.mark.parametrize(
    "completion",
    [
        "(" * 450 + "3" + ")" * 450,
        "-" * 999 + "3",
        "+".join(["3"] * 499),
        "9" * 999,
        "*".join(["9" * 99] * 9),
        "(" * 1_000_000,
        "\\boxed{" + "{" * 1_000_000,
        "<answer>" + "1+" * 500_000 + "1</answer>",
        "<answer>" * 100_000,
        "1\n" * 500_000,
    ],
)
def test_deep_and_long_inputs_are_answered_at_once(completion: str) -> None:
    start = time.process_time()
    assert judged(completion).outcome in (WRONG, UNPARSED)
    assert time.process_time() - start < 0.25


# -- against an evaluator that shares nothing with the verifier -------------------------------------------------------

Tree = Any  # a number, or (operation, left, right)
LEAF = st.integers(0, 12)
TREES = st.recursive(LEAF, lambda below: st.tuples(st.sampled_from("+-*/"), below, below), max_leaves=7)


def written(tree: Tree) -> str:
    """Fully bracketed, except around the whole."""
    if isinstance(tree, int):
        return str(tree)
    operation, left, right = tree
    sides = [written(side) if isinstance(side, int) else f"({written(side)})" for side in (left, right)]
    return f" {operation} ".join(sides)


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])


def value(tree: Tree) -> tuple[int, int] | None:
    """Numerator and denominator, not in lowest terms; None for a division by zero."""
    if isinstance(tree, int):
        return tree, 1
    operation, left, right = tree[0], value(tree[1]), value(tree[2])
    if left is None or right is None:
        return None
    (a, b), (c, d) = left, right
    if operation == "/":
        return (a * d, b * c) if c else None
    return {"+": (a * d + c * b, b * d), "-": (a * d - c * b, b * d), "*": (a * c, b * d)}[operation]


@given(TREES, st.integers(-50, 50), st.lists(LEAF, max_size=2), st.booleans())
def test_the_verdict_is_that_of_brute_force(tree: Tree, other: int, extra: list[int], use_all: bool) -> None:
    found = value(tree)
    reached = None if found is None else Fraction(*found)
    for target in {other, int(reached) if reached is not None else 0}:
        numbers = leaves(tree) + extra
        expected = RIGHT if reached == target and not (use_all and extra) else WRONG
        assert judged(written(tree), numbers, target, use_all=use_all).outcome == expected


@given(TREES, st.lists(LEAF, min_size=1, max_size=7))
def test_a_number_that_is_not_given_is_never_right(tree: Tree, numbers: list[int]) -> None:
    found = value(tree)
    target = int(Fraction(*found)) if found else 0
    fits = Counter(leaves(tree)) == Counter(numbers)
    right = fits and found is not None and Fraction(*found) == target
    assert (judged(written(tree), numbers, target).outcome == RIGHT) == right
