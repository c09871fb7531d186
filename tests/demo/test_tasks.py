"""The problems of the task families, read back by a checker that shares no code with their generator."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import warm
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate.demo import tasks
from hf_curate.demo.tokenizer import SPECIALS, build_tokenizer
from hf_curate.errors import CurateError

SEEDS = st.integers(min_value=0, max_value=2**32)
KINDS = [(family, level) for family, levels in tasks.LEVELS.items() for level in levels]
TWO = r"(?:[1-9]\d|\d)"


def judged(rows: list[tasks.Row], completions: list[str]) -> list[float | None]:
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    return tasks.solved([row["prompt"] for row in rows], completions, **columns)


def percent(prompt: str) -> int:
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:16], 16) % 100


def left_to_right(prompt: str) -> int:
    first, *rest = re.findall(r"[-+*]?\d+", prompt)
    value = int(first)
    for part in rest:
        number = int(part[1:])
        value = {"+": value + number, "-": value - number, "*": value * number}[part[0]] % 100
    return value


def fraction_of(expression: str) -> Fraction:
    """The value of an expression that holds nothing but digits, signs and parentheses."""
    assert re.fullmatch(r"[-+*()\d]+", expression)
    return eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression), {"Fraction": Fraction})


def other(number: int, rng: random.Random) -> int:
    return rng.choice([n for n in range(100) if n != number])


def damaged(row: tasks.Row, rng: random.Random) -> dict[str, str]:
    """Wrong completions of a problem, by what is wrong with them."""
    right = tasks.clean(row)
    wrong = {"nothing": "", "prompt": row["prompt"], "marked twice": f"{right}\n#", "goes on": f"{right}+0"}
    if row["family"] == "chain":
        answer = other(int(row["answer"]), rng)
        wrong |= {"answer": re.sub(r"#\d+", f"#{answer}", right), "no mark": right.replace("#", "")}
        wrong |= {"two digits for one": right.replace("#", "#0"), "no answer line": right.rpartition("\n")[0]}
    elif row["family"] == "countdown":
        numbers = re.findall(r"\d+", right)
        wrong |= {"other number": right.replace(numbers[0], str(other(int(numbers[0]), rng)), 1)}
        wrong |= {"number left out": numbers[0], "number twice": f"{right}+{numbers[0]}-{numbers[0]}"}
        wrong |= {"target": str(row["target"]), "claim": f"{right}={row['target'] + 1}", "open": f"({right}"}
    else:
        numbers = row["answer"].split()
        wrong |= {"one left out": "#" + " ".join(numbers[1:]), "one more": f"{right} 99", "no mark": right[1:]}
        wrong |= {"joined": right.replace(" ", ""), "other number": right[:-2] + str(other(int(right[-2:]), rng))}
        if numbers != numbers[::-1]:
            wrong["falling"] = "#" + " ".join(numbers[::-1])
    return wrong


@pytest.mark.parametrize(("family", "level"), KINDS)
def test_clean_completions_are_right_and_damaged_ones_wrong(family: str, level: int) -> None:
    rows = tasks.problems(family, 100, level=level, seed=7, split="pool")
    assert judged(rows, [tasks.clean(row) for row in rows]) == [1.0] * 100
    rng = random.Random(1)
    for row in rows:
        for what, completion in damaged(row, rng).items():
            assert judged([row], [completion]) == [0.0], (what, row["prompt"], completion)


@given(SEEDS)
def test_chain_reads_back(seed: int) -> None:
    for level in tasks.LEVELS["chain"]:
        row = tasks.draw("chain", level, random.Random(seed))
        assert re.fullmatch(rf"{TWO}(?:[-+*]{TWO}){{{level}}}\?\n", row["prompt"])
        assert row["answer"] == str(left_to_right(row["prompt"]))
        lines = tasks.clean(row).split("\n")
        assert len(lines) == level + 1
        assert all(left_to_right(left) == int(right) for left, right in (line.split("=") for line in lines[:-1]))
        assert lines[-1] == f"#{row['answer']}"
        assert (row["numbers"], row["target"]) == ([], None)


@given(SEEDS)
def test_countdown_reads_back(seed: int) -> None:
    for level in tasks.LEVELS["countdown"]:
        row = tasks.draw("countdown", level, random.Random(seed))
        left, right = row["prompt"].removesuffix("\n").split(":")
        assert [int(number) for number in left.split(",")] == row["numbers"] == sorted(row["numbers"])
        assert int(right) == row["target"] == fraction_of(row["answer"])
        assert 1 <= row["target"] <= 99
        assert len(row["numbers"]) == level
        assert sorted(map(int, re.findall(r"\d+", row["answer"]))) == row["numbers"]
        assert tasks.clean(row) == row["answer"]


@given(SEEDS)
def test_sort_reads_back(seed: int) -> None:
    for level in tasks.LEVELS["sort"]:
        row = tasks.draw("sort", level, random.Random(seed))
        numbers = [int(number) for number in row["prompt"].removesuffix("<\n").split(" ")]
        assert len(numbers) == level
        assert [int(number) for number in row["answer"].split(" ")] == sorted(numbers)
        assert tasks.clean(row) == f"#{row['answer']}"
        assert (row["numbers"], row["target"]) == ([], None)


def test_a_right_expression_in_other_words_is_right() -> None:
    row = {"prompt": "3,4,5:35\n", "family": "countdown", "answer": "(3+4)*5", "numbers": [3, 4, 5], "target": 35}
    assert judged([row] * 4, ["5*(4+3)", "5*4+3*5", "(3+4)*5=35", "3+4*5"]) == [1.0, 0.0, 1.0, 0.0]


def test_rewards_keep_the_order_of_mixed_families() -> None:
    rows = [row for f in tasks.FAMILIES for row in tasks.problems(f, 20, seed=3, split="pool")]
    random.Random(0).shuffle(rows)
    wanted = [float(i % 3 > 0) for i in range(len(rows))]
    completions = [tasks.clean(row) if right else "" for row, right in zip(rows, wanted, strict=True)]
    assert judged(rows, completions) == wanted
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    assert judged(rows, messages) == wanted  # type: ignore[arg-type]


def test_what_cannot_be_judged_has_no_reward_and_unknown_families_are_refused() -> None:
    [row] = tasks.problems("countdown", 1, seed=0, split="pool")
    assert judged([row | {"target": None}], [tasks.clean(row)]) == [None]
    with pytest.raises(CurateError, match="unknown family 'riddle': the families are chain, countdown, sort"):
        judged([row | {"family": "riddle"}], [""])


def test_splits_share_out_all_problems_once() -> None:
    assert sorted(number for split in tasks.SPLITS.values() for number in split) == list(range(100))


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_no_problem_is_in_two_splits(family: str) -> None:
    found = {split: tasks.problems(family, 300, seed=5, split=split) for split in tasks.SPLITS}
    for split, rows in found.items():
        assert all(percent(row["prompt"]) in tasks.SPLITS[split] for row in rows)
        drawn = tasks.stream(family, random.Random(6), split)
        assert all(percent(next(drawn)["prompt"]) in tasks.SPLITS[split] for _ in range(50))
    prompts = [row["prompt"] for rows in found.values() for row in rows]
    assert len(set(prompts)) == len(prompts) == 300 * len(tasks.SPLITS)


def test_no_problem_of_countdown_comes_back_with_its_numbers_in_another_order() -> None:
    asked: dict[tuple[Any, ...], set[str]] = {}
    for split in tasks.SPLITS:
        for row in tasks.problems("countdown", 500, level=2, seed=1, split=split):
            asked.setdefault((*sorted(row["numbers"]), row["target"]), set()).add(row["prompt"])
    assert {len(prompts) for prompts in asked.values()} == {1}


@settings(max_examples=15)
@given(SEEDS, st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 30))
def test_the_seed_decides_and_more_rows_begin_with_the_fewer(
    seed: int, kind: tuple[str, int], few: int, more: int
) -> None:
    family, level = kind
    rows = tasks.problems(family, few + more, level=level, seed=seed, split="held_out")
    assert tasks.problems(family, few, level=level, seed=seed, split="held_out") == rows[:few]
    assert {row["level"] for row in rows} <= {level}
    assert len({row["prompt"] for row in rows}) == few + more


def test_other_seeds_give_other_problems_and_other_processes_the_same() -> None:
    first, second = (tasks.problems("sort", 50, seed=seed, split="pool") for seed in (0, 1))
    assert not {row["prompt"] for row in first} & {row["prompt"] for row in second}
    code = "from hf_curate.demo import tasks; print(tasks.problems('sort', 50, seed=0, split='pool'))"
    done = warm.run([sys.executable, "-c", code], check=True)
    assert done.stdout == f"{first}\n"


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_without_a_level_each_is_as_frequent(family: str) -> None:
    counts = Counter(row["level"] for row in tasks.problems(family, 600, seed=2, split="train"))
    assert set(counts) == set(tasks.LEVELS[family])
    assert max(counts.values()) - min(counts.values()) < 75  # 3.6 standard deviations of the difference of two


@pytest.mark.parametrize(("family", "level"), KINDS)
def test_the_tokenizer_knows_every_character_and_completions_are_short(family: str, level: int) -> None:
    tokenizer = build_tokenizer(128, tasks.CHARACTERS)
    assert len(tokenizer) == len(SPECIALS) + len(tasks.CHARACTERS)
    for row in tasks.problems(family, 200, level=level, seed=4, split="train"):
        text = row["prompt"] + tasks.clean(row)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text)
        assert len(tasks.clean(row)) < tasks.LONGEST


def test_the_longest_completions_fit() -> None:
    chain = "99+99=98\n" * max(tasks.LEVELS["chain"]) + "#99"
    countdown = "+".join(["(99)"] * max(tasks.LEVELS["countdown"]))
    numbers = "#" + " ".join(["99"] * max(tasks.LEVELS["sort"]))
    assert max(len(text) + 1 for text in (chain, countdown, numbers)) <= tasks.LONGEST


def test_bad_requests_are_refused() -> None:
    for options, message in (
        ({"split": "test"}, "unknown split 'test': the splits are train, stop, held_out, validation, pool"),
        ({"level": 9}, "sort has no level 9: its levels are 3, 5, 8"),
        ({"family": "chess"}, "unknown family 'chess'"),
        ({"rows": -1}, "rows=-1 must be a whole number from 0 on"),
        ({"rows": 2.0}, r"rows=2\.0 must be a whole number"),
    ):
        arguments: dict[str, Any] = {"family": "sort", "rows": 3, "seed": 0, "split": "pool"} | options
        with pytest.raises(CurateError, match=message):
            tasks.problems(**arguments)


def test_a_split_that_is_used_up_says_how_many_problems_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "GIVEN", {2: range(1, 5)})
    monkeypatch.setattr(tasks, "TRIES", 2000)
    every = {(a, b, r) for a in range(1, 5) for b in range(a, 5) for r in (a + b, a * b, b - a) if r}
    wanted = sum(percent(f"{a},{b}:{r}\n") in tasks.SPLITS["train"] for a, b, r in every)
    with pytest.raises(CurateError, match=f"holds about {wanted} problems of countdown of level 2, and rows=100 are"):
        tasks.problems("countdown", 100, level=2, seed=0, split="train")
    assert len(tasks.problems("countdown", wanted, level=2, seed=0, split="train")) == wanted


def test_importing_the_tasks_loads_no_model_library() -> None:
    code = "import sys, hf_curate.demo.tasks; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
