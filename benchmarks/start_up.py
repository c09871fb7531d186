"""What it takes to begin: importing the package, and `hf-curate --help`.

    python benchmarks/start_up.py

Every measurement is a process of its own, and all take turns. Importing `hf_curate` loads nothing else; what `select`
or `score` need is loaded when they are named, and is compared with importing `datasets` alone. Writes
results/start_up_<processor>.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from side_by_side import in_turn, show, write

ALONE, NAMES = "import hf_curate", "hf_curate.score, hf_curate.select"
COMMANDS = {
    "python": ["-c", "pass"],
    ALONE: ["-c", ALONE],
    "import datasets": ["-c", "import datasets"],
    "import datasets, hf_curate": ["-c", "import datasets, hf_curate"],
    f"the same, and {NAMES}": ["-c", f"import datasets, hf_curate; {NAMES}"],
    "hf-curate --help": ["-m", "hf_curate.cli", "--help"],
    "hf-curate score --help": ["-m", "hf_curate.cli", "score", "--help"],
}


def run(command: list[str]) -> Callable[[], None]:
    def once() -> None:
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    rounds = in_turn({name: run(command) for name, command in COMMANDS.items()}, asked.rounds)
    beyond = {
        name: [own - other for own, other in zip(rounds.seconds[name], rounds.seconds["import datasets"], strict=True)]
        for name in COMMANDS
        if name.startswith(("import datasets,", "the same"))
    }
    result = {**rounds.record(), "beyond datasets": {name: sorted(own)[len(own) // 2] for name, own in beyond.items()}}
    write("start_up", {"settings": vars(asked), **result})
    show(
        "Processes from their start to their end",
        ("", "seconds", "beyond importing datasets"),
        [
            (name, f"{rounds.median(name):.2f}", f"{result['beyond datasets'][name]:.2f}" if name in beyond else "")
            for name in COMMANDS
        ],
    )


if __name__ == "__main__":
    main()
