"""Score against length, pass rate and the place of a step, held against plain loops over the rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from golden_selections import OfRollouts, problems, traces
from pools import Scorer, plain, pool

from hf_curate import measures, profiles, select
from hf_curate.budgets import preference
from hf_curate.stats import spearman, spearmans


@pytest.mark.parametrize("view", [False, True], ids=["whole", "shuffled"])
def test_the_mean_of_steps_by_place_is_that_of_a_loop(view: bool) -> None:
    data = pool(300, failed=12)
    if view:
        data = data.shuffle(seed=1).select(range(0, 280))
    picked = select(data, Scorer(), "20%")
    kept = set(picked.indices.tolist())
    sums = {part: [[] for _ in range(10)] for part in ("kept", "dropped")}
    for row, steps in enumerate(data["grace_step_scores"]):
        for place, score in enumerate(steps or []):
            sums["kept" if row in kept else "dropped"][math.floor(10 * (place + 0.5) / len(steps))].append(score)
    for part, places in sums.items():
        found = picked.manifest["steps"][part]
        assert found["steps"] == [len(scores) for scores in places]
        for mean, scores in zip(found["mean"], places, strict=True):
            assert mean == (pytest.approx(np.mean(scores), abs=1e-6) if scores else None)


@pytest.mark.parametrize("seed", range(6))
def test_items_of_lists_are_summed_by_place_however_the_table_is_cut(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a table that are put together or cut, null lists, items that are null or not finite, repeated rows."""
    rng = np.random.default_rng(seed)
    rows = 157
    lists = [None if rng.random() < 0.1 else rng.normal(size=rng.integers(0, 9)).tolist() for _ in range(rows)]
    for items in lists:
        for place in range(len(items or [])):
            if items and rng.random() < 0.1:
                items[place] = [None, math.inf, -math.inf, math.nan][rng.integers(4)]
    cuts = np.sort(rng.integers(0, rows + 1, rng.integers(1, 30)))
    pieces = [lists[a:b] for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    column = pa.chunked_array([pa.array(piece, pa.list_(pa.float32())) for piece in pieces])
    data = Dataset(pa.table({"scores": column}))
    view = np.arange(rows) if seed % 2 else rng.integers(0, rows, 200)
    data = data if seed % 2 else data.select(view)
    monkeypatch.setattr(measures, "CHUNK_ROWS", int(rng.integers(1, 60)))
    monkeypatch.setattr(measures, "CHUNK_BYTES", int(rng.integers(1, 2000)))
    parts = {"kept": rng.random(len(view)) < 0.4, "dropped": rng.random(len(view)) < 0.4}
    found = measures.by_position(data, "scores", parts, 4)
    assert found is not None
    for part, (sums, counts) in found.items():
        wanted: list[list[float]] = [[] for _ in range(4)]
        for row in view[parts[part]]:
            for place, score in enumerate(lists[row] or []):
                if score is not None and math.isfinite(score):
                    wanted[math.floor(4 * (place + 0.5) / len(lists[row] or []))].append(np.float32(score))
        assert counts.tolist() == [len(scores) for scores in wanted]
        np.testing.assert_allclose(sums, [np.sum(scores, dtype=np.float64) for scores in wanted], rtol=1e-12)


def test_a_piece_of_a_large_chunk_is_not_copied() -> None:
    column = pa.chunked_array([pa.array([[1.0, 2.0]] * 25_000)])
    pieces = list(measures._chunks(Dataset(pa.table({"scores": column})), "scores"))
    assert [len(piece) for piece in pieces] == [10_000, 10_000, 5_000]
    addresses = {piece.values.buffers()[1].address for piece in pieces}
    assert addresses == {column.chunk(0).values.buffers()[1].address}


@pytest.mark.parametrize("seed", range(4))
def test_correlations_and_orders_from_rows_that_are_sorted_already_are_those_from_scratch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-5, 5, 60) / (3.0 if seed % 2 else 1.0)
    scores[rng.random(60) < 0.2] = np.nan
    others = {"whole": rng.normal(size=60), "ties": rng.integers(0, 4, 60).astype(float), "some": rng.normal(size=60)}
    others["some"][rng.random(60) < 0.3] = np.nan
    best = preference(scores)
    assert spearmans(scores, others, best) == pytest.approx(spearmans(scores, others), abs=1e-14)
    groups = rng.integers(0, 4, 60)
    for options in ({}, {"strategy": "stratified", "groups": groups}, {"most": 7}):
        wanted = preference(scores, **options)
        assert preference(scores, **options, best=best).tolist() == wanted.tolist()


def test_rows_fall_into_groups_of_length_and_are_counted_once() -> None:
    data = traces(400)
    picked = select(data, Scorer(), "20%")
    length = picked.manifest["length"]
    assert length["of"] == "tokens"
    kept = set(picked.indices.tolist())
    rows = [row for row in range(len(data)) if data[row]["grace_value"] is not None]
    tokens, scores = np.array(data["grace_tokens"], dtype=float), np.array(data["grace_value"], dtype=float)
    steps = np.array([len(one or []) for one in data["grace_step_scores"]], dtype=float)
    assert sum(group["rows"] for group in length["groups"]) == len(rows)
    for group in length["groups"]:
        own = [row for row in rows if group["from"] <= tokens[row] <= group["to"]]
        assert group["rows"] == len(own)
        assert group["kept"] == len(kept & set(own))
        assert group["median"] == pytest.approx(np.median(scores[own]))
        assert group["spearman"]["length"] == spearman(scores[own], tokens[own])
        assert group["spearman"]["steps"] == spearman(scores[own], steps[own])
    told = [one for one in length["groups"] if one["spearman"]["length"] is not None]
    weights = [one["rows"] for one in told]
    mean = np.average([one["spearman"]["length"] for one in told], weights=weights)
    assert length["within"]["length"] == pytest.approx(mean)
    assert [group["to"] for group in length["groups"][:-1]] < [group["from"] for group in length["groups"][1:]]


def test_correlations_within_large_groups_are_of_rows_at_equal_distances_and_the_card_says_of_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, whole = traces(400), select(traces(400), Scorer(), "20%")
    assert "within_rows" not in whole.manifest["length"]
    assert "equal distances" not in whole.card.render()
    monkeypatch.setattr(profiles, "MOST_ROWS", 20)
    picked = select(data, Scorer(), "20%")
    length = picked.manifest["length"]
    rows = [row for row in range(len(data)) if data[row]["grace_value"] is not None]
    tokens, scores = np.array(data["grace_tokens"], dtype=float), np.array(data["grace_value"], dtype=float)
    used = 0
    for group, before in zip(length["groups"], whole.manifest["length"]["groups"], strict=True):
        own = [row for row in rows if group["from"] <= tokens[row] <= group["to"]]
        some = own[:: math.ceil(len(own) / 20)]
        used += len(some)
        assert group["spearman"]["length"] == spearman(scores[some], tokens[some])
        assert {**group, "spearman": None} == {**before, "spearman": None}
    assert length["within_rows"] == used < len(rows)
    assert f"Those within groups are of {used} rows, at equal distances" in picked.card.render()


def test_pass_rates_have_bins_of_their_own_for_never_and_always() -> None:
    data, scorer = problems(200, "GradAlign"), OfRollouts("GradAlign", None, True)
    picked = select(data, scorer, "25%")
    found, kept = picked.manifest["pass_rate"], set(picked.indices.tolist())
    bins = {"kept": [0] * 12, "dropped": [0] * 12}
    scores: list[list[float]] = [[] for _ in range(12)]
    for row, (rewards, score) in enumerate(zip(data["rewards"], data["gradalign_score"], strict=True)):
        if score is None:
            continue
        right, count = sum(reward > 0.5 for reward in rewards), len(rewards)
        place = 0 if right == 0 else 11 if right == count else 1 + 10 * right // count
        bins["kept" if row in kept else "dropped"][place] += 1
        scores[place].append(score)
    assert (found["kept"], found["dropped"]) == (bins["kept"], bins["dropped"])
    for mean, own in zip(found["mean_score"], scores, strict=True):
        assert mean == (pytest.approx(np.mean(own), abs=1e-6) if own else None)
    rollouts = picked.manifest["rollouts"]
    assert rollouts["always_wrong"] == {"scored": bins["kept"][0] + bins["dropped"][0], "kept": bins["kept"][0]}
    assert rollouts["always_right"] == {"scored": bins["kept"][11] + bins["dropped"][11], "kept": bins["kept"][11]}


def test_what_was_not_measured_is_none() -> None:
    manifest = select(plain(), "score", 1).manifest
    assert manifest["length"] is manifest["steps"] is manifest["pass_rate"] is manifest["strata"] is None


def test_strata_are_counted() -> None:
    picked = select(pool(), Scorer(), "20%", strategy="stratified", group="topic")
    assert picked.manifest["strata"] == {"column": "topic", "groups": 3, "kept": 3}


def test_repeated_prompts_are_counted_among_all_and_among_the_kept() -> None:
    data = pool(100, failed=0)
    picked = select(data, Scorer(), "50%")
    for name, prompts in (("duplicate_prompts", data["prompt"]), ("duplicate_prompts_kept", picked.dataset["prompt"])):
        assert picked.manifest["rows"][name] == len(list(prompts)) - len(set(prompts))
    assert picked.manifest["rows"]["duplicate_prompts_kept"] > 0
