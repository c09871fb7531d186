"""Verification contracts: by which rules a completion is right, in which version, and what the rules get wrong.

Whether a completion is right depends on the verifier: how the answer is found, what is normalised, what counts as
equal. So a verifier has a name, a version and options, all in its record, and three outcomes, of which "could not
parse" is none of the other two. `verifier("exact")` makes one; each is a TRL reward function too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np

from hf_curate.chat import as_list, split_chat, wrong_type
from hf_curate.errors import CurateError, RowError
from hf_curate.rows import HASHES, check_named, listed

RIGHT, WRONG, UNPARSED = "right", "wrong", "could not parse"
OUTCOMES = (RIGHT, WRONG, UNPARSED)
SHOWN = 200
"""Characters of a completion that a verdict's detail repeats at most."""

Row = Mapping[str, Any]
Ids = Sequence[Sequence[int]]

_HOMES = {
    "choice": "checkers.Choice",
    "countdown": "countdown.Countdown",
    "exact": "checkers.Exact",
    "math": "mathematics.Mathematics",
}
NAMES = tuple(_HOMES)


@dataclass(frozen=True)
class Verdict:
    """What a verifier says about one completion.

    outcome: "right", "wrong" or "could not parse"; reward: 1.0 for right and 0.0 otherwise, unless a reward function
    gave it; detail: what was read in the completion, or why nothing could be.
    """

    outcome: str
    reward: float
    detail: str = ""


def verdict(outcome: str, detail: str) -> Verdict:
    """The verdict of a checker: 1.0 for right, 0.0 otherwise."""
    return Verdict(outcome, float(outcome == RIGHT), shown(detail))


def shown(text: str, most: int = SHOWN) -> str:
    """At most so many characters of a text, as valid Unicode."""
    cut = text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
    return cut.encode("utf-8", "backslashreplace").decode()


class Verifier(ABC):
    """A verification contract. A subclass says what it is and gives `verify`.

    Attributes:
        name, version: the version is to be raised when the code gives other verdicts.
        kind: "deterministic checker" or "reward function".
        roles: the row's columns that it reads, by the option that names them: {"gold": "answer"}.
        columns: the same columns, in order.
        options: everything chosen that changes verdicts, as JSON; `verifier(name, **options)` repeats a named one.
        failure_surface: one sentence on what it is known to get wrong.
    """

    name: str
    version: str
    failure_surface: str
    kind: str = "deterministic checker"

    def __init__(self, roles: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.roles = dict(roles or {})
        for role, column in self.roles.items():
            if not isinstance(column, str) or not column:
                raise CurateError(f"{role}={column!r} is not the name of a column.")
        self.columns: tuple[str, ...] = tuple(self.roles.values())
        self.options: dict[str, Any] = {**self.roles, **(options or {})}

    @abstractmethod
    def verify(
        self, completions: Sequence[str], rows: Sequence[Row], completion_ids: Ids | None = None
    ) -> list[Verdict | RowError]:
        """One result for each completion; rows[i] is the row that completion i answers.

        completion_ids: the completions' tokens where they are known, for reward functions that read them.
        A RowError says that nothing was judged: "gold missing", "gold unreadable", "wrong type", "verifier failed" or
        "verifier timed out".
        """

    def packages(self) -> dict[str, str]:
        """The packages whose code decides verdicts, with their versions."""
        return {}

    def record(self) -> dict[str, Any]:
        """What manifests and cards say about the contract, as JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "options": self.options,
            "columns": list(self.columns),
            "packages": self.packages(),
            "failure_surface": self.failure_surface,
        }

    @property
    def identity(self) -> str:
        """sha256 over the record without the failure surface, whose words change no verdict."""
        what = {key: value for key, value in self.record().items() if key != "failure_surface"}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def check_columns(self, names: Sequence[str]) -> None:
        """ColumnsError where rows with these columns cannot be verified."""
        check_named(names, self.roles)

    @property
    def __name__(self) -> str:  # type: ignore[override]
        """What TRL calls the reward in its logs."""
        return self.name

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        completion_ids: Ids | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The rewards of completions, as TRL's trainers ask for them; None ("does not apply") instead of a RowError.

        completions: texts, or lists of the assistant's one message; columns: the dataset's columns, a list with one
        entry per completion each. What else a trainer passes (trainer_state, log_extra, ...) is ignored.
        """
        if completions is None:
            raise CurateError("no completions were given: call with completions=[...], as TRL's trainers do.")
        self.check_columns(list(columns))
        for name in self.columns:
            if len(columns[name]) != len(completions):
                raise CurateError(
                    f"column {name!r} has {len(columns[name]):,} entries for {len(completions):,} completions: give "
                    "one for each completion."
                )
        texts = [_text(completion, number) for number, completion in enumerate(completions, 1)]
        rows = [{name: columns[name][i] for name in self.columns} for i in range(len(texts))]
        results = self.verify(texts, rows, completion_ids)
        return [None if isinstance(result, RowError) else result.reward for result in results]


class Checker(Verifier):
    """A verifier that judges one completion at a time."""

    @abstractmethod
    def check(self, completion: str, row: Row) -> Verdict:
        """The verdict on one completion; RowError where the row holds nothing to check it against."""

    def verify(
        self, completions: Sequence[str], rows: Sequence[Row], completion_ids: Ids | None = None
    ) -> list[Verdict | RowError]:
        same_number(completions, rows)
        return [self._checked(*pair) for pair in zip(completions, rows, strict=True)]

    def _checked(self, completion: str, row: Row) -> Verdict | RowError:
        try:
            return self.check(completion, row)
        except RowError as error:
            return error


def verifier(name: str | Callable[..., Any], **options: Any) -> Verifier:
    """The verifier of that name: "exact", "math", "choice" or "countdown"; or one around a TRL reward function.

    A verifier that is made already passes through. CurateError: an unknown name or option. MissingPackageError: "math"
    without its packages.
    """
    if isinstance(name, Verifier):
        if options:
            raise CurateError(f"verifier {name.name!r} is made already: give its options where it is made.")
        return name
    if isinstance(name, str):
        if name not in _HOMES:
            raise CurateError(f"no verifier is called {name!r}. {_near(name, list(_HOMES), 'They are')}")
        make = _maker(_HOMES[name])
    elif callable(name) and not isinstance(name, type):
        make = _maker("functions.Function")
    else:
        raise CurateError(f"{name!r} is no verifier: give one of {listed(list(_HOMES))}, or a reward function.")
    known = [option for option in inspect.signature(make).parameters if option != "function"]
    for option in options:
        if option not in known:
            whose = repr(name) if isinstance(name, str) else "of a reward function"
            raise CurateError(f"verifier {whose} has no option {option!r}. {_near(option, known, 'Its options are')}")
    return make(**options) if isinstance(name, str) else make(name, **options)


def option_types(name: str) -> dict[str, str]:
    """The options of a named verifier, with their types as the code writes them ("str", "float", ...)."""
    parameters = inspect.signature(_maker(_HOMES[name])).parameters
    return {option: str(parameter.annotation) for option, parameter in parameters.items()}


def _maker(home: str) -> Callable[..., Verifier]:
    module, _, kind = home.partition(".")
    return getattr(import_module(f"hf_curate.rollouts.{module}"), kind)


def same_number(completions: Sequence[str], rows: Sequence[Row]) -> None:
    """CurateError unless there is one row for each completion, and each completion is a text."""
    if isinstance(completions, str) or len(completions) != len(rows):
        given = "one text" if isinstance(completions, str) else f"{len(completions):,} completions"
        raise CurateError(f"{given} and {len(rows):,} rows: give a list of completions and a row for each.")
    for number, completion in enumerate(completions, 1):
        if not isinstance(completion, str):
            raise CurateError(f"completion {number} is of type {type(completion).__name__}, expected text.")


def read_gold(row: Row, column: str) -> str:
    """The gold answer: the column's text after its last "####", stripped; a number as it would be written.

    RowError: "gold missing" or "wrong type".
    """
    value = row.get(column)
    if value is None:
        detail = f"column {column!r} holds None" if column in row else f"the row has no column {column!r}"
        raise RowError("gold missing", detail)
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.integer | np.floating):
        raise wrong_type(f"column {column!r}", value, "text or a number")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    gold = "" if value != value else str(value).rpartition(HASHES)[2].strip()  # NaN: a missing value of pandas
    if not gold:
        raise RowError("gold missing", f"column {column!r} holds {shown(repr(value))}")
    return gold


def flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise CurateError(f"{option}={value!r} is neither True nor False.")
    return value


def seconds(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise CurateError(f"{option}={value!r} is not a number of seconds above 0.")
    return value


def _near(name: str, names: Sequence[str], they_are: str) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"{they_are} {listed(names)}."


def _text(completion: Any, number: int) -> str:
    if isinstance(completion, str):
        return completion
    where = f"completion {number}"
    if as_list(completion) is None:
        raise CurateError(f"{where} is of type {type(completion).__name__}, expected text or the assistant's message.")
    try:
        before, text = split_chat(completion, "completions")
    except RowError as error:
        raise CurateError(f"{where} cannot be read: {error}.") from error
    if before:
        raise CurateError(f"{where} holds {len(before) + 1} messages, expected the assistant's alone.")
    return text
