"""write_report(): a run, a saved config or a repo as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_curate.errors import CurateError, ManifestError
from hf_curate.report.explorer import Pool
from hf_curate.report.page import page

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.selection import Selection

FILE = "report.html"
BUDGET = "20%"


def write_report(
    target: str | Path,
    config_name: str | None = None,
    *,
    split: str | None = None,
    revision: str | None = None,
    budget: str | int | None = None,
    rows: int = 12,
    seed: int = 0,
    out: str | Path | None = None,
) -> Path:
    """Writes a report: plots, and rows to look at with their steps coloured by score.

    Unlike a card it holds text of rows. It is one HTML file without scripts, which loads nothing.

    Args:
        target: the folder of a finished run, whose dropped rows are shown too; a folder that `save` wrote, or a repo.
        config_name: of a folder or repo; may be left out of a folder with one config.
        split, revision: as `load_curated` takes them.
        budget: of a run: what would be kept of it, the top "20%" unless told otherwise.
        rows: rows under each heading (best, worst, borderline, random).
        seed: of the random rows.
        out: the file; None is report.html in the folder, or here for a repo.

    Returns:
        The file.

    Raises:
        CurateError: there is nothing to show, or the file cannot be written.
    """
    from hf_curate.runs.stored import PLAN_FILE, RECORD_FILE

    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise CurateError(f"rows={rows!r} must be a whole number from 1 on.")
    path = Path(target).expanduser()
    if (path / RECORD_FILE).is_file() or (path / PLAN_FILE).is_file():
        if config_name is not None:
            raise CurateError(f"config={config_name!r} is of saved folders and repos, and {path.name!r} is a run.")
        pool, title = _of_run(path, budget), f"Run {path.resolve().name}"
    else:
        if budget is not None:
            raise CurateError(f"budget={budget!r} is for the folder of a run: a config is what was kept already.")
        pool, title = _of_config(target, config_name, split, revision)
    place = Path(out).expanduser() if out is not None else (path / FILE if path.is_dir() else Path(FILE))
    return _written(place, page(pool, title, rows, seed))


def report_of(scored: Dataset, picked: Selection, title: str, out: Path, rows: int = 12, seed: int = 0) -> Path:
    """The same for a selection whose scored dataset is at hand."""
    return _written(out, page(_whole(scored, picked), title, rows, seed))


def _whole(scored: Dataset, picked: Selection) -> Pool:
    kept = np.zeros(len(scored), dtype=bool)
    kept[picked.indices] = True
    return Pool(scored, picked.manifest, kept, np.arange(len(scored)), whole=True)


def _of_run(folder: Path, budget: str | int | None) -> Pool:
    from hf_curate.runs.stored import load_run
    from hf_curate.selection import select

    run = load_run(folder)
    picked = select(run.dataset, run, BUDGET if budget is None else budget, source=run.source)
    return _whole(run.dataset, picked)


def _of_config(
    target: str | Path, config_name: str | None, split: str | None, revision: str | None
) -> tuple[Pool, str]:
    from hf_curate.hub.load import check_repo_id, curated_configs, load_curated

    path = Path(target).expanduser()
    if not path.is_dir():
        check_repo_id(str(target))
    if config_name is None:
        configs = list(curated_configs(path)) if path.is_dir() else []
        if len(configs) != 1:
            place = repr(path.name) if path.is_dir() else str(target)[:80]
            there = f"; there are: {', '.join(map(repr, configs)) or 'none'}" if path.is_dir() else ""
            raise ManifestError(f"which config of {place}? Name it with config_name= (--config){there}.")
        config_name = configs[0]
    picked = load_curated(target, config_name, split=split, revision=revision)
    rows = picked.indices if len(picked.indices) == len(picked.dataset) else np.arange(len(picked.dataset))
    kept = np.ones(len(picked.dataset), dtype=bool)
    place = path.resolve().name if path.is_dir() else str(target)
    return Pool(picked.dataset, picked.manifest, kept, rows, whole=False), f"{config_name} of {place}"


def _written(place: Path, text: str) -> Path:
    try:
        place.write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise CurateError(f"{place.name!r} cannot be written ({error.strerror}): give another file.") from error
    return place
