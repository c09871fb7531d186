"""Threads of the CPU that a scorer computes with. They are part of a run's plan: sums depend on how they are split."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_curate.scorers.model import ModelScorer


def threads_now(scorer: Any) -> int:
    """Threads that this process scores with unless it is told otherwise: torch's own number; for scorers without a
    model OMP_NUM_THREADS, or the cores that the process may use."""
    if isinstance(scorer, ModelScorer) or "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else cores()


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def with_threads(count: int, scorer: Any) -> Iterator[None]:
    """While this lasts, torch computes with so many threads."""
    if not (isinstance(scorer, ModelScorer) or "torch" in sys.modules):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
