"""What a row with rollouts is: a prompt, the responses that a policy sampled for it, and a reward for each.

`detect_group_columns` decides once per dataset which columns hold them, `read_group` reads one row. Order of
precedence for the prompt: explicit > `messages` > `conversations` (ShareGPT) > `prompt` > the aliases of `rows`; for
the responses: explicit > `response_ids` (what was sampled) > `responses` (its text). Texts and ids are passed on
unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from hf_curate.chat import Messages, as_list, read_messages, split_chat, wrong_type
from hf_curate.errors import ColumnsError, RowError
from hf_curate.rows import PROMPT_ALIASES, check_named, check_prompt, check_unicode, listed, read_prompt, tie

CHATS = ("messages", "conversations")
CORRECT_ABOVE = 0.5
"""A rollout with a higher reward counts as correct, unless a scorer is told otherwise."""
SAME_REWARD = 1e-6
"""Rewards that differ by no more than this share of the largest are equal: the rest is rounding of sums of parts."""


@dataclass(frozen=True)
class GroupColumns:
    """Which columns of a dataset hold what; one of `prompt` and `messages`, and of the two `response` columns, is
    None."""

    level: str  # where the prompt was found: "explicit" | "messages" | "conversations" | "prompt" | "aliases"
    prompt: str | None
    messages: str | None  # the prompt as a chat; a last message of the assistant's is no part of it
    responses: str | None
    response_ids: str | None
    rewards: str

    def record(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class PromptColumns:
    """Which column holds the problem: one of `prompt` and `messages` is None."""

    level: str  # "explicit" | "messages" | "conversations" | "prompt" | "aliases"
    prompt: str | None
    messages: str | None

    def record(self) -> dict[str, Any]:
        """The fields as plain JSON values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class RewardedGroup:
    """One row as the scorers of policy gradients read it: K >= 1 rollouts, in the order of the row.

    responses or response_ids is None; rewards: [K] float64, finite.
    """

    prompt: str | Messages  # messages are for the tokenizer's chat template
    responses: tuple[str, ...] | None
    response_ids: tuple[tuple[int, ...], ...] | None
    rewards: np.ndarray


def detect_prompt_columns(
    names: Sequence[str],
    first_row: Mapping[str, Any] | None = None,
    *,
    prompt: str | None = None,
    messages: str | None = None,
) -> PromptColumns:
    """Decide which of the columns `names` holds the problem. ColumnsError: none, or more than one could be meant."""
    given = {"prompt": prompt, "messages": messages}
    check_named(names, given)
    _check_given({**given, "responses": None, "response_ids": None})
    if prompt is not None or messages is not None:
        return PromptColumns("explicit", prompt, messages)
    return PromptColumns(*_find_prompt(names, names))


def read_problem(row: Mapping[str, Any], columns: PromptColumns | GroupColumns) -> str | Messages:
    """The prompt of one row: text, or the messages before the assistant's last one. RowError as `read_group`."""
    prompt = _read_chat(row, columns.messages) if columns.messages else read_prompt(row, columns.prompt or "prompt")
    check_prompt(prompt)
    return prompt


def detect_group_columns(
    names: Sequence[str],
    first_row: Mapping[str, Any] | None = None,
    *,
    prompt: str | None = None,
    messages: str | None = None,
    responses: str | None = None,
    response_ids: str | None = None,
    rewards: str | None = None,
) -> GroupColumns:
    """Decide which of the columns `names` hold the prompt, the responses and their rewards.

    The keyword arguments name columns; names alone decide about the others. `first_row` only serves to say in an error
    which columns look like rollouts or rewards.
    ColumnsError: a named column does not exist, no columns can be read, or more than one could be meant.
    """
    given = {"prompt": prompt, "messages": messages, "responses": responses}
    given |= {"response_ids": response_ids, "rewards": rewards}
    check_named(names, given)
    _check_given(given)
    free = [name for name in names if name not in given.values()]
    rolled = responses is not None or response_ids is not None
    if not rolled and "response_ids" in free:
        response_ids = "response_ids"
    elif not rolled and "responses" in free:
        responses = "responses"
    if rewards is None and "rewards" in free:
        rewards = "rewards"
    if rewards is None or (responses is None and response_ids is None):
        lacking = (responses is None and response_ids is None, rewards is None)
        raise ColumnsError(_lacks_rollouts(names, [n for n in free if n not in CHATS], first_row or {}, *lacking))
    level = "explicit"
    if prompt is None and messages is None:
        level, prompt, messages = _find_prompt(names, free)
    return GroupColumns(level, prompt, messages, responses, response_ids, rewards)


def read_group(row: Mapping[str, Any], columns: GroupColumns) -> RewardedGroup:
    """Read one row. RowError: "no rollouts", "empty response", "rewards and responses differ", "reward missing",
    "reward not finite", "wrong type", "no prompt", "unsupported role", "unsupported content" or "not valid Unicode".

    A response is a text, or a chat of the assistant's one message; a text may be empty, a list of ids may not. Rewards
    are numbers or booleans (0 and 1).
    """
    prompt = read_problem(row, columns)
    name = columns.response_ids or columns.responses or "responses"
    value = row.get(name)
    items = () if value is None else as_list(value)
    if items is None:
        raise wrong_type(f"column {name!r}", value, "a list of responses")
    if not len(items):
        raise RowError("no rollouts", f"column {name!r} holds {'None' if value is None else 'an empty list'}")
    rewards = _read_rewards(row, columns.rewards, len(items))
    if columns.response_ids:
        ids = tuple(_ids(item, number) for number, item in enumerate(items, 1))
        return RewardedGroup(prompt, None, ids, rewards)
    texts = tuple(_text(item, number, name) for number, item in enumerate(items, 1))
    return RewardedGroup(prompt, texts, None, rewards)


# -- columns ----------------------------------------------------------------------------------------------------------


def _check_given(given: Mapping[str, str | None]) -> None:
    named = {argument: name for argument, name in given.items() if name is not None}
    for one, other, what in (("prompt", "messages", "the prompt"), ("responses", "response_ids", "the responses")):
        if one in named and other in named:
            raise ColumnsError(
                f"{one}={named[one]!r} and {other}={named[other]!r} both name {what}: drop one of the two arguments."
            )
    for name in named.values():
        twice = [f"{argument}={name!r}" for argument in named if named[argument] == name]
        if len(twice) > 1:
            raise ColumnsError(f"{' and '.join(twice)} name one column: give each a column of its own.")


def _find_prompt(names: Sequence[str], free: Sequence[str]) -> tuple[str, str | None, str | None]:
    """(level, prompt column, chat column) where neither was named."""
    for level in CHATS:
        if level in free:
            return level, None, level
    if "prompt" in free:
        return "prompt", "prompt", None
    found = [name for name in PROMPT_ALIASES if name in free]
    if len(found) == 1:
        return "aliases", found[0], None
    if found:
        raise tie("prompt", found)
    near = get_close_matches("prompt", free, n=1, cutoff=0.5)
    fix = f"Did you mean prompt={near[0]!r}?" if near else "Name it: prompt='...' (or messages='...')."
    raise ColumnsError(
        f"no prompt found in the columns {listed(names)}. Looked for `messages`, `conversations` and `prompt`, else "
        f"{', '.join(PROMPT_ALIASES)}. {fix}"
    )


def _lacks_rollouts(
    names: Sequence[str], free: Sequence[str], row: Mapping[str, Any], responses: bool, rewards: bool
) -> str:
    parts = [part for part, lacks in (("responses", responses), ("rewards", rewards)) if lacks]
    near = {part: _looks_like(part, free, row) for part in parts}
    blank = {"responses": "responses='...' (or response_ids='...')", "rewards": "rewards='...'"}
    fix = " and ".join(f"{part}={name!r}" if name else blank[part] for part, name in near.items())
    return (
        f"no {' and no '.join(parts)} found in the columns {listed(names)}. Rows need the rollouts of one problem, as "
        "`response_ids` (a list of lists of token ids) or `responses` (a list of texts), and their `rewards` (a list "
        f"of numbers). {f'Did you mean {fix}?' if all(near.values()) else f'Name the columns: {fix}.'}"
    )


def _looks_like(part: str, free: Sequence[str], row: Mapping[str, Any]) -> str | None:
    """The nearest column by its name, or the only one whose first value is a list of texts (of numbers)."""
    wanted = str if part == "responses" else (int, float)
    values = {name: as_list(row.get(name)) for name in free}
    fits = [name for name, items in values.items() if items and all(isinstance(item, wanted) for item in items)]
    near = get_close_matches(part, fits if row else free, n=1, cutoff=0.6)
    if near:
        return near[0]
    return fits[0] if len(fits) == 1 else None


# -- rows -------------------------------------------------------------------------------------------------------------


def _read_chat(row: Mapping[str, Any], name: str) -> Messages:
    messages = read_messages(row.get(name), name)
    if not messages:
        raise RowError("no prompt", f"column {name!r} holds an empty list of messages")
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise RowError("no prompt", f"column {name!r} holds the assistant's message alone")
    return asked


def _text(item: Any, number: int, name: str) -> str:
    where = f"response {number}"
    if not isinstance(item, str):
        if as_list(item) is None:
            raise wrong_type(where, item, "text or a chat of one message")
        try:
            before, item = split_chat(item, name)
        except RowError as error:
            raise RowError(error.kind, f"{where}: {error.detail}") from error
        if before:
            detail = f"{where} holds {len(before) + 1} messages, expected the assistant's alone"
            raise RowError("unsupported content", detail)
    check_unicode(item, f"text of {where}")
    return item


def _ids(item: Any, number: int) -> tuple[int, ...]:
    ids = as_list(item)
    if ids is None:
        raise wrong_type(f"response {number}", item, "a list of token ids")
    if not len(ids):
        raise RowError("empty response", f"response {number} holds no token id")
    for place, token in enumerate(ids, 1):
        if not isinstance(token, int | np.integer) or isinstance(token, bool):
            raise wrong_type(f"token {place} of response {number}", token, "a whole number")
        if token < 0:
            raise RowError("wrong type", f"token {place} of response {number} is {token}, expected 0 or more")
    return tuple(map(int, ids))


def _read_rewards(row: Mapping[str, Any], name: str, responses: int) -> np.ndarray:
    """[K] float64, K = `responses`."""
    value = row.get(name)
    if value is None:
        raise RowError("reward missing", f"column {name!r} holds None for {responses:,} responses")
    rewards = as_list(value)
    if rewards is None:
        raise wrong_type(f"column {name!r}", value, "a list of numbers")
    if len(rewards) != responses:
        raise RowError("rewards and responses differ", f"{len(rewards):,} rewards, {responses:,} responses")
    return np.array([_reward(reward, number) for number, reward in enumerate(rewards, 1)], dtype=np.float64)


def _reward(reward: Any, number: int) -> float:
    if reward is None:
        raise RowError("reward missing", f"reward {number} is None")
    if not isinstance(reward, int | float | np.integer | np.floating | np.bool_):
        raise wrong_type(f"reward {number}", reward, "a number")
    try:
        value = float(reward)
    except OverflowError:  # an int that no float64 can hold
        value = math.inf
    if not math.isfinite(value):
        raise RowError("reward not finite", f"reward {number} is {value}")
    return value
