"""Which parameters a gradient is taken over. The set is always named and recorded: rankings change with it.

- "linear": the weight of every linear layer (fused experts and routers too) except the LM head;
- "all": every parameter, embeddings, norms, biases and the head included; tied weights once;
- "adapters": those that a PEFT model trains;
- anything else is a regular expression that is searched for in the parameters' names.
"""

from __future__ import annotations

import re

from torch import nn

from hf_curate.errors import ModelError

PARAMETER_SETS = ("linear", "all", "adapters")
SHOWN = 4


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, or GPT-2's Conv1D: a weight that maps the last dimension."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def parameters_of(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """Name -> parameter of the set, in the model's order; tied weights once, by their first name.

    Raises ModelError for an empty set, an unreadable expression, or weights without a gradient (quantised ones).
    """
    named = dict(model.named_parameters())
    if which == "all":
        chosen = named
    elif which == "linear":
        linear = {id(layer.weight) for layer in linear_layers(model)} | {id(p) for p in fused(model)}
        chosen = {name: p for name, p in named.items() if id(p) in linear}
    elif which == "adapters":
        chosen = _adapters(model, named)
    else:
        chosen = _matching(which, named)
    packed = next((name for name, p in chosen.items() if not p.is_floating_point()), None)
    if packed is not None:
        raise ModelError(
            f"parameters={which!r} has {packed}, which is quantised and has no gradient: load the model without "
            "quantization_config, or take parameters='adapters'."
        )
    if not chosen:
        raise ModelError(f"{type(model).__name__} has no parameter in the set {which!r}.")
    return chosen


def _adapters(model: nn.Module, named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    if not getattr(model, "peft_config", None):
        raise ModelError(f"parameters='adapters', but {type(model).__name__} has no PEFT adapter: 'linear' or 'all'.")
    prefix = getattr(model.base_model, "prefix", "lora_")
    return {name: p for name, p in named.items() if prefix in name or "modules_to_save" in name}


def _matching(which: str, named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    try:
        pattern = re.compile(which)
    except (re.error, TypeError) as error:
        sets = ", ".join(map(repr, PARAMETER_SETS))
        raise ModelError(f"parameters={which!r} is neither {sets} nor a regular expression ({error}).") from error
    chosen = {name: p for name, p in named.items() if pattern.search(name)}
    if not chosen:
        some = ", ".join(list(named)[:SHOWN])
        raise ModelError(f"parameters={which!r} matches none of the {len(named)} parameters ({some}, ...).")
    return chosen


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Every linear layer but the LM head. Raises ModelError for quantised ones."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [module for module in model.modules() if is_linear(module) and module is not head]
    packed = [layer for layer in layers if not layer.weight.is_floating_point()]  # type: ignore[operator]
    if packed:
        raise ModelError(
            f"exact gradients need floating point weights, and {type(model).__name__} has quantised ones "
            f"({type(packed[0]).__name__}, ...): load the model without quantization_config, or take the gradients "
            "of a LoRA adapter alone (parameters='adapters')."
        )
    return layers


def fused(model: nn.Module) -> list[nn.Parameter]:
    """Weights of fused experts and of their router: linear maps that no nn.Linear wraps."""
    return [
        p
        for module in model.modules()
        if any(word in type(module).__name__ for word in ("Expert", "Router"))
        for name, p in module.named_parameters(recurse=False)
        if p.dim() > 1 and "bias" not in name
    ]
