"""Products of rollouts without the gradient of a parameter: the numbers of explicit gradients in float64. A sum that
is compared with the whole gradient now and then."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import policy_reference as reference
import pytest
import torch
from policy_reference import GROUPS
from test_policy_products import (
    expected,
    gradients,
    marked,
    random_direction,
    repeated,
    state,
    subject,
    wide,
    with_adapters,
)
from tolerances import POLICY
from torch import Tensor, nn
from zoo import ZOO, build, ready

from hf_curate.gradients import inner
from hf_curate.gradients.inner import Products, policy_products, route
from hf_curate.gradients.parameters import parameters_of
from hf_curate.models import LanguageModel


def alone(model: LanguageModel, chosen: str, parameters: Any, direction: Any, **options: Any) -> Products:
    group = GROUPS[chosen]
    return policy_products(
        model, list(group.rollouts), list(group.advantages), parameters, direction, norm=False, **options
    )


def check(ours: Products, theirs: reference.Expected, tolerance: float) -> None:
    assert theirs.direction is not None
    assert ours.dot is not None
    assert ours.per_rollout is not None
    along = float(theirs.direction.norm())
    assert abs(ours.dot - theirs.dot) <= tolerance * math.sqrt(theirs.squared_norm) * along
    missed = np.abs(ours.per_rollout - np.array(theirs.per_rollout)).max()
    assert missed <= tolerance * max(theirs.lengths) * along
    assert not ours.cancels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("which", ["all", "linear", r"\.1\."], ids=["all", "linear", "last block"])
@pytest.mark.parametrize("name", ZOO)
def test_products_alone_equal_those_of_explicit_gradients(name: str, which: str, dtype: torch.dtype) -> None:
    model = subject(name, dtype)
    parameters = parameters_of(model.model, which)
    names, drawn = reference.names_of(build(name), which), random_direction(parameters)
    ways = (("eight", 8192), ("four", 2), ("eight", 20), ("five", 8192))
    for chosen, batch_tokens in ways if which == "all" else ways[:2]:
        group = GROUPS[chosen]
        theirs = expected(gradients(name, chosen), group.advantages, drawn, names)
        ours = alone(model, chosen, parameters, drawn, batch_tokens=batch_tokens)
        check(ours, theirs, POLICY[dtype])


@pytest.mark.parametrize("which", ["adapters", "all"])
def test_products_alone_of_adapters(which: str) -> None:
    live = wide(with_adapters.__wrapped__("qwen3", torch.float64))
    parameters = parameters_of(live, which)
    direction = random_direction(parameters)
    found = [reference.rollout_gradient(live, rollout) for rollout in GROUPS["eight"].rollouts]
    theirs = expected(found, GROUPS["eight"].advantages, direction, list(parameters))
    check(alone(ready(live), "eight", parameters, direction), theirs, POLICY[torch.float64])


def test_no_parameter_takes_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject("qwen3")
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    for _ in range(2):  # what is compared on the first problems needs them
        alone(model, "eight", parameters, direction)
    monkeypatch.setattr(inner, "_due", lambda model, parameters: False)
    real, takes = inner.policy_gradient, []

    def seen(model: Any, rollouts: Any, weights: Any, parameters: Any, take: Any, **options: Any) -> Any:
        takes.append(take)
        return real(model, rollouts, weights, parameters, take, **options)

    monkeypatch.setattr(inner, "policy_gradient", seen)
    ours = alone(model, "eight", parameters, direction)
    assert takes == [None]
    assert math.isnan(ours.squared_norm)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral", "falcon"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = marked(name)
    before = state(model.model)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    for batch_tokens in (20, 8192):
        alone(model, "eight", parameters, direction, batch_tokens=batch_tokens)
        assert state(model.model) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.model.state_dict().items())


def test_identical_responses_with_mixed_rewards_cancel_here_too() -> None:
    model, group = subject("qwen3"), repeated(3, [1.0, 0.0, 0.0])
    parameters = parameters_of(model.model, "all")
    found = policy_products(
        model, group.rollouts, group.advantages, parameters, random_direction(parameters), norm=False
    )
    assert (found.cancels, found.dot) == (True, 0.0)


def test_the_same_bits_whether_or_not_the_sum_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject("qwen3", torch.float32)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    found = []
    for due in (True, False):
        monkeypatch.setattr(inner, "_due", lambda model, parameters, due=due: due)
        found.append(alone(model, "eight", parameters, direction))
    assert found[0].dot == found[1].dot
    assert np.array_equal(found[0].per_rollout, found[1].per_rollout)  # type: ignore[arg-type]


def test_the_sum_is_compared_on_the_first_the_second_the_fourth_problem() -> None:
    model = ready(build.__wrapped__("llama"))
    parameters = parameters_of(model.model, "all")
    assert [inner._due(model, parameters) for _ in range(9)] == [True, True, False, True, *[False] * 3, True, False]


def test_a_part_that_the_comparison_misses_ends_the_shortcut() -> None:
    live = build.__wrapped__("llama")
    owner = live.get_submodule("model.layers.0.self_attn.o_proj")

    def borrow(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:  # in rows of more than 20 tokens alone
        return output + output @ owner.weight.T if output.shape[1] > 20 else output  # type: ignore[union-attr]

    live.get_submodule("model.layers.1.mlp").register_forward_hook(borrow)
    model = ready(wide(live))
    parameters = parameters_of(live, "all")
    assert route(model, parameters, shared=True) == "shared"
    direction = random_direction(parameters)
    found = [reference.rollout_gradient(live, rollout) for rollout in GROUPS["eight"].rollouts]
    theirs = expected(found, GROUPS["eight"].advantages, direction, list(parameters))
    check(alone(model, "eight", parameters, direction), theirs, POLICY[torch.float64])
    assert route(model, parameters, shared=True) == "together"
