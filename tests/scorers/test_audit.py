"""audit(): the proxy beside the exact gradients on the user's own rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import tiny

from hf_curate import GraceScorer
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, ScoreError


def scorer_of(**settings: Any) -> GraceScorer:
    return GraceScorer(MODEL, dtype="float32", **settings)


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return load_traces().select_columns(["prompt", "completion"]).select(range(12))


def test_the_exact_gradients_agree_with_themselves(pool: Dataset) -> None:
    found = scorer_of(proxy="exact").audit(pool, rows=4)
    assert found["spearman"] == pytest.approx({"alignment": 1.0, "history": 1.0, "value": 1.0})
    assert found["time_ratio"] > 0.2


@pytest.mark.parametrize("proxy", ["representation", "outer", "last"])
def test_an_audit_says_what_was_compared_and_how_well(proxy: str, pool: Dataset) -> None:
    scorer = scorer_of(proxy=proxy)
    assert scorer.record()["audit"] is None
    found = scorer.audit(pool, rows=5, seed=3)
    assert set(found) == {"rows", "steps", "parameters", "proxy", "seed", "spearman", "time_ratio"}
    assert (found["rows"], found["parameters"], found["proxy"], found["seed"]) == (5, "linear", proxy, 3)
    assert found["steps"] >= 5
    assert all(-1 <= value <= 1 for value in found["spearman"].values())
    assert 0 < found["time_ratio"] < 5
    assert scorer.record()["audit"] == found == json.loads(json.dumps(found, allow_nan=False))


def test_an_audit_changes_neither_identity_nor_scores(pool: Dataset) -> None:
    scorer = scorer_of()
    before, value = scorer.identity, scorer(pool[0])["grace_value"]
    scorer.audit(pool, rows=2)
    assert scorer.identity == before
    assert scorer(pool[0])["grace_value"] == value


def test_the_sample_is_drawn_by_the_seed(pool: Dataset) -> None:
    one, same, other = (scorer_of().audit(pool, rows=3, seed=seed) for seed in (1, 1, 2))
    assert one["spearman"] == same["spearman"]
    assert one["spearman"] != other["spearman"]


def test_another_parameter_set_gives_another_measure(pool: Dataset) -> None:
    linear, every = (scorer_of().audit(pool, rows=3, parameters=which) for which in ("linear", "all"))
    assert every["parameters"] == "all"
    assert linear["spearman"]["alignment"] != every["spearman"]["alignment"]
    with pytest.raises(CurateError, match="parameters='head' is not one of 'linear', 'all'"):
        scorer_of().audit(pool, rows=3, parameters="head")


def test_rows_that_cannot_be_read_are_left_out(pool: Dataset) -> None:
    mixed = Dataset.from_list([*pool.select(range(4)).to_list(), {"prompt": "1?", "completion": ""}])
    assert scorer_of().audit(mixed, rows=64)["rows"] == 4


def test_rows_without_a_finite_gradient_do_not_spoil_the_audit(pool: Dataset) -> None:
    model = tiny(vocabulary=20)
    with torch.no_grad():
        model.get_output_embeddings().weight[5, 0] = float("nan")
    scorer = GraceScorer(model, tokenizer=scorer_of().reader.tokenizer)
    found = scorer.audit(pool, rows=3)
    assert found["spearman"] == {"alignment": None, "history": None, "value": None}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("rows", [[], [{"prompt": "1?", "completion": ""}] * 3])
def test_nothing_to_compare_is_an_error(rows: list[dict[str, str]]) -> None:
    pool = Dataset.from_dict({"prompt": [r["prompt"] for r in rows], "completion": [r["completion"] for r in rows]})
    with pytest.raises(ScoreError, match="the dataset is empty" if not rows else "empty trace"):
        scorer_of().audit(pool)
