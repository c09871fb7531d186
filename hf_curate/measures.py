"""Measures of the rows of a scored dataset: what lies beside the scores, and what rollouts are like.

No model is read. Rollouts are measured column by column in arrow, so that a million rows take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import MEASURED
from hf_curate.groups import CORRECT_ABOVE, SAME_REWARD
from hf_curate.scored import is_number, is_text, numbers, prefix_of

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_ROWS = 10_000
"""Rows of rollouts read at a time: all responses of a dataset need not fit into memory."""
CHUNK_BYTES = 2**28
"""Texts of more are not put together: an arrow array of strings holds less than 2 GB."""


def measures_of(dataset: Dataset, column: str, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Measures of the rows that lie beside the score: tokens, loss and steps, where the scorer wrote them, and those
    of rollouts, where there are rewards.

    A column that is called alike and holds something else is somebody else's.
    """
    import pyarrow as pa

    prefix, found = prefix_of(column), {}
    types = dataset.data.schema if prefix else pa.schema([])
    for measure in ("tokens", "loss"):
        name = f"{prefix}_{measure}"
        if name in types.names and is_number(types.field(name).type):
            found[measure] = numbers(dataset, name)
    name = f"{prefix}_step_scores"
    if name in types.names and (
        pa.types.is_list(types.field(name).type) or pa.types.is_large_list(types.field(name).type)
    ):
        found["steps"] = _of_view(dataset, _lengths_of_lists(dataset.data.column(name)))
    return found | rollout_measures(dataset, record)


def rival_columns(dataset: Dataset, column: str) -> list[str]:
    """Columns of other scorers' scores: floats called <prefix>_score or <prefix>_value, with reasons in
    <prefix>_error beside them."""
    import pyarrow as pa

    types = dataset.data.schema
    return [
        name
        for name in types.names
        if name != column
        and name.endswith(("_score", "_value"))
        and pa.types.is_floating(types.field(name).type)
        and prefix_of(name)
        and f"{prefix_of(name)}_error" in types.names
        and is_text(types.field(f"{prefix_of(name)}_error").type)
    ]


def rollout_measures(dataset: Dataset, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Measures of rows that hold rollouts, from their rewards and responses; {} without a list<number> of rewards.

    Args:
        record: what the scorer says of itself; its settings may name the columns and `correct_above`.

    Returns:
        [n] float64 each, NaN where the rewards are null, none, or not all finite: rollouts (K), success_rate p (share
        of rewards above `correct_above`), learnability p (1 - p), off_half |p - 0.5|, mixed (1, NaN unless
        0 < p < 1), signal (1, or 0 where all rewards are equal up to rounding); and length, where there are responses:
        their mean number of tokens, or of characters where there is text alone.
    """
    names, types = _rollout_columns(record), dataset.data.schema
    rewards = names["rewards"][0]
    if rewards not in types.names or not is_number(_item(types.field(rewards).type)):
        return {}
    above = correct_above(record)
    count, right, signal = _by_chunk(dataset, rewards, lambda lists: _of_rewards(lists, above), 3)
    # One division of whole numbers each: rows with equal rates tie exactly, also 3 and 7 right of 10 for `off_half`.
    rate = right / count
    found = {"rollouts": count, "success_rate": rate, "learnability": right * (count - right) / (count * count)}
    found |= {"off_half": np.abs(2.0 * right - count) / (2.0 * count), "signal": signal}
    found["mixed"] = np.where((rate > 0.0) & (rate < 1.0), 1.0, np.nan)
    for name in names["responses"]:
        if name in types.names and _has_length(_item(types.field(name).type)):
            found["length"] = _by_chunk(dataset, name, _of_responses, 1)[0]
            break
    return found


def by_position(
    dataset: Dataset, name: str, parts: Mapping[str, np.ndarray], positions: int
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Sums and numbers of the items of a column of lists by their relative place; None where there is no such column.

    Args:
        name: of a column of lists of numbers; items that are not finite are left out.
        parts: part -> [n] bool, its rows.
        positions: equal parts of a list; item k of K, from 0, is in part floor(positions (k + 1/2) / K).

    Returns:
        part -> ([positions] float64 sums, [positions] int64 numbers of items).
    """
    if name not in dataset.column_names or not is_number(_item(dataset.data.schema.field(name).type)):
        return None
    rows = len(dataset.data.column(name))
    view = np.arange(rows) if dataset._indices is None else np.asarray(dataset._indices.column(0))
    times = {part: np.bincount(view[mask], minlength=rows).astype(np.float64) for part, mask in parts.items()}
    found = {part: (np.zeros(positions), np.zeros(positions, dtype=np.int64)) for part in parts}
    begin = 0
    for lists in _chunks(dataset, name):
        count, items = _flat(lists)
        values, index = _floats(items), _positions(count, positions)
        known = np.isfinite(values)
        if not known.all():
            values, index = np.where(known, values, 0.0), np.where(known, index, positions)
        for part, (sums, counts) in found.items():
            weight = times[part][begin : begin + len(count)]
            if weight.any():
                own = np.repeat(weight, count)
                sums += np.bincount(index, values * own, positions + 1)[:positions]
                counts += np.bincount(index, own, positions + 1)[:positions].astype(np.int64)
        begin += len(count)
    return found


def _positions(count: np.ndarray, positions: int) -> np.ndarray:
    """[items] the part of its list that each item is in, worked out once for each length of list that there is.

    count: [rows] items of each list.
    """
    there = np.bincount(count) > 0
    lengths, which = np.flatnonzero(there), (np.cumsum(there) - 1)[count]
    first = np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(first, lengths)
    parts = (positions * (2 * place + 1)) // np.repeat(2 * lengths, lengths)
    return parts[np.arange(count.sum()) + np.repeat(first[which] - (np.cumsum(count) - count), count)]


def differ(low: Any, high: Any) -> Any:
    """Whether rewards from `low` to `high` differ by more than rounding; numbers or arrays."""
    with np.errstate(over="ignore", invalid="ignore"):
        return high - low > SAME_REWARD * np.maximum(np.abs(low), np.abs(high))


def correct_above(record: Mapping[str, Any]) -> float:
    """The reward above which a rollout is right."""
    above = _settings(record).get("correct_above")
    return float(above) if isinstance(above, int | float) and not isinstance(above, bool) else CORRECT_ABOVE


def rewards_column(record: Mapping[str, Any]) -> str:
    """The column of rewards that the record names, else `rewards`."""
    return _rollout_columns(record)["rewards"][0]


def _settings(record: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = record.get("settings")
    return settings if isinstance(settings, Mapping) else {}


def _rollout_columns(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Candidates for the columns of rewards and of responses: those of the record, else their usual names."""
    said = _settings(record).get("columns")
    said = said if isinstance(said, Mapping) else {}  # a foreign record may mean something else by columns
    responses = [said[name] for name in ("response_ids", "responses") if isinstance(said.get(name), str)]
    rewards = said.get("rewards")
    return {
        "rewards": [rewards if isinstance(rewards, str) else "rewards"],
        "responses": responses or ["response_ids", "responses"],
    }


def _item(kind: Any) -> Any:
    """What a list type holds; null for other types."""
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(test(kind) for test in tests) else pa.null()


def _has_length(kind: Any) -> bool:
    """Whether it is a response: token ids, text, or a chat of messages whose content is text."""
    import pyarrow as pa

    item = _item(kind)
    return pa.types.is_integer(item) or is_text(kind) or (pa.types.is_struct(item) and _words(item) is not None)


def _words(message: Any) -> str | None:
    """The field of a chat message that holds its text: `content`, or ShareGPT's `value`; None where neither does."""
    fields = {field.name: field.type for field in message}
    return next((name for name in ("content", "value") if name in fields and is_text(fields[name])), None)


def _by_chunk(
    dataset: Dataset, name: str, measure: Callable[[Any], tuple[np.ndarray, ...]], parts: int
) -> list[np.ndarray]:
    found = [measure(lists) for lists in _chunks(dataset, name)]
    whole = [np.concatenate([np.empty(0), *(chunk[part] for chunk in found)]) for part in range(parts)]
    return [_of_view(dataset, values) for values in whole]


def _of_view(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """What was measured of all rows, of those of the dataset: gathering nested rows one by one takes minutes."""
    return values if dataset._indices is None else values[np.asarray(dataset._indices.column(0))]


def _chunks(dataset: Dataset, name: str) -> Iterator[Any]:
    """The column in pieces of `CHUNK_ROWS`: chunks of a table that are smaller are put together, larger ones cut."""
    import pyarrow as pa

    def joined(pieces: list[Any]) -> Any:
        return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)  # which copies one too

    waiting, rows, size = [], 0, 0
    for chunk in dataset.data.column(name).chunks:
        for start in range(0, len(chunk), CHUNK_ROWS):
            piece = chunk.slice(start, CHUNK_ROWS)
            if waiting and (rows + len(piece) > CHUNK_ROWS or size + piece.nbytes > CHUNK_BYTES):
                yield joined(waiting)
                waiting, rows, size = [], 0, 0
            waiting.append(piece)
            rows, size = rows + len(piece), size + piece.nbytes
    if waiting:
        yield joined(waiting)


def _of_rewards(lists: Any, above: float) -> tuple[np.ndarray, ...]:
    """Number of rewards, of those above `above`, and whether they differ: [rows] float64, NaN if any is not finite."""
    count, rewards = _flat(lists)
    values = _floats(rewards)
    values = np.where(np.isfinite(values), values, np.nan)
    low, high = _reduced(np.minimum, values, count), _reduced(np.maximum, values, count)
    right = _reduced(np.add, (values > above).astype(np.float64), count)
    known = np.isfinite(low)
    return tuple(np.where(known, part, np.nan) for part in (count, right, differ(low, high)))


def _of_responses(lists: Any) -> tuple[np.ndarray, ...]:
    """Mean length of a row's responses, [rows] float64; NaN where there are none, or one is null."""
    count, responses = _flat(lists)
    return (_reduced(np.add, _lengths(responses), count) / np.maximum(count, 1),)


def _lengths(values: Any) -> np.ndarray:
    """Token ids of each response, characters of each text, characters of each chat's messages together."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if is_text(values.type):
        return _floats(pc.utf8_length(values))  # type: ignore[attr-defined]
    if pa.types.is_struct(values.type):
        return _lengths(pc.struct_field(values, _words(values.type)))  # type: ignore[attr-defined]
    if pa.types.is_integer(_item(values.type)):
        return _lengths_of_lists(values)
    count, messages = _flat(values)
    return _reduced(np.add, _lengths(messages), count)


def _lengths_of_lists(lists: Any) -> np.ndarray:
    """[rows] float64, NaN for null."""
    import pyarrow.compute as pc

    return _floats(pc.list_value_length(lists))  # type: ignore[attr-defined]


def _flat(lists: Any) -> tuple[np.ndarray, Any]:
    """([rows] int64 items of each list, 0 for null; all items one after another)."""
    import pyarrow.compute as pc

    count = pc.fill_null(pc.list_value_length(lists), 0)  # type: ignore[attr-defined]
    return np.asarray(count).astype(np.int64), pc.list_flatten(lists)  # type: ignore[attr-defined]


def _floats(array: Any) -> np.ndarray:
    import pyarrow as pa

    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _reduced(operation: np.ufunc, values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The operation over each row's items; NaN for rows without any."""
    rows = count > 0
    result = np.full(len(count), np.nan)
    if rows.any():
        result[rows] = operation.reduceat(values, (np.cumsum(count) - count)[rows])
    return result


def baseline(strategy: str, measures: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float] | None:
    """(values, sign) that a baseline ranks by; None where nothing of the kind was measured, or it is no baseline."""
    names, sign = MEASURED.get(strategy, ((), 1.0))
    return next(((measures[name], sign) for name in names if name in measures), None)


def rank_by(strategy: str, scores: np.ndarray, measures: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the strategy ranks by, NaN where a row may not be kept."""
    found = baseline(strategy, measures)
    return scores if found is None else by_measure(scores, *found)


def by_measure(scores: np.ndarray, values: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """The values to rank by, the highest first; NaN for rows without a score."""
    return np.where(np.isnan(scores), np.nan, sign * values)
