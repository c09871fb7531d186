"""Padding, byte budgets, half precision, rows with NaN, refusals, and a model that is left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tolerances import BFLOAT16_GRAM, BFLOAT16_LOSS, SAME_RUN
from torch import Tensor, nn
from zoo import DENSE, ROWS, SPARSE, ZOO, _redraw, batch, build, language_model, ready

from hf_curate.errors import ModelError
from hf_curate.gradients.head import check_head
from hf_curate.gradients.segments import segment_grams
from hf_curate.models import LanguageModel
from hf_curate.weights import context_length

PROXIES = ("representation", "outer", "last", "exact")
BATCHED = ("representation", "outer", "last")
CASES = [(name, proxy) for name in ZOO for proxy in BATCHED if proxy != "last" or name in DENSE]
DTYPES = (torch.float64, torch.float32)


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return float((ours.double() - theirs.double()).norm()) <= tolerance * float(theirs.double().norm())


def same(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]], tolerance: float) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(near(a[0], b[0], tolerance) and near(a[1], b[1], tolerance) for a, b in pairs)


# -- batches and budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "proxy"), CASES)
def test_a_padded_row_equals_the_row_alone(name: str, proxy: str, dtype: torch.dtype) -> None:
    model = language_model(name, dtype)
    ids, rows = batch()
    together = segment_grams(model, ids, rows, proxy)
    alone = [
        segment_grams(model, row[None, :length], [spans], proxy)[0]
        for (length, spans), row in zip(ROWS, ids, strict=True)
    ]
    assert same(together, alone, SAME_RUN[dtype])


@pytest.mark.parametrize("budget", [1, 3_000, 20_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("proxy", BATCHED)
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "phi", "granite"])
def test_a_tiny_byte_budget_changes_nothing(name: str, proxy: str, dtype: torch.dtype, budget: int) -> None:
    model = language_model(name, dtype)
    ids, rows = batch()
    tight = segment_grams(model, ids, rows, proxy, byte_budget=budget)
    assert same(tight, segment_grams(model, ids, rows, proxy), SAME_RUN[dtype])


@pytest.mark.parametrize("budget", [1, 3_000, 2**28])
def test_a_token_may_lie_in_many_segments_that_are_far_apart(budget: int) -> None:
    model = language_model("llama")
    ids, _ = batch()
    spans = [[9], [2, 3], [4], [5, 9], [6, 7], [9, 10], [11], [3, 9]]
    separate = [segment_grams(model, ids[:1], [[span]], "representation", byte_budget=budget)[0][0] for span in spans]
    ((gram, _),) = segment_grams(model, ids[:1], [spans], "representation", byte_budget=budget)
    assert torch.allclose(gram.diag(), torch.cat(separate).flatten(), rtol=SAME_RUN[torch.float64])


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_end_where_rotary_tables_begin_to_depend_on_the_batch(kind: str) -> None:
    options: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 20}
    length = 80 if kind == "longrope" else 20
    config = transformers.LlamaConfig(**options, max_position_embeddings=length, rope_parameters=rope)
    live = transformers.LlamaForCausalLM(config).eval()
    _redraw(live, 3.0)
    model = ready(live)
    assert context_length(config) == 20
    ids, rows = batch()  # rows of 19, 6 and 31 tokens; the tables change at 20
    alone = segment_grams(model, ids[:1, :19], rows[:1], "representation")
    assert same(segment_grams(model, ids[:2, :20], rows[:2], "representation")[:1], alone, SAME_RUN[torch.float32])
    assert not same(segment_grams(model, ids, rows, "representation")[:1], alone, SAME_RUN[torch.float32])


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", DENSE)
def test_a_bfloat16_model_is_finite_and_close_to_float32(name: str, proxy: str) -> None:
    ids, rows = batch()
    half = build(name, torch.bfloat16)
    widened = ready(copy.deepcopy(half).float())  # type: ignore[operator]
    pairs = zip(segment_grams(ready(half), ids, rows, proxy), segment_grams(widened, ids, rows, proxy), strict=True)
    for (gram, losses), (wide_gram, wide_losses) in pairs:
        assert (gram.dtype, losses.dtype) == (torch.float64, torch.float32)
        assert bool(torch.isfinite(gram).all())
        assert bool(torch.isfinite(losses).all())
        assert near(gram, wide_gram, BFLOAT16_GRAM)
        assert near(losses, wide_losses, BFLOAT16_LOSS)


@contextmanager
def spoiled(model: nn.Module, row: int, position: int, value: float) -> Iterator[None]:
    """Within it the embedding of one token of one row holds `value`."""

    def spoil(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[row, position, 0] = value
        return output

    handle = model.get_input_embeddings().register_forward_hook(spoil)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "proxy"), CASES)
def test_a_row_that_is_not_finite_keeps_it_to_itself(name: str, proxy: str, value: float) -> None:
    model = language_model(name, torch.float32)
    ids, rows = batch()
    clean = segment_grams(model, ids, rows, proxy)
    with spoiled(model.model, 0, 5, value):
        found = segment_grams(model, ids, rows, proxy)
    assert same(found[1:], clean[1:], SAME_RUN[torch.float32])
    labels = sorted({label for span in rows[0] for label in span})
    after = [index for index, label in enumerate(labels) if label > 5]
    assert bool(found[0][1][after].isnan().all())


# -- heads ---------------------------------------------------------------------------------------------------


def with_logits(model: nn.Module, change: Any) -> nn.Module:
    """A copy whose forward returns changed logits."""
    model = copy.deepcopy(model)
    forward = model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = changed
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits * 2,
        lambda logits: logits * 1.2,
        lambda logits: logits / 2,
        torch.tanh,
        lambda logits: logits + 1,
        lambda logits: logits.index_fill(-1, torch.tensor([9]), -1e9),
        lambda logits: logits.index_fill(-1, torch.tensor([9]), float("-inf")),
    ],
    ids=["doubled", "a fifth more", "halved", "tanh", "shifted", "one token far off", "one token ruled out"],
)
def test_a_model_that_does_something_unknown_to_its_logits_is_refused_by_name(dtype: torch.dtype, change: Any) -> None:
    model = with_logits(copy.deepcopy(build("llama", torch.float32)).to(dtype), change)
    with pytest.raises(ModelError, match="LlamaForCausalLM computes its logits in a way"):
        ready(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "missing"),
    [("gemma2", {"softcap": None}), ("granite", {"scale": 1.0}), ("cohere", {"scale": 1.0}), ("phi", {"bias": None})],
)
def test_a_head_that_misses_a_part_is_refused(name: str, missing: dict[str, Any], dtype: torch.dtype) -> None:
    model = language_model(name, dtype)
    ids, _ = batch()
    with torch.no_grad():
        hidden, logits = model.hidden(ids)[0], model.model(input_ids=ids).logits[0]
    check_head(model.model, model.head, hidden, logits)
    with pytest.raises(ModelError, match="computes its logits in a way"):
        check_head(model.model, replace(model.head, **missing), hidden, logits)


@pytest.mark.parametrize("name", SPARSE)
def test_the_last_block_of_a_sparse_model_is_refused_by_name(name: str) -> None:
    ids, rows = batch()
    with pytest.raises(ModelError, match=r"proxy='last' needs .*DecoderLayer"):
        segment_grams(language_model(name, torch.float32), ids, rows, "last")


# -- the model is left as it was -----------------------------------------------------------------------------


def marked(name: str) -> LanguageModel:
    """A copy with mixed `requires_grad` and one `.grad` that someone else accumulated."""
    model = copy.deepcopy(build(name, torch.float32))
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
    next(p for p in model.parameters() if p.requires_grad).grad = torch.full_like(
        next(p for p in model.parameters() if p.requires_grad), 0.5
    )
    return ready(model)


def state(model: nn.Module) -> list[Any]:
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for name, m in model.named_modules()
    ]
    flags = [
        (n, p.requires_grad, None if p.grad is None else p.grad.sum().item()) for n, p in model.named_parameters()
    ]
    return [hooks, flags, torch.is_grad_enabled()]


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
def test_flags_gradients_and_hooks_are_as_before_after_every_proxy(name: str, proxy: str) -> None:
    model = marked(name)
    before = state(model.model)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    ids, rows = batch()
    if name in SPARSE and proxy == "last":
        with pytest.raises(ModelError):
            segment_grams(model, ids, rows, proxy)
    else:
        segment_grams(model, ids, rows, proxy)
    assert state(model.model) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.model.state_dict().items())


@pytest.mark.parametrize("proxy", PROXIES)
def test_flags_gradients_and_hooks_are_as_before_after_an_exception_inside_the_model(proxy: str) -> None:
    model = marked("qwen3")

    def fail(_module: nn.Module, _args: Any) -> None:
        raise RuntimeError("out of something")

    handle = model.model.get_submodule("model.norm").register_forward_pre_hook(fail)
    before = state(model.model)
    ids, rows = batch()
    with pytest.raises(RuntimeError, match="out of something"):
        segment_grams(model, ids, rows, proxy)
    assert state(model.model) == before
    handle.remove()


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_caller_that_switched_gradients_off_is_served_all_the_same(proxy: str) -> None:
    model = language_model("qwen3")
    ids, rows = batch()
    expected = segment_grams(model, ids, rows, proxy)
    with torch.no_grad():
        found = segment_grams(model, ids, rows, proxy)
        assert not torch.is_grad_enabled()
    assert same(found, expected, SAME_RUN[torch.float64])
