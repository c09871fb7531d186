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

from hf_curate.gradients.head import Head, LogitBlock

BYTE_BUDGET = 256 * 2**20
"""Bytes for the probabilities of one chunk, the pooled residuals and widened blocks of W together."""

CACHED_BYTES = 2**20
"""Of a core's own cache: rows of logits that each thread works on at a time."""


def in_caches(device: torch.device) -> bool:
    """Whether it pays to work on a few rows at a time, and in place: on a CPU. An accelerator wants few and large
    kernels, and keeps the memory that is freed."""
    return device.type == "cpu"


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
    """p - y of one chunk as `mass * scale`, row by row, and the losses.

    mass: [c, V], the label's entry is minus the sum of the others.
    """

    mass: Tensor
    scale: Tensor
    losses: Tensor


class _Chunk:
    """Residuals of one chunk of positions after the other, in the same memory."""

    def __init__(self, head: Head, rows: int, device: torch.device) -> None:
        self.head = head
        self.in_place = in_caches(device)
        self._block = LogitBlock(head, rows, device) if self.in_place else None

    def residuals(self, hidden: Tensor, labels: Tensor) -> _Residuals:
        """hidden [c, d], labels [c]. The mass is overwritten by the next call."""
        head, label = self.head, labels[:, None]
        if self.in_place or not head.is_plain:
            logits = head.logits(hidden, self._block)
        else:
            logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
        slope = head.slope(logits)
        own = logits.gather(1, label)[:, 0].to(head.accumulate)
        logits.scatter_(1, label, -torch.inf)
        mass, others, reference = by_blocks(logits) if self.in_place else by_softmax(logits, head.accumulate)
        alone = reference == -torch.inf  # no other token has any probability
        odds = (reference - own + others.log()).masked_fill_(alone, -torch.inf)  # log((1 - p_y) / p_y)
        losses = torch.nn.functional.softplus(odds)
        bad = ~(torch.isfinite(own) & torch.isfinite(losses))
        mass.scatter_(1, label, -others[:, None])
        if slope is not None:
            mass.mul_(slope)
        scale = odds.sigmoid_() / others
        if bool((bad | alone).any()):  # 0 * NaN would spread to other rows of the chunk
            mass[bad | alone] = 0.0
            scale.masked_fill_(bad | alone, 0.0)
            losses.masked_fill_(bad, torch.nan)
        return _Residuals(mass, scale, losses)


def by_blocks(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logit - reference) in place of the logits [c, V], its sum and the reference of each row: on a CPU, a few
    rows at a time, that stay in its caches from one operation to the next."""
    others, reference = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    rows = torch.get_num_threads() * max(1, CACHED_BYTES // (logits.shape[1] * logits.element_size()))
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows]
        top = torch.amax(part, dim=1, out=reference[start : start + rows])
        torch.sum(part.sub_(top[:, None]).exp_(), dim=1, out=others[start : start + rows])
    return logits, others, reference


def by_softmax(logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The same from logits in the model's dtype: on an accelerator, where passes over memory are what costs, one
    kernel reads them and writes float32. The reference is the logarithm of the sum, which the largest tells."""
    top, where = logits.max(dim=1, keepdim=True)
    mass = torch.softmax(logits, dim=1, dtype=dtype)
    reference = (top.to(dtype) - mass.gather(1, where).log())[:, 0]
    reference = torch.where(top[:, 0] == -torch.inf, -torch.inf, reference)
    return mass, torch.ones_like(reference), reference


def _bytes_per_token(head: Head) -> int:
    wide = torch.finfo(head.accumulate).bits // 8
    narrow = 0 if head.weight.dtype == head.accumulate else head.weight.element_size()
    blocks = 1 if in_caches(head.weight.device) or (narrow and head.is_plain) else 2
    return head.vocabulary * (narrow + wide * (blocks + (2 if head.softcap is not None else 0)))


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

    chunks = _Chunk(head, min(chunk, count), hidden.device)
    for start, stop, first, last in _chunks(segments, count, chunk, room):
        part = chunks.residuals(hidden[start:stop], labels[start:stop])
        losses[start:stop] = part.losses
        if first == last:
            continue
        owners = segments.segments[first:last].tolist()
        if len(rows.keys() | set(owners)) > room:
            flush()
        for owner in owners:
            rows.setdefault(owner, len(rows))
        row = [rows[owner] for owner in owners]
        _pool(pooled, row, (segments.tokens[first:last] - start).tolist(), part)
        del part  # before the next chunk is formed
    flush()
    return gradients / segments.sizes().clamp(min=1).to(gradients)[:, None], losses


def _pool(pooled: Tensor, rows: list[int], tokens: list[int], part: _Residuals) -> None:
    """Adds the residual of each token to its row of `pooled` [room, V]."""
    if not in_caches(pooled.device):  # one product: zeros cost less than more kernels
        low, high = min(rows), max(rows)
        member = torch.zeros(high - low + 1, len(part.scale), dtype=pooled.dtype)
        member[torch.tensor(rows) - low, torch.tensor(tokens)] = 1.0
        pooled[low : high + 1].addmm_(member.to(pooled.device) * part.scale, part.mass)
        return
    members: dict[int, list[int]] = {}
    for row, token in zip(rows, tokens, strict=True):
        members.setdefault(row, []).append(token)
    for row, own in members.items():  # a segment is a run of tokens, mostly: no zeros, each residual is read once
        low, high = own[0], own[-1] + 1
        weights = part.scale[low:high]
        if len(own) < high - low:
            weights = torch.zeros_like(weights).index_copy_(0, torch.tensor(own) - low, part.scale[own])
        pooled[row : row + 1].addmm_(weights[None], part.mass[low:high])


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
    chunks = _Chunk(head, min(chunk, count), hidden.device)
    for start in range(0, count, chunk):
        here = slice(start, min(start + chunk, count))
        part = chunks.residuals(hidden[here], labels[here])
        losses[here] = part.losses
        scale = part.scale.mul(head.scale)
        torch.mul(head.back(part.mass, byte_budget // 4), part.scale[:, None], out=signals[here])
        if products is not None:
            if along is not None:
                moved = hidden[here].to(wide) @ along.to(wide).T
                products[here] += moved.mul_(part.mass).sum(dim=1).mul_(scale)
                del moved
            if offset is not None:
                products[here] += (part.mass @ offset.to(wide)).mul_(scale)
        if grown is not None and weights is not None:
            residual = part.mass.mul_(scale.mul_(weights[here].to(wide))[:, None])
            grown.addmm_(residual.T, hidden[here].to(wide))
            if shift is not None:
                shift += residual.sum(dim=0)
        del part  # before the next chunk is formed
    return HeadPass(signals, losses, grown, shift, products)
