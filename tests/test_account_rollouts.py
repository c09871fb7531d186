"""Selections over rows with rollouts: what is measured of them, beside what they are shown, and what is counted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import MODEL, Scorer, pool

from hf_curate import load_curated, measures, select
from hf_curate.comparisons import silent_rows
from hf_curate.errors import CurateError
from hf_curate.hub.card import Card
from hf_curate.measures import rollout_measures
from hf_curate.scoring import KINDS
from hf_curate.selection import SCORED, Selection

NAN = float("nan")
COLUMNS = {"level": "prompt", "prompt": "prompt", "messages": None, "responses": "responses", "response_ids": None}
DIRECTION = {
    "kind": "validation gradient",
    "model": {"id": "tiny/model", "sha": MODEL["sha"], "digest": None, "dtype": "float32"},
    "parameters": {"set": "all", "tensors": 30, "values": 834_000},
    "rows": {"in": 64, "with_signal": 41, "all_right": 3, "all_wrong": 19, "failed": {"too long": 1}, "rollouts": 504},
    "verifier": None,
    "norm": 0.25,
}


class GradAlign:
    """What `select` asks of a scorer of policy gradients, and nothing else."""

    name = "GradAlign"
    column = "gradalign_score"
    identity = "0a41402abc4b2a76b9719d911017c592aa7d3e4f5c6b7a8998a7b6c5d4e3f201"
    columns = Features(
        {
            "gradalign_score": Value("float32"),
            "gradalign_stderr": Value("float32"),
            "gradalign_error": Value("string"),
        }
    )
    settings: Mapping[str, Any] = {
        "parameters": "all",
        "statistic": "cosine",
        "columns": COLUMNS | {"rewards": "rewards"},
    }

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "class": f"{self.name}Scorer",
            "algorithm_version": 1,
            "identity": self.identity,
            "column": self.column,
            "settings": self.settings,
            "model": MODEL,
            "direction": DIRECTION,
            "zero_without_signal": True,
        }

    def __call__(self, rows: Any) -> Any:
        raise AssertionError("nothing is scored here")


def rollouts(rows: int = 120, seed: int = 0) -> Dataset:
    """Scored by two scorers: some rows failed, some are without signal, one gradient cancels, one row has no
    rewards."""
    rng = np.random.default_rng(seed)
    table: dict[str, list[Any]] = {name: [] for name in ("prompt", "responses", "rewards", *GradAlign.columns)}
    table |= {name: [] for name in ("learnability", "learnalign_score", "learnalign_error")}
    for i in range(rows):
        rate = [0.0, 1.0, 0.5, 0.25][i % 4]
        rewards = (rng.random(4 + 2 * (i % 3)) < rate).astype(float).tolist()
        failed, signal = i % 10 == 7, min(rewards) < max(rewards)
        table["prompt"].append(f"problem {i if i % 20 else 0}")
        table["responses"].append(["x" * int(rng.integers(1, 30)) for _ in rewards])
        table["rewards"].append(rewards if i != 5 else None)
        score = np.float32(rng.normal()) if signal and i != 2 else np.float32(0.0)
        table["gradalign_score"].append(None if failed or i == 5 else score)
        table["gradalign_stderr"].append(None if failed or i == 5 else np.float32(0.1))
        table["gradalign_error"].append("too long: 9 tokens" if failed else "no rollouts: None" if i == 5 else "")
        table["learnability"].append(np.float32(np.mean(rewards) * (1 - np.mean(rewards))))
        table["learnalign_score"].append(np.float32(rng.normal()) if i % 6 else None)
        table["learnalign_error"].append("" if i % 6 else "too long: 9 tokens")
    features = Features(
        {
            "prompt": Value("string"),
            "responses": List(Value("string")),
            "rewards": List(Value("float32")),
            **GradAlign.columns,
            **dict.fromkeys(("learnability", "learnalign_score"), Value("float32")),
            "learnalign_error": Value("string"),
        }
    )
    return Dataset.from_dict(table, features=features)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return rollouts()


@pytest.fixture(scope="module")
def picked(data: Dataset) -> Selection:
    return select(data, GradAlign(), "20%")


def same(found: np.ndarray, expected: list[float]) -> bool:
    return np.array_equal(found, np.array(expected, dtype=np.float64), equal_nan=True)


# -- measures -------------------------------------------------------------------------------------------------------


def loop(rewards: list[float | None] | None, above: float = 0.5) -> dict[str, float]:
    """The measures of one row, one reward at a time."""
    names = ("rollouts", "success_rate", "learnability", "off_half", "mixed", "signal")
    if not rewards or any(r is None or not math.isfinite(r) for r in rewards):
        return dict.fromkeys(names, NAN)
    count, right = len(rewards), sum(r > above for r in rewards)  # type: ignore[operator]
    mixed = 1.0 if 0 < right < count else NAN
    numbers = count, right / count, right * (count - right) / count**2, abs(2 * right - count) / (2 * count), mixed
    differ = max(rewards) - min(rewards) > 1e-6 * max(map(abs, rewards))  # type: ignore[arg-type,type-var,operator]
    return dict(zip(names, (*numbers, float(differ)), strict=True))


REWARDS = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 0.5, 0.25, -1.0, NAN, math.inf]), st.floats(-2, 2, width=32))
ROWS = st.lists(st.one_of(st.none(), st.lists(REWARDS, max_size=5), st.lists(st.sampled_from([0.0, 1.0]), max_size=9)))


@settings(deadline=None, max_examples=200)
@given(rows=ROWS, chunk=st.integers(1, 4), above=st.sampled_from([0.5, 0.0, -0.5]), large=st.booleans())
def test_measures_of_rewards_are_those_of_a_plain_loop(rows: list[Any], chunk: int, above: float, large: bool) -> None:
    kind = (pa.large_list if large else pa.list_)(pa.float32())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "CHUNK_ROWS", chunk)
        table = pa.table({"rewards": pa.array(rows, kind)})
        found = rollout_measures(Dataset(table), {"settings": {"correct_above": above}})
    read = [None if row is None else [None if r is None else float(np.float32(r)) for r in row] for row in rows]
    for name in loop([0.0]):
        assert same(found[name], [loop(row, above)[name] for row in read]), name


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int8(), pa.int64(), pa.bool_()], ids=str)
def test_rewards_may_be_any_kind_of_number_in_lists_of_any_kind(kind: pa.DataType) -> None:
    rows: list[Any] = [[1, 0], None, [1, 1], [None, 1], [0, 0]]
    rows = [row and [None if r is None else bool(r) if pa.types.is_boolean(kind) else r for r in row] for row in rows]
    for lists in (pa.list_(kind), pa.large_list(kind), pa.list_(kind, 2)):
        whole = pa.array(rows, lists)
        for array in (whole, pa.concat_arrays([whole, whole]).slice(5)):
            found = rollout_measures(Dataset(pa.table({"rewards": array})), {})
            assert same(found["success_rate"], [0.5, NAN, 1.0, NAN, 0.0])
            assert same(found["signal"], [1.0, NAN, 0.0, NAN, 0.0])


def test_rewards_that_are_equal_up_to_rounding_have_no_signal() -> None:
    parts = [0.7 + 0.2 + 0.1, 0.1 + 0.2 + 0.7]
    assert parts[0] != parts[1]
    rows = [parts, [1e9, 1e9 + 100.0], [1e9, 1e9 + 2000.0], [0.0, 1e-30], [-1e-7, 1e-7], [0.0, 0.0], [1e308, -1e308]]
    found = rollout_measures(Dataset.from_dict({"rewards": rows}), {})
    assert found["signal"].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]


def test_equal_success_rates_tie_exactly_whatever_the_number_of_rollouts() -> None:
    rows = [[1.0] * right + [0.0] * (10 * k - right) for k in (1, 2, 3) for right in (3 * k, 7 * k)]
    found = rollout_measures(Dataset.from_dict({"rewards": rows}), {})
    assert len(set(found["off_half"].tolist())) == len(set(found["learnability"].tolist())) == 1


IDS = [[[1, 2, 3], [4]], None, [], [[], [5]], [[1], None]]
TEXTS = [["abc", "é"], None, [], ["", "\U0001f600"], ["a", None]]


def chats(text: str) -> list[Any]:
    named = [row and [t and [{"role": "assistant", text: t}] for t in row] for row in TEXTS]
    named[3] = [[{"role": "assistant", text: ""}], [{"role": "assistant", text: "b"}]]
    return named


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"response_ids": IDS}, [2.0, NAN, NAN, 0.5, NAN]),
        ({"responses": TEXTS}, [2.0, NAN, NAN, 0.5, NAN]),
        ({"responses": chats("content")}, [2.0, NAN, NAN, 0.5, NAN]),
        ({"responses": chats("value")}, [2.0, NAN, NAN, 0.5, NAN]),
        ({"responses": [["longer"] * 2] * 5, "response_ids": IDS}, [2.0, NAN, NAN, 0.5, NAN]),
        ({"responses": [["longer"] * 2] * 5, "response_ids": ["no ids"] * 5}, [6.0] * 5),
    ],
    ids=["ids", "texts", "chats", "sharegpt", "ids first", "no ids"],
)
def test_the_length_is_the_mean_of_tokens_or_else_of_characters(
    columns: dict[str, Any], expected: list[float]
) -> None:
    rows = Dataset.from_dict({"rewards": [[0.0, 1.0]] * 5, **columns})
    assert same(rollout_measures(rows, {})["length"], expected)
    order = [3, 0, 0, 4]
    assert same(rollout_measures(rows.select(order), {})["length"], [expected[i] for i in order])


@pytest.mark.parametrize("responses", [["a", "b"], [[1.5], [2.5]], [[{"x": 1}], [{"x": 2}]], [None, None]], ids=str)
def test_responses_that_cannot_be_read_have_no_length(responses: list[Any]) -> None:
    found = rollout_measures(Dataset.from_dict({"rewards": [[0.0, 1.0]] * 2, "responses": responses}), {})
    assert "length" not in found
    assert same(found["success_rate"], [0.5, 0.5])


def test_the_record_names_the_columns_and_what_is_right(data: Dataset) -> None:
    rows = Dataset.from_dict({"r": [[0.2, 0.1]], "rewards": [[1.0]], "a": [["xyz"]], "responses": [["x"]]})
    record = {"settings": {"correct_above": 0.15, "columns": {"rewards": "r", "responses": "a", "response_ids": None}}}
    found = rollout_measures(rows, record)
    assert (found["success_rate"].tolist(), found["length"].tolist()) == ([0.5], [3.0])
    for odd in ({}, {"settings": None}, {"settings": ["x"]}, {"settings": {"columns": ["rewards"]}}):
        assert rollout_measures(rows, odd)["success_rate"].tolist() == [1.0]
    for above in (None, "0.9", True, [0.9]):
        assert rollout_measures(rows, {"settings": {"correct_above": above}})["success_rate"].tolist() == [1.0]


@pytest.mark.parametrize(
    "rewards", [[0.5, 1.0], ["a", "b"], [["a"], ["b"]], [[[1.0]], [[0.0]]], [None, None]], ids=str
)
def test_rewards_of_another_type_are_somebody_elses(rewards: list[Any]) -> None:
    rows = Dataset.from_dict({"rewards": rewards, "score": [1.0, 2.0]})
    assert rollout_measures(rows, {}) == {}
    manifest = select(rows, "score", 1).manifest
    assert manifest["rollouts"] is None
    assert set(manifest["confounds"]) == {"steps", "tokens", "loss", "overlap"}
    assert set(manifest["baselines"]) == {"random"}


def test_a_shuffled_and_cut_dataset_is_measured_in_its_own_order(data: Dataset) -> None:
    given = data.shuffle(seed=1).select(range(10, 90))
    again = Dataset.from_list(given.to_list(), features=given.features)
    found, expected = rollout_measures(given, {}), rollout_measures(again, {})
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert same(found[name], values.tolist())


def test_a_million_rows_of_sixteen_rollouts_take_seconds() -> None:
    rows, each = 1_000_000, 16
    ends = pa.array(np.arange(0, rows * each + 1, each), pa.int32())
    rewards = pa.array(np.random.default_rng(0).integers(0, 2, rows * each), pa.float32())
    ids = pa.ListArray.from_arrays(pa.array(np.arange(rows * each + 1), pa.int32()), pa.nulls(rows * each, pa.int32()))
    lists = [pa.ListArray.from_arrays(ends, items) for items in (rewards, ids)]
    data = Dataset(pa.table(lists, names=["rewards", "response_ids"]))
    start = time.perf_counter()
    whole, mixed = rollout_measures(data, {}), rollout_measures(data.shuffle(seed=0), {})
    assert time.perf_counter() - start < 20.0
    assert set(whole) == set(mixed) == {*loop([0.0]), "length"}
    assert whole["success_rate"].mean() == pytest.approx(np.asarray(rewards, np.float64).mean(), rel=1e-12)


# -- the manifest ---------------------------------------------------------------------------------------------------


def counted(data: Dataset, rows: list[int], cancels: bool) -> dict[str, int]:
    """rows, without_signal, always_right, always_wrong of these rows, by a plain loop."""
    found = dict.fromkeys(("rows", "without_signal", "always_right", "always_wrong"), 0)
    for row in data.select(rows).to_list():
        if row["gradalign_score"] is None or row["rewards"] is None:
            continue
        found["rows"] += 1
        equal = len(set(row["rewards"])) == 1
        found["without_signal"] += equal or (cancels and row["gradalign_score"] == 0.0)
        found["always_right"] += min(row["rewards"]) > 0.5
        found["always_wrong"] += max(row["rewards"]) <= 0.5
    return found


@pytest.mark.parametrize("budget", ["20%", "80%"])
def test_rollouts_are_counted_in_scored_and_kept_rows(data: Dataset, budget: str) -> None:
    for scorer in (GradAlign(), "gradalign_score"):
        kept = select(data, scorer, budget)
        found, cancels = kept.manifest["rollouts"], isinstance(scorer, GradAlign)
        everything = counted(data, list(range(len(data))), cancels)
        inside = counted(data, kept.indices.tolist(), cancels)
        for name, count in everything.items():
            assert found[name] == {"scored": count, "kept": inside[name]}, name
        rates = [np.mean(row["rewards"]) for row in data if row["gradalign_score"] is not None and row["rewards"]]
        mine = [np.mean(row["rewards"]) for row in kept.dataset]
        assert found["success_rate"] == pytest.approx({"all": np.mean(rates), "kept": np.mean(mine)})
        assert found["rollouts_per_row"] == {"min": 4, "median": 6.0, "max": 8}
        assert found["correct_above"] == 0.5
        json.dumps(kept.manifest, allow_nan=False)


def test_a_gradient_that_cancels_counts_where_the_scorer_says_what_zero_means(data: Dataset) -> None:
    by_scorer, by_name = (select(data, s, "80%").manifest["rollouts"] for s in (GradAlign(), "gradalign_score"))
    assert data[2]["gradalign_score"] == 0.0
    assert len(set(data[2]["rewards"])) == 2
    assert by_scorer["without_signal"]["scored"] == by_name["without_signal"]["scored"] + 1


def test_a_score_of_zero_for_want_of_learnability_is_not_counted_as_without_signal() -> None:
    class LearnAlign(GradAlign):
        name = "LearnAlign"

        def record(self) -> dict[str, Any]:
            return super().record() | {"zero_without_signal": "0 < p < 1"}

    rows = Dataset.from_dict(
        {
            "prompt": list("abcdef"),
            "responses": [["x", "y"]] * 6,
            "rewards": [[0.6, 0.9], [0.1, 0.2], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0], None],
            "gradalign_score": [0.0, 0.0, 0.0, 0.0, 0.5, 0.0],  # right, wrong, equal, cancels, points, cannot be read
        }
    )
    kept, other = (select(rows, scorer, 6).manifest["rollouts"] for scorer in (LearnAlign(), GradAlign()))
    assert kept["without_signal"] == {"scored": 2, "kept": 2}
    assert other["without_signal"] == {"scored": 4, "kept": 4}
    assert silent_rows(rows, "gradalign_score", LearnAlign().record()) == 2
    assert silent_rows(rows, "gradalign_score", GradAlign().record()) == 4
    assert silent_rows(rows, "gradalign_score", {}) == 0
    assert silent_rows(rows.remove_columns("rewards"), "gradalign_score", GradAlign().record()) == 0


def test_rows_whose_rewards_cannot_be_read_are_not_counted() -> None:
    rows = Dataset.from_dict({"rewards": [[1.0, NAN], None, []], "score": [3.0, 2.0, 1.0]})
    none = {"scored": 0, "kept": 0}
    assert select(rows, "score", 2).manifest["rollouts"] == {
        **dict.fromkeys(("rows", "without_signal", "always_right", "always_wrong"), none),
        "correct_above": 0.5,
        "success_rate": {"all": None, "kept": None},
        "rollouts_per_row": None,
    }
    manifest = select(rows, "score", 2).manifest | {"config_name": "c", "split": "train"}
    assert "None" not in Card(manifest).render().replace("None recorded.", "")


def test_confounds_are_those_of_rollouts(data: Dataset, picked: Selection) -> None:
    rows = [row for row in data if row["gradalign_score"] is not None]
    measures = {
        "success_rate": lambda row: np.mean(row["rewards"]),
        "learnability": lambda row: loop(row["rewards"])["learnability"],
        "length": lambda row: np.mean([len(text) for text in row["responses"]]),
    }

    def place(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + sum(v == x for v in values) / 2 for x in values]

    assert set(picked.manifest["confounds"]) == set(measures)
    scores = place([row["gradalign_score"] for row in rows])
    for name, measure in measures.items():
        expected = np.corrcoef(scores, place([measure(row) for row in rows]))[0, 1]
        assert picked.manifest["confounds"][name] == pytest.approx(expected, abs=1e-9), name


def test_traces_that_hold_rewards_too_have_the_confounds_and_baselines_of_both() -> None:
    rows = pool().add_column("rewards", [[0.0, 1.0, float(i % 2)] for i in range(100)])  # type: ignore[call-arg]
    manifest = select(rows, Scorer(), "20%").manifest
    assert set(manifest["confounds"]) == {"steps", "tokens", "loss", "success_rate", "learnability", "length"}
    assert manifest["confounds"]["length"] is None
    plain = select(pool(), Scorer(), "20%").manifest
    assert manifest["baselines"] == plain["baselines"] | {
        name: manifest["baselines"][name] for name in ("accuracy_greedy", "pass_rate_band")
    }
    assert manifest["rows"] == plain["rows"]
    assert manifest["citations"] == ["grace"]


# -- beside other choices -------------------------------------------------------------------------------------------


def top(data: Dataset, value: Any, count: int) -> set[int]:
    """The rows with a GradAlign score that are highest by `value`, ties by row; a plain sort."""
    rows = [(i, value(row)) for i, row in enumerate(data) if row["gradalign_score"] is not None]
    return {i for i, v in sorted(rows, key=lambda item: (-item[1], item[0]))[:count] if v > -math.inf}


def test_baselines_of_rollouts_share_the_rows_that_they_would_have_kept_too(data: Dataset, picked: Selection) -> None:
    kept = set(picked.indices.tolist())
    orders = {
        "accuracy_greedy": lambda row: -loop(row["rewards"])["off_half"],
        "pass_rate_band": lambda row: 1.0 if len(set(row["rewards"])) == 2 else -math.inf,
        "longest": lambda row: np.mean([len(text) for text in row["responses"]]),
    }
    for name, value in orders.items():
        chosen = top(data, value, len(kept))
        assert picked.baselines[name] == {"rows": len(chosen), "shared": len(chosen & kept)}, name
    assert set(picked.baselines) == {"random", *orders, "learnalign_score"}


@pytest.mark.parametrize("strategy", ["accuracy_greedy", "pass_rate_band", "longest"])
def test_a_baseline_of_rollouts_is_a_strategy_too(data: Dataset, picked: Selection, strategy: str) -> None:
    chosen = select(data, GradAlign(), len(picked), strategy=strategy)
    assert len(np.intersect1d(chosen.indices, picked.indices)) == picked.baselines[strategy]["shared"]
    assert chosen.baselines[strategy] == {"rows": len(picked), "shared": len(picked)}


def test_accuracy_greedy_without_rewards_says_what_it_needs() -> None:
    with pytest.raises(CurateError, match="needs the rewards of each row"):
        select(pool(), Scorer(), "20%", strategy="accuracy_greedy")


def test_a_baseline_that_is_shorter_than_the_budget_keeps_fewer_rows(data: Dataset) -> None:
    kept = select(data, GradAlign(), "80%")
    mixed = sum(row["gradalign_score"] is not None and len(set(row["rewards"])) == 2 for row in data)
    assert 0 < mixed < len(kept)
    assert kept.baselines["pass_rate_band"]["rows"] == mixed


@pytest.mark.parametrize("budget", ["20%", 7, None])
def test_another_scorers_column_is_shown_with_the_rows_that_select_would_keep_by_it(
    data: Dataset, budget: str | int | None
) -> None:
    options: dict[str, Any] = {"budget": budget} if budget else {"strategy": "threshold", "min_score": 0.5}
    kept = select(data, GradAlign(), **options)
    other = select(data, "learnalign_score", len(kept))
    shared = len(np.intersect1d(kept.indices, other.indices))
    assert kept.baselines["learnalign_score"] == {"rows": len(kept), "shared": shared}
    back = select(data, "learnalign_score", len(kept)).baselines["gradalign_score"]
    assert back == {
        "rows": len(kept),
        "shared": len(np.intersect1d(other.indices, select(data, GradAlign(), len(kept)).indices)),
    }


def test_only_scores_with_their_reasons_beside_them_are_other_scorers_columns() -> None:
    columns = {
        "score": [1.0, 2.0],
        "a_score": [1.0, 2.0],
        "a_error": ["", ""],
        "b_score": [1.0, 2.0],  # no reasons
        "c_score": [1, 2],  # no floats
        "c_error": ["", ""],
        "d_score": [1.0, 2.0],
        "d_error": [0.0, 0.0],  # no reasons either
        "_score": [1.0, 2.0],
        "_error": ["", ""],
        "grace_value": [1.0, 2.0],
        "grace_error": ["", ""],
        "e_loss": [1.0, 2.0],
        "e_error": ["", ""],
    }
    kept = select(Dataset.from_dict(columns), "score", 1)
    assert set(kept.baselines) == {"random", "a_score", "grace_value"}
    assert set(select(Dataset.from_dict(columns), "a_score", 1).baselines) == {"random", "grace_value"}


def test_under_a_token_budget_other_scorers_spend_the_same_tokens() -> None:
    rows = pool().add_column("a_score", [float(i) for i in range(100)])  # type: ignore[call-arg]
    rows = rows.add_column("a_error", [""] * 100)
    tokens = rows["grace_tokens"][:]
    spent, expected = 0, 0
    for i in reversed([i for i in range(100) if tokens[i] is not None]):
        spent += tokens[i]
        if spent > 1000:
            break
        expected += 1
    assert select(rows, Scorer(), "1k tokens").baselines["a_score"]["rows"] == expected


# -- names, papers, prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "papers"),
    [
        ("GRACE", ["grace"]),
        ("LearnAlign", ["learnalign"]),
        ("GradAlign", ["gradalign"]),
        ("Align", ["gradalign"]),
        ("AccuracyGreedy", []),
        (None, []),
        (["GRACE"], []),
    ],
)
def test_a_selection_cites_the_paper_of_its_scorer(data: Dataset, name: Any, papers: list[str]) -> None:
    class Named(GradAlign):
        def record(self) -> dict[str, Any]:
            return super().record() | {"name": name}

    manifest = select(data, Named(), 5).manifest
    assert manifest["citations"] == papers


def test_columns_named_by_hand_bring_what_their_scorer_wrote_beside_them(data: Dataset) -> None:
    types = {name: select(data, name, 5).manifest["columns"] for name in ("gradalign_score", "learnalign_score")}
    assert set(types["gradalign_score"]["scores"]) == set(GradAlign.columns)
    assert set(types["learnalign_score"]["scores"]) == {"learnability", "learnalign_score", "learnalign_error"}
    assert "learnability" in types["gradalign_score"]["source"]


def test_the_direction_of_the_record_is_in_the_manifest(data: Dataset, picked: Selection) -> None:
    assert picked.manifest["selector"]["direction"] == DIRECTION
    assert select(data, "gradalign_score", 5).manifest["selector"]["direction"] is None


def user(text: str, *more: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in (("user", text), *more)]


@pytest.mark.parametrize("by_record", [True, False])
@pytest.mark.parametrize(
    ("column", "prompts", "repeats"),
    [
        ("prompt", ["a", "b", "a", "a"], 2),
        ("question", ["a", "b", "a", "c"], 1),
        ("prompt", [user("a"), user("a"), user("b"), user("a", ("assistant", "Let"))], 1),
        ("messages", [user("a"), user("b"), user("a", ("assistant", "1")), user("a", ("assistant", "2"))], 2),
        ("messages", [user("a"), user("b"), user("a", ("assistant", "x"), ("user", "b")), user("c")], 0),
    ],
)
def test_duplicate_prompts_of_rollouts_are_counted(
    by_record: bool, column: str, prompts: list[Any], repeats: int
) -> None:
    rows = Dataset.from_dict(
        {column: prompts, "responses": [["x", "y"]] * 4, "rewards": [[0.0, 1.0]] * 4, "gradalign_score": [1.0] * 4}
    )
    chat = column == "messages"
    named = COLUMNS | {"rewards": "rewards", "prompt": None if chat else column, "messages": column if chat else None}

    class Reader(GradAlign):
        settings: Mapping[str, Any] = {"columns": named}

    scorer = Reader() if by_record else "gradalign_score"
    assert select(rows, scorer, 1).manifest["rows"]["duplicate_prompts"] == repeats
    assert select(rows.remove_columns(column), "gradalign_score", 1).manifest["rows"]["duplicate_prompts"] is None


# -- saved and shown ------------------------------------------------------------------------------------------------


def test_a_selection_of_rollouts_is_saved_and_loaded_back(picked: Selection, tmp_path: Path) -> None:
    picked.save(tmp_path, "gradalign-20pct")
    again = load_curated(tmp_path, "gradalign-20pct")
    assert again.problems == []
    assert again.manifest["rollouts"] == picked.manifest["rollouts"]
    assert again.card["What makes it useful"]["Pass rate"].body
    assert "#### Pass rate" in (tmp_path / "README.md").read_text("utf-8")


def test_manifests_from_before_rollouts_still_load_and_have_a_card(picked: Selection, tmp_path: Path) -> None:
    older = {key: value for key, value in picked.manifest.items() if key != "rollouts"}
    older["selector"] = {key: value for key, value in older["selector"].items() if key != "direction"}
    Selection(picked.dataset, picked.indices, older).save(tmp_path, "c")
    again = load_curated(tmp_path, "c")
    assert again.problems == []
    assert again.card["What makes it useful"]["Pass rate"].body.startswith("Not measured")


def test_a_large_list_of_rewards_survives_a_round_trip(tmp_path: Path) -> None:
    features = Features({"rewards": LargeList(Value("float64")), "score": Value("float32")})
    rows = Dataset.from_dict({"rewards": [[0.0, 1.0], [1.0, 1.0]], "score": [1.0, 2.0]}, features=features)
    kept = select(rows, "score", 1)
    assert kept.manifest["rollouts"]["without_signal"] == {"scored": 1, "kept": 1}
    kept.save(tmp_path, "c")
    assert load_curated(tmp_path, "c").problems == []


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("most_steps", "needs the steps of each row, .* MostStepsScorer .*--scorer most-steps "),
        ("lowest_loss", "needs the loss of each row, .* LossScorer .*--scorer lowest-loss "),
        ("highest_loss", r"needs the loss of each row, .* LossScorer\(prefer='highest'\) .*--scorer highest-loss "),
    ],
)
def test_strategies_that_measure_traces_name_the_scorer_of_rollouts_for_it(
    data: Dataset, strategy: str, words: str
) -> None:
    with pytest.raises(CurateError, match=words) as caught:
        select(data, GradAlign(), 5, strategy=strategy)
    assert "grace_value" not in str(caught.value)
    assert {option for _, option in SCORED.values()} <= set(KINDS)


# -- verification ---------------------------------------------------------------------------------------------------


def test_the_contract_and_its_outcomes_are_in_the_manifest_and_on_the_card(data: Dataset) -> None:
    cycle = ("right", "wrong", "could not parse", "right")
    outcomes = [None if i % 7 == 0 else [cycle[(i + k) % 4] for k in range(1 + i % 3)] for i in range(len(data))]
    rows = data.add_column("rollouts_outcomes", outcomes)  # type: ignore[call-arg]
    contract = {"kind": "deterministic checker", "name": "exact", "version": "1", "options": {"gold": "answer"}}
    contract |= {"packages": {}, "failure_surface": "calls 1/2 and 0.5 different"}

    class Verified(GradAlign):
        def record(self) -> dict[str, Any]:
            made = {"verifier": contract, "settings": {"n": 3, "temperature": 1.0, "top_p": 1.0, "seed": 5}}
            return {**super().record(), "rollouts": made}

    kept = select(rows, Verified(), "20%")
    found = kept.manifest["verification"]
    for name, chosen in (("all", range(len(rows))), ("kept", kept.indices.tolist())):
        every = [outcome for i in chosen for outcome in outcomes[i] or []]
        assert found["outcomes"][name] == {kind: every.count(kind) for kind in set(every)}
    assert found["sampling"]["seed"] == 5
    card = Card(kept.manifest | {"config_name": "c", "split": "train"}).render()
    assert "a matter of the contract `exact`, version `1`" in card
    assert "calls 1/2 and 0.5 different" in card
    cells = []
    for counts in (found["outcomes"]["all"], found["outcomes"]["kept"]):
        cells += [f"{counts['right']:,}", f"{100 * counts['right'] / sum(counts.values()):.1f} %"]
    assert f"| right | {' | '.join(cells)} |" in card
    assert "Rewards are taken as given" not in card


def test_rollouts_that_nobody_accounts_for_are_taken_as_given(picked: Selection) -> None:
    assert picked.manifest["verification"] is None
    card = Card(picked.manifest | {"config_name": "c", "split": "train"}).render()
    assert "#### Verification" not in card
    assert "Rewards are taken as given" in card
