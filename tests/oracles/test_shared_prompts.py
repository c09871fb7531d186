"""Rollouts behind one prompt: as many tokens as there are different ones, and the numbers of padded rows and of plain
loops in float64."""

from __future__ import annotations

import threading
from typing import Any

import policy_reference as reference
import pytest
import torch
import transformers
from policy_reference import GROUPS
from test_policy_products import check, expected, gradients, products, random_direction, subject, wide
from tolerances import POLICY, SAME_RUN
from torch import Tensor, nn
from zoo import COMMON, ZOO, build, ready

from hf_curate.batches import TALLY, Rollout
from hf_curate.gradients import shared
from hf_curate.gradients.inner import distinct, policy_products, route
from hf_curate.gradients.layout import Padded, Shared, one_prompt
from hf_curate.gradients.parameters import parameters_of
from hf_curate.gradients.shared import dimensions, shares_prompts
from hf_curate.models import LanguageModel

OWN_ATTENTION = ("falcon",)
"""Models whose attention is not transformers' interface."""
SHARING = [name for name in ZOO if name not in OWN_ATTENTION]


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model shares a prompt."""
    from hf_curate.gradients import inner, policy

    for room in (inner, policy):
        monkeypatch.setattr(room, "shares_prompts", lambda model: False)


def tokens_of(model: LanguageModel, chosen: str, direction: Any) -> int:
    """Tokens that the model is given for a group, once everything about the model is known."""
    parameters = parameters_of(model.model, "all")
    products(model, GROUPS[chosen], parameters, direction)
    TALLY.take()
    products(model, GROUPS[chosen], parameters, direction)
    return TALLY.take()[0]


@pytest.mark.parametrize("name", ZOO)
def test_models_of_transformers_interface_share_a_prompt_and_the_others_do_not(name: str) -> None:
    model = subject(name)
    assert shares_prompts(model) == (name in SHARING)
    assert (route(model, parameters_of(model.model, "all"), shared=True) == "shared") == (name in SHARING)


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_the_prompt_is_given_to_the_model_once(name: str) -> None:
    model = subject(name)
    direction = random_direction(parameters_of(model.model, "all"))
    group = distinct(GROUPS["eight"].rollouts, GROUPS["eight"].advantages).rollouts
    prompt = group[0].start
    assert tokens_of(model, "eight", direction) == prompt + sum(len(r.input_ids) - prompt for r in group)
    apart = GROUPS["five"].rollouts  # prompts of their own
    assert tokens_of(model, "five", direction) == sum(len(r.input_ids) for r in apart)


@pytest.mark.usefixtures("padded")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_padded_rows_have_the_products_of_explicit_gradients_too(name: str, dtype: torch.dtype) -> None:
    model = subject(name, dtype)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    assert route(model, parameters, shared=True) != "shared"
    theirs = expected(gradients(name, "eight"), GROUPS["eight"].advantages, direction, list(parameters))
    check(products(model, GROUPS["eight"], parameters, direction), theirs, POLICY[dtype])


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen3_moe"])
def test_prompts_and_responses_that_are_longer_than_a_window(name: str) -> None:
    model, generator = subject(name), torch.Generator().manual_seed(3)
    words = torch.randint(3, 61, (80,), generator=generator).tolist()
    prompt, ends = words[:20], (words[20:33], words[33:50], words[50:52], words[52:80])  # windows hold 6 tokens
    rollouts = [Rollout([*prompt, *end], len(prompt)) for end in ends]
    advantages = [0.5, -0.25, 0.5, -0.75]
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    found = [reference.rollout_gradient(build(name), rollout) for rollout in rollouts]
    theirs = expected(found, advantages, direction, list(parameters))
    for batch_tokens in (8, 100, 8192):  # several passes, blocks that run again, everything kept
        ours = policy_products(model, rollouts, advantages, parameters, direction, batch_tokens=batch_tokens)
        check(ours, theirs, POLICY[torch.float64])


@pytest.mark.parametrize("name", ["mixtral", "qwen3"])
def test_a_row_that_is_as_long_as_something_else_is_wide(name: str) -> None:
    model = subject(name)
    parameters = parameters_of(model.model, "all")
    direction = random_direction(parameters)
    wide_ones = sorted(size for size in dimensions(model.decoder) if 6 <= size <= 48)
    assert wide_ones
    for size in wide_ones:
        responses = [[9] * k for k in (1, 2, size - 5)]  # after 2 tokens: size in all
        rollouts = [Rollout([5, 7, *own], 2) for own in responses]
        assert Shared(rollouts, model.device).shape == (1, size)
        assert Shared(rollouts, model.device, dimensions(model.decoder)).shape[1] > size
        found = [reference.rollout_gradient(build(name), rollout) for rollout in rollouts]
        theirs = expected(found, [0.5, 0.25, -0.75], direction, list(parameters))
        check(
            policy_products(model, rollouts, [0.5, 0.25, -0.75], parameters, direction), theirs, POLICY[torch.float64]
        )


def test_a_model_whose_rows_hold_a_state_is_given_padded_rows_and_the_same_numbers() -> None:
    live = build.__wrapped__("llama")

    def run_along(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + 0.1 * output.cumsum(dim=1)

    live.get_submodule("model.layers.0.mlp").register_forward_hook(run_along)
    model, group = ready(wide(live)), GROUPS["eight"]
    parameters = parameters_of(live, "all")
    direction = random_direction(parameters)
    found = [reference.rollout_gradient(live, rollout) for rollout in group.rollouts]
    theirs = expected(found, group.advantages, direction, list(parameters))
    check(products(model, group, parameters, direction), theirs, POLICY[torch.float64])
    assert not shares_prompts(model)


def test_a_part_that_only_long_rows_have_is_seen_by_the_sum_of_the_products_and_sharing_ends() -> None:
    live = build.__wrapped__("llama")
    owner = live.get_submodule("model.layers.0.self_attn.o_proj")

    def borrow(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:  # in rows of more than 20 tokens alone
        return output + output @ owner.weight.T if output.shape[1] > 20 else output  # type: ignore[union-attr]

    live.get_submodule("model.layers.1.mlp").register_forward_hook(borrow)
    model, group = ready(wide(live)), GROUPS["eight"]
    parameters = parameters_of(live, "all")
    assert route(model, parameters, shared=True) == "shared"
    direction = random_direction(parameters)
    found = [reference.rollout_gradient(live, rollout) for rollout in group.rollouts]
    theirs = expected(found, group.advantages, direction, list(parameters))
    check(products(model, group, parameters, direction), theirs, POLICY[torch.float64])
    assert not shares_prompts(model)


@pytest.mark.parametrize("name", SHARING)
def test_the_attention_is_the_models_own_again_also_after_an_exception(name: str) -> None:
    model = subject(name)
    before = model.decoder.config._attn_implementation  # type: ignore[union-attr]
    rollouts = [Rollout([3, 4, 5, 6], 2), Rollout([3, 4, 7], 2)]
    layout = Shared(rollouts, model.device)

    def halfway() -> None:
        with shared.behind_one_prompt(model, layout):
            assert model.decoder.config._attn_implementation == shared.NAME  # type: ignore[union-attr]
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        halfway()
    assert model.decoder.config._attn_implementation == before  # type: ignore[union-attr]
    assert not shared._ACTIVE


def test_a_live_model_whose_attention_is_set_anew_is_asked_again() -> None:
    model = ready(wide(build.__wrapped__("llama")))
    parameters, config = parameters_of(model.model, "all"), model.decoder.config
    assert route(model, parameters, shared=True) == "shared"
    for other, shares in (("flex_attention", False), ("eager", True)):
        config._attn_implementation = other  # type: ignore[union-attr]
        assert shares_prompts(model) == shares
    group, direction = GROUPS["eight"], random_direction(parameters)
    found = [reference.rollout_gradient(build("llama"), rollout) for rollout in group.rollouts]
    theirs = expected(found, group.advantages, direction, list(parameters))
    check(products(model, group, parameters, direction), theirs, POLICY[torch.float64])  # eager now


@pytest.mark.parametrize("name", SHARING)
def test_hidden_states_in_both_layouts(name: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model, rollouts = subject(name, dtype), list(GROUPS["eight"].rollouts)
        states = []
        for layout in (Padded(rollouts, model.device), Shared(rollouts, model.device)):
            with torch.no_grad(), shared.behind_one_prompt(model, layout):
                states.append(model.states(**layout.inputs).flatten(0, 1)[layout.before])
        assert float((states[0] - states[1]).norm()) < SAME_RUN[dtype] * float(states[0].norm())


def test_one_prompt_is_the_same_tokens_up_to_the_same_place() -> None:
    assert one_prompt([Rollout([1, 2, 3], 2)])
    assert one_prompt([Rollout([1, 2, 3], 2), Rollout([1, 2, 4, 5], 2)])
    assert not one_prompt([Rollout([1, 2, 3], 2), Rollout([1, 3, 3], 2)])
    assert not one_prompt([Rollout([1, 2, 3], 2), Rollout([1, 2, 3], 1)])


@pytest.mark.parametrize("name", SHARING)
def test_models_in_half_precision_share_a_prompt_too(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = ready(build.__wrapped__(name, dtype))
        assert shares_prompts(model)


WINDOWED_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "use_sliding_window": True,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "sliding_attention"],
    "experts_implementation": "eager",
}
FACTORS = {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [4.0] * 3, "rope_theta": 10_000.0}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a window that is in the mask alone": ("Qwen2Moe", WINDOWED_MOE),
    "rotary positions that depend on the row's length": (
        "Phi3",
        {"original_max_position_embeddings": 32, "rope_parameters": FACTORS},
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_few_tokens_cannot_show_is_refused_by_the_config(what: str) -> None:
    name, options = REFUSED[what]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **options})
    live = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model, words = ready(live), torch.randint(3, 61, (70,)).tolist()
    rollouts = [Rollout([*words[:20], *words[20 + 13 * k : 33 + 13 * k]], 20) for k in range(3)]
    assert not shares_prompts(model)
    parameters = parameters_of(live, "linear")
    direction = random_direction(parameters)
    found = [reference.rollout_gradient(live, rollout) for rollout in rollouts]
    theirs = expected(found, [0.5, 0.25, -0.75], direction, list(parameters))
    for norm in (True, False):
        ours = policy_products(model, rollouts, [0.5, 0.25, -0.75], parameters, direction, norm=norm)
        along = float(theirs.direction.norm())  # type: ignore[union-attr]
        assert ours.per_rollout is not None
        missed = abs(ours.per_rollout - torch.tensor(theirs.per_rollout).numpy()).max()
        assert missed <= POLICY[torch.float32] * max(theirs.lengths) * along


def test_two_threads_on_one_model_wait_for_each_other_and_leave_it_as_it_was() -> None:
    model, rollouts = subject("qwen3"), list(GROUPS["eight"].rollouts)
    layouts = [Shared(rollouts[:n], model.device) for n in (3, 5)]
    usual = model.decoder.config._attn_implementation  # type: ignore[union-attr]
    wanted, found = [], {}
    for layout in layouts:
        with torch.no_grad(), shared.behind_one_prompt(model, layout):
            wanted.append(model.states(**layout.inputs))
    both = threading.Barrier(2)

    def work(number: int) -> None:
        both.wait()
        for _ in range(5):
            with torch.no_grad(), shared.behind_one_prompt(model, layouts[number]):
                found[number] = model.states(**layouts[number].inputs)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], wanted[number]) for number in range(2))
    assert model.decoder.config._attn_implementation == usual  # type: ignore[union-attr]
    first, second = (shared.behind_one_prompt(model, layout) for layout in layouts)
    with first, pytest.raises(RuntimeError, match="within another"), second:
        pass
    assert model.decoder.config._attn_implementation == usual  # type: ignore[union-attr]


def test_an_own_mask_of_the_model_is_refused_and_never_dropped() -> None:
    model, rollouts = subject("qwen3"), list(GROUPS["eight"].rollouts)
    layout = Shared(rollouts, model.device)
    mask = torch.zeros(1, 1, *[layout.shape[1]] * 2, dtype=torch.float64)
    with shared.behind_one_prompt(model, layout), pytest.raises(ValueError, match="a mask of its own"):
        model.states(**layout.inputs, attention_mask=mask)
