"""The language of the lab: chains of operations on residues, each worked out in a trace of one line a step.

    prompt      "3@4+2?\\n"
    completion  "3@4=0\\n0+2=2\\n#2"

An operation is a symbol with a fixed rule, and a number lies in 0..modulus-1. The base models master some symbols,
know others a little and have never seen the rest, so that a family of problems is a set of symbols and a length. All
chance comes from a ``random.Random`` that the caller seeds; problems, steps and answer lines are those of the demo's
world.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hf_curate.demo.world import Problem, Step, split_of, write_completion

Rule = Callable[[int, int, int], int]
"""(left, operand, start of the problem) -> the result, before the modulus is taken."""
Row = dict[str, str]

CHARACTERS = "\n#*+-=?@&^~!0123456789"


def _hidden(left: int, operand: int, start: int) -> int:
    """A fixed table of all three numbers, drawn by a hash: far more entries than a pool has steps."""
    return int.from_bytes(hashlib.sha256(f"{left} {operand} {start}".encode()).digest()[:4], "big")


RULES: dict[str, Rule] = {
    "+": lambda left, operand, _: left + operand,
    "-": lambda left, operand, _: left - operand,
    "*": lambda left, operand, _: left * operand,
    "@": lambda left, operand, _: 2 * left + operand + 1,
    "&": lambda left, operand, _: left + 3 * operand + 2,
    "^": lambda left, operand, _: abs(left - operand),
    "~": lambda left, operand, _: 3 * left + 2 * operand + 7,
    "!": _hidden,
}
TEACHER: dict[str, Rule] = {  # what a consistently wrong teacher believes of the learnable symbols
    **RULES,
    "@": lambda left, operand, _: 2 * left + operand + 4,
    "&": lambda left, operand, _: left + 3 * operand + 7,
}
SPLITS = {"train": range(0, 60), "pool": range(60, 80), "held_out": range(80, 100)}
"""Percents of all problems by a hash of the prompt: no problem is in two of them."""
DAMAGES = ("propagated", "broken", "wrong answer", "filler")


@dataclass(frozen=True)
class Language:
    """Numbers 0..modulus-1, and the rule of each symbol."""

    modulus: int = 10
    rules: dict[str, Rule] = field(default_factory=lambda: RULES)

    def work_out(self, problem: Problem, slip_at: int | None = None, slip: int = 0) -> list[Step]:
        """The steps, each from the result before it; the result of step ``slip_at`` is off by ``slip``."""
        steps: list[Step] = []
        value = problem.start
        for index, (sign, operand) in enumerate(problem.operations):
            result = (
                self.rules[sign](value, operand, problem.start) + (slip if index == slip_at else 0)
            ) % self.modulus
            steps.append(Step(value, sign, operand, result))
            value = result
        return steps

    def answer(self, problem: Problem) -> str:
        """What a right completion writes after "#"."""
        return str(self.work_out(problem)[-1].result)

    def draw(
        self, signs: Sequence[str], lengths: Sequence[int], rng: random.Random, split: str, operands: int | None = None
    ) -> Problem:
        """One problem of a split, with symbols, length and numbers drawn uniformly; operands below ``operands``."""
        most = self.modulus if operands is None else operands
        while True:
            chosen = rng.choices(signs, k=rng.choice(lengths))
            operations = tuple((sign, rng.randrange(most)) for sign in chosen)
            problem = Problem(rng.randrange(self.modulus), operations)
            if split_of(problem.prompt, SPLITS) == split:
                return problem


def written(steps: Sequence[Step], answer: int | None = None) -> str:
    """The completion of these steps, with their last result as its answer unless another is given."""
    return write_completion([step.line for step in steps], steps[-1].result if answer is None else answer)


def verbose(steps: Sequence[Step]) -> str:
    """The completion with one or two idle lines after each step: "7=7", which say nothing."""
    lines = [line for step in steps for line in (step.line, f"{step.result}={step.result}")]
    return write_completion(lines, steps[-1].result)


def damaged(language: Language, problem: Problem, kind: str, rng: random.Random) -> str:
    """A completion with one fault.

    ``propagated``: one result is wrong and all that follows is worked out from it. ``broken``: one result is wrong and
    the next step goes on from the true one. ``wrong answer``: only the answer line is wrong. ``filler``: three idle
    lines after one step, and no fault else.
    """
    steps, slip = language.work_out(problem), rng.randrange(1, language.modulus)
    place = rng.randrange(len(steps))
    if kind == "propagated":
        return written(language.work_out(problem, place, slip))
    if kind == "wrong answer":
        return written(steps, (steps[-1].result + slip) % language.modulus)
    lines = [step.line for step in steps]
    if kind == "filler":
        lines[place + 1 : place + 1] = [f"{steps[place].result}={steps[place].result}"] * 3
        return write_completion(lines, steps[-1].result)
    if kind != "broken":
        raise ValueError(f"unknown damage {kind!r}; the damages are {', '.join(DAMAGES)}")
    place = rng.randrange(max(1, len(steps) - 1))
    wrong = (steps[place].result + slip) % language.modulus
    lines[place] = Step(steps[place].left, steps[place].sign, steps[place].operand, wrong).line
    return write_completion(lines, steps[-1].result)
