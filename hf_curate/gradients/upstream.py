"""Upstream signals u_t = dL_t/dh_t of the LM head, pooled per segment or kept per token, from one forward pass.

For a token with label y the gradient of its cross-entropy with respect to the head's input is W^T (p - y_onehot).
Pooling over a segment is linear, so residuals are pooled first ([S, V]) and multiplied with W once; the [T, V] block
of probabilities exists only for one chunk of positions at a time, within a byte budget.

`head_pass` gives what a policy gradient needs of the head: the signals, its own gradient, and products with a
direction.

Covered: any `Head`, overlapping segments, half precision (the logits product runs in the model's dtype, everything
after it in float32), confident tokens (the label entry of p - y is formed as the sum of the other probabilities,
since 1 - p_y cancels), rows with NaN or infinite logits (their loss is NaN, other rows are untouched). Not covered:
sharded heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_curate.gradients.head import Head

BYTE_BUDGET = 256 * 2**20
"""Bytes for the probabilities of one chunk, the pooled residuals and widened blocks of W together."""


def byte_budget(device: torch.device) -> int:
    """The budget on a device: an accelerator has more room, and larger chunks keep it busy."""
    return BYTE_BUDGET if device.type == "cpu" else 4 * BYTE_BUDGET


@dataclass(frozen=True)
class Segments:
    """Which tokens belong to which segment. A token may be in several segments, or in none.

    tokens, segments: [M] int64 on the CPU, one pair per membership, sorted by token; count: the number of segments S.
    """

    tokens: Tensor
    segments: Tensor
    count: int

    @classmethod
    def of(cls, spans: Sequence[Sequence[int]]) -> Segments:
        """From one list of token indices per segment."""
        pairs = sorted((token, segment) for segment, span in enumerate(spans) for token in span)
        both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return cls(both[:, 0].contiguous(), both[:, 1].contiguous(), len(spans))

    def sizes(self) -> Tensor:
        """[S] tokens per segment, int64."""
        return torch.bincount(self.segments, minlength=self.count)

    def matrix(self, tokens: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """[S, tokens] averaging matrix: 1/|T| where the token is in the segment."""
        matrix = torch.zeros(self.count, tokens, dtype=dtype)
        matrix[self.segments, self.tokens] = 1.0 / self.sizes()[self.segments].to(dtype)
        return matrix.to(device)


@dataclass(frozen=True)
class _Residuals:
    """p - y of one chunk as `mass * scale - onehot(label) * label_mass`: mass [c, V] is 0 at the label."""

    start: int
    stop: int
    mass: Tensor
    scale: Tensor
    label_mass: Tensor
    losses: Tensor


def _residuals(head: Head, hidden: Tensor, labels: Tensor, start: int, stop: int) -> _Residuals:
    logits = head.logits(hidden[start:stop])
    label = labels[start:stop, None]
    slope = head.slope(logits)
    label_slope = None if slope is None else slope.gather(1, label)[:, 0]
    top = logits.amax(dim=1, keepdim=True)
    label_logit = logits.gather(1, label) - top
    mass = logits.sub_(top).exp_()
    label_weight = mass.gather(1, label)[:, 0]
    mass.scatter_(1, label, 0.0)
    others = mass.sum(dim=1)
    total = others + label_weight
    losses = total.log() - label_logit[:, 0]
    bad = ~torch.isfinite(losses)
    if bool(bad.any()):  # 0 * NaN would spread to other rows of the chunk
        losses = losses.masked_fill(bad, float("nan"))
        mass[bad] = 0.0
        others = others.masked_fill(bad, 0.0)
        total = total.masked_fill(bad, 1.0)
        if slope is not None:
            slope[bad] = 0.0
    if slope is not None and label_slope is not None:
        mass.mul_(slope)
        others = others * label_slope.masked_fill(bad, 0.0)
    return _Residuals(start, stop, mass, total.reciprocal(), others / total, losses)


def _bytes_per_token(head: Head) -> int:
    wide = torch.finfo(head.accumulate).bits // 8
    narrow = 0 if head.weight.dtype == head.accumulate else head.weight.element_size()
    return head.vocabulary * (narrow + wide * (3 if head.softcap is not None else 1))


def _chunks(segments: Segments, tokens: int, chunk: int, room: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, first membership, last membership) of runs of tokens that touch at most `room` segments each."""
    owner, segment = segments.tokens.tolist(), segments.segments.tolist()
    start, member = 0, 0
    while start < tokens:
        stop, end, touched = start, member, set()
        while stop < tokens and stop - start < chunk:
            after = end
            while after < len(owner) and owner[after] == stop:
                after += 1
            wider = touched.union(segment[end:after])
            if len(wider) > room and stop > start:
                break
            end, touched, stop = after, wider, stop + 1
        yield start, stop, member, end
        start, member = stop, end


@torch.no_grad()
def pooled_signals(
    head: Head, hidden: Tensor, labels: Tensor, segments: Segments, byte_budget: int = BYTE_BUDGET
) -> tuple[Tensor, Tensor]:
    """Mean upstream signal of each segment, and the loss of each token.

    Args:
        hidden: [N, d] head inputs at the positions that predict the labels, in the model's dtype.
        labels: [N] int64 label ids.
        segments: memberships over the N tokens.
        byte_budget: bound on the temporary memory, apart from the [S, d] result.

    Returns:
        gradients [S, d] and losses [N], both float32 (float64 for a float64 model). A token whose loss is not finite
        has loss NaN and adds nothing to its segment.
    """
    count, width = len(labels), hidden.shape[1]
    gradients = torch.zeros(segments.count, width, dtype=head.accumulate, device=hidden.device)
    losses = torch.empty(count, dtype=head.accumulate, device=hidden.device)
    wide = gradients.element_size()
    chunk = max(1, byte_budget // 2 // _bytes_per_token(head))
    most = int(torch.bincount(segments.tokens).max()) if len(segments.tokens) else 0  # segments that share one token
    room = max(most, min(segments.count, byte_budget // 4 // (head.vocabulary * wide)), 1)
    pooled = torch.zeros(room, head.vocabulary, dtype=head.accumulate, device=hidden.device)
    rows: dict[int, int] = {}  # segment -> its row of `pooled`

    def flush() -> None:
        if rows:
            where = torch.tensor(list(rows), device=hidden.device)
            gradients[where] += head.back(pooled[: len(rows)], byte_budget // 4)
            pooled[: len(rows)].zero_()
            rows.clear()

    for start, stop, first, last in _chunks(segments, count, chunk, room):
        part = _residuals(head, hidden, labels, start, stop)
        losses[start:stop] = part.losses
        if first == last:
            continue
        owners = segments.segments[first:last].tolist()
        if len(rows.keys() | set(owners)) > room:
            flush()
        for owner in owners:
            rows.setdefault(owner, len(rows))
        row = torch.tensor([rows[owner] for owner in owners], device=hidden.device)
        low, high = int(row.min()), int(row.max())
        token = (segments.tokens[first:last] - start).to(hidden.device)
        member = torch.zeros(high - low + 1, stop - start, dtype=head.accumulate, device=hidden.device)
        member[row - low, token] = 1.0
        pooled[low : high + 1].addmm_(member * part.scale, part.mass)
        pooled.index_put_((row, labels[start:stop][token]), -part.label_mass[token], accumulate=True)
        del part  # before the next chunk is formed
    flush()
    return gradients / segments.sizes().clamp(min=1).to(gradients)[:, None], losses


@torch.no_grad()
def token_signals(head: Head, hidden: Tensor, labels: Tensor, byte_budget: int = BYTE_BUDGET) -> tuple[Tensor, Tensor]:
    """u_t of every token: hidden [N, d], labels [N] -> signals [N, d] and losses [N], float32.

    One more head-sized product than `pooled_signals`.
    """
    done = head_pass(head, hidden, labels, byte_budget=byte_budget)
    return done.signals, done.losses


@dataclass(frozen=True)
class HeadPass:
    """What the head does to N tokens, in float32 (float64 for a float64 model).

    signals: [N, d] u_t = dL_t/dh_t; losses: [N], NaN where not finite (its signal is then 0); weight, bias: gradient
    of sum_t weight_t L_t with respect to the head's own, or None; products: [N] <dL_t/d(weight, bias), direction>, or
    None.
    """

    signals: Tensor
    losses: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    products: Tensor | None = None


@torch.no_grad()
def head_pass(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    direction: tuple[Tensor | None, Tensor | None] = (None, None),
    byte_budget: int = BYTE_BUDGET,
) -> HeadPass:
    """Upstream signals of N tokens; on demand also the gradient of the head itself and its products with a direction.

    Args:
        hidden: [N, d] head inputs, in the model's dtype; labels: [N] int64.
        weights: [N] of the tokens' losses, for the head's own gradient; None leaves it out.
        direction: (for the weight [V, d], for the bias [V]), each or both None.
        byte_budget: bound on the temporary memory beyond the results.
    """
    wide, count = head.accumulate, len(labels)
    signals = torch.empty(count, hidden.shape[1], dtype=wide, device=hidden.device)
    losses = torch.empty(count, dtype=wide, device=hidden.device)
    grown = None if weights is None else torch.zeros(head.weight.shape, dtype=wide, device=hidden.device)
    shift = None if weights is None or head.bias is None else torch.zeros(head.bias.shape).to(grown)  # type: ignore[arg-type]
    along, offset = direction
    products = None if along is None and offset is None else torch.zeros(count, dtype=wide, device=hidden.device)
    chunk = max(1, byte_budget // (2 if products is None else 4) // _bytes_per_token(head))
    for start in range(0, count, chunk):
        part = _residuals(head, hidden, labels, start, min(start + chunk, count))
        here = slice(part.start, part.stop)
        losses[here] = part.losses
        residual = part.mass.mul_(part.scale[:, None]).scatter_(1, labels[here, None], -part.label_mass[:, None])
        signals[here] = head.back(residual, byte_budget // 4)
        if products is not None:
            if along is not None:
                moved = hidden[here].to(wide) @ along.to(wide).T
                products[here] += moved.mul_(residual).sum(dim=1).mul_(head.scale)
                del moved
            if offset is not None:
                products[here] += (residual @ offset.to(wide)).mul_(head.scale)
        if grown is not None and weights is not None:
            residual.mul_(weights[here, None].to(wide)).mul_(head.scale)
            grown.addmm_(residual.T, hidden[here].to(wide))
            if shift is not None:
                shift += residual.sum(dim=0)
        del part, residual  # before the next chunk is formed
    return HeadPass(signals, losses, grown, shift, products)
