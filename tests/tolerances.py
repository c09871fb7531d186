"""The one table of tolerances: what "equal" means in each comparison, and why it is not tighter."""

from __future__ import annotations

import torch

GRAM = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Norm-wise relative error of a Gram matrix against the float64 reference with the same (rounded) weights."""

SCORE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Absolute error of step scores (cosines): a step whose gradient is small keeps the error of the whole matrix."""

LOSS = {torch.float64: 1e-10, torch.float32: 2e-4}
"""Relative error of the vector of token losses."""

POLICY = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Products of policy gradients, norm-wise: <g, v> relative to |g||v|, |g| relative, d_k relative to max |g_k||v|."""

COLUMN = 1e-6
"""Relative error of a float64 score that was stored as float32."""

PROJECTED = 4.5
"""Standard errors between the mean of projected inner products over seeds and the exact one; seeds are fixed."""

REFERENCES = 1e-12
"""Norm-wise relative difference of one float64 gradient by two references: alone, and in a padded batch."""

SLOPE = 1e-7
"""Central differences of 1e-5 in float64 against <gradient, direction>, relative to |gradient|."""

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

POLICY_MEMORY_SLACK = 32 * 2**20
"""Bytes beside sums of gradients and the largest one: pieces of 2^20 values in float64 for two tensors, and
activations of a few tokens."""
