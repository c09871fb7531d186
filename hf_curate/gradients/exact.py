"""Gradients of segment losses over a stated parameter set: slow, and the measure of everything else.

The parameter set is always named, because the ranking of proxies changes with it: "linear" is the weight of every
linear layer (fused experts and routers too) except the LM head, "all" is every parameter.

"linear" copies the row once per segment, runs one forward and one backward, and forms the weight gradients b^T a of
one layer at a time, so that it fits beside a real model. "all", and layers that do not see every token once
(experts), go through plain autograd, one backward per segment, and keep as many gradients as there are segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_curate.errors import ModelError
from hf_curate.gradients.parameters import fused, linear_layers, parameters_of

SETS = ("linear", "all")
COPIED_TOKENS = 32_768
"""Longer rows with many segments are not copied: the activations of the copies would not fit."""


def exact_gram(
    model: nn.Module, input_ids: Tensor, spans: Sequence[Sequence[int]], parameters: str = "linear"
) -> tuple[Tensor, Tensor]:
    """Gram matrix of the gradients of mean segment losses over a parameter set.

    Args:
        model: a causal LM that returns `.logits`.
        input_ids: [T] token ids of one row.
        spans: label positions of each segment (indices into `input_ids`, at least 1).
        parameters: "linear" or "all".

    Returns:
        gram [S, S] and the losses [T] of all labels (position 0 has none: NaN), in float32 or wider.
    """
    if parameters not in SETS:
        raise ModelError(f"parameters={parameters!r} is not one of {', '.join(map(repr, SETS))}.")
    layers = linear_layers(model)
    by_layer = parameters == "linear" and not fused(model) and len(input_ids) * len(spans) <= COPIED_TOKENS
    found = _gram_by_layer(model, layers, input_ids, spans) if by_layer else None
    return found if found is not None else gram_by_autograd(model, input_ids, spans, parameters)


def gram_by_autograd(
    model: nn.Module, input_ids: Tensor, spans: Sequence[Sequence[int]], parameters: str
) -> tuple[Tensor, Tensor]:
    """As `exact_gram`, by one backward per segment; keeps the gradients of all segments."""
    chosen = parameters_of(model, parameters)
    with _only(model, chosen.values()), torch.enable_grad():
        losses = _losses(model, input_ids[None])[0]
        gradients = []
        for index, span in enumerate(spans):
            loss = losses[_before(span, losses)].mean()
            keep = index + 1 < len(spans)
            gradients.append(torch.autograd.grad(loss, list(chosen.values()), retain_graph=keep, allow_unused=True))
    gram = losses.new_zeros(len(spans), len(spans))
    for parameter in zip(*gradients, strict=True):  # one at a time: a float32 dot product over all of them loses 2e-4
        if parameter[0] is not None:
            rows = torch.stack([gradient.flatten().to(losses.dtype) for gradient in parameter])
            gram += rows @ rows.T
    return gram, _shifted(losses)


def _gram_by_layer(
    model: nn.Module, layers: Sequence[nn.Module], input_ids: Tensor, spans: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor] | None:
    """Segment s has its own copy of the row; None if a layer did not see every token exactly once."""
    copies = input_ids.expand(len(spans), -1)
    calls = [0] * len(layers)
    plain = True
    grams: list[Tensor] = []

    def hook(index: int):
        def record(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            nonlocal plain
            inputs = args[0].detach()
            calls[index] += 1
            plain = plain and inputs.shape[:2] == copies.shape
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            if plain:
                leaf.register_hook(lambda gradient: grams.append(_weight_gram(inputs, gradient)))
            return leaf.clone() if leaf.is_leaf else leaf  # some models (OLMo) clip it in place, which no leaf allows

        return record

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        with _only(model, ()), torch.enable_grad():
            losses = _losses(model, copies)
            if not plain or set(calls) != {1}:
                return None
            total = torch.stack([losses[s, _before(span, losses)].mean() for s, span in enumerate(spans)]).sum()
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    gram = torch.stack([part.to(losses.device) for part in grams]).sum(dim=0)
    return gram, _shifted(losses[0])


def _weight_gram(inputs: Tensor, outputs: Tensor) -> Tensor:
    """inputs a [S, T, i], output gradients b [S, T, o] -> [S, S] inner products of the weight gradients b^T a."""
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    rows = (outputs.to(dtype).transpose(1, 2) @ inputs.to(dtype)).flatten(1)
    return rows @ rows.T


@contextmanager
def _only(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it exactly the chosen parameters take gradients; afterwards everything is as before."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kept = {id(parameter) for parameter in chosen}
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(id(parameter) in kept)
        yield
    finally:
        for parameter, before in asked:
            parameter.requires_grad_(before)


def _losses(model: nn.Module, input_ids: Tensor) -> Tensor:
    """[B, T] ids -> [B, T-1] losses of the labels from position 1 on, in float32 or wider."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return nn.functional.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


def _before(span: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([position - 1 for position in span], device=like.device)


def _shifted(losses: Tensor) -> Tensor:
    return torch.cat([losses.new_full((1,), float("nan")), losses.detach()])
