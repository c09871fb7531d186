"""The columns of a scored dataset as arrays: scores, the measures that lie beside them, groups."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import MEASURED
from hf_curate.errors import ColumnsError

if TYPE_CHECKING:
    from datasets import Dataset

LARGEST = 1e150
"""Scores beyond it count as infinite: the variance of larger ones overflows."""


def column_of(dataset: Dataset, name: str) -> Any:
    """A whole column as an arrow array."""
    if name not in dataset.column_names:
        raise ColumnsError(f"there is no column {name!r}; {there_are(name, dataset, 'Name one of these.')}")
    return dataset.select_columns([name]).with_format("arrow")[:][name].combine_chunks()


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
    if not _is_number(array.type):
        raise ColumnsError(
            f"column {name!r} holds {array.type}, and ranking needs numbers: pass the scorer or a column of scores."
        )
    numbers = np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def groups_of(dataset: Dataset, name: str) -> list[Any]:
    groups = column_of(dataset, name).to_pylist()
    if any(isinstance(group, (list, dict)) for group in groups):
        kind = type_name(dataset.features[name])
        raise ColumnsError(f"column {name!r} holds {kind}, and group= needs one value a row: text or a number.")
    return groups


def prefix_of(column: str) -> str:
    """ "grace" of "grace_value": what the columns of one scorer have in common; "" where there is none."""
    return column.rpartition("_")[0]


def measures_of(dataset: Dataset, column: str) -> dict[str, np.ndarray]:
    """Measures of the rows that lie beside the score: tokens, loss and steps, where the scorer wrote them.

    A column that is called alike and holds something else is somebody else's.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    prefix, found = prefix_of(column), {}
    types = dataset.data.schema if prefix else pa.schema([])
    for measure in ("tokens", "loss"):
        name = f"{prefix}_{measure}"
        if name in types.names and _is_number(types.field(name).type):
            found[measure] = numbers(dataset, name)
    name = f"{prefix}_step_scores"
    if name in types.names and (
        pa.types.is_list(types.field(name).type) or pa.types.is_large_list(types.field(name).type)
    ):
        lengths = pc.list_value_length(column_of(dataset, name))  # type: ignore[attr-defined]
        found["steps"] = np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.float64)
    return found


def rank_by(strategy: str, scores: np.ndarray, measures: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the strategy ranks by, NaN where a row may not be kept."""
    if strategy not in MEASURED:
        return scores
    measure, sign = MEASURED[strategy]
    return np.where(np.isnan(scores), np.nan, sign * measures[measure])


def type_name(feature: Any) -> str:
    """float32, list<string>, struct<role: string>, or the feature's own name."""
    if isinstance(feature, dict):
        return f"struct<{', '.join(f'{name}: {type_name(inner)}' for name, inner in feature.items())}>"
    if isinstance(feature, list):
        return f"list<{type_name(feature[0])}>"
    if hasattr(feature, "feature"):
        return f"list<{type_name(feature.feature)}>"
    return str(getattr(feature, "dtype", feature) or type(feature).__name__)
