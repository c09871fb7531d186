"""A plain sampler for small models, and the rewards of the demo's arithmetic: the other examples' rollouts.

    python examples/sampling.py

prints how often the shipped model is right at temperature 1. Every problem has random numbers of its own, from the
seed and the problem's position, so its rollouts do not depend on what else is sampled beside it, and a larger `n`
begins with the rollouts of a smaller one.
"""

from __future__ import annotations

import argparse
import inspect
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hf_curate.demo import MODEL, world
from hf_curate.rollouts.cached import CACHE_NAMES

BATCH_ROWS = 4096  # rollouts that are sampled side by side


def load_demo_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shipped model in float32 and eval mode, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(MODEL)


@contextmanager
def one_thread() -> Iterator[None]:
    """For a model this small a second thread is no faster, and waits for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> list[list[list[int]]]:
    """Token ids of `n` responses to each prompt, [prompts][n][tokens].

    The last token is EOS unless `max_new_tokens` came first. Prompts of equal length share a batch, so that nothing is
    padded. A model with dropout must be in eval mode.
    """
    if not temperature > 0 or n < 1 or max_new_tokens < 1:
        raise ValueError(
            f"temperature={temperature}, n={n} and max_new_tokens={max_new_tokens} must be above 0; "
            "for greedy rollouts use hf_curate.demo.evaluate."
        )
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError(f"a response ends with EOS, and the tokenizer's eos_token_id is {eos!r}: set eos_token.")
    ids: list[list[int]] = [tokenizer(prompt)["input_ids"] for prompt in prompts]  # type: ignore[misc]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(ids):
        by_length[len(prompt)].append(index)
    side_by_side = max(1, BATCH_ROWS // n)
    found: list[list[list[int]]] = [[] for _ in prompts]
    for same in by_length.values():
        for first in range(0, len(same), side_by_side):
            batch = same[first : first + side_by_side]
            draws = [np.random.default_rng([seed, index]).random((n, max_new_tokens)) for index in batch]
            prompt_ids = torch.tensor([ids[index] for index in batch], device=model.device)
            rows = _continue(model, prompt_ids, np.concatenate(draws), temperature, eos)
            for place, index in enumerate(batch):
                found[index] = rows[place * n : (place + 1) * n]
    return found


@torch.inference_mode()
def _continue(
    model: PreTrainedModel, prompt_ids: torch.Tensor, draws: np.ndarray, temperature: float, eos: int
) -> list[list[int]]:
    """[P, T] prompts and [P * n, steps] uniform numbers -> P * n responses, those of one prompt side by side.

    The rows of the model's batch are different texts, and responses that agree so far share one.
    """
    cache = DynamicCache(config=model.config)
    kept = {name: cache for name in CACHE_NAMES if name in inspect.signature(model.forward).parameters}
    logits = model(input_ids=prompt_ids, use_cache=True, logits_to_keep=1, **kept).logits[:, -1]
    uniform = torch.from_numpy(draws).to(logits.device)
    responses: list[list[int]] = [[] for _ in draws]
    going = torch.arange(len(draws), device=logits.device)  # the responses that have not ended
    row = going // (len(draws) // len(prompt_ids))  # and the batch's row that each has come to
    for step in range(draws.shape[1]):
        tokens = _draw(logits / temperature, row, uniform[going, step])
        for response, token in zip(going.tolist(), tokens.tolist(), strict=True):
            responses[response].append(token)
        on = tokens != eos
        if step + 1 == draws.shape[1] or not on.any():
            break
        going = going[on]
        different, row = torch.unique(row[on] * logits.shape[1] + tokens[on], return_inverse=True)
        cache.batch_select_indices(different // logits.shape[1])
        new = different[:, None] % logits.shape[1]
        logits = model(input_ids=new, use_cache=True, **kept).logits[:, -1]
    return responses


def _draw(logits: torch.Tensor, row: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """[B, V] logits, [R] rows and [R] numbers in [0, 1) -> [R] tokens, by the inverse of the distribution function."""
    upto = logits.double().softmax(dim=-1).cumsum(dim=-1)
    tokens = torch.searchsorted(upto[row], uniform[:, None] * upto[row, -1:], right=True)
    return tokens[:, 0].clamp_max(logits.shape[-1] - 1)


def rewards_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """For each prompt and response 1.0 where its last line gives the right answer, else 0.0."""
    found: list[list[float]] = []
    for prompt, group in zip(prompts, responses, strict=True):
        truth = world.true_answer(prompt)
        texts = tokenizer.batch_decode([list(ids) for ids in group], skip_special_tokens=True)
        found.append([float(world.written_answer(text) == truth) for text in texts])
    return found


def sampled_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], n: int, *, seed: int
) -> list[dict[str, Any]]:
    """One row for each prompt, as the scorers read them: `prompt`, `response_ids` [n][tokens] and `rewards` [n]."""
    responses = sample(model, tokenizer, prompts, n, seed=seed)
    rewards = rewards_of(tokenizer, prompts, responses)
    return [
        {"prompt": prompt, "response_ids": ids, "rewards": own}
        for prompt, ids, own in zip(prompts, responses, rewards, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Success rates of the demo model on held-out problems.")
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    model, tokenizer = load_demo_model()
    drawn = world.draw_problems(asked.problems, random.Random(asked.seed), "held_out")
    prompts = [problem.prompt for problem in drawn]
    start = time.perf_counter()
    responses = sample(model, tokenizer, prompts, asked.rollouts, temperature=asked.temperature, seed=asked.seed)
    seconds = time.perf_counter() - start
    rates = np.array([np.mean(rewards) for rewards in rewards_of(tokenizer, prompts, responses)])
    lengths = [len(ids) for group in responses for ids in group]
    ended = np.mean([ids[-1] == tokenizer.eos_token_id for group in responses for ids in group])
    print(
        f"{asked.problems} problems x {asked.rollouts} rollouts in {seconds:.1f} s, {np.mean(lengths):.1f} tokens each"
    )
    print(f"success rate {rates.mean():.3f}; {ended:.1%} of the rollouts wrote their end token")
    print(f"always wrong {np.mean(rates == 0):.1%}, always right {np.mean(rates == 1):.1%} of the problems; between:")
    edges = np.linspace(0, 1, 6)
    for low, high in pairwise(edges):
        inside = (rates > 0) & (rates < 1) & (rates >= low) & ((rates < high) | (high == 1))
        print(f"  {low:.1f} to {high:.1f}  {inside.mean():6.1%}")


if __name__ == "__main__":
    main()
