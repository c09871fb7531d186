"""Rank statistics, numpy only."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """[n] average ranks from 0; ties share the mean of their places."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    stops = np.r_[starts[1:], len(values)]
    result = np.empty(len(values))
    result[order] = np.repeat((starts + stops - 1) / 2.0, stops - starts)
    return result


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation over the pairs in which both are finite; None with fewer than 3, or when a side is constant."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        return None
    a, b = ranks(x[both]), ranks(y[both])
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None
