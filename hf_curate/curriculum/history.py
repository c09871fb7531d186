"""What a training used, when and by which policy: as a dataset, and as a selection with its card."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.curriculum.selector import OnlineSelector
    from hf_curate.selection import Selection


def by_row(record: dict[str, Any], what: str) -> dict[int, Any]:
    """Row of the pool -> what a round's record says of it; null for each where it says nothing."""
    return dict(zip(record["rows"], record[what] or [None] * len(record["rows"]), strict=True))


def history_dataset(selector: OnlineSelector) -> Dataset:
    """See `OnlineSelector.history_dataset`."""
    from datasets import Value

    entries = [(batch, row) for batch in _used(selector) for row in batch["rows"]]
    scores = [{} if one["chance"] else by_row(one, "scores") for one in selector.history]
    columns = {
        "step": (Value("int64"), [batch["step"] for batch, _ in entries]),
        "round": (Value("int64"), [batch["round"] for batch, _ in entries]),
        "source_row": (Value("int64"), [row for _, row in entries]),
        "score": (Value("float32"), [scores[batch["round"]].get(row) for batch, row in entries]),
    }
    chosen = _without(selector.pool, *columns).select([row for _, row in entries])
    for name, (kind, values) in columns.items():
        chosen = chosen.add_column(name, values, feature=kind)
    return chosen


def used_selection(selector: OnlineSelector, source: str | None = None) -> Selection:
    """See `OnlineSelector.used_selection`."""
    from datasets import List, Value

    from hf_curate.selection import select

    steps: list[list[int]] = [[] for _ in range(len(selector.pool))]
    for batch in _used(selector):
        for row in batch["rows"]:
            steps[row].append(batch["step"])
    pool = _without(selector.pool, *_Account.columns)
    pool = pool.add_column("online_uses", list(map(len, steps)), feature=Value("int32"))
    pool = pool.add_column("online_steps", steps, feature=List(Value("int64")))
    told: Any = _Account(selector)
    return select(pool, told, strategy="threshold", min_score=1, source=source)


class _Account:
    """What `select` asks a scorer for, of a training's selector."""

    column = "online_uses"
    columns = ("online_uses", "online_steps")

    def __init__(self, selector: OnlineSelector) -> None:
        self.selector = selector

    @property
    def identity(self) -> str:
        what = {"settings": self.selector.settings(), "data": self.selector.data()}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        one = self.selector
        told = one.record()
        settings = {**told["settings"], **{n: told[n] for n in ("rounds", "rounds_by_chance", "selection_rollouts")}}
        last = one.history[-1]
        policy = {"id": "the policy in training", "sha": None, "digest": last.get("policy")}
        return {
            "name": f"Online selection, {one.scorer.name}",
            "algorithm_version": 1,
            "identity": self.identity,
            "settings": {**settings, "verifier": (told["verifier"] or {}).get("name")},
            "model": {**policy, "dtype": None, "architecture": None} if last.get("policy") else None,
            "direction": last.get("direction"),
        }


def _used(selector: OnlineSelector) -> list[dict[str, Any]]:
    if not selector.used:
        raise CurateError("no problem was given out by this selector: there is no history to make a dataset of.")
    return selector.used


def _without(pool: Dataset, *names: str) -> Dataset:
    """The pool, which must not have columns of these names."""
    if taken := sorted(set(names) & set(pool.column_names)):
        raise CurateError(f"the pool has a column {taken[0]!r}, which the history needs: rename it in the pool.")
    return pool
