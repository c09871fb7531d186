"""Gram matrices of segment gradients for a batch of rows, by proxy: one function that hides how each is computed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_curate.gradients.block import tap
from hf_curate.gradients.exact import exact_gram
from hf_curate.gradients.gram import factored_gram
from hf_curate.gradients.upstream import BYTE_BUDGET, Segments, pooled_signals, token_signals

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel

Spans = Sequence[Sequence[int]]
"""Label positions of each segment of one row."""


def _labels(spans: Spans) -> list[int]:
    return sorted({position for span in spans for position in span})


def segment_grams(
    model: LanguageModel, input_ids: Tensor, rows: Sequence[Spans], proxy: str, *, byte_budget: int = BYTE_BUDGET
) -> list[tuple[Tensor, Tensor]]:
    """Inner products of the segments' mean gradients, row by row.

    Args:
        model: the loaded language model.
        input_ids: [B, T] token ids, right-padded with anything.
        rows: for each of the B rows its segments, each a list of label positions (1 <= position < T).
        proxy: "representation", "outer", "last" or "exact" (all linear layers).
        byte_budget: bound on temporary memory beyond the forward pass.

    Returns:
        For each row: gram [S, S] and the losses of its distinct labels in order, on the CPU; losses in float32 or
        wider, the gram in float64, where squares of very small gradients have room.
    """
    if proxy == "exact":
        return [
            exact_row(model, ids[: max(_labels(spans)) + 1], spans) for ids, spans in zip(input_ids, rows, strict=True)
        ]
    labels = [_labels(spans) for spans in rows]
    width = input_ids.shape[1]
    where = torch.tensor(
        [row * width + position - 1 for row, own in enumerate(labels) for position in own], device=input_ids.device
    )
    targets = input_ids.flatten()[where + 1]
    starts = [0]
    for own in labels:
        starts.append(starts[-1] + len(own))
    local = [
        [[index[position] for position in span] for span in spans]
        for spans, index in (
            (spans, {p: i for i, p in enumerate(own)}) for spans, own in zip(rows, labels, strict=True)
        )
    ]
    if proxy == "representation":
        return _representation(model, input_ids, where, targets, local, starts, byte_budget)
    return _factored(model, input_ids, where, targets, local, starts, proxy, byte_budget)


def exact_row(model: LanguageModel, ids: Tensor, spans: Spans, parameters: str = "linear") -> tuple[Tensor, Tensor]:
    """Gram and losses of one row by plain autograd over a parameter set."""
    gram, losses = exact_gram(model.model, ids, spans, parameters)
    return gram.cpu().double(), losses[_labels(spans)].cpu()


@torch.no_grad()
def _representation(
    model: LanguageModel,
    input_ids: Tensor,
    where: Tensor,
    targets: Tensor,
    local: list[list[list[int]]],
    starts: list[int],
    byte_budget: int,
) -> list[tuple[Tensor, Tensor]]:
    hidden = model.hidden(input_ids).flatten(0, 1)[where.to(model.head.weight.device)]
    spans = [[start + i for i in span] for start, row in zip(starts, local, strict=False) for span in row]
    gradients, losses = pooled_signals(model.head, hidden, targets.to(hidden.device), Segments.of(spans), byte_budget)
    results, first = [], 0
    for row, (start, stop) in zip(local, pairwise(starts), strict=True):
        own = gradients[first : first + len(row)]
        own = (own.cpu() if own.device.type == "mps" else own).double()  # MPS has no float64
        results.append(((own @ own.T).cpu(), losses[start:stop].cpu()))
        first += len(row)
    return results


def _factored(
    model: LanguageModel,
    input_ids: Tensor,
    where: Tensor,
    targets: Tensor,
    local: list[list[list[int]]],
    starts: list[int],
    proxy: str,
    byte_budget: int,
) -> list[tuple[Tensor, Tensor]]:
    with tap(model.decoder) if proxy == "last" else nullcontext() as taps, torch.set_grad_enabled(proxy == "last"):
        states = model.hidden(input_ids)
    chosen = states.detach().flatten(0, 1)[where.to(states.device)]
    signals, losses = token_signals(model.head, chosen, targets.to(chosen.device), byte_budget)
    # a NaN of one row would spread through the shared backward of `last`; its loss already tells
    layers = [(chosen, signals)] if taps is None else taps.pairs(states, where, signals.nan_to_num(0.0, 0.0, 0.0))
    results = []
    for row, (start, stop) in zip(local, pairwise(starts), strict=True):
        own = [(a[start:stop], b[start:stop]) for a, b in layers]
        gram = factored_gram(own, Segments.of(row), byte_budget)
        results.append((gram, losses[start:stop].cpu()))
    return results
