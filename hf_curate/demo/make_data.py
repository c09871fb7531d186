"""Write the demo's traces: ``python -m hf_curate.demo.make_data --out traces.parquet``."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset

from hf_curate.demo import world

ROWS = 800
DAMAGED_SHARE = 0.4
SEED = 2026


def make_dataset() -> Dataset:
    """The traces as shipped: ``ROWS`` rows, ``DAMAGED_SHARE`` of them damaged, each kind equally often."""
    return Dataset.from_list(world.make_traces(ROWS, DAMAGED_SHARE, SEED))


def main(arguments: list[str] | None = None) -> None:
    """Write the traces to the file named by ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the parquet file to write")
    out: Path = parser.parse_args(arguments).out
    out.parent.mkdir(parents=True, exist_ok=True)
    make_dataset().to_parquet(str(out))


if __name__ == "__main__":
    main()
