"""Verifiable problems of three families, for reinforcement learning: chain, countdown and sort.

Each family has three levels of difficulty, and a level is the size of a problem::

    family     level                     prompt              clean completion
    chain      operations                "57+8*3?\\n"         "57+8=65\\n65*3=95\\n#95"    (modulo 100, as in world)
    countdown  numbers that are given    "3,4,5:35\\n"        "(3+4)*5"                  (or any other solution)
    sort       numbers to sort           "83 12 45<\\n"       "#12 45 83"

Prompt and completion are concatenated with nothing in between. The split of a problem depends on its prompt alone,
and countdown writes its numbers in ascending order, so that no problem comes back under another prompt. All chance
comes from a seed.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hf_curate.demo import world
from hf_curate.errors import CurateError
from hf_curate.rollouts.verify import Verifier, verifier

Row = dict[str, Any]

LEVELS: dict[str, tuple[int, ...]] = {"chain": (1, 2, 4), "countdown": (2, 3, 4), "sort": (3, 5, 8)}
FAMILIES = tuple(LEVELS)
CHARACTERS = "\n #()*+,-:<=?0123456789"
LONGEST = 48
"""Tokens of a clean completion at most, with the end token; one character is a token."""

SPLITS = {  # percent of all problems, by a hash of the prompt: no problem is in two splits
    "train": range(0, 50),
    "stop": range(50, 60),
    "held_out": range(60, 70),
    "validation": range(70, 80),
    "pool": range(80, 100),
}
GIVEN = {2: range(1, 100), 3: range(1, 21), 4: range(1, 11)}
"""What countdown's numbers are drawn from, by level: the more of them, the smaller."""
RESULTS = range(1, 100)
"""What each operation of a drawn solution may give, and so the targets."""
SORTED = range(10, 100)
TRIES = 20_000
"""Draws in a row without a new problem, after which a split counts as used up."""

_SIGNS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def draw(family: str, level: int, rng: random.Random) -> Row:
    """One problem of any split: prompt, family, level, answer, numbers ([] but for countdown), target (or None)."""
    _check_level(family, level)
    return {"chain": _chain, "countdown": _countdown, "sort": _sort}[family](level, rng)


def stream(family: str, rng: random.Random, split: str, level: int | None = None) -> Iterator[Row]:
    """Problems of one split without end, the same ones again and again; without `level`, each level as often."""
    _check_split(split)
    while True:
        row = draw(family, rng.choice(_levels(family)) if level is None else level, rng)
        if world.split_of(row["prompt"], SPLITS) == split:
            yield row


def problems(family: str, rows: int, *, level: int | None = None, seed: int, split: str) -> list[Row]:
    """`rows` different problems of a family.

    Columns: `prompt` (text), `family`, `level` (int), `answer` (what a clean completion writes after its last "#"; for
    countdown an expression that is a solution, of maybe many), `numbers` (list of int: countdown's, else []), `target`
    (int, None but for countdown). The same arguments give the same rows, and more rows begin with the fewer.

    Args:
        level: one of `LEVELS[family]`; None draws them equally often.
        split: one of `SPLITS`: the policy learnt from "train", "stop" chose when to end, "held_out" measures,
            "validation" (a trusted set) and "pool" (what to select from) are free.

    Raises: `CurateError` for an unknown family, level or split, and where the split has fewer problems.
    """
    _check_split(split)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise CurateError(f"rows={rows!r} must be a whole number from 0 on.")
    rng = random.Random(seed)
    found: dict[str, Row] = {}
    missed = 0
    while len(found) < rows:
        row = draw(family, rng.choice(_levels(family)) if level is None else level, rng)
        if row["prompt"] not in found and world.split_of(row["prompt"], SPLITS) == split:
            found[row["prompt"]] = row
            missed = 0
        elif (missed := missed + 1) == TRIES:
            which = family if level is None else f"{family} of level {level}"
            raise CurateError(
                f"the split {split!r} holds about {len(found):,} problems of {which}, and rows={rows:,} are asked: "
                "ask for fewer, or for another level or split."
            )
    return list(found.values())


def clean(row: Row) -> str:
    """A right completion of a problem, at most `LONGEST` tokens with its end token."""
    if row["family"] == "chain":
        return world.clean(world.parse_problem(row["prompt"]))
    return row["answer"] if row["family"] == "countdown" else f"#{row['answer']}"


def solved(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    family: Sequence[str],
    answer: Sequence[str],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int | None],
    **_: Any,
) -> list[float | None]:
    """The reward function of all families, as TRL's trainers and `Rollouts` take it: 1.0 for right, 0.0 otherwise.

    chain and sort: the verifier "exact" on what the last line writes after "#", as text. countdown: the verifier
    "countdown". None where a row holds nothing to judge by. Raises `CurateError` for an unknown family.
    """
    rewards: list[float | None] = [None] * len(completions)
    for name in dict.fromkeys(family):
        _levels(name)
        part = [i for i in range(len(completions)) if family[i] == name]
        columns = {"answer": answer, "numbers": numbers, "target": target}
        judged = JUDGES[name](
            completions=[completions[i] for i in part],
            **{column: [values[i] for i in part] for column, values in columns.items()},
        )
        for i, reward in zip(part, judged, strict=True):
            rewards[i] = reward
    return rewards


_LAST_LINE = verifier("exact", numbers=False, pattern=r"#([^#\n]+)\Z")
JUDGES: dict[str, Verifier] = {"chain": _LAST_LINE, "countdown": verifier("countdown"), "sort": _LAST_LINE}


def _row(prompt: str, family: str, level: int, answer: str) -> Row:
    return {"prompt": prompt, "family": family, "level": level, "answer": answer, "numbers": [], "target": None}


def _chain(level: int, rng: random.Random) -> Row:
    prompt = world.draw_problem(rng, level).prompt
    return _row(prompt, "chain", level, world.true_answer(prompt))


def _countdown(level: int, rng: random.Random) -> Row:
    numbers = rng.choices(GIVEN[level], k=level)
    while (found := _expression(numbers, rng)) is None:
        numbers = rng.choices(GIVEN[level], k=level)
    answer, target, _ = found
    given = sorted(numbers)
    row = _row(f"{','.join(map(str, given))}:{target}\n", "countdown", level, answer)
    return {**row, "numbers": given, "target": target}


def _expression(numbers: Sequence[int], rng: random.Random) -> tuple[str, int, bool] | None:
    """A drawn expression over the numbers in their order, its value, and whether it is a sum or difference.

    None where an operation gives something outside `RESULTS`.
    """
    if len(numbers) == 1:
        return str(numbers[0]), numbers[0], False
    cut = rng.randrange(1, len(numbers))
    left, right = _expression(numbers[:cut], rng), _expression(numbers[cut:], rng)
    sign = rng.choice(list(_SIGNS))
    if left is None or right is None or (value := _SIGNS[sign](left[1], right[1])) not in RESULTS:
        return None
    first = f"({left[0]})" if sign == "*" and left[2] else left[0]
    second = f"({right[0]})" if sign in "*-" and right[2] else right[0]
    return f"{first}{sign}{second}", value, sign != "*"


def _sort(level: int, rng: random.Random) -> Row:
    numbers = rng.choices(SORTED, k=level)
    return _row(f"{' '.join(map(str, numbers))}<\n", "sort", level, " ".join(map(str, sorted(numbers))))


def _levels(family: str) -> tuple[int, ...]:
    if family not in LEVELS:
        raise CurateError(f"unknown family {family!r}: the families are {', '.join(FAMILIES)}.")
    return LEVELS[family]


def _check_level(family: str, level: int) -> None:
    if level not in _levels(family):
        raise CurateError(f"{family} has no level {level!r}: its levels are {', '.join(map(str, LEVELS[family]))}.")


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise CurateError(f"unknown split {split!r}: the splits are {', '.join(SPLITS)}.")
