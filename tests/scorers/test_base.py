"""What every scorer shares, seen through the smallest scorer there can be."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Value

from hf_curate.errors import ColumnsError, RowError, ScoreError
from hf_curate.scorers.base import FIRST_BATCH, Scorer, all_failed


class LengthScorer(Scorer):
    """Counts characters; fails on empty text."""

    name = "Length"
    prefix = "length"
    algorithm_version = 1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self._arguments = {"scale": scale}
        self.scale = scale

    @property
    def columns(self) -> Features:
        return Features({"length_value": Value("float32"), "length_error": Value("string")})

    @property
    def column(self) -> str:
        return "length_value"

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def model_record(self) -> None:
        return None

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        return [
            {"length_value": np.float32(len(row["text"]) * self.scale)} if row["text"] else RowError("empty", str(i))
            for i, row in enumerate(rows)
        ]

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        return not isinstance(rows["text"], str)

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        if "text" not in names:
            raise ColumnsError("no column 'text'")

    def _portable_arguments(self) -> dict[str, Any]:
        return self._arguments


def texts(*values: str) -> Dataset:
    return Dataset.from_dict({"text": list(values)})


def test_a_scorer_of_a_few_lines_maps_rows_batches_and_in_workers() -> None:
    pool = texts("a", "bb", "", "dddd")
    expected = [2.0, 4.0, None, 8.0]
    for options in ({}, {"batched": True}, {"batched": True, "with_rank": True}, {"batched": True, "batch_size": 2}):
        scored = pool.map(LengthScorer(2.0), **options)
        assert scored["length_value"][:] == expected
        assert [bool(text) for text in scored["length_error"]] == [False, False, True, False]
    assert LengthScorer()({"text": ["", "a"]}) == {"length_value": [None, 1.0], "length_error": ["empty: 0", ""]}


def test_an_empty_batch_gives_empty_columns() -> None:
    assert LengthScorer()({"text": []}) == {"length_value": [], "length_error": []}


def test_the_error_is_never_null_and_a_score_never_invented() -> None:
    assert LengthScorer()({"text": "abc"}) == {"length_value": 3.0, "length_error": ""}
    assert LengthScorer()({"text": ""}) == {"length_value": None, "length_error": "empty: 0"}


def test_columns_are_checked_before_the_first_row_is_scored() -> None:
    with pytest.raises(ColumnsError, match="no column 'text'"):
        LengthScorer().features(Dataset.from_dict({"other": ["a"]}))


def test_features_of_an_empty_stream_of_unknown_type_is_an_error() -> None:
    with pytest.raises(ScoreError, match="the dataset is empty"):
        LengthScorer().features(IterableDataset.from_generator(lambda: iter(())))


def test_features_of_a_stream_are_those_of_its_first_row() -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"text": "a", "n": 1}]))
    assert LengthScorer().features(stream) == Features(
        {"text": Value("string"), "n": Value("int64"), **LengthScorer().columns}
    )


def test_a_batch_that_fails_before_any_row_was_scored_is_an_error() -> None:
    scorer = LengthScorer()
    scorer({"text": [""] * (FIRST_BATCH - 1)})
    with pytest.raises(ScoreError, match=f"none of the {2 * FIRST_BATCH - 1} rows"):
        scorer({"text": [""] * FIRST_BATCH})


def test_a_batch_that_fails_after_a_row_was_scored_goes_on() -> None:
    scorer = LengthScorer()
    scorer({"text": "a"})
    assert scorer({"text": [""] * 50})["length_value"] == [None] * 50


def test_the_error_of_a_failed_run_lists_the_reasons_by_how_often_they_came() -> None:
    text = all_failed(1203, {"rare: x": 1, "often: a": 600, "often: b": 602}, "Do this.")
    assert text == "none of the 1,203 rows could be scored:\n  1,202 x often: a\n  1 x rare: x\nDo this."


def test_identity_changes_with_settings_and_algorithm_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = LengthScorer().identity
    assert LengthScorer().identity == identity
    assert LengthScorer(2.0).identity != identity
    monkeypatch.setattr(LengthScorer, "algorithm_version", 2)
    assert LengthScorer().identity != identity


def test_a_pickle_rebuilds_the_scorer() -> None:
    again = pickle.loads(pickle.dumps(LengthScorer(3.0)))
    assert again.scale == 3.0
    assert again.identity == LengthScorer(3.0).identity


def test_the_record_names_class_version_identity_and_settings() -> None:
    assert LengthScorer().record() == {
        "name": "Length",
        "class": "LengthScorer",
        "algorithm_version": 1,
        "identity": LengthScorer().identity,
        "column": "length_value",
        "settings": {"scale": 1.0},
        "model": None,
        "call": "LengthScorer(...)",
    }
