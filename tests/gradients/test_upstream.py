"""Signals of the LM head on their own: segments of every shape, heads of every form, budgets down to one byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import GRAM, SAME_RUN
from torch import Tensor

from hf_curate.gradients import upstream
from hf_curate.gradients.head import Head
from hf_curate.gradients.upstream import Segments, pooled_signals, token_signals

WIDTH = 6


def case(tokens: int, vocabulary: int = 13, seed: int = 0, **form: Any) -> tuple[Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, WIDTH, generator=generator, dtype=torch.float64)
    if form.pop("bias", False):
        form["bias"] = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return Head(weight, **form), hidden, labels


def reference(head: Head, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Signals and losses by autograd, one token at a time."""
    signals, losses = [], []
    for vector, label in zip(hidden, labels, strict=True):
        leaf = vector.clone().requires_grad_()
        logits = head.weight @ leaf if head.bias is None else head.weight @ leaf + head.bias
        logits = head.scale * logits
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        loss = -torch.log_softmax(logits, 0)[label]
        signals.append(torch.autograd.grad(loss, leaf)[0])
        losses.append(loss.detach())
    return torch.stack(signals), torch.stack(losses)


FORMS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"scale": 0.3},
    {"scale": 4.0, "bias": True},
    {"softcap": 1.5},
    {"softcap": 0.5, "scale": 2.0, "bias": True},
]


@pytest.mark.parametrize("budget", [1, 500, 2**20])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_signals_and_losses_of_every_form_of_head_equal_autograd(form: dict[str, Any], budget: int) -> None:
    head, hidden, labels = case(17, **form)
    expected, expected_losses = reference(head, hidden, labels)
    signals, losses = token_signals(head, hidden, labels, budget)
    assert torch.allclose(signals, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(losses, expected_losses, rtol=1e-10, atol=1e-12)
    spans = [[0], [1, 2, 3], [3, 4, 5], [0, 16], list(range(6, 15))]
    pooled, losses = pooled_signals(head, hidden, labels, Segments.of(spans), budget)
    assert torch.allclose(pooled, torch.stack([expected[span].mean(0) for span in spans]), rtol=1e-10, atol=1e-12)
    assert torch.allclose(losses, expected_losses, rtol=1e-10, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.lists(st.integers(0, n - 1), unique=True, max_size=n), min_size=1, max_size=8)
        )
    ),
    st.sampled_from([1, 150, 400, 1_000, 5_000, 2**20]),
)
def test_pooling_any_segments_under_any_budget_averages_the_tokens(
    shape: tuple[int, list[list[int]]], budget: int
) -> None:
    tokens, spans = shape
    head, hidden, labels = case(tokens)
    signals, _ = token_signals(head, hidden, labels)
    pooled, losses = pooled_signals(head, hidden, labels, Segments.of(spans), budget)
    means = torch.stack([signals[span].mean(0) if span else torch.zeros(WIDTH).double() for span in spans])
    assert torch.allclose(pooled, means, rtol=1e-9, atol=1e-12)
    assert bool(torch.isfinite(losses).all())


def test_a_segment_without_tokens_has_the_gradient_zero() -> None:
    head, hidden, labels = case(4)
    pooled, _ = pooled_signals(head, hidden, labels, Segments.of([[], [0, 1], []]))
    assert not pooled[[0, 2]].any()
    assert pooled[1].any()


def test_no_segment_at_all_still_gives_the_losses() -> None:
    head, hidden, labels = case(4)
    pooled, losses = pooled_signals(head, hidden, labels, Segments.of([]))
    assert pooled.shape == (0, WIDTH)
    assert torch.allclose(losses, reference(head, hidden, labels)[1])


def test_no_token_at_all_gives_empty_results() -> None:
    head, hidden, labels = case(0)
    pooled, losses = pooled_signals(head, hidden, labels, Segments.of([[]]))
    signals, _ = token_signals(head, hidden, labels)
    assert pooled.tolist() == [[0.0] * WIDTH]
    assert losses.shape == (0,)
    assert signals.shape == (0, WIDTH)


def test_a_single_token_is_its_own_mean() -> None:
    head, hidden, labels = case(1)
    pooled, _ = pooled_signals(head, hidden, labels, Segments.of([[0], [0]]))
    expected = reference(head, hidden, labels)[0][0]
    assert torch.allclose(pooled, torch.stack([expected, expected]))


def test_a_vocabulary_of_one_token_has_no_signal_and_no_loss() -> None:
    head, hidden, labels = case(3, vocabulary=1)
    signals, losses = token_signals(head, hidden, labels)
    assert not signals.any()
    assert not losses.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", [{}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("budget", [1, 2**20])
def test_a_token_that_is_not_finite_has_loss_nan_and_adds_nothing(
    bad: float, form: dict[str, Any], budget: int
) -> None:
    head, hidden, labels = case(5, **form)
    spans = [[0, 1], [1, 2], [3, 4]]
    clean, clean_losses = pooled_signals(head, hidden, labels, Segments.of(spans), budget)
    hidden[2, 0] = float("nan") if form else bad  # a soft cap turns infinite logits into finite ones
    pooled, losses = pooled_signals(head, hidden, labels, Segments.of(spans), budget)
    signals, _ = token_signals(head, hidden, labels, budget)
    assert losses.isnan().tolist() == [False, False, True, False, False]
    assert torch.equal(losses[[0, 1, 3, 4]], clean_losses[[0, 1, 3, 4]])
    assert torch.allclose(pooled[[0, 2]], clean[[0, 2]], rtol=SAME_RUN[torch.float64])
    assert torch.allclose(pooled[1], signals[1] / 2)
    assert not signals[2].any()


def test_a_token_that_the_model_rules_out_is_not_finite_and_one_it_ignores_is() -> None:
    head, hidden, labels = case(3, bias=True)
    labels = torch.tensor([1, 2, 3])
    assert head.bias is not None
    head.bias[1] = -float("inf")
    signals, losses = token_signals(head, hidden, labels)
    assert losses.isnan().tolist() == [True, False, False]
    assert torch.allclose(signals[1:], reference(head, hidden, labels)[0][1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("budget", [1, 700, 2**20])
def test_half_precision_rounds_the_logits_and_nothing_after_them(dtype: torch.dtype, budget: int) -> None:
    head, hidden, labels = case(11, vocabulary=40)
    half = Head(head.weight.to(dtype))
    hidden = hidden.to(dtype)
    weight = half.weight.double()
    residual = torch.softmax(half.logits(hidden).double(), 1)
    residual[torch.arange(11), labels] -= 1.0
    signals, losses = token_signals(half, hidden, labels, budget)
    assert signals.dtype == losses.dtype == torch.float32
    assert float((signals - residual @ weight).norm() / (residual @ weight).norm()) < GRAM[torch.float32]
    spans = [[0, 1, 2], [2, 3], [5, 6, 7, 8, 9, 10]]
    pooled, _ = pooled_signals(half, hidden, labels, Segments.of(spans), budget)
    means = torch.stack([(residual @ weight)[span].mean(0) for span in spans])
    assert float((pooled - means).norm() / means.norm()) < GRAM[torch.float32]


def test_inputs_are_left_as_they_were() -> None:
    head, hidden, labels = case(5, bias=True, softcap=2.0)
    assert head.bias is not None
    before = [tensor.clone() for tensor in (head.weight, head.bias, hidden, labels)]
    pooled_signals(head, hidden, labels, Segments.of([[0, 1]]))
    token_signals(head, hidden, labels)
    assert all(torch.equal(*pair) for pair in zip(before, (head.weight, head.bias, hidden, labels), strict=True))


def test_segments_count_their_tokens_and_average_them() -> None:
    segments = Segments.of([[2, 0], [], [2]])
    assert segments.tokens.tolist() == [0, 2, 2]
    assert segments.segments.tolist() == [0, 0, 2]
    assert segments.sizes().tolist() == [2, 0, 1]
    assert segments.matrix(3, torch.float64).tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


# -- the way of an accelerator, on the CPU ----------------------------------------------------------------------------


@pytest.fixture
def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "in_caches", lambda device: False)


SPANS = [[0], [1, 2, 3], [3, 4, 5], [0, 16], list(range(6, 15))]


@pytest.mark.usefixtures("as_accelerator")
@pytest.mark.parametrize("budget", [1, 500, 2**20])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_kernels_of_an_accelerator_give_the_signals_of_autograd(form: dict[str, Any], budget: int) -> None:
    head, hidden, labels = case(17, **form)
    expected, expected_losses = reference(head, hidden, labels)
    signals, losses = token_signals(head, hidden, labels, budget)
    assert torch.allclose(signals, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(losses, expected_losses, rtol=1e-10, atol=1e-12)
    pooled, losses = pooled_signals(head, hidden, labels, Segments.of(SPANS), budget)
    assert torch.allclose(pooled, torch.stack([expected[span].mean(0) for span in SPANS]), rtol=1e-10, atol=1e-12)
    assert torch.allclose(losses, expected_losses, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("confident", [False, True], ids=["unsure", "confident"])
def test_both_ways_are_one_in_every_type(dtype: torch.dtype, confident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden, labels = case(17)
    if confident:  # 1 - p of the label is about 1e-9: every digit of it has to come from the others
        hidden = 22.0 * head.weight[labels] / head.weight[labels].square().sum(1, keepdim=True)
    head, hidden = Head(head.weight.to(dtype)), hidden.to(dtype)
    found = {}
    for caches in (True, False):
        monkeypatch.setattr(upstream, "in_caches", lambda device, caches=caches: caches)
        found[caches] = pooled_signals(head, hidden, labels, Segments.of(SPANS))
    (pooled, losses), (other, other_losses) = found.values()
    assert pooled.dtype == other.dtype == torch.float32
    assert torch.allclose(pooled, other, rtol=1e-5, atol=1e-6 * float(pooled.abs().max()))
    assert torch.allclose(losses, other_losses, rtol=1e-5, atol=1e-6 * float(losses.max()))


@pytest.mark.usefixtures("as_accelerator")
@pytest.mark.parametrize("what", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at_label", [False, True])
def test_on_an_accelerator_a_row_that_is_not_finite_harms_no_other(what: float, at_label: bool) -> None:
    head, hidden, labels = case(5)
    hidden[1] = what
    bias = torch.zeros(head.vocabulary, dtype=torch.float64)
    if what == -torch.inf:  # the others' rows stay finite
        bias[labels[2] if at_label else (labels[2] + 1) % head.vocabulary] = what
    found, found_losses = token_signals(Head(head.weight, bias), hidden, labels)
    plain_losses = torch.nn.functional.cross_entropy(hidden @ head.weight.T + bias, labels, reduction="none")
    finite = torch.isfinite(plain_losses)
    assert not finite[1]
    assert finite[[0, 3, 4]].any()
    assert torch.equal(torch.isfinite(found_losses), finite)
    assert torch.allclose(found_losses[finite], plain_losses[finite])
    assert not found[~finite].any()
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("caches", [True, False])
def test_a_vocabulary_of_which_only_the_label_is_possible_has_no_signal(
    caches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "in_caches", lambda device: caches)
    head, hidden, _ = case(3)
    labels = torch.tensor([4, 4, 4])
    bias = torch.full((head.vocabulary,), -torch.inf, dtype=torch.float64)
    bias[4] = 0.0
    signals, losses = token_signals(Head(head.weight, bias), hidden, labels)
    assert not signals.any()
    assert not losses.any()
