"""What a reasoning row is: a prompt, a trace that follows it, perhaps a gold answer and ready steps.

`detect_columns` decides once per dataset which columns hold them, `read_trace` reads one row. Order of precedence:
explicit > `messages` > `conversations` (ShareGPT) > `prompt` + `completion` > the aliases below. More than one
candidate inside a level is an error, never a guess. Texts are passed on unchanged; nothing is stripped or normalised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from hf_curate.errors import ColumnsError, RowError

PROMPT_ALIASES = ("question", "problem", "instruction", "query")
COMPLETION_ALIASES = ("solution", "response", "output", "generation", "trace")
HASHES = "####"  # GSM8K's mark between the reasoning and the final answer

# The names that ShareGPT exports and chat datasets use, and the chat template's role for each.
_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant"}
_ROLES |= {"assistant": "assistant", "model": "assistant", "bot": "assistant"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset hold what.

    `messages` is set instead of `prompt` and `completion` for chat rows. `completion` is None where the trace is made
    of the `steps` column. `hashes` is True where an `answer` column that nobody named serves as the completion: then
    only rows whose text holds "####" can be read.
    """

    level: str  # "explicit" | "messages" | "conversations" | "prompt+completion" | "aliases"
    prompt: str | None
    completion: str | None
    answer: str | None
    steps: str | None
    messages: str | None
    hashes: bool = False

    def record(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Trace:
    """One row as the scorers read it.

    Attributes:
        prompt: Plain text, or chat messages `{"role", "content"}` for the tokenizer's chat template.
        completion: The raw text of the reasoning trace, to be appended unchanged after the prompt.
        gold: The answer column's text (after the last "####", if there is one), stripped; None if empty or absent.
        steps: The items of the steps column; None if there is none, or if it is null or empty in this row.
    """

    prompt: str | tuple[dict[str, str], ...]
    completion: str
    gold: str | None
    steps: tuple[str, ...] | None


def detect_columns(
    names: Sequence[str],
    first_row: Mapping[str, Any] | None = None,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    answer: str | None = None,
    steps: str | None = None,
    messages: str | None = None,
) -> Columns:
    """Decide which of the columns `names` hold the prompt, the trace, the answer and the steps.

    `first_row` only serves to look at types and for "####"; without it the names alone decide. The keyword arguments
    name columns; a prompt or completion that is not named is looked for as `prompt` or `completion`, then among the
    aliases. `answer` and `steps` are used where columns of these names hold text (or numbers) and lists of text.

    Raises:
        ColumnsError: a named column does not exist, no columns can be read, or more than one could be meant.
    """
    given = {"prompt": prompt, "completion": completion, "answer": answer, "steps": steps, "messages": messages}
    _check_given(names, given)
    free = [name for name in names if name not in given.values()]
    row = first_row or {}
    if steps is None and "steps" in free and _may_be_steps(row.get("steps")):
        steps = "steps"
    level, hashes = "explicit", False
    if prompt is not None or completion is not None:
        prompt = prompt or _pick("prompt", _prompts(free), names, first_wins=True)
        if completion is None:
            completion, hashes = _find_completion(names, free, row, steps, answer, first_wins=True)
    elif messages is None and "messages" in free:
        level = messages = "messages"
    elif messages is None and "conversations" in free:
        level = messages = "conversations"
    elif messages is None and "prompt" in free and "completion" in free:
        level, prompt, completion = "prompt+completion", "prompt", "completion"
    elif messages is None:
        level, prompt = "aliases", _pick("prompt", _prompts(free), names)
        completion, hashes = _find_completion(names, free, row, steps, answer)
    if answer is None and completion != "answer" and "answer" in free and _may_be_answer(row.get("answer")):
        answer = "answer"
    return Columns(level, prompt, completion, answer, steps, messages, hashes)


def read_trace(row: Mapping[str, Any], columns: Columns) -> Trace:
    """Read one row.

    Raises:
        RowError: of kind "wrong type", "empty trace", "no completion", "no prompt", "unsupported role",
            "unsupported content" or "not valid Unicode".
    """
    steps = _read_steps(row, columns.steps) if columns.steps else None
    text = _answer_text(row.get(columns.answer), columns.answer) if columns.answer else ""
    prompt, completion, source = _read_pair(row, columns, steps, text)
    if not completion.strip():
        raise RowError("empty trace", f"column {source!r} holds {len(completion)} characters, none of them visible")
    gold = text.rpartition(HASHES)[2].strip() or None
    _check_unicode(prompt, "prompt")
    _check_unicode(completion, "completion")
    return Trace(prompt, completion, gold, steps)


def prompt_key(row: Mapping[str, Any], columns: Columns) -> str:
    """The prompt as one text, equal for two rows exactly when their prompts are; "" where it cannot be read."""
    try:
        if columns.messages:
            prompt = tuple(_messages(row.get(columns.messages), columns.messages)[:-1])
        else:
            prompt = _read_prompt(row, columns)
    except RowError:
        return ""
    return prompt if isinstance(prompt, str) else "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in prompt)


# -- which columns --------------------------------------------------------------------------------------------------


def _check_given(names: Sequence[str], given: Mapping[str, str | None]) -> None:
    for argument, name in given.items():
        if name is not None and name not in names:
            near = get_close_matches(str(name), names, n=1, cutoff=0.5)
            fix = f"Did you mean {argument}={near[0]!r}?" if near else f"Pass {argument}= one of these."
            raise ColumnsError(f"{argument}={name!r} is not a column. The columns are {_listed(names)}. {fix}")
    parts = [f"{part}={given[part]!r}" for part in ("prompt", "completion") if given[part] is not None]
    if given["messages"] is not None and parts:
        raise ColumnsError(
            f"messages={given['messages']!r} holds prompt and completion already, but {' and '.join(parts)} "
            f"came with it. Pass messages= alone, or prompt= and completion= without it."
        )
    if len(parts) == 2 and given["prompt"] == given["completion"]:
        raise ColumnsError(
            f"{' and '.join(parts)} name one column, so that nothing says where the prompt ends. "
            f"Pass two of the columns {_listed(names)}."
        )


def _prompts(free: Sequence[str]) -> list[str]:
    return [name for name in ("prompt", *PROMPT_ALIASES) if name in free]


def _pick(part: str, found: Sequence[str], names: Sequence[str], *, first_wins: bool = False) -> str:
    """The only candidate. Beside an explicit column the plain name (`prompt`, `completion`) beats the aliases."""
    if len(found) == 1 or (first_wins and part in found):
        return found[0]
    if found:
        raise ColumnsError(
            f"the {part} could be any of the columns {_listed(found)}. Name the one you mean: {part}={found[0]!r}"
        )
    raise ColumnsError(_nothing_found(part, names))


def _find_completion(
    names: Sequence[str],
    free: Sequence[str],
    row: Mapping[str, Any],
    steps: str | None,
    answer: str | None,
    *,
    first_wins: bool = False,
) -> tuple[str | None, bool]:
    """The completion column (None: the joined steps), and whether it is an `answer` that must hold "####"."""
    found = [name for name in ("completion", *COMPLETION_ALIASES) if name in free]
    if not found:
        if steps is not None:
            return None, False
        if "answer" in free or answer == "answer":
            return "answer", True
    text = row.get("answer")
    if "answer" in free and isinstance(text, str) and HASHES in text:
        found.append("answer")
    return _pick("completion", found, names, first_wins=first_wins), False


def _nothing_found(part: str, names: Sequence[str]) -> str:
    text = (
        f"no {part} found in the columns {_listed(names)}. Looked for `messages`, `conversations`, "
        f"`prompt` and `completion`, else a prompt ({', '.join(PROMPT_ALIASES)}) and a completion "
        f"({', '.join(COMPLETION_ALIASES)}, an answer that holds '####', or steps). "
        f"Name your columns: prompt='...', completion='...' (or messages='...')."
    )
    if "text" in names:
        text += (
            " The column 'text' alone does not say where the prompt ends and the reasoning begins: "
            "split it into two columns, or use the chat messages it was made of."
        )
    return text


def _may_be_steps(value: Any) -> bool:
    items = _as_list(value)
    return value is None or (items is not None and all(isinstance(item, str) for item in items))


def _may_be_answer(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float | np.number) and not isinstance(value, bool))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "(none)"


# -- one row --------------------------------------------------------------------------------------------------------

_Prompt = str | tuple[dict[str, str], ...]


def _read_pair(
    row: Mapping[str, Any], columns: Columns, steps: tuple[str, ...] | None, answer: str
) -> tuple[_Prompt, str, str]:
    """Prompt, completion, and the column that the completion came from."""
    if columns.messages:
        before, completion = _split_chat(row.get(columns.messages), columns.messages)
        if not before:
            raise RowError("no prompt", f"column {columns.messages!r} holds the assistant's message alone")
        return before, completion, columns.messages
    prompt = _read_prompt(row, columns)
    if columns.completion is None:
        return prompt, _join_steps(steps, answer, columns), columns.steps or "steps"
    value = row.get(columns.completion)
    if isinstance(value, str) or _as_list(value) is None:
        text = _text(value, columns.completion)
        if columns.hashes and HASHES not in text and text.strip():
            fix = f"pass completion={columns.completion!r} to use it as it is"
            raise RowError("no completion", f"column {columns.completion!r} holds no '####'; {fix}")
        return prompt, text, columns.completion
    before, completion = _split_chat(value, columns.completion)
    if before and isinstance(prompt, str):
        raise RowError(
            "unsupported content",
            f"column {columns.completion!r} holds {len(before) + 1} messages after a prompt of plain text",
        )
    return (prompt if isinstance(prompt, str) else prompt + before), completion, columns.completion


def _read_prompt(row: Mapping[str, Any], columns: Columns) -> _Prompt:
    name = columns.prompt or "prompt"
    value = row.get(name)
    if isinstance(value, str) or _as_list(value) is None:
        return _text(value, name)
    messages = tuple(_messages(value, name))
    if not messages:
        raise RowError("no prompt", f"column {name!r} holds an empty list of messages")
    return messages


def _join_steps(steps: tuple[str, ...] | None, answer: str, columns: Columns) -> str:
    # An `answer` with reasoning before its "####" is the whole trace: the steps are then found inside it.
    if answer.partition(HASHES)[0].strip() and HASHES in answer:
        return answer
    if steps is None:
        raise RowError("no completion", f"column {columns.steps!r} is empty and there is no completion column")
    return "\n".join([*steps, answer] if answer.strip() else steps)


def _read_steps(row: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = row.get(name)
    if value is None:
        return None
    items = _as_list(value)
    if items is None:
        raise RowError("wrong type", f"column {name!r} holds {_kind(value)}, expected a list of text")
    for number, item in enumerate(items, 1):
        if not isinstance(item, str):
            raise RowError("wrong type", f"item {number} of column {name!r} holds {_kind(item)}, expected text")
    return tuple(items) or None


def _answer_text(value: Any, name: str) -> str:
    """Numbers are read as they would be written in a trace: 204, 0.5, and 18.0 as 18."""
    if value is None or isinstance(value, str):
        return value or ""
    if not _may_be_answer(value):
        raise RowError("wrong type", f"column {name!r} holds {_kind(value)}, expected text")
    if isinstance(value, float | np.floating):
        return "" if not math.isfinite(value) else str(int(value)) if float(value).is_integer() else str(value)
    return str(value)


def _split_chat(value: Any, column: str) -> tuple[tuple[dict[str, str], ...], str]:
    """The messages before the last one, and the text of the last one, which must be the assistant's."""
    messages = _messages(value, column)
    if not messages or messages[-1]["role"] != "assistant":
        last = f"ends with a message of role {messages[-1]['role']!r}" if messages else "holds no message"
        raise RowError("no completion", f"column {column!r} {last}, expected 'assistant'")
    content = messages[-1]["content"]
    thoughts = (_as_list(value) or [{}])[-1].get("reasoning_content")
    if isinstance(thoughts, str) and thoughts.strip() and "<think>" not in content:
        # As the chat templates of reasoning models render the field.
        content = "<think>\n" + thoughts.strip("\n") + "\n</think>\n\n" + content
    return tuple(messages[:-1]), content


def _messages(value: Any, column: str) -> list[dict[str, str]]:
    items = _as_list(value)
    if items is None:
        raise RowError("wrong type", f"column {column!r} holds {_kind(value)}, expected a list of messages")
    return [_message(item, f"message {number} of column {column!r}") for number, item in enumerate(items, 1)]


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise RowError("wrong type", f"{where} holds {_kind(item)}, expected role and content")
    role = item.get("role") if item.get("role") is not None else item.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("unsupported role", f"{where} has role {role!r}, expected system, user or assistant")
    if item.get("tool_calls"):
        raise RowError("unsupported content", f"tool calls in {where}")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    parts = _as_list(content)
    if parts is not None:
        content = "".join(_part(part, where) for part in parts)
    if not isinstance(content, str):
        raise RowError("wrong type", f"{where} holds {_kind(content)}, expected text")
    return {"role": _ROLES[role], "content": content}


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        name = "text parts without text" if kind == "text" else f"{str(kind).removesuffix('_url')} parts"
        raise RowError("unsupported content", f"{name} in {where}, expected text")
    return text


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"column {column!r} holds {_kind(value)}, expected text")
    return value


def _check_unicode(text: _Prompt, whose: str) -> None:
    for part in [text] if isinstance(text, str) else [message["content"] for message in text]:
        if bad := _SURROGATE.search(part):
            code = f"U+{ord(bad.group()):04X}"
            raise RowError("not valid Unicode", f"lone surrogate {code} at character {bad.start()} of the {whose}")


def _as_list(value: Any) -> Sequence[Any] | None:
    if isinstance(value, np.ndarray):  # rows of a dataset in numpy format, or of a pandas frame
        value = value.tolist()
    return value if isinstance(value, list | tuple) else None


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
