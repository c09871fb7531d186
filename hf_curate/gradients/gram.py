"""Gram matrices of segment gradients that are never formed: inner products of sums of outer products.

A linear map with inputs a_t and output gradients b_t has weight gradient sum_t b_t (x) a_t, and
<sum_t b_t (x) a_t, sum_t' b_t' (x) a_t'> = sum_{t,t'} (b_t . b_t')(a_t . a_t'). Only [T, width] tensors are kept.
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
        byte_budget: bound on the [block, T] products; blocks of tokens are walked.

    Returns:
        [S, S] symmetric, float32 (float64 for float64 inputs).
    """
    gram: Tensor | None = None
    for inputs, outputs in pairs:
        dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        a, b = inputs.to(dtype), outputs.to(dtype)
        mean = segments.matrix(len(a), dtype, a.device)
        if gram is None:
            gram = torch.zeros(segments.count, segments.count, dtype=dtype, device=a.device)
        block = max(1, byte_budget // (2 * len(a) * a.element_size()))
        for start in range(0, len(a), block):
            part = slice(start, start + block)
            gram += mean[:, part] @ ((a[part] @ a.T).mul_(b[part] @ b.T) @ mean.T)
    if gram is None:
        raise ValueError("no layer given")
    return (gram + gram.T) / 2
