"""What the scorers of policy gradients share: rollouts in, gradients over a named parameter set, a fitted direction.

The policy gradient of a problem with rewards r_1..r_K is mean_k A_k (1/|o_k|) sum_t grad log pi(o_kt) with
A_k = r_k - mean r: no clipping (the ratio is 1), no KL term, no division by the rewards' standard deviation.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hf_curate.errors import DirectionError, RowError, ScoreError
from hf_curate.models import evaluating
from hf_curate.scorers.base import reasons_of, which_weights
from hf_curate.scorers.groups import Group, GroupReader
from hf_curate.scorers.model import ModelScorer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hf_curate.gradients.directions import Direction
    from hf_curate.gradients.inner import Products
    from hf_curate.models import LanguageModel

logger = logging.getLogger("hf_curate")
Self = TypeVar("Self", bound="DirectedScorer")

COLUMNS = ("prompt", "messages", "responses", "response_ids", "rewards")


def advantages(rewards: np.ndarray) -> np.ndarray:
    """[K] reward minus the group's mean."""
    return rewards - rewards.mean()


def has_signal(rewards: np.ndarray) -> bool:
    """Whether the rewards differ; if all are equal, the policy gradient is 0."""
    return bool(rewards.max() > rewards.min())


class PolicyScorer(ModelScorer):
    """Base of the scorers that look at a problem's policy gradient."""

    reader: GroupReader
    batch_rows = 16
    """Rows that `score` hands over at a time: a row holds many rollouts, and the bar should move."""

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take(given)
        self.parameters = given["parameters"]
        if not isinstance(self.parameters, str) or not self.parameters:
            raise ScoreError(
                f"parameters={self.parameters!r} must be 'linear', 'all', 'adapters' or a regular expression."
            )
        self.reader = GroupReader(
            self.source, {role: given[role] for role in COLUMNS}, given["tokenizer"], given["max_length"]
        )
        self._chosen: tuple[LanguageModel, dict[str, nn.Parameter]] | None = None

    def settings(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "model_kwargs": self.model_kwargs_record,
            **self.reader.settings(),
        }

    def chosen(self, model: LanguageModel) -> dict[str, nn.Parameter]:
        """Name -> parameter of the set, of the model that is loaded now."""
        from hf_curate.gradients.parameters import parameters_of

        if self._chosen is None or self._chosen[0] is not model:
            self._chosen = (model, parameters_of(model.model, self.parameters))
        return self._chosen[1]

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        read = [self.reader.read(row) for row in rows]
        groups = [item for item in read if isinstance(item, Group)]
        self._warn_about_unknown_tokens([r.input_ids for group in groups for r in group.rollouts])
        return [item if isinstance(item, RowError) else self._result(item, rank) for item in read]

    def _result(self, group: Group, rank: int | None) -> dict[str, Any] | RowError:
        try:
            return self.score_group(group, rank)
        except RowError as error:
            return error

    @abstractmethod
    def score_group(self, group: Group, rank: int | None) -> dict[str, Any]:
        """The score columns of one problem. Raises RowError."""


@dataclass(frozen=True)
class Fitted:
    """Where a fitted direction (a file, or a folder of features) lies, and which one it must be.

    key: sha256 of all that it was made from, known before it is made; sha256: of the file, where it was given by path.
    """

    path: Path
    key: str | None = None
    sha256: str | None = None


class DirectedScorer(PolicyScorer):
    """Base of the scorers that compare gradients with a direction, fitted before on a dataset and kept as a file.

    Attributes:
        kind: what the direction is, as its record says.
    """

    kind: str

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take(given)
        self.fitted: Fitted | None = None
        self._key: str | None = None  # of the fit to come
        self._at_hand: tuple[LanguageModel, dict[str, torch.Tensor], float] | None = None
        self._version: int | None = None  # of the model's weights when the direction was checked
        self._record: dict[str, Any] | None = None

    def _take_direction(self, direction: Any) -> None:
        """A file (or folder) that an earlier fit wrote: it must be there, and must not change."""
        if isinstance(direction, Fitted):
            self.fitted = direction
        elif direction is not None:
            path = Path(str(direction)).expanduser()
            self.fitted = Fitted(path.resolve(), sha256=self._file_digest(path))

    def _file_digest(self, path: Path) -> str:
        from hf_curate.gradients.directions import file_digest, read_record

        read_record(path)
        return file_digest(path)

    # -- which direction ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "direction": self._which()}

    def _which(self) -> dict[str, Any] | None:
        """The direction, by what it was made from (or by its file, where only that is known)."""
        if self.fitted is not None and self.fitted.sha256 is not None:
            return {"sha256": self.fitted.sha256}
        key = self.fitted.key if self.fitted is not None else self._key
        return None if key is None else {"fit": key}

    def expect(self, dataset: Any) -> None:
        if self.fitted is None:
            self._key = self._fit_key(dataset)

    def prepare(self, dataset: Any) -> None:
        """Fits on the dataset, unless the scorer is fitted."""
        if self.fitted is None:
            self.fit(dataset)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "direction": self.direction_record(), "zero_without_signal": True}

    def direction_record(self) -> dict[str, Any] | None:
        """What the fitted direction says of itself; None before it is fitted."""
        from hf_curate.gradients.directions import read_record

        if self._record is None and self.fitted is not None and self.fitted.path.is_file():
            self._record = read_record(self.fitted.path)
        return self._record

    def _fit_key(self, dataset: Any) -> str:
        """sha256 of all that changes a fit: model, rows, parameters, settings."""
        what = {
            "kind": self.kind,
            "algorithm_version": self.algorithm_version,
            "model": which_weights(self.model_record()),
            "settings": self._fit_settings(),
            "rows": rows_digest(dataset, self.reader.reads(dataset.column_names)),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _fit_settings(self) -> dict[str, Any]:
        """The settings that a direction depends on."""
        return PolicyScorer.settings(self)

    # -- fitting ------------------------------------------------------------------------------------------------------

    def fit(self: Self, dataset: Any, out: str | Path | None = None) -> Self:
        """Computes the direction from a dataset of rollouts and keeps it as a file; returns the scorer.

        Args:
            dataset: a map-style dataset with prompts, responses (or response_ids) and rewards.
            out: the file to write (a folder, for projected features); None is a file in the Hugging Face cache
                (`$HF_HOME/hf_curate/directions`), named by what it was made from. A file of the same fit is used as
                it is; one of another fit is never overwritten.

        Raises:
            DirectionError: no row has a signal, or `out` holds something else.
        """
        check_pool(dataset)
        self.reader.columns_of(self.reader.reads(dataset.column_names), dataset[0])
        key = self._fit_key(dataset)
        path = Path(out).expanduser().resolve() if out is not None else cached(key, self._suffix())
        self._at_hand, self._record = None, None
        if not self._is_there(path, key):
            self._make(dataset, path, key)
        self.fitted = Fitted(path, key=key)
        return self

    def _suffix(self) -> str:
        return ".safetensors"

    def _is_there(self, path: Path, key: str) -> bool:
        """Whether the path holds this very fit. Raises if it holds anything else."""
        from hf_curate.gradients.directions import read_record

        if not path.exists():
            return False
        record = read_record(path)
        if record.get("key") != key:
            raise DirectionError(
                f"{path.name!r} holds a direction of another fit ({str(record.get('key'))[:12]}, now {key[:12]}): "
                "give another out=, or delete it."
            )
        logger.info("direction of %s rows taken from %s", f"{record['rows']['in']:,}", path.name)
        return True

    def _make(self, dataset: Any, path: Path, key: str) -> None:
        model = self.load()
        parameters = self.chosen(model)
        with evaluating(model.model):
            direction, counts = self._mean(model, parameters, dataset)
        norm = direction.norm
        if not np.isfinite(norm):
            raise DirectionError(
                f"a gradient of the {self.kind} overflows in {self.model_record()['dtype']}: dtype='float32'."
            )
        if norm == 0.0 or not counts["with_signal"]:
            raise DirectionError(no_signal(self.kind, counts))
        direction.record = {**self._describe(key, counts, parameters), "norm": norm}
        direction.save(path)
        size = path.stat().st_size / 1e6
        logger.info("direction of %s rows -> %s (%.0f MB)", f"{counts['in']:,}", path, size)

    def _describe(self, key: str, counts: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "key": key,
            "model": {name: value for name, value in self.model_record().items() if name != "warm_up"},
            "parameters": {
                "set": self.parameters,
                "tensors": len(parameters),
                "values": sum(p.numel() for p in parameters.values()),
            },
            "rows": dict(counts),
            "verifier": None,  # rewards are taken as given
        }

    @abstractmethod
    def _mean(
        self, model: LanguageModel, parameters: Mapping[str, nn.Parameter], dataset: Any
    ) -> tuple[Direction, dict[str, Any]]:
        """The direction, and the counts of rows: in, with_signal, without_signal, failed by reason."""

    # -- using it -----------------------------------------------------------------------------------------------------

    def direction(self, model: LanguageModel) -> tuple[dict[str, torch.Tensor], float]:
        """The direction beside the model's parameters, and its norm; read and checked once, and again when a live
        model was trained since."""
        version = _version(model.model)
        if self._at_hand is None or self._at_hand[0] is not model or self._version != version:
            tensors = self._read(model)
            from hf_curate.gradients.inner import inner

            norm = sum(inner(tensor, tensor) for tensor in tensors.values()) ** 0.5
            if norm == 0.0:
                raise DirectionError("the direction is zero everywhere: nothing can point along it.")
            self._at_hand, self._version = (model, tensors, norm), version
        return self._at_hand[1:]

    def _read(self, model: LanguageModel) -> dict[str, torch.Tensor]:
        from hf_curate.gradients.directions import Direction, file_digest

        fitted = self.need_fit()
        if fitted.sha256 is not None and fitted.path.is_file() and file_digest(fitted.path) != fitted.sha256:
            raise DirectionError(f"{fitted.path.name!r} has changed since the scorer was made: make the scorer again.")
        direction = Direction.load(fitted.path)
        if fitted.key is not None and direction.record.get("key") != fitted.key:
            raise DirectionError(f"{fitted.path.name!r} has changed since the scorer was fitted: fit it again.")
        self._check_kind(direction.record)
        direction.check(self.chosen(model), f"the direction {fitted.path.name!r}")
        self._check_model(direction.record)
        return direction.beside(self.chosen(model))

    def _check_kind(self, record: Mapping[str, Any]) -> None:
        if record.get("kind") != self.kind:
            raise DirectionError(
                f"the file holds a {record.get('kind')}, and {self.name} needs a {self.kind}: pass what "
                f"{type(self).__name__}.fit wrote."
            )

    def _check_model(self, record: Mapping[str, Any]) -> None:
        """Raises unless the direction was made with this model's weights."""
        theirs, ours = record.get("model") or {}, self.model_record()
        known = [name for name in ("digest", "sha") if theirs.get(name) and ours.get(name)]
        if (known and any(theirs[name] != ours[name] for name in known)) or not known:
            raise DirectionError(
                f"the direction was made with {_named(theirs)}, and this scorer has {_named(ours)}: gradients of two "
                "models cannot be compared. Fit it again with this model."
            )

    def need_fit(self) -> Fitted:
        if self.fitted is None:
            raise ScoreError(f"{type(self).__name__} is not fitted: scorer.fit(dataset) before dataset.map(scorer).")
        return self.fitted

    def products(self, group: Group, rank: int | None) -> tuple[Products, float]:
        """Inner products of a problem's gradient with the direction, and the direction's norm."""
        from hf_curate.gradients.inner import policy_products

        model = self.load(rank)
        tensors, norm = self.direction(model)
        with evaluating(model.model):
            found = policy_products(
                model,
                group.rollouts,
                advantages(group.rewards).tolist(),
                self.chosen(model),
                tensors,
                batch_tokens=self.token_limit(model),
            )
        return found, norm

    # -- pickles ------------------------------------------------------------------------------------------------------

    def _portable_arguments(self) -> dict[str, Any]:
        return {**super()._portable_arguments(), **self._fitted_argument()}

    def _travelling_arguments(self) -> dict[str, Any]:
        arguments = super()._travelling_arguments()  # a live model is refused before anything is fitted
        self.need_fit()
        return {**arguments, **self._fitted_argument()}

    def _fitted_argument(self) -> dict[str, Any]:
        return {"direction": self.fitted}


def _version(model: nn.Module) -> int:
    """Grows with every change of the weights in place, as optimizers and `load_state_dict` make them."""
    return sum(p._version for p in model.parameters() if not p.is_inference())


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
    """The rows of a dataset as groups, one at a time, with a progress bar."""
    from tqdm.auto import tqdm

    names = reader.reads(dataset.column_names)
    for row in tqdm(dataset.select_columns(names).with_format(None), desc=what, unit="row"):
        yield reader.read(row)


class Counts:
    """Counts rows while a direction is fitted."""

    def __init__(self) -> None:
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
            self.right += bool(item.rewards[0] > 0)
            self.wrong += not item.rewards[0] > 0

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
            "all_right": self.right,
            "all_wrong": self.wrong,
            "failed": dict(kinds),
            "rollouts": self.rollouts,
        }


def mean_gradient(
    scorer: DirectedScorer, model: LanguageModel, parameters: Mapping[str, nn.Parameter], dataset: Any
) -> tuple[Direction, dict[str, Any]]:
    """The mean policy gradient over the problems of a dataset; those without signal count as 0.

    Beside the model there is one gradient: the sum.
    """
    from hf_curate.gradients.directions import Direction
    from hf_curate.gradients.inner import distinct
    from hf_curate.gradients.policy import policy_gradient

    total, counts = Direction.zeros(parameters), Counts()
    limit = scorer.token_limit(model)
    for item in read_groups(scorer.reader, dataset, f"fitting the {scorer.kind}"):
        if isinstance(item, RowError) or not has_signal(item.rewards):
            counts.see(item)
            continue
        _, rollouts, weights = distinct(item.rollouts, advantages(item.rewards).tolist()).active()
        try:
            if rollouts:
                policy_gradient(model, rollouts, weights, parameters, total.adder(1.0), batch_tokens=limit)
        except RowError as error:  # before anything was added
            counts.see(error)
        else:
            counts.see(item, bool(rollouts))
    return total.divided(counts.readable), counts.record()


def no_signal(kind: str, counts: Mapping[str, Any]) -> str:
    return (
        f"the {kind} has no signal: of {counts['in']:,} problems {counts['all_right']:,} got one positive reward for "
        f"every rollout, {counts['all_wrong']:,} one reward of 0 or less, and nothing remains to point anywhere. "
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


def _named(model: Mapping[str, Any]) -> str:
    mark = model.get("sha") or model.get("digest") or "no digest"
    return f"{model.get('id')} ({str(mark)[:12]})"
