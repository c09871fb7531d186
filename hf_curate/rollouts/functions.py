"""A TRL reward function as a verifier. It is somebody else's code: it may raise, hang, or return anything."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from hf_curate.chat import as_list, read_messages
from hf_curate.errors import CurateError, RowError
from hf_curate.rollouts.verify import (
    RIGHT,
    UNPARSED,
    WRONG,
    Ids,
    Row,
    Verdict,
    Verifier,
    flag,
    same_number,
    seconds,
    shown,
)
from hf_curate.rows import PROMPT_ALIASES, check_named

RIGHT_ABOVE = 0.5
ABANDONED = 3
_PROMPTS = ("messages", "conversations", "prompt", *PROMPT_ALIASES)
_NOT_PASSED = ("prompt", "completion", "completion_ids")  # TRL passes every other column of the row


class Function(Verifier):
    """A reward function f(prompts, completions, completion_ids, **columns) -> list[float | None].

    It is called as TRL calls it, with all completions of one row at a time: consecutive completions whose `rows` entry
    is the same object. A reward above 0.5 is right, any other wrong, None could not be parsed (with the reward 0.0).
    What it does wrong becomes "verifier failed" or "verifier timed out" for the row.

    Parameters:
        function: the reward function; a coroutine function cannot be used.
        timeout: seconds for one row, after which the call is left running in its thread; three such calls end the run.
            None: the call has no limit and runs in the caller's thread, as functions that set signals need it.
        prompt: the column of the prompt; by default `messages`, `conversations`, `prompt` or a column like `question`.
        chat: whether completions are passed as messages, and a prompt of plain text as a user's message; by default
            where the prompt is a chat.
        version: to be raised when the function gives other rewards; by default a digest of its source, and one of what
            it was made with: arguments of a `partial`, attributes of an object, variables of an enclosing function,
            defaults of its parameters (plain values count as such, all others by their kind).
    """

    kind = "reward function"
    failure_surface = "whatever the reward function gets wrong: it was called, not examined"

    def __init__(
        self,
        function: Callable[..., Any],
        timeout: float | None = 60.0,
        prompt: str | None = None,
        chat: bool | None = None,
        version: str | None = None,
    ) -> None:
        called, partials = function, []
        while isinstance(called, functools.partial):
            partials.append(called)
            called = called.func
        self.name = getattr(called, "__name__", type(called).__name__)
        if any(map(inspect.iscoroutinefunction, (called, getattr(called, "__call__", None)))):  # noqa: B004
            raise CurateError(f"reward function {self.name!r} is a coroutine function: give one that returns rewards.")
        chosen = {"timeout": None if timeout is None else seconds("timeout", timeout), "prompt": prompt}
        chosen |= {"chat": None if chat is None else flag("chat", chat)}
        super().__init__({}, chosen | {"function": f"{_module(called)}.{_qualified(called)}"})
        self.function = function
        self.version = version or _source_digest(called) + _settings_digest(partials, called)
        self._distribution = _module(called).partition(".")[0]
        self._running: list[threading.Thread] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": []}

    def packages(self) -> dict[str, str]:
        """The package that the function comes from, if it is installed as one of that name."""
        try:
            return {self._distribution: importlib.metadata.version(self._distribution)}
        except importlib.metadata.PackageNotFoundError:
            return {}

    def check_columns(self, names: Sequence[str]) -> None:
        check_named(names, {"prompt": self.options["prompt"]})

    def verify(
        self, completions: Sequence[str], rows: Sequence[Row], completion_ids: Ids | None = None
    ) -> list[Verdict | RowError]:
        same_number(completions, rows)
        results: list[Verdict | RowError] = []
        for _, group in groupby(range(len(rows)), lambda i: id(rows[i])):
            part = list(group)
            ids = None if completion_ids is None else [completion_ids[i] for i in part]
            texts = [completions[i] for i in part]
            try:
                results += [_judged(reward, n) for n, reward in enumerate(self._rewards(texts, rows[part[0]], ids), 1)]
            except RowError as error:
                results += [error] * len(part)
        return results

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        completion_ids: Ids | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The function itself, with all that TRL passes."""
        return self.function(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)

    def _rewards(self, texts: list[str], row: Row, ids: list[Any] | None) -> list[Any]:
        """One reward for each of a row's completions, not yet looked at. RowError: there are none."""
        prompt, chat = self._prompt(row)
        answers = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        columns = {name: [value] * len(texts) for name, value in row.items() if name not in _NOT_PASSED}
        arguments = {"prompts": [prompt] * len(texts), "completions": answers, "completion_ids": ids}
        returned = self._called(arguments, columns, len(texts))
        plain = returned.tolist() if hasattr(returned, "tolist") else returned  # an array or tensor
        rewards = as_list(plain)
        if rewards is None:
            kind = type(returned).__name__
            raise RowError("verifier failed", f"it returned {kind}, expected a list of {len(texts):,} rewards")
        if len(rewards) != len(texts):
            detail = f"it returned {len(rewards):,} rewards, expected {len(texts):,}, one for each completion"
            raise RowError("verifier failed", detail)
        return list(rewards)

    def _prompt(self, row: Row) -> tuple[Any, bool]:
        """The prompt as TRL would pass it, and whether the row is a chat."""
        asked, chat = self.options["prompt"], self.options["chat"]
        name = asked or next((name for name in _PROMPTS if row.get(name) is not None), None)
        value = None if name is None else row.get(name)
        if name is not None and as_list(value) is not None:
            messages = [dict(message) for message in read_messages(value, name)]
            if messages and messages[-1]["role"] == "assistant":
                messages.pop()
            return messages, chat is not False
        return ([{"role": "user", "content": value}] if chat and value is not None else value), bool(chat)

    def _called(self, arguments: dict[str, Any], columns: dict[str, Any], count: int) -> Any:
        timeout = self.options["timeout"]
        if timeout is None:
            try:
                return self.function(**arguments, **columns)
            except Exception as error:  # whatever that code raises; it concerns this row alone
                raise _raised(error) from error
        self._running = [thread for thread in self._running if thread.is_alive()]
        if len(self._running) >= ABANDONED:
            raise CurateError(
                f"{len(self._running)} calls of reward function {self.name!r} are still running after their "
                f"{timeout:g} s: it hangs. Mend it, or give it more time: verifier({self.name}, timeout=...)."
            )
        outcome: list[tuple[str, Any]] = []
        thread = threading.Thread(target=self._call_into, args=(outcome, arguments, columns), daemon=True)
        thread.start()
        thread.join(timeout)
        if not outcome:
            self._running.append(thread)
            raise RowError("verifier timed out", f"no rewards for {count:,} completions within {timeout:g} s")
        what, value = outcome[0]
        if what == "raised":
            raise _raised(value) from value
        return value

    def _call_into(self, outcome: list[tuple[str, Any]], arguments: dict[str, Any], columns: dict[str, Any]) -> None:
        try:
            outcome.append(("returned", self.function(**arguments, **columns)))
        except BaseException as error:  # noqa: BLE001 - also SystemExit, which would end the thread without a word
            outcome.append(("raised", error))


def _judged(reward: Any, number: int) -> Verdict | RowError:
    if reward is None:
        return Verdict(UNPARSED, 0.0, "the reward function returned None")
    value = reward.item() if getattr(reward, "ndim", None) == 0 else reward  # a scalar of numpy or torch
    if not isinstance(value, int | float):
        what = f"{type(reward).__name__} {shown(repr(reward))}"
        return RowError("verifier failed", f"reward {number} is {what}, expected a number or None")
    if not math.isfinite(value):
        return RowError("verifier failed", f"reward {number} is {value}, expected a finite number or None")
    return Verdict(RIGHT if value > RIGHT_ABOVE else WRONG, float(value))


def _raised(error: BaseException) -> RowError:
    return RowError("verifier failed", shown(f"{type(error).__name__}: {error}"))


def _module(called: Any) -> str:
    return getattr(called, "__module__", None) or type(called).__module__


def _qualified(called: Any) -> str:
    return getattr(called, "__qualname__", None) or type(called).__qualname__


def _source_digest(called: Any) -> str:
    """ "source " and twelve digits of its sha256; "unknown" where there is no source."""
    try:
        source = inspect.getsource(called if hasattr(called, "__qualname__") else type(called))
    except (OSError, TypeError):
        return "unknown"
    return f"source {hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _settings_digest(partials: Sequence[functools.partial[Any]], called: Any) -> str:
    """ ", settings " and twelve digits of the sha256 of what a function was made with; "" where that is nothing.

    A digest, not the values: they may be secret, and records are published.
    """
    cells = getattr(called, "__closure__", None) or ()
    names = called.__code__.co_freevars if cells else ()
    owner = called.__self__ if inspect.ismethod(called) else called
    own = {} if inspect.isfunction(owner) else dict(getattr(owner, "__dict__", {}))
    values = [value for one in partials for value in (*one.args, *sorted(one.keywords.items()))]
    values += [*sorted(own.items()), *((name, _content(cell)) for name, cell in zip(names, cells, strict=True))]
    values += getattr(called, "__defaults__", None) or ()
    values += sorted((getattr(called, "__kwdefaults__", None) or {}).items())
    text = "\n".join(map(_told_apart, values))
    return f", settings {hashlib.sha256(text.encode()).hexdigest()[:12]}" if values else ""


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not set yet
        return None


def _told_apart(value: Any) -> str:
    """A plain value as JSON; a function by its name, anything else by its type."""
    try:
        return json.dumps(value, sort_keys=True, default=_kind)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a list that holds itself
        return _kind(value)


def _kind(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{_module(named)}.{_qualified(named)}"
