"""One process on a folder at a time, and no lock that outlives its process."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import warm

from hf_curate.errors import CurateError
from hf_curate.runs import lock
from hf_curate.runs.lock import LOCK_FILE, FolderLock

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no flock")

HOLDER = """
import os, sys, time
from pathlib import Path
from hf_curate.runs.lock import FolderLock
with FolderLock(Path(sys.argv[1]), "run"):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # it runs by now, and has let go of what it was forked with
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "run"):
        with pytest.raises(CurateError) as caught:
            FolderLock(tmp_path, "run").__enter__()
        said = rf"'run' is in use by process {os.getpid()} on {re.escape(socket.gethostname())} since 20[\d: -]+: wait"
        assert re.search(said, str(caught.value))
        assert (tmp_path / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path, "run"):
        pass


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), FolderLock(tmp_path, "run"):
        raise KeyboardInterrupt
    with FolderLock(tmp_path, "run"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b'{"pid": 1}', b"\xff"])
def test_a_file_that_is_left_behind_holds_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with FolderLock(tmp_path, "run"):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with pytest.raises(CurateError, match="in use by another process"):
            FolderLock(tmp_path, "run").__enter__()


def test_a_killed_process_blocks_nobody_even_while_its_child_lives(tmp_path: Path) -> None:
    holder = warm.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=warm.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(CurateError, match=f"in use by process {holder.pid} on"):
            FolderLock(tmp_path, "run").__enter__()
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        assert (tmp_path / LOCK_FILE).exists()
        with FolderLock(tmp_path, "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
        holder.stdout.close()


def test_a_child_that_leaves_the_block_does_not_take_the_lock_along(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "run") as held:
        child = os.fork()
        if child == 0:
            held.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / LOCK_FILE).exists()
        with pytest.raises(CurateError, match="in use"):
            FolderLock(tmp_path, "run").__enter__()


def test_a_holder_that_goes_while_we_come_in_leaves_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, real, calls = FolderLock(tmp_path, "run").__enter__(), os.open, []

    def opened(path: Any, *given: Any) -> int:
        descriptor = real(path, *given)
        calls.append(path)
        if len(calls) == 1:  # the file that was opened is removed before it is locked
            first.__exit__(None, None, None)
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    with FolderLock(tmp_path, "run"):
        monkeypatch.undo()
        assert len(calls) == 2
        with pytest.raises(CurateError, match="in use"):
            FolderLock(tmp_path, "run").__enter__()


def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuses)
    with caplog.at_level(logging.WARNING, logger="hf_curate"), FolderLock(tmp_path, "run"):
        assert "'run' cannot be locked (No locks available)" in caplog.text


def test_a_full_disk_leaves_the_folder_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        FolderLock(tmp_path, "run").__enter__()
    monkeypatch.undo()
    start = time.monotonic()
    with FolderLock(tmp_path, "run"):
        assert time.monotonic() - start < 5
