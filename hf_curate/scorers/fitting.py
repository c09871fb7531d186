"""Fitting a direction on a dataset: rows in, counts of what became of them, the mean gradient, where the file lies."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import DirectionError, RowError, ScoreError
from hf_curate.groups import SAME_REWARD
from hf_curate.memory import TokenBudget, as_budget
from hf_curate.scorers.base import reasons_of
from hf_curate.scorers.groups import Group, GroupReader

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_curate.gradients.directions import Direction
    from hf_curate.models import LanguageModel

logger = logging.getLogger("hf_curate")


def advantages(rewards: np.ndarray) -> np.ndarray:
    """[K] reward minus the group's mean."""
    apart = rewards - rewards[0]  # large rewards that differ little would lose their digits in the mean
    return apart - apart.mean()


def has_signal(rewards: np.ndarray) -> bool:
    """Whether the rewards differ by more than rounding; if all are equal, the policy gradient is 0."""
    return bool(rewards.max() - rewards.min() > SAME_REWARD * np.abs(rewards).max())


def check_pool(dataset: Any) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ScoreError(
            f"a direction is fitted on a datasets.Dataset, this is a {type(dataset).__name__}: pass one split "
            "(dataset['train']); Dataset.from_list(rows) makes one of rows."
        )
    if not len(dataset):
        raise DirectionError("the dataset to fit on is empty: there is no gradient to take.")


def read_groups(reader: GroupReader, dataset: Any, what: str) -> Iterator[Group | RowError]:
    """The rows of a dataset as groups, one at a time, with a progress bar. Anything else gives groups that were read
    before."""
    from tqdm.auto import tqdm

    if not hasattr(dataset, "select_columns"):
        yield from dataset
        return
    names, every = reader.reads(dataset.column_names), 0.1 if sys.stderr.isatty() else 30.0
    for row in tqdm(dataset.select_columns(names).with_format(None), desc=what, unit="row", mininterval=every):
        yield reader.read(row)


class Counts:
    """Counts rows while a direction is fitted."""

    def __init__(self, correct_above: float) -> None:
        self.correct_above = correct_above
        self.clear()

    def clear(self) -> None:
        """As at the start."""
        self.reasons: Counter[str] = Counter()
        self.all = self.with_signal = self.rollouts = self.right = self.wrong = 0

    @property
    def readable(self) -> int:
        return self.all - sum(self.reasons.values())

    def see(self, item: Group | RowError, signal: bool = False) -> None:
        """One row, and whether its gradient went into the direction."""
        self.all += 1
        if isinstance(item, RowError):
            self.reasons[str(item)] += 1
            return
        self.rollouts += len(item.rewards)
        self.with_signal += signal
        if not has_signal(item.rewards):
            self.right += bool(item.rewards[0] > self.correct_above)
            self.wrong += not item.rewards[0] > self.correct_above

    def add(self, other: Counts) -> None:
        """The rows that another process has seen."""
        self.reasons.update(other.reasons)
        self.all, self.with_signal = self.all + other.all, self.with_signal + other.with_signal
        self.rollouts += other.rollouts
        self.right, self.wrong = self.right + other.right, self.wrong + other.wrong

    def record(self) -> dict[str, Any]:
        """As JSON. Raises DirectionError if no row could be read."""
        if not self.readable:
            raise DirectionError(f"none of the {self.all:,} rows to fit on can be read:\n{reasons_of(self.reasons)}")
        if self.reasons:
            failed = self.all - self.readable
            logger.info("%d of %d rows to fit on cannot be read:\n%s", failed, self.all, reasons_of(self.reasons))
        kinds: Counter[str] = Counter()
        for reason, count in self.reasons.items():
            kinds[reason.partition(":")[0]] += count
        return {
            "in": self.all,
            "with_signal": self.with_signal,
            "without_signal": self.readable - self.with_signal,
            "all_right": self.right,
            "all_wrong": self.wrong,
            "failed": dict(kinds),
            "rollouts": self.rollouts,
        }


def mean_gradient(
    reader: GroupReader,
    model: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    dataset: Any,
    what: str,
    counts: Counts,
    batch_tokens: int | TokenBudget,
) -> Direction:
    """The mean policy gradient over the problems of a dataset; those without signal count as 0.

    Beside the model there is one gradient: the sum. So a problem whose gradient overflows cannot be taken out again,
    and is an error that names it. One that turns out not to fit into memory after a part of it was added makes the fit
    begin again, and then each gradient waits in the host's memory until it is whole.
    """
    again = dataset if hasattr(dataset, "select_columns") else _Kept(dataset)
    budget = as_budget(batch_tokens)
    for wait in (False, True):
        counts.clear()
        try:
            return _summed(reader, model, parameters, again, what, counts, budget, wait).divided(counts.readable)
        except _SpoiledError as error:
            said = str(error)
        budget.tell(f"fitting begins again: {said}")
    raise DirectionError(f"{said}, again: lower batch_tokens=, or take fewer parameters=.")


def _summed(
    reader: GroupReader,
    model: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    dataset: Any,
    what: str,
    counts: Counts,
    budget: TokenBudget,
    wait: bool,
) -> Direction:
    from hf_curate.gradients.directions import Direction
    from hf_curate.gradients.inner import distinct
    from hf_curate.gradients.policy import policy_gradient, within

    total = Direction.zeros(parameters)
    for row, item in enumerate(read_groups(reader, dataset, what)):
        if isinstance(item, RowError) or not has_signal(item.rewards):
            counts.see(item)
            continue
        _, rollouts, weights = distinct(item.rollouts, advantages(item.rewards).tolist()).active()
        adding = _Adding(total, wait, partial(policy_gradient, model, rollouts, weights, parameters))
        try:
            if rollouts:
                within(budget, model, rollouts, adding.attempt)
        except RowError as error:
            if adding.added:
                raise _SpoiledError(f"of row {row} a part was added when this came up ({error})") from None
            counts.see(error)
        else:
            counts.see(item, bool(rollouts))
        if not adding.is_finite():
            raise DirectionError(
                f"the gradient of row {row} overflows: look at its rewards"
                + (", or load the model with dtype='float32'." if _narrow(parameters) else ".")
            )
    return total


class _SpoiledError(Exception):
    """The sum holds a part of a gradient that there will never be the rest of."""


class _Adding:
    """One problem's gradient on its way into the sum: each parameter's once, however many attempts it takes.

    wait: whether gradients stay in the host's memory until all are there; after the first attempt they do.
    """

    def __init__(self, total: Direction, wait: bool, gradient: Callable[..., Any]) -> None:
        self.total, self.wait, self.gradient = total, wait, gradient
        self.added: set[str] = set()
        self._finite: list[Tensor] = []

    def attempt(self, batch_tokens: int) -> None:
        waiting: dict[str, Tensor] = {}

        def keep(name: str, gradient: Tensor) -> None:
            if name not in self.added:
                waiting[name] = gradient.cpu()

        take, self.wait = keep if self.wait else self._add, True
        self.gradient(take, batch_tokens=batch_tokens)
        for name in list(waiting):
            self._add(name, waiting.pop(name))

    def _add(self, name: str, gradient: Tensor) -> None:
        finite = gradient.isfinite().all()
        self.total.add(name, gradient)
        self.added.add(name)
        self._finite.append(finite)

    def is_finite(self) -> bool:
        """Whether all that was added is."""
        return all(map(bool, self._finite))


class _Kept(Iterable[Any]):
    """Groups that come once, for another time."""

    def __init__(self, groups: Iterable[Any]) -> None:
        self._rest, self._seen = iter(groups), []

    def __iter__(self) -> Iterator[Any]:
        yield from list(self._seen)
        for group in self._rest:
            self._seen.append(group)
            yield group


def _narrow(parameters: Mapping[str, nn.Parameter]) -> bool:
    return any(parameter.element_size() < 4 for parameter in parameters.values())


def no_signal(kind: str, counts: Mapping[str, Any]) -> str:
    return (
        f"the {kind} has no signal: of {counts['in']:,} problems {counts['all_right']:,} are solved by every rollout, "
        f"{counts['all_wrong']:,} by none, and nothing remains to point anywhere. "
        "Take problems that the model solves sometimes, or more rollouts of each."
    )


def rows_digest(dataset: Any, columns: Sequence[str]) -> str:
    """sha256 over the rows' values in these columns, one JSON line each."""
    digest = hashlib.sha256(json.dumps(list(columns)).encode())
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=256):
        for row in table.to_pylist():
            digest.update(
                json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
            )
            digest.update(b"\n")
    return digest.hexdigest()


def cached(key: str, suffix: str) -> Path:
    """Where a fit lies if nobody says where: in the Hugging Face cache, by what it was made from."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_curate" / "directions" / f"{key[:32]}{suffix}"


def check_writable(path: Path) -> None:
    """Raises before an hour of gradients, rather than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}."):
            pass
    except OSError as error:
        raise DirectionError(
            f"the direction cannot be written to {path.parent.name!r} ({type(error).__name__}: {error.strerror}): "
            "give another place, fit(dataset, out=path) or --save-direction, or set HF_HOME."
        ) from error


def named(model: Mapping[str, Any]) -> str:
    mark = model.get("sha") or model.get("digest") or "no digest"
    return f"{model.get('id')} ({str(mark)[:12]})"
