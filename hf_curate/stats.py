"""Rank statistics, numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_PLACE, _SIGN = np.uint64(32), np.uint32(2**31)


def ascending(values: np.ndarray) -> np.ndarray:
    """[n] int64: the places of the values from the smallest to the largest, ties in row order.

    What a stable argsort gives, sooner: most scores are float32, and most measures are whole numbers.
    """
    small = _small(values)
    if small is not None:
        return np.argsort(small, kind="stable")  # 16 bits are sorted without comparisons
    packed = _packed(values)
    return np.argsort(values, kind="stable") if packed is None else packed[0]


def _small(values: np.ndarray) -> np.ndarray | None:
    """[n] uint16 in the order of the values, where those are whole numbers that lie close together; else None."""
    with np.errstate(invalid="ignore"):
        if not len(values) or values.dtype.kind != "f" or (values[:100] % 1 != 0).any():
            return None
    low = values.min()
    if not float(values.max()) - float(low) < 2**16:
        return None
    small = (values - low).astype(np.uint16)
    return small if np.array_equal(small + low, values) else None


def _packed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """`ascending`, and [n] uint32 keys in that order, equal where the values are; None unless float32 holds them.

    Each value and its place are sorted as one whole number, the place in its low half: no two are equal.
    """
    if values.dtype.kind != "f" or len(values) > 2**32:
        return None
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.array_equal(narrow, values):
        return None
    bits = (narrow + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    keys = bits ^ ((bits.view(np.int32) >> np.int32(31)).view(np.uint32) | _SIGN)  # whole numbers in the floats' order
    packed = (keys.astype("<u8") << _PLACE) | np.arange(len(values), dtype="<u8")
    packed.sort()
    halves = packed.view("<u4")
    return halves[::2].astype(np.int64), halves[1::2]


def ranks(values: np.ndarray) -> np.ndarray:
    """[n] average ranks from 0; ties share the mean of their places."""
    small = _small(values)
    if small is not None:
        counts = np.bincount(small)
        return (np.cumsum(counts) - (counts + 1) / 2.0)[small]
    packed = _packed(values)
    if packed is not None:
        return _ranked(*packed)
    places = np.argsort(values, kind="stable")
    return _ranked(places, values[places])


def _ranked(places: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Average ranks. places: [n] from one end to the other; ordered: [n] what is there, equal where the values are."""
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    stops = np.r_[starts[1:], len(ordered)]
    result = np.empty(len(ordered))
    result[places] = np.repeat((starts + stops - 1) / 2.0, stops - starts)
    return result


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation over the pairs in which both are finite; None with fewer than 3, or when a side is constant."""
    return spearmans(x, {"y": y})["y"]


def spearmans(
    x: np.ndarray, others: Mapping[str, np.ndarray], best: np.ndarray | None = None
) -> dict[str, float | None]:
    """`spearman` of x with each of the others; x is ranked once for all that are finite wherever it is.

    best: the places of all finite x from the highest to the lowest, where they are known.
    """
    x = np.asarray(x, dtype=np.float64)
    known = np.isfinite(x)
    whole, found = None if best is None else _from_best(x, best)[known], {}
    for name, other in others.items():
        y = np.asarray(other, dtype=np.float64)
        both = known & np.isfinite(y)
        if both.sum() < 3:
            found[name] = None
            continue
        if (both == known).all():
            whole = a = ranks(x[both]) if whole is None else whole
        else:
            a = ranks(x[both])
        found[name] = _pearson(a, ranks(y[both]))
    return found


def _from_best(x: np.ndarray, best: np.ndarray) -> np.ndarray:
    """[n] average ranks from 0 of what is in `best`."""
    found = np.empty(len(x))
    found[best] = len(best) - 1 - _ranked(np.arange(len(best)), x[best])
    return found


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None
