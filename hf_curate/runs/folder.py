"""The folder of a run: what it was begun with, whether a call may go on in it, its log, and its files at the end.

run.json        the record of a finished run: scorer, source, rows
scored.parquet  the source's columns and the scores
plan.json       what the run was begun with: the plan, the scorer, a digest of the rows
recipe.yaml     what it was begun with as it was typed, for `hf-curate run`
log.txt         what was done, gone on with, done again, and what failed
parts/          the finished shards
rows/           the rows of a stream, which is read once
rollouts/       a run of its own: the rollouts that a scorer has made for its rows (validation_rollouts/ likewise)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError
from hf_curate.runs.calling import record_of
from hf_curate.runs.digest import table_digest
from hf_curate.runs.lock import LOCK_FILE, FolderLock
from hf_curate.runs.shards import Parts, Plan, any_done, write_whole
from hf_curate.runs.stored import PLAN_FILE, RECORD_FILE, SCORES_FILE, load_record

if TYPE_CHECKING:
    from datasets import Dataset

PLAN_SCHEMA = "hf_curate/plan/2"
LOG_FILE = "log.txt"
RECIPE_FILE = "recipe.yaml"
PARTS = "parts"
ROLLOUTS = "rollouts"
VALIDATION_ROLLOUTS = "validation_rollouts"
ROWS = "rows"
ROWS_FILES = ("rows.arrow", "rows.json")
BEFORE_THE_PLAN = {
    LOCK_FILE,
    f".{PLAN_FILE}",
    *(f"{ROWS}/{hidden}{name}" for name in ROWS_FILES for hidden in ("", ".")),
}
"""What a run that was killed before its plan may leave behind. Every other file of ours comes after plan.json."""
SHOWN = 60
"""Characters of a value in an error."""
DIFFERENCES = 3
SAID_ELSEWHERE = ("identity", "call")
"""Entries of a record that only repeat others."""
INSTEAD = "give another folder, or overwrite=True (--overwrite)."
SCORES_DIGEST = "scored_sha256"
ROWS_DIGEST = "rows_sha256"


@dataclass(frozen=True)
class Begun:
    """What a run is known by before its first row.

    scorer: its record, with its identity; rows_sha256: of the rows that it was begun with; conditions: what changes
    results by rounding alone, such as the version of torch; source: where the rows came from, where that was said.
    """

    plan: Plan
    scorer: dict[str, Any]
    rows_sha256: str
    conditions: dict[str, str]
    source: str | None = None

    @property
    def identity(self) -> str:
        return self.scorer["identity"]

    @property
    def key(self) -> str:
        """What marks the parts of this run: the first half of a sha256 over all that settles what is in them."""
        what = [self.plan.record(), self.identity, self.rows_sha256]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> bytes:
        record = {
            "schema": PLAN_SCHEMA,
            **self.plan.record(),
            ROWS_DIGEST: self.rows_sha256,
            "conditions": self.conditions,
            "source": self.source,
            "scorer": self.scorer,
        }
        return (json.dumps(record, indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Begun | None:
        """What the folder's run was begun with; None where that is not known."""
        try:
            stored = json.loads((folder / PLAN_FILE).read_bytes())
            if stored["schema"] != PLAN_SCHEMA or not isinstance(stored["scorer"]["identity"], str):
                return None
            plan = Plan(*(stored[name] for name in ("rows", "shard_rows", "batch_rows", "threads")))
            source = stored.get("source")
            return cls(plan, stored["scorer"], stored[ROWS_DIGEST], dict(stored["conditions"]), source)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None


def check_folder(
    folder: Path,
    scorer: Any,
    rows: Dataset | str,
    overwrite: bool,
    sizes: Mapping[str, int] | None = None,
    source: str | None = None,
) -> None:
    """The folder is new, empty, holds a run of the same scorer over the same rows, or one that may be replaced.

    Args:
        folder: given as `out=`.
        scorer: the scorer, ready to score (`expect` was called).
        rows: the dataset, or its `table_digest`.
        overwrite: whether a run of other settings may be replaced.
        sizes: `shard_rows`, `batch_rows` and `threads`, where they were asked for.
        source: where the rows come from, as a record calls it; two that are known must be the same, but for the commit
            of what are the same rows.

    Raises:
        CurateError: it is a file, holds something else, or a run that differs; with both values.
    """
    folder = folder.expanduser()
    names = check_place(folder)
    shown = shown_name(folder)
    if overwrite or (RECORD_FILE not in names and not any_done(folder / PARTS)):
        return
    digest = rows if isinstance(rows, str) else table_digest(rows)
    _check_same(folder, shown, scorer, digest, sizes or {}, source)


def check_place(folder: Path) -> set[str]:
    """The names in a folder that holds a run, or nothing. CurateError: it is a file, or holds something else, or
    nothing can be called so."""
    try:
        if not folder.resolve().exists():
            return set()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CurateError(f"out={_short(str(folder))} cannot be a folder ({why}): give another.") from error
    shown = shown_name(folder)
    if not folder.is_dir():
        raise CurateError(f"{shown!r} is a file, and out= takes a folder: give the run its own folder.")
    with writing(shown):
        names = {path.name for path in folder.iterdir()}
        found = names - {ROWS} | {f"{ROWS}/{path.name}" for path in (folder / ROWS).glob("*")}
    if found - BEFORE_THE_PLAN and not names & {RECORD_FILE, PLAN_FILE}:
        raise CurateError(f"the folder {shown!r} holds other files and no {RECORD_FILE}: give the run its own folder.")
    return names


def _check_same(
    folder: Path, shown: str, scorer: Any, digest: str, sizes: Mapping[str, int], source: str | None
) -> None:
    begun, known = Begun.read(folder), None
    if (folder / RECORD_FILE).exists():
        try:
            record = load_record(folder)
        except CurateError as error:
            raise CurateError(f"the folder {shown!r} holds a {RECORD_FILE} that cannot be read: {INSTEAD}") from error
        before, rows, held = record["scorer"], record["rows"], record.get(ROWS_DIGEST)
        known = record.get("source")
    elif begun is not None:
        before, rows, held, known = begun.scorer, begun.plan.rows, begun.rows_sha256, begun.source
    else:
        raise CurateError(f"the folder {shown!r} holds a {PLAN_FILE} that cannot be read: {INSTEAD}")
    if before["identity"] != scorer.identity:
        found = differences(before, record_of(scorer))
        found.append(f"identity {before['identity'][:12]}, now {scorer.identity[:12]}")
        raise CurateError(
            f"the folder {shown!r} holds a run of another scorer or other settings ({'; '.join(found)}): {INSTEAD}"
        )
    if held != digest:
        raise CurateError(
            f"the folder {shown!r} holds a run over other rows ({rows} rows with the sha256 {str(held)[:12]}, now "
            f"{digest[:12]}): {INSTEAD}"
        )
    if None not in (known, source) and _without_commit(known) != _without_commit(source):
        raise CurateError(
            f"the folder {shown!r} holds a run over rows of {known}, now of {source}: they are the same rows, and its "
            f"record can name one source. Say source={known!r} again, or {INSTEAD}"
        )
    for name, asked in sizes.items():
        if begun is not None and asked != getattr(begun.plan, name):
            raise CurateError(
                f"the folder {shown!r} holds a run with {name}={getattr(begun.plan, name)}, now {name}={asked}: leave "
                f"{name}= away to go on with it, {INSTEAD}"
            )


def _without_commit(source: str | None) -> str:
    """org/name@commit:config/split as org/name:config/split."""
    return re.sub(r"@[^:]*", "", str(source), count=1)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two records of scorers differ, at most three of it: "settings.alpha 0.7, now 0.1"."""
    one, other = _leaves(before), _leaves(now)
    told = [
        name for name in {**one, **other} if not name.startswith("direction.") and not name.endswith(SAID_ELSEWHERE)
    ]
    names = [name for name in told if one.get(name) != other.get(name)][:DIFFERENCES]
    return [f"{name} {_short(one.get(name))}, now {_short(other.get(name))}" for name in names]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    found = {}
    for key, inner in value.items():
        found |= _leaves(inner, f"{name}.{key}" if name else str(key))
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def shown_name(folder: Path) -> str:
    """The folder's own name; for a run inside a run also that of the outer one."""
    place = folder.resolve()
    inner = place.name in (ROLLOUTS, VALIDATION_ROLLOUTS) and (place.parent / PLAN_FILE).exists()
    return f"{place.parent.name}/{place.name}" if inner else place.name


@contextmanager
def writing(shown: str) -> Iterator[None]:
    """Around writes into a run's folder: what the system refuses becomes an error that says what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk is full, and the run {shown!r} cannot go on ({why}): make room and run the same again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CurateError(
                f"the folder {shown!r} cannot be written ({why}): give a folder of your own, or change its rights."
            ) from error
        else:
            text = f"the run {shown!r} cannot be written ({why}): run the same again when it can"
        raise CurateError(f"{text}; the shards that are finished are kept.") from error


class RunFolder:
    """The folder of a run; what is written into it is written while it is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = shown_name(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out. CurateError: one of them is in it."""
        lock = FolderLock(self.path, self.shown)
        with writing(self.shown):
            lock.__enter__()
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def log(self, text: str) -> None:
        """One more line in the log."""
        flat = " ".join(text.split())
        with writing(self.shown), open(self.path / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {flat}\n")

    def parts(self, begun: Begun) -> Parts:
        return Parts(self.path / PARTS, begun.plan, begun.key)

    def begin(self, now: Begun, sizes: Mapping[str, int]) -> Begun:
        """What the run goes on with: what is in the folder, if that is of the same run, else `now`, on empty ground.

        sizes: `shard_rows`, `batch_rows` and `threads`, where they were asked for.
        """
        before = Begun.read(self.path)
        same = before is not None and before.plan.rows == now.plan.rows  # the digest is of as many, if it is whole
        same = same and (before.identity, before.rows_sha256) == (now.identity, now.rows_sha256)  # type: ignore[union-attr]
        if before is not None and same and all(getattr(before.plan, name) == size for name, size in sizes.items()):
            self.parts(before).sweep()
            return before
        self._clear()
        with writing(self.shown):
            write_whole(self.path / PLAN_FILE, now.to_json())
        return now

    def keep_recipe(self, text: str) -> None:
        """Writes what the run was begun with, unless it is there."""
        if not (self.path / RECIPE_FILE).exists():
            with writing(self.shown):
                write_whole(self.path / RECIPE_FILE, text.encode("utf-8", "backslashreplace"))

    def _clear(self) -> None:
        """Removes an earlier run, its record first: no record may stand beside the numbers of another run."""
        with writing(self.shown):
            old = (self.path / RECORD_FILE).exists() or any_done(self.path / PARTS)
            (self.path / RECORD_FILE).unlink(missing_ok=True)
            Parts(self.path / PARTS, Plan(1, 1, 1), "").clear()
            (self.path / SCORES_FILE).unlink(missing_ok=True)
            (self.path / RECIPE_FILE).unlink(missing_ok=True)
        if old:
            self.log("the run that was here is replaced")

    def is_whole(self) -> bool:
        """Whether scored.parquet is what its record speaks of."""
        try:
            digest = load_record(self.path).get(SCORES_DIGEST)
            with open(self.path / SCORES_FILE, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except (OSError, CurateError):
            return False

    def finish(self, scored: Dataset, record: Mapping[str, Any]) -> None:
        """Writes the table and its record. At no time does a record stand beside the numbers of another run."""
        unfinished = self.path / f".{SCORES_FILE}"
        with writing(self.shown):
            try:
                scored.to_parquet(unfinished)
                with open(unfinished, "rb+") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            (self.path / RECORD_FILE).unlink(missing_ok=True)
            unfinished.replace(self.path / SCORES_FILE)
        self.write_record({**record, SCORES_DIGEST: digest})

    def write_record(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, indent=2) + "\n"
        with writing(self.shown):
            write_whole(self.path / RECORD_FILE, text.encode())
