"""GRACE's time over a plain forward with loss on the same batches, by proxy, on the CPU.

    python benchmarks/grace_over_forward.py

A Qwen3-shaped model with random weights and a vocabulary of 151,936, narrow enough for a CPU; rows of log-normal
length with 8 to 20 steps. The alternatives run in turn on the same batches, several times; medians and ratios are
reported, and the loss of both is compared. Writes results/grace_over_forward_<processor>.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_curate.batches import bucket
from hf_curate.gradients.head import head_of
from hf_curate.gradients.segments import segment_grams
from hf_curate.models import LanguageModel

VOCABULARY = 151_936
PROXIES = ("representation", "outer", "last")


def make_model(width: int, layers: int) -> LanguageModel:
    """A random Qwen3 of the given width and depth with a tied head; no tokenizer is needed for ids."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    return LanguageModel(model, None, model.get_decoder(), head_of(model), torch.device("cpu"))  # type: ignore[arg-type]


def make_rows(rows: int, median: int, longest: int) -> list[tuple[list[int], list[list[int]]]]:
    """(token ids, label positions of each step and of the answer): a third of the row is prompt, the answer 4
    tokens."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(rows):
        length = int(np.clip(rng.lognormal(np.log(median), 0.6), 64, longest))
        steps = int(rng.integers(8, 21))
        cuts = np.linspace(length // 3, length - 4, steps + 1).astype(int)
        spans = [list(range(a, b)) for a, b in pairwise(cuts) if b > a]
        made.append((rng.integers(0, VOCABULARY, length).tolist(), [*spans, list(range(length - 4, length))]))
    return made


def plain_loss(model: LanguageModel, ids: torch.Tensor, spans: list[list[list[int]]]) -> float:
    """Forward and cross-entropy of the same labels, as a user would write it: logits of the needed positions at
    once."""
    with torch.no_grad():
        hidden = model.hidden(ids).flatten(0, 1)
        width = ids.shape[1]
        labels = [row * width + p for row, own in enumerate(spans) for p in sorted({p for span in own for p in span})]
        where = torch.tensor(labels)
        logits = torch.nn.functional.linear(hidden[where - 1], model.head.weight)
        return float(torch.nn.functional.cross_entropy(logits.float(), ids.flatten()[where], reduction="sum"))


def one_pass(model: LanguageModel, batches: list[tuple[torch.Tensor, Any]], kind: str) -> tuple[float, float]:
    """(seconds, summed loss) over all batches."""
    start, loss = time.perf_counter(), 0.0
    for ids, spans in batches:
        if kind == "forward":
            loss += plain_loss(model, ids, spans)
        else:
            loss += sum(float(losses.sum()) for _, losses in segment_grams(model, ids, spans, kind))
    return time.perf_counter() - start, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--median", type=int, default=200, help="median row length in tokens")
    parser.add_argument("--longest", type=int, default=800)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    arguments = parser.parse_args()
    model = make_model(arguments.width, arguments.layers)
    rows = make_rows(arguments.rows, arguments.median, arguments.longest)
    batches = []
    for group in bucket([len(ids) for ids, _ in rows], arguments.batch_tokens):
        longest = max(len(rows[i][0]) for i in group)
        padded = torch.tensor([rows[i][0] + [0] * (longest - len(rows[i][0])) for i in group])
        batches.append((padded, [rows[i][1] for i in group]))
    kinds = ("forward", *PROXIES)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    sums: dict[str, float] = {}
    for repeat in range(arguments.repeats + 1):
        for kind in kinds:
            took, sums[kind] = one_pass(model, batches, kind)
            if repeat:  # the first round warms up
                seconds[kind].append(took)
    for kind in PROXIES:
        assert abs(sums[kind] - sums["forward"]) < 1e-4 * abs(sums["forward"]), (kind, sums)
    ratios = {
        kind: statistics.median(a / b for a, b in zip(seconds[kind], seconds["forward"], strict=True))
        for kind in kinds
    }
    result = {
        "settings": vars(arguments) | {"vocabulary": VOCABULARY, "tokens": sum(len(ids) for ids, _ in rows)},
        "median_seconds": {kind: statistics.median(values) for kind, values in seconds.items()},
        "median_ratio_to_forward": ratios,
        "min_ratio": {k: min(a / b for a, b in zip(seconds[k], seconds["forward"], strict=True)) for k in kinds},
        "max_ratio": {k: max(a / b for a, b in zip(seconds[k], seconds["forward"], strict=True)) for k in kinds},
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
    }
    path = Path(__file__).parent / "results" / f"grace_over_forward_{platform.machine()}_cpu.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['settings']['tokens']:,} tokens, {result['threads']} threads, torch {torch.__version__}")
    print(f"{'':<16}{'seconds':>10}{'ratio':>10}   (min - max)")
    for kind in kinds:
        low, high = result["min_ratio"][kind], result["max_ratio"][kind]
        print(f"{kind:<16}{result['median_seconds'][kind]:>10.2f}{ratios[kind]:>10.2f}   ({low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
