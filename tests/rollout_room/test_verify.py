"""Verification contracts: the records, the factory, the reward-function call, and the small verifiers."""

from __future__ import annotations

import functools
import json
import pickle
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_curate import CurateError, verifier
from hf_curate.errors import ColumnsError, RowError
from hf_curate.rollouts.checkers import Choice, Exact, plain_number
from hf_curate.rollouts.verify import OUTCOMES, RIGHT, SHOWN, UNPARSED, WRONG, Verdict, Verifier, read_gold

NAMES = ("exact", "math", "choice", "countdown")


def outcome(contract: Verifier, completion: str, **row: Any) -> str:
    [result] = contract.verify([completion], [row])
    assert isinstance(result, Verdict), result
    return result.outcome


def refused(contract: Verifier, completion: str, **row: Any) -> str:
    [result] = contract.verify([completion], [row])
    assert isinstance(result, RowError), result
    return str(result)


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_json_and_repeats_the_verifier(name: str) -> None:
    one = verifier(name)
    record = json.loads(json.dumps(one.record()))
    assert set(record) == {"kind", "name", "version", "options", "columns", "packages", "failure_surface"}
    assert record["kind"] == "deterministic checker"
    assert record["failure_surface"]
    assert verifier(record["name"], **record["options"]).record() == record
    assert tuple(record["columns"]) == one.columns
    assert one.__name__ == name


@pytest.mark.parametrize("name", NAMES)
def test_a_verifier_travels(name: str) -> None:
    one = verifier(name)
    assert pickle.loads(pickle.dumps(one)).identity == one.identity


def test_the_identity_follows_the_options_and_the_version_and_not_the_words_on_failures() -> None:
    class Other(Exact):
        version = "2"

    class Reworded(Exact):
        failure_surface = "none"

    plain = verifier("exact")
    others = [verifier("exact", gold="solution"), verifier("exact", ignore_case=True), verifier("choice"), Other()]
    assert len({plain.identity, *(other.identity for other in others)}) == 5
    assert Reworded().identity == plain.identity == verifier("exact").identity


def test_a_verifier_that_is_made_passes_through() -> None:
    made = verifier("exact", ignore_case=True)
    assert verifier(made) is made
    with pytest.raises(CurateError, match="'exact' is made already"):
        verifier(made, numbers=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: verifier("exakt"), "no verifier is called 'exakt'. Did you mean 'exact'?"),
        (lambda: verifier("zzz"), "no verifier is called 'zzz'. They are 'choice', 'countdown', 'exact', 'math'."),
        (lambda: verifier("exact", ignorecase=True), "no option 'ignorecase'. Did you mean 'ignore_case'?"),
        (lambda: verifier("exact", function=1), "verifier 'exact' has no option 'function'"),
        (lambda: verifier(print, workers=2), "verifier of a reward function has no option 'workers'"),
        (lambda: verifier(3), "3 is no verifier"),  # type: ignore[arg-type]
        (lambda: verifier(Exact), "is no verifier"),
        (lambda: verifier("exact", ignore_case="yes"), "ignore_case='yes' is neither True nor False"),
        (lambda: verifier("exact", gold=""), "gold='' is not the name of a column"),
        (lambda: verifier("exact", pattern="(a)(b)"), "has 2 groups, expected 1"),
        (lambda: verifier("exact", pattern="("), "is no regular expression"),
        (lambda: verifier("exact", pattern=3), "is of type int, expected text"),
        (lambda: verifier("choice", choices="AA"), "are not letters, each once"),
        (lambda: verifier("choice", choices=""), "are not letters, each once"),
        (lambda: verifier(print, timeout=0), "timeout=0 is not a number of seconds above 0"),
    ],
)
def test_what_cannot_be_made_says_what_to_type(make: Any, said: str) -> None:
    with pytest.raises(CurateError) as caught:
        make()
    assert said in str(caught.value)


def test_a_row_is_needed_for_each_completion() -> None:
    with pytest.raises(CurateError, match="2 completions and 1 rows"):
        verifier("exact").verify(["a", "b"], [{"answer": "a"}])
    with pytest.raises(CurateError, match="one text and 1 rows"):
        verifier("exact").verify("a", [{"answer": "a"}])
    with pytest.raises(CurateError, match="completion 1 is of type NoneType"):
        verifier("exact").verify([None], [{"answer": "a"}])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("value", "gold"),
    [("72", "72"), (" reasoning\n#### 72 \n", "72"), (72, "72"), (18.0, "18"), (0.5, "0.5"), (np.float64(3), "3")],
)
def test_a_gold_answer_is_read_as_it_would_be_written(value: Any, gold: str) -> None:
    assert read_gold({"answer": value}, "answer") == gold


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "gold missing: the row has no column 'answer'"),
        ({"answer": None}, "gold missing: column 'answer' holds None"),
        ({"answer": "x #### "}, "gold missing: column 'answer' holds 'x #### '"),
        ({"answer": float("nan")}, "gold missing: column 'answer' holds nan"),
        ({"answer": True}, "wrong type: column 'answer' holds bool, expected text or a number"),
        ({"answer": ["72"]}, "wrong type: column 'answer' holds list, expected text or a number"),
    ],
)
def test_a_row_without_gold_is_not_judged(row: dict[str, Any], said: str) -> None:
    assert refused(verifier("exact"), r"\boxed{72}", **row) == said


@given(st.text(max_size=300), st.sampled_from(["exact", "choice", "countdown"]))
def test_any_text_has_one_of_the_three_outcomes(text: str, name: str) -> None:
    [result] = verifier(name).verify([text], [{"answer": "A", "numbers": [1, 2], "target": 3}])
    assert isinstance(result, Verdict)
    assert result.outcome in OUTCOMES
    assert result.reward == (result.outcome == RIGHT)
    result.detail.encode()


def test_a_detail_is_short_and_valid_unicode() -> None:
    [result] = verifier("exact").verify(["#### \ud800" + "7" * 1_000_000], [{"answer": "7"}])
    assert isinstance(result, Verdict)
    assert result.detail.startswith(r"\ud8007777")
    assert result.detail.endswith("... (1,000,001 characters)")
    assert len(result.detail) < SHOWN + 50


# -- as a reward function ---------------------------------------------------------------------------------------------


def test_called_as_trl_calls_it_it_gives_rewards_and_none_where_there_is_no_gold() -> None:
    texts = [r"\boxed{4}", r"\boxed{5}", "no mark", r"\boxed{4}"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    for completions in (texts, chats):
        rewards = verifier("exact")(
            prompts=["p"] * 4,
            completions=completions,
            completion_ids=[[1]] * 4,
            answer=["4", "4", "4", None],
            other=[1, 2, 3, 4],
            trainer_state=object(),
            log_extra=print,
        )
        assert rewards == [1.0, 0.0, 0.0, None]


def test_a_call_without_the_gold_column_names_the_near_one() -> None:
    with pytest.raises(ColumnsError, match="Did you mean gold='answers'"):
        verifier("exact")(completions=["a"], answers=["a"])
    with pytest.raises(CurateError, match=r"column 'answer' has 1 entries for 2 completions"):
        verifier("exact")(completions=["a", "b"], answer=["a"])
    with pytest.raises(CurateError, match="no completions were given"):
        verifier("exact")(prompts=["a"], answer=["a"])


def test_a_completion_of_several_messages_is_no_completion() -> None:
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    for completion, said in ((chat, "2 messages"), (chat[:1], "role 'user'"), (3, "of type int")):
        with pytest.raises(CurateError, match=said):
            verifier("exact")(completions=[completion], answer=["4"])


# -- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        (r"so \boxed{72}", "72"),
        ("x\n#### 72", "72"),
        ("x\n#### $1,000.", "1000"),
        ("#### 1000.00", "1,000"),
        (r"\boxed{\$18}", "18"),
        ("#### −5", "-5"),
        ("#### -0.0", "0"),
        ("#### +.50", "0.5"),
        ("Final answer: Paris", "Paris"),
        ("<think>no</think>\n Paris ", "Paris"),
        (r"\boxed{1} then \boxed{2}", "2"),
    ],
)
def test_exact_calls_equal_texts_and_equal_plain_numbers_right(completion: str, gold: str) -> None:
    assert outcome(verifier("exact"), completion, answer=gold) == RIGHT


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("#### 1e3", "1000"),
        ("#### 10,00", "1000"),
        ("#### 1/2", "0.5"),
        ("#### 50%", "50"),
        ("#### paris", "Paris"),
        ("#### 5", "-5"),
        ("#### ٧٢", "72"),
        (r"\boxed{2} then \boxed{1}", "2"),
    ],
)
def test_exact_does_not_guess(completion: str, gold: str) -> None:
    assert outcome(verifier("exact"), completion, answer=gold) == WRONG


def test_exact_cannot_parse_a_completion_without_a_mark() -> None:
    for completion in ("the answer is 72", "", r"\boxed{}", "####"):
        assert outcome(verifier("exact"), completion, answer="72") == UNPARSED


def test_exact_follows_its_options() -> None:
    assert outcome(verifier("exact", ignore_case=True), "#### PARIS", answer="paris") == RIGHT
    assert outcome(verifier("exact", numbers=False), "#### 72.0", answer="72") == WRONG
    assert outcome(verifier("exact", gold="solution"), "#### 72", solution="72", answer="1") == RIGHT
    equals = verifier("exact", pattern=r"= *([^\n]*)")
    assert outcome(equals, "x = 1\ny = 72 \n", answer="72") == RIGHT
    assert outcome(equals, "#### 72", answer="72") == UNPARSED
    assert outcome(verifier("exact", pattern="a|(b)"), "b a", answer="b") == UNPARSED


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_with_its_commas_dollar_and_zeros_is_the_same_number(value: Any) -> None:
    plain = plain_number(f"{value:f}")
    assert plain is not None
    assert float(plain) == float(value)
    for written in (f"{value:,.5f}", f"${value:f}$", f" {value:,f}. ", f"\\${value:f}"):
        assert plain_number(written) == plain
    assert plain_number(f"{float(value) + 1:f}") != plain


def test_a_number_of_a_million_digits_takes_no_time() -> None:
    start = time.process_time()
    assert outcome(verifier("exact"), "#### " + "7" * 1_000_000, answer="7") == WRONG
    assert outcome(verifier("exact"), "#### 0" + "7" * 1_000_000, answer="7" * 1_000_000 + ".0") == RIGHT
    assert time.process_time() - start < 2


# -- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{C}",
        r"\boxed{\text{(C)}}",
        "Answer: C",
        "**Answer**: (C) because it fits",
        "Answer: \\boxed{C}",
        "the answer is C.",
        "The answer is (C)",
        "I think it is (C)",
        "(A) is too small, so it is\n(C)",
        "A: 3\nB: 4\n\nC.",
        "Answer:\n**C**\n",
        "Answer: A\nNo, wait.\nAnswer: C",
        r"\boxed{A}? No. Answer: C",
        "Answer: C\nas (A) is too small and (B) too large",
    ],
)
def test_choice_takes_the_last_marked_letter(completion: str) -> None:
    assert outcome(verifier("choice"), completion, answer="C") == RIGHT
    assert outcome(verifier("choice"), completion, answer="(D)") == WRONG


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "C is it",
        "Answer: A or C",
        r"\boxed{A, C}",
        r"\boxed{12}",
        "Answer: c",
        "either (A) or (C)",
        "the answer is a car",
    ],
)
def test_choice_cannot_parse_none_or_two(completion: str) -> None:
    assert outcome(verifier("choice"), completion, answer="C") == UNPARSED


def test_choice_knows_its_letters_only() -> None:
    assert refused(verifier("choice"), "Answer: C", answer="F") == (
        "gold unreadable: column 'answer' holds 'F', expected one of A, B, C, D, E"
    )
    assert outcome(Choice(choices="FG"), "Answer: F", answer="F") == RIGHT
    assert outcome(Choice(choices="12"), "(2)", answer=2) == RIGHT


# -- reward functions -------------------------------------------------------------------------------------------------


def says_yes(prompts: Any, completions: Sequence[str], completion_ids: Any, **columns: Any) -> list[float | None]:
    return [{"yes": 1.0, "half": 0.5, "none": None}.get(text, -1.0) for text in completions]


def judged_by(
    function: Any, completions: Sequence[str], row: dict[str, Any] | None = None, **options: Any
) -> list[Any]:
    row = {"prompt": "?"} if row is None else row
    return verifier(function, **options).verify(completions, [row] * len(completions))


def test_a_reward_function_is_a_verifier() -> None:
    results = judged_by(says_yes, ["yes", "half", "none", "no"])
    assert [(result.outcome, result.reward) for result in results] == [
        (RIGHT, 1.0),
        (WRONG, 0.5),
        (UNPARSED, 0.0),
        (WRONG, -1.0),
    ]


def test_it_is_called_once_for_each_row_with_all_columns_as_lists() -> None:
    calls = []

    def keep(**arguments: Any) -> np.ndarray:
        calls.append(arguments)
        return np.ones(len(arguments["completions"]), np.float32)

    rows = [{"question": "a", "target": 1, "completion": "x"}, {"question": "b", "target": 2, "completion": "y"}]
    results = verifier(keep).verify(["p", "q", "r"], [rows[0], rows[0], rows[1]], [[1], [2], [3]])
    assert [result.reward for result in results] == [1.0, 1.0, 1.0]  # type: ignore[union-attr]
    first = {"prompts": ["a", "a"], "completions": ["p", "q"], "completion_ids": [[1], [2]]}
    second = {"prompts": ["b"], "completions": ["r"], "completion_ids": [[3]]}
    assert calls == [
        {**first, "question": ["a", "a"], "target": [1, 1]},
        {**second, "question": ["b"], "target": [2]},
    ]


def test_chats_are_passed_as_trl_passes_them() -> None:
    seen: list[Any] = []

    def keep(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.append((prompts[0], completions[0]))
        return [1.0] * len(prompts)

    asked, told = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    judged_by(keep, ["!"], {"prompt": [asked]})
    judged_by(keep, ["!"], {"messages": [asked, {"role": "assistant", "content": "gold"}]})
    judged_by(keep, ["!"], {"prompt": "?"}, chat=True)
    assert seen == [([asked], [told])] * 3
    judged_by(keep, ["!"], {"text": "?", "prompt": "no"}, prompt="text")
    judged_by(keep, ["!"], {"x": 1})
    assert seen[3:] == [("?", "!"), (None, "!")]


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        ([1.0], "verifier failed: it returned 1 rewards, expected 2, one for each completion"),
        (1.0, "verifier failed: it returned float, expected a list of 2 rewards"),
        (None, "verifier failed: it returned NoneType, expected a list of 2 rewards"),
        (["good", 1.0], "verifier failed: reward 1 is str 'good', expected a number or None"),
        ([float("nan"), 1.0], "verifier failed: reward 1 is nan, expected a finite number or None"),
        ([float("inf"), 1.0], "verifier failed: reward 1 is inf, expected a finite number or None"),
    ],
)
def test_what_a_reward_function_may_not_return(returns: Any, said: str) -> None:
    assert str(judged_by(lambda **_: returns, ["a", "b"])[0]) == said


@pytest.mark.parametrize("timeout", [60.0, None])
def test_a_reward_function_may_raise(timeout: float | None) -> None:
    def fails(completions: Any, **columns: Any) -> list[float]:
        if columns["fine"][0]:
            return [1.0] * len(completions)
        raise ValueError("no such thing")

    contract = verifier(fails, timeout=timeout)
    bad, good = contract.verify(["a", "b"], [{"fine": False}, {"fine": True}])
    assert str(bad) == "verifier failed: ValueError: no such thing"
    assert isinstance(good, Verdict)


def test_a_reward_function_that_wants_to_exit_fails_its_row() -> None:
    def leaves(**_: Any) -> None:
        raise SystemExit(3)

    assert str(judged_by(leaves, ["a"])[0]) == "verifier failed: SystemExit: 3"


def test_a_reward_function_may_hang_three_times() -> None:
    release = threading.Event()

    def hangs(completions: Any, **columns: Any) -> list[float]:
        release.wait(60)
        return [1.0] * len(completions)

    contract = verifier(hangs, timeout=0.05)
    for _ in range(3):
        assert refused(contract, "a") == "verifier timed out: no rewards for 1 completions within 0.05 s"
    with pytest.raises(CurateError, match=r"3 calls of reward function 'hangs' are still running after their 0.05 s"):
        contract.verify(["a"], [{}])
    release.set()
    for thread in contract._running:  # type: ignore[attr-defined]
        thread.join(10)
    assert outcome(contract, "a") == RIGHT


def test_a_reward_function_has_a_name_and_a_version() -> None:
    record = verifier(says_yes, chat=False).record()
    assert (record["kind"], record["name"]) == ("reward function", "says_yes")
    assert record["version"].startswith("source ")
    assert record["options"] == {
        "timeout": 60.0,
        "prompt": None,
        "chat": False,
        "function": f"{__name__}.says_yes",
    }
    assert verifier(functools.partial(says_yes)).name == "says_yes"
    assert verifier(says_yes, version="2").version == "2"
    assert verifier(says_yes, version="2").identity != verifier(says_yes).identity
    assert verifier(len).version == "unknown"
    assert pickle.loads(pickle.dumps(verifier(says_yes))).identity == verifier(says_yes).identity


def longer_than(completions: Sequence[str], least: int, **_: Any) -> list[float]:
    return [float(len(text) > least) for text in completions]


class Longer:
    def __init__(self, least: int, seen: Any = None) -> None:
        self.least, self.seen = least, seen

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        return longer_than(completions, self.least)


def longer(least: int) -> Any:
    def reward(completions: Sequence[str], **columns: Any) -> list[float]:
        return longer_than(completions, least)

    return reward


def by_default(least: int) -> Any:
    def reward(completions: Sequence[str], most: int = least, **columns: Any) -> list[float]:
        return longer_than(completions, most)

    return reward


def by_keyword(least: int) -> Any:
    def reward(completions: Sequence[str], *, most: int = least, **columns: Any) -> list[float]:
        return longer_than(completions, most)

    return reward


@pytest.mark.parametrize(
    "make",
    [
        lambda n: functools.partial(longer_than, least=n),
        Longer,
        lambda n: Longer(n).__call__,
        longer,
        by_default,
        by_keyword,
    ],
)
def test_a_reward_function_made_with_other_settings_is_another_contract(make: Any) -> None:
    one, two, same = (verifier(make(least)) for least in (1, 2, 1))
    assert one.identity == same.identity != two.identity
    assert re.fullmatch(r"source [0-9a-f]{12}, settings [0-9a-f]{12}", one.version)
    assert [outcome(contract, "ab") for contract in (one, two)] == [RIGHT, WRONG]
    assert verifier(make(1), version="7").identity == verifier(make(2), version="7").identity


def test_a_setting_that_is_no_plain_value_counts_by_its_kind() -> None:
    assert verifier(Longer(1, seen={1})).identity == verifier(Longer(1, seen={2})).identity
    assert verifier(Longer(1, seen={1})).identity != verifier(Longer(1, seen=Longer(1))).identity
    itself: list[Any] = []
    itself.append(itself)
    assert verifier(Longer(1, seen=itself)).version.count(", settings ") == 1
    assert ", settings" not in verifier(longer_than).version


def test_a_coroutine_function_is_refused() -> None:
    async def later(**_: Any) -> list[float]:
        return []

    with pytest.raises(CurateError, match="'later' is a coroutine function"):
        verifier(later)


def test_as_a_reward_function_it_is_the_function_itself() -> None:
    contract = verifier(says_yes)
    assert contract(prompts=["?"] * 2, completions=["yes", "none"], completion_ids=[[1], [1]]) == [1.0, None]
    assert contract.__name__ == "says_yes"
