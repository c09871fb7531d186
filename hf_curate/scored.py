"""The columns of a scored dataset as arrays and types: scores, groups."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import ColumnsError

if TYPE_CHECKING:
    from datasets import Dataset

LARGEST = 1e150
"""Scores beyond it count as infinite: the variance of larger ones overflows."""


def column_of(dataset: Dataset, name: str) -> Any:
    """A whole column as an arrow array."""
    if name not in dataset.column_names:
        raise ColumnsError(f"there is no column {name!r}; {there_are(name, dataset, 'Name one of these.')}")
    column, view = dataset.data.column(name), dataset._indices
    if view is None:
        return column.combine_chunks()
    whole = column.combine_chunks() if is_number(column.type) else column  # texts in one piece may be too many
    taken = whole.take(view.column(0).combine_chunks())  # `datasets` would gather them one by one
    return taken if is_number(column.type) else taken.combine_chunks()


def there_are(name: str, dataset: Dataset, fix: str) -> str:
    """The columns that there are, and the one that was meant if its name is close, else `fix`."""
    near = get_close_matches(name, dataset.column_names, n=1)
    listed = ", ".join(map(repr, dataset.column_names)) or "none"
    return f"the dataset has {listed}. " + (f"Did you mean {near[0]!r}?" if near else fix)


def numbers(dataset: Dataset, name: str) -> np.ndarray:
    """[n] float64 with NaN for null, and for what is not finite: an infinite score says that something overflowed."""
    import pyarrow as pa

    array = column_of(dataset, name)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if not is_number(array.type):
        raise ColumnsError(
            f"column {name!r} holds {array.type}, and ranking needs numbers: pass the scorer or a column of scores."
        )
    numbers = np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


def is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def groups_of(dataset: Dataset, name: str) -> np.ndarray:
    """[n] int64: the number of each row's group, in order of first appearance; null is a group of its own."""
    import pyarrow as pa

    column = column_of(dataset, name)
    if pa.types.is_nested(column.type):
        kind = type_name(dataset.features[name])
        raise ColumnsError(f"column {name!r} holds {kind}, and group= needs one value a row: text or a number.")
    return np.asarray(column.dictionary_encode(null_encoding="encode").indices, dtype=np.int64)


def prefix_of(column: str) -> str:
    """ "grace" of "grace_value": what the columns of one scorer have in common; "" where there is none."""
    return column.rpartition("_")[0]


def type_name(feature: Any) -> str:
    """float32, list<string>, struct<role: string>, or the feature's own name."""
    if isinstance(feature, dict):
        return f"struct<{', '.join(f'{name}: {type_name(inner)}' for name, inner in feature.items())}>"
    if isinstance(feature, list):
        return f"list<{type_name(feature[0])}>"
    if hasattr(feature, "feature"):
        return f"list<{type_name(feature.feature)}>"
    return str(getattr(feature, "dtype", feature) or type(feature).__name__)
