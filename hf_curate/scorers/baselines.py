"""Scorers to compare with. Those here need no model: they look at rewards, or at chance. Those that read text with a
tokenizer or a model are in `texts`, and importable from here."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.chat import as_list, wrong_type
from hf_curate.errors import ColumnsError, CurateError, RowError
from hf_curate.groups import GroupColumns, read_group
from hf_curate.rows import check_named, listed
from hf_curate.scorers.base import Scorer
from hf_curate.scorers.checks import checked_number
from hf_curate.scorers.reading import is_list, said_batch
from hf_curate.scorers.texts import LongestScorer, LossScorer, MostStepsScorer, score_columns

if TYPE_CHECKING:
    from datasets import Features

__all__ = [
    "AccuracyGreedyScorer",
    "LongestScorer",
    "LossScorer",
    "MostStepsScorer",
    "PassRateBandScorer",
    "RandomScorer",
]

LISTS = ("rewards", "responses", "response_ids", "steps")
"""Columns by whose usual names a value is a list already in one row."""


class PlainScorer(Scorer):
    """Base of the scorers without a model. A subclass calls `_take` in its constructor, with `locals()`."""

    def _take(self, given: Mapping[str, Any]) -> None:
        self._arguments = {name: value for name, value in given.items() if name not in ("self", "__class__")}

    @property
    def columns(self) -> Features:
        return score_columns(self.prefix)

    @property
    def column(self) -> str:
        return f"{self.prefix}_score"

    def model_record(self) -> None:
        return None

    def call(self) -> str:
        """The arguments that differ from their defaults."""
        defaults = {name: p.default for name, p in inspect.signature(type(self).__init__).parameters.items()}
        given = [f"{name}={value!r}" for name, value in self._arguments.items() if value != defaults[name]]
        return f"{type(self).__name__}({', '.join(given)})"

    def __repr__(self) -> str:
        return f"<{self.call()}>"

    def _portable_arguments(self) -> dict[str, Any]:
        return self._arguments


# -- rewards ----------------------------------------------------------------------------------------------------------


class RewardScorer(PlainScorer):
    """Base of the scorers that look at nothing but a column of rewards."""

    correct_above: float

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take(given)
        self.correct_above = checked_number(given["correct_above"], "correct_above")
        self.asked: str | None = given["rewards"]

    def settings(self) -> dict[str, Any]:
        return {"correct_above": self.correct_above, "columns": {"rewards": self.asked}}

    def record(self) -> dict[str, Any]:
        record = super().record()
        return {**record, "settings": {**record["settings"], "columns": {"rewards": self.asked or "rewards"}}}

    def reads(self, names: Sequence[str]) -> list[str]:
        """The rewards; all columns where there are none, so that the error can name them."""
        wanted = self.asked or "rewards"
        return [wanted] if wanted in names else list(names)

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        check_named(names, {"rewards": self.asked})
        if self.asked is None and "rewards" not in names:
            near = get_close_matches("rewards", names, n=1, cutoff=0.6)
            fix = f"Did you mean rewards={near[0]!r}?" if near else "Name the column: rewards='...'."
            raise ColumnsError(
                f"no rewards found in the columns {listed(names)}. {self.name} needs the rewards of each problem's "
                f"rollouts, a list of numbers. {fix}"
            )

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """As for every scorer; in a plain mapping a row's rewards are a list too, so look one level deeper."""
        if (said := said_batch(rows)) is not None:
            return said
        self.check_columns(list(rows), None)
        return all_lists(rows) and all(item is None or is_list(item) for item in rows[self.asked or "rewards"])

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        return [self._result(row) for row in rows]

    def _result(self, row: Mapping[str, Any]) -> dict[str, Any] | RowError:
        try:
            rewards = read_rewards(row, self.asked or "rewards")
        except RowError as error:
            return error
        right = int((rewards > self.correct_above).sum())
        return {self.column: np.float32(self.value(right, len(rewards)))}

    def value(self, right: int, count: int) -> float:
        """The score of a problem of whose `count` rollouts `right` are correct."""
        raise NotImplementedError


class AccuracyGreedyScorer(RewardScorer):
    """Scores problems by how near their success rate p is to one half. No model is read.

    Args:
        correct_above (`float`, *optional*, defaults to 0.5): a rollout with a higher reward counts as correct.
        rewards (`str`, *optional*, defaults to `"rewards"`): column with a list of numbers, one per rollout.

    Adds `accuracy_greedy_score` (float32, -|p - 0.5|, from -0.5 to 0) and `accuracy_greedy_error` (string, "" when
    scored). Rows whose rewards are missing or not finite are null with a reason.

    Raises: `ColumnsError` when there is no such column, `CurateError` for settings out of range.

    Source: the baseline of that name in GradAlign, arXiv 2602.21492.
    """

    name = "Accuracy greedy"
    prefix = "accuracy_greedy"
    algorithm_version = 1

    def __init__(self, *, correct_above: float = 0.5, rewards: str | None = None) -> None:
        super().__init__()
        self._take(locals())

    def value(self, right: int, count: int) -> float:
        return -abs(2 * right - count) / (2 * count)  # one division of whole numbers: 3 and 7 of 10 tie exactly


class PassRateBandScorer(RewardScorer):
    """Scores problems 1.0 whose success rate p lies strictly between `low` and `high`, and others 0.0. No model is
    read.

    Args:
        low (`float`, *optional*, defaults to 0.0), high (`float`, *optional*, defaults to 1.0): 0 <= low < high <= 1.
        correct_above (`float`, *optional*, defaults to 0.5): a rollout with a higher reward counts as correct.
        rewards (`str`, *optional*, defaults to `"rewards"`): column with a list of numbers, one per rollout.

    Adds `pass_rate_band_score` (float32) and `pass_rate_band_error` (string, "" when scored). All rows in the band
    tie, and a selection takes them in their order.

    Raises: `ColumnsError` when there is no such column, `CurateError` for settings out of range.
    """

    name = "Pass rate band"
    prefix = "pass_rate_band"
    algorithm_version = 1

    def __init__(
        self, *, low: float = 0.0, high: float = 1.0, correct_above: float = 0.5, rewards: str | None = None
    ) -> None:
        super().__init__()
        self._take(locals())
        self.low, self.high = checked_number(low, "low"), checked_number(high, "high")
        if not 0.0 <= self.low < self.high <= 1.0:
            raise CurateError(f"low={low!r} and high={high!r} are no band of success rates: 0 <= low < high <= 1.")

    def settings(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, **super().settings()}

    def value(self, right: int, count: int) -> float:
        return float(self.low < right / count < self.high)


def read_rewards(row: Mapping[str, Any], name: str) -> np.ndarray:
    """[K] float64, K >= 1, of column `name`. RowError: "reward missing", "no rollouts", "wrong type" or "reward not
    finite"."""
    value = row.get(name)
    if value is None:
        raise RowError("reward missing", f"column {name!r} holds None")
    items = as_list(value)
    if items is None:
        raise wrong_type(f"column {name!r}", value, "a list of numbers")
    if not len(items):
        raise RowError("no rollouts", f"column {name!r} holds an empty list")
    nothing = {"of a prompt": "", "of responses": [""] * len(items)}  # which do not matter here
    return read_group(
        {**nothing, "rewards": items}, GroupColumns("explicit", "of a prompt", None, "of responses", None, "rewards")
    ).rewards


# -- chance -----------------------------------------------------------------------------------------------------------


class RandomScorer(PlainScorer):
    """Scores rows by chance, from a seed and what is in the row. No model is read.

    Args:
        seed (`int`, *optional*, defaults to 0): from 0 on; each gives another order.

    Adds `random_score` (float32, uniform in [0, 1), 2^24 values) and `random_error` (string, "" when scored). A score
    does not depend on the row's place, on its neighbours or on columns that scorers have added. Rows that are equal in
    all other columns get equal scores.

    Raises: `CurateError` for another seed. A row that holds anything but text, numbers, dates, bytes, and lists and
    dicts of them (an image, say) is null with a reason.
    """

    name = "Random"
    prefix = "random"
    algorithm_version = 1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise CurateError(f"seed={seed!r} must be a whole number from 0 on.")
        self._take(locals())
        self.seed = seed

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def reads(self, names: Sequence[str]) -> list[str]:
        """All columns but those of scorers."""
        own = {name.removesuffix("_error") for name in names if name.endswith("_error")}
        own = {prefix for prefix in own if {f"{prefix}_score", f"{prefix}_value"} & set(names)}
        added = {"learnability"} if "learnalign" in own else set()
        return [name for name in names if name not in added and not any(name.startswith(f"{p}_") for p in own)]

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        if not names:
            raise ColumnsError("the rows have no columns but those of scores: there is nothing to tell them apart by.")

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """As for every scorer. A plain mapping is a batch when every column holds a list, all as long, and no column
        of lists (responses, rewards, chat messages) holds those of one row."""
        if (said := said_batch(rows)) is not None:
            return said
        if not all_lists(rows) or len({len(value) for value in rows.values()}) > 1:
            return False
        if any(isinstance(item, Mapping) for value in rows.values() for item in value):
            return False
        return all(item is None or is_list(item) for name in LISTS if name in rows for item in rows[name])

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        return [self._result(row) for row in rows]

    def _result(self, row: Mapping[str, Any]) -> dict[str, Any] | RowError:
        for name, value in row.items():
            try:
                _written(value)
            except TypeError as error:
                return RowError("not plain", f"column {name!r} holds a {error}: score without that column")
        digest = hashlib.sha256(f"{self.seed}\0{_written(dict(row))}".encode()).digest()
        return {"random_score": np.float32(int.from_bytes(digest[:3], "big") / 2**24)}


def all_lists(rows: Mapping[str, Any]) -> bool:
    return bool(rows) and all(is_list(value) for value in rows.values())


def _written(value: Any) -> str:
    """As JSON, the same wherever the columns stand. Raises TypeError with the name of a type that has no such form."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(type(value).__name__)
