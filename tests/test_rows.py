"""Rows: which columns are read, in which order of precedence, and what each unreadable row says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_curate.errors import ColumnsError, RowError
from hf_curate.rows import Columns, Trace, detect_columns, prompt_key, read_trace

GSM8K = {
    "question": "Mara sold 48 cups of tea in April, and half as many in May. How many cups did she sell?",
    "answer": "Mara sold 48/2 = <<48/2=24>>24 cups in May.\nShe sold 48+24 = <<48+24=72>>72 cups.\n#### 72",
}


def read(row: dict[str, Any], **named: str) -> Trace:
    return read_trace(row, detect_columns(list(row), row, **named))


def error_of(row: dict[str, Any], **named: str) -> str:
    with pytest.raises(RowError) as caught:
        read(row, **named)
    return str(caught.value)


def columns_error(names: list[str], row: dict[str, Any] | None = None, **named: str) -> str:
    with pytest.raises(ColumnsError) as caught:
        detect_columns(names, row, **named)
    return str(caught.value)


# -- precedence -----------------------------------------------------------------------------------------------------


def test_an_answer_with_four_hashes_is_the_completion():
    columns = detect_columns(list(GSM8K), GSM8K)
    assert columns == Columns("aliases", "question", "answer", None, None, None, hashes=True)
    assert read_trace(GSM8K, columns) == Trace(GSM8K["question"], GSM8K["answer"], None, None)


def test_the_columns_do_not_depend_on_whether_a_first_row_is_given():
    assert detect_columns(list(GSM8K)) == detect_columns(list(GSM8K), GSM8K)


def test_one_row_without_hashes_is_an_error_of_that_row_that_says_what_to_type():
    columns = detect_columns(list(GSM8K), GSM8K)
    with pytest.raises(RowError) as caught:
        read_trace({"question": "2 + 2?", "answer": "4"}, columns)
    assert str(caught.value) == (
        "no completion: column 'answer' holds no '####'; pass completion='answer' to use it as it is"
    )


def test_an_explicit_answer_completion_is_used_as_it_is():
    row = {"question": "2 + 2?", "answer": "Two and two make 4"}
    columns = detect_columns(list(row), row, completion="answer")
    assert columns == Columns("explicit", "question", "answer", None, None, None)
    assert read_trace(row, columns).completion == "Two and two make 4"


def test_answer_named_on_gsm8k_serves_as_trace_and_as_gold():
    trace = read(GSM8K, answer="answer")
    assert (trace.completion, trace.gold) == (GSM8K["answer"], "72")


@pytest.mark.parametrize(
    ("names", "level"),
    [
        (["question", "solution"], "aliases"),
        (["question", "solution", "prompt", "completion"], "prompt+completion"),
        (["question", "solution", "prompt", "completion", "conversations"], "conversations"),
        (["question", "solution", "prompt", "completion", "conversations", "messages"], "messages"),
    ],
)
def test_a_level_below_a_found_one_is_ignored(names: list[str], level: str):
    columns = detect_columns(names)
    assert columns.level == level
    assert (columns.messages is None) == (level in ("aliases", "prompt+completion"))
    assert detect_columns(names, prompt="question", completion="solution").level == "explicit"


@pytest.mark.parametrize("prompt", ["question", "problem", "instruction", "query"])
@pytest.mark.parametrize("completion", ["solution", "response", "output", "generation", "trace"])
def test_every_pair_of_aliases_is_read(prompt: str, completion: str):
    columns = detect_columns(["id", completion, "answer", prompt])
    assert columns == Columns("aliases", prompt, completion, "answer", None, None)


@pytest.mark.parametrize(
    ("names", "part", "listed"),
    [
        (["question", "problem", "solution"], "prompt", "'question', 'problem'"),
        (["prompt", "question", "solution"], "prompt", "'prompt', 'question'"),
        (["question", "solution", "response"], "completion", "'solution', 'response'"),
        (["question", "completion", "solution"], "completion", "'completion', 'solution'"),
    ],
)
def test_a_tie_inside_a_level_lists_what_was_found_and_what_to_type(names: list[str], part: str, listed: str):
    first = listed.split(", ")[0]
    assert columns_error(names) == (
        f"the {part} could be any of the columns {listed}. Name the one you mean: {part}={first}"
    )


def test_an_answer_with_hashes_beside_a_solution_is_a_tie():
    names = ["question", "solution", "answer"]
    assert "'solution', 'answer'" in columns_error(names, {"answer": "6*7=42\n#### 42"})
    assert detect_columns(names, {"answer": "42"}).answer == "answer"
    assert detect_columns(names, {"answer": "6*7=42\n#### 42"}, completion="solution").answer == "answer"


def test_a_column_named_for_one_part_is_no_candidate_for_another():
    names = ["question", "solution", "response"]
    assert detect_columns(names, answer="solution") == Columns(
        "aliases", "question", "response", "solution", None, None
    )


@pytest.mark.parametrize(
    ("named", "prompt", "completion"),
    [({"prompt": "task"}, "task", "completion"), ({"completion": "rationale"}, "prompt", "rationale")],
)
def test_the_part_that_is_not_named_is_detected(named: dict[str, Any], prompt: str, completion: str):
    names = ["task", "prompt", "question", "completion", "solution", "rationale", "messages"]
    columns = detect_columns(names, **named)
    assert columns == Columns("explicit", prompt, completion, None, None, None)


def test_prompt_beside_an_alias_of_the_completion_is_read():
    assert detect_columns(["prompt", "response"]) == Columns("aliases", "prompt", "response", None, None, None)


def test_a_name_that_is_no_column_gets_the_nearest_one():
    assert columns_error(["question", "solution"], completion="solutions") == (
        "completion='solutions' is not a column. The columns are 'question', 'solution'. "
        "Did you mean completion='solution'?"
    )
    assert "Pass answer= one of these." in columns_error(["question", "solution"], answer="zzz")


def test_messages_together_with_prompt_is_an_error():
    text = columns_error(["chat", "question"], messages="chat", prompt="question")
    assert "messages='chat'" in text
    assert "prompt='question'" in text


def test_one_column_for_prompt_and_completion_is_an_error():
    assert "name one column" in columns_error(["text"], prompt="text", completion="text")


def test_a_text_only_dataset_is_told_why_it_cannot_be_read():
    text = columns_error(["text"])
    assert text.startswith("no prompt found in the columns 'text'. Looked for `messages`")
    assert "prompt='...', completion='...'" in text
    assert "does not say where the prompt ends" in text


def test_a_dataset_without_completion_is_told_so():
    assert columns_error(["question", "label"]).startswith("no completion found in the columns 'question', 'label'")
    assert columns_error([]).startswith("no prompt found in the columns (none)")


def test_the_record_of_columns_is_json():
    record = detect_columns(list(GSM8K)).record()
    assert json.loads(json.dumps(record)) == record
    assert record["completion"] == "answer"


# -- answers and steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "72"),
        (" 72\n", "72"),
        ("48/2=24\n#### 72 ", "72"),
        ("####", None),
        ("", None),
        (None, None),
        (204, "204"),
        (18.0, "18"),
        (0.5, "0.5"),
        (float("nan"), None),
        (np.int64(7), "7"),
    ],
)
def test_the_gold_answer_is_text_without_its_hashes(answer: Any, gold: str | None):
    row = {"problem": "?", "solution": "so 72", "answer": answer}
    assert read(row, completion="solution").gold == gold


def test_an_answer_column_of_another_type_is_ignored_unless_it_is_named():
    row = {"problem": "?", "solution": "so 72", "answer": {"text": ["72"]}}
    assert read(row).gold is None
    assert error_of(row, answer="answer") == "wrong type: column 'answer' holds dict, expected text"


def test_ready_steps_are_kept_beside_the_completion():
    row = {"question": "?", "solution": "First. Then.", "steps": ["First.", "Then."], "answer": "x"}
    assert read(row).steps == ("First.", "Then.")
    assert read(row | {"steps": np.array(["First.", "Then."])}).steps == ("First.", "Then.")
    assert read_trace(row | {"steps": None}, detect_columns(list(row), row)).steps is None
    assert read_trace(row | {"steps": []}, detect_columns(list(row), row)).steps is None


def test_a_steps_column_that_holds_a_count_is_ignored_unless_it_is_named():
    row = {"question": "?", "solution": "First. Then.", "steps": 2}
    assert read(row).steps is None
    assert error_of(row, steps="steps") == "wrong type: column 'steps' holds int, expected a list of text"


def test_without_a_completion_the_steps_and_the_answer_are_the_trace():
    row = {"problem": "6*7?", "steps": ["7*6 is 7*5+7", "35+7"], "answer": 42}
    columns = detect_columns(list(row), row)
    assert columns.completion is None
    assert read_trace(row, columns) == Trace("6*7?", "7*6 is 7*5+7\n35+7\n42", "42", ("7*6 is 7*5+7", "35+7"))
    assert read({"problem": "6*7?", "steps": ["35+7"]}).completion == "35+7"
    with pytest.raises(RowError, match="column 'steps' is empty"):
        read_trace(row | {"steps": None}, columns)


def test_beside_steps_an_answer_with_reasoning_is_the_whole_trace():
    row = GSM8K | {"steps": GSM8K["answer"].split("\n")[:2]}
    assert read(row).completion == GSM8K["answer"]
    assert read(row | {"answer": "#### 72"}).completion == "\n".join([*row["steps"], "#### 72"])


# -- hostile and unusual text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (7, "wrong type: column 'solution' holds int, expected text"),
        (None, "wrong type: column 'solution' holds None, expected text"),
        (b"7", "wrong type: column 'solution' holds bytes, expected text"),
        ({"a": 1}, "wrong type: column 'solution' holds dict, expected text"),
        (" \n\u2028", "empty trace: column 'solution' holds 3 characters, none of them visible"),
        ("", "empty trace: column 'solution' holds 0 characters, none of them visible"),
        ("ab\ud83d", "not valid Unicode: lone surrogate U+D83D at character 2 of the completion"),
    ],
)
def test_unreadable_completions_say_why(value: Any, error: str):
    assert error_of({"question": "?", "solution": value}) == error


def test_unreadable_prompts_say_why():
    assert error_of({"question": 3.5, "solution": "x"}) == "wrong type: column 'question' holds float, expected text"
    assert error_of({"question": "\udc00", "solution": "x"}).startswith("not valid Unicode: lone surrogate U+DC00")


@given(st.text(), st.text(min_size=1).filter(str.strip))
def test_every_text_is_passed_on_unchanged(prompt: str, completion: str):
    trace = read({"question": prompt, "solution": completion})
    assert (trace.prompt, trace.completion) == (prompt, completion)


@pytest.mark.parametrize("text", ["a\x00b", "سطر\r\nسطر", "\u202eabc", "  padded  ", "😀 e\u0301"])
def test_null_bytes_line_breaks_and_directions_are_kept(text: str):
    assert read({"question": "", "solution": text}) == Trace("", text, None, None)


# -- duplicates -----------------------------------------------------------------------------------------------------


def test_the_key_of_a_prompt_is_its_text_and_nothing_where_it_cannot_be_read():
    columns = detect_columns(list(GSM8K))
    assert prompt_key(GSM8K, columns) == GSM8K["question"]
    assert prompt_key({"question": None, "answer": ""}, columns) == ""
