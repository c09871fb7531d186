"""Policy gradients of groups of rollouts, as plain loops in float64: what the fast code must agree with.

Written from the formulas alone; nothing here imports the gradient code. The model's own forward, without a cache,
makes the logits; autograd makes the gradient of each rollout's mean log-probability alone; every gradient is kept
whole. The same gradients come from batches padded on the left and on the right, as a trainer makes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from zoo import VOCABULARY

from hf_curate.batches import Rollout

Gradient = dict[str, Tensor]
"""Parameter name -> gradient in float64, of every floating point parameter of the model."""


# -- gradients of rollouts -----------------------------------------------------------------------------------


def _log_probability(logits: Tensor, ids: Sequence[int], start: int) -> Tensor:
    """(1/|o|) sum_t log pi(o_t | before): logits [T, V] of one row; the token at position t is predicted at t - 1."""
    total = torch.zeros((), dtype=logits.dtype)
    for position in range(start, len(ids)):
        total = total + torch.log_softmax(logits[position - 1], dim=-1)[ids[position]]
    return total / (len(ids) - start)


def _derivative(model: nn.Module, value: Tensor, keep: bool = False) -> Gradient:
    names, parameters = zip(*floating(model).items(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=keep, allow_unused=True)
    return {
        name: (torch.zeros_like(parameter) if gradient is None else gradient).double()
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


def floating(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def _with_every_flag(model: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    """Lets every parameter take a gradient; returns what was before."""
    before = [(parameter, parameter.requires_grad) for parameter in floating(model).values()]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    return before


def mean_log_probability(model: nn.Module, rollout: Rollout) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rollout.input_ids]), use_cache=False).logits[0]
        return float(_log_probability(logits, rollout.input_ids, rollout.start))


def rollout_gradient(model: nn.Module, rollout: Rollout) -> Gradient:
    """grad (1/|o|) sum_t log pi(o_t | x, o_<t), from one forward of this rollout alone."""
    before = _with_every_flag(model)
    try:
        with torch.enable_grad():
            logits = model(input_ids=torch.tensor([rollout.input_ids]), use_cache=False).logits[0]
            return _derivative(model, _log_probability(logits, rollout.input_ids, rollout.start))
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def padded_gradients(model: nn.Module, rollouts: Sequence[Rollout], side: str, pad: int = 0) -> list[Gradient]:
    """As `rollout_gradient`, of each row of one batch padded on the "left" or "right", with mask and positions."""
    longest = max(len(rollout.input_ids) for rollout in rollouts)
    ids = torch.full((len(rollouts), longest), pad)
    mask = torch.zeros_like(ids)
    firsts = []
    for row, rollout in enumerate(rollouts):
        first = longest - len(rollout.input_ids) if side == "left" else 0
        firsts.append(first)
        ids[row, first : first + len(rollout.input_ids)] = torch.tensor(rollout.input_ids)
        mask[row, first : first + len(rollout.input_ids)] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    before = _with_every_flag(model)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            gradients = []
            for row, (first, rollout) in enumerate(zip(firsts, rollouts, strict=True)):
                own = logits[row, first : first + len(rollout.input_ids)]
                value = _log_probability(own, rollout.input_ids, rollout.start)
                gradients.append(_derivative(model, value, keep=row + 1 < len(rollouts)))
            return gradients
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


# -- parameter sets, by name ---------------------------------------------------------------------------------

_OUTSIDE = ("embed", "wte", "wpe", "lm_head", "norm")


def names_of(model: nn.Module, which: str) -> list[str]:
    """ "all": every parameter; "linear": weight matrices (or stacks of them: fused experts) but embeddings and the
    head; "adapters": LoRA's; else a regular expression that is found in the name."""
    found = floating(model)
    if which == "all":
        return list(found)
    if which == "linear":
        return [n for n, p in found.items() if p.dim() >= 2 and not any(word in n for word in _OUTSIDE)]
    return [name for name in found if re.search("lora_" if which == "adapters" else which, name)]


def flat(gradient: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """The named parts one after the other, as one vector in float64."""
    return torch.cat([gradient[name].double().flatten() for name in names])


# -- the policy gradient of a problem and its products -------------------------------------------------------


def advantages_of(rewards: Sequence[float]) -> list[float]:
    """A_k = r_k - mean r."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def policy_gradient(vectors: Sequence[Tensor], advantages: Sequence[float]) -> Tensor:
    """g = sum_k (A_k / K) v_k, v_k the gradient of rollout k's mean log-probability."""
    total = torch.zeros_like(vectors[0])
    for advantage, vector in zip(advantages, vectors, strict=True):
        total = total + advantage / len(vectors) * vector
    return total


def inner(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left, right))


def cosine(left: Tensor, right: Tensor) -> float:
    """0.0 if either is zero."""
    norms = math.sqrt(inner(left, left)) * math.sqrt(inner(right, right))
    return 0.0 if norms == 0.0 else inner(left, right) / norms


@dataclass(frozen=True)
class Expected:
    """Everything about one group: g and v as vectors, |v_k|, and what `policy_products` returns."""

    gradient: Tensor
    direction: Tensor | None
    lengths: list[float]
    squared_norm: float
    dot: float
    per_rollout: list[float]


def products(vectors: Sequence[Tensor], advantages: Sequence[float], direction: Tensor | None) -> Expected:
    """<g, v>, |g|^2 and d_k = <v_k, v>; without a direction NaN and nothing."""
    gradient = policy_gradient(vectors, advantages)
    return Expected(
        gradient,
        direction,
        [math.sqrt(inner(vector, vector)) for vector in vectors],
        inner(gradient, gradient),
        math.nan if direction is None else inner(gradient, direction),
        [] if direction is None else [inner(vector, direction) for vector in vectors],
    )


# -- statistics ----------------------------------------------------------------------------------------------


def parts(advantages: Sequence[float], per_rollout: Sequence[float]) -> list[float]:
    """s_k = A_k (d_k - mean d); their mean is <g, v> when the advantages sum to 0."""
    mean = sum(per_rollout) / len(per_rollout)
    return [a * (d - mean) for a, d in zip(advantages, per_rollout, strict=True)]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean: the standard deviation (ddof 1) over the root of K."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance) / math.sqrt(len(values))


def t_statistic(values: Sequence[float]) -> float:
    return sum(values) / len(values) / standard_error(values)


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's, of the advantages and the d_k."""
    left_mean, right_mean = sum(left) / len(left), sum(right) / len(right)
    above = sum((a - left_mean) * (b - right_mean) for a, b in zip(left, right, strict=True))
    left_square = sum((a - left_mean) ** 2 for a in left)
    right_square = sum((b - right_mean) ** 2 for b in right)
    return above / math.sqrt(left_square * right_square)


# -- scores of a pool ----------------------------------------------------------------------------------------


def mean_of(gradients: Sequence[Tensor]) -> Tensor:
    """g_val, or the pool's mean: over all problems, those without signal (a gradient of zero) too."""
    total = torch.zeros_like(gradients[0])
    for gradient in gradients:
        total = total + gradient
    return total / len(gradients)


def learnability(rewards: Sequence[float], correct_above: float = 0.5) -> float:
    """p (1 - p), p the share of rewards above `correct_above`."""
    p = sum(reward > correct_above for reward in rewards) / len(rewards)
    return p * (1 - p)


def learnalign(gradients: Sequence[Tensor], learnabilities: Sequence[float]) -> list[float]:
    """score_i = (1/n) sum_j V_i V_j cos(g_i, g_j), through the whole n x n matrix, i = j included."""
    n = len(gradients)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            matrix[i, j] = learnabilities[i] * learnabilities[j] * cosine(gradients[i], gradients[j])
    return [float(matrix[i].sum()) / n for i in range(n)]


def align(gradients: Sequence[Tensor]) -> list[float]:
    """cos(g_i, mean_j g_j)."""
    mean = mean_of(gradients)
    return [cosine(gradient, mean) for gradient in gradients]


# -- groups that every model is compared on ------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """K rollouts and their advantages."""

    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]


def _words(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def group(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], rewards: Sequence[float]) -> Group:
    rollouts = (Rollout([*p, *r], len(p)) for p, r in zip(prompts, responses, strict=True))
    return Group(tuple(rollouts), tuple(advantages_of(rewards)))


END = 2
_LONG = [*_words(80, 11), END]

GROUPS: dict[str, Group] = {
    # an advantage of its own: r - mean r would be 0
    "one": Group((Rollout([*_words(10, 4), *_words(11, 5)], 4),), (0.75,)),
    # one response is the end alone, and the prompt is one token
    "two": group([_words(20, 1)] * 2, [[END], [*_words(21, 6), END]], [1.0, 0.0]),
    # a zero among the advantages
    "three": group([_words(30, 7)] * 3, [[*_words(31 + k, 2 + 3 * k), END] for k in range(3)], [0.0, 0.5, 1.0]),
    # a response rewarded once and not the next time: its weights cancel, the others' do not
    "four": group(
        [_words(50, 6)] * 4, [_words(51, 5), _words(51, 5), [*_words(52, 3), END], [8]], [1.0, 0.0, 1.0, 0.0]
    ),
    # prompts of their own, of other lengths, one with the ids of padding and end inside
    "five": group(
        [_words(40, 3), [5, 0, END, 0, 9], _words(41, 9), _words(42, 1), _words(43, 5)],
        [[7], _words(44, 4), [*_words(45, 9), END], _words(46, 12), [0, 8, END]],
        [1.0, 0.0, 0.25, 1.0, 0.0],
    ),
    # one prompt; a response twice with the same reward, another twice with different ones, one a beginning of another
    "eight": group(
        [_words(60, 8)] * 8,
        [_LONG, _LONG[:5], [END], _words(61, 4), _LONG, _words(61, 4), [9], [*_words(62, 6), END]],
        [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
    ),
}


@dataclass(frozen=True)
class Problem:
    """A row of a pool: ids of the prompt and of each response, and the rewards."""

    prompt: list[int]
    responses: list[list[int]]
    rewards: list[float]

    @property
    def rollouts(self) -> list[Rollout]:
        return [Rollout([*self.prompt, *response], len(self.prompt)) for response in self.responses]


def _sampled(seed: int, rewards: list[float]) -> Problem:
    responses = [[*_words(seed + k, 1 + (seed + 3 * k) % 7), END] for k in range(len(rewards))]
    return Problem(_words(1000 + seed, 2 + seed % 5), responses, rewards)


POOL: tuple[Problem, ...] = (
    _sampled(100, [1.0, 0.0, 0.0, 1.0]),
    _sampled(200, [1.0, 1.0, 1.0]),  # nothing to learn
    _sampled(300, [0.0, 0.2, 1.0, 0.7, 0.5]),  # two of five are above one half
    Problem(_words(400, 4), [_LONG] * 2, [1.0, 0.0]),  # cancels
    _sampled(500, [0.0, 1.0]),
    _sampled(600, [0.6, 0.9, 1.0]),  # a gradient, and all right
    _sampled(700, [0.0, 0.0]),
    _sampled(800, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    Problem(_words(900, 6), [[END], _LONG, [END], _words(901, 3)], [0.0, 1.0, 1.0, 0.0]),  # cancels in part
)
TRUSTED: tuple[Problem, ...] = (
    _sampled(1100, [1.0, 0.0, 1.0, 0.0]),
    _sampled(1200, [0.0, 0.0, 0.0]),
    _sampled(1300, [0.25, 1.0, 0.0]),
)
