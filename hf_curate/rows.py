"""What a reasoning row is: a prompt, a trace that follows it, perhaps a gold answer and ready steps.

`detect_columns` decides once per dataset which columns hold them, `read_trace` reads one row. Order of precedence:
explicit > `messages` > `conversations` (ShareGPT) > `prompt` + `completion` > the aliases below. More than one
candidate inside a level is an error, never a guess. Texts are passed on unchanged; nothing is stripped or normalised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from hf_curate.chat import Messages, as_list, as_text, read_messages, split_chat, wrong_type
from hf_curate.errors import ColumnsError, RowError

PROMPT_ALIASES = ("question", "problem", "instruction", "query")
COMPLETION_ALIASES = ("solution", "response", "output", "generation", "trace")
HASHES = "####"  # GSM8K's mark between the reasoning and the final answer


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset hold what."""

    level: str  # "explicit" | "messages" | "conversations" | "prompt+completion" | "aliases"
    prompt: str | None
    completion: str | None  # None where the trace is made of the `steps` column
    answer: str | None
    steps: str | None
    messages: str | None  # instead of `prompt` and `completion`, for chat rows
    hashes: bool = False  # the completion is an `answer` that nobody named: rows without "####" cannot be read

    def record(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Trace:
    """One row as the scorers read it."""

    prompt: str | Messages  # messages are for the tokenizer's chat template
    completion: str  # the raw trace, to be appended unchanged after the prompt
    gold: str | None  # the answer column's text after its last "####", if any, stripped; None if empty or absent
    steps: tuple[str, ...] | None  # the items of the steps column; None if there are none


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
    ColumnsError: a named column does not exist, no columns can be read, or more than one could be meant.
    """
    given = {"prompt": prompt, "completion": completion, "answer": answer, "steps": steps, "messages": messages}
    check_named(names, given)
    _check_given(given, names)
    free = [name for name in names if name not in given.values()]
    row = first_row or {}
    if steps is None and "steps" in free and _may_be_steps(row.get("steps")):
        steps = "steps"
    level, hashes = "explicit", False
    if all(given[part] is None for part in ("prompt", "completion", "messages")):
        messages = next((name for name in ("messages", "conversations") if name in free), None)
        paired = {"prompt", "completion"} <= set(free)
        level = messages or ("prompt+completion" if paired else "aliases")
    if messages is None:
        plain = level != "aliases"  # then the plain names `prompt` and `completion` beat the aliases
        prompt = prompt or _pick("prompt", [n for n in ("prompt", *PROMPT_ALIASES) if n in free], names, plain)
        if completion is None:
            completion, hashes = _find_completion(names, free, row, bool(steps), "answer" in (*free, answer), plain)
    if answer is None and completion != "answer" and "answer" in free and _may_be_answer(row.get("answer")):
        answer = "answer"
    return Columns(level, prompt, completion, answer, steps, messages, hashes)


def read_trace(row: Mapping[str, Any], columns: Columns) -> Trace:
    """Read one row. RowError: "wrong type", "empty trace", "no completion", "no prompt", "unsupported role",
    "unsupported content" or "not valid Unicode"."""
    steps = _read_steps(row, columns.steps) if columns.steps else None
    answer = _answer_text(row.get(columns.answer), columns.answer) if columns.answer else ""
    prompt, completion = _read_pair(row, columns, steps, answer)
    if not completion.strip():
        source = columns.messages or columns.completion or columns.steps
        raise RowError("empty trace", f"column {source!r} holds {len(completion)} characters, none of them visible")
    check_prompt(prompt)
    check_unicode(completion, "completion")
    return Trace(prompt, completion, answer.rpartition(HASHES)[2].strip() or None, steps)


def prompt_key(row: Mapping[str, Any], columns: Columns) -> str:
    """The prompt as one text, equal for two rows exactly when their prompts are; "" where it cannot be read."""
    try:
        chat = columns.messages
        prompt = read_messages(row.get(chat), chat)[:-1] if chat else read_prompt(row, columns.prompt or "prompt")
    except RowError:
        return ""
    return prompt if isinstance(prompt, str) else "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in prompt)


def check_named(names: Sequence[str], given: Mapping[str, str | None]) -> None:
    """ColumnsError where an argument (the key) names something that is no column; None: nothing was named."""
    for argument, name in given.items():
        if name is not None and name not in names:
            near = get_close_matches(str(name), names, n=1, cutoff=0.5)
            fix = f"Did you mean {argument}={near[0]!r}?" if near else f"Pass {argument}= one of these."
            raise ColumnsError(f"{argument}={name!r} is not a column. The columns are {listed(names)}. {fix}")


def tie(part: str, found: Sequence[str]) -> ColumnsError:
    return ColumnsError(
        f"the {part} could be any of the columns {listed(found)}. Name the one you mean: {part}={found[0]!r}"
    )


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "(none)"


def read_prompt(row: Mapping[str, Any], name: str) -> str | Messages:
    """The text or the messages in column `name`; RowError: "wrong type", "no prompt" and those of the messages."""
    value = row.get(name)
    if as_list(value) is None:
        return as_text(value, f"column {name!r}")
    if messages := read_messages(value, name):
        return messages
    raise RowError("no prompt", f"column {name!r} holds an empty list of messages")


def check_prompt(prompt: str | Messages) -> None:
    for text in [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]:
        check_unicode(text, "prompt")


def check_unicode(text: str, whose: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start} of the {whose}"
        raise RowError("not valid Unicode", detail) from error


def _check_given(given: Mapping[str, str | None], names: Sequence[str]) -> None:
    parts = [f"{part}={given[part]!r}" for part in ("prompt", "completion") if given[part] is not None]
    if given["messages"] is not None and parts:
        raise ColumnsError(
            f"messages={given['messages']!r} holds prompt and completion already: drop {' and '.join(parts)}."
        )
    if len(parts) == 2 and given["prompt"] == given["completion"]:
        raise ColumnsError(
            f"{' and '.join(parts)} name one column: nothing says where the prompt ends. Pass two of {listed(names)}."
        )


def _pick(part: str, found: Sequence[str], names: Sequence[str], plain: bool) -> str:
    """The only candidate, or with `plain` the one that is called `prompt` or `completion`."""
    if len(found) == 1 or (plain and part in found):
        return found[0]
    if found:
        raise tie(part, found)
    text = (
        f"no {part} found in the columns {listed(names)}. Looked for `messages`, `conversations`, "
        f"`prompt` and `completion`, else a prompt ({', '.join(PROMPT_ALIASES)}) and a completion "
        f"({', '.join(COMPLETION_ALIASES)}, an answer that holds '####', or steps). "
        f"Name your columns: prompt='...', completion='...' (or messages='...')."
    )
    if "text" in names:
        text += " The column 'text' alone does not say where the prompt ends: split it, or use the chat messages."
    raise ColumnsError(text)


def _find_completion(
    names: Sequence[str], free: Sequence[str], row: Mapping[str, Any], steps: bool, answer: bool, plain: bool
) -> tuple[str | None, bool]:
    """The completion column (None: the joined steps), and whether it is an `answer` that must hold "####"."""
    found = [name for name in ("completion", *COMPLETION_ALIASES) if name in free]
    if not found and (steps or answer):
        return (None, False) if steps else ("answer", True)
    text = row.get("answer")
    if "answer" in free and isinstance(text, str) and HASHES in text:
        found.append("answer")
    return _pick("completion", found, names, plain), False


def _may_be_steps(value: Any) -> bool:
    items = as_list(value)
    return value is None or (items is not None and all(isinstance(item, str) for item in items))


def _may_be_answer(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float | np.number) and not isinstance(value, bool))


def _read_pair(
    row: Mapping[str, Any], columns: Columns, steps: tuple[str, ...] | None, answer: str
) -> tuple[str | Messages, str]:
    """Prompt and completion; messages before the last one belong to the prompt."""
    prompt = () if columns.messages else read_prompt(row, columns.prompt or "prompt")
    name = columns.messages or columns.completion
    if name is None:
        return prompt, _join_steps(steps, answer, columns)
    value = row.get(name)
    if columns.messages is None and as_list(value) is None:
        text = as_text(value, f"column {name!r}")
        if columns.hashes and HASHES not in text and text.strip():
            fix = f"pass completion={name!r} to use it as it is"
            raise RowError("no completion", f"column {name!r} holds no '####'; {fix}")
        return prompt, text
    before, completion = split_chat(value, name)
    if isinstance(prompt, str) and before:
        detail = f"column {name!r} holds {len(before) + 1} messages after a prompt of plain text"
        raise RowError("unsupported content", detail)
    if not before and columns.messages:
        raise RowError("no prompt", f"column {name!r} holds the assistant's message alone")
    return prompt if isinstance(prompt, str) else prompt + before, completion


def _join_steps(steps: tuple[str, ...] | None, answer: str, columns: Columns) -> str:
    reasoning, mark, _ = answer.partition(HASHES)
    if mark and reasoning.strip():
        return answer  # it is the whole trace: the steps are then found inside it
    if steps is None:
        raise RowError("no completion", f"column {columns.steps!r} is empty and there is no completion column")
    return "\n".join([*steps, answer] if answer.strip() else steps)


def _read_steps(row: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = row.get(name)
    items = () if value is None else as_list(value)
    if items is None:
        raise wrong_type(f"column {name!r}", value, "a list of text")
    return tuple(as_text(item, f"item {number} of column {name!r}") for number, item in enumerate(items, 1)) or None


def _answer_text(value: Any, name: str) -> str:
    """Numbers are read as they would be written in a trace: 204, 0.5, and 18.0 as 18."""
    if not _may_be_answer(value):
        raise wrong_type(f"column {name!r}", value, "text")
    if isinstance(value, float | np.floating) and not (math.isfinite(value) and value % 1):
        value = int(value) if math.isfinite(value) else None
    return "" if value is None else str(value)
