"""What makes large selections quick changes none of their results: each way is held against a plain slow one."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Json, Value, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Scorer, plain, pool

import hf_curate.budgets
import hf_curate.hub.files
import hf_curate.hub.manifest
from hf_curate import select
from hf_curate.budgets import STRATEGIES, keep, parse_budget, preference, take
from hf_curate.errors import BudgetError
from hf_curate.hub.lines import BATCH_ROWS, batches, json_lines
from hf_curate.hub.manifest import digest_rows
from hf_curate.scored import column_of, groups_of
from hf_curate.stats import ascending, ranks

NAN, INF = float("nan"), float("inf")
NEAR = [0.0, -0.0, 1.0, np.nextafter(1.0, 2), np.nextafter(1.0, 0), -1.1e-16, 5e-324, 2.0**53, 65535.0, 65536.0, 1e150]
WHOLE = st.integers(-3, 3).map(float)
SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
DOUBLE = st.one_of(st.sampled_from(NEAR), st.floats(-1e150, 1e150))
FINITE = st.sampled_from([WHOLE, SINGLE, DOUBLE]).flatmap(lambda kind: st.lists(kind, max_size=40))
SCORES = st.lists(st.one_of(st.sampled_from([NAN, INF, 0.5, -0.0, 0.0]), WHOLE, SINGLE, DOUBLE), max_size=40)


# -- orders -----------------------------------------------------------------------------------------------------------


def slow_order(scores: list[float], groups: list[Any] | None = None) -> list[int]:
    """Best first, ties by row; in strata the s-th of a group's g rows at g / (2 s - 1), ties to the earlier group."""
    best = sorted(
        (row for row, score in enumerate(scores) if math.isfinite(score)), key=lambda row: (-scores[row], row)
    )
    if groups is None:
        return best
    places = [sum(groups[other] == groups[row] for other in best[:at]) for at, row in enumerate(best)]
    sizes = [sum(groups[other] == groups[row] for other in best) for row in best]
    keys = [
        (-size / (2 * place + 1), groups.index(groups[row]))
        for size, place, row in zip(sizes, places, best, strict=True)
    ]
    return [row for _, row in sorted(zip(keys, best, strict=True))]


@given(FINITE)
@settings(max_examples=150)
def test_values_are_sorted_and_ranked_as_a_stable_sort_of_doubles_does_it(values: list[float]) -> None:
    array = np.array(values)
    assert ascending(array).tolist() == sorted(range(len(values)), key=lambda row: (values[row], row))
    below = [sum(other < value for other in values) for value in values]
    same = [sum(other == value for other in values) for value in values]
    assert ranks(array).tolist() == [low + (count - 1) / 2 for low, count in zip(below, same, strict=True)]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_])
def test_numbers_of_any_type_are_sorted(kind: type) -> None:
    values = np.random.default_rng(0).integers(0, 2, 99).astype(kind)
    assert ascending(values).tolist() == np.argsort(values, kind="stable").tolist()
    big = np.array([2**53 + 1, 2**53, 2**53 + 1, 2**53])
    assert ascending(big).tolist() == [1, 3, 0, 2]


def test_values_beyond_a_hundred_whole_ones_and_beyond_16_bits_are_seen() -> None:
    for last in (0.5, 65_536.0, -1.0, 1e300, NAN):
        values = np.r_[np.arange(150.0)[::-1], last, 0.0]
        assert ascending(values).tolist() == np.argsort(values, kind="stable").tolist(), last


@given(SCORES, st.data())
@settings(max_examples=100)
def test_the_front_of_an_order_is_the_front_of_the_whole_order(scores: list[float], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)))
    most = data.draw(st.integers(1, len(scores) + 2))
    for strategy in STRATEGIES:
        whole = preference(np.array(scores), strategy=strategy, groups=groups, seed=4).tolist()
        front = preference(np.array(scores), strategy=strategy, groups=groups, seed=4, most=most).tolist()
        assert front == whole[:most], strategy
        some = preference(np.array(scores), strategy=strategy, groups=groups, seed=4, most=most, ordered=False)
        assert sorted(some.tolist()) == sorted(whole[:most]), strategy
        if strategy != "random":
            assert whole == slow_order(scores, groups if strategy == "stratified" else None), strategy


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint64, np.int32])
@pytest.mark.parametrize("spread", [1, 9])
def test_groups_are_numbered_by_first_appearance_whatever_their_numbers(kind: type, spread: int) -> None:
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(6), 10)).astype(kind) * kind(spread)
    scores = np.random.default_rng(2).integers(0, 9, 60).astype(float)
    expected = slow_order(scores.tolist(), groups.tolist())
    assert preference(scores, strategy="stratified", groups=groups).tolist() == expected
    if kind is not np.uint64:
        assert preference(scores, strategy="stratified", groups=groups - kind(3)).tolist() == expected


def test_more_strata_than_16_bits_count() -> None:
    groups = np.r_[np.arange(70_000), np.arange(70_000)]
    scores = np.r_[np.zeros(70_000), np.ones(70_000)]
    order = preference(scores, strategy="stratified", groups=groups, most=70_000)
    assert order.tolist() == list(range(70_000, 140_000))


# -- budgets ----------------------------------------------------------------------------------------------------------


def slow_keep(scores: list[float], wanted: int, tokens: list[int] | None) -> list[int]:
    kept, spent = [], 0
    for row in slow_order(scores):
        spent += tokens[row] if tokens else 1
        if spent > wanted:
            break
        kept.append(row)
    return kept


@given(SCORES.filter(lambda scores: any(map(math.isfinite, scores))), st.data())
@settings(max_examples=150)
def test_a_budget_keeps_the_rows_of_a_plain_loop(scores: list[float], data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.sampled_from([0, 1, 2, 50, 1000]), min_size=len(scores), max_size=len(scores)))
    wanted = data.draw(st.integers(1, 2000))
    for asked, paid in ((f"{wanted} tokens", tokens), (f"{wanted} rows", None)):
        expected = slow_keep(scores, wanted, paid)
        try:
            found = keep(np.array(scores), parse_budget(asked), None if paid is None else np.array(paid)).tolist()
        except BudgetError:
            assert not expected or (paid is None and wanted > len(slow_order(scores)))
        else:
            assert found == sorted(expected)


def test_a_first_guess_that_is_too_short_is_made_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    def counted(*args: Any, most: int | None, **options: Any) -> np.ndarray:
        asked.append(most)
        return preference(*args, most=most, **options)

    monkeypatch.setattr(hf_curate.budgets, "preference", counted)
    scores, tokens = np.arange(1000.0)[::-1], np.r_[np.ones(500), np.full(500, 1e6)]
    assert keep(scores, parse_budget("400 tokens"), tokens).tolist() == list(range(400))
    assert asked == [1, 4, 16, 64, 256, 1024]


@pytest.mark.parametrize("budget", ["3 tokens", "1 rows", "9 rows", "100%", "20 tokens", "1000 tokens"])
@pytest.mark.parametrize("lost", [(), (1,), (4,)])
def test_what_cannot_be_paid_is_refused_in_the_words_of_the_whole_order(budget: str, lost: tuple[int, ...]) -> None:
    scores, tokens = np.array([1.0, 2.0, NAN, 3.0, 5.0, 4.0]), np.full(6, 5.0)
    tokens[list(lost)] = NAN
    outcomes = []
    for call in (
        lambda: keep(scores, parse_budget(budget), tokens),
        lambda: np.sort(take(preference(scores), parse_budget(budget), len(scores), tokens)),
    ):
        try:
            outcomes.append(call().tolist())
        except BudgetError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


# -- rows in bulk -----------------------------------------------------------------------------------------------------


def slow_lines(rows: list[dict[str, Any]]) -> bytes:
    def other(value: Any) -> str:
        return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)

    return b"".join(
        json.dumps(row, sort_keys=True, ensure_ascii=False, default=other).encode() + b"\n" for row in rows
    )


TEXT = st.text(st.one_of(st.sampled_from('\n\r\t\b\f"\\%s{}, \x00\x1f\x7f\u2028é😀'), st.characters(codec="utf-8")))
VALUES = {
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.bool_(): st.booleans(),
    pa.null(): st.none(),
    pa.binary(): st.binary(),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(datetime.datetime(1900, 1, 1)),
    pa.decimal128(6, 2): st.integers(-999, 999).map(lambda cents: Decimal(cents) / 100),
    pa.list_(pa.string()): st.lists(TEXT, max_size=2),
    pa.struct({"b": pa.string(), "a": pa.list_(pa.float32())}): st.fixed_dictionaries(
        {"b": TEXT, "a": st.lists(st.floats(width=32), max_size=2)}
    ),
}


@given(st.dictionaries(TEXT, st.sampled_from(list(VALUES)), min_size=1, max_size=4), st.data())
@settings(max_examples=100)
def test_lines_of_json_are_those_of_one_row_after_another(
    columns: dict[str, pa.DataType], data: st.DataObject
) -> None:
    rows = data.draw(st.integers(0, 4))
    arrays = [
        pa.array(data.draw(st.lists(st.none() | VALUES[kind], min_size=rows, max_size=rows)), kind)
        for kind in columns.values()
    ]
    table = pa.Table.from_arrays(arrays, names=list(columns))
    assert json_lines(table) == slow_lines(table.to_pylist())


def test_names_of_columns_may_hold_what_templates_read() -> None:
    table = pa.table({name: ["%s", "%"] for name in ("%s", "100%", "%(a)d", '"{}"', "\n")})
    assert json_lines(table) == slow_lines(table.to_pylist())


def chunked(rows: int, sizes: Iterator[int]) -> Dataset:
    """Rows of an id, a text and a list in record batches of these sizes."""
    table = pa.table(
        {
            "id": list(range(rows)),
            "text": [f'"{i}"\n' if i % 7 else None for i in range(rows)],
            "steps": [[float(i)] * (i % 3) for i in range(rows)],
        }
    )
    pieces, at = [], 0
    while at < rows:
        size = next(sizes)
        pieces.append(table.slice(at, size))
        at += size
    return Dataset(pa.concat_tables(pieces) if pieces else table)


def views(data: Dataset) -> dict[str, Dataset]:
    rows = np.random.default_rng(3)
    some = np.flatnonzero(rows.random(len(data)) < 0.3)
    return {
        "all": data,
        "slice": data.select(range(5, len(data) - 5)),
        "some": data.select(some),
        "some of some": data.select(some).select(range(0, len(some), 2)),
        "twice": data.select(np.repeat(some, 2)),
        "shuffled": data.shuffle(seed=1),
        "none": data.select([]),
    }


@pytest.mark.parametrize("sizes", [(7, 0, 30, 1), (10_000,), (1000,)], ids=str)
@pytest.mark.parametrize("view", ["all", "slice", "some", "some of some", "twice", "shuffled", "none"])
def test_a_view_is_read_in_its_order_whatever_its_record_batches(sizes: tuple[int, ...], view: str) -> None:
    def again() -> Iterator[int]:
        while True:
            yield from sizes

    data = views(chunked(3000, again()))[view]
    columns = ["steps", "id"]
    tables = list(batches(data, columns))
    assert all(len(table) < 2 * BATCH_ROWS for table in tables)
    rows = data.select_columns(columns).to_list()
    assert [row for table in tables for row in table.to_pylist()] == rows
    assert digest_rows(data, columns) == f"sha256:{hashlib.sha256(slow_lines(rows)).hexdigest()}"
    for name in data.column_names:
        assert column_of(data, name).to_pylist() == data[name][:], name


def test_no_columns_have_the_digest_of_nothing_in_any_view() -> None:
    for name, data in views(plain(range(40)).map(lambda row: row)).items():
        assert digest_rows(data, []) == f"sha256:{hashlib.sha256().hexdigest()}", name
    kept = select(plain([3.0, 1.0, 2.0]).remove_columns("prompt"), "score", 2)
    assert kept.indices.tolist() == [0, 2]


# -- what an account says ---------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.none() | st.sampled_from(["", "a", "b", "a ", "é"]) | TEXT, min_size=1, max_size=30), st.data())
def test_repeated_prompts_are_those_of_a_dictionary(prompts: list[str | None], data: st.DataObject) -> None:
    pool_of = Dataset.from_dict(
        {"prompt": prompts, "completion": ["c"] * len(prompts), "score": [1.0] * len(prompts)},
        features=Features({"prompt": Value("string"), "completion": Value("string"), "score": Value("float32")}),
    )
    order = data.draw(st.permutations(range(len(prompts))))
    told = [prompt for prompt in prompts if prompt]
    for given_rows in (pool_of, pool_of.select(order)):
        rows = select(given_rows, "score", 1).manifest["rows"]
        assert rows["duplicate_prompts"] == len(told) - len(set(told))


def test_prompts_that_are_stored_as_json_are_compared_as_what_they_hold() -> None:
    asked = [[{"role": "user", "content": text}] for text in ("a", "b", "a")]
    chats = [[*chat, {"role": "assistant", "content": str(i)}] for i, chat in enumerate(asked)]
    for features in (Features({"messages": Json(), "score": Value("float32")}), None):
        data = Dataset.from_dict({"messages": chats, "score": [1.0, 2.0, 3.0]}, features=features)
        assert select(data, "score", 1).manifest["rows"]["duplicate_prompts"] == 1
    texts = Dataset.from_dict(
        {"prompt": [["a"], "a", ["a"]], "completion": ["c"] * 3, "score": [1.0] * 3},
        features=Features({"prompt": Json(), "completion": Value("string"), "score": Value("float32")}),
    )
    assert select(texts, "score", 1).manifest["rows"]["duplicate_prompts"] == 0


def test_reasons_are_counted_by_what_stands_before_the_colon() -> None:
    errors = ["", None, "no answer: x", "no answer: y", "too long", ": odd", ""]
    data = plain([1.0, None, None, None, None, None, 2.0]).rename_column("score", "m_score")
    data = data.add_column("m_error", errors)  # type: ignore[call-arg]
    failed = select(data, "m_score", 1).manifest["rows"]["failed"]
    assert failed == {"no answer": 2, "": 1, "null without a reason": 1, "too long": 1}


@pytest.mark.parametrize("budget", ["30%", "700 tokens"])
def test_a_view_is_chosen_from_as_its_copy_is(budget: str) -> None:
    scored = pool(300)
    for name, view in views(scored).items():
        if name == "none":
            continue
        copied = Dataset.from_list(view.to_list(), features=view.features)
        one, other = (select(data, Scorer(), budget) for data in (view, copied))
        assert one.indices.tolist() == other.indices.tolist(), name
        assert one.manifest == other.manifest, name
        assert one.dataset.to_list() == other.dataset.to_list(), name
        assert groups_of(view, "topic").tolist() == groups_of(copied, "topic").tolist(), name


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rng, rows = np.random.default_rng(0), 1_000_000
    table = pa.table(
        {
            "id": np.arange(rows),
            "group": rng.integers(0, 100, rows),
            "grace_value": rng.normal(size=rows).astype(np.float32),
            "grace_tokens": rng.integers(50, 4000, rows).astype(np.int32),
            "grace_loss": rng.random(rows).astype(np.float32),
            "grace_error": [""] * rows,
        }
    )
    path = tmp_path_factory.mktemp("million") / "table.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return Dataset.from_file(str(path))


@pytest.mark.parametrize("options", [{}, {"strategy": "stratified", "group": "group"}, {"budget": "200M tokens"}])
def test_a_million_rows_are_chosen_from_in_three_seconds_of_the_processor(
    million: Dataset, options: dict[str, Any]
) -> None:
    start = time.process_time()
    kept = select(million, "grace_value", **{"budget": "20%", **options})
    assert time.process_time() - start < 3.0
    assert len(kept) > 90_000


def watch(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, measure: Callable[[pa.Table], int]) -> list[int]:
    """What is measured of the table that each call of `place.name` is given last."""
    real, found = getattr(place, name), []

    def watched(*args: Any) -> Any:
        found.append(measure(args[-1]))
        return real(*args)

    monkeypatch.setattr(place, name, watched)
    return found


def test_kept_rows_are_neither_held_in_memory_nor_written_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words, before = tmp_path / "table.arrow", "x" * 2500, pa.total_allocated_bytes()
    with pa.ipc.new_stream(path, pa.schema({"text": pa.string(), "score": pa.float32()})) as writer:
        for start in range(0, 16_000, 1000):
            texts = [f"{i}{words}" for i in range(start, start + 1000)]
            scores = pa.array([i % 9 for i in range(1000)], pa.float32())
            writer.write_batch(pa.record_batch({"text": texts, "score": scores}))
    held = watch(monkeypatch, hf_curate.hub.manifest, "json_lines", lambda _: pa.total_allocated_bytes() - before)
    kept = select(Dataset.from_file(str(path)), "score", "80%")
    assert len(held) >= 6
    assert max(held) < 15 * 2**20 < 0.5 * path.stat().st_size
    pieces = watch(monkeypatch, pq.ParquetWriter, "write_table", lambda table: table["text"].num_chunks)
    kept.save(tmp_path / "saved", "c")
    assert 0 < sum(pieces) <= 32 < len(kept) == 12_800
    assert sorted(one.suffix for one in (tmp_path / "saved" / "c").iterdir()) == [
        *(".json", ".parquet"),
        *(".png", ".png"),  # of the scores and of the nested budgets
    ]


@pytest.mark.parametrize("view", ["slice", "some", "twice", "shuffled"])
def test_a_saved_view_has_the_rows_and_the_types_that_it_had(tmp_path: Path, view: str) -> None:
    data = views(pool(300).cast_column("topic", ClassLabel(names=["algebra", "geometry", "logic"])))[view]
    kept = select(data, Scorer(), "40%")
    kept.save(tmp_path / "saved", "c")
    again = load_dataset(str(tmp_path / "saved"), "c", split="train", cache_dir=str(tmp_path / "cache"))
    assert again.to_list() == kept.dataset.to_list()  # type: ignore[union-attr]
    assert again.features == kept.dataset.features  # type: ignore[union-attr]
