"""<gradient of each rollout, direction>, all rollouts of a batch at once, without a gradient for each.

A module with output y = f(x; theta) adds sum over its positions of (dL_k/dy) . (df/dtheta [v]) to the product of
rollout k's gradient with v: dL_k/dy is row k of what the backward pass delivers at y anyway, and the tangent
df/dtheta [v] needs this one module only. It is f(x; v) for modules that are linear in their parameters (linear layers,
embeddings) and one forward-mode step for all others (norms, experts). Attention has no parameters of its own.

Exact, at the cost of about one more product per linear layer. Whether a model can be taken apart like this (each
parameter belongs to a module that is called, rows do not share an output) is found out by comparing both ways on a few
tokens, see `inner.route`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from hf_curate.gradients.parameters import is_linear


class NotSeparableError(Exception):
    """The rollouts' products cannot be read off module outputs; they are then taken one rollout at a time."""


class Tangents:
    """Collects the products of K rollouts during the passes of `policy_gradient`.

    Args:
        decoder: the model before its head.
        parameters: name -> parameter.
        direction: name -> tensor of the parameter's shape, on its device.
        rollouts: K.
        positions: pass position ids row by row, for models whose position embeddings are one row for all.
    """

    def __init__(
        self,
        decoder: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        direction: Mapping[str, Tensor],
        rollouts: int,
        positions: bool = False,
    ) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        self.direction = direction
        self.positions = positions
        self._found: dict[torch.device, Tensor] = {}  # [2, K] on each device: the sums wait there, not the device
        self._rollouts = rollouts
        self._owners = _owners(decoder, names)

    @property
    def products(self) -> Tensor:
        """[K] float64 on the CPU: what was collected so far, without the head's part."""
        return self._collected()[0]

    @property
    def sizes(self) -> Tensor:
        """[K] sum over modules of the absolute contributions: what rounding errors compare with."""
        return self._collected()[1]

    def _collected(self) -> Tensor:
        total = torch.zeros(2, self._rollouts, dtype=torch.float64)
        for part in self._found.values():
            total += part.cpu()
        return total

    @contextmanager
    def during(self, piece: Sequence[int], scales: Sequence[float], tokens: int) -> Iterator[None]:
        """Around one forward over the rollouts `piece`, padded to so many tokens, whose losses will be weighted with
        `scales`."""
        called: dict[nn.Module, int] = dict.fromkeys(self._owners, 0)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            called[module] += 1
            return self._watch(module, args, kwargs, output, list(piece), list(scales), tokens)

        handles = [module.register_forward_hook(hook, with_kwargs=True) for module in self._owners]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        missed = [type(module).__name__ for module, calls in called.items() if not calls]
        if missed:
            raise NotSeparableError(f"{missed[0]} holds parameters and is never called")

    def of_head(self, own: Mapping[str, str | None]) -> tuple[Tensor | None, Tensor | None]:
        """The direction of the head's weight and bias, None where they are not among the parameters."""
        weight, bias = (own.get(kind) for kind in ("weight", "bias"))
        return (
            None if weight is None else self.direction[weight],
            None if bias is None else self.direction[bias],
        )

    def _watch(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        piece: list[int],
        scales: list[float],
        tokens: int,
    ) -> Any:
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        live = [index for index, item in enumerate(outputs) if isinstance(item, Tensor) and item.requires_grad]
        if not live:
            raise NotSeparableError(f"the output of {type(module).__name__} is not a tensor with a gradient")
        rows = len(piece)
        args = tuple(item.detach() if isinstance(item, Tensor) else item for item in args)
        kwargs = {name: item.detach() if isinstance(item, Tensor) else item for name, item in kwargs.items()}
        for index in live:
            # an output may have been made from another one (a router's scores from its logits): views see their own
            # gradient alone
            item = outputs[index] if len(live) == 1 else outputs[index].view_as(outputs[index])
            outputs[index] = item
            if item.dim() == 0 or item.shape[0] not in (rows, rows * tokens):
                raise NotSeparableError(f"{type(module).__name__} gives one output for all rows: {tuple(item.shape)}")

            def contract(upstream: Tensor, index: int = index) -> None:
                tangent = self._tangent(module, args, kwargs, index)
                wide = torch.float64 if upstream.dtype == torch.float64 else torch.float32
                parts = (upstream.to(wide) * tangent.to(wide)).reshape(rows, -1)
                total = self._on(upstream.device)
                found = parts.sum(dim=1).to(total) / total.new_tensor(scales)
                total[0, piece] += found
                total[1, piece] += found.abs()

            item.register_hook(contract)
        return output if len(live) == 1 else type(output)(outputs)

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._found:
            wide = torch.float32 if device.type == "mps" else torch.float64
            self._found[device] = torch.zeros(2, self._rollouts, dtype=wide, device=device)
        return self._found[device]

    @torch.no_grad()
    def _tangent(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> Tensor:
        """Derivative of the module's output `index` along the direction, its inputs fixed."""
        own = self._owners[module]
        if is_linear(module) or isinstance(module, nn.Embedding):
            moved = {
                local: torch.zeros_like(p) if local not in own else self.direction[own[local]].to(p)
                for local, p in module.named_parameters(recurse=False)
            }
            output = functional_call(module, moved, args, kwargs)
            padding = getattr(module, "padding_idx", None)
            if padding is not None and isinstance(args[0], Tensor):  # whose row autograd leaves out
                output = output.masked_fill((args[0] == padding).unsqueeze(-1), 0.0)
            return output
        with forward_ad.dual_level():
            local = dict(module.named_parameters(recurse=False))
            dual = {
                n: forward_ad.make_dual(local[n].detach(), self.direction[name].to(local[n]))
                for n, name in own.items()
            }
            output = functional_call(module, dual, args, kwargs)
            chosen = output[index] if isinstance(output, (tuple, list)) else output
            tangent = forward_ad.unpack_dual(chosen).tangent
            return torch.zeros_like(chosen) if tangent is None else tangent.clone()


def _owners(decoder: nn.Module, names: Mapping[int, str]) -> dict[nn.Module, dict[str, str]]:
    """Module -> {local name: global name} of the chosen parameters that it holds itself."""
    owners = {}
    for module in decoder.modules():
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
        if own:
            owners[module] = own
    return owners
