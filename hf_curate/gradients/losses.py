"""Cross-entropy of tokens, without signals or gradients: one forward, and the logits of one chunk of positions at a
time.

The numbers are those that `upstream` gives on the way: products in the model's dtype, everything after them in float32
(float64 for a float64 model); a token whose logits are NaN or infinite has loss NaN and harms no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_curate.batches import pad_ids
from hf_curate.gradients.head import Head, LogitBlock
from hf_curate.gradients.upstream import BYTE_BUDGET

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel


@torch.no_grad()
def token_losses(head: Head, hidden: Tensor, labels: Tensor, byte_budget: int = BYTE_BUDGET) -> Tensor:
    """Loss of each token in nats: hidden [N, d] in the model's dtype, labels [N] int64 -> [N] in float32 or wider.

    byte_budget: bound on the temporary memory, for the logits in both dtypes.
    """
    losses = torch.empty(len(labels), dtype=head.accumulate, device=hidden.device)
    wide = torch.finfo(head.accumulate).bits // 8
    chunk = max(1, byte_budget // (2 * wide * head.vocabulary))
    block = LogitBlock(head, min(chunk, len(labels)), hidden.device)
    for start in range(0, len(labels), chunk):
        here = slice(start, start + chunk)
        logits = head.logits(hidden[here], block)
        top = logits.amax(dim=1, keepdim=True)
        label = logits.gather(1, labels[here, None]) - top
        losses[here] = logits.sub_(top).exp_().sum(dim=1).log() - label[:, 0]
    return losses.masked_fill_(~torch.isfinite(losses), float("nan"))


@torch.no_grad()
def sequence_losses(
    model: LanguageModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    byte_budget: int = BYTE_BUDGET,
) -> list[Tensor]:
    """Losses of chosen tokens of each sequence, from one padded forward.

    Args:
        model: the loaded language model, in eval mode.
        sequences: (token ids, label positions) each; 1 <= position < number of ids, at least one.
        byte_budget: bound on temporary memory beyond the forward pass.

    Returns:
        For each sequence the losses at its positions, in their order, on the CPU in float32 or wider.
    """
    input_ids = pad_ids([ids for ids, _ in sequences], model.device)
    width = input_ids.shape[1]
    places = [row * width + position - 1 for row, (_, own) in enumerate(sequences) for position in own]
    where = torch.tensor(places, dtype=torch.int64, device=model.device)
    targets = input_ids.flatten()[where + 1]
    hidden = model.hidden(input_ids).flatten(0, 1)
    losses = token_losses(model.head, hidden[where.to(hidden.device)], targets.to(hidden.device), byte_budget).cpu()
    bounds = [0]
    for _, own in sequences:
        bounds.append(bounds[-1] + len(own))
    return [losses[start:stop] for start, stop in pairwise(bounds)]
