"""A digest of a dataset's rows that does not depend on how they are stored: in memory or in files, in which chunks."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 256
"""Rows that are hashed at a time; part of the digest."""


def table_digest(dataset: Dataset) -> str:
    """sha256 over the types and the values of all columns, row after row; images and the like by their bytes.

    Two datasets with equal rows have equal digests, whatever `_fingerprint` says of them. Nothing is decoded: the
    values are hashed as arrow holds them, nulls by their places alone.
    """
    schema = dataset.features.arrow_schema
    digest = hashlib.sha256(json.dumps([[field.name, str(field.type)] for field in schema]).encode())
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        for name in schema.names:
            _add(digest, table[name].combine_chunks())  # type: ignore[index]
    return digest.hexdigest()


def _add(digest: Any, array: Any) -> None:
    """One array: its length, where it has nulls, and the values at the other places."""
    import pyarrow as pa

    array = getattr(array, "storage", array)
    digest.update(b"%d %d;" % (len(array), array.null_count))
    if array.null_count:
        digest.update(np.packbits(np.asarray(array.is_valid())))
        array = array.drop_null()
    kind = array.type
    if pa.types.is_struct(kind):
        for field in array.flatten():
            _add(digest, field)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(_plain(array.value_lengths()) if not pa.types.is_fixed_size_list(kind) else b"")
        _add(digest, array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        _add_texts(digest, array, np.int32)
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        _add_texts(digest, array, np.int64)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        digest.update(_plain(array))
    else:
        digest.update(repr(array.to_pylist()).encode("utf-8", "surrogatepass"))


def _plain(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False))


def _add_texts(digest: Any, array: Any, offset: type[np.integer]) -> None:
    """The lengths and then all bytes: neither buffer starts where a slice does."""
    if not len(array):
        return
    _, places, values = array.buffers()
    ends = np.frombuffer(places, offset)[array.offset : array.offset + len(array) + 1]
    digest.update(np.diff(ends).astype(np.int64))
    if values is not None:
        digest.update(memoryview(values)[int(ends[0]) : int(ends[-1])])
