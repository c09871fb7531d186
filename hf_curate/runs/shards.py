"""A run in shards: the plan (which rows, in which batches) and the parts that finished shards leave behind.

A part is a parquet file of row numbers and score columns, and beside it a done marker with its checksum. Both are
written to a temporary name and renamed, so a shard is either done or not there: what is cut short is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"
"""The column of a part that holds the rows' places in the dataset, int64."""
MOST_SHARDS = 10_000
"""A shard is one batch, and more of them only in runs that would have more shards than this."""


@dataclass(frozen=True)
class Plan:
    """Which rows are scored together: shard i holds the rows from i * shard_rows on, and is read in batches of
    batch_rows that never cross into the next shard. And the threads of each process that scores them: sums depend on
    how they are split."""

    rows: int
    shard_rows: int
    batch_rows: int
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "batch_rows", "shard_rows", "threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CurateError(f"{name}={value!r} must be a whole number from 1 on.")

    @classmethod
    def of(cls, rows: int, batch_rows: int, shard_rows: int | None = None, threads: int = 1) -> Plan:
        """The plan for so many rows. shard_rows None: one batch a shard, which is minutes of work at most, and in a
        long run so many batches that there are 10,000 shards at most."""
        if shard_rows is not None:
            return cls(rows, shard_rows, batch_rows, threads)
        one = cls(rows, batch_rows, batch_rows, threads)
        return cls(rows, batch_rows * -(-one.shards // MOST_SHARDS), batch_rows, threads)

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard(self, number: int) -> range:
        """The rows of one shard, in order."""
        start = number * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    def batches(self, number: int) -> list[range]:
        """The rows of one shard as they are handed to the scorer."""
        rows = self.shard(number)
        return [rows[start : start + self.batch_rows] for start in range(0, len(rows), self.batch_rows)]

    def record(self) -> dict[str, int]:
        return {
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "batch_rows": self.batch_rows,
            "shards": self.shards,
            "threads": self.threads,
        }


class DamagedPartError(Exception):
    """A part, or its marker, is not what was written; the text says in what."""


class Parts:
    """The finished shards of a run, as files in one folder.

    Args:
        folder: where they lie; made with the first of them.
        plan: which rows they hold.
        key: what tells this run from every other; a marker with another key belongs to another run.
    """

    def __init__(self, folder: Path, plan: Plan, key: str) -> None:
        self.folder = folder
        self.plan = plan
        self.key = key

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def _marker(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def write(self, number: int, scores: pa.Table, failed: int) -> None:
        """Keeps the score columns of one shard, in the order of its rows; `failed` of them are without a score.

        Raises OSError. The file is on the disk before its marker is there. The marker is not waited for: one that a
        power cut takes along means that the shard is done again.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = self.plan.shard(number)
        table = scores.add_column(0, pa.field(ROW, pa.int64()), pa.array(rows, pa.int64()))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        marker = {
            "run": self.key,
            "rows": [rows.start, rows.stop],
            "failed": failed,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        self.folder.mkdir(exist_ok=True)
        write_whole(self._path(number), data)
        write_whole(self._marker(number), json.dumps(marker).encode(), sync=False)

    def failed(self, number: int) -> int | None:
        """How many rows of a finished shard have no score; None for one that was not begun. Raises
        DamagedPartError."""
        if not self._marker(number).exists():
            if self._path(number).exists():
                raise DamagedPartError("it was cut short before its marker was written")
            return None
        return self._checked(number)[1]

    def read(self, number: int) -> pa.Table:
        """The score columns of a finished shard. Raises DamagedPartError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = pa.BufferReader(self._checked(number)[0])
        return pq.ParquetFile(data).read(use_threads=False).drop_columns([ROW])  # read_table takes ten times as long

    def _checked(self, number: int) -> tuple[bytes, int]:
        """The bytes of a part, if they are those that its marker speaks of, and how many of its rows failed."""
        marker, rows = self._read_marker(number), self.plan.shard(number)
        if marker.get("run") != self.key or marker.get("rows") != [rows.start, rows.stop]:
            raise DamagedPartError("its marker is that of another run")
        try:
            data = self._path(number).read_bytes()
        except FileNotFoundError:
            raise DamagedPartError("its file is missing") from None
        except OSError as error:
            raise DamagedPartError(f"its file cannot be read ({error.strerror})") from error
        if len(data) != marker.get("bytes"):
            raise DamagedPartError(f"its file has {len(data):,} bytes, and its marker says {marker.get('bytes'):,}")
        found = hashlib.sha256(data).hexdigest()
        if found != marker.get("sha256"):
            raise DamagedPartError(
                f"its file fails its checksum (sha256 {found[:12]}, its marker says {str(marker.get('sha256'))[:12]})"
            )
        return data, marker["failed"]

    def _read_marker(self, number: int) -> dict[str, Any]:
        try:
            marker = json.loads(self._marker(number).read_bytes())
        except (OSError, ValueError, RecursionError):
            marker = None
        if isinstance(marker, dict) and all(type(marker.get(name)) is int for name in ("failed", "bytes")):
            return marker
        raise DamagedPartError("its marker cannot be read")

    def digest(self) -> str:
        """sha256 over the checksums of all parts, which are all there. Raises DamagedPartError."""
        digest = hashlib.sha256()
        for number in range(self.plan.shards):
            digest.update(str(self._read_marker(number).get("sha256")).encode())
        return digest.hexdigest()

    def clear(self) -> None:
        """Forgets all parts, markers first: what a kill leaves behind is a run with fewer parts."""
        self.sweep()
        for path in (*self.folder.glob("[0-9]*.json"), *self.folder.glob("[0-9]*.parquet")):
            path.unlink()
        with suppress(OSError):  # it is not there, or holds somebody's file
            self.folder.rmdir()

    def sweep(self) -> None:
        """Removes what a write that was cut short has left."""
        for path in self.folder.glob(".[0-9]*"):
            path.unlink(missing_ok=True)

    def tables(self, rows: range) -> Iterator[pa.Table]:
        """The score columns of the rows of whole shards, a table for each shard. Raises DamagedPartError."""
        for number in range(rows.start // self.plan.shard_rows, -(-rows.stop // self.plan.shard_rows)):
            yield self.read(number)


def any_done(folder: Path) -> bool:
    """Whether a folder of parts holds a shard that was finished."""
    return next(folder.glob("[0-9]*.json"), None) is not None


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a file under a temporary name, waits until it is on the disk, and renames it. Raises OSError; nothing of
    it stays then."""
    unfinished = path.with_name(f".{path.name}")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
