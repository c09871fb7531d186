"""Many models as one give what each gives alone, and what transformers gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evidence.bases import empty, load, save, tokenizer
from evidence.stack import Shape, Stack, copies, greedy, stacked
from evidence.training import encode, fine_tuned

QWEN = Shape(width=16, inner=24, layers=2, head=4)
LLAMA = Shape("llama", width=16, inner=24, layers=2, head=4)
ROWS = [
    {"prompt": "1+2?\n", "completion": "1+2=3\n#3"},
    {"prompt": "1+2-9?\n", "completion": "1+2=3\n3-9=4\n#4"},
    {"prompt": "5*2?\n", "completion": "5*2=0\n#0"},
]


@pytest.mark.parametrize("shape", [QWEN, LLAMA], ids=["qwen3", "llama"])
def test_the_logits_of_a_stack_are_those_of_the_models_of_transformers(shape: Shape) -> None:
    models = [empty(shape, seed).eval() for seed in (0, 1)]
    ids = encode(ROWS, tokenizer(shape)).ids
    found = Stack(shape).forward(stacked([model.state_dict() for model in models]), ids.expand(2, *ids.shape))
    for place, model in enumerate(models):
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-5)


def test_greedy_tokens_with_a_cache_are_those_without_one() -> None:
    parameters = stacked([empty(QWEN, seed).state_dict() for seed in (0, 1)])
    prompts = torch.tensor(tokenizer(QWEN)(["1+2-9?\n", "3*4+1?\n"])["input_ids"])
    stack = Stack(QWEN)
    found = greedy(stack, parameters, prompts, 9, end=-1)
    ids = prompts.expand(2, *prompts.shape)
    for step in range(9):
        ids = torch.cat([ids, stack.forward(parameters, ids)[:, :, -1:].argmax(-1)], dim=2)
        assert torch.equal(ids[:, :, prompts.shape[1] :], found[:, :, : step + 1])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_learns_the_same_in_company_as_alone(method: str) -> None:
    """Other rows, more rows and another order beside it change nothing."""
    base = stacked([empty(QWEN, 0).state_dict()])
    texts, stack = encode(ROWS, tokenizer(QWEN)), Stack(QWEN)
    own, other = np.array([0, 1, 2]), np.array([2, 1])
    settings = {"updates": 4, "batch": 2, "rate": 1e-2, "method": method, "seed": 3}
    together = fine_tuned(stack, base, texts, [other, own], **settings)
    alone = fine_tuned(stack, base, texts, [own], **settings)
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1], value[0], rtol=1e-4, atol=1e-6)
    changed = [name for name, value in alone.items() if not torch.equal(value, base[name])]
    assert "model.layers.1.mlp.up_proj.weight" in changed
    assert ("lm_head.weight" in changed) == (method == "full")


def test_an_update_is_the_one_that_torch_makes_of_a_model_of_transformers() -> None:
    """One batch, one update: the gradient of the mean over completion tokens, clipped to norm 1, by AdamW."""
    model = empty(QWEN, 0)
    base = stacked([model.state_dict()])
    texts = encode(ROWS, tokenizer(QWEN))
    [found] = [fine_tuned(Stack(QWEN), base, texts, [np.arange(3)], updates=1, batch=3, rate=1e-3)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model(input_ids=texts.ids, attention_mask=torch.ones_like(texts.ids), labels=texts.labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name][0], value, rtol=1e-3, atol=2e-5)


def test_an_order_goes_through_all_rows_once_an_epoch_and_fills_the_last_batch_up() -> None:
    from evidence.training import orders

    rows = [np.array([4, 7, 9]), np.array([1, 2, 3])]
    batches = [batch.numpy() for batch in orders(rows, 2, 4, [[0], [1]])]
    for place, own in enumerate(rows):
        for epoch in (batches[:2], batches[2:]):
            seen = np.concatenate([batch[place] for batch in epoch])
            assert sorted(seen) == [-1, *own]


def test_a_base_is_the_same_after_it_was_saved(tmp_path: object) -> None:
    from pathlib import Path

    parameters = stacked([empty(LLAMA, 5).state_dict()])
    save(parameters, LLAMA, Path(str(tmp_path)))
    again = load(Path(str(tmp_path)))
    assert set(again) == set(parameters)
    assert all(torch.equal(again[name], value) for name, value in parameters.items())
    assert all(len(value) == 3 for value in copies(again, 3).values())
