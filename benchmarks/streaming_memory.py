"""Memory of a whole run over 1,000,000 short rows: a stream, and the same rows in a file.

    python benchmarks/streaming_memory.py [--rows N] [--folder PLACE] [--json FILE]

Each case is a process of its own. Prints how far its memory rose above what it took once `datasets` was loaded: at
most (VmHWM, which counts pages of mapped files that are in memory, and that the system may take back), and of that the
memory that is not mapped from files (RssAnon, looked at every 10 ms). `IterableDataset` itself loads torch, which is
120 MB of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

CASES = ("stream, RandomScorer", "stream, a callable", "stream with types, a callable", "parquet file, a callable")


def rows_of(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {
            "prompt": f"What is {number} + {number % 7}?",
            "completion": f"Step 1: {number} + {number % 7} = {number + number % 7}.\n#### {number + number % 7}",
            "id": number,
            "difficulty": number % 11 / 10,
            "tags": ["sum", f"t{number % 5}"],
        }


class Lengths:
    """A cheap scorer that is none of ours; every seventh row has no score, each for a reason of its own."""

    columns = datasets.Features({"length_value": datasets.Value("float32"), "length_error": datasets.Value("string")})
    column = "length_value"
    identity = "lengths"

    def record(self) -> dict[str, Any]:
        return {"name": "Lengths"}

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        texts, numbers = rows["completion"], rows["id"]
        return {
            "length_value": [len(text) if number % 7 else None for text, number in zip(texts, numbers, strict=True)],
            "length_error": ["" if number % 7 else f"left out: row {number}" for number in numbers],
        }


def status() -> dict[str, float]:
    """What the system says of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }


def measure(case: str, rows: int, place: Path) -> dict[str, float]:
    from datasets import Dataset, Features, IterableDataset, List, Value

    from hf_curate import RandomScorer, score

    datasets.disable_progress_bars()
    types = {"prompt": Value("string"), "completion": Value("string"), "id": Value("int64")}
    types |= {"difficulty": Value("float64"), "tags": List(Value("string"))}
    given = {"gen_kwargs": {"count": rows}, "features": Features(types) if "types" in case else None}
    path = str(place / "rows.parquet")
    if case.startswith("parquet"):
        Dataset.from_generator(rows_of, cache_dir=str(place), **given).to_parquet(path)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what there is now
    before, most, done = status(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, status()["RssAnon"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    if case.startswith("parquet"):
        pool: Any = Dataset.from_parquet(path, cache_dir=str(place))
    else:
        pool = IterableDataset.from_generator(rows_of, **given)
    scorer = RandomScorer(seed=0) if "Random" in case else Lengths()
    scored = score(pool, scorer, out=place / "run")
    seconds = time.perf_counter() - start
    assert len(scored) == rows
    done.set()
    watcher.join()
    disk = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e6
    return {
        "interpreter MB": before["VmRSS"],
        "peak MB": status()["VmHWM"] - before["VmRSS"],
        "anonymous MB": most - before["RssAnon"],
        "disk MB": disk,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write, for another disk (default: the temporary one)")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--case", choices=CASES, help="this case alone, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.rows, Path(arguments.folder))))
        return
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            command = [sys.executable, __file__, "--rows", str(arguments.rows), "--folder", place, "--case", case]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
        figures = ", ".join(f"{name} {value:,.0f}" for name, value in found[case].items())
        print(f"{case}: {figures}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": arguments.rows, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
