"""Running out of memory: what it looks like, and how many tokens go through the model at a time after it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

GROWS_AFTER = 8
"""Batches in a row that fit before more tokens are tried again."""
LONGEST_WAIT = 256
"""The same at most, where more tokens fail again and again."""
SAYS = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "can't allocate memory",  # the CPU's allocator on Linux
    "not enough memory",  # and on Windows
    "Invalid buffer size",  # MPS, of a tensor that is too large by itself
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
)
"""What a RuntimeError says that means it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's refusal: torch's on any device, Python's or numpy's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAYS)


def attempt(work: Callable[[], T]) -> tuple[T] | None:
    """What `work` gives, in a tuple; None where memory did not suffice, with all that it had made gone."""
    try:
        return (work(),)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    _release()  # not before here: the error's traceback holds the tensors of every frame
    return None


def _release() -> None:
    """Gives back what nothing refers to any more, and what the allocators of accelerators keep for later."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


class TokenBudget:
    """How many tokens go through the model at a time: `limit`, and fewer after they did not fit.

    After some batches that fit, twice as many are tried, up to the limit; after more and more of them where that keeps
    failing.

    now: from 1 to `limit`; say: is told of each change, in a sentence.
    """

    def __init__(self, limit: int, say: Callable[[str], None] | None = None) -> None:
        self.limit = self.now = limit
        self._say = say
        self._fitted, self._wait = 0, GROWS_AFTER
        self._has_grown = False

    def shrink(self, failed: int, to: int | None = None) -> None:
        """A batch of `failed` padded tokens did not fit: half of it from here on, or `to`."""
        failed = min(failed, self.now)
        self.now = max(1, failed // 2 if to is None else to)
        if self._has_grown:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._fitted, self._has_grown = 0, False
        self.tell(f"out of memory at {failed:,} padded tokens: goes on with {self.now:,}")

    def fits(self) -> None:
        """A batch was within the memory."""
        self._fitted += 1
        if self.now >= self.limit or self._fitted < self._wait:
            return
        self.now = min(2 * self.now, self.limit)
        self._fitted, self._has_grown = 0, True
        self.tell(f"{self._wait:,} batches have fitted since memory ran out: goes on with {self.now:,} padded tokens")

    def tell(self, sentence: str) -> None:
        """Whoever listens, of what memory that ran out has led to."""
        if self._say is not None:
            self._say(sentence)


def as_budget(batch_tokens: int | TokenBudget) -> TokenBudget:
    """A number of tokens as a budget of its own."""
    return batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
