"""Two models of under a million parameters and what they work on; all of it runs offline.

``arithmetic-0.8m`` reads 800 reasoning traces, some damaged on purpose: ``world`` makes the traces and ``make_data``
wrote ``traces.parquet``. ``tasks-0.4m`` is a policy for reinforcement learning on the problems of ``tasks``. ``train``
wrote both folders by the ``recipes``; their ``training.json`` records how.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

MODEL: Path = Path(__file__).parent / "arithmetic-0.8m"
POLICY: Path = Path(__file__).parent / "tasks-0.4m"
TRACES: Path = Path(__file__).parent / "traces.parquet"


def load_traces() -> Dataset:
    """The traces, held in memory: columns ``prompt``, ``completion``, ``damage`` and ``operations``, 800 rows."""
    import pyarrow.parquet
    from datasets import Dataset

    return Dataset(pyarrow.parquet.read_table(TRACES))
