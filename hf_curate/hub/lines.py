"""Rows in bulk: a dataset's rows as arrow tables, and a table's rows as lines of JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 1000


def batches(dataset: Dataset, columns: list[str]) -> Iterator[Any]:
    """The rows of these columns, in order, as arrow tables of about `BATCH_ROWS` rows; none without a column.

    `datasets` gathers the rows of a selection one by one; where they ascend, as kept rows do, they are cut out of each
    record batch at once.
    """
    if not columns:
        return
    view = dataset.select_columns(columns).with_format("arrow")
    rows = None if view._indices is None else np.asarray(view._indices.column(0), dtype=np.int64)
    if rows is None or (rows[1:] < rows[:-1]).any():
        yield from view.iter(batch_size=BATCH_ROWS)  # type: ignore[misc]
    else:
        yield from _cut(view.data, rows)


def _cut(table: Any, rows: np.ndarray) -> Iterator[Any]:
    """The ascending `rows` of a table."""
    import pyarrow as pa

    pieces, begin = [], 0
    for batch in table.to_batches():
        first, last = np.searchsorted(rows, [begin, begin + len(batch)])
        for at in range(first, last, BATCH_ROWS):
            pieces.append(batch.take(pa.array(rows[at : min(at + BATCH_ROWS, last)] - begin)))
            if sum(map(len, pieces)) >= BATCH_ROWS:
                yield pa.Table.from_batches(pieces, table.schema)
                pieces = []
        begin += len(batch)
    if pieces:
        yield pa.Table.from_batches(pieces, table.schema)


def json_lines(table: Any) -> bytes:
    """`json.dumps(row, sort_keys=True, ensure_ascii=False)` of each row, and a newline.

    Bytes are written as their sha256, and what else JSON does not know as text.
    """
    if not table.num_rows:
        return b""
    names = sorted(table.column_names)
    keys = [json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in names]
    row = "{" + ", ".join(f"{key}: %s" for key in keys) + "}\n"
    values = [_encoded(table[name]) for name in names]
    return "".join(map(row.__mod__, zip(*values, strict=True))).encode()


def _encoded(column: Any) -> list[str]:
    """The JSON of each value. Plain values go through the encoder all at once, a newline between them: JSON has none
    inside of a value."""
    import pyarrow as pa

    kind, tests = column.type, pa.types
    plain = (tests.is_integer, tests.is_floating, tests.is_boolean, tests.is_string, tests.is_large_string)
    if any(test(kind) for test in plain):
        encode = json.JSONEncoder(ensure_ascii=False, default=_plain, separators=("\n", ": ")).encode
        return encode(column.to_pylist())[1:-1].split("\n")
    encode = json.JSONEncoder(ensure_ascii=False, default=_plain, sort_keys=True).encode
    return list(map(encode, column.to_pylist()))


def _plain(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
