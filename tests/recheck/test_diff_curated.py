"""diff_curated: shared rows, agreement of scores and what was set otherwise, held against the selections."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_selections import Grace, settled, traces

from hf_curate import diff_curated, select
from hf_curate.cli import main
from hf_curate.errors import CurateError
from hf_curate.stats import spearman

SOURCE = "local file rows.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("diff")
    data = traces(300)
    for name, budget, options in (("top", "20%", {}), ("more", "30%", {}), ("chance", "20%", {"strategy": "random"})):
        select(data, Grace(), budget, source=SOURCE, **options).save(place, name)  # type: ignore[arg-type]
    return place


def test_nested_budgets_share_the_smaller_one_and_differ_in_the_budget_alone(folder: Path) -> None:
    found = diff_curated(f"{folder}:top", f"{folder}:more")
    assert (found.rows, found.shared) == ((60, 90), 60)
    assert found.jaccard == pytest.approx(60 / 90)
    assert found.scores == pytest.approx(1.0)
    assert found.settings == {"budget.asked": ("20%", "30%")}
    assert "scores: the same, row by row" in str(found)


def test_a_choice_at_random_shares_what_the_rows_say(folder: Path) -> None:
    from hf_curate import load_curated

    one, other = (load_curated(folder, name) for name in ("top", "chance"))
    found = diff_curated(one, other)
    common = set(one.indices.tolist()) & set(other.indices.tolist())
    assert found.shared == len(common)
    assert found.settings == {"selector.strategy": ("top", "random")}
    assert f"selector.strategy: {json.dumps('top')} -> {json.dumps('random')}" in str(found)


def test_scores_of_two_selectors_are_compared_over_the_rows_that_both_keep(folder: Path) -> None:
    data = traces(300)
    rng = np.random.default_rng(0)
    noisy = np.array([np.nan if v is None else v for v in data["grace_value"]]) + rng.normal(0, 0.05, 300)
    values = [None if np.isnan(value) else np.float32(value) for value in noisy]
    other = data.remove_columns("grace_value").add_column("grace_value", values)  # type: ignore[call-arg]
    picked = [settled(select(rows, Grace(), "40%"), name) for rows, name in ((data, "a"), (other, "b"))]
    found = diff_curated(*picked)
    rows, mine, theirs = np.intersect1d(picked[0].indices, picked[1].indices, return_indices=True)
    scores = [
        np.array(one.dataset["grace_value"][:])[places] for one, places in zip(picked, (mine, theirs), strict=True)
    ]
    assert found.shared == len(rows)
    assert found.scores == spearman(*scores)
    assert f"scores: Spearman {found.scores:.3f} over the shared rows" in str(found)
    assert 0.0 < found.scores < 1.0  # type: ignore[operator]


def test_rows_of_different_sources_are_not_compared(folder: Path) -> None:
    data = traces(300)
    found = diff_curated(select(data, Grace(), "20%"), select(data, Grace(), "20%"))
    assert found.shared is found.jaccard is found.scores is None
    assert "not comparable" in str(found)


def test_the_command_prints_the_difference_as_text_and_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", f"{folder}:top", f"{folder}:chance/train"]) == 0
    out = capsys.readouterr().out
    assert "A  " in out.splitlines()[0]
    assert "60 rows" in out
    assert main(["diff", f"{folder}:top", f"{folder}:top", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["shared"], said["jaccard"], said["settings"]) == (60, 1.0, {})
    assert main(["diff", str(folder), f"{folder}:top"]) == 2
    assert "does not say which config" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "top", ":top", "curated:"])
def test_a_place_without_a_config_is_an_error(folder: Path, place: str) -> None:
    with pytest.raises(CurateError, match="does not say which config"):
        diff_curated(place, f"{folder}:top")
