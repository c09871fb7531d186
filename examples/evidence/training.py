"""Fine-tuning of many models at once: each of a stack on rows of its own, by AdamW on completion tokens.

Full fine-tuning, or LoRA of rank 8 and alpha 32 on all linear layers, the recipe of GRACE's authors. The learning rate
rises over the first tenth of the updates and falls linearly to nothing. All models of a call take as many updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evidence.language import Row
from evidence.stack import Parameters, Stack, copies
from hf_curate.demo.tokenizer import EOS_ID, PAD_ID

IGNORED = -100
LORA_RANK, LORA_ALPHA = 8, 32


@dataclass(frozen=True)
class Texts:
    """Rows as tokens: ids and labels [rows, longest], lengths [rows]; labels are -100 on prompt and padding."""

    ids: Tensor
    labels: Tensor
    lengths: Tensor

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """ids and labels of [models, rows] places, no longer than the longest of them; -1 is a row without labels."""
        longest = int(self.lengths[places.clamp(min=0)].max())
        labels = self.labels[places.clamp(min=0), :longest]
        return self.ids[places.clamp(min=0), :longest], labels.masked_fill(places[..., None] < 0, IGNORED)


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, device: str | torch.device = "cpu") -> Texts:
    """Prompts and completions, concatenated, and the end token; padded on the right."""
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    wholes = tokenizer([row["prompt"] + row["completion"] for row in rows])["input_ids"]
    lengths = [len(whole) + 1 for whole in wholes]
    ids = torch.full((len(rows), max(lengths)), PAD_ID)
    labels = torch.full_like(ids, IGNORED)
    for place, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        tokens = torch.tensor([*whole, EOS_ID])
        ids[place, : len(tokens)] = tokens
        labels[place, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return Texts(ids.to(device), labels.to(device), torch.tensor(lengths, device=device))


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[models] mean cross-entropy over each model's labelled tokens; 0 where it has none."""
    models = logits.shape[0]
    shifted = labels[:, :, 1:]
    each = F.cross_entropy(logits[:, :, :-1].flatten(0, 2).float(), shifted.flatten(), reduction="none")
    return each.view(models, -1).sum(-1) / (shifted != IGNORED).flatten(1).sum(-1).clamp(min=1)


def rate_factor(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step counted from 0."""
    rising = max(1, math.ceil(0.1 * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))


def orders(rows: Sequence[np.ndarray], batch: int, updates: int, seeds: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """``updates`` batches of [models, batch] places: each model goes through its own rows, in a new order each epoch.

    The last batch of an epoch holds what is left, filled up with -1.
    """

    def walk(own: np.ndarray, seed: Sequence[int]) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(own)
            for first in range(0, len(order), batch):
                part = order[first : first + batch]
                yield np.pad(part, (0, batch - len(part)), constant_values=-1)

    walks = [walk(own, seed) for own, seed in zip(rows, seeds, strict=True)]
    for _ in range(updates):
        yield torch.from_numpy(np.stack([next(own) for own in walks]))


def adapters(parameters: Parameters, seed: int) -> Parameters:
    """Fresh LoRA factors of every linear layer but the head: A is drawn, the same for all models, and B is 0."""
    drawn = torch.Generator().manual_seed(seed)
    found: Parameters = {}
    for name, weight in parameters.items():
        if "_proj." in name:
            models, out, wide = weight.shape
            first = torch.randn(LORA_RANK, wide, generator=drawn) / math.sqrt(wide)
            found[f"{name}.A"] = first.to(weight.device).expand(models, -1, -1).clone()
            found[f"{name}.B"] = torch.zeros(models, out, LORA_RANK, device=weight.device)
    return found


def merged(parameters: Parameters, factors: Parameters) -> Parameters:
    """The weights with their adapters added."""
    scale = LORA_ALPHA / LORA_RANK
    return {
        name: weight + scale * torch.bmm(factors[f"{name}.B"], factors[f"{name}.A"])
        if f"{name}.A" in factors
        else weight
        for name, weight in parameters.items()
    }


def optimise(
    stack: Stack,
    trained: Parameters,
    batches: Iterator[tuple[Tensor, Tensor]],
    updates: int,
    rate: float,
    frozen: Parameters | None = None,
) -> list[Tensor]:
    """AdamW in place on ``trained`` (LoRA factors where ``frozen`` weights are given); [models] losses of each update.

    The gradient of each model is clipped to norm 1 on its own.
    """
    leaves = [value.requires_grad_() for value in trained.values()]
    fused = leaves[0].device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(leaves, lr=rate, weight_decay=0.0, fused=fused)
    seen: list[Tensor] = []
    for step, (ids, labels) in zip(range(updates), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step, updates)
        weights = trained if frozen is None else merged(frozen, trained)
        own = losses(stack.forward(weights, ids), labels)
        own.sum().backward()
        clip(leaves)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(own.detach())
    for value in leaves:
        value.requires_grad_(False)
    return seen


def clip(leaves: Sequence[Tensor], most: float = 1.0) -> None:
    """Scales the gradients of each model down to a norm of at most ``most``."""
    gradients = [value.grad for value in leaves if value.grad is not None]
    square = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    factor = (most / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def fine_tuned(
    stack: Stack,
    base: Parameters,
    texts: Texts,
    rows: Sequence[np.ndarray],
    *,
    updates: int,
    batch: int,
    rate: float,
    method: str = "full",
    seed: int = 0,
) -> Parameters:
    """One model for each set of ``rows`` (places in ``texts``), trained from ``base``, a stack of one.

    Equal sets give equal models, whatever stands beside them. ``method`` is "full" or "lora".
    """
    weights = copies(base, len(rows))
    seeds = [[seed, len(own)] for own in rows]
    batches = (texts.batch(places.to(texts.ids.device)) for places in orders(rows, batch, updates, seeds))
    if method == "full":
        optimise(stack, weights, batches, updates, rate)
        return weights
    if method != "lora":
        raise ValueError(f"unknown method {method!r}: full or lora")
    factors = adapters(weights, seed)
    optimise(stack, factors, batches, updates, rate, weights)
    return merged(weights, factors)
