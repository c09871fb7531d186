"""The order in which problems come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Walk:
    """An endless seeded walk over 0..n-1: every pass visits each number once, in a new shuffle.

    No number comes twice in one batch of at most n, also where a batch reaches into the next pass: what it took from
    the pass before comes last in the new one.
    """

    def __init__(self, n: int, key: Sequence[int]) -> None:
        self.n, self.key = n, tuple(key)
        self.passes, self.at, self.late = 0, 0, []

    def take(self, count: int) -> list[int]:
        """The next `count` numbers."""
        taken: list[int] = []
        order = self._order()
        while len(taken) < count:
            if self.at == self.n:
                self.passes, self.at = self.passes + 1, 0
                self.late = list(taken) if count <= self.n else []
                order = self._order()
            more = order[self.at : self.at + count - len(taken)]
            self.at += len(more)
            taken += more
        return taken

    def peek(self, count: int) -> list[int]:
        """What `take` would give."""
        ahead = Walk(self.n, self.key)
        ahead.load(self.state())
        return ahead.take(count)

    def _order(self) -> list[int]:
        shuffled = np.random.default_rng([*self.key, self.passes]).permutation(self.n).tolist()
        late = set(self.late)
        return [number for number in shuffled if number not in late] + [n for n in shuffled if n in late]

    def state(self) -> dict[str, Any]:
        return {"passes": self.passes, "at": self.at, "late": list(self.late)}

    def load(self, state: dict[str, Any]) -> None:
        """ValueError: it is no place of this walk."""
        passes, at, late = state["passes"], state["at"], list(state["late"])
        if any(type(value) is not int or value < 0 for value in (passes, at, *late)) or at > self.n:
            raise ValueError(f"place {at!r} in pass {passes!r} of a walk over {self.n:,}")
        self.passes, self.at, self.late = passes, at, late
