"""What keeping a shard costs: 10,000 shards of one row with a scorer that does next to nothing.

    python benchmarks/shard_overhead.py [--shards N] [--folder PLACE]

Prints the time beside the scorer for each shard, that of fsync apart, and that of a second call that finds all done.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from hf_curate import score


class Nothing:
    """Scores every row with 1."""

    columns = Features({"nothing_value": Value("float32"), "nothing_error": Value("string")})
    column = "nothing_value"
    identity = "nothing"

    def record(self) -> dict[str, Any]:
        return {"name": "Nothing"}

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        count = len(rows["text"])
        return {"nothing_value": [1.0] * count, "nothing_error": [""] * count}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--folder", help="where to write, for another disk (default: the temporary one)")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    waits: list[float] = []
    real = os.fsync

    def timed(descriptor: Any) -> None:
        start = time.perf_counter()
        real(descriptor)
        waits.append(time.perf_counter() - start)

    os.fsync = timed
    pool = Dataset.from_dict({"text": ["x"] * arguments.shards})
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for call in ("first", "second"):
            waits.clear()
            start, used = time.perf_counter(), time.process_time()
            score(pool, Nothing(), out=Path(place) / "run", shard_rows=1)
            seconds, used = time.perf_counter() - start, time.process_time() - used
            each, waited = 1000 / arguments.shards, sum(waits)
            print(
                f"{call} call: {seconds:.1f} s; for each of {arguments.shards:,} shards "
                f"{(seconds - waited) * each:.2f} ms without fsync ({used * each:.2f} ms of the processor) and "
                f"{waited * each:.2f} ms of fsync"
            )


if __name__ == "__main__":
    main()
