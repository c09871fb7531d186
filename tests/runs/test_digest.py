"""The digest of a dataset's rows: equal for equal rows however they are stored, and another one for any other rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate.runs.digest import BATCH_ROWS, table_digest

CHAT = {"role": "user", "content": "1 + 1?"}
ROWS = [
    {
        "text": None if i % 5 == 0 else "é" * (i % 7),
        "number": i if i % 3 else None,
        "share": i / 7,
        "flag": bool(i % 2) if i % 4 else None,
        "list": list(range(i % 4)) if i % 6 else None,
        "nested": [[i], None, []] if i % 2 else [],
        "chat": [CHAT, {"role": "assistant", "content": None}] if i % 8 else [],
        "raw": bytes([i % 256]),
        "day": datetime.date(2024, 1, 1 + i % 28),
        "empty": None,
    }
    for i in range(2 * BATCH_ROWS + 10)
]


def test_equal_rows_have_one_digest_however_they_are_stored(tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(tmp_path / "rows.parquet")
    stored = Dataset.from_parquet(str(tmp_path / "rows.parquet"))
    order = np.random.default_rng(0).permutation(len(rows))
    ways: dict[str, Any] = {
        "from a file": stored,
        "in chunks": concatenate_datasets([rows.select(range(100)), rows.select(range(100, len(rows)))]),
        "out of a longer one": concatenate_datasets([rows, rows]).select(range(len(rows), 2 * len(rows))),
        "there and back": rows.select(order).select(np.argsort(order)),
        "formatted": rows.with_format("numpy"),
        "written again": rows.map(lambda row: row, features=rows.features),
    }
    assert {name: table_digest(data) for name, data in ways.items()} == dict.fromkeys(ways, table_digest(rows))


@pytest.mark.parametrize("column", sorted(set(ROWS[0]) - {"empty"}))
def test_one_other_value_is_another_digest(column: str) -> None:
    rows = Dataset.from_list(ROWS)
    for place in (0, 1, len(ROWS) - 1):
        changed = [dict(row) for row in ROWS]
        others = [row[column] for row in ROWS if row[column] != ROWS[place][column]]
        changed[place][column] = others[0]
        assert table_digest(Dataset.from_list(changed, features=rows.features)) != table_digest(rows)


def test_names_types_and_the_order_of_rows_count() -> None:
    rows = Dataset.from_dict({"a": [1, 2]})
    others = [
        Dataset.from_dict({"b": [1, 2]}),
        Dataset.from_dict({"a": [2, 1]}),
        Dataset.from_dict({"a": [1, 2, 2]}),
        Dataset.from_dict({"a": [1, 2]}, features=Features({"a": Value("int32")})),
        Dataset.from_dict({"a": ["1", "2"]}),
        Dataset.from_dict({"a": [1, 2], "b": [1, 2]}),
    ]
    assert len({table_digest(data) for data in (rows, *others)}) == 7


TEXTS = st.lists(st.none() | st.text(max_size=3), max_size=4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | TEXTS, min_size=1, max_size=5), st.lists(st.none() | TEXTS, min_size=1, max_size=5))
def test_lists_of_texts_are_told_apart_wherever_they_are_cut(one: list[Any], other: list[Any]) -> None:
    features = Features({"a": List(Value("string"))})
    digests = [table_digest(Dataset.from_dict({"a": found}, features=features)) for found in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)
