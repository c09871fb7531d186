"""One process on a run folder at a time. The lock is the system's (flock): it goes with the process that holds it."""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType

from hf_curate.errors import CurateError

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not kept apart there
    fcntl = None

logger = logging.getLogger("hf_curate")

LOCK_FILE = ".lock"

_held: set[int] = set()
"""Descriptors of this process that hold a lock. A child that was forked must not go on holding it when its parent is
gone: it closes them as soon as it runs, which is milliseconds after the fork."""


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """Holds a folder from `with` to its end. CurateError: somebody else has it, and who.

    The file `.lock` says who holds the folder, and is removed with the lock. One that a killed process leaves behind
    holds nothing.
    """

    def __init__(self, folder: Path, shown: str) -> None:
        self.path = folder / LOCK_FILE
        self.shown = shown
        self._descriptor: int | None = None
        self._owner = os.getpid()

    def __enter__(self) -> FolderLock:
        if fcntl is None:
            return self
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not self._taken(descriptor):
                return self
            if _same_file(descriptor, self.path):
                self._descriptor = descriptor
            else:  # its holder has just removed the file
                os.close(descriptor)
        _held.add(self._descriptor)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(who).encode(), 0)
        except BaseException:  # a full disk
            self._release()
            raise
        return self

    def _taken(self, descriptor: int) -> bool:
        """Whether the lock is ours now; False where the file system knows no locks."""
        assert fcntl is not None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 1000, 0)
            os.close(descriptor)
            raise CurateError(
                f"the folder {self.shown!r} is in use by {_named(who)}: wait for it, stop it, or give another folder."
            ) from None
        except OSError as error:
            os.close(descriptor)
            logger.warning("the folder %r cannot be locked (%s): run one process on it.", self.shown, error.strerror)
            return False
        return True

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        if self._descriptor is None or os.getpid() != self._owner:
            return
        self.path.unlink(missing_ok=True)
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _named(who: bytes) -> str:
    """What the lock's file says of its holder."""
    try:
        holder = json.loads(who)
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]} since {str(holder['since'])[:19]}"
    except (ValueError, TypeError, KeyError, RecursionError):  # it was not written yet
        return "another process"
