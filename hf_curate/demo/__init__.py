"""A model of under a million parameters and 800 reasoning traces, some damaged on purpose: all of it runs offline.

``world`` makes the traces, ``make_data`` wrote ``traces.parquet`` and ``train`` wrote the folder ``arithmetic-0.8m``;
its ``training.json`` records how.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

MODEL: Path = Path(__file__).parent / "arithmetic-0.8m"
TRACES: Path = Path(__file__).parent / "traces.parquet"


def load_traces() -> Dataset:
    """The traces, held in memory: columns ``prompt``, ``completion``, ``damage`` and ``operations``, 800 rows."""
    import pyarrow.parquet
    from datasets import Dataset

    return Dataset(pyarrow.parquet.read_table(TRACES))
