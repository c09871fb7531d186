"""What running out of memory looks like on each device, what is let go then, and how a budget shrinks and grows."""

from __future__ import annotations

import sys
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_curate.errors import CurateError
from hf_curate.memory import GROWS_AFTER, LONGEST_WAIT, TokenBudget, as_budget, attempt, is_out_of_memory

REFUSALS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.OutOfMemoryError(),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.10 GiB, other allocations: 380.00 MiB)"),
    RuntimeError("Invalid buffer size: 24.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RecursionError("maximum recursion depth exceeded"),
    CurateError("a file that is named 'out of memory'"),
    OSError("Cannot allocate memory"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_every_allocators_words_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)

    def work() -> None:
        raise error

    with pytest.raises(type(error)):
        attempt(work)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(10**15, dtype=torch.uint8),
        lambda: torch.zeros(2**25).expand(2**25, 2**25).contiguous(),
        lambda: np.empty(10**15, dtype=np.uint8),
        lambda: bytearray(10**15),
    ],
    ids=["torch", "torch's copy", "numpy", "Python"],
)
def test_what_this_machine_says_of_a_petabyte_is_understood(allocate: Any) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)
    assert attempt(allocate) is None


def test_what_fits_comes_back_also_when_it_is_none() -> None:
    assert attempt(lambda: 7) == (7,)
    assert attempt(lambda: None) == (None,)


class Large:
    """Something that takes memory, and that a cycle may hold."""

    def __init__(self) -> None:
        self.itself: Any = None


@pytest.mark.parametrize("cycle", [False, True])
def test_nothing_of_a_failed_attempt_is_there_when_caches_are_emptied(
    cycle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Large]] = []
    left: list[Any] = []

    def work() -> None:
        large = Large()
        large.itself = large if cycle else None
        made.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append((made[0](), sys.exc_info()[1])))
    assert attempt(work) is None
    assert left == [(None, None)]


# -- the budget -------------------------------------------------------------------------------------------------------


def fit(budget: TokenBudget, times: int) -> None:
    for _ in range(times):
        budget.fits()


def test_a_budget_halves_what_failed_and_doubles_after_what_fits() -> None:
    said: list[str] = []
    budget = TokenBudget(8192, said.append)
    fit(budget, 100)
    assert (budget.now, said) == (8192, [])
    budget.shrink(8000)
    budget.shrink(3900)
    assert budget.now == 1950
    fit(budget, GROWS_AFTER - 1)
    assert budget.now == 1950
    fit(budget, 1 + GROWS_AFTER)
    assert budget.now == 7800
    fit(budget, 10 * GROWS_AFTER)
    assert budget.now == budget.limit == 8192
    assert said == [
        "out of memory at 8,000 padded tokens: goes on with 4,000",
        "out of memory at 3,900 padded tokens: goes on with 1,950",
        "8 batches have fitted since memory ran out: goes on with 3,900 padded tokens",
        "8 batches have fitted since memory ran out: goes on with 7,800 padded tokens",
        "8 batches have fitted since memory ran out: goes on with 8,192 padded tokens",
    ]


def test_what_keeps_failing_is_tried_ever_more_rarely() -> None:
    budget, failures = TokenBudget(1000), []
    for batch in range(4000):
        if budget.now > 600:
            failures.append(batch)
            budget.shrink(budget.now)
        else:
            budget.fits()
    apart = np.diff(failures)
    assert apart[0] == GROWS_AFTER + 1
    assert all(later in (earlier, 2 * earlier - 1) for earlier, later in pairwise(apart))
    assert max(apart) == LONGEST_WAIT + 1


@given(st.integers(1, 10_000), st.lists(st.one_of(st.none(), st.integers(2, 20_000)), max_size=200))
def test_a_budget_stays_between_one_and_its_limit_and_tells_every_change(limit: int, events: list[int | None]) -> None:
    said: list[str] = []
    budget = TokenBudget(limit, said.append)
    for failed in events:
        before, told = budget.now, len(said)
        if failed is None:
            budget.fits()
            assert budget.now in (before, min(2 * before, limit))
            assert len(said) - told == (budget.now != before)
        else:
            budget.shrink(failed)
            assert budget.now == max(1, min(before, failed) // 2)
            assert len(said) == told + 1
        assert 1 <= budget.now <= limit


def test_a_number_is_a_budget_of_its_own() -> None:
    budget = TokenBudget(5)
    assert as_budget(budget) is budget
    assert as_budget(7).limit == 7
