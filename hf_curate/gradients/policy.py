"""The policy gradient of one problem, handed over parameter by parameter as the backward pass forms it.

For rollouts o_k with weights c_k it is g = sum_k c_k (1/|o_k|) sum_t d log pi(o_kt) / d theta: one forward and
backward over all of them, behind one prompt where they have one and the model allows it (`gradients.shared`), else
padded on the right, where causal attention never looks. The head is done by hand, a chunk of positions at a time
(`upstream.head_pass`); everything before it by autograd, so that experts, adapters, norms, biases and tied weights
need no formulas. The backward runs against aliases of the parameters: flags, `.grad`, hooks and gradient reducers of a
live model are not touched.

A pass of more than `batch_tokens` tokens keeps only the inputs of the blocks and computes the rest again
(`recompute`). One of more than `RECOMPUTED` times that takes several passes, and its gradient is kept until the last.
Where memory runs out, `within` tries again with fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_curate.batches import Rollout, bucket
from hf_curate.errors import RowError
from hf_curate.gradients.layout import Layout, Padded, Shared, one_prompt
from hf_curate.gradients.recompute import blocks_of, recomputing
from hf_curate.gradients.shared import behind_one_prompt, dimensions, shares_prompts
from hf_curate.gradients.upstream import byte_budget, head_pass
from hf_curate.memory import TokenBudget, attempt
from hf_curate.models import causal_lm

if TYPE_CHECKING:
    from hf_curate.gradients.tangents import Tangents
    from hf_curate.models import LanguageModel

T = TypeVar("T")

ATTENDED = 16
"""Responses behind one prompt keep its keys and values once each: as much as one token in so many keeps otherwise."""
RECOMPUTED = 16
"""How many times `batch_tokens` fit into one pass that keeps the blocks' inputs alone."""

Take = Callable[[str, Tensor], None]
"""Receives each parameter's gradient once per problem, in float32 or wider; it may keep or change the tensor."""


@dataclass(frozen=True)
class Signals:
    """What the head says of each rollout, on the CPU in float64.

    pooled: [K, d] mean of d log pi / d h over its tokens; products: [K] that of the head's own parameters along the
    direction, 0 without one.
    """

    pooled: Tensor
    products: Tensor


def policy_gradient(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    weights: Sequence[float],
    parameters: Mapping[str, nn.Parameter],
    take: Take | None,
    *,
    tangents: Tangents | None = None,
    batch_tokens: int = 8192,
    padded: bool = False,
) -> Signals:
    """Streams the gradient of sum_k weights[k] * (mean log-probability of rollout k's response tokens).

    Args:
        model: the loaded model, in eval mode.
        rollouts: K sequences of at least one response token each; prompts may differ.
        weights: [K], none of them 0.
        parameters: name -> parameter of `model.model`; those that get no gradient are never handed over.
        take: called once for each parameter; None for `tangents` alone, without a third of the backward's products.
        tangents: collects the products of each rollout's gradient with a direction on the way.
        batch_tokens: tokens of one pass, padding among them, whose activations are kept.
        padded: each rollout has a prompt of its own, whatever the model allows.

    Raises:
        RowError: a loss is NaN or infinite.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    blocks = blocks_of(model.decoder)
    if tangents is not None:
        shared = tangents.how == "shared" and one_prompt(rollouts)
    else:
        shared = not padded and len(rollouts) > 1 and one_prompt(rollouts) and shares_prompts(model)
    pieces = _passes(rollouts, batch_tokens, bool(blocks), shared)
    pending: dict[str, Tensor] = {}
    waiting: dict[str, Tensor] = {}  # the head's share of a tied weight, until the embedding's comes
    dtype = model.head.accumulate
    factor = _power_of_two(weights, rollouts)

    def deliver(name: str, gradient: Tensor) -> None:
        gradient = gradient.to(dtype)
        if name in waiting:
            gradient = waiting.pop(name).add_(gradient)
        assert take is not None
        if len(pieces) == 1:
            take(name, gradient.mul_(factor))
        elif name in pending:
            pending[name].add_(gradient, alpha=factor)
        else:
            pending[name] = gradient.mul_(factor)

    pooled = torch.zeros(len(rollouts), model.head.weight.shape[1], dtype=torch.float64)
    products = torch.zeros(len(rollouts), dtype=torch.float64)
    for piece, recomputed in pieces:
        scales = [weights[index] / factor for index in piece]
        layout = _layout(model, [rollouts[index] for index in piece], shared, tangents)
        again = blocks if recomputed else []

        def work(
            layout: Layout = layout,
            scales: list[float] = scales,
            piece: list[int] = piece,
            again: list[nn.Module] = again,
        ) -> None:
            watching = nullcontext() if tangents is None else tangents.during(piece, scales, layout, again)
            watch = None if tangents is None else tangents.at_prompt
            with recomputing(again), watching, behind_one_prompt(model, layout, watch):
                with torch.enable_grad():
                    hidden = model.states(**layout.inputs)
                upstream, own, along = _head(model, hidden.detach(), layout, scales, names, tangents, take is not None)
                for name, gradient in own.items():
                    if name in by_name:
                        waiting[name] = gradient
                    else:
                        deliver(name, gradient)
                del own
                if hidden.requires_grad:
                    if tangents is not None:
                        tangents.begin_backward()
                    torch.autograd.backward(hidden, upstream[0])
            for name in list(waiting):
                deliver(name, waiting.pop(name).clone())
            pooled[piece], products[piece] = upstream[1], along

        with _aliases(model.decoder, names if take is not None else {}, deliver) as (aliases, by_name):
            functional_call(_Within(model.decoder, work), aliases, (), tie_weights=False)
    for name in list(pending):
        assert take is not None
        take(name, pending.pop(name))
    return Signals(pooled, products)


def _layout(model: LanguageModel, rollouts: list[Rollout], shared: bool, tangents: Tangents | None) -> Layout:
    if shared:
        return Shared(rollouts, model.device, dimensions(model.decoder))
    return Padded(rollouts, model.device, positions=tangents is not None and tangents.how == "positions")


def _cost(rollouts: Sequence[Rollout], shared: bool) -> int:
    """Tokens whose activations a pass over these rollouts would keep."""
    padded = len(rollouts) * max(len(rollout.input_ids) for rollout in rollouts)
    if not shared:
        return padded
    prompt = rollouts[0].start
    return prompt + sum(len(rollout.input_ids) - prompt for rollout in rollouts) + padded // ATTENDED


def _passes(
    rollouts: Sequence[Rollout], batch_tokens: int, recompute: bool, shared: bool
) -> list[tuple[list[int], bool]]:
    """The rollouts (by index) of each forward and backward, and whether its blocks keep their inputs alone."""
    lengths, most = [len(rollout.input_ids) for rollout in rollouts], batch_tokens * (RECOMPUTED if recompute else 1)
    if _cost(rollouts, shared) <= most:  # however much is padding: the gradient of several passes is whole in memory
        pieces = [list(range(len(rollouts)))]
    else:
        pieces = list(_together(rollouts, most) if shared else bucket(lengths, most))
    passes = [(piece, _cost([rollouts[index] for index in piece], shared)) for piece in pieces]
    return [(piece, recompute and cost > batch_tokens) for piece, cost in passes]


def _together(rollouts: Sequence[Rollout], most: int) -> Iterator[list[int]]:
    """As `bucket`, of rollouts behind one prompt, which counts once."""
    piece: list[int] = []
    for index in sorted(range(len(rollouts)), key=lambda index: -len(rollouts[index].input_ids)):
        if piece and _cost([rollouts[other] for other in (*piece, index)], shared=True) > most:
            yield piece
            piece = []
        piece = [*piece, index]
    yield piece


def within(budget: TokenBudget, model: LanguageModel, rollouts: Sequence[Rollout], work: Callable[..., T]) -> T:
    """`work(batch_tokens=...)` on the rollouts of one problem, again with less where memory runs out.

    The budget shrinks to what was enough; where nothing is, it stays. Raises RowError("out of memory") once each
    rollout has a pass of its own that keeps the inputs of the blocks alone.
    """
    lengths, recompute = [len(rollout.input_ids) for rollout in rollouts], bool(blocks_of(model.decoder))
    tokens: int | None = budget.now
    while tokens is not None:
        done = attempt(partial(work, batch_tokens=tokens))
        if done is not None:
            if tokens < budget.now:
                budget.shrink(len(lengths) * max(lengths), tokens)
            else:
                budget.fits()
            return done[0]
        tokens = _less(rollouts, tokens, recompute)
    raise RowError(
        "out of memory", f"{len(lengths):,} rollouts of up to {max(lengths):,} tokens, each in a pass of its own"
    )


def _less(rollouts: Sequence[Rollout], batch_tokens: int, recompute: bool) -> int | None:
    """The number of tokens, by halves, that makes other passes of these rollouts; None where none does."""

    def passes(tokens: int) -> list[Any]:
        return [_passes(rollouts, tokens, recompute, shared) for shared in (False, one_prompt(rollouts))]

    before = passes(batch_tokens)
    while batch_tokens > 1:
        batch_tokens //= 2
        if passes(batch_tokens) != before:
            return batch_tokens
    return None


class _Within(nn.Module):
    """Runs something while the decoder's parameters are the aliases, backward and all."""

    def __init__(self, decoder: nn.Module, work: Callable[[], None]) -> None:
        super().__init__()
        self.decoder, self._work = decoder, work

    def forward(self) -> None:
        self._work()


def _power_of_two(weights: Sequence[float], rollouts: Sequence[Rollout]) -> float:
    """A factor that brings the largest token weight near 1: half-precision gradients must not underflow."""
    largest = max(
        abs(weight) / (len(rollout.input_ids) - rollout.start)
        for weight, rollout in zip(weights, rollouts, strict=True)
    )
    return 2.0 ** max(-1022, min(1023, round(math.log2(largest)))) if largest else 2.0**-1022


@contextmanager
def _aliases(
    decoder: nn.Module, names: Mapping[int, str], deliver: Take
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Leaves that share the parameters' memory: by their name in the decoder, and the chosen ones by global name.

    A chosen leaf delivers its gradient as soon as it is whole, and drops it.
    """
    leaves: dict[int, Tensor] = {}
    by_name: dict[str, Tensor] = {}
    aliases: dict[str, Tensor] = {}
    handles = []

    def hook(name: str) -> Callable[[Tensor], None]:
        def reduce(leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            assert gradient is not None
            deliver(name, gradient)

        return reduce

    try:
        for local, parameter in decoder.named_parameters(remove_duplicate=False):
            chosen = names.get(id(parameter))
            if chosen is None and not parameter.requires_grad:
                continue
            leaf = leaves.get(id(parameter))
            if leaf is None:
                # a Parameter, since some adapters take the weights that they change out of their module and back
                leaf = leaves[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=chosen is not None)
                if chosen is not None:
                    by_name[chosen] = leaf
                    handles.append(leaf.register_post_accumulate_grad_hook(hook(chosen)))
            aliases[f"decoder.{local}"] = leaf
        yield aliases, by_name
    finally:
        for handle in handles:
            handle.remove()


def _head(
    model: LanguageModel,
    hidden: Tensor,
    layout: Layout,
    scales: Sequence[float],
    names: Mapping[int, str],
    tangents: Tangents | None,
    grows: bool,
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor], Tensor]:
    """(gradient at the head's input, as `hidden`, and pooled signals [K, d]), the head's own gradients (if
    `grows`), its products."""
    count, place = len(layout.rollouts), hidden.device
    rows, before, labels = (item.to(place) for item in (layout.rows, layout.before, layout.labels))
    lengths = torch.bincount(rows, minlength=count).double().cpu()
    own = {kind: names.get(id(p)) for kind, p in head_parameters(model).items()}
    shares = torch.tensor(scales, dtype=torch.float64, device="cpu") / lengths
    weights = shares.to(device=place, dtype=model.head.accumulate)[rows]
    direction = (None, None) if tangents is None else tangents.of_head(own)
    wanted = weights.neg() if grows and any(own.values()) else None  # of log-probabilities, not of losses
    done = head_pass(model.head, hidden.flatten(0, 1)[before], labels, wanted, direction, byte_budget(place))
    bad = (~torch.isfinite(done.losses)).nonzero()
    if len(bad):
        t = layout.positions[int(bad[0])]
        raise RowError("not finite", f"the model's logits for token {t} give a loss that is NaN or infinite")
    upstream = torch.zeros(hidden.shape[0] * hidden.shape[1], hidden.shape[2], dtype=done.signals.dtype, device=place)
    upstream.index_add_(0, before, done.signals * weights.neg()[:, None])
    pooled = torch.zeros(count, hidden.shape[2], dtype=done.signals.dtype, device=place)
    pooled.index_add_(0, rows, done.signals)
    products = torch.zeros(count, dtype=torch.float64)
    if done.products is not None:
        products.index_add_(0, rows.cpu(), -done.products.double().cpu())
    if tangents is not None and isinstance(layout, Shared):
        first = before == layout.prompt - 1
        products.index_add_(0, rows[first].cpu(), -tangents.at_end_of_prompt(done.signals[first]).double().cpu())
    grown = {"weight": done.weight, "bias": done.bias}
    gradients = {name: grown[kind] for kind, name in own.items() if name is not None}
    kept = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    signals = (upstream.view(hidden.shape).to(hidden), -(pooled.cpu().double() / lengths[:, None]))
    return signals, kept, products / lengths


def head_parameters(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The LM head's own parameters, by "weight" and "bias"."""
    head = causal_lm(model.model).get_output_embeddings()
    return {kind: p for kind, p in head.named_parameters(recurse=False) if kind in ("weight", "bias")}
