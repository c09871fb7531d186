"""Candidates are decided early as often wrongly as the stated confidence allows, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from hf_curate.integrations.stopping import decided, predicted

KEEP, CANDIDATES, TIMES = 16, 64, 100


def t_of(s: np.ndarray) -> np.ndarray:
    spread = s.std(axis=1, ddof=1)
    return np.divide(s.mean(axis=1) * s.shape[1] ** 0.5, spread, out=np.zeros(len(s)), where=spread > 1e-12)


def contributions(rewards: np.ndarray, products: np.ndarray) -> np.ndarray:
    """s_k of [n, K] rewards and products."""
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    return advantages * (products - products.mean(axis=1, keepdims=True))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("rollouts", [8, 16, 64])
def test_decisions_are_wrong_no_more_often_than_stated(rollouts: int, confidence: float) -> None:
    rng, half = np.random.default_rng(0), rollouts // 2
    wrong = stopped = 0
    for _ in range(TIMES):
        rewards = (rng.random((CANDIDATES, rollouts)) < rng.uniform(0.15, 0.85, (CANDIDATES, 1))).astype(float)
        effect = 0.8 * rng.normal(size=(CANDIDATES, 1))
        products = rng.normal(size=rewards.shape) + effect * rewards
        first = t_of(contributions(rewards[:, :half], products[:, :half]))
        whole = t_of(contributions(rewards, products))
        early = np.array(decided(first.tolist(), half, rollouts, KEEP, confidence))
        final = np.where(early, [predicted(t, half, rollouts) for t in first], whole)
        kept, ours = (set(np.argsort(-scores, kind="stable")[:KEEP].tolist()) for scores in (whole, final))
        stopped += int(early.sum())
        wrong += sum((place in kept) != (place in ours) for place in np.flatnonzero(early).tolist())
    assert stopped > 0.05 * TIMES * CANDIDATES
    assert wrong / stopped <= 1 - confidence


def test_no_signal_and_no_score_are_never_decisions() -> None:
    found = decided([None, 0.0, 9.0, -9.0], 8, 16, 2, 0.9)
    assert found == [False, False, True, True]
    assert all(isinstance(one, bool) for one in found), "they are written into checkpoints"


def test_more_confidence_decides_less() -> None:
    statistics = np.linspace(-4, 4, 33).tolist()
    counts = [sum(decided(statistics, 8, 16, 8, confidence)) for confidence in (0.6, 0.9, 0.99)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2]


def test_what_is_at_the_edge_is_not_decided() -> None:
    statistics = [5.0, 4.0, 1.0, 0.9, -4.0]
    assert decided(statistics, 8, 16, 3, 0.95)[2:4] == [False, False]
