"""What we rely on in `math-verify` and `pebble`. A failure here names the assumption that a new version broke."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pebble
import pytest
from math_verify import parse, verify


def read(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)  # type: ignore[arg-type]


def same(gold: str, completion: str) -> bool:
    return verify(read(gold), read(completion), timeout_seconds=None)


def in_a_thread(work: Any) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except ValueError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return found[0]


def test_without_time_limits_it_works_outside_the_main_thread_and_with_them_it_does_not() -> None:
    assert in_a_thread(lambda: same("$1$", "$1$")) is True
    failure = in_a_thread(lambda: parse("$1$"))
    assert isinstance(failure, ValueError)
    assert "signal" in str(failure)


def test_what_holds_no_mathematics_parses_to_an_empty_list() -> None:
    assert [read(text) for text in ("", " ", "hello", r"\boxed{}", "}{", r"\boxed{}{}")] == [[]] * 6


def test_the_last_item_of_what_was_read_is_its_text() -> None:
    assert [read(text)[-1] for text in ("72", r"\boxed{\frac12}", "$(1,2]$")] == ["72", r"\frac{1}{2}", "(1,2]"]


@pytest.mark.parametrize(("bare", "misread"), [("2\\pi", "2"), ("\\sqrt{2}", None), ("(1,2]", None), ("2,3", "2.3")])
def test_a_bare_expression_is_misread_and_a_boxed_one_is_not(bare: str, misread: str | None) -> None:
    assert (read(bare) or [None])[-1] == misread
    assert read(f"\\boxed{{{bare}}}")[-1] == bare


def test_the_order_of_gold_and_completion_matters() -> None:
    assert same("$1<x<2$", "$(1,2)$")
    assert not same("$(1,2)$", "$1<x<2$")


def test_the_failure_surface_is_as_we_say() -> None:
    assert same("$50$", r"$50\%$")
    assert same("$3$", "$x=3$")
    assert not same("$6$", r"\boxed{5}, no, \boxed{6}")


def test_a_pool_takes_a_time_limit_for_each_task_and_a_worker_that_dies_is_said() -> None:
    assert "timeout" in inspect.signature(pebble.ProcessPool.schedule).parameters
    assert {"max_workers", "initializer", "context"} <= set(inspect.signature(pebble.ProcessPool).parameters)
    assert pebble.ProcessExpired("ended", code=3).exitcode == 3
    pool = pebble.ProcessPool(max_workers=1)
    pool.stop()
    pool.join()
    with pytest.raises(RuntimeError):
        pool.schedule(print)
