"""The whole of a study at tiny size, its record and its page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from evidence import page
from evidence.cells import Cell, claimed, work, write_json
from evidence.lab import Lab
from evidence.results import Condition, Outcome, Results, record
from evidence.selectors import FULL, NAMES, ORACLE, RANDOM
from evidence.study import GPU, SMALL, STUDIES, TINY


def test_a_study_that_was_run_does_nothing_more_and_goes_on_where_it_was_stopped(tiny_run: Path) -> None:
    lab = Lab(TINY, tiny_run)
    assert lab.run() == 0
    path = tiny_run / "cells" / f"{TINY.cells()[2].name}.json"
    before = json.loads(path.read_text("utf-8"))
    path.unlink()
    assert lab.run() == 1
    again = json.loads(path.read_text("utf-8"))
    assert {**again, "processor_seconds": 0} == {**before, "processor_seconds": 0}


def test_every_cell_has_every_selector_every_target_and_shares_that_sum_to_one(tiny_run: Path) -> None:
    for cell in TINY.cells():
        found = json.loads((tiny_run / "cells" / f"{cell.name}.json").read_text("utf-8"))
        names = {FULL} if cell.budget == 1.0 else set(NAMES) - {FULL}
        assert set(found["accuracy"]) == set(found["shares"]) == names
        assert all(
            len(own) == 3 and all(0.0 <= value <= 100.0 for value in own.values())
            for own in found["accuracy"].values()
        )
        assert all(sum(own.values()) == pytest.approx(1.0, abs=1e-3) for own in found["shares"].values())
    assert not list(tiny_run.rglob("*.claim")) + list(tiny_run.rglob("*.tmp"))


def test_a_tiny_study_is_recorded_and_has_a_page(tiny_run: Path, tmp_path: Path) -> None:
    assert Lab(TINY, tiny_run).run_further() == len(TINY.seeds)
    record("tiny", tiny_run, tmp_path)
    (tmp_path / "tiny.json").rename(tmp_path / "small.json")
    written = page.write(tmp_path, tmp_path).read_text("utf-8")
    assert written.count("oracle minus random") == 3
    assert "trains Llama" in written
    assert written.count("| GRACE less overlap |") == 2
    assert "LoRA" in written
    assert "nan" not in written
    assert "In none of 3 conditions" in written
    assert (tmp_path / "differences.png").stat().st_size > 10_000


def test_the_page_and_the_readme_say_what_is_recorded() -> None:
    """Every number: the page is written again from the record, and the README quotes it."""
    root = Path(page.__file__).parent
    results = Results.read("small")
    outcomes = results.outcomes()
    assert page.text(results, outcomes, page.FOLDER) == (root / "RESULTS.md").read_text("utf-8")
    readme = " ".join((root.parents[1] / "README.md").read_text("utf-8").split())
    assert page.quoted() in readme


def outcome(differences: list[float], oracle: list[float]) -> Outcome:
    chance = np.full((len(oracle), 1), 40.0)
    accuracy = {
        RANDOM: chance,
        "longest": chance + np.array(differences)[:, None],
        ORACLE: chance + np.array(oracle)[:, None],
        FULL: np.full_like(chance, 80.0),
    }
    seeds = tuple(range(len(oracle)))
    return Outcome(Condition("mixed", 0.2), seeds, ("one",), accuracy, {})


def test_a_difference_counts_only_where_its_interval_leaves_zero_out_and_the_oracle_has_room() -> None:
    clear = outcome([1.0, 2.0, 3.0, 2.0, 2.0], [9.0, 10.0, 11.0, 10.0, 10.0])
    mean, error = clear.difference("longest")
    assert (mean, error) == (pytest.approx(2.0), pytest.approx((0.5 / 5) ** 0.5))
    assert clear.half_width(error) == pytest.approx(2.776 * error)
    assert clear.verdict("longest") == 1
    assert clear.informative
    assert clear.ratio("longest") == pytest.approx(100.0 * 42.0 / 80.0)
    unclear = outcome([-1.0, 2.0, -3.0, 2.0, -2.0], [9.0, -10.0, 11.0, -10.0, 10.0])
    assert unclear.verdict("longest") == 0
    assert not unclear.informative
    assert outcome([-3.0, -2.0, -2.5], [1.0, 1.1, 0.9]).verdict("longest") == -1


def test_at_the_largest_budget_equal_epochs_are_equal_updates() -> None:
    for study in STUDIES.values():
        for world in study.worlds:
            kept = round(max(study.budgets) * study.rows(world))
            assert study.updates(kept, "epochs", world) == study.updates(7, "updates", world)
    with pytest.raises(ValueError, match="unknown regime"):
        SMALL.updates(7, "hours", "mixed")
    assert len(SMALL.seeds) >= 5
    assert SMALL.bases >= 3
    assert {cell.name for cell in SMALL.cells()} == {cell.name for cell in GPU.cells()}
    assert len({cell.name for cell in SMALL.cells()}) == len(SMALL.cells())


def test_a_claim_of_a_process_that_is_gone_is_taken_over_and_one_of_a_living_process_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.with_suffix(".claim").write_text("999999999")
    with claimed(path) as ours:
        assert ours
        with claimed(path) as again:
            assert not again
    path.with_suffix(".claim").write_text(str(os.getppid()))
    with claimed(path) as ours:
        assert not ours
    cells = [Cell("mixed", seed, 0.2, "epochs") for seed in range(3)]
    write_json(tmp_path / f"{cells[1].name}.json", {})
    seen: list[Cell] = []
    assert work(cells, tmp_path, lambda cell: seen.append(cell) or {}) == 2
    assert seen == [cells[0], cells[2]]
