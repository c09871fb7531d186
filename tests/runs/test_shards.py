"""The plan of a run, and the parts that finished shards leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_curate.errors import CurateError
from hf_curate.runs.shards import MOST_SHARDS, DamagedPartError, Parts, Plan, any_done

SIZES = st.integers(1, 400)


@given(SIZES, SIZES, st.none() | SIZES)
def test_every_row_is_in_one_batch_of_one_shard(rows: int, batch_rows: int, shard_rows: int | None) -> None:
    plan = Plan.of(rows, batch_rows, shard_rows)
    shards = [plan.shard(number) for number in range(plan.shards)]
    assert [row for shard in shards for row in shard] == list(range(rows))
    assert all(0 < len(shard) <= plan.shard_rows for shard in shards)
    batches = [plan.batches(number) for number in range(plan.shards)]
    assert [[row for batch in found for row in batch] for found in batches] == [list(shard) for shard in shards]
    assert all(0 < len(batch) <= batch_rows for found in batches for batch in found)
    assert Plan(*(plan.record()[name] for name in ("rows", "shard_rows", "batch_rows"))) == plan


@given(st.integers(1, 10**9), st.integers(1, 5000))
def test_the_shards_that_nobody_asked_for_are_whole_batches_and_not_too_many(rows: int, batch_rows: int) -> None:
    plan = Plan.of(rows, batch_rows)
    assert plan.shard_rows % batch_rows == 0
    assert plan.shards <= MOST_SHARDS
    assert plan.shard_rows == batch_rows or rows > batch_rows * MOST_SHARDS
    assert plan.shard(plan.shards - 1).stop == rows


@given(SIZES, SIZES)
def test_batches_are_those_of_a_run_without_shards(rows: int, batch_rows: int) -> None:
    plan = Plan.of(rows, batch_rows)
    found = [batch for number in range(plan.shards) for batch in plan.batches(number)]
    assert found == [range(start, min(start + batch_rows, rows)) for start in range(0, rows, batch_rows)]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "8"])
@pytest.mark.parametrize("name", ["rows", "shard_rows", "batch_rows"])
def test_a_size_that_is_none_is_refused(name: str, value: object) -> None:
    sizes = {"rows": 10, "batch_rows": 4, "shard_rows": 8, name: value}
    with pytest.raises(CurateError, match=rf"{name}={value!r} must be a whole number from 1 on"):
        Plan.of(**sizes)  # type: ignore[arg-type]


# -- parts ------------------------------------------------------------------------------------------------------------

PLAN = Plan(10, 4, 2)
SCORES = pa.table({"value": pa.array([0.1, None, 0.3, 1e-40], pa.float32())})


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    made = Parts(tmp_path / "parts", PLAN, "one")
    made.write(1, SCORES, 1)
    return made


def test_a_part_is_row_numbers_and_scores_with_a_marker_beside_it(parts: Parts) -> None:
    assert sorted(path.name for path in parts.folder.iterdir()) == ["00001.json", "00001.parquet"]
    stored = pq.read_table(parts.folder / "00001.parquet")
    assert stored.column_names == ["row", "value"]
    assert stored.schema.field("row").type == pa.int64()
    assert stored["row"].to_pylist() == [4, 5, 6, 7]
    assert parts.read(1).equals(SCORES)
    assert (parts.failed(1), parts.failed(0)) == (1, None)
    marker = json.loads((parts.folder / "00001.json").read_bytes())
    assert (marker["rows"], marker["failed"], marker["run"]) == ([4, 8], 1, "one")


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def remarked(**changes: object) -> Callable[[Path], object]:
    return replaced("00001.json", lambda held: json.dumps({**json.loads(held), **changes}).encode())


def in_place_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (replaced("00001.parquet", lambda held: held[:-5]), r"has [\d,]+ bytes, and its marker says"),
    "longer": (replaced("00001.parquet", lambda held: held + b"x"), r"has [\d,]+ bytes, and its marker says"),
    "empty": (replaced("00001.parquet", lambda _: b""), "has 0 bytes"),
    "one bit": (replaced("00001.parquet", lambda held: bytes([held[0] ^ 1]) + held[1:]), "fails its checksum"),
    "gone": (lambda folder: (folder / "00001.parquet").unlink(), "its file is missing"),
    "not a file": (lambda folder: in_place_of(folder / "00001.parquet"), "its file cannot be read"),
    "no marker": (lambda folder: (folder / "00001.json").unlink(), "before its marker was written"),
    "an empty marker": (replaced("00001.json", lambda _: b""), "its marker cannot be read"),
    "half a marker": (replaced("00001.json", lambda held: held[:9]), "its marker cannot be read"),
    "a list": (replaced("00001.json", lambda _: b"[]"), "its marker cannot be read"),
    "no bytes": (remarked(bytes=None), "its marker cannot be read"),
    "failed is text": (remarked(failed="1"), "its marker cannot be read"),
    "other rows": (remarked(rows=[0, 4]), "that of another run"),
    "another run": (remarked(run="two"), "that of another run"),
    "no checksum": (remarked(sha256=None), "fails its checksum"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_says_what_is_wrong_with_it(damage: str, parts: Parts) -> None:
    harm, said = DAMAGE[damage]
    harm(parts.folder)
    with pytest.raises(DamagedPartError, match=said):
        parts.failed(1)
    with pytest.raises(DamagedPartError):
        parts.read(1)
    if damage == "not a file":
        (parts.folder / "00001.parquet").rmdir()
    parts.write(1, SCORES, 1)
    assert parts.failed(1) == 1
    assert parts.read(1).equals(SCORES)


def test_parts_are_forgotten_and_files_of_others_are_not(parts: Parts) -> None:
    (parts.folder / "notes.txt").write_text("mine")
    (parts.folder / ".00003.parquet").write_bytes(b"half")
    assert any_done(parts.folder)
    parts.clear()
    assert [path.name for path in parts.folder.iterdir()] == ["notes.txt"]
    assert not any_done(parts.folder)
    (parts.folder / "notes.txt").unlink()
    parts.clear()
    assert not parts.folder.exists()
    parts.clear()


def test_the_digest_of_parts_follows_what_is_in_them(tmp_path: Path) -> None:
    made = Parts(tmp_path / "parts", Plan(4, 4, 4), "one")
    found = []
    for scale in (1.0, 2.0, 1.0):
        made.write(0, pa.table({"value": pa.array([scale] * 4, pa.float32())}), 0)
        found.append(made.digest())
    assert found[0] == found[2] != found[1]
