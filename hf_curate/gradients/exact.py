"""Gradients of segment losses by plain autograd: slow, and the measure of everything else.

The parameter set is always named, because the ranking of proxies changes with it:
"linear" is every linear weight inside the model except the LM head and embeddings, "all" is every parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_curate.errors import ModelError

PARAMETER_SETS = ("linear", "all")


def parameters_of(model: nn.Module, parameters: str = "linear") -> dict[str, nn.Parameter]:
    """Name -> parameter of the set, floating point only; tied weights once."""
    if parameters not in PARAMETER_SETS:
        raise ModelError(f"parameters={parameters!r} is not one of {', '.join(map(repr, PARAMETER_SETS))}.")
    head = model.get_output_embeddings()  # type: ignore[operator]
    shared = {id(p) for p in head.parameters()} if head is not None else set()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
    packed = [name for name, p in model.named_parameters() if id(p) in linear and not p.is_floating_point()]
    if packed:
        raise ModelError(
            f"exact gradients need floating point weights, and {type(model).__name__} has quantised ones ({packed[0]}, ...): "
            "audit with the model loaded without quantization_config."
        )
    chosen = {
        name: p
        for name, p in model.named_parameters()
        if p.is_floating_point() and (parameters == "all" or (id(p) in linear and id(p) not in shared))
    }
    if not chosen:
        raise ModelError(f"{type(model).__name__} has no floating point parameter in the set {parameters!r}.")
    return chosen


def exact_gram(
    model: nn.Module, input_ids: Tensor, spans: Sequence[Sequence[int]], parameters: str = "linear"
) -> tuple[Tensor, Tensor]:
    """Gram matrix of the gradients of mean segment losses, one backward per segment.

    Args:
        model: a causal LM that returns `.logits`.
        input_ids: [T] token ids of one row.
        spans: label positions of each segment (indices into `input_ids`, at least 1).
        parameters: "linear" or "all".

    Returns:
        gram [S, S] and the losses [T] of all labels (position 0 has none: NaN), in float32 or wider. Keeps S
        gradients of the parameter set in memory.
    """
    chosen = parameters_of(model, parameters)
    asked = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = model(input_ids=input_ids[None], use_cache=False).logits[0]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            losses = nn.functional.cross_entropy(logits[:-1], input_ids[1:], reduction="none")
            gradients = []
            for index, span in enumerate(spans):
                where = torch.tensor([position - 1 for position in span], device=losses.device)
                keep = index + 1 < len(spans)
                loss = losses[where].mean()
                gradients.append(
                    torch.autograd.grad(loss, list(chosen.values()), retain_graph=keep, allow_unused=True)
                )
    finally:
        for parameter, before in asked:
            parameter.requires_grad_(before)
    gram = losses.new_zeros(len(spans), len(spans))
    for parameter in zip(*gradients, strict=True):  # one at a time: a float32 dot product over all of them loses 2e-4
        if parameter[0] is not None:
            rows = torch.stack([gradient.flatten().to(losses.dtype) for gradient in parameter])
            gram += rows @ rows.T
    return gram, torch.cat([losses.new_full((1,), float("nan")), losses.detach()])
