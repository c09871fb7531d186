"""Pools and targets are what their worlds say."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from evidence.language import DAMAGES, SPLITS, TEACHER, Language, damaged, verbose, written
from evidence.selectors import oracle
from evidence.worlds import WORLDS, draw_pool, draw_problems

from hf_curate.demo.world import Problem, split_of

LANGUAGE = Language()
PROBLEM = Problem(3, (("@", 4), ("+", 2), ("&", 7)))


def test_a_trace_works_its_problem_out_line_by_line() -> None:
    assert written(LANGUAGE.work_out(PROBLEM)) == "3@4=1\n1+2=3\n3&7=6\n#6"
    assert LANGUAGE.answer(PROBLEM) == "6"
    assert verbose(LANGUAGE.work_out(PROBLEM)) == "3@4=1\n1=1\n1+2=3\n3=3\n3&7=6\n6=6\n#6"
    assert written(Language(10, TEACHER).work_out(PROBLEM)) == "3@4=4\n4+2=6\n6&7=4\n#4"
    assert written(Language(100).work_out(Problem(70, (("*", 9),)))) == "70*9=30\n#30"


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_is_one_fault_of_its_kind(kind: str) -> None:
    right = written(LANGUAGE.work_out(PROBLEM)).split("\n")
    for seed in range(30):
        found = damaged(LANGUAGE, PROBLEM, kind, random.Random(seed)).split("\n")
        if kind == "filler":
            assert len(found) == len(right) + 3
            assert [line for line in found if any(sign in line for sign in "@+&#")] == right
            continue
        changed = [place for place, (a, b) in enumerate(zip(found, right, strict=True)) if a != b]
        if kind == "wrong answer":
            assert changed == [len(right) - 1]
        elif kind == "broken":
            assert len(changed) == 1
            assert changed[0] < len(right) - 2
        else:
            assert changed == list(range(changed[0], len(right))) or "=" in found[changed[0]]
            assert found[-1] == f"#{found[-2].split('=')[1]}"
    with pytest.raises(ValueError, match="unknown damage"):
        damaged(LANGUAGE, PROBLEM, "other", random.Random(0))


@pytest.mark.parametrize("name", list(WORLDS))
def test_a_pool_has_its_shares_no_prompt_twice_and_none_of_the_targets(name: str) -> None:
    world = WORLDS[name]
    pool = draw_pool(world, LANGUAGE, 0)
    assert pool == draw_pool(world, LANGUAGE, 0) != draw_pool(world, LANGUAGE, 1)
    prompts = [row["prompt"] for row in pool]
    assert len(set(prompts)) == len(pool) == world.rows
    counts = Counter(row["family"] for row in pool)
    assert all(counts[family] == round(own.share * world.rows) for family, own in world.families.items())
    assert {split_of(prompt, SPLITS) for prompt in prompts} == {"pool"}
    for target in world.targets.values():
        problems = [problem.prompt for problem in draw_problems(target, LANGUAGE, 20, 0)]
        assert len(set(problems)) == 20
        assert not set(problems) & set(prompts)
    assert any(target.outside for target in world.targets.values())
    assert all(row["completion"].endswith(f"#{row['answer']}") for row in pool)


def test_a_target_outside_has_prompts_of_a_kind_that_no_row_of_the_pool_is() -> None:
    for name, world in WORLDS.items():
        kinds = {
            (frozenset(sign for sign in row["prompt"] if not sign.isdigit()), row["prompt"].count("?"))
            for row in draw_pool(world, LANGUAGE, 0)
        }
        for target in world.targets.values():
            if target.outside:
                mixed = frozenset({*target.signs, "?", "\n"})
                assert all(signs != mixed for signs, _ in kinds), (name, target)


def test_the_oracle_keeps_useful_rows_alone_evenly_and_nothing_twice() -> None:
    for world in WORLDS.values():
        pool = draw_pool(world, LANGUAGE, 2)
        for budget in (0.05, 0.2):
            places = oracle(world, pool, budget, 2)
            assert len(set(places.tolist())) == len(places) == int(np.ceil(budget * len(pool)))
            counts = Counter(pool[place]["family"] for place in places)
            useful = {name for name, family in world.families.items() if family.useful}
            assert set(counts) == useful
            assert max(counts.values()) - min(counts.values()) <= 1
