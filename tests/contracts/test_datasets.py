"""What we rely on in `datasets`. A failure here names the assumption that a new version broke."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.fingerprint import Hasher
from datasets.formatting.formatting import LazyBatch, LazyRow
from tiny import run_script

ROWS = {"text": ["a", "bb", "ccc"], "chat": [[{"role": "user", "content": "x"}], [], None]}


@pytest.fixture
def pool() -> Dataset:
    return Dataset.from_dict(ROWS)


def test_map_passes_a_lazy_row_or_a_lazy_batch(pool: Dataset) -> None:
    seen: list[Any] = []
    pool.map(lambda rows: seen.append(rows))
    pool.map(lambda rows: seen.append(rows), batched=True)
    assert [type(rows) for rows in seen] == [LazyRow] * 3 + [LazyBatch]
    assert all(isinstance(rows, Mapping) for rows in seen)
    assert list(seen[0]) == ["text", "chat"]
    assert seen[0]["chat"] == ROWS["chat"][0]
    assert seen[-1]["text"] == ROWS["text"]
    assert seen[-1]["chat"] == ROWS["chat"]


def test_an_iterable_map_passes_plain_dicts_of_values_or_lists(pool: Dataset) -> None:
    seen: list[Any] = []

    def note(rows: Any) -> Any:
        seen.append(rows)
        return rows

    list(pool.to_iterable_dataset().map(note))
    list(pool.to_iterable_dataset().map(note, batched=True))
    assert [type(rows) for rows in seen] == [dict] * 4
    assert seen[0]["text"] == "a"
    assert seen[-1]["text"] == ["a", "bb", "ccc"]


def test_the_rank_comes_after_the_rows(pool: Dataset) -> None:
    seen: list[tuple[Any, ...]] = []
    pool.map(lambda *given: seen.append(given), batched=True, with_rank=True)
    assert [len(given) for given in seen] == [2]
    assert isinstance(seen[0][0], LazyBatch)
    assert seen[0][1] in (None, 0)


def test_numpy_float32_is_inferred_as_float32_and_python_floats_are_not(pool: Dataset) -> None:
    def typed(rows: Any) -> dict[str, Any]:
        few = np.zeros(2, dtype=np.float32)
        return {"one": np.float32(1), "list": few, "python": 1.0, "count": np.int32(3)}

    found = pool.map(typed, remove_columns=pool.column_names).features
    expected = {"one": Value("float32"), "list": List(Value("float32")), "count": Value("int32")}
    assert found == Features({**expected, "python": Value("float64")})
    batch = pool.map(lambda rows: {name: [v] * 3 for name, v in typed(rows).items()}, batched=True)
    assert {name: batch.features[name] for name in found} == dict(found)


def test_nulls_after_values_keep_the_type_and_nulls_before_lose_the_run(pool: Dataset) -> None:
    def late(row: Any, index: int) -> dict[str, Any]:
        return {"score": None if index == 2 else np.float32(1), "list": None if index == 2 else np.ones(1, np.float32)}

    def early(row: Any, index: int) -> dict[str, Any]:
        return late(row, 2 - index)

    scored = pool.map(late, with_indices=True, writer_batch_size=1)
    assert scored["score"][:] == [1.0, 1.0, None]
    assert scored.features["list"] == List(Value("float32"))
    with pytest.raises(TypeError, match=r"features="):
        pool.map(early, with_indices=True, writer_batch_size=1)
    added = {"score": Value("float32"), "list": List(Value("float32"))}
    features = Features({**pool.features, **added})
    scored = pool.map(early, with_indices=True, writer_batch_size=1, features=features)
    assert scored.features == features
    assert scored["score"][:] == [None, 1.0, 1.0]


def test_columns_that_are_null_throughout_keep_the_features_that_are_given(pool: Dataset) -> None:
    features = Features({**pool.features, "score": Value("float32"), "list": List(Value("float32"))})
    scored = pool.map(lambda row: {"score": None, "list": None}, features=features)
    assert scored.features == features
    assert scored["score"][:] == [None] * 3
    assert scored["list"][:] == [None] * 3


def test_features_of_an_iterable_map_are_unknown_unless_given(pool: Dataset) -> None:
    stream = pool.to_iterable_dataset()
    assert stream.map(lambda row: {"score": 1.0}).features is None
    features = Features({**pool.features, "score": Value("float32")})
    assert stream.map(lambda row: {"score": None}, features=features).features == features


class Stateful:
    """Hashed by what `__getstate__` returns."""

    def __init__(self, what: Any, ignored: Any) -> None:
        self.what, self.ignored = what, ignored

    def __getstate__(self) -> dict[str, Any]:
        return {"what": self.what}

    def __call__(self, row: Any) -> dict[str, Any]:
        return {"score": 1.0}


CALLS: list[int] = []


class Counting(Stateful):
    def __call__(self, row: Any) -> dict[str, Any]:
        CALLS.append(1)
        return super().__call__(row)


def test_a_callable_object_is_hashed_by_its_state() -> None:
    assert Hasher.hash(Stateful(1, object())) == Hasher.hash(Stateful(1, object()))
    assert Hasher.hash(Stateful(1, None)) != Hasher.hash(Stateful(2, None))


def test_the_fingerprint_follows_the_state_and_the_batch_size(pool: Dataset) -> None:
    def fingerprint(what: int, **options: Any) -> str:
        return pool.map(Stateful(what, object()), **options)._fingerprint

    assert fingerprint(1) == fingerprint(1)
    assert fingerprint(1) != fingerprint(2)
    assert fingerprint(1) != fingerprint(1, batch_size=7)


def test_a_dataset_from_a_file_is_cached_and_one_in_memory_is_not(tmp_path: Path, pool: Dataset) -> None:
    CALLS.clear()
    pool.to_parquet(tmp_path / "pool.parquet")
    stored = load_dataset("parquet", data_files=str(tmp_path / "pool.parquet"), split="train")
    for _ in range(2):
        stored.map(Counting(1, None))
    assert len(CALLS) == 3
    for _ in range(2):
        pool.map(Counting(1, None))
    assert len(CALLS) == 9


TRAVEL = """
import json, os

if __name__ == "__main__":
    from datasets import Dataset
    from multiprocess.reduction import ForkingPickler

    class Traveller:
        def __init__(self, how):
            self.how = how
        def __getstate__(self):
            return {"how": "by its state"}
        def __call__(self, row):
            return {"how": self.how, "pid": os.getpid()}

    ForkingPickler.register(Traveller, lambda one: (Traveller, (one.how + ", registered",)))
    pool = Dataset.from_dict({"n": [1, 2]})
    found = {}
    for workers in (None, 1, 2):
        done = pool.map(Traveller("made here"), num_proc=workers)
        found[str(workers)] = [done["how"][:], os.getpid() in done["pid"][:]]
    print(json.dumps(found))
"""


def test_map_with_num_proc_pickles_the_object_by_the_registered_reduction_also_for_one_worker(
    tmp_path: Path,
) -> None:
    found = run_script(tmp_path, TRAVEL)
    assert found == {
        "None": [["made here"] * 2, True],
        "1": [["made here, registered"] * 2, False],
        "2": [["made here, registered"] * 2, False],
    }


def test_take_gives_the_first_row_of_either_kind_of_dataset(pool: Dataset) -> None:
    assert next(iter(pool.take(1)))["text"] == "a"
    assert next(iter(pool.to_iterable_dataset().take(1)))["text"] == "a"
    assert IterableDataset.from_generator(lambda: iter(())).features is None


def test_an_error_inside_map_comes_out_as_it_was_raised(pool: Dataset) -> None:
    class OursError(ValueError):
        pass

    def fail(row: Any) -> None:
        raise OursError("as it was")

    with pytest.raises(OursError, match="as it was"):
        pool.map(fail)
