"""Products and sums by the rule have torch's own values and derivatives, to the last bit."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from hf_curate.gradients import forward_mode as room
from hf_curate.gradients.forward_mode import forward_mode

GENERATOR = torch.Generator().manual_seed(3)
OPERANDS: dict[str, Any] = {
    "of the same shape": torch.randn(3, 4, generator=GENERATOR),
    "broadcast to it": torch.randn(4, generator=GENERATOR),
    "that it is broadcast to": torch.randn(2, 3, 4, generator=GENERATOR),
    "of another dtype": torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64),
    "of less precision": torch.randn(3, 4, generator=GENERATOR).bfloat16(),
    "whole numbers": torch.arange(4),
    "a number": 0.3,
    "a whole number": 3,
    "without dimensions": torch.tensor(0.7, dtype=torch.float64),
}
WAYS: dict[str, Callable[[Any, Any], Tensor]] = {
    "a * b": operator.mul,
    "a + b": operator.add,
    "torch.mul": lambda a, b: torch.mul(a if isinstance(a, Tensor) else torch.tensor(a), b),
    "torch.add": lambda a, b: torch.add(a if isinstance(a, Tensor) else torch.tensor(a), b),
    "a - b": operator.sub,  # not by the rule
    "torch.add with alpha": lambda a, b: torch.add(a if isinstance(a, Tensor) else torch.tensor(a), b, alpha=2),
}


def found(does: Callable[[Any, Any], Tensor], a: Tensor, along: Tensor, b: Any, turned: bool) -> list[Tensor]:
    dual = forward_ad.make_dual(a, along)
    value, derivative = forward_ad.unpack_dual(does(b, dual) if turned else does(dual, b))
    assert derivative is not None
    return [value.clone(), derivative.clone()]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operand", OPERANDS)
def test_values_and_derivatives_are_those_of_torch(operand: str, way: str, turned: bool) -> None:
    a, along = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(8))
    with torch.no_grad(), forward_ad.dual_level():
        wanted = found(WAYS[way], a, along, OPERANDS[operand], turned)
    with forward_mode():
        ours = found(WAYS[way], a, along, OPERANDS[operand], turned)
    for one, other in zip(ours, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", ["a * b", "a + b"])
def test_what_is_changed_in_place_afterwards_is_not_the_operands(way: str) -> None:
    values, along = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    before = along.clone()
    with forward_mode():
        dual = forward_ad.make_dual(values, along)
        WAYS[way](dual, 1.0).neg_()
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, before)
    assert torch.equal(along, before)


def test_two_derivatives_and_none_are_left_to_torch() -> None:
    a, b, along, also = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    with forward_mode():
        one, other = forward_ad.make_dual(a, along), forward_ad.make_dual(b, also)
        value, derivative = forward_ad.unpack_dual(one * other)
        assert torch.equal(value, a * b)
        assert torch.allclose(derivative, along * b + a * also)
        assert forward_ad.unpack_dual(a * b).tangent is None
        assert not torch.is_grad_enabled()


def test_the_rule_is_what_a_product_with_a_weight_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], room._by_rule

    def watched(does: Any, first: Any, second: Any) -> Any:
        seen.append(does)
        return real(does, first, second)

    monkeypatch.setattr(room, "_by_rule", watched)
    weight = torch.ones(4)
    with forward_mode():
        dual = forward_ad.make_dual(weight, weight)
        _ = dual * torch.ones(3, 4), torch.ones(3, 4) * dual, 1.0 + dual, dual + 1.0, dual - 1.0
    assert seen == [operator.mul, operator.mul, operator.add, operator.add]


def test_a_mode_around_it_sees_what_the_rule_does() -> None:
    class Doubles(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = [value.double() if isinstance(value, Tensor) else value for value in args]
            return func(*given, **(kwargs or {}))

    with Doubles(), forward_mode():
        dual = forward_ad.make_dual(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        value, derivative = forward_ad.unpack_dual(dual * torch.ones(2))
        assert (value.dtype, derivative.dtype) == (torch.float64, torch.float64)
