"""What the benchmarks share: ways to the same result timed in turn, the machine they ran on, a file and a table.

These machines are noisy. So the ways take turns, each round begins with another one, and what is reported is the
median over the rounds, of the seconds and of the ratios within a round. Needs torch alone.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy")


@dataclass(frozen=True)
class Ratio:
    """A way's time over another's, in the same round."""

    median: float
    min: float
    max: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.min:.2f} - {self.max:.2f})"


@dataclass
class Rounds:
    """Seconds of each way in each round, and what each found in the last."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def median(self, way: str) -> float:
        return statistics.median(self.seconds[way])

    def over(self, way: str, base: str) -> Ratio:
        ratios = [own / other for own, other in zip(self.seconds[way], self.seconds[base], strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def record(self, base: str | None = None) -> dict[str, Any]:
        """As JSON; the ratios are over `base`."""
        ratios = {} if base is None else {"over": base, "ratio": {w: vars(self.over(w, base)) for w in self.seconds}}
        return {"median_seconds": {way: self.median(way) for way in self.seconds}, **ratios}


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[], Any] = lambda: None,
) -> Rounds:
    """Runs every way once a round; round i begins with way i. done: waits until a device has finished."""
    names, taken = list(ways), Rounds({way: [] for way in ways})
    for number in range(-warm_up, rounds):
        first = number % len(names)
        for way in names[first:] + names[:first]:
            gc.collect()
            done()
            start = clock()
            taken.found[way] = ways[way]()
            done()
            if number >= 0:
                taken.seconds[way].append(clock() - start)
    return taken


def check_same(found: Mapping[str, Any], base: str, relative: float) -> None:
    """Raises unless the numbers of every way are those of `base`: 1-d tensors, in the norm of their difference."""
    expected = torch.as_tensor(found[base], dtype=torch.float64)
    for way, numbers in found.items():
        apart = float((torch.as_tensor(numbers, dtype=torch.float64) - expected).norm() / expected.norm())
        if not apart <= relative:
            raise SystemExit(f"{way} and {base} do not give the same numbers: {apart:.1e} apart, allowed {relative}")


def processor() -> str:
    """What the system calls it; a virtual machine's may be vague."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    amx = " with AMX" if any("amx_bf16" in line for line in lines if line.startswith("flags")) else ""
    return f"{name or platform.machine()}{amx}"


def machine(**more: Any) -> dict[str, Any]:
    """Where and when this ran."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "machine": platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
        **more,
    }


def hardware() -> str:
    """The end of a result file's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "_")
    return f"{platform.machine()}_cpu"


def write(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """results/<name>_<hardware>.json, with the machine."""
    path = folder / f"{name}_{hardware()}.json"
    path.write_text(json.dumps({**result, "where": machine()}, indent=2, default=vars) + "\n", "utf-8")


def heading(what: str) -> str:
    where = machine()
    packages = ", ".join(f"{name} {number}" for name, number in where["versions"].items() if name != "numpy")
    return f"{what}\n{where['processor']}, {where['threads']} threads, load {where['load']}; {packages}"


def show(what: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One table: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    print(heading(what))
    for row in cells:
        first, *others = (
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("   ".join([first, *others]).rstrip())
    print(flush=True)


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at most, RssAnon without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes by which the process grew at most while this ran (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, so that it cannot hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = resident()
    work()
    return resident("VmHWM") - before
