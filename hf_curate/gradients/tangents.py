"""<gradient of each rollout, direction>, all rollouts of a batch at once, without a gradient for each.

A module with output y = f(x; theta) adds sum over its positions of (dL_k/dy) . (df/dtheta [v]) to the product of
rollout k's gradient with v: dL_k/dy is row k of what the backward pass delivers at y anyway, and the tangent
df/dtheta [v] needs this one module only. It is f(x; v) for modules that are linear in their parameters (linear layers,
embeddings) and one forward-mode step for all others (norms, experts). Attention has no parameters of its own.

Exact, at the cost of about one more product per linear layer; in half precision the direction is rounded to the
parameters' dtype, and products and their spread are as exact as that (on tiny bfloat16 models up to 8 % off).

Behind one prompt (`gradients.shared`) this holds for the responses' own tokens. What goes through the prompt is read
off where it ends, at the keys and values that the responses see and at its last hidden state, whose derivatives along
the direction are the same for all rollouts.

Whether a model can be taken apart like this (each parameter belongs to a module that is called, rows do not share an
output) is found out by comparing both ways on a few tokens, see `inner.route`; and on every problem the weighted sum
of the products is compared with the whole gradient's, which shows a part that is missing, though not one that went to
another rollout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from hf_curate.gradients.forward_mode import forward_mode
from hf_curate.gradients.layout import Layout, Shared
from hf_curate.gradients.parameters import is_linear
from hf_curate.gradients.shared import PromptTangents

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel


class NotSeparableError(Exception):
    """The rollouts' products cannot be read off module outputs; they are then taken one rollout at a time."""


class Tangents:
    """Collects the products of K rollouts during the passes of `policy_gradient`.

    Args:
        model: the loaded model, of which the decoder's part is collected.
        parameters: name -> parameter.
        direction: name -> tensor of the parameter's shape, on its device.
        rollouts: K.
        how: "shared" (behind one prompt), "together", or "positions" (together, with position ids row by row, for
            models whose position embeddings are one row for all).
        alone: no parameter takes a gradient in these passes, and the graph begins at the outputs that are watched.
    """

    def __init__(
        self,
        model: LanguageModel,
        parameters: Mapping[str, nn.Parameter],
        direction: Mapping[str, Tensor],
        rollouts: int,
        how: str = "together",
        alone: bool = False,
    ) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        self.direction, self.how, self._alone = direction, how, alone
        self._prompt: PromptTangents | None = None  # of the first pass; the others have the same prompt
        self._prompt_scale = 1.0
        self._found: dict[torch.device, Tensor] = {}  # [2, K] on each device: the sums wait there, not the device
        self._rollouts = rollouts
        self._model = model
        self._owners = _owners(model.decoder, names)
        self._busy = False

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
    def during(
        self, piece: Sequence[int], scales: Sequence[float], layout: Layout, again: Sequence[nn.Module] = ()
    ) -> Iterator[None]:
        """Around one forward and backward over the rollouts `piece`, which lie as `layout` says and whose losses are
        weighted with `scales`. again: blocks that the backward runs a second time, whose inputs are not kept."""
        self._piece, self._scales, self._layout = list(piece), list(scales), layout
        if isinstance(layout, Shared) and self._prompt is None:
            self._prompt = self._of_prompt(layout.inputs["input_ids"][0, : layout.prompt])
        self._twice = {module for block in again for module in block.modules()}
        self._called: dict[nn.Module, int] = dict.fromkeys(self._owners, 0)
        self._to_come: dict[nn.Module, int] = {}  # outputs whose gradient has not arrived
        self._inputs: dict[nn.Module, _Call] = {}  # of blocks that run again, until all have arrived
        self._upstream: dict[nn.Module, list[tuple[int, Tensor]]] = {}
        self._backward = False
        handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self._owners]
        handles += [module.register_forward_hook(self._leave, with_kwargs=True) for module in self._owners]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            missing = [type(module).__name__ for module in self._upstream]
            self._inputs, self._upstream = {}, {}
        if missing:
            raise NotSeparableError(f"{missing[0]} was not run again in the backward pass")

    def begin_backward(self) -> None:
        missed = [type(module).__name__ for module, calls in self._called.items() if not calls]
        if missed:
            raise NotSeparableError(f"{missed[0]} holds parameters and is never called")
        self._backward = True

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In the second run of a block: its inputs are there now."""
        if self._busy or not self._backward or module not in self._twice:
            return
        self._inputs[module] = _fixed(args, kwargs)
        for index, upstream in self._upstream.pop(module, []):
            self._arrived(module, index, upstream)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """In the forward: watch what will arrive at the outputs."""
        if self._busy:
            return None
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        if self._alone:  # in the second run of a block too, whose graph has to be the first one's
            for item in outputs:
                if isinstance(item, Tensor) and item.is_floating_point() and not item.requires_grad:
                    item.requires_grad_()
        if self._backward:
            return None
        self._called[module] += 1
        if module in self._twice and self._called[module] > 1:
            raise NotSeparableError(f"{type(module).__name__} is called more than once")
        live = [index for index, item in enumerate(outputs) if isinstance(item, Tensor) and item.requires_grad]
        if not live:
            raise NotSeparableError(f"the output of {type(module).__name__} is not a tensor with a gradient")
        call = None if module in self._twice else _fixed(args, kwargs)
        for index in live:
            # an output may have been made from another one (a router's scores from its logits): views see their own
            # gradient alone
            item = outputs[index] if len(live) == 1 else outputs[index].view_as(outputs[index])
            outputs[index] = item
            if not self._layout.holds(item.shape):
                raise NotSeparableError(f"{type(module).__name__} gives one output for all rows: {tuple(item.shape)}")

            def arrive(upstream: Tensor, index: int = index) -> None:
                if call is not None:
                    self._contract(module, call, index, upstream)
                elif module in self._inputs:
                    self._arrived(module, index, upstream)
                else:  # its block has not run again yet
                    self._upstream.setdefault(module, []).append((index, upstream))

            item.register_hook(arrive)
        self._to_come[module] = len(live)
        return output if len(live) == 1 else type(output)(outputs)

    def _arrived(self, module: nn.Module, index: int, upstream: Tensor) -> None:
        """At an output of a module in a block that ran again: its inputs are dropped after the last."""
        self._contract(module, self._inputs[module], index, upstream)
        self._to_come[module] -= 1
        if not self._to_come[module]:
            del self._inputs[module]

    def _contract(self, module: nn.Module, call: _Call, index: int, upstream: Tensor) -> None:
        with self._quiet(), self._model.computing():
            tangent, scale = self._tangent(module, call, index)
        wide = torch.float64 if upstream.dtype == torch.float64 else torch.float32
        self._add(self._layout.by_rollout(upstream.to(wide) * tangent.to(wide)), scale)

    def _add(self, parts: Tensor, scale: float) -> None:
        """[rollouts of the pass] what is added to each one's product, times its weight and `scale`."""
        total = self._on(parts.device)
        found = parts.to(total) / (total.new_tensor(self._scales) * scale)
        total[0, self._piece] += found
        total[1, self._piece] += found.abs()

    # -- through the prompt -------------------------------------------------------------------------------------------

    def at_prompt(self, module: nn.Module, kind: str, gradient: Tensor) -> None:
        """Adds what goes through the prompt's keys or values of one attention, see `shared.Watch`."""
        assert self._prompt is not None
        self._add(self._prompt.products(module, kind, gradient), self._prompt_scale)

    def at_end_of_prompt(self, signals: Tensor) -> Tensor:
        """[n, d] signals at the prompt's last hidden state -> [n] their products with its derivative."""
        assert self._prompt is not None
        return (signals @ self._prompt.last.to(signals)) / self._prompt_scale

    def _of_prompt(self, ids: Tensor) -> PromptTangents:
        held = {
            f"{place}.{local}" if place else local: (_own(module, local), self.direction[name])
            for place, module in self._model.decoder.named_modules()
            for local, name in self._owners.get(module, {}).items()
        }
        narrow = torch.float16 in {self._model.autocast, *(p.dtype for p, _ in held.values())}
        scale = _near_one(tensor for _, tensor in held.values()) if narrow else 1.0
        self._prompt_scale = scale
        along = {name: (p, (v * scale if scale != 1.0 else v).to(p)) for name, (p, v) in held.items()}
        return PromptTangents(self._model, ids, along)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Our own hooks look away."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def of_head(self, own: Mapping[str, str | None]) -> tuple[Tensor | None, Tensor | None]:
        """The direction of the head's weight and bias, None where they are not among the parameters."""
        weight, bias = (own.get(kind) for kind in ("weight", "bias"))
        return (
            None if weight is None else self.direction[weight],
            None if bias is None else self.direction[bias],
        )

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._found:
            wide = torch.float32 if device.type == "mps" else torch.float64
            self._found[device] = torch.zeros(2, self._rollouts, dtype=wide, device=device)
        return self._found[device]

    @torch.no_grad()
    def _tangent(self, module: nn.Module, call: _Call, index: int) -> tuple[Tensor, float]:
        """Derivative of the module's output `index` along the direction, its inputs fixed, times a power of two."""
        own, local = self._owners[module], dict(module.named_parameters(recurse=False))
        raw = {name: self.direction[known] for name, known in own.items()}
        types = {self._model.autocast, *(local[name].dtype for name in own)}
        scale = _near_one(raw.values()) if torch.float16 in types else 1.0
        along = {name: (tensor * scale if scale != 1.0 else tensor).to(local[name]) for name, tensor in raw.items()}
        if _is_plain(module) or isinstance(module, nn.Embedding):
            moved = {name: along[name] if name in own else torch.zeros_like(p) for name, p in local.items()}
            output = functional_call(module, moved, call.args, call.kwargs)
            padding = getattr(module, "padding_idx", None)
            if padding is not None and isinstance(call.args[0], Tensor):  # whose row autograd leaves out
                output = output.masked_fill((call.args[0] == padding).unsqueeze(-1), 0.0)
            return output, scale
        with forward_mode():
            dual = {name: forward_ad.make_dual(local[name].detach(), tangent) for name, tangent in along.items()}
            output = functional_call(module, dual, call.args, call.kwargs)
            chosen = output[index] if isinstance(output, (tuple, list)) else output
            tangent = forward_ad.unpack_dual(chosen).tangent
            return (torch.zeros_like(chosen) if tangent is None else tangent.clone()), scale


@dataclass(frozen=True, eq=False)
class _Call:
    """What a module was called with, cut off from the graph."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _fixed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    def cut(item: Any) -> Any:
        return item.detach() if isinstance(item, Tensor) else item

    return _Call(tuple(map(cut, args)), {name: cut(item) for name, item in kwargs.items()})


def _near_one(tensors: Iterable[Tensor]) -> float:
    """A power of two that brings the largest value near 1: float16 has no room for small directions."""
    largest = max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)
    return 2.0 ** -round(math.log2(largest)) if 0.0 < largest < math.inf else 1.0


def _owners(decoder: nn.Module, names: Mapping[int, str]) -> dict[nn.Module, dict[str, str]]:
    """Module -> {local name: global name} of the chosen parameters that it holds itself."""
    owners = {}
    for module in decoder.modules():
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
        if own:
            owners[module] = own
    return owners


def _is_plain(module: nn.Module) -> bool:
    """Whether its output is its weight's product with its input: some routers are linear layers by class alone."""
    return is_linear(module) and (not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward)


def _own(module: nn.Module, name: str) -> Tensor:
    """A parameter, or what stands in its place now."""
    found = module._parameters[name]
    assert found is not None
    return found
