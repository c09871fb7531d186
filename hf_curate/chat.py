"""Chat messages as datasets hold them: `{"role", "content"}` or ShareGPT's `{"from", "value"}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_curate.errors import RowError

Messages = tuple[dict[str, str], ...]

# The names that ShareGPT exports and chat datasets use, and the chat template's role for each.
_ROLES = {"system": "system", "human": "user", "user": "user"}
_ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")


def read_messages(value: Any, column: str) -> Messages:
    """The messages with plain `role` and `content`; RowError where one of them is anything but text."""
    items = as_list(value)
    if items is None:
        raise wrong_type(f"column {column!r}", value, "a list of messages")
    return tuple(_message(item, f"message {number} of column {column!r}") for number, item in enumerate(items, 1))


def split_chat(value: Any, column: str) -> tuple[Messages, str]:
    """The messages before the last one, and the text of the last one, which must be the assistant's."""
    messages = read_messages(value, column)
    if not messages or messages[-1]["role"] != "assistant":
        last = f"ends with a message of role {messages[-1]['role']!r}" if messages else "holds no message"
        raise RowError("no completion", f"column {column!r} {last}, expected 'assistant'")
    content = messages[-1]["content"]
    thoughts = (as_list(value) or [{}])[-1].get("reasoning_content")
    if isinstance(thoughts, str) and thoughts.strip() and "<think>" not in content:
        # As the chat templates of reasoning models render the field.
        content = "<think>\n" + thoughts.strip("\n") + "\n</think>\n\n" + content
    return messages[:-1], content


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise wrong_type(where, item, "role and content")
    role = _first(item, "role", "from")
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("unsupported role", f"{where} has role {role!r}, expected system, user or assistant")
    if item.get("tool_calls"):
        raise RowError("unsupported content", f"tool calls in {where}")
    content = _first(item, "content", "value")
    parts = as_list(content)
    text = as_text(content, where) if parts is None else "".join(_part(part, where) for part in parts)
    return {"role": _ROLES[role], "content": text}


def _first(item: Mapping[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    fields = part if isinstance(part, Mapping) else {"type": type(part).__name__}
    kind, text = fields.get("type", "text"), fields.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    name = "text parts without text" if kind == "text" else f"{str(kind).removesuffix('_url')} parts"
    raise RowError("unsupported content", f"{name} in {where}, expected text")


def as_list(value: Any) -> Sequence[Any] | None:
    """A list, tuple or array as a sequence, anything else as None."""
    if isinstance(value, np.ndarray):  # rows of a dataset in numpy format, or of a pandas frame
        value = value.tolist()
    return value if isinstance(value, list | tuple) else None


def as_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(where, value, "text")
    return value


def wrong_type(where: str, value: Any, expected: str) -> RowError:
    kind = "None" if value is None else type(value).__name__
    return RowError("wrong type", f"{where} holds {kind}, expected {expected}")
