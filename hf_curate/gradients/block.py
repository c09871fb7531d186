"""Exact per-token gradients of the last block's MLP and attention-output weights, from one short backward.

Everything after the attention mixing of the last block acts on each position alone, so dL_t/dW = b_t (x) a_t with a_t
the layer's input and b_t the gradient of L_t at its output. Taps make those outputs the only leaves of the graph: the
forward records nothing before them, and one backward from the head's inputs reaches every b_t at once.

Covered: blocks whose MLP is made of nn.Linear or GPT-2's Conv1D, sequential or parallel to the attention. Refused by
name: fused experts, blocks with two attentions, and layer names not listed below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_curate.errors import ModelError
from hf_curate.gradients.parameters import is_linear
from hf_curate.gradients.recompute import blocks_of

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_ATTENTION_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")


def last_block(decoder: nn.Module) -> nn.Module:
    """The last transformer block."""
    blocks = blocks_of(decoder)
    if not blocks:
        raise ModelError(f"proxy='last' found no list of blocks in {type(decoder).__name__}: use 'representation'.")
    return blocks[-1]


def tapped_layers(decoder: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer: the attention's output projection and every linear layer outside the attention."""
    block = last_block(decoder)
    layers: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        in_attention = name.split(".")[0] in _ATTENTION
        if is_linear(module) and (not in_attention or name.split(".")[-1] in _ATTENTION_OUTPUT):
            layers[name] = module
    mixing = [name for name in layers if name.split(".")[0] in _ATTENTION]
    fused = [name for name, p in block.named_parameters() if p.dim() == 3]
    if len(mixing) != 1 or len(layers) == 1 or fused:
        found = ", ".join([*layers, *fused]) or "none"
        raise ModelError(
            "proxy='last' needs the attention output and the MLP as linear layers; in the last "
            f"{type(block).__name__} it found: {found}. Use proxy='representation' or 'outer'."
        )
    return layers


class Taps:
    """Inputs and outputs of the tapped layers during one forward: name -> [B, T, width]."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def pairs(self, hidden: Tensor, where: Tensor, signals: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(a, b) at the chosen positions, one pair per layer.

        Args:
            hidden: [B, T, d] head inputs of the tapped forward, with its graph.
            where: [N] flat indices into B*T.
            signals: [N, d] u_t at those positions, each of which occurs once.
        """
        upstream = torch.zeros_like(hidden).flatten(0, 1)
        upstream[where.to(hidden.device)] = signals.to(hidden)
        grads = torch.autograd.grad(hidden, list(self.outputs.values()), upstream.view_as(hidden))
        return [  # some blocks (OPT's) flatten the positions themselves: the width is what stays
            (self.inputs[name].flatten(0, -2)[where.to(grad.device)], grad.flatten(0, -2)[where.to(grad.device)])
            for name, grad in zip(self.outputs, grads, strict=True)
        ]


@contextmanager
def tap(decoder: nn.Module) -> Iterator[Taps]:
    """Within the context a forward with gradients enabled records the taps; parameters take no gradient."""
    taps, handles = Taps(), []

    def hook(name: str):
        def record(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            taps.inputs[name], taps.outputs[name] = args[0].detach(), leaf
            return leaf

        return record

    layers = tapped_layers(decoder)
    asked = [(p, p.requires_grad) for p in decoder.parameters()]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(hook(name)))
        yield taps
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in asked:
            parameter.requires_grad_(before)
