"""The verifier of mathematical answers: what it calls right, and what hangs, dies or cannot be read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import judges
import pytest
from tiny import run_script

from hf_curate import CurateError, verifier
from hf_curate.errors import MissingPackageError, RowError
from hf_curate.rollouts import mathematics
from hf_curate.rollouts.mathematics import Mathematics
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Verdict


@pytest.fixture(scope="module")
def contract() -> Iterator[Mathematics]:
    made = Mathematics()
    yield made
    made.close()


@pytest.fixture(scope="module")
def quick() -> Iterator[Mathematics]:
    made = Mathematics(timeout=2)
    yield made
    made.close()


@pytest.fixture
def standing_in(quick: Mathematics, monkeypatch: pytest.MonkeyPatch) -> Mathematics:
    """Its processes do what completions say."""
    monkeypatch.setattr(mathematics, "judge", judges.judge)
    return quick


def outcomes(contract: Mathematics, completions: list[str], gold: Any) -> list[str]:
    results = contract.verify(completions, [{"answer": gold}] * len(completions))
    return [result.outcome if isinstance(result, Verdict) else str(result) for result in results]


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"\frac{1}{2}", [r"\boxed{\frac{2}{4}}", "$0.5$", "The answer is 1/2.", r"\boxed{50\%}"], [r"\boxed{2}"]),
        ("1,000", [r"\boxed{1000}", "$1000.0$"], [r"\boxed{1}"]),
        (72, ["the final answer is 72", "#### 72"], ["the final answer is 27"]),
        ("x = 2 #### 72", [r"\boxed{72}"], [r"\boxed{2}"]),
        (r"\{1, 2\}", [r"\boxed{\{2, 1\}}"], [r"\boxed{\{1\}}"]),
        ("(1, 2]", ["$(1,2]$"], ["$[1,2]$", "$(1,2)$"]),
        (r"$\sqrt{8}$", [r"$2\sqrt{2}$"], [r"$\sqrt{2}$"]),
        (r"2\pi", [r"\boxed{2\pi}"], [r"\boxed{2}"]),
        ("50%", [r"\boxed{0.5}"], [r"\boxed{0.05}"]),
        ("x^2 + 2x + 1", ["$(x+1)^2$"], ["$(x-1)^2$"]),
        (r"\text{blue}", [r"\boxed{\text{blue}}"], [r"\boxed{\text{red}}"]),
    ],
)
def test_equal_mathematics_is_right(contract: Mathematics, gold: Any, right: list[str], wrong: list[str]) -> None:
    assert outcomes(contract, right + wrong, gold) == [RIGHT] * len(right) + [WRONG] * len(wrong)


def test_the_gold_is_the_first_of_the_two(contract: Mathematics) -> None:
    assert outcomes(contract, ["$(1,2)$"], "$1<x<2$") == [RIGHT]
    assert outcomes(contract, ["$1<x<2$"], "$(1,2)$") == [WRONG]


def test_what_is_no_mathematics_cannot_be_parsed(contract: Mathematics) -> None:
    assert outcomes(contract, [r"\boxed{}", "", "no idea", "\ud800"], "72") == [UNPARSED] * 4
    [result] = contract.verify([r"\boxed{72}"], [{"answer": "72"}])
    assert result == Verdict(RIGHT, 1.0, "72")


def test_a_gold_answer_that_cannot_be_read_is_no_verdict(contract: Mathematics) -> None:
    rows = [{"answer": "}{"}, {"answer": None}, {"answer": "72"}]
    unread, missing, right = contract.verify([r"\boxed{72}"] * 3, rows)
    assert str(unread) == "gold unreadable: math-verify finds nothing in '}{' of column 'answer'"
    assert str(missing) == "gold missing: column 'answer' holds None"
    assert isinstance(right, Verdict)
    assert contract(completions=[r"\boxed{72}"] * 3, answer=["}{", None, 72]) == [None, None, 1.0]


def test_an_answer_of_a_megabyte_gets_an_outcome(contract: Mathematics, quick: Mathematics) -> None:
    texts = ["lorem ipsum 12 " * 70_000 + r"\boxed{72}", "$" * 1_000_000]
    assert outcomes(contract, texts, "72") == [RIGHT, UNPARSED]
    digits = [r"\boxed{" + "7" * 1_000_000 + "}", "$72$"]
    assert outcomes(quick, digits, "72")[0] in (WRONG, UNPARSED)  # its parsing takes seconds, or too many of them
    assert outcomes(quick, digits[1:], "72") == [RIGHT]


def test_an_answer_that_cannot_be_evaluated_runs_into_the_limit(quick: Mathematics) -> None:
    power, fine = quick.verify(["$10^{10^{10}}$", "$72$"], [{"answer": "72"}] * 2)
    assert power == Verdict(UNPARSED, 0.0, "no verdict within 2 s")
    assert fine == Verdict(RIGHT, 1.0, "72")


def test_it_works_outside_the_main_thread() -> None:
    found: list[Any] = []
    made = Mathematics(workers=1)
    thread = threading.Thread(target=lambda: found.extend(outcomes(made, [r"\boxed{72}"], 72)))
    thread.start()
    thread.join(60)
    assert found == [RIGHT]
    assert outcomes(made, [r"\boxed{73}"], 72) == [WRONG]
    made.close()


# -- processes --------------------------------------------------------------------------------------------------------


def test_processes_that_hang_or_die_cost_their_own_completion_alone(standing_in: Mathematics) -> None:
    texts = ["a", "hang", "b", "exit3", "c", "killed", "d", "raise", "e"]
    results = standing_in.verify(texts, [{"answer": "1"}] * len(texts))
    kept = [result.detail for result in results if isinstance(result, Verdict) and result.outcome == RIGHT]
    assert kept == ["a", "b", "c", "d", "e"]
    assert results[1] == Verdict(UNPARSED, 0.0, "no verdict within 2 s")
    assert results[3] == Verdict(UNPARSED, 0.0, "the process that judged it ended with exit code 3")
    assert results[5] == Verdict(UNPARSED, 0.0, "the process that judged it ended with exit code -9")
    assert isinstance(results[7], RowError)
    assert str(results[7]) == "verifier failed: MemoryError: no room"
    assert outcomes(standing_in, ["again"], "1") == [RIGHT]


def test_a_process_that_leaves_without_an_error_or_does_not_listen_runs_into_the_limit(
    standing_in: Mathematics,
) -> None:
    assert outcomes(standing_in, ["exit0", "do not listen", "fine"], "1") == [UNPARSED, UNPARSED, RIGHT]


def test_processes_that_die_between_two_calls_are_replaced() -> None:
    before, made = set(multiprocessing.active_children()), Mathematics(workers=1)
    assert outcomes(made, ["$1$"], 1) == [RIGHT]
    for child in set(multiprocessing.active_children()) - before:
        child.kill()
    time.sleep(0.5)  # long enough to be seen: a pool whose idle process dies breaks
    assert outcomes(made, ["$1$", "$2$"], 1) == [RIGHT, WRONG]
    made.close()


def test_processes_that_never_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "_begin", judges.dies_at_once)
    with pytest.raises(CurateError, match=r"none of the 2 processes of verifier 'math' could start, twice"):
        Mathematics().verify(["a"], [{"answer": "1"}])


def test_the_processes_start_late_end_on_close_and_do_not_travel() -> None:
    before = set(multiprocessing.active_children())
    made = Mathematics(workers=1)
    assert set(multiprocessing.active_children()) == before
    assert outcomes(made, ["$1$"], 1) == [RIGHT]
    [child] = set(multiprocessing.active_children()) - before
    copy = pickle.loads(pickle.dumps(made))
    assert (copy.identity, copy.workers.count, copy.options) == (made.identity, 1, made.options)
    made.close()
    child.join(10)
    assert not child.is_alive()
    assert outcomes(made, ["$2$"], 1) == [WRONG]  # started again
    del made
    assert set(multiprocessing.active_children()) == before
    assert copy.workers._pool is None


def test_a_forked_process_starts_processes_of_its_own(contract: Mathematics) -> None:
    assert outcomes(contract, ["$1$"], 1) == [RIGHT]
    assert exit_code_of_a_fork(contract, daemon=False) == 7
    assert outcomes(contract, ["$1$"], 1) == [RIGHT]  # and leaves those of its parent alone


def test_a_daemon_process_which_may_start_none_is_told_so(contract: Mathematics) -> None:
    assert exit_code_of_a_fork(contract, daemon=True) == 8


def exit_code_of_a_fork(contract: Mathematics, *, daemon: bool) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=_judges_and_exits, args=(contract,), daemon=daemon)
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    return code


def _judges_and_exits(contract: Mathematics) -> None:
    try:
        found = outcomes(contract, ["$1$", "$2$"], 1)
        contract.close()
        os._exit(7 if found == [RIGHT, WRONG] else 1)
    except CurateError as error:
        os._exit(8 if "a daemon process may start none" in str(error) else 1)


SCRIPT = """
import json
from hf_curate import verifier
{guard}
    [found] = verifier("math", workers=1).verify(["$72$"], [{{"answer": 72}}])
    print(json.dumps(found.outcome))
"""


def test_a_script_with_a_guard_ends_by_itself(tmp_path: Path) -> None:
    assert run_script(tmp_path, SCRIPT.format(guard="if __name__ == '__main__':"), timeout=60) == RIGHT


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="must stand under if __name__ == '__main__'"):
        run_script(tmp_path, SCRIPT.format(guard="if True:"), timeout=60)


# -- what cannot be made ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "package"), [("math_verify", "math-verify"), ("pebble", "pebble")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    find = mathematics.importlib.util.find_spec
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingPackageError, match=rf"needs the package '{package}': pip install 'hf_curate\[math\]'"):
        verifier("math")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "1"}, {"workers": 0}, {"workers": True}])
def test_options_without_a_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CurateError, match=f"{next(iter(options))}="):
        verifier("math", **options)


def test_the_record_holds_what_decides_and_the_packages() -> None:
    record = verifier("math", workers=3).record()
    assert record["options"] == {"gold": "answer", "timeout": 10.0}
    assert set(record["packages"]) == {"math-verify", "latex2sympy2-extended", "sympy"}
    assert "math_verify" not in sys.modules or record == verifier("math", workers=1).record()
