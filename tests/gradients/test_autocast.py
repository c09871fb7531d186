"""Under a trainer's autocast: the gradients that training would take, and the types that it computes in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import rollouts
import torch
from torch import nn

from hf_curate.batches import Rollout
from hf_curate.gradients.inner import policy_products
from hf_curate.gradients.policy import policy_gradient
from hf_curate.models import LanguageModel, causal_lm, load_model
from hf_curate.rollouts.sample import sample
from hf_curate.weights import ModelSource

RUN = [Rollout([(7 * k + 3 * i) % 19 for i in range(5 + k)], 2 + k % 2) for k in range(4)]
ADVANTAGES = [0.75, -0.25, -0.25, -0.25]
APART = 0.015
"""Relative, norm-wise, of gradients whose products have 8 bits, in two orders of batches: 0.008 measured. Those in
float32 are 0.017 away from both."""


def live(**options: Any) -> LanguageModel:
    model = rollouts.policy(**options).eval()
    return load_model(ModelSource.of(model), rollouts.tokenizer())


def ours(model: LanguageModel, batch_tokens: int = 8192) -> torch.Tensor:
    parameters, found = dict(model.model.named_parameters()), {}
    weights = [advantage / len(RUN) for advantage in ADVANTAGES]
    policy_gradient(model, RUN, weights, parameters, found.__setitem__, batch_tokens=batch_tokens)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    return torch.cat([found[name].flatten() for name in parameters])


def trained(model: LanguageModel, autocast: bool) -> torch.Tensor:
    """By autograd through the model's own forward, as a trainer calls it."""
    other: Any = copy.deepcopy(model.model)
    for rollout, advantage in zip(RUN, ADVANTAGES, strict=True):
        ids = torch.tensor([rollout.input_ids])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = other(input_ids=ids, use_cache=False).logits[0, :-1]
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[rollout.start - 1 :, 0]
        (advantage / len(RUN) * chosen.mean()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in other.parameters()])


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"kind": "Gemma2"}], ids=str)
def test_gradients_are_those_that_training_takes_under_autocast(options: dict[str, Any]) -> None:
    plain = live(**options)
    lowered = plain.as_now(torch.bfloat16)
    expected, exact = trained(plain, True), trained(plain, False)
    assert apart(ours(plain), exact) < 1e-4
    assert 1e-4 < apart(ours(lowered), expected) < APART
    assert apart(exact, expected) > APART, "autocast makes a difference"
    assert apart(ours(lowered, batch_tokens=4), expected) < APART, "where blocks run again they do so under autocast"


def test_products_of_rollouts_sum_to_that_of_the_whole_gradient() -> None:
    plain = live()
    parameters, gradient = dict(plain.model.named_parameters()), ours(plain)
    direction = dict(zip(parameters, gradient.split([p.numel() for p in parameters.values()]), strict=True))
    direction = {name: part.reshape(parameters[name].shape) for name, part in direction.items()}
    exact, found = (
        policy_products(model, RUN, ADVANTAGES, parameters, direction)
        for model in (plain, plain.as_now(torch.bfloat16))
    )
    assert found.dot == pytest.approx(exact.dot, rel=2 * APART)
    assert found.squared_norm == pytest.approx(exact.squared_norm, rel=4 * APART)
    assert exact.per_rollout is not None
    assert found.per_rollout == pytest.approx(
        exact.per_rollout, rel=2 * APART, abs=APART * abs(exact.per_rollout).max()
    )


def test_all_products_of_a_forward_are_in_the_type_of_autocast() -> None:
    plain = live()
    seen: set[torch.dtype] = set()
    for module in plain.decoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, given, out: seen.add(out.dtype))
    for autocast in (None, torch.bfloat16):
        seen.clear()
        model = plain.as_now(autocast)
        sample(model, [[3, 4, 5]], 2, keys=[1], max_new_tokens=3, eos=set())
        sampled = set(seen)
        ours(model)
        assert sampled == seen == {autocast or torch.float32}
        assert model.head.weight.dtype == (autocast or torch.float32)
        assert model.is_current()
    wide = plain.as_now(torch.bfloat16, narrow_head=False)
    assert (wide.head.weight.dtype, wide.autocast) == (torch.float32, torch.bfloat16)
    assert ours(wide).isfinite().all()


def test_a_model_whose_head_was_replaced_is_no_longer_current_and_can_be_made_so() -> None:
    lowered = live(tie_word_embeddings=False).as_now(torch.bfloat16)
    head = causal_lm(lowered.model).get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() + 1.0)
    assert not lowered.is_current()
    again = lowered.as_now(torch.bfloat16)
    assert again.is_current()
    assert torch.equal(again.head.weight, head.weight.to(torch.bfloat16))
