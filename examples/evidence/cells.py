"""A design as cells that stand alone: each is one small JSON file, written when it is done and never twice.

A cell trains all selections of one world, pool seed and budget in one stack. A run that was stopped goes on with the
cells that are missing; several processes may work on one folder, for each claims a cell before it starts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STALE = 3600.0
"""Seconds without a sign of life after which a claim is another's to take."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        world, seed: what the pool is drawn from, and by what; the seed also says which base is trained.
        budget: share of the pool that is kept; 1.0 is the whole pool, with no selection.
        regime: "epochs" (each set is gone through equally often) or "updates" (each model takes as many).
        method: "full" or "lora".
        backbone: whose weights are trained; "own" is the base that scored.
    """

    world: str
    seed: int
    budget: float
    regime: str
    method: str = "full"
    backbone: str = "own"

    @property
    def name(self) -> str:
        return f"{self.world}-{self.seed}-{self.budget:g}-{self.regime}-{self.method}-{self.backbone}"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: written beside its place and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether what will be written to ``path`` is ours to make: not made yet, and claimed by no other process."""
    claim = path.with_suffix(".claim")
    path.parent.mkdir(parents=True, exist_ok=True)
    if claim.exists() and not _alive(claim):
        claim.unlink(missing_ok=True)
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        yield False
        return
    try:
        claim.write_text(str(os.getpid()), encoding="utf-8")
        yield not path.exists()
    finally:
        claim.unlink(missing_ok=True)


def _alive(claim: Path) -> bool:
    """Whether the process that claims is there still; a claim that is being written counts as alive."""
    try:
        text = claim.read_text("utf-8")
        if not text:
            return time.time() - claim.stat().st_mtime < STALE
        os.kill(int(text), 0)
    except FileNotFoundError:
        return False
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user: it is there
        return True
    return True


def work(cells: Sequence[Any], folder: Path, do: Callable[[Any], dict[str, Any]]) -> int:
    """Does the cells that are missing in ``folder``, in order; returns how many it did. A cell is a dataclass with a
    ``name`` that no other has."""
    done = 0
    for cell in cells:
        path = folder / f"{cell.name}.json"
        if path.exists():
            continue
        with claimed(path) as ours:
            if not ours:
                continue
            started = time.process_time()
            found = do(cell)
            seconds = round(time.process_time() - started, 1)
            write_json(path, {**asdict(cell), **found, "processor_seconds": seconds})
            print(f"{cell.name}: {seconds} s", flush=True)
            done += 1
    return done
