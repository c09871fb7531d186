"""What we rely on in `torch`. A failure here names the assumption that a new version broke."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def aliases(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().requires_grad_() for name, p in model.named_parameters(remove_duplicate=False)}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))


def test_a_post_accumulate_hook_on_a_detached_leaf_fires_once_with_the_summed_gradient() -> None:
    parameter = nn.Parameter(torch.tensor([2.0, 3.0]))
    leaf = parameter.detach().requires_grad_()
    seen: list[Tensor] = []

    def hook(tensor: Tensor) -> None:
        assert tensor.grad is not None
        seen.append(tensor.grad.clone())
        tensor.grad = None

    leaf.register_post_accumulate_grad_hook(hook)
    (leaf.sum() + (leaf * leaf).sum() + 3 * leaf[0]).backward()
    assert [gradient.tolist() for gradient in seen] == [[8.0, 7.0]]
    assert leaf.grad is None
    assert parameter.grad is None


def test_a_hook_may_keep_the_gradient_and_the_next_backward_starts_anew() -> None:
    leaf, kept = torch.ones(2).requires_grad_(), []

    def hook(tensor: Tensor) -> None:
        kept.append(tensor.grad)
        tensor.grad = None

    leaf.register_post_accumulate_grad_hook(hook)
    for factor in (2.0, 5.0):
        (factor * leaf).sum().backward()
    assert [gradient.tolist() for gradient in kept] == [[2.0, 2.0], [5.0, 5.0]]


def test_a_detached_alias_shares_memory_and_leaves_the_flags_of_the_parameter_alone() -> None:
    parameter = nn.Parameter(torch.ones(2), requires_grad=False)
    alias = parameter.detach().requires_grad_()
    assert alias.data_ptr() == parameter.data_ptr()
    assert alias.is_leaf
    assert not parameter.requires_grad


def test_functional_call_takes_gradients_to_the_aliases_and_none_to_the_parameters(model: nn.Module) -> None:
    ours, given = aliases(model), torch.randn(3, 4)
    functional_call(model, ours, (given,)).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    found = {name: alias.grad for name, alias in ours.items()}
    model(given).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
        assert ours[name] is not parameter


def test_one_alias_under_both_names_of_a_tied_weight_gets_the_sum(model: nn.Module) -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    alias = tied[0].weight.detach().requires_grad_()
    given = torch.randn(3, 4)
    out = functional_call(tied, {"0.weight": alias, "1.weight": alias}, (given,), tie_weights=False)
    out.square().sum().backward()
    tied(given).square().sum().backward()
    assert alias.grad is not None
    torch.testing.assert_close(alias.grad, tied[0].weight.grad)


def test_functional_call_runs_the_hooks_of_the_modules_and_puts_parameters_back_after_an_error(
    model: nn.Module,
) -> None:
    before, seen = dict(model.named_parameters()), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[index]
    functional_call(model, aliases(model), (torch.randn(1, 4),))
    with pytest.raises(RuntimeError):
        functional_call(model, aliases(model), (torch.randn(1, 9),))
    handle.remove()
    assert seen == [1]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_a_parameter_that_is_not_reached_gets_no_call_of_its_hook(model: nn.Module) -> None:
    unused, seen = torch.ones(2).requires_grad_(), []
    unused.register_post_accumulate_grad_hook(lambda tensor: seen.append(tensor))
    functional_call(model, aliases(model), (torch.randn(1, 4),)).sum().backward()
    assert not seen
    assert unused.grad is None


def test_forward_mode_works_under_no_grad_and_through_functional_call() -> None:
    norm = nn.LayerNorm(4)
    given, direction = torch.randn(2, 4), torch.randn(4)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(norm.weight.detach(), direction)
        out = functional_call(norm, {"weight": dual}, (given,))
        tangent = forward_ad.unpack_dual(out).tangent
        assert tangent is not None
        plain = forward_ad.unpack_dual(functional_call(norm, {}, (given,))).tangent
    assert plain is None
    expected = nn.functional.layer_norm(given, (4,)) * direction
    torch.testing.assert_close(tangent, expected)
    assert not tangent.requires_grad


def test_a_hook_on_a_tensor_sees_the_gradient_of_all_that_was_made_from_it() -> None:
    leaf = torch.ones(2).requires_grad_()
    middle, seen = leaf * 2, []
    middle.register_hook(lambda gradient: seen.append(gradient.tolist()))
    (middle.sum() + 3 * middle.view_as(middle).sum()).backward()
    assert seen == [[4.0, 4.0]]


def test_a_hook_on_a_view_sees_what_was_made_from_the_view_alone() -> None:
    leaf = torch.ones(2).requires_grad_()
    middle = leaf * 2
    view, seen = middle.view_as(middle), []
    view.register_hook(lambda gradient: seen.append(gradient.tolist()))
    (middle.sum() + 3 * view.sum()).backward()
    assert seen == [[3.0, 3.0]]


def test_a_forward_hook_may_replace_the_output(model: nn.Module) -> None:
    handle = model.register_forward_hook(lambda _module, _args, output: output * 0)
    assert not model(torch.ones(1, 4)).any()
    handle.remove()
    assert model(torch.ones(1, 4)).any()


def test_a_checkpoint_runs_again_in_the_backward_with_the_aliases_and_the_hooks_of_its_modules(
    model: nn.Module,
) -> None:
    ours, given, seen = aliases(model), torch.randn(3, 4), []

    class Within(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self) -> None:
            out = checkpoint(self.inner.forward, given, use_reentrant=False, preserve_rng_state=False)
            assert len(seen) == 1
            out.square().sum().backward()

    handle = model[0].register_forward_pre_hook(lambda module, args: seen.append(module.weight is ours["0.weight"]))  # type: ignore[index]
    functional_call(Within(), {f"inner.{name}": alias for name, alias in ours.items()}, ())
    handle.remove()
    assert seen == [True, True]
    model(given).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(ours[name].grad, parameter.grad)  # type: ignore[arg-type]


def test_a_checkpoint_keeps_the_gradients_of_hooks_on_tensors_made_in_its_first_run(model: nn.Module) -> None:
    seen: list[Tensor] = []
    runs: list[int] = []

    def run(given: Tensor) -> Tensor:
        middle = model[0](given)  # type: ignore[index]
        runs.append(1)
        if len(runs) == 1:
            middle.register_hook(seen.append)
        return model[2](middle)  # type: ignore[index]

    checkpoint(run, torch.randn(3, 4), use_reentrant=False).sum().backward()
    assert len(runs) == 2
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], torch.ones(3, 4) @ model[2].weight.detach())  # type: ignore[index]


def test_a_backward_with_a_given_gradient_needs_no_scalar() -> None:
    leaf = torch.ones(2, 2).requires_grad_()
    torch.autograd.backward(leaf * 3, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[3.0, 0.0], [0.0, 6.0]]


def test_the_version_of_a_parameter_grows_when_it_is_changed_in_place_and_not_when_it_is_read(
    model: nn.Module,
) -> None:
    def version() -> int:
        return sum(parameter._version for parameter in model.parameters())

    def grown(act: Any) -> bool:
        before = version()
        act()
        return version() > before

    given = torch.randn(2, 4)
    assert not grown(lambda: model(given).sum().backward())
    assert not grown(lambda: functional_call(model, aliases(model), (given,)).sum().backward())
    assert not grown(lambda: model.state_dict())
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        assert grown(kind(model.parameters(), lr=0.1).step)
    assert grown(lambda: model.load_state_dict(model.state_dict()))
    with torch.inference_mode():
        made = torch.ones(2)
    assert made.is_inference()
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_integers_of_a_seeded_generator_are_the_same_everywhere() -> None:
    drawn = torch.randint(0, 2, (12,), generator=torch.Generator().manual_seed(7), dtype=torch.int8)
    assert drawn.tolist() == [1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("masked", [True, False])
def test_the_plain_kernel_of_attention_has_a_derivative_in_forward_mode(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(6)]
    mask = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1) if masked else None

    def attend(*given: torch.Tensor) -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=mask)

    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(attend(*map(forward_ad.make_dual, values[:3], values[3:]))).tangent
    step = 1e-6
    ahead, behind = (attend(*(v + s * step * t for v, t in zip(values[:3], values[3:], strict=True))) for s in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), atol=1e-8, rtol=1e-6)
