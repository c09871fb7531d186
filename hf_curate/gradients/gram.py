"""Gram matrices of segment gradients that are never formed: inner products of sums of outer products.

A linear map with inputs a_t and output gradients b_t has weight gradient sum_t b_t (x) a_t, and
<sum_t b_t (x) a_t, sum_t' b_t' (x) a_t'> = sum_{t,t'} (b_t . b_t')(a_t . a_t'). Only [T, width] tensors are kept. For
rows so long that T^2 products cost more than the matrices, these are formed, a block of their rows at a time.

The large products run in float32. The square of what a very confident token adds (b_t of 1e-22) is below its range, so
b_t is divided by its largest entry before, and the [S, S] result multiplied with these sizes in float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_curate.gradients.upstream import BYTE_BUDGET, Segments


@torch.no_grad()
def factored_gram(
    pairs: Iterable[tuple[Tensor, Tensor]], segments: Segments, byte_budget: int = BYTE_BUDGET
) -> Tensor:
    """Gram matrix of the segment means of b_t (x) a_t, summed over the layers in `pairs`.

    Args:
        pairs: (inputs a [T, i], output gradients b [T, o]) for each layer; all share T tokens.
        segments: memberships over the T tokens.
        byte_budget: bound on the temporary products, of which a block at a time is formed.

    Returns:
        [S, S] symmetric, float64, on the CPU; as precise as float32 (for float64 inputs float64) products are.
    """
    gram: Tensor | None = None
    for inputs, outputs in pairs:
        dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        a, b = inputs.to(dtype), outputs.to(dtype)
        if gram is None:
            gram = torch.zeros(segments.count, segments.count, dtype=torch.float64)
        tokens, area = len(a), a.shape[1] * b.shape[1]
        if tokens * tokens * (a.shape[1] + b.shape[1]) <= (tokens + segments.count**2) * area:
            _by_tokens(gram, a, b, segments, byte_budget)
        else:
            _by_matrices(gram, a, b, segments, byte_budget)
    if gram is None:
        raise ValueError("no layer given")
    return (gram + gram.T) / 2


def _sized(b: Tensor, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """b / |b|_max, the weights [M] of its rows in their segments, and the factors [S] that the means then lack."""
    sizes = torch.linalg.vector_norm(b, float("inf"), dim=1)
    own = sizes.cpu()[segments.tokens]
    largest = own.new_zeros(segments.count).scatter_reduce(0, segments.segments, own, "amax")
    largest = largest.masked_fill(largest == 0.0, 1.0)
    weights = own / largest[segments.segments] / segments.sizes()[segments.segments]
    return b / sizes.masked_fill(sizes == 0.0, 1.0)[:, None], weights, largest.double()


def _by_tokens(gram: Tensor, a: Tensor, b: Tensor, segments: Segments, byte_budget: int) -> None:
    """Adds (b b^T * a a^T) averaged over segments on both sides, a block of tokens at a time."""
    b, weights, scale = _sized(b, segments)
    mean = torch.zeros(segments.count, len(a), dtype=a.dtype)
    mean[segments.segments, segments.tokens] = weights
    mean = mean.to(a.device)
    total = a.new_zeros(gram.shape)
    block = max(1, byte_budget // (2 * len(a) * a.element_size()))
    for start in range(0, len(a), block):
        part = slice(start, start + block)
        total += mean[:, part] @ ((a[part] @ a.T).mul_(b[part] @ b.T) @ mean.T)
    gram += total.cpu().double() * torch.outer(scale, scale)


def _by_matrices(gram: Tensor, a: Tensor, b: Tensor, segments: Segments, byte_budget: int) -> None:
    """The same for long rows: forms the means of b_t (x) a_t, a block of their rows at a time."""
    b, weights, scale = _sized(b, segments)
    owner, counts = torch.argsort(segments.segments, stable=True), segments.sizes().tolist()
    members = segments.tokens[owner].to(a.device).split(counts)
    shares = weights[owner, None].to(a.device).split(counts)
    total = a.new_zeros(gram.shape)
    block = max(1, byte_budget // max(1, 2 * segments.count * a.shape[1] * a.element_size()))
    for start in range(0, b.shape[1], block):
        part = b[:, start : start + block]
        means = a.new_zeros(segments.count, part.shape[1] * a.shape[1])
        for index, (own, share) in enumerate(zip(members, shares, strict=True)):
            if len(own):
                means[index] = ((part[own] * share).T @ a[own]).flatten()
        total += means @ means.T
    gram += total.cpu().double() * torch.outer(scale, scale)
