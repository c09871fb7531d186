"""Sampled tokens per CPU second: `rollouts.sample` against plain `model.generate`, on the CPU.

    python benchmarks/rollouts_over_generate.py [--continuous]

Two policies: a random Qwen3-shaped model on prompts of log-normal length, whose responses end at random (a share of
the vocabulary ends a response, so that lengths are geometric), and the demo model on its own problems.
`generate` takes the prompts in the dataset's order, a few at a time with all their rollouts, as one would write it.
With --continuous also `model.generate_batch`, which is given all prompts at once and a paged cache of as many tokens
as `sample` allows itself. They run in turn, one round warms up, medians are reported. What is compared is the time of
the processor, which other programs on the machine change less than that of the clock; both are written, with the
machine's load, to results/rollouts_over_generate_<processor>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_curate.demo import MODEL, load_traces
from hf_curate.gradients.head import head_of
from hf_curate.models import LanguageModel, prepared
from hf_curate.rollouts.sample import end_tokens, sample

Lengths = list[int]
PAGE, PAGES = 64, 256
"""Tokens of a page of the continuous batches' cache, and pages: the 16,384 tokens of `sample` on a CPU."""


def random_policy(arguments: argparse.Namespace) -> tuple[LanguageModel, list[list[int]], set[int]]:
    """The Qwen3-shaped model, its prompts and the ids that end a response."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = Qwen3Config(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=max(1, arguments.width // 128),
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    lengths = np.clip(rng.lognormal(np.log(arguments.median), 0.6, arguments.prompts), 8, 8 * arguments.median)
    ends = set(range(1, 1 + round(arguments.vocabulary / arguments.mean_response)))
    prompts = [rng.integers(len(ends) + 1, arguments.vocabulary, int(length)).tolist() for length in lengths]
    loaded = LanguageModel(model, None, model.get_decoder(), head_of(model), torch.device("cpu"))  # type: ignore[arg-type]
    return loaded, prompts, ends


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
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
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


def compare(policy: tuple[LanguageModel, list[list[int]], set[int]], asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second (of the processor, and of the clock) of all ways, in turn; each round has its own seed."""
    ways = WAYS | ({"continuous": by_continuous} if asked.continuous else {})
    rates: dict[str, list[float]] = {way: [] for way in ways}
    by_clock: dict[str, list[float]] = {way: [] for way in ways}
    lengths: dict[str, Lengths] = {way: [] for way in ways}
    for seed in range(asked.repeats + 1):
        for way, run in ways.items():
            start = time.process_time(), time.perf_counter()
            sampled = run(*policy, asked, seed)
            end = time.process_time(), time.perf_counter()
            if seed:  # the first round warms up
                rates[way].append(sum(sampled) / (end[0] - start[0]))
                by_clock[way].append(sum(sampled) / (end[1] - start[1]))
                lengths[way] += sampled
    found = {way: over_generate(own, rates["generate"]) for way, own in rates.items() if way != "generate"}
    return {
        "prompts": len(policy[1]),
        "prompt_tokens": {"median": statistics.median(map(len, policy[1])), "max": max(map(len, policy[1]))},
        "response_tokens": {
            way: {"mean": float(np.mean(own)), "stderr": float(np.std(own) / len(own) ** 0.5)}
            for way, own in lengths.items()
        },
        "median_tokens_per_cpu_second": {way: statistics.median(own) for way, own in rates.items()},
        "median_tokens_per_second": {way: statistics.median(own) for way, own in by_clock.items()},
        "ratio": found.pop("sample"),
        **{f"ratio_{way}": ratio for way, ratio in found.items()},
    }


def over_generate(rates: list[float], generate: list[float]) -> dict[str, float]:
    ratios = [own / plain for own, plain in zip(rates, generate, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


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
    load = os.getloadavg()
    policies = {"qwen3, random": random_policy(arguments), "demo": demo_policy(arguments)}
    results = {name: compare(policy, arguments) for name, policy in policies.items()}
    written = {
        "settings": vars(arguments),
        "results": results,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
        "load": [round(before, 1) for before in (load[0], os.getloadavg()[0])],
    }
    path = Path(__file__).parent / "results" / f"rollouts_over_generate_{platform.machine()}_cpu.json"
    path.write_text(json.dumps(written, indent=2) + "\n")
    print(f"{arguments.n} rollouts, {arguments.threads} thread, torch {torch.__version__}; tokens per CPU second")
    for name, found in results.items():
        print(f"{name:<18}generate {found['median_tokens_per_cpu_second']['generate']:>10,.0f}")
        for way, ratio in (("sample", "ratio"), ("continuous", "ratio_continuous")):
            if ratio not in found:
                continue
            spread, mean = found[ratio], found["response_tokens"]
            print(
                f"{'':<18}{way:<10}{found['median_tokens_per_cpu_second'][way]:>9,.0f}{spread['median']:>8.2f}"
                f"   ({spread['min']:.2f} - {spread['max']:.2f})   "
                f"mean tokens {mean['generate']['mean']:.1f}, {mean[way]['mean']:.1f}"
            )


if __name__ == "__main__":
    main()
