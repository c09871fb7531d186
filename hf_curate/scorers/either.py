"""Reads rows that hold either rollouts or one trace, whichever a dataset's columns say. Shared by the baselines that
look at text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_curate.batches import Example
from hf_curate.errors import ColumnsError, RowError
from hf_curate.scorers.groups import Group, GroupReader
from hf_curate.scorers.traces import TraceReader
from hf_curate.weights import ModelSource

OF_ROLLOUTS = ("responses", "response_ids", "rewards")
OF_TRACES = ("completion", "answer", "steps")
SHARED = ("prompt", "messages")
ROLES = (*SHARED, *OF_TRACES, *OF_ROLLOUTS)


def holds_rollouts(names: Sequence[str], asked: Mapping[str, str | None]) -> bool:
    """Whether rows with the columns `names` are read as rollouts and not as traces.

    A column that the caller named by its role decides; else there are rollouts where there are `rewards` and
    `responses` or `response_ids`. ColumnsError: columns of both kinds were named.
    """
    rollouts = [f"{role}={asked[role]!r}" for role in OF_ROLLOUTS if asked.get(role) is not None]
    trace = [f"{role}={asked[role]!r}" for role in OF_TRACES if asked.get(role) is not None]
    if rollouts and trace:
        raise ColumnsError(
            f"{', '.join(rollouts)} would be rollouts and {', '.join(trace)} a trace, and a row is read as one of "
            "both: drop one kind of argument."
        )
    if rollouts or trace:
        return bool(rollouts)
    return "rewards" in names and ("responses" in names or "response_ids" in names)


class EitherReader:
    """From a dataset row to a `Group` or an `Example` under one tokenizer.

    Args:
        given: the scorer's arguments, among them the column names by role (`ROLES`), None where not given.
    """

    def __init__(self, source: ModelSource, given: Mapping[str, Any]) -> None:
        tokenizer, limit = given["tokenizer"], given["max_length"]
        self.asked: dict[str, str | None] = {role: given[role] for role in ROLES}
        of_groups = {role: self.asked[role] for role in (*SHARED, *OF_ROLLOUTS)}
        of_traces = {role: self.asked[role] for role in (*SHARED, *OF_TRACES)}
        self.groups = GroupReader(source, of_groups, tokenizer, limit)
        self.traces = TraceReader(source, of_traces, given["split_steps"], tokenizer, limit)
        holds_rollouts((), self.asked)
        self._latest: GroupReader | TraceReader | None = None

    def of(self, names: Sequence[str]) -> GroupReader | TraceReader:
        """The reader of rows with these columns."""
        self._latest = self.groups if holds_rollouts(names, self.asked) else self.traces
        return self._latest

    @property
    def tokenizer(self) -> Any:
        if self.groups._tokenizer is None:
            self.groups._tokenizer = self.traces.tokenizer  # loaded once for both
        return self.groups._tokenizer

    def reads(self, names: Sequence[str]) -> list[str]:
        return self.of(names).reads(names)

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        return self.of(list(rows)).is_batch(rows)

    def columns_of(self, names: Sequence[str], first_row: Mapping[str, Any] | None = None) -> Any:
        return self.of(names).columns_of(names, first_row)

    def read(self, row: Mapping[str, Any]) -> Group | Example | RowError:
        """The row as tokens, or the reason why it cannot be scored."""
        _ = self.tokenizer
        return self.of(list(row)).read(row)

    def settings(self) -> dict[str, Any]:
        _ = self.tokenizer
        return {**self.traces.settings(), "columns": dict(self.asked)}

    def record(self) -> dict[str, Any]:
        """The settings with the columns that were found in place of those asked for."""
        found = {} if self._latest is None else {"columns": self._latest.record()["columns"]}
        return {**self.settings(), **found}
