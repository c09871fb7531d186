"""The LM head as a function: hidden states to logits, and what its derivative needs.

Covers every head of the form `logits = softcap(scale * (W h + b))`. Models that do something else to their logits
are refused by `check_head`, which compares this form with the model's own logits on a few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_curate.errors import ModelError


@dataclass(frozen=True)
class Head:
    """`logits = cap * tanh(scale * (W h + b) / cap)`; without a cap, `scale * (W h + b)`.

    weight: [V, d] in the model's dtype; bias: [V] or None; scale: a number; softcap: a number or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def accumulate(self) -> torch.dtype:
        """The dtype of everything from the logits on: float32, or float64 for a float64 model."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def logits(self, hidden: Tensor, block: LogitBlock | None = None) -> Tensor:
        """[n, d] in the model's dtype -> [n, V] logits in float32 (the product itself runs in the model's dtype).

        The result may be overwritten by callers: it is a fresh tensor, or that of the block.
        """
        if block is None:
            block = LogitBlock(self, len(hidden), hidden.device)
        wide = block.wide[: len(hidden)]
        if block.narrow is None:
            self.product(hidden, wide)
        else:
            wide.copy_(self.product(hidden, block.narrow[: len(hidden)]))
        if self.scale != 1.0:
            wide.mul_(self.scale)
        if self.softcap is not None:
            wide.div_(self.softcap).tanh_().mul_(self.softcap)
        return wide

    def product(self, hidden: Tensor, out: Tensor) -> Tensor:
        """W h + b in the model's dtype: [n, d] -> [n, V]."""
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=out)
        return torch.addmm(self.bias, hidden, self.weight.T, out=out)

    @property
    def is_plain(self) -> bool:
        """Whether logits are W h + b and nothing more."""
        return self.scale == 1.0 and self.softcap is None

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logit / d(scale * (W h + b)), elementwise: [n, V], or None where it is 1 everywhere."""
        if self.softcap is None:
            return None
        return 1.0 - (logits / self.softcap).square_()

    def back(self, residual: Tensor, byte_budget: int) -> Tensor:
        """scale * residual @ W: [n, V] -> [n, d], accumulated in the residual's dtype.

        A half-precision W is widened one block of the vocabulary at a time, never whole.
        """
        if self.weight.dtype == residual.dtype:
            product = residual @ self.weight
        else:
            rows = max(1, byte_budget // (self.weight.shape[1] * residual.element_size()))
            product = residual.new_zeros(residual.shape[0], self.weight.shape[1])
            widened = residual.new_empty(min(rows, self.vocabulary), self.weight.shape[1])
            for start in range(0, self.vocabulary, rows):
                block = self.weight[start : start + rows]
                block = widened[: len(block)].copy_(block)
                product.addmm_(residual[:, start : start + rows], block)
        return product if self.scale == 1.0 else product.mul_(self.scale)


class LogitBlock:
    """Memory for the logits of up to `rows` positions, used again by the next chunk: on a CPU fresh pages for every
    chunk take about a tenth of the product's own time.

    wide: [rows, V] float32 (float64 for a float64 model); narrow: the same in a half-precision model's dtype, or None.
    """

    def __init__(self, head: Head, rows: int, device: torch.device) -> None:
        shape = (rows, head.vocabulary)
        self.wide = torch.empty(shape, dtype=head.accumulate, device=device)
        same = head.weight.dtype == head.accumulate
        self.narrow = None if same else torch.empty(shape, dtype=head.weight.dtype, device=device)


def head_of(model: nn.Module) -> Head:
    """Reads the head of a transformers causal LM, tied or not; refuses by name what `Head` cannot express."""
    name = type(model).__name__
    layer = model.get_output_embeddings()  # type: ignore[operator]
    if layer is None:
        raise ModelError(
            f"{name} has no LM head (get_output_embeddings() is None): load it with AutoModelForCausalLM."
        )
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear) or weight is None or not weight.is_floating_point():
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        raise ModelError(
            f"The LM head of {name} is a {kind}, and only a plain nn.Linear in floating point can be scored with: "
            "leave the head out of quantisation (llm_int8_skip_modules=['lm_head']), merge a LoRA adapter on it."
        )
    if weight.is_meta:
        raise ModelError(f"The LM head of {name} is offloaded (meta device): give it a place in device_map.")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config  # type: ignore[union-attr,operator]
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        scale /= float(divisor)
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = None if layer.bias is None else layer.bias.detach()
    return Head(weight.detach(), bias, scale, None if softcap is None else float(softcap))


@torch.no_grad()
def check_head(model: nn.Module, head: Head, hidden: Tensor, logits: Tensor) -> None:
    """Raises unless `head` turns `hidden` [n, d] into the model's own `logits` [n, V], up to rounding."""
    ours = head.logits(hidden)
    theirs = logits.to(ours.dtype)
    eps = torch.finfo(logits.dtype).eps
    room = (4 if eps > 1e-4 else 64) * eps * float(ours.norm()) + 1e-5 * ours.numel() ** 0.5
    if ours.shape != theirs.shape or bool((ours - theirs).norm() > room):
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way this library does not know: W h (+ bias, "
            f"logit_scale, logits_scaling, final_logit_softcapping) gives {tuple(ours.shape)} values that differ from "
            f"the model's {tuple(theirs.shape)}. Scores would be wrong, so it is refused."
        )
