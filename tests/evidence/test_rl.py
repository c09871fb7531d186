"""LearnAlign without each of its parts, on a small pool of the shipped policy's rollouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evidence import rl, rl_page
from evidence.cells import write_json
from scenarios import Design, Pool, draw

SEED = 0


@pytest.fixture(scope="module")
def pool() -> Pool:
    return draw("unbalanced", Design(pool=20, rollouts=4, validation=2, validation_rollouts=2, evaluation=2), SEED)


def test_without_learnability_a_score_is_a_mean_cosine_of_the_problems_that_have_a_signal(
    pool: Pool, tmp_path: Path
) -> None:
    found = rl.no_learnability(pool, SEED, tmp_path)
    rates = np.array(pool.rows["success_rate"])
    signal = (rates > 0.0) & (rates < 1.0)
    assert (found[~signal] == 0.0).all()
    assert (found[signal] != 0.0).all()
    assert np.abs(found).max() <= 1.0
    # <u_i, mean_j u_j> summed over i is n |mean|^2, and so above zero
    assert found.sum() > 0.0


def test_features_take_the_place_of_gradients_in_the_same_formula(pool: Pool, tmp_path: Path) -> None:
    found = rl.by_features(pool, SEED, tmp_path)
    rates = np.array(pool.rows["success_rate"], dtype=np.float64)
    value = rates * (1.0 - rates)
    assert (found[value == 0.0] == 0.0).all()
    assert (np.abs(found) <= value * value.mean() + 1e-12).all()


def test_the_band_is_one_for_what_is_neither_solved_nor_hopeless(pool: Pool, tmp_path: Path) -> None:
    rates = np.array(pool.rows["success_rate"])
    assert rl.pass_rate_band(pool, SEED, tmp_path).tolist() == ((rates > 0.0) & (rates < 1.0)).tolist()


def test_the_runs_are_those_that_the_page_awaits() -> None:
    assert tuple(rl.ADDED) == rl_page.ADDED
    assert {run.selector for run in rl.runs()} == set(rl_page.ADDED)
    assert len({run.name for run in rl.runs()}) == len(rl.runs()) == 12


def test_the_page_shows_the_recorded_runs_and_says_what_is_not_measured(tmp_path: Path) -> None:
    bare = rl_page.section(tmp_path)
    assert bare.count("| not measured |") == 2 * len(rl_page.ADDED)
    assert "uninformative" in bare
    (tmp_path / "cells").mkdir()
    done = {"scenario": "unbalanced", "seed": 0, "selector": "pass-rate band", "after": 30.0}
    write_json(tmp_path / "cells" / "one.json", done)
    assert rl.record(tmp_path, tmp_path).name == "rl.json"
    assert "| pass-rate band * | 30.0 | 7.5 | 1 |" in rl_page.section(tmp_path)
