"""Inner products of a problem's policy gradient with a direction, and its norm: no gradient is ever whole in memory.

Rollouts that are token for token the same are one rollout with the sum of their weights, which is exact, cheaper, and
shows a gradient that cancels (the same response rewarded and not) before anything is computed.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hf_curate.batches import Rollout
from hf_curate.errors import RowError
from hf_curate.gradients.layout import one_prompt
from hf_curate.gradients.policy import Take, policy_gradient
from hf_curate.gradients.shared import RAISED, share_no_more, shares_prompts
from hf_curate.gradients.tangents import NotSeparableError, Tangents
from hf_curate.memory import is_out_of_memory

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel

logger = logging.getLogger("hf_curate")

FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
"""A gradient cancels when the rollouts' signals at the head's input, weighted and summed, have less than this share of
the sum of their norms: what is left is rounding."""
SAME_WEIGHT = 1e-9
"""Weights of identical rollouts that sum to less than this share of their absolute sum cancel."""
AGREE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How well both ways to the rollouts' products must agree on a few tokens, relative to the contributions' size."""
CHUNK = 1 << 18


@dataclass(frozen=True)
class Products:
    """Of one problem's policy gradient g = sum_k (A_k / K) grad_k, grad_k the gradient of rollout k's mean
    log-probability.

    dot: <g, direction>; squared_norm: |g|^2, NaN where it was not asked for; per_rollout: [K] float64
    <grad_k, direction>, NaN where g cancels; dot and per_rollout are None without a direction; cancels: g is 0 up to
    rounding (everything else is then 0).
    """

    dot: float | None
    squared_norm: float
    per_rollout: np.ndarray | None
    cancels: bool


@dataclass(frozen=True)
class Distinct:
    """The different rollouts of a problem. weights: [D] summed A_k / K, 0 where they cancel; of: [K] index into D."""

    rollouts: list[Rollout]
    weights: list[float]
    of: list[int]

    def active(self) -> tuple[list[int], list[Rollout], list[float]]:
        """Those with a weight: their indices, rollouts and weights."""
        live = [index for index, weight in enumerate(self.weights) if weight]
        return live, [self.rollouts[index] for index in live], [self.weights[index] for index in live]

    def idle(self) -> list[int]:
        """Indices of those without."""
        return [index for index, weight in enumerate(self.weights) if not weight]


def distinct(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> Distinct:
    """Merges rollouts that are token for token the same."""
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    of = [places.setdefault((r.start, tuple(r.input_ids)), len(places)) for r in rollouts]
    shares: list[list[float]] = [[] for _ in places]
    for place, advantage in zip(of, advantages, strict=True):
        shares[place].append(float(advantage) / len(rollouts))
    largest = max((abs(share) for own in shares for share in own), default=0.0)
    sums = [math.fsum(own) for own in shares]
    weights = [0.0 if abs(total) <= SAME_WEIGHT * largest else total for total in sums]
    firsts = dict(zip(reversed(of), reversed(rollouts), strict=True))
    return Distinct([firsts[place] for place in range(len(places))], weights, of)


def policy_products(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor] | None,
    *,
    per_rollout: bool = True,
    norm: bool = True,
    batch_tokens: int = 8192,
) -> Products:
    """Products and norm of one problem's policy gradient, exact over the parameters.

    Args:
        model: the loaded model, in eval mode.
        rollouts: the K rollouts of the problem.
        advantages: [K] A_k, such as reward minus the group's mean.
        parameters: name -> parameter of `model.model`.
        direction: name -> tensor of each parameter's shape on its device, float32 or float64; None for the norm
            alone.
        per_rollout: whether each rollout's own product is wanted; without it the direction costs next to nothing.
        norm: whether |g|^2 is wanted beside the rollouts' products; without it most problems need no gradient of a
            parameter, and `dot` is the weighted sum of the products.
        batch_tokens: padded tokens of one pass whose activations are kept; changes memory and speed, see `policy`.

    Raises:
        RowError: a loss, the norm or a product is not finite.
    """
    merged = distinct(rollouts, advantages)
    if not merged.active()[0]:
        return _nothing(direction, len(rollouts))
    how = route(model, parameters, one_prompt(rollouts)) if direction is not None and per_rollout else None
    alone = not norm and how not in (None, "apart")
    try:
        if alone and direction is not None and how is not None:
            return _of_rollouts(model, merged, parameters, direction, how, batch_tokens)
        return _of_gradient(model, merged, parameters, direction, how, batch_tokens)
    except NotSeparableError as error:
        _give_up(error, model, parameters, how)
        return policy_products(
            model, rollouts, advantages, parameters, direction, norm=norm, batch_tokens=batch_tokens
        )


def _of_gradient(
    model: LanguageModel,
    merged: Distinct,
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor] | None,
    how: str | None,
    batch_tokens: int,
    padded: bool = False,
) -> Products:
    """From the gradient of every parameter; with each rollout's product, unless `how` is None. padded: with a prompt
    of its own for each rollout."""
    (active, chosen, weights), sums = merged.active(), _Sums(direction)
    tangents = _tangents(model, parameters, direction, len(active), how)
    options: dict[str, Any] = {"tangents": tangents, "batch_tokens": batch_tokens, "padded": padded}
    signals = policy_gradient(model, chosen, weights, parameters, sums.take, **options)
    if _cancels(signals.pooled, weights, model.head.weight.dtype):
        return _nothing(direction, len(merged.of))
    dot, squared_norm = sums.dot, sums.squared_norm
    if not math.isfinite(squared_norm) or not math.isfinite(dot):
        raise RowError("not finite", "the gradient of this problem overflows")
    if squared_norm == 0.0:  # none of the parameters is reached
        return _nothing(direction, len(merged.of))
    if direction is None or how is None:
        return Products(None if direction is None else dot, squared_norm, None, False)
    found = np.full(len(merged.rollouts), np.nan)
    if tangents is not None:
        found[active] = (tangents.products + signals.products).numpy()
        sizes = (tangents.sizes + signals.products.abs()).numpy()
        _check_sum(model, weights, found[active], sizes, dot)
    rest = merged.idle() if tangents is not None else list(range(len(merged.rollouts)))
    if rest:
        others = [merged.rollouts[index] for index in rest]
        found[rest] = rollout_products(model, others, parameters, direction, how, batch_tokens=batch_tokens)
    if not np.isfinite(found).all():
        raise RowError("not finite", "the gradient of a rollout overflows")
    return Products(dot, squared_norm, found[merged.of], False)


def _of_rollouts(
    model: LanguageModel,
    merged: Distinct,
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor],
    how: str,
    batch_tokens: int,
) -> Products:
    """From each rollout's product alone, without the gradient of a parameter. On the first problem of a model and
    parameter set, the second, the fourth and so on the sum is compared with the whole gradient's product, from padded
    rows."""
    active, _, weights = merged.active()
    tangents = Tangents(model, parameters, direction, len(merged.rollouts), how, alone=True)
    ones = [1.0] * len(merged.rollouts)
    signals = policy_gradient(
        model, merged.rollouts, ones, parameters, None, tangents=tangents, batch_tokens=batch_tokens
    )
    if _cancels(signals.pooled[active], weights, model.head.weight.dtype):
        return _nothing(direction, len(merged.of))
    found = (tangents.products + signals.products).numpy()
    sizes = (tangents.sizes + signals.products.abs()).numpy()
    if not np.isfinite(found).all():
        raise RowError("not finite", "the gradient of a rollout overflows")
    if not sizes[active].any():  # none of the parameters is reached
        return _nothing(direction, len(merged.of))
    if _due(model, parameters):
        whole = _of_gradient(model, merged, parameters, direction, None, batch_tokens, padded=True)
        assert whole.dot is not None
        _check_sum(model, weights, found[active], sizes[active], whole.dot)
    return Products(float(np.dot(weights, found[active])), math.nan, found[merged.of], False)


_SEEN: WeakKeyDictionary[nn.Module, Counter[frozenset[str]]] = WeakKeyDictionary()


def _due(model: LanguageModel, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Counts problems; True for the first, the second, the fourth and so on."""
    seen = _SEEN.setdefault(model.decoder, Counter())
    seen[frozenset(parameters)] += 1
    return seen[frozenset(parameters)].bit_count() == 1


def _check_sum(
    model: LanguageModel, weights: Sequence[float], found: np.ndarray, sizes: np.ndarray, dot: float
) -> None:
    """Raises NotSeparableError where the rollouts' products do not sum to that of the whole gradient."""
    missed = float(np.dot(weights, found)) - dot
    if not abs(missed) <= AGREE[model.head.weight.dtype] * float(np.abs(weights) @ sizes):
        raise NotSeparableError(f"the rollouts' products sum to {missed:.2e} more than the whole gradient's")


def _give_up(
    error: NotSeparableError, model: LanguageModel, parameters: Mapping[str, nn.Parameter], how: str | None
) -> None:
    """This model and parameter set without what has failed: a shared prompt, or rollouts that are told apart."""
    if how == "shared":
        share_no_more(model, error)
        return
    logger.info("one backward for each rollout from here on: %s", error)
    for shared in (False, True):
        _ROUTES.setdefault(model.decoder, {})[frozenset(parameters), shared] = "apart"


def streamed(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    parameters: Mapping[str, nn.Parameter],
    take: Take,
    *,
    batch_tokens: int = 8192,
) -> bool:
    """Hands a problem's policy gradient to `take`, parameter by parameter; False where it cancels up to rounding (what
    was handed over is then to be thrown away)."""
    _, chosen, weights = distinct(rollouts, advantages).active()
    if not chosen:
        return False
    signals = policy_gradient(model, chosen, weights, parameters, take, batch_tokens=batch_tokens)
    return not _cancels(signals.pooled, weights, model.head.weight.dtype)


def whole_gradient(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    parameters: Mapping[str, nn.Parameter],
    *,
    batch_tokens: int = 8192,
) -> tuple[dict[str, Tensor], float] | None:
    """A problem's policy gradient, all of it at once, and its norm; None where it cancels or is 0. Raises RowError
    where it overflows."""
    gradient: dict[str, Tensor] = {}
    if not streamed(model, rollouts, advantages, parameters, gradient.__setitem__, batch_tokens=batch_tokens):
        return None
    norm = sum(inner(tensor, tensor) for tensor in gradient.values()) ** 0.5
    if not math.isfinite(norm):
        raise RowError("not finite", "the gradient of this problem overflows")
    return (gradient, norm) if norm else None


def rollout_products(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor],
    how: str | None,
    *,
    batch_tokens: int = 8192,
) -> np.ndarray:
    """[K] <grad_k, direction> of each rollout's mean log-probability; `how` as `route` says."""
    tangents = _tangents(model, parameters, direction, len(rollouts), how, alone=True)
    if tangents is not None:
        ones = [1.0] * len(rollouts)
        signals = policy_gradient(
            model, rollouts, ones, parameters, None, tangents=tangents, batch_tokens=batch_tokens
        )
        return (tangents.products + signals.products).numpy()
    found = np.empty(len(rollouts))
    for index, rollout in enumerate(rollouts):
        sums = _Sums(direction)
        policy_gradient(model, [rollout], [1.0], parameters, sums.take, batch_tokens=batch_tokens)
        found[index] = sums.dot
    return found


_ROUTES: WeakKeyDictionary[nn.Module, dict[tuple[frozenset[str], bool], str]] = WeakKeyDictionary()


def route(model: LanguageModel, parameters: Mapping[str, nn.Parameter], shared: bool = False) -> str:
    """How the rollouts' products are taken: "shared" (behind one prompt), "together" (one backward for all),
    "positions" (the same, with position ids for each row), or "apart" (one backward for each). Found once for a model
    and parameter set, by comparing on a few tokens and along a random direction.

    shared: whether the rollouts have one prompt.
    """
    known = _ROUTES.setdefault(model.decoder, {})
    shared = shared and shares_prompts(model)
    key = (frozenset(parameters), shared)
    if key not in known:
        known[key] = _find_route(model, parameters, shared)
    return known[key]


class _Drawn(Mapping[str, Tensor]):
    """A random direction of which one tensor is there at a time."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._places = {name: place for place, name in enumerate(parameters)}

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        place = parameter.device if parameter.device.type == "cuda" else torch.device("cpu")
        generator = torch.Generator(place).manual_seed(self._places[name])
        wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        drawn = torch.randn(parameter.shape, generator=generator, dtype=wide, device=place)
        return drawn.to(parameter.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def _probe(known: int, shared: bool) -> list[Rollout]:
    if not shared:
        return [
            Rollout([(7 * i + 3) % known for i in range(5)], 2),
            Rollout([(5 * i + 1) % known for i in range(7)], 3),
        ]
    prompt = [(7 * i + 3) % known for i in range(3)]
    return [Rollout([*prompt, *((5 * i + k) % known for i in range(n))], 3) for k, n in enumerate((2, 4), 1)]


def _find_route(model: LanguageModel, parameters: Mapping[str, nn.Parameter], shared: bool) -> str:
    probe = _probe(min(model.head.vocabulary, 64), shared)
    direction = _Drawn(parameters)
    try:
        apart = rollout_products(model, probe, parameters, direction, "apart")
    except RowError:
        return "apart"
    ways = ("together", "positions")
    for how in ("shared", *ways) if shared else ways:
        tangents = _tangents(model, parameters, direction, len(probe), how, alone=True)
        assert tangents is not None
        try:
            signals = policy_gradient(model, probe, [0.5, -0.25], parameters, None, tangents=tangents)
        except (NotSeparableError, *RAISED) as error:
            if is_out_of_memory(error):
                raise
            logger.debug("rollouts %s: %s", how, error)
            continue
        together = (tangents.products + signals.products).numpy()
        size = (tangents.sizes + signals.products.abs()).numpy() + np.abs(apart)
        if np.all(np.abs(together - apart) <= AGREE[model.head.weight.dtype] * size):
            return how
    logger.info(
        "%s does not let the gradients of several rollouts be told apart: one backward for each",
        type(model.model).__name__,
    )
    return "apart"


def _tangents(
    model: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor] | None,
    rollouts: int,
    how: str | None,
    alone: bool = False,
) -> Tangents | None:
    if direction is None or how is None or how == "apart":
        return None
    return Tangents(model, parameters, direction, rollouts, how, alone)


class _Sums:
    """Adds up <g, direction> and |g|^2 while the parameters' gradients come by; read when all have come."""

    def __init__(self, direction: Mapping[str, Tensor] | None) -> None:
        self.direction = direction
        self._dots: list[Tensor] = []
        self._squares: list[Tensor] = []

    def take(self, name: str, gradient: Tensor) -> None:
        self._squares.append(_inner(gradient, gradient))
        if self.direction is not None:
            self._dots.append(_inner(gradient, self.direction[name]))

    @property
    def dot(self) -> float:
        return sum(map(float, self._dots))

    @property
    def squared_norm(self) -> float:
        return sum(map(float, self._squares))


def inner(left: Tensor, right: Tensor) -> float:
    """Inner product of two tensors of one shape, accumulated in float64 a piece at a time."""
    return float(_inner(left, right))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """The same as a scalar on the tensors' device, which need not be waited for."""
    a, b = left.reshape(-1), right.reshape(-1)
    if a.device.type == "mps":  # which has no float64
        a, b = a.cpu(), b.cpu()
    total = a.new_zeros((), dtype=torch.float64)
    for start in range(0, len(a), CHUNK):
        total += torch.dot(a[start : start + CHUNK].double(), b[start : start + CHUNK].double())
    return total


def _cancels(pooled: Tensor, weights: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether the weighted signals at the head's input [K, d] sum to rounding noise.

    The head is where the gradients of all rollouts begin: what cancels there has nothing to propagate.
    """
    shares = torch.tensor(weights, dtype=pooled.dtype)
    scaled = pooled * (shares / shares.abs().max())[:, None]
    largest = float(scaled.norm(dim=1).sum())
    return largest > 0.0 and float(scaled.sum(dim=0).norm()) <= FLOOR[dtype] * largest


def _nothing(direction: Mapping[str, Tensor] | None, rollouts: int) -> Products:
    if direction is None:
        return Products(None, 0.0, None, True)
    return Products(0.0, 0.0, np.full(rollouts, np.nan), True)
