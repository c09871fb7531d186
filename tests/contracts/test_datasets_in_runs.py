"""What runs in folders rely on in `datasets` and pyarrow, beside what map relies on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value
from datasets.formatting import get_formatter
from datasets.formatting.formatting import LazyBatch

ROWS = {"text": ["a", "bb", "ccc", "dddd"], "number": [1, None, 3, 4]}


def test_a_lazy_formatter_makes_the_batches_that_map_makes() -> None:
    pool = Dataset.from_dict(ROWS).select([3, 1, 0, 2])
    seen: list[Any] = []
    pool.map(lambda rows: seen.append(rows), batched=True, batch_size=3)
    made = get_formatter(None, features=pool.features, lazy=True).format_batch(pool.with_format("arrow")[0:3])
    assert type(made) is type(seen[0]) is LazyBatch
    assert list(made) == list(seen[0]) == ["text", "number"]
    assert [made[name] for name in made] == [seen[0][name] for name in made] == [["dddd", "bb", "a"], [4, None, 1]]


@pytest.mark.parametrize("stored", [False, True])
def test_an_arrow_map_puts_whole_tables_in_place_and_is_cached_by_the_name_that_it_is_given(
    stored: bool, tmp_path: Path
) -> None:
    pool, calls = Dataset.from_dict(ROWS), []
    if stored:
        pool.to_parquet(tmp_path / "rows.parquet")
        pool = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    features = Features({**pool.features, "number": Value("string"), "score": Value("float32")})

    def beside(table: pa.Table, indices: list[int]) -> pa.Table:
        calls.append(indices)
        scores = {"number": pa.array([str(i) for i in indices]), "score": pa.array([0.1] * len(indices), pa.float32())}
        return pa.table({"text": table["text"], **scores})

    for _ in range(2):
        made = pool.with_format("arrow").map(
            beside,
            with_indices=True,
            batched=True,
            batch_size=3,
            features=features,
            new_fingerprint="0" * 32,
        )
        assert made.features == features
        assert made.with_format(None)["number"][:] == ["0", "1", "2", "3"]
    assert calls == [[0, 1, 2], [3]] * (1 if stored else 2)


def test_a_table_has_one_parquet_form(tmp_path: Path) -> None:
    made = [
        Dataset.from_dict(ROWS),
        Dataset.from_dict(ROWS).select([0, 1, 2, 3]),
        Dataset.from_list(list(Dataset.from_dict(ROWS))),
    ]
    forms = set()
    for number, data in enumerate(made):
        data.to_parquet(tmp_path / f"{number}.parquet")
        forms.add((tmp_path / f"{number}.parquet").read_bytes())
    assert len(forms) == 1
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(ROWS), sink)
    assert pq.ParquetFile(pa.BufferReader(sink.getvalue())).read(use_threads=False).to_pydict() == ROWS
