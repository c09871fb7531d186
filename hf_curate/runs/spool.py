"""A stream, read once into the folder of a run; from then on it is a dataset in a file like any other.

rows/rows.arrow   the rows, written some at a time, mapped into memory when they are read
rows/rows.json    how many there are, their types, a digest of the first of them, where they came from
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError, ScoreError
from hf_curate.runs.calling import features_of
from hf_curate.runs.digest import table_digest
from hf_curate.runs.folder import ROWS, ROWS_FILES, RunFolder, check_place, shown_name, writing
from hf_curate.runs.progress import Progress
from hf_curate.runs.shards import write_whole
from hf_curate.sources import public_name

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger("hf_curate")

SCHEMA = "hf_curate/rows/1"
ROWS_FILE, RECORD_FILE = ROWS_FILES
TOGETHER = 1000
"""Rows that are in memory at a time; the types of a stream that does not say them are those of the first."""
FIRST_ROWS = 256
"""Rows by which a stream is known again."""
SHOWN_TYPES = 300
"""Characters of the types in an error."""


def read_once(
    stream: IterableDataset,
    folder: Path,
    *,
    source: str | None = None,
    scorer: Any = None,
    overwrite: bool = False,
) -> Dataset:
    """The rows of a stream, in the folder of a run: those that an earlier call has read, else read now, to the end.

    Rows of an earlier call are told in a warning: what has changed behind the first 256 of the stream is not seen.

    Args:
        stream: opened once. Reading takes memory for 1,000 rows, and ends when the stream does.
        folder: of the run; the rows go to `rows/` in it. What a reading that was cut short has left is read again.
        source: where the rows come from, for the record.
        scorer: what the rows are for; checks their columns before the rest is read.
        overwrite: read to the end whatever the folder holds, and replace it.

    Raises:
        ScoreError: the stream is empty, or its rows have no types in common.
        CurateError: the folder holds something else or the rows of another stream, or cannot be written. What the
            stream itself raises is raised as it is.
    """
    from datasets import Dataset, Features

    with closing(tables_of(stream)) as tables:
        first = next(tables, None)
        if first is None:
            raise ScoreError("the stream is empty: there is nothing to score.")
        head = Dataset(first)
        if scorer is not None:
            features_of(head, scorer)
        known = _Known(
            Features.from_arrow_schema(first.schema),
            table_digest(head.select(range(min(len(head), FIRST_ROWS)))),
            public_name(source),
        )
        check_place(folder)
        shown = shown_name(folder)
        with writing(shown):
            folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(folder)
        with run.held():
            held = _Held.read(folder / ROWS)
            others = [] if held is None else known.differences(held.known)
            if others and not overwrite:
                raise CurateError(
                    f"the folder {shown!r} holds the rows of another stream ({'; '.join(others)}): give another "
                    "folder, or overwrite=True (--overwrite)."
                )
            if held is None or overwrite:
                held = _read(first, tables, known, run)
            else:
                logger.warning(
                    "the run %r goes on with the %s rows that it has read from the stream; a stream is known by its "
                    "first %d rows, types and source alone: to read it again, overwrite=True (--overwrite).",
                    shown,
                    f"{held.rows:,}",
                    FIRST_ROWS,
                )
            return held.dataset(shown)


def head_of(stream: IterableDataset, rows: int) -> Dataset:
    """The first rows of a stream, in memory. ScoreError: there are none."""
    from datasets import Dataset, concatenate_datasets

    with closing(tables_of(stream.take(rows))) as tables:
        found = [Dataset(table) for table in tables]
    if not found:
        raise ScoreError("the stream is empty: there is nothing to score.")
    return concatenate_datasets(found)


# -- reading ----------------------------------------------------------------------------------------------------------


def tables_of(stream: IterableDataset) -> Generator[pa.Table]:
    """The rows of a stream as tables of up to 1,000 rows and one schema, in which `datasets` finds its features.

    Streams of files are read as the tables that they hold; others row by row. Raises ScoreError for a row that does
    not fit the types that the stream says, or those of its first 1,000 rows.
    """
    from datasets import Features
    from datasets.table import table_cast

    features, plain = stream.features, stream.with_format(None)
    if features is not None and plain._ex_iterable.iter_arrow:
        for table in plain.with_format("arrow").iter(TOGETHER):
            yield table_cast(table, features.arrow_schema)
        return
    rows, at = iter(plain), 0
    while some := list(islice(rows, TOGETHER)):
        table = _table(some, at, features, stream.features is not None)
        features = features or Features.from_arrow_schema(table.schema)
        yield table
        at += len(some)


def _table(rows: Sequence[Mapping[str, Any]], at: int, features: Features | None, said: bool) -> pa.Table:
    """Some rows as a table. at: how many came before; features: of the stream so far; said: by the stream itself."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import table_cast

    names = dict.fromkeys(features if features is not None else (name for row in rows for name in row))
    for number, row in enumerate(rows, at):
        if other := next((name for name in row if name not in names), None):
            raise ScoreError(
                f"row {number:,} of the stream has a column {other!r}, and the rows before it have "
                f"{', '.join(names)}: give all rows the same columns, as stream.select_columns([...]) does."
            )
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        if features is not None and said:
            return pa.table(features.encode_batch(columns), schema=features.arrow_schema)
        table = Dataset.from_dict(columns).data.table
        return table if features is None else table_cast(table, features.arrow_schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        whose = "its own types" if said else "the types of the first rows"
        types = "one another" if features is None else f"{whose}, {_types(features)}"
        raise ScoreError(
            f"rows {at:,} to {at + len(rows) - 1:,} of the stream do not fit {types} ({why}): say the types, "
            "stream.cast(Features({...})), or mend the rows."
        ) from error


def _types(features: Features) -> str:
    from hf_curate.scored import type_name

    text = ", ".join(f"{name} {type_name(kind)}" for name, kind in features.items())
    return text if len(text) <= SHOWN_TYPES else f"{text[:SHOWN_TYPES]}…"


# -- what is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What a stream is known by: its types, a digest of its first 256 rows, and its source where that was said."""

    features: Features
    first_sha256: str
    source: str | None

    def differences(self, held: _Known) -> list[str]:
        """In what the stream differs from the one whose rows are held."""
        found = []
        if held.features != self.features:
            found.append(f"columns {_types(held.features)}, now {_types(self.features)}")
        elif held.first_sha256 != self.first_sha256:
            found.append(f"the first rows with the sha256 {held.first_sha256[:12]}, now {self.first_sha256[:12]}")
        if None not in (held.source, self.source) and held.source != self.source:
            found.append(f"source {held.source}, now {self.source}")
        return found


@dataclass(frozen=True)
class _Held:
    """The rows in a folder, as rows.json speaks of them."""

    folder: Path
    rows: int
    sha256: str
    known: _Known

    @classmethod
    def read(cls, folder: Path) -> _Held | None:
        """What the folder holds; None where rows were not read to the end."""
        from datasets import Features

        try:
            stored = json.loads((folder / RECORD_FILE).read_bytes())
            if stored["schema"] != SCHEMA or (folder / ROWS_FILE).stat().st_size != stored["bytes"]:
                return None
            known = _Known(Features.from_dict(stored["features"]), stored["first_rows_sha256"], stored["source"])
            return cls(folder, stored["rows"], stored["sha256"], known)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def dataset(self, shown: str) -> Dataset:
        """The rows, mapped into memory. CurateError: the file is not what was written."""
        import pyarrow as pa
        from datasets import Dataset

        try:
            dataset = Dataset.from_file(str(self.folder / ROWS_FILE))
        except (OSError, pa.ArrowException) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise CurateError(
                f"{ROWS}/{ROWS_FILE} of the run {shown!r} cannot be read ({why}): read the stream again, "
                "overwrite=True (--overwrite)."
            ) from error
        dataset._fingerprint = self.sha256[:16]  # of `datasets`' own the file's time is a part
        return dataset


def _read(first: pa.Table, tables: Iterator[pa.Table], known: _Known, run: RunFolder) -> _Held:
    """Reads a stream to its end, then replaces what was there. The record comes last: no rows count without it."""
    folder = run.path / ROWS
    unfinished, rows = folder / f".{ROWS_FILE}", 0
    progress = Progress(None, 0, None, "reading the stream")
    try:
        with writing(run.shown):
            folder.mkdir(exist_ok=True)
        for table in _written(chain([first], tables), first.schema, unfinished, run.shown):
            rows += len(table)
            progress.add(len(table))
        with writing(run.shown):
            with open(unfinished, "rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            record = {
                "schema": SCHEMA,
                "rows": rows,
                "bytes": unfinished.stat().st_size,
                "sha256": digest,
                "features": known.features.to_dict(),
                "first_rows_sha256": known.first_sha256,
                "source": known.source,
            }
            (folder / RECORD_FILE).unlink(missing_ok=True)
            unfinished.replace(folder / ROWS_FILE)
            write_whole(folder / RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        progress.close()
    return _Held(folder, rows, digest, known)


def _written(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, shown: str) -> Iterator[pa.Table]:
    """The tables, each when it is in the file. What the stream raises is not taken for the disk's."""
    import pyarrow as pa

    with writing(shown):
        file = open(path, "wb")  # noqa: SIM115
    try:
        with writing(shown):
            writer = pa.ipc.new_stream(file, schema)
        for table in tables:
            with writing(shown):
                writer.write_table(table, max_chunksize=TOGETHER)
            yield table
        with writing(shown):
            writer.close()
            file.close()
    finally:
        with suppress(OSError):  # after an error what is left in the buffer may fail once more
            file.close()
