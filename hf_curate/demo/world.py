"""A small world of reasoning traces whose every step can be checked: chained arithmetic modulo 100.

A problem is a start and 2 to 4 operations, worked LEFT TO RIGHT (no precedence), each result taken modulo 100, so all
numbers lie in 0..99. A trace writes one operation a line and then the answer line::

    prompt      "57+8*3?\\n"
    completion  "57+8=65\\n65*3=95\\n#95"          (65*3 = 195, which is 95 modulo 100)

Prompt and completion are concatenated with nothing in between. Standard library only; all chance comes from a
``random.Random`` that the caller seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

MODULUS = 100
OPERATION_COUNTS = (2, 3, 4)
OPERANDS = {"+": range(1, 100), "-": range(1, 100), "*": range(2, 10)}  # none of them does nothing
SLIPS = (-20, -10, -2, -1, 1, 2, 10, 20)  # what a wrong result is off by, modulo 100
FILLERS = ("{value}+0={value}", "{value}*1={value}", "{value}={value}")
SPLITS = {  # percent of all problems, by a hash of the prompt: no problem is in two splits
    "train": range(0, 70),
    "stop": range(70, 80),
    "held_out": range(80, 90),
    "traces": range(90, 100),
}


@dataclass(frozen=True)
class Problem:
    """A start in 1..99 and the operations that follow it, each an operator of ``OPERANDS`` and its operand."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def prompt(self) -> str:
        """The problem as the model reads it, such as ``"57+8*3?\\n"``."""
        return str(self.start) + "".join(f"{sign}{operand}" for sign, operand in self.operations) + "?\n"


@dataclass(frozen=True)
class Step:
    """One line of a trace: ``left sign operand = result``, right or wrong."""

    left: int
    sign: str
    operand: int
    result: int

    @property
    def line(self) -> str:
        """The step as a trace writes it, such as ``"57+8=65"``."""
        return f"{self.left}{self.sign}{self.operand}={self.result}"


def apply(left: int, sign: str, operand: int) -> int:
    """``left sign operand`` modulo 100."""
    if sign == "+":
        return (left + operand) % MODULUS
    if sign == "-":
        return (left - operand) % MODULUS
    if sign == "*":
        return (left * operand) % MODULUS
    raise ValueError(f"unknown operator {sign!r}; the world knows {', '.join(OPERANDS)}")


def work_out(problem: Problem, slip_at: int | None = None, slip: int = 0) -> list[Step]:
    """The steps of ``problem``, each starting from the result before it.

    With ``slip_at``, the result of that step (counted from 0) is off by ``slip`` and the later steps follow from it.
    """
    steps: list[Step] = []
    value = problem.start
    for index, (sign, operand) in enumerate(problem.operations):
        result = (apply(value, sign, operand) + (slip if index == slip_at else 0)) % MODULUS
        steps.append(Step(value, sign, operand, result))
        value = result
    return steps


def write_completion(lines: list[str], answer: int) -> str:
    """The lines of a trace and its answer line, joined by newlines; no newline at the end."""
    return "\n".join([*lines, f"#{answer}"])


def clean(problem: Problem) -> str:
    """The completion with every step and the answer right."""
    steps = work_out(problem)
    return write_completion([step.line for step in steps], steps[-1].result)


def propagated(problem: Problem, rng: random.Random) -> str:
    """One step's result is wrong, all that follows is worked out rightly from it, and the answer is wrong.

    Slips that a later multiplication would undo (50 * 2 = 0 modulo 100) are left out, so the answer is always wrong.
    """
    truth = work_out(problem)[-1].result
    tries = [work_out(problem, index, slip) for index in range(len(problem.operations)) for slip in SLIPS]
    steps = rng.choice([steps for steps in tries if steps[-1].result != truth])
    return write_completion([step.line for step in steps], steps[-1].result)


def broken(problem: Problem, rng: random.Random) -> str:
    """One step but the last writes a wrong result; the next step goes on from the true one, and the answer is right.

    Exactly one line differs from the clean trace, and it no longer leads to the line after it.
    """
    steps = work_out(problem)
    if len(steps) < 2:
        raise ValueError("a broken trace needs at least 2 operations: its last step is never the wrong one")
    index = rng.randrange(len(steps) - 1)
    wrong = (steps[index].result + rng.choice(SLIPS)) % MODULUS
    lines = [step.line for step in steps]
    lines[index] = Step(steps[index].left, steps[index].sign, steps[index].operand, wrong).line
    return write_completion(lines, steps[-1].result)


def filler(problem: Problem, rng: random.Random) -> str:
    """After one step stand 1 to 3 copies of a true line that does nothing, such as ``65+0=65`` or ``65=65``.

    All other lines and the answer are those of the clean trace. No operation of a problem does nothing (no +0, -0
    or *1), so a filler line cannot be mistaken for a step.
    """
    steps = work_out(problem)
    lines = [step.line for step in steps]
    index = rng.randrange(len(steps))
    idle = rng.choice(FILLERS).format(value=steps[index].result)
    lines[index + 1 : index + 1] = [idle] * rng.randint(1, 3)
    return write_completion(lines, steps[-1].result)


def wrong_answer(problem: Problem, rng: random.Random) -> str:
    """Every step is right, and the answer line writes another number than the last result."""
    steps = work_out(problem)
    return write_completion([step.line for step in steps], (steps[-1].result + rng.choice(SLIPS)) % MODULUS)


DAMAGES: dict[str, Callable[[Problem, random.Random], str]] = {
    "propagated": propagated,
    "broken": broken,
    "filler": filler,
    "wrong_answer": wrong_answer,
}


def parse_problem(prompt: str) -> Problem:
    """The problem that a prompt such as ``"57+8*3?\\n"`` states; ``ValueError`` where it states none."""
    if not re.fullmatch(r"\d+(?:[-+*]\d+)+\?\n?", prompt):
        raise ValueError(f"not a problem of this world: {prompt!r}; one reads like '57+8*3?\\n'")
    start, *_ = re.findall(r"\d+", prompt)
    return Problem(int(start), tuple((sign, int(operand)) for sign, operand in re.findall(r"([-+*])(\d+)", prompt)))


def true_answer(prompt: str) -> str:
    """The right answer to a prompt, as a clean trace writes it after ``#``."""
    return str(work_out(parse_problem(prompt))[-1].result)


def written_answer(completion: str) -> str | None:
    """What a completion's last line gives as the answer (the text after ``#``), or None where it is no answer line."""
    last = completion.rsplit("\n", 1)[-1]
    return last[1:] if last.startswith("#") else None


def split_of(prompt: str, splits: Mapping[str, range] = SPLITS) -> str:
    """The split of a problem, from the SHA-256 of its prompt; ``splits`` shares out the percents 0..99."""
    percent = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    return next(name for name, percents in splits.items() if percent in percents)


def draw_problem(rng: random.Random, operations: int | None = None) -> Problem:
    """One problem: number of operations (unless given), start and operations uniform over what the world allows."""
    signs = rng.choices(list(OPERANDS), k=operations or rng.choice(OPERATION_COUNTS))
    return Problem(rng.randint(1, MODULUS - 1), tuple((sign, rng.choice(OPERANDS[sign])) for sign in signs))


def stream_problems(rng: random.Random, split: str) -> Iterator[Problem]:
    """Problems of one split without end; the same problem may come again."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    while True:
        problem = draw_problem(rng)
        if split_of(problem.prompt) == split:
            yield problem


def draw_problems(rows: int, rng: random.Random, split: str) -> list[Problem]:
    """``rows`` different problems of one split."""
    found: dict[str, Problem] = {}
    problems = stream_problems(rng, split)
    while len(found) < rows:
        problem = next(problems)
        found.setdefault(problem.prompt, problem)
    return list(found.values())


def draw_damages(rows: int, damaged_share: float, rng: random.Random) -> list[str]:
    """``rows`` labels in random order: ``round(rows * damaged_share)`` damaged, shared out evenly over the kinds."""
    if not 0.0 <= damaged_share <= 1.0:
        raise ValueError(f"damaged_share must lie between 0 and 1, not {damaged_share}")
    kinds = list(DAMAGES)
    damaged = round(rows * damaged_share)
    labels = [kinds[index % len(kinds)] for index in range(damaged)] + ["none"] * (rows - damaged)
    rng.shuffle(labels)
    return labels


def make_trace(problem: Problem, damage: str, rng: random.Random) -> dict[str, str | int]:
    """One row: ``prompt``, ``completion``, ``damage`` ("none" or a key of ``DAMAGES``), ``operations`` (a count)."""
    completion = clean(problem) if damage == "none" else DAMAGES[damage](problem, rng)
    operations = len(problem.operations)
    return {"prompt": problem.prompt, "completion": completion, "damage": damage, "operations": operations}


def make_traces(rows: int, damaged_share: float, seed: int, split: str = "traces") -> list[dict[str, str | int]]:
    """``rows`` traces of different problems, of which ``damaged_share`` (0 to 1) are damaged, equally by each kind.

    The same arguments give the same rows. ``split`` says from which problems to draw (``SPLITS``).
    """
    rng = random.Random(seed)
    damages = draw_damages(rows, damaged_share, rng)
    problems = draw_problems(rows, rng, split)
    return [make_trace(problem, damage, rng) for problem, damage in zip(problems, damages, strict=True)]
