"""Several models of one shape as one: parameters with a leading dimension, so that 20 fine-tunings cost one pass.

Qwen3 and Llama, as transformers has them, under the names of their state dicts. A product of a [models, rows, in] and
a [models, out, in] tensor is one batched matrix product, and models never meet: the gradient of the sum of their
losses is each model's own. Compared with transformers' models in tests/evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Architecture and sizes; heads have ``head`` features, and two query heads share a key/value head."""

    architecture: str = "qwen3"
    width: int = 48
    inner: int = 128
    layers: int = 2
    heads: int = 4
    head: int = 12
    longest: int = 192
    theta: float = 10_000.0
    epsilon: float = 1e-6

    @property
    def key_heads(self) -> int:
        return max(1, self.heads // 2)


Cache = list[tuple[Tensor, Tensor]]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """[models, n, in] by [models, out, in] -> [models, n, out]."""
    return torch.bmm(x, weight.transpose(1, 2))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Over the last dimension; ``weight`` is broadcast against x."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotations(shape: Shape, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head] of the positions from ``start`` on."""
    frequency = shape.theta ** (-torch.arange(0, shape.head, 2, device=device, dtype=torch.float32) / shape.head)
    angle = torch.outer(torch.arange(start, start + length, device=device, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of [..., length, head]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Stack:
    """``models`` models of one shape; ``forward`` takes their parameters, so that training may put others in."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def forward(self, parameters: Parameters, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """[models, rows, length] token ids -> [models, rows, length, vocabulary] logits.

        Rows are padded on the right, where the causal mask hides the padding. With a cache (an empty list at first)
        the ids follow on what it holds, in rows of one length without padding, and it is extended in place.
        """
        shape = self.shape
        models, rows, length = ids.shape
        table = parameters["model.embed_tokens.weight"]
        at = torch.arange(models, device=ids.device)[:, None]
        x = table[at, ids.reshape(models, -1)]
        start = cache[0][0].shape[-2] if cache else 0
        turn = rotations(shape, start, length, ids.device)
        for layer in range(shape.layers):
            own = {
                name.removeprefix(f"model.layers.{layer}."): value
                for name, value in parameters.items()
                if name.startswith(f"model.layers.{layer}.")
            }
            past = None if cache is None or start == 0 else cache[layer]
            y, seen = self._attend(own, self._norm(x, own["input_layernorm.weight"]), rows, length, turn, past)
            if cache is not None:
                cache[layer : layer + 1] = [seen]
            x = x + y
            x = x + self._mlp(own, self._norm(x, own["post_attention_layernorm.weight"]))
        logits = linear(self._norm(x, parameters["model.norm.weight"]), parameters["lm_head.weight"])
        return logits.view(models, rows, length, -1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight[:, None], self.shape.epsilon)

    def _mlp(self, own: Parameters, x: Tensor) -> Tensor:
        gate = F.silu(linear(x, own["mlp.gate_proj.weight"])) * linear(x, own["mlp.up_proj.weight"])
        return linear(gate, own["mlp.down_proj.weight"])

    def _attend(
        self,
        own: Parameters,
        x: Tensor,
        rows: int,
        length: int,
        turn: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shape, models = self.shape, x.shape[0]

        def heads(name: str, count: int) -> Tensor:
            split = linear(x, own[f"self_attn.{name}_proj.weight"]).view(models, rows, length, count, shape.head)
            if f"self_attn.{name}_norm.weight" in own:
                weight = own[f"self_attn.{name}_norm.weight"][:, None, None, None]
                split = rms_norm(split, weight, shape.epsilon)
            return split.reshape(models * rows, length, count, shape.head).transpose(1, 2)

        query, key = (rotate(heads(name, n), *turn) for name, n in (("q", shape.heads), ("k", shape.key_heads)))
        value = heads("v", shape.key_heads)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        shared = shape.heads // shape.key_heads
        mixed = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(shared, dim=1),
            value.repeat_interleave(shared, dim=1),
            is_causal=past is None,
        )
        mixed = mixed.transpose(1, 2).reshape(models, rows * length, shape.heads * shape.head)
        return linear(mixed, own["self_attn.o_proj.weight"]), (key, value)


@torch.no_grad()
def greedy(stack: Stack, parameters: Parameters, prompts: Tensor, most: int, end: int) -> Tensor:
    """[rows, length] prompts of one length -> [models, rows, at most ``most``] token ids, the most likely ones.

    What follows a row's end token is of no meaning. Stops when every row of every model has ended.
    """
    models = parameters["lm_head.weight"].shape[0]
    cache: Cache = []
    ids = prompts.expand(models, *prompts.shape)
    ended = torch.zeros(models, prompts.shape[0], dtype=torch.bool, device=prompts.device)
    found: list[Tensor] = []
    for _ in range(most):
        ids = stack.forward(parameters, ids, cache)[:, :, -1:].argmax(-1)
        found.append(ids)
        ended |= ids[:, :, 0] == end
        if bool(ended.all()):
            break
    return torch.cat(found, dim=2)


def stacked(state_dicts: Sequence[Parameters]) -> Parameters:
    """One [models, ...] float32 tensor for each name."""
    return {name: torch.stack([own[name].float() for own in state_dicts]) for name in state_dicts[0]}


def copies(parameters: Parameters, models: int) -> Parameters:
    """The only model of a stack, ``models`` times, in memory of its own."""
    return {name: value.expand(models, *value.shape[1:]).clone() for name, value in parameters.items()}
