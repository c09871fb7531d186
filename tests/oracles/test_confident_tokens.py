"""Tokens that the model is sure of: p - y cancels, and the signal must not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tolerances import CONFIDENT, CONFIDENT_COSINE
from torch import Tensor

from hf_curate.gradients.gram import _by_matrices, _by_tokens
from hf_curate.gradients.head import Head
from hf_curate.gradients.segments import segment_grams
from hf_curate.gradients.upstream import Segments, pooled_signals, token_signals

VOCABULARY, WIDTH, TOKENS = 400, 32, 12


def confident() -> tuple[Head, Tensor, Tensor]:
    """A float32 head, inputs and labels with 1 - p_y near 1e-6."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    labels = torch.randperm(VOCABULARY, generator=generator)[:TOKENS]
    hidden = 0.3 * torch.randn(TOKENS, WIDTH, generator=generator)
    own = weight[labels]
    for _ in range(200):  # push each input along its label's row until 1 - p is about 1e-6
        missing = 1.0 - torch.softmax(hidden.double() @ weight.double().T, 1).gather(1, labels[:, None])
        hidden = hidden + 0.01 * (missing > 1e-6).float() * own
    return Head(weight), hidden, labels


def definition(head: Head, hidden: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """W^T p - W[y], subtracted as written."""
    weight = head.weight.to(dtype)
    return torch.softmax(hidden.to(dtype) @ weight.T, 1) @ weight - weight[labels]


def errors(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.double() - theirs).norm(dim=1) / theirs.norm(dim=1)


def truth(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """In float64 with the label's entry of p - y summed from the others."""
    weight = head.weight.double()
    residual = torch.softmax(hidden.double() @ weight.T, 1)
    for row, label in enumerate(labels.tolist()):
        residual[row, label] = 0.0
        residual[row, label] = -residual[row].sum()
    return residual @ weight


def test_the_tokens_are_as_confident_as_the_tests_say() -> None:
    head, hidden, labels = confident()
    missing = 1 - torch.softmax(hidden.double() @ head.weight.double().T, 1).gather(1, labels[:, None])
    assert float(missing.max()) < 2e-6
    assert float(missing.min()) > 1e-8


def test_signals_of_confident_tokens_are_exact_in_float32() -> None:
    head, hidden, labels = confident()
    signals, losses = token_signals(head, hidden, labels)
    assert signals.dtype == torch.float32
    assert float(errors(signals, truth(head, hidden, labels)).max()) < CONFIDENT
    assert bool((losses >= 0).all())


def test_pooled_signals_of_confident_tokens_are_exact_in_float32() -> None:
    head, hidden, labels = confident()
    spans = [[0, 1, 2, 3], [3, 4], list(range(5, TOKENS))]
    pooled, _ = pooled_signals(head, hidden, labels, Segments.of(spans))
    means = torch.stack([truth(head, hidden, labels)[span].mean(0) for span in spans])
    assert float(errors(pooled, means).max()) < CONFIDENT


@pytest.mark.parametrize("pooled", [False, True])
def test_forming_p_minus_y_by_subtraction_would_miss_the_tolerance(pooled: bool) -> None:
    head, hidden, labels = confident()
    naive, exact = definition(head, hidden, labels, torch.float32), truth(head, hidden, labels)
    if pooled:
        naive, exact = naive.mean(0, keepdim=True), exact.mean(0, keepdim=True)
    assert float(errors(naive, exact).max()) > 100 * CONFIDENT


def test_the_two_ways_of_writing_the_truth_agree_in_float64() -> None:
    head, hidden, labels = confident()
    assert float(errors(definition(head, hidden, labels, torch.float64), truth(head, hidden, labels)).max()) < 1e-7


@pytest.mark.parametrize("gain", [1.0, 3.0, 6.0])
def test_a_saturated_soft_cap_keeps_its_slope(gain: float) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = gain * torch.randn(VOCABULARY, WIDTH, generator=generator) * 3 / WIDTH**0.5
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    signals, _ = token_signals(Head(weight, softcap=3.0), hidden, labels)
    leaf = hidden.double().requires_grad_()
    logits = 3.0 * torch.tanh(leaf @ weight.double().T / 3.0)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), leaf)
    assert float(errors(signals, expected).max()) < CONFIDENT


# -- so sure that squares of the signal leave the range of float32 ---------------------------------------------------

GAP = 52.0
SURE_SPANS = [[1, 2, 3, 4], [4, 5], [6, 7, 8, 9], [10, 11, 12]]
"""Label positions; label t is predicted at position t - 1. The last three tokens are as unsure as usual."""


def very_confident() -> tuple[Head, Tensor, Tensor]:
    """A float32 head, [T, d] inputs and [T] labels of which the first T - 3 lead by about `GAP` logits."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    labels = torch.randperm(VOCABULARY, generator=generator)[:TOKENS]
    hidden = 0.3 * torch.randn(TOKENS, WIDTH, generator=generator)
    for token, label in enumerate(labels[:-3].tolist()):
        low, high = 0.0, 100.0
        for _ in range(60):
            middle = (low + high) / 2
            logits = (hidden[token] + middle * weight[label]).double() @ weight.double().T
            others = torch.cat([logits[:label], logits[label + 1 :]])
            low, high = (low, middle) if float(logits[label] - others.max()) > GAP else (middle, high)
        hidden[token] += high * weight[label]
    return Head(weight), hidden, labels


def cosines(gram: Tensor) -> Tensor:
    norms = gram.double().diagonal().sqrt()
    return gram.double() / norms[:, None] / norms


def true_gram(head: Head, hidden: Tensor, labels: Tensor, proxy: str) -> Tensor:
    signals = truth(head, hidden, labels)
    if proxy == "outer":
        signals = torch.einsum("to,ti->toi", signals, hidden.double()).flatten(1)
    means = torch.stack([signals[[position - 1 for position in span]].mean(0) for span in SURE_SPANS])
    return means @ means.T


@pytest.mark.parametrize("proxy", ["representation", "outer"])
def test_cosines_of_very_confident_segments_are_right(proxy: str) -> None:
    head, hidden, labels = very_confident()
    states = torch.cat([hidden, hidden[:1]])  # the last position predicts nothing
    model: Any = SimpleNamespace(head=head, decoder=None, hidden=lambda ids: states[None])
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), labels])[None]
    ((gram, _),) = segment_grams(model, ids, [SURE_SPANS], proxy)
    expected = true_gram(head, hidden, labels, proxy)
    assert float(expected.diagonal()[0]) < 1e-40 < float(expected.diagonal()[-1])
    assert float((cosines(gram) - cosines(expected)).abs().max()) < CONFIDENT_COSINE


@pytest.mark.parametrize("route", [_by_tokens, _by_matrices])
def test_both_routes_of_inner_products_keep_very_small_signals_and_zeros(route: Any) -> None:
    head, hidden, labels = very_confident()
    signals, _ = token_signals(head, hidden, labels)
    signals[1] = 0.0
    segments = Segments.of([[position - 1 for position in span] for span in SURE_SPANS])
    gram, expected = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    route(gram, hidden, signals, segments, 2**20)
    route(expected, hidden.double(), signals.double(), segments, 2**20)
    assert float((cosines(gram) - cosines(expected)).abs().max()) < CONFIDENT_COSINE
