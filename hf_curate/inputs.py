"""The rows that a command reads: a source, or an earlier run, whose account of its rollouts stays with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROLLED = ("responses", "response_ids", "rewards")
"""Roles of the columns that a run of rollouts fills under these names."""


@dataclass(frozen=True)
class Rows:
    """source: what records call the place where the rows came from first; rollouts: the record of what made the
    rollouts in them, None where that is not known; earlier: the columns that earlier runs added; stream: all the rows,
    where `dataset` holds the first of them."""

    dataset: Dataset
    source: str
    rollouts: dict[str, Any] | None = None
    earlier: tuple[str, ...] = ()
    stream: IterableDataset | None = None

    def rolled_by(self, columns: Mapping[str, str | None]) -> dict[str, Any] | None:
        """The record of the rollouts, unless the caller names other columns (by role) to read rollouts from."""
        others = [role for role in ROLLED if columns.get(role) not in (None, role)]
        return None if others else self.rollouts


def run_folder(source: str) -> Path | None:
    """The folder of the run that a source names, by itself or by its scored.parquet; None for other sources."""
    from hf_curate.runs.local import RECORD_FILE, SCORES_FILE

    path = Path(os.path.expanduser(source))
    folder = path.parent if path.name == SCORES_FILE else path
    return folder if os.path.isfile(folder / RECORD_FILE) else None


def check_rows(source: str) -> None:
    """Raises for a local file or run that is not there, before anything else is loaded."""
    from hf_curate.sources import FORMS, check_local

    if run_folder(source) is not None:
        return
    if os.path.isdir(os.path.expanduser(source)):
        raise CurateError(
            f"the folder {Path(source).name!r} holds no finished run (no run.json): give {FORMS}, or the folder of a "
            "run that hf-curate rollouts or hf-curate score finished."
        )
    check_local(source)


def load_rows(source: str) -> Rows:
    """The rows of a source, or those of a run with what is known of their origin."""
    from hf_curate.runs.local import load_run
    from hf_curate.sources import load_source, public_name

    folder = run_folder(source)
    if folder is None:
        return Rows(*load_source(source))
    run = load_run(folder)
    record = run.record()
    made = record.get("rollouts") or (record if isinstance(record.get("verifier"), Mapping) else None)
    known = isinstance(made, Mapping)
    earlier = tuple(dict.fromkeys((*run.columns, *(record.get("earlier_columns") or ()))))
    return Rows(run.dataset, run.source or public_name(source) or source, dict(made) if known else None, earlier)


FIRST_ROWS = 1000
"""Of a stream, to see what its columns are before all of it is read."""


def first_rows(source: str) -> Rows:
    """The first rows of a source, and the source as a stream."""
    from hf_curate.runs.spool import head_of
    from hf_curate.sources import load_stream

    _check_streams(source)
    with _reading(source):
        stream, name = load_stream(source)
        return Rows(head_of(stream, FIRST_ROWS), name, stream=stream)


def rows_read_once(source: str, folder: Path, scorer: Any = None, overwrite: bool = False) -> Rows:
    """The rows of a source that is read as a stream, once, into the folder of a run."""
    from hf_curate.runs.spool import read_once
    from hf_curate.sources import load_stream

    _check_streams(source)
    with _reading(source):
        stream, name = load_stream(source)
        return Rows(read_once(stream, folder, source=name, scorer=scorer, overwrite=overwrite), name)


def _check_streams(source: str) -> None:
    folder = run_folder(source)
    if folder is not None:
        raise CurateError(f"the rows of the run {folder.name!r} are in a file already: drop --streaming.")


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """What a source raises while it is read comes as an error of ours."""
    from datasets.exceptions import DatasetsError

    from hf_curate.sources import public_name

    try:
        yield
    except CurateError:
        raise
    except (OSError, ValueError, DatasetsError) as error:  # no connection, a file that is no parquet or JSON
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CurateError(f"{public_name(source)} cannot be read as a stream: {why}.") from error
