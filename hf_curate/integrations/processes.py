"""The processes of a training that each score a part of the problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from accelerate.utils import broadcast_object_list, gather_object

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_curate.gradients.directions import Direction
    from hf_curate.scorers.fitting import Counts

Item = TypeVar("Item")


@dataclass
class Processes:
    """Every process calls the same methods in the same order; one process alone asks nobody."""

    accelerator: Accelerator

    @property
    def several(self) -> bool:
        return self.accelerator.num_processes > 1

    @property
    def first(self) -> bool:
        """Whether this one decides, and shows progress."""
        return self.accelerator.is_main_process

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """This process's part: every n-th item."""
        return list(items[self.accelerator.process_index :: self.accelerator.num_processes])

    def all_of(self, mine: list[Item]) -> list[Item]:
        """All processes' items, in the order that `mine` took them from."""
        parts = self.each(mine)
        return [parts[place % len(parts)][place // len(parts)] for place in range(sum(map(len, parts)))]

    def each(self, own: Item) -> list[Item]:
        """One object from each process, by their number."""
        return gather_object([own]) if self.several else [own]

    def from_first(self, own: Item) -> Item:
        """The first process's object, in all of them."""
        shared = [own]
        if self.several:
            broadcast_object_list(shared, from_process=0)
        return shared[0]

    def together(self, direction: Direction, counts: Counts) -> None:
        """The mean over the problems of all processes, in place of that over this one's."""
        import torch.distributed as dist

        readable = counts.readable
        for number, other in enumerate(self.each(counts)):
            if number != self.accelerator.process_index:
                counts.add(other)
        for tensor in direction.tensors.values():
            dist.all_reduce(tensor.mul_(readable / max(counts.readable, 1)))
