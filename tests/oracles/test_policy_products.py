"""Policy gradients of problems, on every kind of block and head, against plain loops in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import policy_reference as reference
import pytest
import torch
from policy_reference import GROUPS, Group
from tolerances import POLICY, REFERENCES, SLOPE
from torch import Tensor, nn
from zoo import ZOO, _KeepDouble, build, ready

from hf_curate.batches import Rollout
from hf_curate.gradients import policy
from hf_curate.gradients.inner import Products, policy_products, route
from hf_curate.gradients.parameters import parameters_of
from hf_curate.models import LanguageModel

DTYPES = (torch.float64, torch.float32)
FIRST_BLOCK = r"\.0\."
SETS = ("all", "linear", FIRST_BLOCK)


def wide(model: nn.Module) -> nn.Module:
    """A float64 model whose modules stay in float64 when they are run by themselves, as the engine may do."""
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.forward = _KeepDouble.around(module.forward)
    return model


@functools.cache
def subject(name: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """What the engine is given; the references have the models of the zoo."""
    return ready(wide(build.__wrapped__(name)) if dtype == torch.float64 else build(name, dtype))


@functools.cache
def gradients(name: str, chosen: str) -> list[reference.Gradient]:
    """Of each rollout of a group, over all parameters, from one forward each in float64."""
    return [reference.rollout_gradient(build(name), rollout) for rollout in GROUPS[chosen].rollouts]


def random_direction(parameters: dict[str, nn.Parameter], seed: int = 5) -> dict[str, Tensor]:
    """Drawn in float32, so that both dtypes are given the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator).to(p.dtype) for name, p in parameters.items()}


def as_direction(gradient: reference.Gradient, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The part of a gradient that belongs to the parameters, rounded to their dtype."""
    return {name: gradient[name].to(p.dtype) for name, p in parameters.items()}


def combined(found: Sequence[reference.Gradient], advantages: Sequence[float]) -> reference.Gradient:
    return {name: reference.policy_gradient([gradient[name] for gradient in found], advantages) for name in found[0]}


def expected(
    found: Sequence[reference.Gradient],
    advantages: Sequence[float],
    direction: dict[str, Tensor] | None,
    names: list[str],
) -> reference.Expected:
    along = None if direction is None else reference.flat(direction, names)
    return reference.products([reference.flat(gradient, names) for gradient in found], advantages, along)


def check(ours: Products, theirs: reference.Expected, tolerance: float) -> None:
    """Norm-wise: a dot product may miss by a share of |g||v|, a d_k by a share of the largest |v_k||v|."""
    length = math.sqrt(theirs.squared_norm)
    assert abs(math.sqrt(ours.squared_norm) - length) <= tolerance * length
    assert not ours.cancels
    if theirs.direction is None:
        assert (ours.dot, ours.per_rollout) == (None, None)
        return
    assert ours.dot is not None
    along = float(theirs.direction.norm())
    assert abs(ours.dot - theirs.dot) <= tolerance * length * along
    assert isinstance(ours.per_rollout, np.ndarray)
    assert ours.per_rollout.dtype == np.float64
    assert ours.per_rollout.shape == (len(theirs.per_rollout),)
    missed = np.abs(ours.per_rollout - np.array(theirs.per_rollout)).max()
    assert missed <= tolerance * max(theirs.lengths) * along


def products(
    model: LanguageModel, group: Group, parameters: dict[str, nn.Parameter], direction: Any, **options: Any
) -> Products:
    return policy_products(model, list(group.rollouts), list(group.advantages), parameters, direction, **options)


# -- the references, against each other ----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ZOO)
def test_a_rollout_has_the_gradient_that_it_has_in_a_padded_batch(name: str, side: str) -> None:
    for chosen, group in GROUPS.items():
        padded = reference.padded_gradients(build(name), group.rollouts, side)
        for alone, row in zip(gradients(name, chosen), padded, strict=True):
            difference = reference.flat(alone, alone) - reference.flat(row, alone)
            assert float(difference.norm()) < REFERENCES * float(reference.flat(alone, alone).norm())


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2", "qwen3_moe"])
def test_the_gradient_is_the_slope_of_the_mean_log_probability(name: str) -> None:
    model = build.__wrapped__(name)  # a copy of its own: the weights are moved
    rollout, step = GROUPS["eight"].rollouts[0], 1e-5
    direction = random_direction(reference.floating(model))
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for parameter, before, along in zip(
                reference.floating(model).values(), build(name).parameters(), direction.values(), strict=True
            ):
                parameter.copy_(before + sign * step * along)
        values.append(reference.mean_log_probability(model, rollout))
    slope = (values[0] - values[1]) / (2 * step)
    gradient = reference.flat(gradients(name, "eight")[0], direction)
    found = reference.inner(gradient, reference.flat(direction, direction))
    assert abs(found - slope) < SLOPE * float(gradient.norm())


def test_the_log_probability_is_that_of_the_response_tokens_alone() -> None:
    class Table(nn.Module):
        """Logits are rows of a table: the gradient is one-hot minus softmax, divided by the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64))

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"logits": self.weight[input_ids]})

    table = Table()
    gradient = reference.rollout_gradient(table, Rollout([1, 0, 1, 1], 2))["weight"]  # 0 -> 1, then 1 -> 1
    low, high = 1 / (1 + math.e), 1 / (1 + math.exp(-2))
    wanted = torch.tensor([[-low / 2, low / 2], [-high / 2, high / 2]], dtype=torch.float64)
    assert torch.allclose(gradient, wanted, rtol=1e-14)
    value = (math.log(1 - low) + math.log(1 - high)) / 2
    assert reference.mean_log_probability(table, Rollout([1, 0, 1, 1], 2)) == pytest.approx(value, rel=1e-14)


def test_the_statistics_of_a_group_by_hand() -> None:
    advantages, found = reference.advantages_of([1.0, 0.0, 0.0, 1.0]), [3.0, 1.0, 2.0, 6.0]
    assert advantages == [0.5, -0.5, -0.5, 0.5]
    parts = reference.parts(advantages, found)  # d - 3 is 0, -2, -1, 3
    assert parts == [0.0, 1.0, 0.5, 1.5]
    assert sum(parts) / 4 == sum(a * d for a, d in zip(advantages, found, strict=True)) / 4 == 0.75
    error = math.sqrt((0.75**2 + 0.25**2 + 0.25**2 + 0.75**2) / 3) / 2
    assert reference.standard_error(parts) == pytest.approx(error, rel=1e-14)
    assert reference.t_statistic(parts) == pytest.approx(0.75 / error, rel=1e-14)
    assert reference.correlation(advantages, found) == pytest.approx(3 / math.sqrt(14), rel=1e-14)
    assert reference.learnability([1.0, 0.0, 0.5, 0.6]) == 0.25


def test_the_scores_of_a_pool_by_hand() -> None:
    pool = [torch.tensor(row, dtype=torch.float64) for row in ([2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-3.0, 0.0])]
    # cosines with the others: 1 and -1 and 0; a problem without gradient has 0 with itself too
    assert reference.learnalign(pool, [0.25, 0.2, 0.0, 0.1]) == pytest.approx(
        [(0.0625 - 0.025) / 4, 0.04 / 4, 0.0, (0.01 - 0.025) / 4], rel=1e-14
    )
    assert reference.mean_of(pool).tolist() == [-0.25, 0.25]
    half = math.sqrt(0.5)
    assert reference.align(pool) == pytest.approx([-half, half, 0.0, half], rel=1e-14)


# -- the engine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", SETS, ids=["all", "linear", "first block"])
@pytest.mark.parametrize("name", ZOO)
def test_products_equal_those_of_explicit_gradients(name: str, which: str, dtype: torch.dtype) -> None:
    model = subject(name, dtype)
    parameters = parameters_of(model.model, which)
    names = reference.names_of(build(name), which)
    assert list(parameters) == names
    drawn = random_direction(parameters)
    for chosen in GROUPS if which == "all" else ("three", "eight"):
        theirs = expected(gradients(name, chosen), GROUPS[chosen].advantages, drawn, names)
        check(products(model, GROUPS[chosen], parameters, drawn), theirs, POLICY[dtype])
    other = as_direction(combined(gradients(name, "five"), GROUPS["five"].advantages), parameters)
    for chosen, direction in (("five", other), ("eight", None)):
        theirs = expected(gradients(name, chosen), GROUPS[chosen].advantages, direction, names)
        check(products(model, GROUPS[chosen], parameters, direction), theirs, POLICY[dtype])


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each pass how many blocks keep their input alone and run a second time."""
    seen: list[int] = []
    real = policy.recomputing

    def counted(blocks: list[nn.Module]) -> Any:
        seen.append(len(blocks))
        return real(blocks)

    monkeypatch.setattr(policy, "recomputing", counted)
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch_tokens", "passes"), [(20, 1), (2, 2)], ids=["blocks run again", "several passes"])
@pytest.mark.parametrize("name", ZOO)
def test_a_group_of_more_tokens_than_are_kept_has_the_same_products(
    name: str, batch_tokens: int, passes: int, dtype: torch.dtype, again: list[int]
) -> None:
    model = subject(name, dtype)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    how, _ = route(model, parameters), route(model, parameters, shared=True)  # both are found out before passes count
    for chosen, along in (("five", direction), ("eight", direction), ("eight", None)):
        group = GROUPS[chosen]
        theirs = expected(gradients(name, chosen), group.advantages, along, list(parameters))
        again.clear()
        check(products(model, group, parameters, along, batch_tokens=batch_tokens), theirs, POLICY[dtype])
        assert again[:passes] == [2] * passes
        if along is None or how != "apart":  # one backward for each rollout adds passes of its own
            assert (len(again) == 1) == (passes == 1)
    assert route(model, parameters) == how, "rollouts are told apart as they are in a pass that keeps everything"


def test_rollouts_without_a_weight_are_told_apart_in_blocks_that_run_again_too(again: list[int]) -> None:
    for name in ("qwen3", "mixtral"):
        model, group = subject(name), GROUPS["four"]  # two of whose responses have weights that cancel
        parameters = parameters_of(model.model, "all")
        direction = random_direction(parameters)
        theirs = expected(gradients(name, "four"), group.advantages, direction, list(parameters))
        check(products(model, group, parameters, direction, batch_tokens=4), theirs, POLICY[torch.float64])
        assert again[-2:] == [2, 2]


@pytest.mark.parametrize("batch_tokens", [20, 8192])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
def test_without_the_rollouts_products_the_others_are_the_same(name: str, batch_tokens: int) -> None:
    model, group = subject(name), GROUPS["eight"]
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    options = {"batch_tokens": batch_tokens}
    ours = products(model, group, parameters, direction, per_rollout=False, **options)
    theirs = expected(gradients(name, "eight"), group.advantages, direction, list(parameters))
    assert ours.per_rollout is None
    assert ours.dot is not None
    length = math.sqrt(theirs.squared_norm)
    assert abs(ours.dot - theirs.dot) <= POLICY[torch.float64] * length * float(theirs.direction.norm())  # type: ignore[union-attr]
    assert math.sqrt(ours.squared_norm) == pytest.approx(length, rel=POLICY[torch.float64])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
def test_the_order_of_the_rollouts_does_not_matter(name: str, dtype: torch.dtype) -> None:
    model, group = subject(name, dtype), GROUPS["eight"]
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    turned = Group(tuple(group.rollouts[k] for k in order), tuple(group.advantages[k] for k in order))
    found = [gradients(name, "eight")[k] for k in order]
    theirs = expected(found, turned.advantages, direction, list(parameters))
    check(products(model, turned, parameters, direction), theirs, POLICY[dtype])


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
def test_the_mean_over_rollouts_is_the_inner_product_and_its_parts_are_the_statistics(name: str) -> None:
    model = subject(name)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    for chosen in ("three", "four", "five", "eight"):  # of two rollouts both parts are equal, and t is infinite
        group = GROUPS[chosen]
        ours = products(model, group, parameters, direction)
        vectors = [reference.flat(gradient, parameters) for gradient in gradients(name, chosen)]
        along = reference.flat(direction, parameters)
        scale = math.sqrt(ours.squared_norm) * float(along.norm())
        assert ours.per_rollout is not None
        parts = reference.parts(group.advantages, ours.per_rollout.tolist())
        assert ours.dot is not None
        assert abs(sum(parts) / len(parts) - ours.dot) < POLICY[torch.float64] * scale
        wanted = reference.parts(group.advantages, [reference.inner(vector, along) for vector in vectors])
        assert reference.t_statistic(parts) == pytest.approx(reference.t_statistic(wanted), rel=1e-8)


# -- gradients that cancel -----------------------------------------------------------------------------------


def repeated(times: int, rewards: Sequence[float]) -> Group:
    rollout = GROUPS["eight"].rollouts[0]
    return Group((rollout,) * times, tuple(reference.advantages_of(rewards)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "batch_tokens"), [("qwen3", 1), ("mixtral", 45), *((name, 8192) for name in ZOO)])
def test_identical_responses_with_mixed_rewards_cancel(name: str, batch_tokens: int, dtype: torch.dtype) -> None:
    model = subject(name, dtype)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    for rewards in ([1.0, 0.0], [1.0, 0.0, 0.0], [0.1, 0.2, 0.4, 0.9, 0.3, 0.7, 0.6]):
        group = repeated(len(rewards), rewards)
        ours = products(model, group, parameters, direction, batch_tokens=batch_tokens)
        assert (ours.cancels, ours.dot, ours.squared_norm) == (True, 0.0, 0.0)
        assert ours.per_rollout is not None
        assert np.isnan(ours.per_rollout).tolist() == [True] * len(rewards)
        ours = products(model, group, parameters, None, batch_tokens=batch_tokens)
        assert ours == Products(None, 0.0, None, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
def test_a_small_gradient_that_does_not_cancel_is_told_apart(name: str, dtype: torch.dtype) -> None:
    model = subject(name, dtype)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    twins = repeated(4, [1.0, 0.0, 1.0, 0.0])
    last = twins.rollouts[0].input_ids
    other = replace(twins.rollouts[0], input_ids=[*last[:-1], last[-1] + 1])  # one token of twelve
    nearly = Group((other, *twins.rollouts[1:]), twins.advantages)
    found = [reference.rollout_gradient(build(name), rollout) for rollout in nearly.rollouts]
    check(
        products(model, nearly, parameters, direction),
        expected(found, nearly.advantages, direction, list(parameters)),
        POLICY[dtype],
    )
    faint = Group(GROUPS["eight"].rollouts, tuple(1e-6 * a for a in GROUPS["eight"].advantages))
    check(
        products(model, faint, parameters, direction),
        expected(gradients(name, "eight"), faint.advantages, direction, list(parameters)),
        POLICY[dtype],
    )


# -- adapters, parameters without a gradient, and a model that is left as it was -----------------------------


@functools.cache
def with_adapters(name: str, dtype: torch.dtype, **options: Any) -> nn.Module:
    """Adapters with the same numbers in both dtypes; B is not 0, as it would be before training."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", **({"target_modules": "all-linear"} | options))
    model = peft.get_peft_model(build.__wrapped__(name, dtype), config).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            if "lora_" in each and "magnitude" not in each:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@functools.cache
def adapted_gradients(name: str, chosen: str, **options: Any) -> list[reference.Gradient]:
    model = with_adapters(name, torch.float64, **options)
    return [reference.rollout_gradient(model, rollout) for rollout in GROUPS[chosen].rollouts]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["adapters", "all", "linear"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2"])
def test_products_of_a_model_with_adapters(name: str, which: str, dtype: torch.dtype) -> None:
    live = with_adapters.__wrapped__(name, dtype)
    live = wide(live) if dtype == torch.float64 else live
    parameters = parameters_of(live, which)
    names = reference.names_of(live, which)
    assert list(parameters) == names
    assert any("lora_A" in each for each in names)
    direction, before = random_direction(parameters), state(live)
    assert not all(before["flags"])
    group = GROUPS["eight"]
    theirs = expected(adapted_gradients(name, "eight"), group.advantages, direction, names)
    for batch_tokens in (3, 30, 8192):  # several passes, blocks that run again, everything kept
        ours = products(ready(live), group, parameters, direction, batch_tokens=batch_tokens)
        check(ours, theirs, POLICY[dtype])
    assert state(live) == before


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("llama", {"use_dora": True}),
    "on embeddings": ("llama", {"target_modules": ("embed_tokens", "q_proj")}),
    "norms and embeddings trained whole": ("llama", {"modules_to_save": ("norm", "embed_tokens")}),
    "on fused experts": (
        "mixtral",
        {"target_modules": ("q_proj",), "target_parameters": ("mlp.experts.gate_up_proj",)},
    ),
}


@pytest.mark.parametrize("which", ["adapters", "all"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_products_of_a_model_with_adapters_of_other_kinds(kind: str, which: str) -> None:
    name, options = ADAPTERS[kind]
    live = with_adapters.__wrapped__(name, torch.float32, **options)
    model = ready(live)  # a forward: adapters on fused weights put them back in another order
    parameters = parameters_of(live, which)
    direction, before = random_direction(parameters), state(live)
    for chosen in ("three", "five", "eight"):
        group = GROUPS[chosen]
        theirs = expected(adapted_gradients(name, chosen, **options), group.advantages, direction, list(parameters))
        check(products(model, group, parameters, direction), theirs, POLICY[torch.float32])
        assert state(live) == before


@pytest.mark.parametrize("first", ["zero", "random"])
def test_a_weight_that_is_used_without_its_module_counts_whatever_was_asked_first(first: str) -> None:
    live = build.__wrapped__("llama")
    owner = live.get_submodule("model.layers.0.self_attn.o_proj")

    def borrow(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        return output + output @ owner.weight.T  # type: ignore[union-attr]

    live.get_submodule("model.layers.1.mlp").register_forward_hook(borrow)
    parameters, group = parameters_of(live, "all"), GROUPS["five"]
    model, direction = ready(wide(live)), random_direction(parameters)
    if first == "zero":
        zero = {name: torch.zeros_like(value) for name, value in direction.items()}
        ours = products(model, group, parameters, zero)
        assert ours.dot == 0.0
        assert ours.per_rollout is not None
        assert not ours.per_rollout.any()
    found = [reference.rollout_gradient(live, rollout) for rollout in group.rollouts]
    theirs = expected(found, group.advantages, direction, list(parameters))
    check(products(model, group, parameters, direction), theirs, POLICY[torch.float64])


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_a_parameter_that_nothing_uses_adds_nothing(name: str) -> None:
    live = build.__wrapped__(name)
    live.register_parameter("unused", nn.Parameter(torch.full((3, 2), 7.0, dtype=torch.float64)))
    parameters = parameters_of(live, "all")
    assert "unused" in parameters
    direction, group = random_direction(parameters), GROUPS["eight"]
    used = [each for each in parameters if each != "unused"]
    theirs = expected(gradients(name, "eight"), group.advantages, direction, used)
    ours = products(ready(live), group, parameters, direction)
    check(replace(ours), replace(theirs, direction=reference.flat(direction, used)), POLICY[torch.float64])
    check(products(ready(live), group, parameters, None), replace(theirs, direction=None), POLICY[torch.float64])


def marked(name: str) -> LanguageModel:
    """A copy in training mode in part, with mixed `requires_grad` and `.grad` that someone else accumulated."""
    model = build.__wrapped__(name, torch.float32)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 3 == 1:
            parameter.grad = torch.full_like(parameter, 0.5)
    wrapped = ready(model)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    return wrapped


def state(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [(name, *(len(getattr(module, kind)) for kind in hooks)) for name, module in model.named_modules()],
        "training": [module.training for module in model.modules()],
        "names": [(name, id(parameter)) for name, parameter in model.named_parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "on parameters": [
            (len(p._backward_hooks or {}), len(p._post_accumulate_grad_hooks or {})) for p in model.parameters()
        ],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.unique().tolist()) for p in model.parameters()],
        "enabled": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("batch_tokens", [30, 8192])
@pytest.mark.parametrize("which", SETS, ids=["all", "linear", "first block"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral", "falcon"])
def test_flags_gradients_hooks_and_weights_are_as_before(name: str, which: str, batch_tokens: int) -> None:
    model = marked(name)
    before = state(model.model)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    parameters = parameters_of(model.model, which)
    direction = random_direction(parameters)
    given = {key: value.clone() for key, value in direction.items()}
    for group in (GROUPS["eight"], repeated(2, [1.0, 0.0])):
        for along in (direction, None):
            products(model, group, parameters, along, batch_tokens=batch_tokens)
            assert state(model.model) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.model.state_dict().items())
    assert all(torch.equal(value, given[key]) for key, value in direction.items())


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_flags_gradients_and_hooks_are_as_before_after_an_exception(way: str) -> None:
    model = marked("qwen3")

    class Fail(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            if way == "forward":
                raise RuntimeError("out of something")
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
            raise RuntimeError("out of something")

    norm = model.model.get_submodule("model.layers.1.input_layernorm")
    handle = norm.register_forward_hook(lambda _module, _args, output: Fail.apply(output))
    before = state(model.model)
    parameters = parameters_of(model.model, "all")
    with pytest.raises(RuntimeError, match="out of something"):
        products(model, GROUPS["eight"], parameters, random_direction(parameters))
    assert state(model.model) == before
    handle.remove()


def test_a_caller_without_gradients_is_served_all_the_same() -> None:
    model, group = subject("gpt2"), GROUPS["five"]
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    theirs = expected(gradients("gpt2", "five"), group.advantages, direction, list(parameters))
    with torch.no_grad():
        ours = products(model, group, parameters, direction)
        assert not torch.is_grad_enabled()
    check(ours, theirs, POLICY[torch.float64])
