"""Chat rows: messages, ShareGPT conversations, conversational prompts and completions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_curate.errors import RowError
from hf_curate.rows import Trace, detect_columns, prompt_key, read_trace

CHAT = [
    {"role": "system", "content": "Reason step by step."},
    {"role": "user", "content": "What is 6 * 7?"},
    {"role": "assistant", "content": "<think>\n6 * 7 = 42\n</think>\n\n\\boxed{42}"},
]


def read(row: dict[str, Any], **named: str) -> Trace:
    return read_trace(row, detect_columns(list(row), row, **named))


def error_of(row: dict[str, Any], **named: str) -> str:
    with pytest.raises(RowError) as caught:
        read(row, **named)
    return str(caught.value)


def test_messages_give_the_last_assistant_message_as_the_trace():
    trace = read({"messages": CHAT, "answer": "42"})
    assert trace == Trace(tuple(CHAT[:2]), CHAT[2]["content"], "42", None)


def test_sharegpt_roles_become_chat_roles():
    row = {
        "conversations": [
            {"from": "system", "value": "أجب خطوة بخطوة"},
            {"from": "human", "value": "ما هو 6 × 7؟"},
            {"from": "gpt", "value": "الناتج هو 42"},
        ]
    }
    trace = read(row)
    assert [message["role"] for message in trace.prompt if isinstance(message, dict)] == ["system", "user"]
    assert trace.completion == "الناتج هو 42"
    assert read({"conversations": CHAT}) == read({"messages": CHAT})


def test_fields_that_arrow_filled_with_null_count_as_absent():
    nulls = {"role": None, "content": None, "tool_calls": None, "reasoning_content": None}
    turns = [{"from": "human", "value": "?", **nulls}, {"from": None, "value": None, **nulls, **CHAT[2]}]
    assert read({"messages": turns}) == Trace(({"role": "user", "content": "?"},), CHAT[2]["content"], None, None)


def test_conversational_prompt_and_completion_are_read():
    row = {"prompt": CHAT[:2], "completion": CHAT[2:]}
    assert read(row) == Trace(tuple(CHAT[:2]), CHAT[2]["content"], None, None)
    assert read({"prompt": CHAT[:2], "completion": "42"}).completion == "42"
    assert read({"prompt": "6 * 7?", "completion": CHAT[2:]}).prompt == "6 * 7?"


def test_earlier_messages_of_a_completion_belong_to_the_prompt():
    turns = [*CHAT[2:], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes: 42"}]
    trace = read({"prompt": CHAT[:2], "completion": turns})
    assert trace.prompt == (*CHAT[:2], *turns[:2])
    assert trace.completion == "Yes: 42"
    assert error_of({"prompt": "6 * 7?", "completion": turns}) == (
        "unsupported content: column 'completion' holds 3 messages after a prompt of plain text"
    )


def test_reasoning_content_is_rendered_as_chat_templates_do():
    last = {"role": "assistant", "content": "It is 42.", "reasoning_content": "\n6 * 7 = 42\n"}
    assert read({"messages": [*CHAT[:2], last]}).completion == "<think>\n6 * 7 = 42\n</think>\n\nIt is 42."
    assert read({"messages": [*CHAT[:2], last | {"reasoning_content": None}]}).completion == "It is 42."
    assert read({"messages": [*CHAT[:2], CHAT[2] | {"reasoning_content": "x"}]}).completion == CHAT[2]["content"]


def test_text_parts_are_joined():
    user = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "6 * 7?"}]}
    assert read({"messages": [user, CHAT[2]]}).prompt == ({"role": "user", "content": "What is 6 * 7?"},)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (CHAT[:2], "no completion: column 'messages' ends with a message of role 'user', expected 'assistant'"),
        ([], "no completion: column 'messages' holds no message, expected 'assistant'"),
        (CHAT[2:], "no prompt: column 'messages' holds the assistant's message alone"),
        ("[{}]", "wrong type: column 'messages' holds str, expected a list of messages"),
        (None, "wrong type: column 'messages' holds None, expected a list of messages"),
        (["hi"], "wrong type: message 1 of column 'messages' holds str, expected role and content"),
        ([{"role": "user", "content": None}], "wrong type: message 1 of column 'messages' holds None, expected text"),
        (
            [CHAT[1], {"role": "tool", "content": "42"}, CHAT[2]],
            "unsupported role: message 2 of column 'messages' has role 'tool', expected system, user or assistant",
        ),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}, CHAT[2]],
            "unsupported content: image parts in message 1 of column 'messages', expected text",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}, CHAT[2]],
            "unsupported content: text parts without text in message 1 of column 'messages', expected text",
        ),
        (
            [CHAT[1], {"role": "assistant", "content": "", "tool_calls": [{"name": "sum"}]}, CHAT[2]],
            "unsupported content: tool calls in message 2 of column 'messages'",
        ),
    ],
)
def test_unreadable_messages_say_why(messages: Any, error: str):
    assert error_of({"messages": messages}) == error


def test_an_empty_list_of_messages_is_no_prompt():
    assert error_of({"prompt": [], "completion": "x"}).startswith("no prompt: column 'prompt' holds an empty list")


def test_messages_in_numpy_arrays_are_read_alike():
    assert read({"messages": np.array(CHAT, dtype=object)}) == read({"messages": CHAT})


def test_equal_prompts_have_equal_keys_and_unreadable_ones_none():
    columns = detect_columns(["messages"])
    key = prompt_key({"messages": CHAT}, columns)
    assert key == prompt_key({"messages": [*CHAT[:2], {"role": "assistant", "content": "else"}]}, columns) != ""
    assert key != prompt_key({"messages": [CHAT[1], CHAT[0], CHAT[2]]}, columns)
    assert prompt_key({"messages": None}, columns) == ""
