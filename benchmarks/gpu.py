"""Everything that is timed on a GPU, in one run of under ten minutes: it checks, times, and prints its tables last.

    python benchmarks/gpu.py

Needs torch, transformers, huggingface_hub and safetensors, and a checkout: nothing has to be installed. Shapes of
Qwen3-0.6B, 1.7B and 8B in bfloat16 with random weights made on the device, rows of log-normal length (median 400, up
to 4,000 tokens) with 8 to 20 steps:

- GRACE over a plain forward with cross-entropy on the same batches, its share of the bfloat16 matrix rate that is
  measured first, and its memory above the bare forward at 65,536 tokens a batch;
- the products of a policy gradient with a direction over a forward and a backward of the same rollouts;
- sampling beside `generate` and `generate_batch`;
- a candidate: products of float32 residuals with bfloat16 weights, in float32 and as three bfloat16 products whose
  sums are float32, with the errors of both.

Writes results/gpu_<name of the GPU>.json. --tiny takes tiny models; it is how the tests run it on a CPU.
"""

# ruff: noqa: E402 - a checkout need not be installed
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from grace_over_forward import PROXIES, chosen, plain_loss
from pool import SHAPES, Batches, batch_of, make_lengths, make_model, make_rows
from side_by_side import RESULTS, check_same, in_turn, show, write

from hf_curate.batches import Rollout, bucket
from hf_curate.gradients.inner import policy_products
from hf_curate.gradients.segments import segment_grams
from hf_curate.gradients.upstream import byte_budget
from hf_curate.models import LanguageModel

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
HALF = 2e-2
"""Relative, of losses and inner products in two orders of bfloat16 products."""


class Device:
    """Where it all runs, how large, and how one waits for it."""

    def __init__(self, tiny: bool) -> None:
        self.tiny, self.cuda = tiny, torch.cuda.is_available()
        if not tiny and not self.cuda:
            raise SystemExit("this machine has no CUDA device: --tiny runs the same on a CPU, for the tests.")
        self.name = "cuda" if self.cuda else "cpu"

    def done(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def model(self, shape: str) -> LanguageModel:
        small: dict[str, Any] = {**TINY, "layers": 2, "vocab_size": 300} if self.tiny else {}
        return make_model(dtype=torch.bfloat16, shape=shape, device=self.name, **small)

    def batches(self, tokens: int, batch_tokens: int, vocabulary: int) -> Batches:
        """About so many tokens, in batches."""
        median, longest = (20, 60) if self.tiny else (400, 4000)
        lengths: list[int] = []
        for length in make_lengths(tokens // median + 1, median, longest):
            if sum(lengths) + length > tokens:
                break
            lengths.append(length)
        rows = make_rows(lengths, (2, 3) if self.tiny else (8, 20), vocabulary)
        groups = bucket([len(ids) for ids, _ in rows], batch_tokens)
        return [batch_of([rows[i] for i in group], self.name) for group in groups]

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes on the device that are held at most while this runs; 0 on a CPU."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() if self.cuda else 0


def matrix_rate(device: Device, rounds: int) -> float:
    """Operations per second of a large bfloat16 product."""
    size = 64 if device.tiny else 8192
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device.name) for _ in range(2))
    taken = in_turn({"product": lambda: [left @ right for _ in range(10)]}, rounds, done=device.done)
    return 10 * 2 * size**3 / taken.median("product")


def operations(model: LanguageModel, batches: Batches) -> float:
    """Those of a forward's matrix products for tokens that are no padding, and of the head for the labels; attention
    is left out."""
    config: Any = model.model.config
    inside = sum(p.numel() for name, p in model.decoder.named_parameters() if p.dim() == 2 and "embed" not in name)
    tokens = sum(max(p for span in spans for p in span) + 1 for _, _, rows in batches for spans in rows)
    labels = sum(len(places) for _, places, _ in batches)
    return 2.0 * (inside * tokens + config.vocab_size * config.hidden_size * labels)


@torch.no_grad()
def reference(model: LanguageModel, batch: tuple[torch.Tensor, torch.Tensor, Any]) -> torch.Tensor:
    """Inner products of the first row's segments as they are defined, after the logits in float64 on the CPU."""
    ids, _, rows = batch
    spans = rows[0]
    hidden, weight = model.hidden(ids)[0], model.head.weight.double().cpu()
    means = []
    for span in spans:
        where = torch.tensor(span, device=ids.device)
        logits = torch.nn.functional.linear(hidden[where - 1], model.head.weight).double().cpu()
        residual = logits.softmax(-1)
        residual[torch.arange(len(span)), ids[0, where].cpu()] -= 1
        means.append(residual.mean(0) @ weight)
    both = torch.stack(means)
    return both @ both.T


@torch.no_grad()
def hidden_states(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    return model.hidden(ids)


def grace(device: Device, shape: str, rate: float, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    model = device.model(shape)
    budget, vocabulary = byte_budget(model.device), model.head.vocabulary
    batches = device.batches(*((400, 200) if device.tiny else (131_072, 32_768)), vocabulary)
    tokens = sum(ids.numel() for ids, _, _ in batches)

    def by(proxy: str, over: Batches = batches) -> float:
        return sum(
            float(losses.double().sum())
            for ids, _, spans in over
            for _, losses in segment_grams(model, ids, spans, proxy, byte_budget=budget)
        )

    def forward() -> float:
        return sum(plain_loss(model, ids, labels) for ids, labels, _ in batches)

    first = min(batches, key=lambda batch: batch[0].shape[1])
    gram, _ = segment_grams(model, first[0], first[2], "representation", byte_budget=budget)[0]
    check_same({"gram": gram.flatten(), "plain": reference(model, first).flatten()}, "plain", HALF / 10)
    rounds_ = in_turn({"forward": forward, **{p: lambda p=p: by(p) for p in PROXIES}}, rounds, done=device.done)
    check_same({way: [loss] for way, loss in rounds_.found.items()}, "forward", HALF)
    large, *_ = device.batches(*((400, 300) if device.tiny else (131_072, 65_536)), vocabulary)
    bare = device.peak(lambda: hidden_states(model, large[0]))
    memory = {proxy: (device.peak(lambda p=proxy: by(p, [large])) - bare) / 2**30 for proxy in PROXIES}
    work = operations(model, batches)
    result = {
        "tokens": tokens,
        **rounds_.record("forward"),
        "share of the matrix rate": {way: work / rounds_.median(way) / rate for way in rounds_.seconds},
        "GB above the bare forward": {"tokens": large[0].numel(), **memory},
    }
    lines = [
        (
            f"{shape}, {way}",
            f"{rounds_.median(way):.3f}",
            f"{tokens / rounds_.median(way):,.0f}",
            rounds_.over(way, "forward"),
            f"{result['share of the matrix rate'][way]:.0%}",
            f"{memory[way]:.2f}" if way in memory else "",
        )
        for way in rounds_.seconds
    ]
    return result, lines


def policy(device: Device, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """Products of 16 rollouts of one problem, half of their tokens in the prompt; all linear layers of 0.6B."""
    model = device.model("Qwen3-0.6B")
    half, count = (8, 4) if device.tiny else (256, 16)
    torch.manual_seed(1)
    prompt = torch.randint(0, 300, (half,)).tolist()
    rollouts = [Rollout(prompt + torch.randint(0, 300, (half,)).tolist(), half) for _ in range(count)]
    advantages = [0.5 if number % 2 else -0.5 for number in range(count)]
    parameters = {n: p for n, p in model.model.named_parameters() if p.dim() == 2 and "embed" not in n}
    ids = torch.tensor([rollout.input_ids for rollout in rollouts], device=device.name)

    def backward() -> dict[str, torch.Tensor]:
        logits = model.model(input_ids=ids, use_cache=False).logits[:, half - 1 : -1].float()
        log_odds = logits.log_softmax(-1).gather(2, ids[:, half:, None])[..., 0]
        objective = (log_odds.mean(1) * torch.tensor(advantages, device=device.name)).mean()
        return dict(zip(parameters, torch.autograd.grad(objective, list(parameters.values())), strict=True))

    direction = {name: gradient.float() for name, gradient in backward().items()}
    squared = sum(float(gradient.square().sum()) for gradient in direction.values())

    def products(towards: dict[str, torch.Tensor] | None) -> Any:
        return policy_products(model, rollouts, advantages, parameters, towards)

    ways = {
        "forward and backward": backward,
        "norm": lambda: products(None),
        "norm and product": lambda: policy_products(
            model, rollouts, advantages, parameters, direction, per_rollout=False
        ),
        "each rollout's product": lambda: products(direction),
    }
    taken = in_turn(ways, rounds, done=device.done)
    found = {way: taken.found[way].dot for way in ("norm and product", "each rollout's product")}
    found |= {"plain": squared, "norm": taken.found["norm"].squared_norm}
    check_same({way: [number] for way, number in found.items()}, "plain", 3 * HALF)
    lines = [(way, f"{taken.median(way):.3f}", taken.over(way, "forward and backward")) for way in ways]
    return taken.record("forward and backward"), lines


def sampling(device: Device, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """Rollouts of 0.6B beside generate and, on a GPU, continuous batching; a share of the vocabulary ends a
    response."""
    from rollouts_over_generate import compare, lines_of

    model = device.model("Qwen3-0.6B")
    mean, longest, prompts = (4, 6, 3) if device.tiny else (100, 256, 24)
    ends = set(range(1, 2 + round(model.head.vocabulary / mean)))
    lengths = make_lengths(prompts, 8 if device.tiny else 200, 1000)
    made = [torch.randint(len(ends) + 1, model.head.vocabulary, (length,)).tolist() for length in lengths]
    asked: Any = SimpleNamespace(
        n=8, longest=longest, generate_batch=8, continuous=device.cuda, continuous_tokens=4096, repeats=rounds
    )
    found = compare((model, made, ends), asked, clock=time.perf_counter, done=device.done)
    return found, lines_of("Qwen3-0.6B", found)


@torch.no_grad()
def three_products(residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """residual [n, V] in float32 times a bfloat16 weight [V, d]: 24 bits are three times 8."""
    total = None
    for part in parts(residual):
        if residual.is_cuda:
            product = torch.mm(part, weight, out_dtype=torch.float32)  # type: ignore[call-overload]
        else:
            product = part.float() @ weight.float()
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def parts(residual: torch.Tensor) -> Iterator[torch.Tensor]:
    rest = residual.clone()
    for _ in range(3):
        part = rest.bfloat16()
        yield part
        rest -= part.float()


@torch.no_grad()
def candidate(device: Device, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """What `outer` pays for beyond the forward, as it is and as it might be."""
    model = device.model("Qwen3-0.6B")
    (ids, labels, _), *_ = device.batches(*((100, 200) if device.tiny else (2048, 4096)), model.head.vocabulary)
    logits = torch.nn.functional.linear(chosen(model, ids, labels), model.head.weight).float()
    residual = logits.softmax(-1)
    exact = residual[:32].double() @ model.head.weight.double()
    ways = {
        "float32": lambda: model.head.back(residual, byte_budget(model.device)),
        "three bfloat16 products": lambda: three_products(residual, model.head.weight),
        "one bfloat16 product": lambda: (residual.bfloat16() @ model.head.weight).float(),
    }
    taken = in_turn(ways, rounds, done=device.done)
    errors = {way: float((taken.found[way][:32] - exact).norm() / exact.norm()) for way in ways}
    if errors["three bfloat16 products"] > 1e-5:
        raise SystemExit(f"three bfloat16 products are not as exact as float32: {errors}")
    lines = [(way, f"{taken.median(way):.4f}", taken.over(way, "float32"), f"{errors[way]:.1e}") for way in ways]
    return {**taken.record("float32"), "relative error": errors}, lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a test on a CPU")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="all three, unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go")
    asked = parser.parse_args(arguments)
    device = Device(asked.tiny)
    rate = matrix_rate(device, asked.rounds)
    result: dict[str, Any] = {"bfloat16 operations per second": rate}
    graced: list[Any] = []
    for shape in asked.shape or SHAPES:
        result[shape], lines = grace(device, shape, rate, asked.rounds)
        graced += lines
    result["policy"], products = policy(device, asked.rounds)
    result["sampling"], sampled = sampling(device, max(1, asked.rounds // 2))
    result["candidate"], products_of = candidate(device, asked.rounds)
    write("gpu", result, asked.folder)
    over = ("over forward", "of the matrix rate", "GB above")
    show(f"GRACE, bfloat16; matrix rate {rate / 1e12:.0f} T/s", ("", "seconds", "tokens/s", *over), graced)
    show("Policy gradient of one problem, Qwen3-0.6B", ("", "seconds", "over forward and backward"), products)
    show("Sampling, 8 rollouts of each prompt", ("", "tokens/s", "over generate", "mean tokens"), sampled)
    show("Residuals times the head", ("", "seconds", "over float32", "relative error"), products_of)


if __name__ == "__main__":
    main()
