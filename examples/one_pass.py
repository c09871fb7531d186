"""All four GradAlign statistics of a row from one pass, where the scorer computes one: what 04 and 05 compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_curate import GradAlignScorer
from hf_curate.errors import RowError
from hf_curate.scorers.gradalign import STATISTICS


def score_at_once(scorer: GradAlignScorer, rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Statistic -> [rows] the scores that `GradAlignScorer(statistic=...)` would give, whatever the scorer's own is.

    0.0 for a row without signal and NaN where the scorer gives null for want of spread. A row that cannot be read
    raises its RowError.
    """
    found: list[dict[str, float]] = []
    for row in rows:
        group = scorer.reader.read(row)
        if isinstance(group, RowError):
            raise group
        found.append(scorer.measure(group) or dict.fromkeys(STATISTICS, 0.0))
    return {name: np.array([known[name] for known in found]) for name in STATISTICS}
