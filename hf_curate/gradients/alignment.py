"""Step scores from inner products: every history, target and alpha is a function of one small Gram matrix. numpy
only."""

from __future__ import annotations

import numpy as np

History = str | tuple[str, float]
PROXIES = ("representation", "outer", "last", "exact")
TARGETS = ("answer", "steps+answer", "suffix")
CANCELLED = 1e-3
"""A sum of gradients whose norm is below this share of the sum of their norms counts as zero: in float32 the rest is
noise."""


def history_weights(steps: int, history: History) -> np.ndarray:
    """[K, K] weights w_kj of the earlier steps j < k, up to a factor per row (cosines do not see it).

    "uniform": all earlier steps; ("window", W): the last W of them; ("ema", beta): beta ** (k - 1 - j).
    """
    k, j = np.mgrid[:steps, :steps]
    earlier = j < k
    if history == "uniform":
        return earlier.astype(np.float64)
    kind, value = history
    if kind == "window":
        return (earlier & (j >= k - value)).astype(np.float64)
    return np.where(earlier, np.power(float(value), np.maximum(k - 1 - j, 0)), 0.0)


def _target_weights(tokens: np.ndarray, target: str) -> np.ndarray:
    """[K, K+1] token weights of the segments that make up the target of each step, up to a factor per row."""
    steps = len(tokens) - 1
    weights = np.zeros((steps, steps + 1))
    weights[:, -1] = tokens[-1]
    if target != "answer":
        k, j = np.mgrid[:steps, :steps]
        weights[:, :-1] = tokens[:-1] * (np.ones_like(k) if target == "steps+answer" else j > k)
    return weights


def _cosines_with_sums(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[K] cosine of gradient k with the sum of weights[k, j] times gradient j; 0 where either side is 0.

    gram: [N, N]; weights: [K, N], not negative, K <= N. A sum below `CANCELLED` counts as 0: what is left is rounding.
    """
    steps = len(weights)
    mixed = weights @ gram
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    other = np.einsum("kj,kj->k", mixed, weights)
    floor = CANCELLED * weights @ norms
    scale = norms[:steps] * np.sqrt(np.maximum(other, 0.0))
    known = (scale > 0) & (other > floor * floor)
    dots = mixed[np.arange(steps), np.arange(steps)]
    return np.clip(np.divide(dots, scale, out=np.zeros(steps), where=known), -1.0, 1.0)


def alignments(
    gram: np.ndarray, tokens: np.ndarray, *, history: History = "uniform", target: str = "answer"
) -> tuple[np.ndarray, np.ndarray]:
    """Alignment A_k with the target and consistency H_k with the history, from inner products alone.

    Args:
        gram: [K+1, K+1] inner products of the steps' mean gradients, the answer's last.
        tokens: [K+1] label tokens of each segment; only the targets other than "answer" need them.

    Returns:
        A [K] and H [K] in [-1, 1]; H of the first step is NaN: it has no history.
    """
    gram = np.asarray(gram, dtype=np.float64)
    steps = len(gram) - 1
    aligned = _cosines_with_sums(gram, _target_weights(np.asarray(tokens, dtype=np.float64), target))
    consistent = _cosines_with_sums(gram[:steps, :steps], history_weights(steps, history))
    consistent[:1] = np.nan
    return aligned, consistent


def step_scores(
    gram: np.ndarray, tokens: np.ndarray, *, alpha: float = 0.7, history: History = "uniform", target: str = "answer"
) -> np.ndarray:
    """[K] scores of the steps in [-1, 1]: alpha A_k + (1 - alpha) H_k, and A_1 for the first; their mean is the value.

    With `keep_gram=True` a scorer stores what this needs, so alpha, history and target can be changed without the
    model: `step_scores(np.reshape(row["grace_gram"], (k + 1, k + 1)), row["grace_gram_tokens"], alpha=0.5)`.
    """
    aligned, consistent = alignments(gram, tokens, history=history, target=target)
    mixed = alpha * aligned + (1.0 - alpha) * consistent
    mixed[:1] = aligned[:1]
    return mixed
