"""Which candidates are decided after a part of their rollouts. numpy only.

After m of K rollouts a candidate's statistic is t_m. If its s_k (see `gradalign`) were independent normal draws and
nothing else were known of their mean, t_K would be about normal around t_m sqrt(K / m), with variance (K - m) / m,
times nu / (nu - 2) (1 + t_m^2 / (2 nu)), nu = m - 1, since their spread is an estimate too: m must be 4 or more. A
candidate is decided when t_K lies on one side of the threshold with the stated probability, the threshold being the
predicted statistic of the last candidate that would be kept. Rewards are not normal, so this is an approximation; a
test holds it to its word on rewards of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def predicted(statistic: float, part: int, whole: int) -> float:
    """What `whole` rollouts would say, of a t statistic of `part` of them."""
    return statistic * (whole / part) ** 0.5


def decided(statistics: Sequence[float | None], part: int, whole: int, keep: int, confidence: float) -> list[bool]:
    """Whether more rollouts of a candidate would, with that probability, change nothing.

    Args:
        statistics: t of `part` rollouts of each candidate; None or exactly 0 where these had no signal, which is never
            a decision.
        whole: rollouts that would be drawn in all; keep: how many candidates are kept; confidence: above 0.5, below 1.
    """
    known = np.array([0.0 if value is None else value for value in statistics], dtype=np.float64)
    open_ = np.array([value is None or value == 0.0 for value in statistics])
    means = known * (whole / part) ** 0.5
    threshold = np.sort(means)[::-1][min(keep, len(means)) - 1]
    freedom = part - 1
    spread = ((whole - part) / part * freedom / (freedom - 2) * (1.0 + known**2 / (2 * freedom))) ** 0.5
    far = np.abs(means - threshold) >= NormalDist().inv_cdf(confidence) * spread
    return (far & ~open_).tolist()
