"""How the rollouts of one pass lie before the model: each in a padded row of its own, or all behind one prompt.

`Padded` is what every causal model can read. `Shared` is one row that holds the prompt once and then the responses one
after the other, without padding: its tokens are as many as there are different ones. Which tokens a response sees is
then the attention's business (`gradients.shared`); everything else in a model looks at one token at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hf_curate.batches import TALLY, Rollout, pad


def one_prompt(rollouts: Sequence[Rollout]) -> bool:
    """Whether all of them answer the same prompt, token for token."""
    first = rollouts[0]
    prompt = first.input_ids[: first.start]
    return all(r.start == first.start and r.input_ids[: r.start] == prompt for r in rollouts[1:])


class Padded:
    """Rollouts as rows [K, T], padded on the right.

    before: [N] places (in the K * T) that predict a response token; labels: [N] those tokens; rows: [N] whose they
    are; inputs: what the decoder takes.
    """

    def __init__(self, rollouts: Sequence[Rollout], device: torch.device, positions: bool = False) -> None:
        ids = pad(rollouts, device)
        self.rollouts, self.shape = list(rollouts), tuple(ids.shape)
        self.inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if positions:  # one row of positions for all could not be told apart
            self.inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        places = [(row, t) for row, own in enumerate(rollouts) for t in range(own.start, len(own.input_ids))]
        width = ids.shape[1]
        self.rows = torch.tensor([row for row, _ in places], device=device)
        self.before = torch.tensor([row * width + t - 1 for row, t in places], device=device)
        self.labels = torch.tensor([rollouts[row].input_ids[t] for row, t in places], device=device)
        self.positions = [t for _, t in places]

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether something of this shape has the rows of the batch in front, with their tokens beside or within."""
        rows, tokens = self.shape
        if len(shape) >= 3 and shape[0] == rows:
            return tokens in shape[1:]
        return len(shape) >= 1 and shape[0] == rows * tokens

    def by_rollout(self, values: Tensor) -> Tensor:
        """[K] sums of something that `holds` says is of the rollouts."""
        return values.reshape(self.shape[0], -1).sum(dim=1)


class Shared:
    """Rollouts of one prompt as a single row [1, L]: the prompt, then each response. Attributes as of `Padded`.

    prompt: its tokens P; owners: [L] whose each token is, K for those of the prompt; own: [K, R] where a response's
    tokens lie, its last one again behind its end; back: where in these K * R each of the responses' tokens is found.
    """

    def __init__(self, rollouts: Sequence[Rollout], device: torch.device, taken: Collection[int] = ()) -> None:
        """taken: lengths that other dimensions of the model have; the row is made one longer than these, since the
        tokens of something are recognised by their number."""
        self.rollouts = list(rollouts)
        self.prompt = rollouts[0].start
        responses = [own.input_ids[own.start :] for own in rollouts]
        ids = [*rollouts[0].input_ids[: self.prompt], *(token for own in responses for token in own)]
        positions = [*range(self.prompt), *(self.prompt + t for own in responses for t in range(len(own)))]
        owners = [len(rollouts)] * self.prompt + [row for row, own in enumerate(responses) for _ in own]
        starts = [self.prompt, *(self.prompt + end for end in accumulate(map(len, responses)))][:-1]
        longest, both = max(map(len, responses)), list(zip(starts, responses, strict=True))
        places = [[start + min(t, len(own) - 1) for t in range(longest)] for start, own in both]
        back = [row * longest + t for row, own in enumerate(responses) for t in range(len(own))]
        before = [start + t - 1 if t else self.prompt - 1 for start, own in both for t in range(len(own))]
        length = len(ids)
        while length in taken:
            length += 1
        self.spare = length - len(ids)
        TALLY.add(len(ids), length)
        ids, positions = ids + ids[-1:] * self.spare, positions + positions[-1:] * self.spare

        def tensor(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self.shape = (1, length)
        self.inputs = {"input_ids": tensor([ids]), "position_ids": tensor([positions]), "use_cache": False}
        self.owners = tensor(owners + [len(rollouts)] * self.spare)
        self.own, self.back = tensor(places), tensor(back)
        self.rows = tensor([row for row, own in enumerate(responses) for _ in own])
        self.before = tensor(before)
        self.labels = tensor([token for own in responses for token in own])
        self.positions = [self.prompt + t for own in responses for t in range(len(own))]

    def _axis(self, shape: Sequence[int]) -> int | None:
        """Which dimension the tokens are."""
        length = self.shape[1]
        if len(shape) >= 1 and shape[0] == length:
            return 0
        if len(shape) >= 2 and shape[0] == 1:
            return next((axis for axis in range(1, len(shape)) if shape[axis] == length), None)
        return None

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether something of this shape has all tokens of the row as one dimension."""
        return self._axis(shape) is not None

    def by_rollout(self, values: Tensor) -> Tensor:
        """[K] sums over the responses' own tokens; those of the prompt belong to nobody alone."""
        axis = self._axis(values.shape)
        assert axis is not None
        each = values.movedim(axis, 0).reshape(self.shape[1], -1).sum(dim=1)
        return each.new_zeros(len(self.rollouts) + 1).index_add_(0, self.owners, each)[:-1]


Layout = Padded | Shared
