"""The definitions, as plain loops in float64: what the fast code must agree with. Written from the formulas alone.

Nothing here imports the gradient code. The model's own forward makes the logits (scale, bias, soft cap and all);
autograd makes the derivatives; every matrix is formed explicitly and flattened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Vector = Tensor


# -- losses and gradients of one row -------------------------------------------------------------------------


def _forward(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Head inputs [T, d] as a leaf, and the model's own logits [T, V] as a function of that leaf."""
    seen: list[Tensor] = []

    def replace(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0].detach().requires_grad_())
        return (seen[0], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(replace)  # type: ignore[operator]
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        handle.remove()
    return seen[0], logits


def _loss(logits: Tensor, ids: Tensor, label: int) -> Tensor:
    """Cross-entropy of the token at position `label`, predicted one position earlier."""
    return -torch.log_softmax(logits[label - 1], dim=-1)[ids[label]]


def labels_of(spans: Sequence[Sequence[int]]) -> list[int]:
    return sorted({label for span in spans for label in span})


def losses(model: nn.Module, ids: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
    """L_t of the distinct labels in order."""
    _, logits = _forward(model, ids)
    return torch.stack([_loss(logits, ids, label).detach() for label in labels_of(spans)])


def signals(model: nn.Module, ids: Tensor, labels: Sequence[int]) -> tuple[dict[int, Vector], dict[int, Vector]]:
    """label -> u_t, and label -> h_t, by autograd of each token's loss alone."""
    hidden, logits = _forward(model, ids)
    upstream, inputs = {}, {}
    for label in labels:
        (gradient,) = torch.autograd.grad(_loss(logits, ids, label), hidden, retain_graph=True)
        upstream[label], inputs[label] = gradient[0, label - 1], hidden[0, label - 1].detach()
        others = gradient[0].clone()
        others[label - 1] = 0.0
        assert not others.any(), "a token's loss reached another position of the head's input"
    return upstream, inputs


def _mean(vectors: Sequence[Vector]) -> Vector:
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total = total + vector
    return total / len(vectors)


def representation(model: nn.Module, ids: Tensor, spans: Sequence[Sequence[int]]) -> list[Vector]:
    """g(T) = mean of u_t."""
    upstream, _ = signals(model, ids, labels_of(spans))
    return [_mean([upstream[label] for label in span]) for span in spans]


def outer(model: nn.Module, ids: Tensor, spans: Sequence[Sequence[int]]) -> list[Vector]:
    """G(T) = mean of u_t h_t^T, as the matrix itself."""
    upstream, inputs = signals(model, ids, labels_of(spans))
    return [_mean([torch.outer(upstream[label], inputs[label]).flatten() for label in span]) for span in spans]


def of_parameters(
    model: nn.Module, ids: Tensor, spans: Sequence[Sequence[int]], parameters: Sequence[nn.Parameter]
) -> list[Vector]:
    """Gradient of each segment's mean loss with respect to the parameters, flattened into one vector."""
    before = [parameter.requires_grad for parameter in parameters]
    gradients = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for span in spans:
            with torch.enable_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits[0]
                loss = torch.stack([_loss(logits, ids, label) for label in span]).sum() / len(span)
            found = torch.autograd.grad(loss, list(parameters))
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
    return gradients


def gram(vectors: Sequence[Vector]) -> Tensor:
    """[S, S] inner products."""
    matrix = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for i, left in enumerate(vectors):
        for j, right in enumerate(vectors):
            matrix[i, j] = torch.dot(left, right)
    return matrix


# -- parameter sets, by name ---------------------------------------------------------------------------------


def linear_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every weight matrix (or stack of matrices: fused experts) but embeddings and the head."""
    outside = ("embed", "wte", "wpe", "lm_head", "norm")
    return [p for name, p in model.named_parameters() if p.dim() >= 2 and not any(word in name for word in outside)]


def all_parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def last_parameters(model: nn.Module, block: str, layers: Sequence[str]) -> list[nn.Parameter]:
    """The weights named by a `Species`."""
    return [model.get_parameter(f"{block}.{layer}.weight") for layer in layers]


# -- scores --------------------------------------------------------------------------------------------------


def cosine(left: Vector, right: Vector) -> float:
    norms = math.sqrt(float(torch.dot(left, left))) * math.sqrt(float(torch.dot(right, right)))
    return 0.0 if norms == 0.0 else float(torch.dot(left, right)) / norms


def history_weight(k: int, j: int, history: str | tuple[str, float]) -> float:
    """w_kj for j < k, both counted from 1."""
    if history == "uniform":
        return 1.0 / (k - 1)
    kind, value = history
    if kind == "window":
        first = max(1, k - int(value))
        return 1.0 / (k - first) if j >= first else 0.0
    assert kind == "ema"
    return float(value) ** (k - 1 - j)


def target_of(k: int, vectors: Sequence[Vector], tokens: Sequence[int], target: str) -> Vector:
    """The gradient that step k (from 1) is compared with; `vectors` and `tokens` hold the steps, then the answer."""
    steps = len(vectors) - 1
    if target == "answer":
        members = [steps]
    elif target == "steps+answer":
        members = list(range(steps + 1))
    else:
        assert target == "suffix"
        members = list(range(k, steps + 1))  # from 0: steps k+1..K, then the answer
    total, count = torch.zeros_like(vectors[0]), 0
    for member in members:
        total = total + tokens[member] * vectors[member]
        count += tokens[member]
    return total / count


def alignment(k: int, vectors: Sequence[Vector], tokens: Sequence[int], target: str) -> float:
    return cosine(vectors[k - 1], target_of(k, vectors, tokens, target))


def consistency(k: int, vectors: Sequence[Vector], history: str | tuple[str, float]) -> float:
    past = torch.zeros_like(vectors[0])
    for j in range(1, k):
        past = past + history_weight(k, j, history) * vectors[j - 1]
    return cosine(vectors[k - 1], past)


def scores(
    vectors: Sequence[Vector],
    tokens: Sequence[int],
    *,
    alpha: float = 0.7,
    history: str | tuple[str, float] = "uniform",
    target: str = "answer",
) -> list[float]:
    """score_1..score_K; `value` is their mean."""
    found = []
    for k in range(1, len(vectors)):
        aligned = alignment(k, vectors, tokens, target)
        found.append(aligned if k == 1 else alpha * aligned + (1 - alpha) * consistency(k, vectors, history))
    return found


PROXIES: dict[str, Callable[..., list[Vector]]] = {"representation": representation, "outer": outer}
