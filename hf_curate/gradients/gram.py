"""Gram matrices of segment gradients that are never formed: inner products of sums of outer products.

A linear map with inputs a_t and output gradients b_t has weight gradient sum_t b_t (x) a_t, and
<sum_t b_t (x) a_t, sum_t' b_t' (x) a_t'> = sum_{t,t'} (b_t . b_t')(a_t . a_t'). Only [T, width] tensors are kept. For
rows so long that T^2 products cost more than the matrices, these are formed, a block of their rows at a time.
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
        [S, S] symmetric, float32 (float64 for float64 inputs).
    """
    gram: Tensor | None = None
    for inputs, outputs in pairs:
        dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        a, b = inputs.to(dtype), outputs.to(dtype)
        if gram is None:
            gram = torch.zeros(segments.count, segments.count, dtype=dtype, device=a.device)
        tokens, area = len(a), a.shape[1] * b.shape[1]
        if tokens * tokens * (a.shape[1] + b.shape[1]) <= (tokens + segments.count**2) * area:
            _by_tokens(gram, a, b, segments, byte_budget)
        else:
            _by_matrices(gram, a, b, segments, byte_budget)
    if gram is None:
        raise ValueError("no layer given")
    return (gram + gram.T) / 2


def _by_tokens(gram: Tensor, a: Tensor, b: Tensor, segments: Segments, byte_budget: int) -> None:
    """Adds (b b^T * a a^T) averaged over segments on both sides, a block of tokens at a time."""
    mean = segments.matrix(len(a), a.dtype, a.device)
    block = max(1, byte_budget // (2 * len(a) * a.element_size()))
    for start in range(0, len(a), block):
        part = slice(start, start + block)
        gram += mean[:, part] @ ((a[part] @ a.T).mul_(b[part] @ b.T) @ mean.T)


def _by_matrices(gram: Tensor, a: Tensor, b: Tensor, segments: Segments, byte_budget: int) -> None:
    """The same for long rows: forms the means of b_t (x) a_t, a block of their rows at a time."""
    owner = torch.argsort(segments.segments, stable=True)
    members = segments.tokens[owner].to(a.device).split(segments.sizes().tolist())
    block = max(1, byte_budget // max(1, 2 * segments.count * a.shape[1] * a.element_size()))
    for start in range(0, b.shape[1], block):
        part = b[:, start : start + block]
        means = a.new_zeros(segments.count, part.shape[1] * a.shape[1])
        for index, own in enumerate(members):
            if len(own):
                means[index] = (part[own].T @ a[own]).flatten().div_(len(own))
        gram += means @ means.T
