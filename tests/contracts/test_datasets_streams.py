"""What reading a stream once relies on in `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value

TYPES = Features({"text": Value("string"), "number": Value("int32"), "deep": {"tags": List(Value("string"))}})
ROWS = [{"text": f"t{n}", "number": n, "deep": {"tags": ["a"] * (n % 3)}} for n in range(10)]


def rows() -> Iterator[dict[str, Any]]:
    yield from ROWS


def test_a_stream_of_tables_gives_them_with_the_schema_of_its_features() -> None:
    stream = Dataset.from_list(ROWS, features=TYPES).to_iterable_dataset(num_shards=2)
    for one in (stream, stream.take(7), stream.skip(2)):
        assert one.features == TYPES
        assert one._ex_iterable.iter_arrow
        tables: list[Any] = list(one.with_format("arrow").iter(4))
        assert all(isinstance(table, pa.Table) and table.schema.equals(TYPES.arrow_schema) for table in tables)
        assert max(map(len, tables)) <= 4


def test_a_stream_of_a_generator_gives_rows_and_its_features_are_those_that_it_was_given() -> None:
    for features in (None, TYPES):
        stream = IterableDataset.from_generator(rows, features=features)
        assert stream.features == features
        assert not stream._ex_iterable.iter_arrow
        assert list(stream.with_format(None)) == ROWS
    assert IterableDataset.from_generator(rows, features=TYPES).map(lambda row: row).features is None


def test_a_file_of_arrow_batches_is_a_dataset_with_the_features_in_its_schema(tmp_path: Path) -> None:
    assert Features.from_arrow_schema(TYPES.arrow_schema) == TYPES == Features.from_dict(TYPES.to_dict())
    with open(tmp_path / "rows.arrow", "wb") as file, pa.ipc.new_stream(file, TYPES.arrow_schema) as writer:
        for start in range(0, 10, 3):
            writer.write_table(pa.Table.from_pylist(ROWS[start : start + 3], TYPES.arrow_schema))
    dataset = Dataset.from_file(str(tmp_path / "rows.arrow"))
    assert (dataset.features, dataset.to_list()) == (TYPES, ROWS)
    assert dataset.cache_files == [{"filename": str(tmp_path / "rows.arrow")}]
