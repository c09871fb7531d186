"""The traces of the demo world, read back by a checker that shares no code with the generator."""

from __future__ import annotations

import itertools
import operator
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate.demo import TRACES, load_traces, make_data, world

SEEDS = st.integers(min_value=0, max_value=2**32)
STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul}
IDLE = re.compile(r"(\d+)(?:\+0|\*1)?=\1")


def left_to_right(prompt: str) -> list[int]:
    """The results of a prompt's operations, one by one."""
    tokens = re.findall(r"\d+|[-+*]", prompt.removesuffix("?\n"))
    value, results = int(tokens[0]), []
    for sign, operand in zip(tokens[1::2], tokens[2::2], strict=True):
        value = ARITHMETIC[sign](value, int(operand)) % 100
        results.append(value)
    return results


def read(completion: str) -> tuple[list[tuple[int, str, int, int]], int, list[str]]:
    """A completion's steps (left, sign, operand, result), its answer, and its filler lines."""
    *lines, last = completion.split("\n")
    assert re.fullmatch(r"#\d{1,2}", last)
    idle = [line for line in lines if IDLE.fullmatch(line)]
    matches = [STEP.fullmatch(line) for line in lines if not IDLE.fullmatch(line)]
    assert all(matches)
    steps = [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in matches if m]
    return steps, int(last[1:]), idle


def right(step: tuple[int, str, int, int]) -> bool:
    left, sign, operand, result = step
    return ARITHMETIC[sign](left, operand) % 100 == result


def joined(steps: list[tuple[int, str, int, int]]) -> list[bool]:
    """For each step but the last, whether the next one starts from its result."""
    return [first[3] == second[0] for first, second in itertools.pairwise(steps)]


def one_row(seed: int, damage: str) -> tuple[str, str, str]:
    """A prompt, its clean completion and its damaged one."""
    rng = random.Random(seed)
    problem = world.draw_problem(rng)
    return problem.prompt, world.clean(problem), world.DAMAGES[damage](problem, rng)


def test_the_example_of_the_docstring() -> None:
    problem = world.parse_problem("57+8*3?\n")
    assert problem.prompt == "57+8*3?\n"
    assert world.clean(problem) == "57+8=65\n65*3=95\n#95"
    assert world.true_answer("57+8*3?\n") == "95"


@given(SEEDS)
def test_clean_traces_are_right_in_every_step(seed: int) -> None:
    problem = world.draw_problem(random.Random(seed))
    steps, answer, idle = read(world.clean(problem))
    assert [step[3] for step in steps] == left_to_right(problem.prompt)
    assert all(map(right, steps))
    assert all(joined(steps))
    assert not idle
    assert str(answer) == world.true_answer(problem.prompt)
    assert len(steps) == len(problem.operations) in world.OPERATION_COUNTS
    assert world.parse_problem(problem.prompt) == problem


@given(SEEDS)
def test_propagated_has_one_wrong_step_and_follows_it_to_a_wrong_answer(seed: int) -> None:
    prompt, clean, damaged = one_row(seed, "propagated")
    steps, answer, idle = read(damaged)
    assert [right(step) for step in steps].count(False) == 1
    assert all(joined(steps))
    assert answer == steps[-1][3] != left_to_right(prompt)[-1]
    assert not idle
    assert damaged != clean


@given(SEEDS)
def test_broken_has_one_wrong_step_that_nothing_follows_from(seed: int) -> None:
    prompt, clean, damaged = one_row(seed, "broken")
    steps, answer, idle = read(damaged)
    wrong = [index for index, step in enumerate(steps) if not right(step)]
    assert len(wrong) == 1
    assert joined(steps) == [index != wrong[0] for index in range(len(steps) - 1)]
    assert answer == left_to_right(prompt)[-1] == steps[-1][3]
    assert not idle
    assert sum(a != b for a, b in zip(clean.split("\n"), damaged.split("\n"), strict=True)) == 1


@given(SEEDS)
def test_filler_adds_true_lines_that_do_nothing(seed: int) -> None:
    prompt, clean, damaged = one_row(seed, "filler")
    steps, answer, idle = read(damaged)
    lines = damaged.split("\n")
    assert len(set(idle)) == 1
    assert 1 <= len(idle) <= 3
    assert "\n".join(line for line in lines if line not in idle) == clean
    before = lines[lines.index(idle[0]) - 1]
    assert before.split("=")[1] == idle[0].split("=")[1]
    assert answer == left_to_right(prompt)[-1] == steps[-1][3]


@given(SEEDS)
def test_wrong_answer_differs_in_the_answer_line_alone(seed: int) -> None:
    prompt, clean, damaged = one_row(seed, "wrong_answer")
    assert damaged.split("\n")[:-1] == clean.split("\n")[:-1]
    _, answer, _ = read(damaged)
    assert answer != left_to_right(prompt)[-1]
    assert world.written_answer(damaged) == str(answer)


def test_broken_needs_two_operations() -> None:
    with pytest.raises(ValueError, match="at least 2 operations"):
        world.broken(world.Problem(5, (("+", 1),)), random.Random(0))


@given(SEEDS, st.integers(0, 60), st.floats(0, 1))
@settings(max_examples=40)
def test_make_traces_keeps_its_promises(seed: int, rows: int, share: float) -> None:
    traces = world.make_traces(rows, share, seed)
    assert traces == world.make_traces(rows, share, seed)
    assert len({trace["prompt"] for trace in traces}) == rows
    kinds = Counter(trace["damage"] for trace in traces)
    damaged = [kinds[kind] for kind in world.DAMAGES]
    assert sum(damaged) == round(rows * share)
    assert max(damaged) - min(damaged) <= 1
    assert all(world.split_of(str(trace["prompt"])) == "traces" for trace in traces)


def test_unknown_names_and_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split"):
        world.make_traces(1, 0.0, 0, split="test")
    with pytest.raises(ValueError, match="damaged_share"):
        world.make_traces(1, 1.5, 0)
    with pytest.raises(ValueError, match="not a problem"):
        world.true_answer("57+8*3\n")


def test_splits_share_out_all_problems_once() -> None:
    percents = sorted(percent for split in world.SPLITS.values() for percent in split)
    assert percents == list(range(100))
    rng = random.Random(3)
    shares = Counter(world.split_of(world.draw_problem(rng).prompt) for _ in range(4000))
    for name, percents_of_split in world.SPLITS.items():
        assert shares[name] / 4000 == pytest.approx(len(percents_of_split) / 100, abs=0.03)


def test_shipped_traces_are_what_the_script_makes() -> None:
    shipped = load_traces()
    assert TRACES.stat().st_size < 200_000
    assert shipped.to_list() == make_data.make_dataset().to_list()
    assert shipped.features == make_data.make_dataset().features
    assert shipped.column_names == ["prompt", "completion", "damage", "operations"]


def test_shipped_shares_of_damage() -> None:
    counts = Counter(load_traces()["damage"])
    assert counts == {"none": 480, **dict.fromkeys(world.DAMAGES, 80)}
