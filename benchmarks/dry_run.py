"""How long a run takes beside what its dry run told, by the command line, each in a process of its own.

    python benchmarks/dry_run.py

The demo's 800 traces and model; three proxies of GRACE and a loss (a scorer that reads tokens alone is done before
Python has begun). A run's time is that of its command without that of the same command once more, which finds
everything done: the start of Python counts on neither side.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import show, write

from hf_curate.demo import MODEL, TRACES

WAYS = {
    "GRACE, representation": [],
    "GRACE, outer": ["--proxy", "outer"],
    "GRACE, last": ["--proxy", "last"],
    "lowest loss": ["--scorer", "lowest-loss"],
}
ABOUT = re.compile(r"^time +about (?:(\d+):)?(\d+):(\d+) in one|^time +about ([\d.]+) s in one", re.MULTILINE)


def command(given: list[str], out: Path) -> list[str]:
    start = [sys.executable, "-m", "hf_curate.cli", "score", str(TRACES), "--model", str(MODEL)]
    return [*start, "--dtype", "float32", *given, "--out", str(out)]


def told(given: list[str], out: Path) -> float:
    """Seconds that the dry run tells."""
    done = subprocess.run([*command(given, out), "--dry-run"], capture_output=True, text=True, check=True)
    found = ABOUT.search(done.stdout)
    assert found is not None, done.stdout[:600]
    hours, minutes, seconds, short = found.groups()
    return float(short) if short else 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds)


def taken(given: list[str], out: Path) -> float:
    """Seconds of the command."""
    start = time.perf_counter()
    subprocess.run(command(given, out), capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    result, rows = {}, []
    for way, options in WAYS.items():
        ratios, estimates, runs = [], [], []
        for number in range(given.rounds):
            with tempfile.TemporaryDirectory() as place:
                out = Path(place) / f"run{number}"
                estimates.append(told(options, out))
                runs.append(taken(options, out) - taken(options, out))
            ratios.append(estimates[-1] / runs[-1])
        result[way] = {"told": estimates, "taken": runs, "ratio": ratios}
        between = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        rows.append((way, f"{statistics.median(estimates):.1f}", f"{statistics.median(runs):.1f}", between))
    show("800 traces of the demo", ("", "told, s", "taken, s", "told over taken"), rows)
    write("dry_run", result)


if __name__ == "__main__":
    main()
