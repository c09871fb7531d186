"""GRACE's time over a plain forward with cross-entropy on the same batches, by proxy, on the CPU.

    python benchmarks/grace_over_forward.py [--dtype float32] [--rounds 5]

Layers, head and vocabulary of Qwen3-0.6B with random weights; rows of log-normal length with 8 to 20 steps. One layer
is run, with the whole head. What a layer takes is measured in the same rounds, from hidden states after 1 and 3
layers, and the figures for all 28 are those of one layer and 27 times that. All ways take the same batches in turn:

- forward: the logits of the scored positions at once and `torch.nn.functional.cross_entropy`, as one would write it;
- lean forward: the same loss, a chunk of positions at a time (`token_losses`): what the lowest-loss baseline does;
- floor of outer: the forward and one more product of the head's size, with its float32 residuals;
- representation, outer: GRACE.

Losses of all ways are compared. Memory is what the process grows by at most, in one pass, over the hidden states.
Writes results/grace_over_forward_<processor>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pool import Batches, make_batches, make_model
from side_by_side import Rounds, check_same, in_turn, peak_of, show, write

from hf_curate.gradients.losses import token_losses
from hf_curate.gradients.segments import segment_grams
from hf_curate.models import LanguageModel

PROXIES = ("representation", "outer")
FEW, MANY, LAYERS = 1, 3, 28
"""Layers that are run, layers that tell what one takes, and those of Qwen3-0.6B."""


@torch.no_grad()
def plain_loss(model: LanguageModel, ids: torch.Tensor, labels: torch.Tensor, more: bool = False) -> float:
    """Forward and cross-entropy as one would write them. more: and one more product of the head's size."""
    logits = torch.nn.functional.linear(chosen(model, ids, labels), model.head.weight).float()
    loss = float(torch.nn.functional.cross_entropy(logits, ids.flatten()[labels], reduction="sum"))
    if more:  # in float32, as signals of single tokens need: weights of half precision are widened once, for free
        _ = logits @ wide_weight(model)
    return loss


@torch.no_grad()
def lean_loss(model: LanguageModel, ids: torch.Tensor, labels: torch.Tensor) -> float:
    return float(token_losses(model.head, chosen(model, ids, labels), ids.flatten()[labels]).sum())


def chosen(model: LanguageModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return model.hidden(ids).flatten(0, 1)[labels - 1]


_wide: dict[int, torch.Tensor] = {}


def wide_weight(model: LanguageModel) -> torch.Tensor:
    return _wide.setdefault(id(model), model.head.weight.float())


def ways(model: LanguageModel, batches: Batches) -> dict[str, Callable[[], float]]:
    def over(one: Callable[..., float], **options: bool) -> Callable[[], float]:
        return lambda: sum(one(model, ids, labels, **options) for ids, labels, _ in batches)

    def grace(proxy: str) -> Callable[[], float]:
        return lambda: sum(
            float(losses.double().sum())
            for ids, _, spans in batches
            for _, losses in segment_grams(model, ids, spans, proxy)
        )

    return {
        "forward": over(plain_loss),
        "lean forward": over(lean_loss),
        "floor of outer": over(plain_loss, more=True),
        **{proxy: grace(proxy) for proxy in PROXIES},
    }


@torch.no_grad()
def hidden_states(model: LanguageModel, batches: Batches, layers: int) -> None:
    """Those of all batches after so many layers."""
    model.model.config.num_hidden_layers = layers
    for ids, _, _ in batches:
        model.hidden(ids)
    model.model.config.num_hidden_layers = FEW


def at_all_layers(rounds: Rounds) -> Rounds:
    """What each round would have taken at all layers, whose time is that between few and many in the same round."""
    few, many = (rounds.seconds[depth_name(layers)] for layers in (FEW, MANY))
    layer = [(deep - shallow) / (MANY - FEW) for shallow, deep in zip(few, many, strict=True)]
    return Rounds(
        {
            way: [own + (LAYERS - FEW) * each for own, each in zip(seconds, layer, strict=True)]
            for way, seconds in rounds.seconds.items()
            if way in rounds.found and not way.startswith("hidden")
        }
    )


def depth_name(layers: int) -> str:
    return f"hidden states, {layers} layers"


def measure(dtype: torch.dtype, asked: argparse.Namespace) -> tuple[Rounds, dict[str, float], int]:
    """Rounds, memory over that of the hidden states in GB, and tokens."""
    model = make_model(MANY, dtype)
    model.model.config.num_hidden_layers = FEW
    batches, tokens = make_batches(asked.rows, asked.median, asked.longest, asked.batch_tokens)
    graced = ways(model, batches)
    depths = {depth_name(layers): partial(hidden_states, model, batches, layers) for layers in (FEW, MANY)}
    rounds = in_turn({**depths, **graced}, asked.rounds)
    check_same({way: [rounds.found[way]] for way in graced}, "forward", 1e-4)
    largest = [max(batches, key=lambda batch: batch[0].numel())]
    bare = peak_of(lambda: hidden_states(model, largest, FEW))
    memory = {way: (peak_of(run) - bare) / 2**30 for way, run in ways(model, largest).items()}
    _wide.clear()
    return rounds, memory, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"), help="both, unless given")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--median", type=int, default=400, help="median row length in tokens")
    parser.add_argument("--longest", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    result: dict[str, Any] = {"settings": vars(asked)}
    for name in asked.dtype or ("float32", "bfloat16"):
        few, memory, tokens = measure(getattr(torch, name), asked)
        whole = at_all_layers(few)
        result[name] = {
            "tokens": tokens,
            "one layer": few.record("forward"),
            f"{LAYERS} layers": whole.record("forward"),
            f"outer over its floor, {LAYERS} layers": whole.over("outer", "floor of outer"),
            "GB above the hidden states": memory,
        }
        show(
            f"GRACE over a plain forward with loss, {name}, {tokens:,} tokens, Qwen3-0.6B's layers and head",
            ("", "seconds, 1 layer", "over forward", f"over forward, {LAYERS} layers", "over its floor", "GB above"),
            [
                (
                    way,
                    f"{few.median(way):.2f}",
                    few.over(way, "forward"),
                    whole.over(way, "forward"),
                    whole.over(way, "floor of outer") if way == "outer" else "",
                    f"{memory[way]:.2f}",
                )
                for way in whole.seconds
            ],
        )
    write("grace_over_forward", result)


if __name__ == "__main__":
    main()
