"""Sampled tokens per CPU second: `rollouts.sample` against plain `model.generate`, on the CPU.

    python benchmarks/rollouts_over_generate.py [--continuous]

Two policies: a random Qwen3-shaped model on prompts of log-normal length, whose responses end at random (a share of
the vocabulary ends a response, so that lengths are geometric), and the demo model on its own problems.
`generate` takes the prompts in the dataset's order, a few at a time with all their rollouts, as one would write it.
With --continuous also `model.generate_batch`, which is given all prompts at once and a paged cache of as many tokens
as `sample` allows itself. They run in turn; what is compared is the time of the processor, which other programs on the
machine change less than that of the clock. Every way samples for itself, so their mean lengths are compared, not their
tokens. Writes results/rollouts_over_generate_<processor>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pool import as_loaded, make_config
from side_by_side import in_turn, show, write
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    Qwen3ForCausalLM,
)

from hf_curate.demo import MODEL, load_traces
from hf_curate.models import LanguageModel, prepared
from hf_curate.rollouts.sample import end_tokens, sample

Lengths = list[int]
PAGE, PAGES = 64, 256
"""Tokens of a page of the continuous batches' cache, and pages: the 16,384 tokens of `sample` on a CPU."""


def random_policy(arguments: argparse.Namespace) -> tuple[LanguageModel, list[list[int]], set[int]]:
    """The Qwen3-shaped model, its prompts and the ids that end a response."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = make_config(
        "Qwen3-0.6B",
        arguments.layers,
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=max(1, arguments.width // 128),
        head_dim=64,
    )
    model = Qwen3ForCausalLM(config).eval()
    lengths = np.clip(rng.lognormal(np.log(arguments.median), 0.6, arguments.prompts), 8, 8 * arguments.median)
    ends = set(range(1, 1 + round(arguments.vocabulary / arguments.mean_response)))
    prompts = [rng.integers(len(ends) + 1, arguments.vocabulary, int(length)).tolist() for length in lengths]
    return as_loaded(model), prompts, ends


def demo_policy(arguments: argparse.Namespace) -> tuple[LanguageModel, list[list[int]], set[int]]:
    """The shipped model, its problems and its end token."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    loaded = prepared(model.eval(), AutoTokenizer.from_pretrained(MODEL), torch.device("cpu"))
    prompts = [loaded.tokenizer(text)["input_ids"] for text in load_traces()["prompt"][: arguments.demo_prompts]]
    return loaded, prompts, end_tokens(loaded)  # type: ignore[return-value]


def by_sample(model: LanguageModel, prompts: Any, ends: set[int], asked: argparse.Namespace, seed: int) -> Lengths:
    found = sample(
        model, prompts, asked.n, keys=range(len(prompts)), max_new_tokens=asked.longest, eos=ends, seed=seed
    )
    return [len(own.ids) for group in found if isinstance(group, list) for own in group]


@torch.inference_mode()
def by_generate(model: LanguageModel, prompts: Any, ends: set[int], asked: argparse.Namespace, seed: int) -> Lengths:
    torch.manual_seed(seed)
    settings, lengths = plain_sampling(ends, asked), []
    for first in range(0, len(prompts), asked.generate_batch):
        batch = prompts[first : first + asked.generate_batch]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
        out: Any = model.model.generate(ids, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
        for row in out[:, width:].tolist():
            lengths.append(next((place + 1 for place, token in enumerate(row) if token in ends), len(row)))
    return lengths


def by_continuous(model: LanguageModel, prompts: Any, ends: set[int], asked: argparse.Namespace, seed: int) -> Lengths:
    out: Any = model.model.generate_batch(  # type: ignore[operator]
        inputs=prompts,
        generation_config=plain_sampling(ends, asked),
        continuous_batching_config=ContinuousBatchingConfig(
            seed=seed, page_size=PAGE, num_blocks=PAGES, max_batch_tokens=asked.continuous_tokens
        ),
    )
    failed = [one.error for one in out.values() if one.error is not None]
    if failed or len(out) != len(prompts) * asked.n:
        raise RuntimeError(f"{len(out)} responses, {len(failed)} of them failed: {failed[:1]}")
    return [len(one.generated_tokens) for one in out.values()]


def plain_sampling(ends: set[int], asked: argparse.Namespace) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=asked.longest,
        num_return_sequences=asked.n,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )


WAYS: dict[str, Callable[..., Lengths]] = {"generate": by_generate, "sample": by_sample}


def compare(
    policy: tuple[LanguageModel, list[list[int]], set[int]],
    asked: argparse.Namespace,
    clock: Callable[[], float] = time.process_time,
    done: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Sampled tokens per second of all ways, in turn; each round has its own seed."""
    ways = WAYS | ({"continuous": by_continuous} if asked.continuous else {})
    lengths: dict[str, list[Lengths]] = {way: [] for way in ways}

    def sampled(way: str) -> None:
        lengths[way].append(ways[way](*policy, asked, len(lengths[way])))

    taken = in_turn({way: lambda way=way: sampled(way) for way in ways}, asked.repeats, clock=clock, done=done)
    counts = {way: [sum(own) for own in found[-asked.repeats :]] for way, found in lengths.items()}
    rates = {
        way: [tokens / seconds for tokens, seconds in zip(counts[way], own, strict=True)]
        for way, own in taken.seconds.items()
    }
    means = {way: np.concatenate(found[-asked.repeats :]) for way, found in lengths.items()}
    apart = [(float(own.mean()), float(own.std() / len(own) ** 0.5)) for own in means.values()]
    if max(abs(mean - apart[0][0]) / np.hypot(error, apart[0][1]) for mean, error in apart[1:]) > 5:
        raise SystemExit(f"the ways sample responses of other lengths (mean, standard error): {apart}")
    return {
        "prompts": len(policy[1]),
        "prompt_tokens": {"median": statistics.median(map(len, policy[1])), "max": max(map(len, policy[1]))},
        "mean_response_tokens": dict(zip(means, apart, strict=True)),
        "median_tokens_per_second": {way: statistics.median(own) for way, own in rates.items()},
        "over_generate": {way: over_generate(own, rates["generate"]) for way, own in rates.items()},
    }


def over_generate(rates: list[float], generate: list[float]) -> dict[str, float]:
    ratios = [own / plain for own, plain in zip(rates, generate, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def lines_of(name: str, found: dict[str, Any]) -> list[Any]:
    return [
        (
            f"{name}, {way}",
            f"{found['median_tokens_per_second'][way]:,.0f}",
            "{median:.2f} ({min:.2f} - {max:.2f})".format(**ratio),
            f"{found['mean_response_tokens'][way][0]:.1f}",
        )
        for way, ratio in found["over_generate"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--demo-prompts", type=int, default=24)
    parser.add_argument("--n", type=int, default=8, help="rollouts of each prompt")
    parser.add_argument("--median", type=int, default=60, help="median prompt length in tokens")
    parser.add_argument("--mean-response", type=int, default=30, help="tokens, before the cut at --longest")
    parser.add_argument("--longest", type=int, default=96, help="most new tokens")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--generate-batch", type=int, default=8, help="prompts that generate takes at a time")
    parser.add_argument("--continuous", action="store_true", help="also generate_batch, continuous batching")
    parser.add_argument("--continuous-tokens", type=int, default=512, help="tokens of one of its forwards, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policies = {"qwen3, random": random_policy(arguments), "demo": demo_policy(arguments)}
    results = {name: compare(policy, arguments) for name, policy in policies.items()}
    write("rollouts_over_generate", {"settings": vars(arguments), "results": results})
    show(
        f"Sampling {arguments.n} rollouts of each prompt",
        ("", "tokens per CPU second", "over generate", "mean tokens"),
        [line for name, found in results.items() for line in lines_of(name, found)],
    )


if __name__ == "__main__":
    main()
