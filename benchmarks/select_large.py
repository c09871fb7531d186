"""What choosing from a large score table costs: 10,000,000 rows, as GRACE's columns would be.

    python benchmarks/select_large.py [--rows N] [--texts] [--save] [--only NAME] [--json FILE] [--folder PLACE]

Each selection runs in a process of its own. Prints its time, the processor time in it, and the peaks of the memory
that it holds (RssAnon) and of all its memory, with the pages of the table that are mapped (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_curate import select

BLOCK_ROWS, CHUNK_ROWS = 100_000, 1000
SELECTIONS: dict[str, dict[str, Any]] = {
    "top 20 %": {"budget": "20%"},
    "stratified by 100 groups, 20 %": {"budget": "20%", "strategy": "stratified", "group": "group"},
    "200 tokens for each row": {"budget": "{} tokens"},
}
COLUMNS = ("selection", "kept", "seconds", "processor", "held GB", "peak GB")


def write(path: Path, rows: int, texts: bool) -> None:
    """The table, block by block: 1 row in 100 failed, 1 prompt in 10 is another row's."""
    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, BLOCK_ROWS):
        table = block(rng, np.arange(start, min(start + BLOCK_ROWS, rows)), texts)
        writer = pa.ipc.new_stream(path, table.schema) if writer is None else writer
        writer.write_table(table, max_chunksize=CHUNK_ROWS)
    if writer is not None:
        writer.close()


def block(rng: np.random.Generator, rows: np.ndarray, texts: bool) -> pa.Table:
    count = len(rows)
    failed = rng.random(count) < 0.01
    steps = rng.integers(1, 9, count) * ~failed
    starts = pa.array(np.r_[0, np.cumsum(steps)].astype(np.int32), mask=np.r_[failed, False])
    columns = {"id": pa.array(rows), "group": pa.array(rng.integers(0, 100, count), pa.int32())}
    if texts:
        same = np.where(rng.random(count) < 0.1, rows // 2, rows)
        columns["prompt"] = said("A question of some length, in the words of a pupil: how many are ", 2, same)
        columns["completion"] = said('Step 1: "first" this.\nStep 2: then that.\n', 8, rows)
    columns["grace_step_scores"] = pa.ListArray.from_arrays(starts, rng.normal(size=steps.sum()).astype(np.float32))
    columns["grace_value"] = pa.array(rng.normal(size=count).astype(np.float32), mask=failed)
    columns["grace_tokens"] = pa.array(rng.integers(50, 4000, count), pa.int32(), mask=failed)
    columns["grace_loss"] = pa.array(rng.random(count).astype(np.float32), mask=failed)
    columns["grace_error"] = pa.array(np.where(failed, "no answer: none found", ""))
    return pa.table(columns)


def said(words: str, times: int, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(words * times, pa.array(numbers).cast(pa.string()), "")  # type: ignore


def measure(path: str, options: dict[str, Any], folder: str | None) -> dict[str, float]:
    """One selection, and its saving where there is a folder; seconds and GB."""
    datasets.disable_progress_bars()
    table = Dataset.from_file(path)
    with Peak() as peak:
        picked = select(table, "grace_value", **options)
    found = {"kept": len(picked), **peak.found}
    if folder is not None:
        with Peak() as peak:
            picked.save(folder, "c")
        found["saving"] = peak.found  # type: ignore[assignment]
        shutil.rmtree(folder)
    return found


class Peak:
    """Seconds, processor seconds, and the most memory at any moment of a block."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        self.most, self.over = 0, threading.Event()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        self.start, self.used = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, processor = time.perf_counter() - self.start, time.process_time() - self.used
        self.over.set()
        self.watch.join()
        self.found = {
            "seconds": round(seconds, 1),
            "processor": round(processor, 1),
            "held GB": round(self.most / 2**20, 2),
            "peak GB": round(status("VmHWM") / 2**20, 2),
        }

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, status("RssAnon"))


def status(name: str) -> int:
    """KB, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def show(*cells: object) -> None:
    print(f"{cells[0]:<32}" + "".join(f"{cell:>12}" for cell in cells[1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--texts", action="store_true", help="prompts of 130 and completions of 330 characters beside")
    parser.add_argument("--save", action="store_true", help="save each selection too")
    parser.add_argument("--only", default="", help="selections whose name contains this")
    parser.add_argument("--json", help="write what was measured to this file")
    parser.add_argument("--folder", help="where to write, for another disk (default: the temporary one)")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        path = Path(place) / "table.arrow"
        write(path, arguments.rows, arguments.texts)
        print(f"{arguments.rows:,} rows, {path.stat().st_size / 2**30:.2f} GB")
        show(*COLUMNS)
        context = multiprocessing.get_context("spawn")
        for name, asked in ((name, asked) for name, asked in SELECTIONS.items() if arguments.only in name):
            options = asked | {"budget": asked["budget"].format(200 * arguments.rows)}
            folder = str(Path(place) / "saved") if arguments.save else None
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                found[name] = one = pool.submit(measure, str(path), options, folder).result()
            show(name, *(f"{one[column]:,}" for column in COLUMNS[1:]))
            if folder is not None:
                show("  saved", "", *(f"{one['saving'][column]:,}" for column in COLUMNS[2:]))  # type: ignore[index]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": arguments.rows, "selections": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
