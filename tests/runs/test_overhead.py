"""What keeping a shard costs, beside scoring it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lengths import Lengths, texts

from hf_curate import score

SHARDS = 1000
SECONDS = 0.005


@pytest.mark.slow
def test_many_shards_of_one_row_cost_little_each_and_leave_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time of the processor, which another process does not change; fsync is the disk's, and left out."""
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    pool, scorer = texts(SHARDS, bad=SHARDS), Lengths()
    score(pool.select(range(4)), Lengths(), out=tmp_path / "warm", shard_rows=1)
    opened, start = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0, time.process_time()
    score(pool, scorer, out=tmp_path / "run", shard_rows=1)
    assert scorer.seen == [1] * SHARDS
    assert (time.process_time() - start) / SHARDS < SECONDS
    start = time.process_time()
    score(pool, scorer, out=tmp_path / "run")
    assert scorer.seen == [1] * SHARDS
    assert (time.process_time() - start) / SHARDS < SECONDS / 2
    assert not opened or len(os.listdir("/proc/self/fd")) <= opened
    assert len(waited) >= SHARDS
