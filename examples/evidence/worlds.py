"""The five worlds: what a pool is made of, which of its rows help, and what counts in the end.

A pool is a list of rows, each with the family that it was drawn from. No selector may read the family but the oracle,
which keeps rows of the families named useful. A target is a task of held-out problems; at least one in each world is
outside the pool's distribution (symbols that no trace of the pool mixes, or longer chains).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evidence.language import DAMAGES, TEACHER, Language, Row, damaged, verbose, written
from hf_curate.demo.world import Problem

STYLES = ("right", "verbose", "damaged", "wrong teacher")


@dataclass(frozen=True)
class Family:
    """A part of a pool: a share of its rows, the symbols and lengths of the problems, how traces are written."""

    share: float
    signs: str
    lengths: tuple[int, ...]
    style: str = "right"
    useful: bool = False


@dataclass(frozen=True)
class Target:
    """Held-out problems of these symbols and this length; ``outside`` the pool's distribution or not."""

    signs: str
    length: int
    outside: bool = False


@dataclass(frozen=True)
class World:
    """Families by name, targets by name, rows in the pool, and one line about it."""

    about: str
    families: Mapping[str, Family]
    targets: Mapping[str, Target]
    rows: int = 480


LEARNABLE, MASTERED, HARD = "@&", "+-*", "!"
SHORT_TARGETS = {
    "one rule": Target("@", 3),
    "another rule": Target("&", 3),
    "both in a chain": Target("@&", 3, outside=True),
}


def _pure(share: float, signs: str, lengths: tuple[int, ...], style: str = "right") -> dict[str, Family]:
    """A family for each symbol, so that no trace mixes them."""
    useful = style == "right"
    return {f"{style} {sign}": Family(share / len(signs), sign, lengths, style, useful) for sign in signs}


WORLDS: dict[str, World] = {
    "mixed": World(
        "mastered, learnable and hopeless problems, a verbose style and damaged traces",
        {
            "mastered": Family(0.35, MASTERED, (2, 3, 4)),
            "hopeless": Family(0.20, HARD, (3,)),
            **_pure(0.20, LEARNABLE, (3,)),
            **_pure(0.10, LEARNABLE, (3,), "verbose"),
            **_pure(0.15, LEARNABLE, (3,), "damaged"),
        },
        SHORT_TARGETS,
    ),
    "teacher": World(
        "half of the pool is from a teacher who is wrong in the same way each time",
        {
            "mastered": Family(0.20, MASTERED, (2, 3, 4)),
            **_pure(0.30, LEARNABLE, (3,)),
            **_pure(0.50, LEARNABLE, (3,), "wrong teacher"),
        },
        SHORT_TARGETS,
    ),
    "damaged": World(
        "one style and one kind of problem, 40 % of the traces damaged",
        {**_pure(0.60, LEARNABLE, (3,)), **_pure(0.40, LEARNABLE, (3,), "damaged")},
        SHORT_TARGETS,
    ),
    "clean": World(
        "families of different difficulty, every trace right",
        {
            "mastered": Family(0.60, MASTERED, (2, 3, 4)),
            **_pure(0.40, "@&^~", (3,)),
        },
        {
            "known a little": Target("@", 3),
            "known less": Target("^", 3),
            "known least": Target("~", 3),
            "all in a chain": Target("@&^~", 3, outside=True),
        },
    ),
    "long": World(
        "as mixed, with traces of 8 steps",
        {
            "mastered": Family(0.35, MASTERED, (8,)),
            "hopeless": Family(0.20, HARD, (8,)),
            **_pure(0.20, LEARNABLE, (8,)),
            **_pure(0.10, LEARNABLE, (8,), "verbose"),
            **_pure(0.15, LEARNABLE, (8,), "damaged"),
        },
        {
            "one rule": Target("@", 8),
            "another rule": Target("&", 8),
            "both in a chain": Target("@&", 8, outside=True),
        },
        rows=240,
    ),
}


def draw_pool(world: World, language: Language, seed: int, rows: int | None = None) -> list[Row]:
    """The rows of a pool, in random order, all of different prompts: prompt, completion, answer and family.

    ``answer`` is what the completion's answer line says, right or wrong: a damaged row does not tell.
    """
    rng = random.Random(f"pool {seed}")
    total = world.rows if rows is None else rows
    found: dict[str, Row] = {}
    for name, own in world.families.items():
        until = len(found) + round(own.share * total)
        while len(found) < until:
            problem = language.draw(own.signs, own.lengths, rng, "pool")
            if problem.prompt not in found:
                found[problem.prompt] = _row(name, own, problem, language, rng, until - len(found))
    pool = list(found.values())
    rng.shuffle(pool)
    return pool


def _row(name: str, family: Family, problem: Problem, language: Language, rng: random.Random, left: int) -> Row:
    steps = language.work_out(problem)
    if family.style == "damaged":  # in turn, so that each kind is as frequent
        completion = damaged(language, problem, DAMAGES[left % len(DAMAGES)], rng)
    elif family.style == "wrong teacher":
        completion = written(Language(language.modulus, TEACHER).work_out(problem))
    else:
        completion = verbose(steps) if family.style == "verbose" else written(steps)
    return {
        "prompt": problem.prompt,
        "completion": completion,
        "answer": completion.rsplit("#", 1)[1],
        "family": name,
    }


def draw_problems(target: Target, language: Language, rows: int, seed: int) -> list[Problem]:
    """Different held-out problems of a target."""
    rng = random.Random(f"target {target.signs} {target.length} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < rows:
        problem = language.draw(target.signs, (target.length,), rng, "held_out")
        found.setdefault(problem.prompt, problem)
    return list(found.values())


def shares(world: World, pool: Sequence[Row], places: Iterable[int]) -> dict[str, float]:
    """Share of each kind of row among those at the places: mastered, hopeless, right, verbose, damaged, wrong teacher.

    Families of one style whose names end in a symbol are counted together.
    """
    kinds = list(dict.fromkeys(_kind(name) for name in world.families))
    own = [_kind(pool[place]["family"]) for place in places]
    return {kind: own.count(kind) / max(1, len(own)) for kind in kinds}


def _kind(family: str) -> str:
    return next((style for style in STYLES if family.startswith(f"{style} ")), family)
