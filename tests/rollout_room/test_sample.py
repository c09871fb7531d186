"""Sampling in this process: against a plain loop without a cache, on every architecture, under every batching."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, ModelError, RowError
from hf_curate.models import LanguageModel, prepared
from hf_curate.rollouts import sample as room
from hf_curate.rollouts.cached import CachedTexts, check_cache, deviation
from hf_curate.rollouts.sample import Sampled, end_tokens, sample

sys.path.append(str(Path(__file__).parents[1] / "oracles"))  # pytest does so only where that folder is collected
from zoo import VOCABULARY, ZOO, _redraw, build, language_model, ready

CACHED = 1e-4
"""Largest difference of cached float32 logits from those of a plain forward, in standard deviations of these: other
orders of the same sums."""

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 4, "intermediate_size": 40, "max_position_embeddings": 128, "eos_token_id": 2}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    # positions from the mask alone
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    # latent attention beside experts
    "deepseek_v3": (
        "DeepseekV3",
        {**_SIZES, **_LATENT, **_EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
        | {"first_k_dense_replace": 1},
    ),
    # convolutions, and a recurrent state, beside attention
    "lfm2": ("Lfm2", _SIZES | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}),
    "qwen3_next": (
        "Qwen3Next",
        {**_SIZES, **_EXPERTS, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4}
        | {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 16}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        | {"linear_num_value_heads": 4},
    ),
    # a sliding window in every layer, shorter than the texts
    "mistral": ("Mistral", _SIZES | {"num_key_value_heads": 2, "sliding_window": 6}),
}
EVERY = [*ZOO, *STRANGERS]


@functools.cache
def model_of(name: str) -> LanguageModel:
    if name in ZOO:
        return language_model(name, torch.float32)
    kind, options = STRANGERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**options)).eval()
    _redraw(model, 3.0)
    return ready(model)


@functools.cache
def demo() -> LanguageModel:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return prepared(model.eval(), AutoTokenizer.from_pretrained(MODEL), torch.device("cpu"))


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]


PROMPTS = prompts_of(5, 9, 3, 14, 9, 20)
KEYS = [b"first", b"second", 3, 4, 5, 6]


@torch.no_grad()
def last_logits(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """[V] of the model's own forward: one text, no cache, no mask."""
    return model.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].float()


def target(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """[V] the distribution that is promised, written out."""
    weights = np.exp((logits.double().numpy() - float(logits.max())) / temperature)
    p = weights / weights.sum()
    kept, total = np.zeros_like(p), 0.0
    for token in sorted(range(len(p)), key=lambda token: (-p[token], token)):
        if total >= top_p and top_p < 1:
            break
        kept[token], total = p[token], total + p[token]
    return kept / kept.sum()


def plain_loop(model: LanguageModel, prompt: list[int], key: Any, k: int, new: int, eos: set[int], **how: float):
    """One response, token by token, from whole forwards."""
    uniform = room._stream(int(how.get("seed", 0)), key, k).random(new)
    ids: list[int] = []
    for step in range(new):
        p = target(last_logits(model, prompt + ids), how.get("temperature", 1.0), how.get("top_p", 1.0))
        ids.append(int(np.searchsorted(p.cumsum(), uniform[step] * p.cumsum()[-1], side="right")))
        if ids[-1] in eos:
            break
    return Sampled(ids, ids[-1] in eos)


# -- the right distribution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_responses_are_those_of_a_plain_loop_without_cache_or_padding(name: str) -> None:
    model, eos = model_of(name), {2, 17, 30}
    found = sample(model, PROMPTS, 3, keys=KEYS, max_new_tokens=12, eos=eos)
    for prompt, key, group in zip(PROMPTS, KEYS, found, strict=True):
        assert group == [plain_loop(model, prompt, key, k, 12, eos) for k in range(3)]


@pytest.mark.parametrize("how", [{"temperature": 0.6, "top_p": 0.7}, {"temperature": 2.5}, {"top_p": 0.9, "seed": 8}])
def test_temperature_top_p_and_seed_are_those_of_the_plain_loop(how: dict[str, Any]) -> None:
    model, eos = model_of("qwen3"), {2}
    found = sample(model, PROMPTS, 4, keys=KEYS, max_new_tokens=10, eos=eos, **how)
    for prompt, key, group in zip(PROMPTS, KEYS, found, strict=True):
        assert group == [plain_loop(model, prompt, key, k, 10, eos, **how) for k in range(4)]


class Watched(CachedTexts):
    """Keeps the text of each row, and compares the logits that are sampled from with a forward of that text alone."""

    seen: list[Watched] = []  # noqa: RUF012

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        self.rows, self.sizes = [list(prompt) for prompt in prompts], [len(prompts)]
        self.worst = self._difference()
        self.seen.append(self)

    def advance(self, parents: torch.Tensor, tokens: torch.Tensor) -> None:
        super().advance(parents, tokens)
        self.rows = [[*self.rows[p], t] for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
        self.sizes.append(len(self.rows))
        self.worst = max(self.worst, self._difference())

    def _difference(self) -> float:
        plain = torch.stack([last_logits(self.model, ids) for ids in self.rows])
        return float(((self.logits - plain).abs().amax(dim=1) / plain.std(dim=1)).max())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    monkeypatch.setattr(room, "CachedTexts", Watched)
    monkeypatch.setattr(Watched, "seen", [])
    return Watched.seen


@pytest.mark.parametrize("name", EVERY)
def test_the_logits_that_are_sampled_from_are_those_of_a_plain_forward(name: str, watched: list[Watched]) -> None:
    sample(model_of(name), PROMPTS, 3, keys=KEYS, max_new_tokens=10, eos={2, 17, 30})
    (batch,) = watched
    assert batch.worst < CACHED
    assert len(batch.sizes) > 5


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_first_tokens_are_as_frequent_as_promised(top_p: float) -> None:
    model, n = model_of("llama"), 20_000
    (group,) = sample(model, PROMPTS[:1], n, keys=[0], max_new_tokens=1, eos=set(), temperature=1.3, top_p=top_p)
    expected = n * target(last_logits(model, PROMPTS[0]), 1.3, top_p)
    counts = np.bincount([own.ids[0] for own in group], minlength=VOCABULARY)
    assert counts[expected == 0].sum() == 0
    likely = expected >= 5
    assert likely.sum() > 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_square, freedom = float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5  # four standard deviations of chi-square


def test_a_tie_at_the_edge_of_the_nucleus_goes_to_the_lower_id() -> None:
    p = room._probabilities(torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]]), 1.0, 0.5)[0]
    assert [token for token in range(5) if p[token] > 0] == [1, 3]
    p = room._probabilities(torch.zeros(1, 4), 1.0, 0.5)[0]
    assert p.tolist() == [0.25, 0.25, 0.0, 0.0]


def test_tokens_without_probability_are_never_drawn_at_either_end() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert room._draw(logits, torch.tensor([0, 0]), ends, 1.0, 1.0).tolist() == [1, 2]
    assert room._draw(logits, torch.tensor([0, 0]), ends, 1e-300, 1.0).tolist() == [1, 2]


def test_a_large_table_of_probabilities_is_drawn_from_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    logits, row = torch.from_numpy(rng.normal(size=(7, 50)) * 3), torch.from_numpy(rng.permutation(np.arange(30) % 7))
    uniform = torch.from_numpy(rng.random(30))
    whole = room._draw(logits, row, uniform, 0.9, 0.95)
    monkeypatch.setattr(room, "DISTRIBUTION_BYTES", 8 * 50 * 2)
    assert torch.equal(room._draw(logits, row, uniform, 0.9, 0.95), whole)
    pairs = zip(row, uniform, strict=True)
    one_by_one = [room._draw(logits[r : r + 1], torch.tensor([0]), u[None], 0.9, 0.95) for r, u in pairs]
    assert torch.equal(torch.cat(one_by_one), whole)


# -- what it may not depend on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_responses_do_not_depend_on_order_batches_or_neighbours(name: str) -> None:
    model, settings = model_of(name), {"max_new_tokens": 10, "eos": {2, 17}, "top_p": 0.95}
    found = sample(model, PROMPTS, 4, keys=KEYS, **settings)
    back = sample(model, PROMPTS[::-1], 4, keys=KEYS[::-1], batch_tokens=150, **settings)
    assert back[::-1] == found
    for place in (0, 2, 5):  # of 5, 3 and 20 tokens
        [alone] = sample(model, [PROMPTS[place]], 4, keys=[KEYS[place]], batch_tokens=1, **settings)
        assert alone == found[place]


def test_the_demo_model_gives_the_same_whatever_is_beside() -> None:
    model = demo()
    texts = load_traces()["prompt"][:24]
    prompts = [model.tokenizer(text)["input_ids"] for text in texts]
    settings: dict[str, Any] = {"max_new_tokens": 80, "eos": end_tokens(model)}
    keys = [text.encode() for text in texts]
    found = sample(model, prompts, 8, keys=keys, **settings)  # type: ignore[arg-type]
    small = sample(model, prompts[::-1], 8, keys=keys[::-1], batch_tokens=1000, **settings)  # type: ignore[arg-type]
    assert small[::-1] == found
    groups = [group for group in found if isinstance(group, list)]
    assert len(groups) == 24
    assert np.mean([own.finished for group in groups for own in group]) > 0.95
    assert len({tuple(own.ids) for own in groups[0]}) > 1


def test_more_rollouts_begin_with_fewer_and_longer_ones_with_shorter() -> None:
    model = model_of("qwen2")
    eight = sample(model, PROMPTS, 8, keys=KEYS, max_new_tokens=70, eos={2})
    four = sample(model, PROMPTS, 4, keys=KEYS, max_new_tokens=70, eos={2})
    assert [group[:4] for group in eight] == four  # type: ignore[index]
    short = sample(model, PROMPTS, 8, keys=KEYS, max_new_tokens=5, eos={2})
    cut = [[(own.ids[:5], own.finished and len(own.ids) <= 5) for own in group] for group in eight]  # type: ignore[union-attr]
    assert [[(own.ids, own.finished) for own in group] for group in short] == cut  # type: ignore[union-attr]
    assert any(len(own.ids) > 64 for group in eight for own in group)  # type: ignore[union-attr]


def test_seeds_keys_and_rollouts_have_random_numbers_of_their_own() -> None:
    model, same = model_of("qwen3"), [PROMPTS[0]] * 3
    settings: dict[str, Any] = {"max_new_tokens": 8, "eos": {2}}
    one, other, again = sample(model, same, 4, keys=[7, 8, 7], **settings)
    assert one == again
    assert one != other
    assert len({tuple(own.ids) for own in one}) == 4  # type: ignore[union-attr]
    assert sample(model, same[:1], 4, keys=[7], seed=1, **settings)[0] != one
    assert sample(model, same[:1], 4, keys=[b"7"], **settings)[0] == one


def test_dropout_is_off_and_the_mode_of_every_module_comes_back() -> None:
    kind = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=128, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(kind)
    _redraw(model, 3.0)
    settings: dict[str, Any] = {"keys": KEYS, "max_new_tokens": 8, "eos": {2}}
    quiet = sample(ready(model.eval()), PROMPTS, 3, **settings)
    loaded = ready(model)
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    assert sample(loaded, PROMPTS, 3, **settings) == quiet
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_equal_texts_share_a_row_and_ended_ones_leave_at_once(watched: list[Watched]) -> None:
    eos = {2, 17, 30, 41}
    found = sample(model_of("qwen3"), PROMPTS[:3], 6, keys=KEYS[:3], max_new_tokens=9, eos=eos, temperature=0.7)
    (batch,) = watched
    for step, size in enumerate(batch.sizes):
        going = {
            (prompt, tuple(own.ids[:step]))
            for prompt, group in enumerate(found)
            for own in group  # type: ignore[union-attr]
            if len(own.ids) > step
        }
        assert size == len(going)
    assert batch.sizes[0] == 3
    assert max(batch.sizes) > 3


def test_a_batch_keeps_to_its_tokens_and_mixes_only_neighbouring_lengths(watched: list[Watched]) -> None:
    sample(model_of("qwen3"), PROMPTS, 5, keys=KEYS, max_new_tokens=10, eos=set(), batch_tokens=200)
    assert len(watched) > 3
    for batch in watched:
        assert max(batch.sizes) * max(map(len, batch.rows)) <= 200 + max(batch.sizes)
    longest = [max(map(len, batch.rows)) for batch in watched]
    assert longest == sorted(longest, reverse=True)


def test_the_rollouts_of_one_prompt_may_be_spread_over_batches(watched: list[Watched]) -> None:
    (group,) = sample(model_of("qwen3"), PROMPTS[:1], 7, keys=[0], max_new_tokens=10, eos=set(), batch_tokens=30)
    assert len(watched) == 4
    monkey = sample(model_of("qwen3"), PROMPTS[:1], 7, keys=[0], max_new_tokens=10, eos=set())
    assert [group] == monkey


# -- greedy, ends, bad rows -------------------------------------------------------------------------------------------


def test_temperature_0_takes_the_most_likely_token_and_computes_it_once(watched: list[Watched]) -> None:
    model = model_of("qwen3")
    found = sample(model, PROMPTS, 5, keys=KEYS, max_new_tokens=10, eos={2}, temperature=0.0, top_p=0.5)
    assert max(watched[0].sizes) == len(PROMPTS)
    for prompt, group in zip(PROMPTS, found, strict=True):
        ids: list[int] = []
        while len(ids) < 10 and (not ids or ids[-1] != 2):
            ids.append(int(last_logits(model, prompt + ids).argmax()))
        assert group == [Sampled(ids, ids[-1] == 2)] * 5


def test_a_response_holds_its_end_token_once_and_says_whether_it_came() -> None:
    eos = {2, 17, 30}
    found = sample(model_of("llama"), PROMPTS, 8, keys=KEYS, max_new_tokens=12, eos=eos)
    every = [own for group in found for own in group]  # type: ignore[union-attr]
    assert all(not eos & set(own.ids[:-1]) for own in every)
    assert all(own.finished == (own.ids[-1] in eos) for own in every)
    assert all(own.finished or len(own.ids) == 12 for own in every)
    assert {own.ids[-1] for own in every if own.finished} == eos
    assert not all(own.finished for own in every)


def test_a_prompt_that_cannot_be_sampled_says_why_and_the_others_go_on() -> None:
    model, settings = model_of("qwen3"), {"max_new_tokens": 8, "eos": {2}}
    prompts = [PROMPTS[0], [], [5, VOCABULARY], [-1], prompts_of(121)[0], prompts_of(120)[0]]
    found = sample(model, prompts, 2, keys=KEYS, **settings)
    assert [str(own) for own in found if isinstance(own, RowError)] == [
        "no prompt: it gives no token: nothing predicts the response",
        "unknown token id: 61, and the model has 61 embeddings",
        "unknown token id: -1, and the model has 61 embeddings",
        "too long: 121 prompt tokens and 8 new ones, the context is 128",
    ]
    assert found[0] == sample(model, PROMPTS[:1], 2, keys=KEYS[:1], **settings)[0]
    assert isinstance(found[5], list)
    assert sample(model, [[]], 2, keys=[1], **settings)[0].args == found[1].args  # type: ignore[union-attr]
    assert sample(model, [], 2, keys=[], **settings) == []


def test_logits_that_are_not_finite_fail_their_own_prompt_alone() -> None:
    model = copy.deepcopy(build("llama", torch.float32))
    settings: dict[str, Any] = {"keys": KEYS, "max_new_tokens": 6, "eos": {2}}
    clean = sample(ready(model), PROMPTS, 3, **settings)
    used = {token for group in clean for own in group for token in own.ids}  # type: ignore[union-attr]
    poison = next(t for t in PROMPTS[3] if t not in used and sum(t in prompt for prompt in PROMPTS) == 1)
    later = clean[1][0].ids[1]  # type: ignore[index]
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    for token in (poison, later):
        before = weight.data[token].clone()
        loaded = ready(model)
        weight.data[token] = torch.nan
        found = sample(loaded, PROMPTS, 3, **settings)
        weight.data[token] = before
        for prompt, group, whole in zip(PROMPTS, found, clean, strict=True):
            reached = token in prompt or any(token in own.ids[:-1] for own in whole)  # type: ignore[union-attr]
            assert isinstance(group, RowError) == reached
            if isinstance(group, RowError):
                assert group.kind == "not finite"
            else:
                assert group == whole
    assert sample(ready(model), PROMPTS, 3, **settings) == clean


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n=0 must be 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be 1 or more"),
        ({"temperature": -0.5}, "temperature=-0.5 must be a number of 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a number of 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0"),
        ({"keys": [1, 2]}, "2 keys for 6 prompts: give one for each"),
    ],
)
def test_settings_that_nothing_can_be_sampled_with_are_refused(wrong: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"n": 2, "keys": KEYS, "max_new_tokens": 4, "eos": {2}} | wrong
    with pytest.raises(CurateError, match=message):
        sample(model_of("qwen3"), PROMPTS, **settings)


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer() -> None:
    model = demo()
    own = model.tokenizer.eos_token_id
    before = model.model.generation_config.eos_token_id  # type: ignore[union-attr]
    try:
        for named, expected in ((None, {own}), (7, {7, own}), ([7, 9], {7, 9, own})):
            model.model.generation_config.eos_token_id = named  # type: ignore[union-attr]
            assert end_tokens(model) == expected
    finally:
        model.model.generation_config.eos_token_id = before  # type: ignore[union-attr]


# -- caches that go wrong ---------------------------------------------------------------------------------------------


def with_forward(name: str, change: Any, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model whose decoder's forward is given other arguments than those it was called with."""
    model = ready(copy.deepcopy(build(name, dtype)))
    forward = model.decoder.forward

    @functools.wraps(forward)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **change(kwargs))

    model.decoder.forward = changed  # type: ignore[method-assign]
    return model


@torch.no_grad()
def test_where_padding_goes_wrong_prompts_are_batched_by_length(watched: list[Watched]) -> None:
    whole = sample(model_of("gemma2"), PROMPTS, 3, keys=KEYS, max_new_tokens=8, eos={2})
    watched.clear()
    unmasked = with_forward("gemma2", lambda kwargs: kwargs | {"attention_mask": None})
    assert deviation(unmasked, padded=True) > 0.05
    assert not check_cache(unmasked, padding=True)
    assert sample(unmasked, PROMPTS, 3, keys=KEYS, max_new_tokens=8, eos={2}) == whole
    assert len(watched) == len({len(prompt) for prompt in PROMPTS})


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, "0.001"), (torch.bfloat16, "0.15")])
def test_a_cache_that_gives_other_logits_is_refused_with_the_difference(dtype: torch.dtype, allowed: str) -> None:
    shifted = with_forward("qwen3", _shifted, dtype)
    with pytest.raises(ModelError, match=rf"Qwen3Model gives other logits with a cache .* allowed is {allowed}\."):
        sample(shifted, PROMPTS, 2, keys=KEYS, max_new_tokens=4, eos={2})


def _shifted(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positions of every cached step are one too far."""
    positions = kwargs.get("position_ids")
    if positions is None or positions.shape[1] > 1:
        return kwargs
    return kwargs | {"position_ids": positions + 1}


def test_models_with_caches_of_their_own_are_refused_by_name() -> None:
    torch.manual_seed(0)
    options = _SIZES | {"head_dim": 8, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]}
    minimax = ready(transformers.MiniMaxForCausalLM(transformers.MiniMaxConfig(**options)).eval())
    with pytest.raises(ModelError, match="MiniMaxModel does not work with a DynamicCache"):
        sample(minimax, PROMPTS, 2, keys=KEYS, max_new_tokens=4, eos={2})
    uncached = with_forward("qwen3", lambda kwargs: kwargs)
    forward = uncached.decoder.forward
    uncached.decoder.forward = lambda input_ids, use_cache=False: forward(input_ids=input_ids)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="Qwen3Model takes no cache"):
        sample(uncached, PROMPTS, 2, keys=KEYS, max_new_tokens=4, eos={2})


@torch.no_grad()
def test_half_precision_stays_within_what_it_may_differ_by() -> None:
    for name in ("qwen3", "gemma2", "qwen3_moe"):
        model = ready(build(name, torch.bfloat16))
        assert deviation(model, padded=True) < 0.15
        found = sample(model, PROMPTS, 2, keys=KEYS, max_new_tokens=6, eos={2})
        assert all(len(group) == 2 for group in found)  # type: ignore[arg-type]


def test_a_head_of_zeros_is_sampled_from_evenly_and_not_taken_for_a_wrong_cache() -> None:
    model = copy.deepcopy(build("llama", torch.float32))
    model.get_output_embeddings().weight.data.zero_()  # type: ignore[operator]
    (group, *_) = sample(ready(model), PROMPTS, 500, keys=KEYS, max_new_tokens=2, eos=set())
    counts = np.bincount([token for own in group for token in own.ids], minlength=VOCABULARY)  # type: ignore[union-attr]
    assert counts.min() > 0
