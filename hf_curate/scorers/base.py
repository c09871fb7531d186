"""What every scorer shares: rows and batches in, float32 columns out, a reason for every null, an identity that is
stable.

A scorer is a plain object for `datasets.map`. Two kinds of pickle are made of it, and they differ on purpose:

- `datasets` hashes a scorer by its dill pickle, so `__getstate__` holds what changes numbers and nothing else:
  algorithm version, settings, the model's commit or weight digest. Device and batch size stay out, weights are never
  in it.
- a worker process of `map(num_proc=...)` receives the constructor's arguments (`_arguments`), so that it can load the
  model by itself. A live model cannot travel, which is an error that says what to pass instead.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError, RowError, ScoreError

if TYPE_CHECKING:
    from datasets import Features

FIRST_BATCH = 8
"""A batch of this many rows that fails entirely, before any row was scored, is an error: something is wrong with the
settings, not the rows."""
INFERENCE_ROWS = 1000
"""`datasets` fixes the types of a map after this many rows; nulls throughout would lose the run later."""

_worker = False


def work_for_others() -> None:
    """Says that this process scores for another one, in which a user is told what there is to be told."""
    global _worker
    _worker = True


def in_worker() -> bool:
    """Whether this process scores for another one."""
    from multiprocess import parent_process  # type: ignore[import-untyped]

    return _worker or parent_process() is not None


class Scorer(ABC):
    """Base of the scorers. A subclass scores a list of rows, and says what its columns are.

    Attributes:
        name: the method's name as cards print it.
        prefix: the columns' common prefix; `<prefix>_error` holds "" or the reason of a null.
        algorithm_version: to be raised whenever the code gives other numbers for the same settings.
        notes: sentences on what happened while scoring (memory that ran out), for whoever keeps a log to take away.
    """

    name: str
    prefix: str
    algorithm_version: int
    notes: list[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        from multiprocess.reduction import ForkingPickler  # type: ignore[import-untyped]

        ForkingPickler.register(cls, _travel)

    def __init__(self) -> None:
        self._arguments: dict[str, Any] = {}
        self.notes = []
        self._seen = self._failed = 0
        self._reasons: Counter[str] = Counter()

    # -- what a subclass provides -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def columns(self) -> Features:
        """The columns that scoring adds, with their types."""

    @property
    @abstractmethod
    def column(self) -> str:
        """The column to rank rows by; higher is better."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything chosen by the caller that changes numbers, as JSON."""

    @abstractmethod
    def model_record(self) -> dict[str, Any] | None:
        """Which model: id, sha or digest, dtype, architecture, warm-up; None for scorers without one."""

    @abstractmethod
    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        """One dict of score columns, or the reason why there is none, for each row. The error column is "" unless a
        dict says otherwise."""

    @abstractmethod
    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        """Whether a mapping is a batch of rows rather than a row."""

    batch_rows: int = 256
    """Rows that `score` hands over at a time; what is batched for the model is decided within them."""

    rolled_by: Mapping[str, Any] | None = None
    """The record of what made the rollouts in the rows, where an earlier run made them; for the record alone."""

    earlier: Sequence[str] = ()
    """Columns that earlier runs added to the rows; for the record alone."""

    keep: Callable[[Any, Scorer], Any] | None = None
    """Set by `score` while it keeps a run in a folder: scores a dataset with another scorer, and keeps that too."""

    def expect(self, dataset: Any) -> None:  # noqa: B027
        """Called by `score` with the whole pool before anything is computed: what a fit on it will be called becomes
        part of the identity."""

    def complete(self, dataset: Any) -> Any:
        """Called by `score` with the whole pool: the pool with what its rows lack."""
        return dataset

    def prepare(self, dataset: Any) -> None:  # noqa: B027
        """Called by `score` with the whole pool, before the first row: scorers that are fitted on it do it here."""

    def goes_on(self, rows: int, failed: int) -> None:
        """Called by `score` before it goes on with a run: so many rows were scored by then, and so many failed."""
        self._seen, self._failed = rows, failed
        self._reasons.clear()

    def take_notes(self) -> tuple[str, ...]:
        """What there is to say for a log; it is said once."""
        notes = tuple(self.notes)
        self.notes.clear()
        return notes

    def reads(self, names: Sequence[str]) -> list[str]:
        """Those of a dataset's columns that scoring looks at; all of them unless a subclass knows better."""
        return list(names)

    @abstractmethod
    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        """Raises if rows with these columns cannot be read."""

    # -- what every scorer does ---------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """sha256 over all that changes numbers: class, algorithm version, settings, the model's commit or weights."""
        return _digest(self._what(self.model_record()))

    def _what(self, model: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "algorithm_version": self.algorithm_version,
            "settings": self.settings(),
            "model": which_weights(model or {}),
        }

    def record(self) -> dict[str, Any]:
        """What the manifest stores about the scorer, as JSON."""
        model = self.model_record()  # once: a live model's weights are read for it
        what = self._what(model)
        return {
            "name": self.name,
            "class": what["class"],
            "algorithm_version": what["algorithm_version"],
            "identity": _digest(what),
            "column": self.column,
            "settings": what["settings"],
            "model": model,
            "call": self.call(),
            **({} if self.rolled_by is None else {"rollouts": dict(self.rolled_by)}),
            **({"earlier_columns": list(self.earlier)} if self.earlier else {}),
        }

    def call(self) -> str:
        """The constructor call that repeats the scorer, without paths of this machine."""
        return f"{type(self).__name__}(...)"

    def features(self, dataset: Any) -> Features:
        """The dataset's features and the scorer's, for `map(features=...)`; checks the dataset's columns on the
        way."""
        from datasets import Features

        features = dataset.features
        if features is None:
            first = next(iter(dataset), None)
            if first is None:
                raise ScoreError("the dataset is empty: there is nothing to score.")
            import pyarrow as pa

            features = Features.from_arrow_schema(pa.Table.from_pylist([dict(first)]).schema)
        names = self.reads(list(features))
        self.check_columns(names, next(iter(dataset.select_columns(names).take(1)), None))
        return Features({**features, **self.columns})

    def __call__(self, rows: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Scores a row (dict of values) or a batch (dict of lists); `rank` chooses the device with
        `with_rank=True`."""
        names = self.reads(list(rows))  # no others: map would decode and write back what is touched (images, audio)
        if not self.is_batch(rows):
            return self._columns_of(self._results([{name: rows[name] for name in names}], rank))[0]
        lists = {name: list(rows[name]) for name in names}
        count = len(lists[names[0]]) if names else 0
        results = self._results([{name: lists[name][i] for name in names} for i in range(count)], rank)
        done = self._columns_of(results)
        return {column: [row[column] for row in done] for column in self.columns}

    def _results(self, rows: list[Mapping[str, Any]], rank: int | None) -> list[dict[str, Any] | RowError]:
        if not rows:
            return []
        if self._seen == 0:
            self.check_columns(list(rows[0]), rows[0])
        results = self.score_rows(rows, rank)
        self._watch(results)
        return results

    def _watch(self, results: Sequence[dict[str, Any] | RowError]) -> None:
        failed = [reason for result in results if (reason := self._reason(result))]
        self._seen += len(results)
        self._failed += len(failed)
        if self._failed < self._seen:
            return
        self._reasons.update(failed)
        if len(results) >= FIRST_BATCH or self._seen >= INFERENCE_ROWS:
            seen, reasons, self._seen, self._failed = self._seen, self._reasons, 0, 0
            self._reasons = Counter()
            raise ScoreError(all_failed(seen, reasons, self.advice()))

    def _reason(self, result: dict[str, Any] | RowError) -> str:
        """Why a row has no score; "" where it has. A row may keep some of its columns and say itself what failed."""
        return str(result) if isinstance(result, RowError) else result.get(f"{self.prefix}_error", "")

    def advice(self) -> str:
        """One sentence on what to look at when every row fails."""
        return "Look at one row: hf-curate inspect SOURCE --rows 3."

    def _columns_of(self, results: Iterable[dict[str, Any] | RowError]) -> list[dict[str, Any]]:
        error = f"{self.prefix}_error"
        nulls = dict.fromkeys(self.columns)
        return [
            {**nulls, error: str(result)} if isinstance(result, RowError) else {error: "", **result}
            for result in results
        ]

    # -- pickles ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {"what": self._what(self.model_record()), "arguments": self._portable_arguments()}

    def _portable_arguments(self) -> dict[str, Any]:
        """The constructor's arguments that belong into a hash and into a pickle on disk."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["arguments"].get("model", "") is None:
            raise CurateError(
                f"this {type(self).__name__} was pickled with a live model or tokenizer, and pickles of scorers hold "
                "no weights: save both to a folder and build the scorer from the folder."
            )
        self.__init__(**state["arguments"])

    def _travelling_arguments(self) -> dict[str, Any]:
        """The constructor's arguments for a worker process on this machine."""
        return self._arguments


def which_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's record that changes numbers."""
    if model.get("digest"):
        return {"digest": model["digest"], "dtype": model["dtype"]}
    return {key: model[key] for key in ("id", "sha", "dtype") if key in model}


def _digest(what: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _rebuild(cls: Callable[..., Scorer], arguments: dict[str, Any]) -> Scorer:
    return cls(**arguments)


def _travel(scorer: Scorer) -> tuple[Callable[..., Scorer], tuple[Any, ...]]:
    return _rebuild, (type(scorer), scorer._travelling_arguments())


def all_failed(rows: int, reasons: Mapping[str, int], advice: str) -> str:
    """The text of the error for a run in which nothing could be scored."""
    return f"none of the {rows:,} rows could be scored:\n{reasons_of(reasons)}\n{advice}"


def reasons_of(reasons: Mapping[str, int]) -> str:
    """Lines of the kinds of failure, the most frequent first, each with one row's own words."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(reason.partition(":")[0], []).append(reason)
    counts = {kind: sum(reasons[reason] for reason in texts) for kind, texts in kinds.items()}
    ordered = sorted(kinds, key=lambda kind: (-counts[kind], kind))[:5]
    return "\n".join(f"  {counts[kind]:,} x {kinds[kind][0]}" for kind in ordered)
