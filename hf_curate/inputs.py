"""The rows that a command reads: a source, or an earlier run, whose account of its rollouts stays with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    from datasets import Dataset

ROLLED = ("responses", "response_ids", "rewards")
"""Roles of the columns that a run of rollouts fills under these names."""


@dataclass(frozen=True)
class Rows:
    """source: what records call the place where the rows came from first; rollouts: the record of what made the
    rollouts in them, None where that is not known; earlier: the columns that earlier runs added."""

    dataset: Dataset
    source: str
    rollouts: dict[str, Any] | None = None
    earlier: tuple[str, ...] = ()

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
    from hf_curate.sources import FORMS, check_local, public_name

    if run_folder(source) is not None:
        return
    if os.path.isdir(os.path.expanduser(source)):
        raise CurateError(
            f"{public_name(source)} holds no finished run (no run.json): give {FORMS}, or the folder of a run that "
            "hf-curate rollouts or hf-curate score finished."
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
