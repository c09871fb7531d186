"""The one table of tolerances: what "equal" means in each comparison, and why it is not tighter."""

from __future__ import annotations

import torch

GRAM = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Norm-wise relative error of a Gram matrix against the float64 reference with the same (rounded) weights."""

SCORE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Absolute error of step scores (cosines): a step whose gradient is small keeps the error of the whole matrix."""

LOSS = {torch.float64: 1e-10, torch.float32: 2e-4}
"""Relative error of the vector of token losses."""

SAME_RUN = {torch.float64: 1e-11, torch.float32: 2e-5}
"""Norm-wise relative difference of two orders of the same sums: chunks, padding, batching."""

CONFIDENT = 1e-4
"""Relative error of u_t in float32 where 1 - p_y is about 1e-6; forming p - y by subtraction misses it."""

CONFIDENT_COSINE = 1e-3
"""Absolute error of cosines in float32 where the label leads by 52 logits and squared gradients are below 1e-40."""

BFLOAT16_GRAM = 0.15
BFLOAT16_LOSS = 0.03
"""bfloat16 model against the same rounded weights in float32, norm-wise. Activations carry 8 bits: about 1 % an
operation."""

GRAM_ROUTE = 1e-6
"""Cosines from the Gram matrix against cosines of explicit vectors, float64, away from cancelling sums."""

MEMORY_SLACK = 16 * 2**20
"""Bytes over the byte budget that allocators, BLAS packing buffers and [N] vectors may take."""
