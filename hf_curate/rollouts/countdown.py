"""Countdown: reach a target with the four operations, using each of the given numbers once. Nothing is evaluated but
a syntax tree of whole numbers and these operations, in exact fractions."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from hf_curate.chat import as_list, wrong_type
from hf_curate.errors import RowError
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Checker, Row, Verdict, flag, shown, verdict

LONGEST = 1000
"""Characters of an expression; longer ones are not read."""

_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_WRITTEN = {"×": "*", "·": "*", "÷": "/", "−": "-", "\\times": "*", "\\cdot": "*", "\\div": "/"}
_WRITTEN |= {"\\left(": "(", "\\right)": ")", "\\(": "", "\\)": "", "\\[": "", "\\]": ""}
_SAFE = re.compile(r"[-+*/(). \t0-9]+")
_CLAIM = re.compile(r"-?[0-9]+")


class _UnreadableError(Exception):
    """The expression is none; the text says why."""


class _RuleError(Exception):
    """The expression breaks a rule; the text says which."""


class Countdown(Checker):
    """An expression over the given numbers has the target's value.

    The expression is taken from the last <answer>...</answer>, else the last \\boxed{...}, else the last line; an
    "= target" at its end is allowed. Operations: + - * / (also × ÷ − and \\times, \\cdot, \\div), signs, parentheses.

    Parameters:
        numbers: the column of the given numbers, whole and not negative.
        target: the column of the number to reach, whole.
        use_all: whether each given number must be used; otherwise each may be used at most once.
    """

    name = "countdown"
    version = "1"
    failure_surface = (
        "cannot parse a right expression that is written as \\frac{}{}, stands in a sentence, or comes before the "
        "last line without a mark"
    )

    def __init__(self, numbers: str = "numbers", target: str = "target", use_all: bool = True) -> None:
        super().__init__({"numbers": numbers, "target": target}, {"use_all": flag("use_all", use_all)})

    def check(self, completion: str, row: Row) -> Verdict:
        given = _given(row, self.roles["numbers"])
        target = _whole(row, self.roles["target"])
        text = ""
        try:
            text = _expression(completion)
            written, claim = _claim(text)
            tree = _tree(written)
            self._check_numbers(tree, given)
            value = _value(tree)
        except _UnreadableError as error:
            return verdict(UNPARSED, str(error))
        except _RuleError as error:
            return verdict(WRONG, f"{shown(text, 80)}: {error}")
        if value != target:
            return verdict(WRONG, f"{shown(text, 80)}: the value is {shown(str(value), 40)}, the target {target}")
        if claim not in (None, target):
            return verdict(WRONG, f"{shown(text, 80)}: = {shown(str(claim), 40)} is written, the target is {target}")
        return verdict(RIGHT, text)

    def _check_numbers(self, tree: ast.expr, given: list[int]) -> None:
        used: list[Any] = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        strange = [number for number in used if type(number) is not int or number not in given]
        if strange:
            raise _RuleError(f"{strange[0]} is none of the numbers {_listed(given)}")
        counts = Counter(given)
        often = Counter(used) - counts
        if often:
            raise _RuleError(f"{min(often)} is used more often than it is given in {_listed(given)}")
        left = counts - Counter(used)
        if left and self.options["use_all"]:
            raise _RuleError(f"{min(left)} is not used, of {_listed(given)}")


def _given(row: Row, column: str) -> list[int]:
    value = row.get(column)
    numbers = as_list(value)
    if value is None or (numbers is not None and not len(numbers)):
        raise RowError("gold missing", f"column {column!r} holds {'None' if value is None else 'an empty list'}")
    if numbers is None:
        raise wrong_type(f"column {column!r}", value, "a list of whole numbers")
    given = [_as_whole(item, f"number {place} of column {column!r}") for place, item in enumerate(numbers, 1)]
    if min(given) < 0:
        raise RowError("gold unreadable", f"column {column!r} holds {min(given)}, expected numbers of 0 or more")
    return given


def _whole(row: Row, column: str) -> int:
    value = row.get(column)
    if value is None:
        raise RowError("gold missing", f"column {column!r} holds None")
    return _as_whole(value, f"column {column!r}")


def _as_whole(value: Any, where: str) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole and not (isinstance(value, float | np.floating) and float(value).is_integer()):
        raise wrong_type(where, value, "a whole number")
    return int(value)


def _expression(completion: str) -> str:
    """What the completion gives as its expression, without marks around it."""
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        text = completion[start + len("<answer>") : end]
    elif (start := completion.rfind("\\boxed{")) >= 0:
        text = _braced(completion, start + len("\\boxed{"))
    else:
        text = completion.rstrip()
        text = text[max(text.rfind("\n"), text.rfind("\r")) + 1 :]
    text = text.strip().lstrip("$` ").rstrip("$`. \t")
    if not text:
        raise _UnreadableError("there is no expression")
    if len(text) > LONGEST:
        raise _UnreadableError(f"{len(text):,} characters, at most {LONGEST:,} are read: {text}")
    return text


def _braced(completion: str, start: int) -> str:
    """What stands from `start` to the brace that closes."""
    depth = 1
    for place in range(start, min(len(completion), start + 2 * LONGEST)):
        depth += {"{": 1, "}": -1}.get(completion[place], 0)
        if not depth:
            return completion[start:place]
    raise _UnreadableError(f"no brace closes the box: {completion[start : start + LONGEST]}")


def _claim(text: str) -> tuple[str, int | None]:
    """The expression in plain characters, and the number after its "=", if any."""
    for written, plain in _WRITTEN.items():
        text = text.replace(written, plain)
    text, equals, claim = text.partition("=")
    claim = claim.strip().removeprefix("+").replace(" ", "")
    if equals and not _CLAIM.fullmatch(claim):
        raise _UnreadableError(f"what stands after '=' is no number: {claim or '(nothing)'}")
    return text.strip(), int(claim) if equals else None


def _tree(text: str) -> ast.expr:
    """The syntax tree of an expression that holds nothing but numbers and the operations."""
    if not _SAFE.fullmatch(text):
        strange = next((char for char in text if not _SAFE.fullmatch(char)), "")
        said = f"{strange!r} is no part of an expression: {text}" if strange else "there is no expression"
        raise _UnreadableError(said)
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise _UnreadableError(f"{type(error).__name__}: {text}") from error
    for node in ast.walk(tree):
        if not isinstance(node, ast.BinOp | ast.UnaryOp | ast.Constant | ast.Load) and type(node) not in _OPERATIONS:
            raise _UnreadableError(f"{type(node).__name__} is none of + - * / and parentheses: {text}")
    return tree


def _value(tree: ast.expr) -> Fraction:
    """The value, each node after those below it; no recursion, so that depth does not matter."""
    order, todo = [], [tree]
    while todo:
        node = todo.pop()
        order.append(node)
        if isinstance(node, ast.BinOp):
            todo += [node.left, node.right]
        elif isinstance(node, ast.UnaryOp):
            todo.append(node.operand)
    values: dict[ast.expr, Fraction] = {}
    for node in reversed(order):
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Div) and values[node.right] == 0:
                raise _RuleError("a division by zero")
            values[node] = _OPERATIONS[type(node.op)](values[node.left], values[node.right])
        elif isinstance(node, ast.UnaryOp):
            values[node] = _OPERATIONS[type(node.op)](values[node.operand])
        elif isinstance(node, ast.Constant):
            values[node] = Fraction(node.value)  # type: ignore[arg-type]
    return values[tree]


def _listed(numbers: list[int]) -> str:
    return shown(", ".join(map(str, numbers)), 80)
