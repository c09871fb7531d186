"""A finished run read back from its folder."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    from datasets import Dataset, Features

SCHEMA = "hf_curate/run/1"
RECORD_FILE = "run.json"
SCORES_FILE = "scored.parquet"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Run:
    """A finished run read back from its folder. Stands in for the scorer in `select(run.dataset, run, ...)`."""

    dataset: Dataset
    stored: dict[str, Any]

    @property
    def source(self) -> str | None:
        return self.stored["source"]

    @property
    def fingerprint(self) -> str | None:
        """Of the dataset that was scored."""
        return self.stored.get("fingerprint")

    @property
    def overlap(self) -> float | None:
        """Spearman of the score with the token overlap of steps and answer, measured when the run was scored."""
        return self.stored.get("overlap")

    @property
    def columns(self) -> Features:
        from datasets import Features

        return Features({name: self.dataset.features[name] for name in self.stored["score_columns"]})

    @property
    def column(self) -> str:
        return self.stored["scorer"]["column"]

    @property
    def identity(self) -> str:
        return self.stored["scorer"]["identity"]

    def record(self) -> dict[str, Any]:
        return self.stored["scorer"]

    def __call__(self, rows: Any) -> Any:
        raise CurateError("a stored run cannot score rows: build the scorer again.")


def load_run(folder: str | Path) -> Run:
    """Reads what `score(..., out=folder)` wrote."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    path = Path(folder).expanduser()
    stored = load_record(path)
    try:
        dataset = load_dataset("parquet", data_files=glob.escape(str(path / SCORES_FILE)), split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise CurateError(
            f"{SCORES_FILE} of the run {path.name!r} cannot be read ({type(error).__name__}): score again with "
            "overwrite=True (--overwrite)."
        ) from error
    lacking = [name for name in stored["score_columns"] if name not in dataset.column_names]  # type: ignore[union-attr]
    if stored["rows"] != len(dataset) or lacking:  # type: ignore[arg-type]
        raise CurateError(
            f"{RECORD_FILE} of the run {path.name!r} speaks of {stored['rows']!r} rows with the columns "
            f"{', '.join(stored['score_columns'])}, and {SCORES_FILE} has {len(dataset):,} rows"  # type: ignore[arg-type]
            + (f" without {', '.join(lacking)}" if lacking else "")
            + ": score again with overwrite=True (--overwrite)."
        )
    return Run(dataset, stored)  # type: ignore[arg-type]


def load_record(folder: Path) -> dict[str, Any]:
    """What run.json holds, checked for what this room relies on."""
    if (folder / PLAN_FILE).exists() and not (folder / RECORD_FILE).exists():
        raise CurateError(
            f"the run {folder.name!r} is not finished: call score(..., out=), or hf-curate score --out, as it was "
            "begun, and it goes on."
        )
    try:
        stored = json.loads((folder / RECORD_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CurateError(
            f"{folder.name!r} is not a run folder: its {RECORD_FILE} cannot be read ({type(error).__name__}). "
            "Make one: score(..., out=) or hf-curate score --out."
        ) from error
    schema = stored.get("schema") if isinstance(stored, dict) else None
    if schema != SCHEMA:
        raise CurateError(
            f"{folder.name}/{RECORD_FILE} has the schema {str(schema)[:60]!r}; this version reads {SCHEMA!r}."
        )
    scorer, columns, source = stored.get("scorer"), stored.get("score_columns"), stored.get("source")
    whole = isinstance(scorer, dict) and all(
        isinstance(scorer.get(key), str) for key in ("name", "column", "identity")
    )
    whole = whole and isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not whole or not isinstance(source, str | None):
        raise CurateError(
            f"{folder.name}/{RECORD_FILE} is not complete: score again with overwrite=True (--overwrite)."
        )
    return stored
