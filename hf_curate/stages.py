"""The stages of a recipe, carried out one after the other; a stage whose output is there and matches is skipped.

A run matches if its folder holds a finished one of the same scorer over the same rows, whole; a config if its manifest
says the same selector, budget and source, agrees with its data, and nothing that it is chosen from was made anew; a
push if the repo holds the same shards, whose names end in a digest of their manifest.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_curate.errors import CurateError, ManifestError
from hf_curate.inputs import Rows, check_rows, load_rows, rows_read_once
from hf_curate.recipe import Recipe, Stage
from hf_curate.rollouts import command
from hf_curate.scoring import options_of, scorer_of

RUNS = ("rollouts", "score")
FAILED = 1
"""The exit code of a stage with `strict` that left rows without a score."""


def carry_out(recipe: Recipe, dry_run: bool = False) -> int:
    """Carries out the stages that have something to do, and says so of each.

    Returns 0, or 1 where a stage with `strict` has rows that failed; the stages after it are then left. dry_run: says
    what there would be to do, and does nothing.

    Raises:
        CurateError: as the stage does. The stages before it are done, and are skipped next time.
    """
    from hf_curate.runs.progress import no_bars

    _check(recipe.stages)
    stages, to_do = recipe.stages, set()
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.title}"
        new = any(_reads(stage, stages[before]) for before in to_do)
        with no_bars():
            there = None if new and (dry_run or stage.command == "select") else _there(stage)
        if there is not None:
            print(
                f"{title}: {'would be skipped' if dry_run else 'skipped'}, it is there{there and f' ({there})'}",
                flush=True,
            )
            if stage.command in RUNS and stage.arguments.strict and _failed(stage):
                return 0 if dry_run else FAILED
            continue
        to_do.add(number - 1)
        if dry_run and stage.command in RUNS and not new and not stage.arguments.overwrite:
            with no_bars():
                _check_same(stage)
        print(f"{title}: would run" if dry_run else title, flush=True)
        if not dry_run and (code := stage.arguments.run(stage.arguments)):
            return code
    return 0


def _reads(stage: Stage, before: Stage) -> bool:
    """Whether a stage reads what an earlier one writes."""
    if before.command in RUNS and stage.command in RUNS:
        read = (stage.arguments.source, getattr(stage.arguments, "validation", None))
        return any(source is not None and _inside(source, before.arguments.out) for source in read)
    if stage.command == "select":
        return before.command in RUNS and _inside(stage.arguments.run_folder, before.arguments.out)
    return before.command == "select" and _inside(stage.arguments.folder, before.arguments.out)


def _inside(path: str, folder: str) -> bool:
    return Path(path).expanduser().resolve().is_relative_to(Path(folder).expanduser().resolve())


# -- before the first stage -------------------------------------------------------------------------------------------


def _check(stages: Sequence[Stage]) -> None:
    """What can be refused before hours of sampling is refused before them: options, sources that are not there, and
    folders for runs that hold something else."""
    from hf_curate.runs.folder import check_place

    runs: list[Stage] = []
    for stage in stages:
        given = stage.arguments
        if stage.command in RUNS:
            for source in (given.source, getattr(given, "validation", None)):
                if source is not None and not any(_inside(source, before.arguments.out) for before in runs):
                    check_rows(source)
            check_place(Path(given.out).expanduser())
            runs.append(stage)
        if stage.command == "score":
            options_of(given)
        if stage.command == "rollouts":
            command.rollouts_of(given)


# -- what is there ----------------------------------------------------------------------------------------------------


def _there(stage: Stage) -> str | None:
    """A word on the output of a stage if it is what the stage would make; None if it has something to do."""
    if stage.command in RUNS:
        return _run_there(stage)
    return (_config_there if stage.command == "select" else _pushed)(stage.arguments)


def _run_there(stage: Stage) -> str | None:
    from hf_curate.runs.digest import table_digest
    from hf_curate.runs.folder import ROWS_DIGEST, Begun, RunFolder
    from hf_curate.runs.stored import RECORD_FILE, load_record
    from hf_curate.sources import public_name

    folder, given = Path(stage.arguments.out).expanduser(), stage.arguments
    if not (folder / RECORD_FILE).exists():
        return None
    try:
        record = load_record(folder)
    except CurateError:  # the stage itself says what is wrong with it
        return None
    try:
        rows = rows_read_once(given.source, folder) if given.streaming else load_rows(given.source)
    except CurateError:
        if not given.streaming:
            raise
        return None
    scorer, begun = _scorer(stage, rows), Begun.read(folder)
    other_shards = begun is not None and any(size != getattr(begun.plan, name) for name, size in _sizes(given).items())
    found = (record["scorer"]["identity"], record.get(ROWS_DIGEST), record["source"])
    asked = (scorer.identity, table_digest(rows.dataset), public_name(rows.source))
    if found != asked or other_shards or not RunFolder(folder).is_whole():
        return None
    return f"{record['scorer']['name']}, {record['rows']:,} rows, identity {found[0][:12]}"


def _check_same(stage: Stage) -> None:
    """Raises where the stage would: its folder holds a run of other settings or rows. A stream is not read for it."""
    from hf_curate.runs.folder import check_folder, check_place
    from hf_curate.sources import public_name

    given = stage.arguments
    folder = Path(given.out).expanduser()
    if not check_place(folder) or given.streaming:
        return
    rows = load_rows(given.source)
    scorer = _scorer(stage, rows)
    check_folder(folder, scorer, rows.dataset, given.overwrite, _sizes(given), public_name(rows.source))


def _sizes(given: argparse.Namespace) -> dict[str, int]:
    """What was asked of the plan."""
    asked = {name: getattr(given, name) for name in ("shard_rows", "threads")}
    return {name: size for name, size in asked.items() if size is not None}


def _scorer(stage: Stage, rows: Rows) -> Any:
    """The scorer of the stage, told of the rows."""
    from hf_curate.runs.calling import call_if_there, features_of

    rollouts = stage.command == "rollouts"
    scorer = command.rollouts_of(stage.arguments) if rollouts else scorer_of(stage.arguments)[0]
    features_of(rows.dataset, scorer)
    call_if_there(scorer, "expect", rows.dataset)
    return scorer


def _failed(stage: Stage) -> int:
    """Rows without a score in a finished run."""
    from hf_curate.runs.failures import failed_rows, tell
    from hf_curate.runs.stored import load_run

    run = load_run(stage.arguments.out)
    failures = failed_rows(run.dataset, run)
    tell(failures, len(run.dataset), False, None)
    return sum(failures.values())


def _config_there(arguments: argparse.Namespace) -> str | None:
    from hf_curate.hub.load import load_curated
    from hf_curate.hub.manifest import data_files, read_manifest
    from hf_curate.runs.stored import load_record

    run = load_record(Path(arguments.run_folder).expanduser())
    folder = Path(arguments.out).expanduser()
    path = folder / arguments.config / f"{arguments.split}.manifest.json"
    if not path.is_file() or not (folder / "README.md").is_file():
        return None
    try:
        manifest, readme = read_manifest(path), (folder / "README.md").read_text("utf-8", "replace")
        if not _says(manifest, arguments, run) or data_files(manifest) not in readme:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what data and manifest disagree about is a reason to write them again
            picked = load_curated(folder, arguments.config, split=arguments.split)
    except ManifestError:
        return None
    return None if picked.problems else f"{len(picked):,} of {manifest['rows']['in']:,} rows"


def _says(manifest: Mapping[str, Any], arguments: argparse.Namespace, run: Mapping[str, Any]) -> bool:
    """Whether a manifest is of this choice from this run."""
    from hf_curate.budgets import parse_budget

    selector, budget = manifest["selector"], manifest["budget"]
    source = manifest["source"] or {}
    found = (
        *(selector.get(name) for name in ("identity", "column", "strategy")),
        *(budget.get(name) for name in ("min_score", "group", "seed")),
        *(manifest["rows"].get("in"), source.get("fingerprint")),
    )
    least = arguments.min_score
    asked = (
        *(run["scorer"]["identity"], run["scorer"]["column"], arguments.strategy),
        *(None if least is None else float(least), arguments.group, arguments.seed),
        *(run["rows"], run.get("fingerprint")),
    )
    paid = arguments.budget is None or budget.get("asked") == parse_budget(arguments.budget).asked
    return found == asked and paid and _same_source(source, arguments.source or run["source"])


def _same_source(record: Mapping[str, Any], source: str | None) -> bool:
    """Whether a manifest's account of the source is that of this name; where a branch points now is not asked."""
    from hf_curate.sources import parse, public_name

    name = public_name(source)
    if name is None or record.get("id") == name:
        return (name is None) == (not record)
    try:
        parts = parse(name)
    except CurateError:
        return False
    revision = parts["revision"] or "main"
    return revision in (record.get("revision"), record.get("sha")) and all(
        record.get(key) == parts[key] for key in ("id", "config", "split")
    )


def _pushed(arguments: argparse.Namespace) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    from hf_curate.hub.files import staged_in
    from hf_curate.hub.load import curated_configs
    from hf_curate.hub.resolve import UNREACHABLE, check_token

    folder = Path(arguments.folder).expanduser()
    there = curated_configs(folder)
    wanted = arguments.config or list(there)
    if not wanted or any(name not in there for name in wanted):
        return None
    api = HfApi()
    check_token(api.endpoint, None)
    try:
        held = set(api.list_repo_files(arguments.repo_id, repo_type="dataset", revision=arguments.revision))
    except (*UNREACHABLE, HFValidationError):  # the push itself says what is wrong
        return None
    sent = {path for name in wanted for split in there[name] for path in staged_in(folder, name, split).files}
    return f"{len(wanted)} config{'' if len(wanted) == 1 else 's'}" if sent <= held else None
