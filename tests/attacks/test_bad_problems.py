"""Attack: problems that nobody should have, through the object that makes rollouts of them. A null with a reason, or
responses without rewards, and neighbours that do not move by a bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

sys.path.append(str(Path(__file__).parents[1] / "rollout_room"))  # pytest does so only where that folder is collected
from problems import CONTEXT, answers, problem_rows, rolled, roller

from hf_curate import Rollouts, verifier
from hf_curate.errors import ColumnsError, CurateError, ModelError, ScoreError

GOOD = problem_rows(1)[0]
CHAT = [{"role": "user", "content": GOOD["prompt"]}]


@pytest.fixture(scope="module")
def made() -> Rollouts:
    return roller(n=2)


PROMPTS: list[tuple[Any, str]] = [
    (None, "wrong type: column 'prompt' holds None"),
    (7, "wrong type: column 'prompt' holds int"),
    ({"role": "user"}, "wrong type"),
    ("", "no prompt"),
    ("1\ud800", "not valid Unicode: lone surrogate U+D800"),
    ("1" * (CONTEXT - 39), "too long: 473 prompt tokens and 40 new ones, the context is 512"),
    ("1" * 100_000, "too long: 100,000 prompt tokens"),
]
CHATS: list[tuple[Any, str]] = [
    ([], "no prompt: column 'messages' holds an empty list"),
    ([{"role": "assistant", "content": "71"}], "no prompt: column 'messages' holds the assistant's message alone"),
    ([{"role": "user", "content": None}], ""),
    ([{"role": "user"}], ""),
    ([{"content": "1"}], ""),
    ([{"role": "tool", "content": "1"}], "unsupported role"),
]
GOLDS: list[tuple[Any, str]] = [
    (None, "gold missing: column 'answer' holds None"),
    ("", "gold missing: column 'answer' holds ''"),
    ("  ", "gold missing"),
    ("#### ", "gold missing"),
    (float("nan"), "gold missing"),
    (True, "wrong type: column 'answer' holds bool"),
    (["71"], "wrong type: column 'answer' holds list"),
    ({"value": 71}, "wrong type: column 'answer' holds dict"),
]


def check_nothing(found: dict[str, Any], reason: str) -> None:
    assert found["rollouts_error"]
    assert found["rollouts_error"].startswith(reason)
    assert len(found["rollouts_error"]) < 300
    assert {name for name, value in found.items() if value is not None} == {"rollouts_error"}


@pytest.mark.parametrize(("prompt", "reason"), PROMPTS, ids=[reason[:40] for _, reason in PROMPTS])
def test_a_prompt_that_cannot_be_read_is_null_with_a_reason(made: Rollouts, prompt: Any, reason: str) -> None:
    check_nothing(made({"prompt": prompt, "answer": "71"}), reason)


@pytest.mark.parametrize(("messages", "reason"), CHATS, ids=[str(messages)[:60] for messages, _ in CHATS])
def test_a_chat_that_cannot_be_read_is_null_with_a_reason(made: Rollouts, messages: Any, reason: str) -> None:
    check_nothing(made({"messages": messages, "answer": "71"}), reason)


def test_chats_under_a_tokenizer_without_a_template_end_the_run(made: Rollouts) -> None:
    with pytest.raises(ModelError, match=r"no chat template: set tokenizer\.chat_template, or pass a prompt= column"):
        made({"messages": CHAT, "answer": "71"})


@pytest.mark.parametrize(("gold", "reason"), GOLDS, ids=[repr(gold) for gold, _ in GOLDS])
def test_a_gold_answer_that_cannot_be_read_costs_the_rewards_alone(made: Rollouts, gold: Any, reason: str) -> None:
    good, found = made(GOOD), made({**GOOD, "answer": gold})
    assert good["rollouts_error"] == ""
    assert found["rollouts_error"].startswith(reason)
    for name in ("responses", "response_ids", "rollouts_truncated"):
        assert found[name] == good[name]
    for name in ("rewards", "success_rate", "learnability", "rollouts_outcomes"):
        assert found[name] is None


@pytest.mark.parametrize("gold", [71, 71.0, "71", "so it is\n#### 71", "071.0"])
def test_a_gold_answer_in_another_dress_is_the_same(made: Rollouts, gold: Any) -> None:
    assert made({**GOOD, "answer": gold})["rewards"] == made(GOOD)["rewards"]


def test_bad_neighbours_do_not_move_a_rollout_by_a_bit() -> None:
    rows = problem_rows(6)
    bad = [
        {"prompt": None, "answer": "1"},
        {"prompt": "", "answer": "1"},
        {"prompt": "1" * CONTEXT, "answer": "1"},
        {"prompt": rows[0]["prompt"], "answer": None},
        {"prompt": "1" * 400, "answer": "1"},
        {"prompt": "<pad>" * 5, "answer": "1"},
    ]
    mixed = [row for pair in zip(bad, rows, strict=True) for row in pair]
    alone = rolled(Dataset.from_list(rows), roller())
    among = rolled(Dataset.from_list(mixed), roller(), batch_size=5)
    assert among.select(range(1, 12, 2)).to_list() == alone.to_list()


def test_a_first_batch_of_eight_that_fails_entirely_is_an_error_with_the_reasons() -> None:
    bad = [{"prompt": None, "answer": "1"}] * 3 + [{**GOOD, "answer": None}] * 5
    with pytest.raises(ScoreError, match=r"(?s)none of the 8 rows.*5 x gold missing.*3 x wrong type"):
        rolled(Dataset.from_list(bad), roller(n=1))


def test_special_tokens_in_a_prompt_are_read_as_they_are_by_the_tokenizer_and_do_no_harm(made: Rollouts) -> None:
    found = made({"prompt": "<eos>57+8?\n", "answer": "65"})
    assert found["rollouts_error"] == ""
    assert len(found["responses"]) == 2


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids", "self", "function"])
def test_columns_with_the_names_of_a_reward_function_s_arguments_cannot_replace_them(name: str) -> None:
    seen: list[Any] = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        seen.append((completions, columns.get(name)))
        return [1.0] * len(completions)

    found = roller(reward, n=2)({**GOOD, name: "strange"})
    if found["rollouts_error"]:
        assert found["rollouts_error"].startswith("verifier failed: TypeError")
        assert found["rewards"] is None
        assert not seen
    else:
        assert [completions for completions, _ in seen] == [found["responses"]]
    assert len(found["responses"]) == 2


def test_a_reward_function_that_hangs_on_every_row_ends_the_run() -> None:
    import threading

    end = threading.Event()

    def hangs(completions: list[str], **_: Any) -> list[float]:
        end.wait(20)
        return [0.0] * len(completions)

    try:
        with pytest.raises(CurateError, match="3 calls of reward function 'hangs' are still running"):
            rolled(Dataset.from_list(problem_rows(6)), roller(verifier(hangs, timeout=0.05), n=1))
    finally:
        end.set()


def test_a_reward_function_that_changes_what_it_is_given_changes_no_column(made: Rollouts) -> None:
    def vandal(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[float]:
        for text in range(len(completions)):
            completions[text] = "gone"
        for ids in completion_ids:
            ids.clear()
        columns["answer"].clear()
        return [1.0, 0.0]

    row = dict(GOOD)
    found = roller(vandal, n=2)(row)
    assert row == GOOD
    assert found["rewards"] == [1.0, 0.0]
    assert [found[name] for name in ("responses", "response_ids")] == [
        made(GOOD)[name] for name in ("responses", "response_ids")
    ]


def test_rows_without_a_prompt_column_or_with_two_are_an_error_that_names_the_columns() -> None:
    with pytest.raises(ColumnsError, match=r"no prompt found in the columns.*text"):
        roller()({"text": "57+8?\n", "answer": "65"})
    with pytest.raises(ColumnsError, match=r"question.*problem|problem.*question"):
        roller()({"question": "57+8?\n", "problem": "57+8?\n", "answer": "65"})
    with pytest.raises(ColumnsError, match=r"answer.*gold"):
        roller()({"prompt": "57+8?\n", "gold": "65"})


def test_rollouts_that_are_there_already_are_replaced_whole(made: Rollouts) -> None:
    stale = {"responses": ["1"], "response_ids": [[5]], "rewards": [9.0], "success_rate": 1.0}
    rows = Dataset.from_list([{**GOOD, **stale}] * 2)
    found = rolled(rows, made)
    plain = rolled(Dataset.from_list([GOOD] * 2), made)
    assert found.select_columns(list(plain.column_names)).to_list() == plain.to_list()


def test_the_attacked_object_still_gives_what_a_fresh_one_gives(made: Rollouts) -> None:
    data = Dataset.from_list(problem_rows(4))
    assert rolled(data, made).to_list() == rolled(data, roller(answers(), n=2)).to_list()
