"""Rows with rollouts: which columns are read, in which order of precedence, and what each unreadable row says."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_curate.errors import ColumnsError, RowError
from hf_curate.groups import GroupColumns, RewardedGroup, detect_group_columns, read_group

ROW = {"prompt": "6*7?", "responses": ["42", "41"], "rewards": [1.0, 0.0]}
IDS = {"prompt": "6*7?", "response_ids": [[4, 2], [4]], "rewards": [1.0, 0.0]}
USER = {"role": "user", "content": "6*7?"}
SOLVED = {"role": "assistant", "content": "42"}


def read(row: dict[str, Any], **named: str) -> RewardedGroup:
    return read_group(row, detect_group_columns(list(row), row, **named))


def error_of(row: dict[str, Any], **named: str) -> str:
    with pytest.raises(RowError) as caught:
        read(row, **named)
    return str(caught.value)


def columns_error(names: list[str], row: dict[str, Any] | None = None, **named: str) -> str:
    with pytest.raises(ColumnsError) as caught:
        detect_group_columns(names, row, **named)
    return str(caught.value)


# -- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "level", "prompt"),
    [
        (["question"], "aliases", "question"),
        (["question", "prompt"], "prompt", "prompt"),
        (["question", "prompt", "conversations"], "conversations", None),
        (["question", "prompt", "conversations", "messages"], "messages", None),
    ],
)
def test_a_level_below_a_found_one_is_ignored(names: list[str], level: str, prompt: str | None):
    columns = detect_group_columns([*names, "responses", "rewards"])
    chat = None if prompt else level
    assert columns == GroupColumns(level, prompt, chat, "responses", None, "rewards")


@pytest.mark.parametrize("alias", ["question", "problem", "instruction", "query"])
def test_every_alias_of_the_prompt_is_read(alias: str):
    assert detect_group_columns(["id", alias, "answer", "responses", "rewards"]).prompt == alias


def test_a_named_prompt_beats_every_level_whether_text_or_chat():
    names = ["messages", "prompt", "task", "chat", "responses", "rewards"]
    assert detect_group_columns(names, prompt="task") == GroupColumns(
        "explicit", "task", None, "responses", None, "rewards"
    )
    assert detect_group_columns(names, messages="chat") == GroupColumns(
        "explicit", None, "chat", "responses", None, "rewards"
    )


def test_sampled_ids_beat_their_text_and_a_named_column_beats_both():
    names = ["prompt", "responses", "response_ids", "tries", "rewards"]
    found = detect_group_columns(names)
    assert (found.responses, found.response_ids) == (None, "response_ids")
    found = detect_group_columns(names, responses="responses")
    assert (found.responses, found.response_ids) == ("responses", None)
    found = detect_group_columns(names, response_ids="tries")
    assert (found.responses, found.response_ids) == (None, "tries")


def test_named_rewards_beat_the_column_called_so():
    assert detect_group_columns(["prompt", "responses", "rewards", "scores"], rewards="scores").rewards == "scores"


def test_the_columns_do_not_depend_on_whether_a_first_row_is_given():
    assert detect_group_columns(list(ROW)) == detect_group_columns(list(ROW), ROW)
    odd = ROW | {"response_ids": None}
    assert detect_group_columns(list(odd)) == detect_group_columns(list(odd), odd)


def test_two_aliases_are_a_tie_that_lists_what_was_found_and_what_to_type():
    names = ["question", "problem", "responses", "rewards"]
    assert columns_error(names) == (
        "the prompt could be any of the columns 'question', 'problem'. Name the one you mean: prompt='question'"
    )
    assert detect_group_columns(names, prompt="problem").prompt == "problem"


def test_what_is_missing_is_said_with_the_columns_there_are_and_what_to_type():
    assert columns_error(["question", "response", "reward"]) == (
        "no responses and no rewards found in the columns 'question', 'response', 'reward'. Rows need the rollouts of "
        "one problem, as `response_ids` (a list of lists of token ids) or `responses` (a list of texts), and their "
        "`rewards` (a list of numbers). Did you mean responses='response' and rewards='reward'?"
    )
    assert columns_error(["prompt", "responses"]).endswith("Name the columns: rewards='...'.")
    assert columns_error(["prompt", "rewards"]).endswith("Name the columns: responses='...' (or response_ids='...').")
    assert columns_error([]).startswith("no responses and no rewards found in the columns (none).")


def test_a_first_row_shows_which_columns_look_like_rollouts_and_rewards():
    row = {"problem": "6*7?", "id": 3, "generations": ["42", "41"], "graded": [True, False]}
    assert columns_error(list(row), row).endswith("Did you mean responses='generations' and rewards='graded'?")
    flat = {"prompt": "6*7?", "response": "42", "reward": 1.0}  # one row per rollout: nothing to be named
    assert columns_error(list(flat), flat).endswith(
        "Name the columns: responses='...' (or response_ids='...') and rewards='...'."
    )
    two = row | {"sampled": ["a", "b"]}
    assert "responses='...' (or response_ids='...') and rewards='graded'" in columns_error(list(two), two)


def test_a_missing_prompt_is_said_with_a_near_miss():
    assert columns_error(["prompts", "responses", "rewards"]) == (
        "no prompt found in the columns 'prompts', 'responses', 'rewards'. Looked for `messages`, `conversations` and "
        "`prompt`, else question, problem, instruction, query. Did you mean prompt='prompts'?"
    )
    assert columns_error(["x", "responses", "rewards"]).endswith("Name it: prompt='...' (or messages='...').")


def test_a_name_that_is_no_column_gets_the_nearest_one():
    assert columns_error(list(ROW), rewards="reward") == (
        "rewards='reward' is not a column. The columns are 'prompt', 'responses', 'rewards'. "
        "Did you mean rewards='rewards'?"
    )


@pytest.mark.parametrize(
    "named",
    [
        {"prompt": "prompt", "messages": "messages"},
        {"responses": "responses", "response_ids": "response_ids"},
        {"responses": "rewards", "rewards": "rewards"},
        {"prompt": "responses", "responses": "responses"},
    ],
)
def test_two_arguments_for_one_thing_are_an_error_that_names_both(named: dict[str, str]):
    text = columns_error(["prompt", "messages", "responses", "response_ids", "rewards"], **named)
    assert all(f"{argument}={name!r}" in text for argument, name in named.items())


def test_a_column_named_for_one_part_is_no_candidate_for_another():
    assert "no rewards found" in columns_error(["prompt", "responses", "rewards"], responses="rewards")


def test_the_record_of_columns_is_json():
    record = detect_group_columns(list(IDS)).record()
    assert json.loads(json.dumps(record)) == record
    assert record["response_ids"] == "response_ids"


# -- rows -------------------------------------------------------------------------------------------------------------


def test_texts_and_ids_are_read_in_the_order_of_the_row():
    group = read(ROW)
    assert (group.prompt, group.responses, group.response_ids) == ("6*7?", ("42", "41"), None)
    assert group.rewards.dtype == np.float64
    assert group.rewards.tolist() == [1.0, 0.0]
    group = read(IDS)
    assert (group.prompt, group.responses, group.response_ids) == ("6*7?", None, ((4, 2), (4,)))


@given(st.text(), st.lists(st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_every_text_and_every_finite_reward_is_passed_on_unchanged(prompt: str, tries: list[tuple[str, float]]):
    group = read({"prompt": prompt, "responses": [t for t, _ in tries], "rewards": [r for _, r in tries]})
    assert group.prompt == prompt
    assert group.responses == tuple(text for text, _ in tries)
    assert group.rewards.tolist() == [reward for _, reward in tries]


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_lists_tuples_and_arrays_are_read_alike(kind: Any):
    group = read({"prompt": "6*7?", "response_ids": kind([[4, 2], [4, 1]]), "rewards": kind([1.0, 0.5])})
    assert group.response_ids == ((4, 2), (4, 1))
    assert all(type(token) is int for ids in group.response_ids for token in ids)
    assert group.rewards.tolist() == [1.0, 0.5]
    assert read(ROW | {"responses": kind(["42", "41"])}).responses == ("42", "41")


@pytest.mark.parametrize("form", [None, "numpy", "pandas"])
def test_rows_of_a_dataset_are_read_alike_in_every_format(form: str | None):
    dataset = Dataset.from_list([ROW | {"response_ids": [[4, 2], [4]]}])
    row = dict((dataset.with_format(form) if form else dataset)[0])
    if form == "pandas":
        row = {name: value.iloc[0] for name, value in row.items()}
    group = read(row)
    assert group.response_ids == ((4, 2), (4,))
    assert group.rewards.tolist() == [1.0, 0.0]
    assert read(row, responses="responses").responses == ("42", "41")


@pytest.mark.parametrize("rewards", [[True, False], [np.bool_(True), np.False_], [1, 0], [np.int8(1), np.float16(0)]])
def test_booleans_and_numbers_of_any_width_are_rewards(rewards: list[Any]):
    assert read(ROW | {"rewards": rewards}).rewards.tolist() == [1.0, 0.0]


def test_a_single_rollout_is_a_group():
    assert read({"prompt": "6*7?", "responses": ["42"], "rewards": [1]}).rewards.tolist() == [1.0]


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_chat_that_the_assistant_ended_is_asked_again_from_before_it(name: str):
    rest = {"responses": ["42", "41"], "rewards": [1, 0]}
    assert read({name: [USER, SOLVED]} | rest).prompt == (USER,)
    assert read({name: [USER]} | rest).prompt == (USER,)
    assert read({name: [USER, SOLVED, USER]} | rest).prompt == (USER, SOLVED, USER)
    assert read({name: [{"from": "human", "value": "6*7?"}]} | rest).prompt == (USER,)


def test_a_prompt_column_may_hold_messages():
    assert read(ROW | {"prompt": [USER]}).prompt == (USER,)


def test_a_response_may_be_a_chat_of_the_assistants_one_message():
    assert read(ROW | {"responses": [[SOLVED], "41"]}).responses == ("42", "41")
    thought = {"role": "assistant", "content": "42", "reasoning_content": "6*7"}
    assert read(ROW | {"responses": [[thought], "41"]}).responses == ("<think>\n6*7\n</think>\n\n42", "41")


def test_an_empty_text_is_a_response():
    assert read(ROW | {"responses": ["", "41"]}).responses == ("", "41")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"responses": None}, "no rollouts: column 'responses' holds None"),
        ({"responses": [], "rewards": []}, "no rollouts: column 'responses' holds an empty list"),
        ({"responses": "42"}, "wrong type: column 'responses' holds str, expected a list of responses"),
        ({"responses": ["42", None]}, "wrong type: response 2 holds None, expected text or a chat of one message"),
        ({"responses": ["42", 41]}, "wrong type: response 2 holds int, expected text or a chat of one message"),
        ({"responses": ["42", SOLVED]}, "wrong type: response 2 holds dict, expected text or a chat of one message"),
        (
            {"responses": ["42", [USER, SOLVED]]},
            "unsupported content: response 2 holds 2 messages, expected the assistant's alone",
        ),
        (
            {"responses": ["42", [USER]]},
            "no completion: response 2: column 'responses' ends with a message of role 'user', expected 'assistant'",
        ),
        (
            {"responses": ["42", "a\ud83d"]},
            "not valid Unicode: lone surrogate U+D83D at character 1 of the text of response 2",
        ),
        ({"rewards": None}, "reward missing: column 'rewards' holds None for 2 responses"),
        ({"rewards": [1.0, None]}, "reward missing: reward 2 is None"),
        ({"rewards": 1.0}, "wrong type: column 'rewards' holds float, expected a list of numbers"),
        ({"rewards": ["1", "0"]}, "wrong type: reward 1 holds str, expected a number"),
        ({"rewards": [1.0, [0.0]]}, "wrong type: reward 2 holds list, expected a number"),
        ({"rewards": [1j, 0]}, "wrong type: reward 1 holds complex, expected a number"),
        ({"rewards": [1.0, math.nan]}, "reward not finite: reward 2 is nan"),
        ({"rewards": [-math.inf, 0.0]}, "reward not finite: reward 1 is -inf"),
        ({"rewards": [10**400, 0]}, "reward not finite: reward 1 is inf"),
        ({"rewards": [1, 0, 0, 1]}, "rewards and responses differ: 4 rewards, 2 responses"),
        ({"rewards": []}, "rewards and responses differ: 0 rewards, 2 responses"),
        ({"prompt": None}, "wrong type: column 'prompt' holds None, expected text"),
        ({"prompt": []}, "no prompt: column 'prompt' holds an empty list of messages"),
        ({"prompt": "\udc00"}, "not valid Unicode: lone surrogate U+DC00 at character 0 of the prompt"),
        ({"messages": []}, "no prompt: column 'messages' holds an empty list of messages"),
        ({"messages": [SOLVED]}, "no prompt: column 'messages' holds the assistant's message alone"),
        ({"messages": None}, "wrong type: column 'messages' holds None, expected a list of messages"),
        (
            {"messages": [{"role": "tool", "content": ""}]},
            "unsupported role: message 1 of column 'messages' has role 'tool', expected system, user or assistant",
        ),
    ],
)
def test_unreadable_rows_with_texts_say_why(change: dict[str, Any], error: str):
    assert error_of(ROW | change) == error


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (None, "no rollouts: column 'response_ids' holds None"),
        (7, "wrong type: column 'response_ids' holds int, expected a list of responses"),
        ([[4], []], "empty response: response 2 holds no token id"),
        ([[4], None], "wrong type: response 2 holds None, expected a list of token ids"),
        ([[4], "42"], "wrong type: response 2 holds str, expected a list of token ids"),
        ([4, 2], "wrong type: response 1 holds int, expected a list of token ids"),
        ([[4], [4, 2.0]], "wrong type: token 2 of response 2 holds float, expected a whole number"),
        ([[4], [True]], "wrong type: token 1 of response 2 holds bool, expected a whole number"),
        ([[4], [4, None]], "wrong type: token 2 of response 2 holds None, expected a whole number"),
        ([[4], [4, -100]], "wrong type: token 2 of response 2 is -100, expected 0 or more"),
        (np.array([[4.5], [2.0]]), "wrong type: token 1 of response 1 holds float, expected a whole number"),
    ],
)
def test_unreadable_rows_with_ids_say_why(ids: Any, error: str):
    assert error_of(IDS | {"response_ids": ids}) == error


def test_where_ids_are_read_the_texts_are_not_looked_at():
    assert read(IDS | {"responses": None}).response_ids == ((4, 2), (4,))
