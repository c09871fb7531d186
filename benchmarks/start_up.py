"""What it takes to begin: importing the package, and `hf-curate --help`.

    python benchmarks/start_up.py

Every measurement is a process of its own, and all take turns. Importing `hf_curate` loads nothing else; what `select`
or `score` need is loaded when they are named; what that takes once `datasets` is there is timed inside. Writes
results/start_up_<processor>.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

from side_by_side import in_turn, show, write

AFTER = """
import time, datasets
start = time.perf_counter()
import hf_curate
{}
print(time.perf_counter() - start)
"""
COMMANDS = {
    "python": ["-c", "pass"],
    "import hf_curate": ["-c", "import hf_curate"],
    "import datasets": ["-c", "import datasets"],
    "import datasets, hf_curate": ["-c", AFTER.format("")],
    "the same, and score, select": ["-c", AFTER.format("hf_curate.score, hf_curate.select")],
    "hf-curate --help": ["-m", "hf_curate.cli", "--help"],
    "hf-curate score --help": ["-m", "hf_curate.cli", "score", "--help"],
}


def run(command: list[str], beyond: list[float]) -> Callable[[], None]:
    """A process; what it says of the seconds after `datasets` was there goes into `beyond`."""

    def once() -> None:
        done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
        if "print" in command[1]:
            beyond.append(float(done.stdout))

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    beyond: dict[str, list[float]] = {name: [] for name in COMMANDS}
    rounds = in_turn({name: run(command, beyond[name]) for name, command in COMMANDS.items()}, asked.rounds)
    later = {name: statistics.median(own[-asked.rounds :]) for name, own in beyond.items() if own}
    write("start_up", {"settings": vars(asked), **rounds.record(), "beyond datasets": later})
    show(
        "Processes from their start to their end",
        ("", "seconds", "beyond importing datasets"),
        [(name, f"{rounds.median(name):.2f}", f"{later[name]:.2f}" if name in later else "") for name in COMMANDS],
    )


if __name__ == "__main__":
    main()
