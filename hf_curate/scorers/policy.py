"""What the scorers of policy gradients share: rollouts in, gradients over a named parameter set, a fitted direction.

The policy gradient of a problem with rewards r_1..r_K is mean_k A_k (1/|o_k|) sum_t grad log pi(o_kt) with
A_k = r_k - mean r: no clipping (the ratio is 1), no KL term, no division by the rewards' standard deviation.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_curate.errors import ColumnsError, DirectionError, NoSignalError, RowError, ScoreError
from hf_curate.groups import CORRECT_ABOVE, detect_group_columns
from hf_curate.models import evaluating
from hf_curate.scorers.base import which_weights
from hf_curate.scorers.fitting import (
    Counts,
    advantages,
    cached,
    check_pool,
    check_writable,
    mean_gradient,
    named,
    no_signal,
    rows_digest,
)
from hf_curate.scorers.groups import Group, GroupReader
from hf_curate.scorers.in_training import Awaited, policy_record, trained
from hf_curate.scorers.model import ModelScorer
from hf_curate.sources import public_name
from hf_curate.weights import ModelSource, folder_digest

if TYPE_CHECKING:
    import torch
    from datasets import Features
    from torch import nn

    from hf_curate.gradients.directions import Direction
    from hf_curate.gradients.inner import Products
    from hf_curate.models import LanguageModel

logger = logging.getLogger("hf_curate")
Self = TypeVar("Self", bound="DirectedScorer")
Together = Callable[["Direction", Counts], None]

COLUMNS = ("prompt", "messages", "responses", "response_ids", "rewards")
KEPT_VALUES = 40
"""Values of the model's width that a block keeps for each token of a backward, about."""


class PolicyScorer(ModelScorer):
    """Base of the scorers that look at a problem's policy gradient."""

    reader: GroupReader
    batch_rows = 16
    """Rows that `score` hands over at a time: a row holds many rollouts, and the bar should move."""
    correct_above = CORRECT_ABOVE

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
        self.rollouts = given["rollouts"]
        if self.rollouts is not None and not hasattr(self.rollouts, "score_rows"):
            raise ScoreError(f"rollouts= is a {type(self.rollouts).__name__}: pass a Rollouts(model, verifier, ...).")
        self._chosen: tuple[LanguageModel, dict[str, nn.Parameter]] | None = None
        self._trained = False  # of the set, only the parameters that are being trained

    @property
    @abstractmethod
    def own_columns(self) -> dict[str, Any]:
        """The score columns with their types."""

    @property
    def columns(self) -> Features:
        from datasets import Features

        made = {} if self.rollouts is None else self.rollouts.columns
        return Features({**made, **self.own_columns})

    def settings(self) -> dict[str, Any]:
        made = {} if self.rollouts is None else {"rollouts": self.rollouts.identity}
        return {
            **made,
            **({"trained": True} if self._trained else {}),
            "parameters": self.parameters,
            "model_kwargs": self.model_kwargs_record,
            **self.reader.settings(),
        }

    def release(self) -> None:
        super().release()
        self._chosen = None
        if self.rollouts is not None:
            self.rollouts.release()

    def chosen(self, model: LanguageModel) -> dict[str, nn.Parameter]:
        """Name -> parameter of the set, of the model that is loaded now."""
        from hf_curate.gradients.parameters import parameters_of

        if self._chosen is None or self._chosen[0] is not model:
            self._chosen = (model, (trained if self._trained else parameters_of)(model.model, self.parameters))
        return self._chosen[1]

    def record(self) -> dict[str, Any]:
        made = {} if self.rollouts is None else {"rollouts": self.rollouts.record()}
        return {**super().record(), **made}

    def call(self) -> str:
        return super().call() if self.rollouts is None else f"{super().call()[:-1]}, rollouts=rollouts)"

    def _makes(self, names: Sequence[str]) -> bool:
        """Whether rows with these columns lack rollouts, and there is something that makes them."""
        if self.rollouts is None:
            return False
        try:
            detect_group_columns(names, None, **self.reader.asked)
        except ColumnsError:
            return True
        return False

    def reads(self, names: Sequence[str]) -> list[str]:
        if self._makes(names):
            return self.rollouts.reads(names)
        kept = () if self.rollouts is None else tuple(self.rollouts.columns)
        found = self.reader.reads(names)
        return [name for name in names if name in found or name in kept]

    def is_batch(self, rows: Mapping[str, Any]) -> bool:
        return self.rollouts.is_batch(rows) if self._makes(list(rows)) else super().is_batch(rows)

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        if self._makes(names):
            self._check_tokenizer()
            self.rollouts.check_columns(names, first_row)
        else:
            super().check_columns(names, first_row)

    def _check_tokenizer(self) -> None:
        """Raises where sampled ids would be read as those of another tokenizer."""
        ours, theirs = (room.settings().get("tokenizer_sha256") for room in (self.reader, self.rollouts))
        if "response_ids" in self.rollouts.columns and ours and theirs and ours != theirs:
            raise ScoreError(
                f"rollouts= samples with another tokenizer (sha256 {theirs[:12]}, this scorer's {ours[:12]}), "
                "and its token ids would be read as other text: give both the same model and tokenizer."
            )

    def complete(self, dataset: Any) -> Any:
        """The dataset with rollouts, made if it lacks them."""
        if not self._makes(dataset.column_names):
            return dataset
        if self.keep is not None:
            return self.keep(dataset, self.rollouts)
        made = dataset.map(
            self.rollouts,
            batched=True,
            batch_size=self.rollouts.batch_rows,
            features=self.rollouts.features(dataset),
            desc="rollouts",
        )
        self._take_notes()
        return made

    def token_limit(self, model: LanguageModel) -> int:
        """Padded tokens whose activations a backward keeps: as many as fit into 8 GiB (1 GiB on the CPU)."""
        config = model.model.config.get_text_config()
        wide, deep = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
        if self.batch_tokens or not wide or not deep:
            return self.batch_tokens or 8192
        room = 2**30 if model.device.type == "cpu" else 2**33
        return min(max(room // (KEPT_VALUES * wide * deep * model.head.weight.element_size()), 256), 32768)

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        made = [] if self.rollouts is None else self._made(rows, rank)
        whole = [{**row, **own} for row, own in zip(rows, made, strict=True)] if made else rows
        read = [self.reader.read(row) for row in whole]
        groups = [item for item in read if isinstance(item, Group)]
        self._warn_about_unknown_tokens([r.input_ids for group in groups for r in group.rollouts])
        results = [self._result(item, rank) for item in read]
        if not made:
            return results
        return [self._with(own, result) for own, result in zip(made, results, strict=True)]

    def _result(self, item: Group | RowError, rank: int | None) -> dict[str, Any] | RowError:
        try:
            return item if isinstance(item, RowError) else self.score_group(item, rank)
        except RowError as error:
            return error

    def _made(self, rows: Sequence[Mapping[str, Any]], rank: int | None) -> list[dict[str, Any]]:
        """The columns of rollouts of each row: made, or those that are there."""
        names = list(self.rollouts.columns)
        if not self._makes(list(rows[0])):
            return [{name: row.get(name) for name in names} for row in rows]
        failed = f"{self.rollouts.prefix}_error"
        results = self.rollouts.score_rows(rows, rank)
        self._take_notes()
        return [
            {**dict.fromkeys(names), failed: str(result) if isinstance(result, RowError) else ""}
            | ({} if isinstance(result, RowError) else result)
            for result in results
        ]

    def _take_notes(self) -> None:
        """What happened while rollouts were made happened while scoring."""
        said = getattr(self.rollouts, "notes", [])
        self.notes += said
        said.clear()

    def _with(self, made: Mapping[str, Any], result: dict[str, Any] | RowError) -> dict[str, Any]:
        """Rollouts stay, also where there is no score."""
        if not isinstance(result, RowError):
            return {**made, **result}
        reason = made.get(f"{self.rollouts.prefix}_error") or str(result)
        return {**made, **dict.fromkeys(self.own_columns), f"{self.prefix}_error": reason}

    @abstractmethod
    def score_group(self, group: Group, rank: int | None) -> dict[str, Any]:
        """The score columns of one problem. Raises RowError."""


@dataclass(frozen=True)
class Fitted:
    """Where a fitted direction (a file, or a folder of features) lies, and which one it must be.

    path: None for one that is kept in memory alone; key: sha256 of all that it was made from, known before it is made;
    sha256: of the file (of a folder's index).
    """

    path: Path | None
    key: str | None = None
    sha256: str | None = None

    def without_digest(self) -> Fitted:
        """For a hash that is the same before and after a fit."""
        return replace(self, sha256=None) if self.key is not None else self


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
        self._implicit = False  # fitted by `score` on its pool, not by the caller
        self._at_hand: tuple[LanguageModel, dict[str, torch.Tensor], float] | None = None
        self._weights: Any = None  # the mark of the model's weights when the direction was checked
        self._record: dict[str, Any] | None = None
        self._policy: dict[str, Any] | None = None  # the record of the policy that the scorer is bound to

    def _source_of(self, given: Mapping[str, Any]) -> ModelSource:
        return Awaited(type(self).__name__) if given["model"] is None else super()._source_of(given)

    def model_record(self) -> dict[str, Any]:
        return super().model_record() if self._policy is None else self._policy

    def release(self) -> None:
        super().release()
        self._at_hand = self._weights = None

    def _take_direction(self, direction: Any) -> None:
        """A file (or folder) that an earlier fit wrote: it must be there, and must not change."""
        if isinstance(direction, Fitted):
            self.fitted = direction
        elif direction is not None:
            path = Path(str(direction)).expanduser()
            key = self._record_at(path).get("key")
            self.fitted = Fitted(path.resolve(), key if isinstance(key, str) else None, self._file_digest(path))

    def _record_at(self, path: Path) -> dict[str, Any]:
        from hf_curate.gradients.directions import read_record

        return read_record(path)

    def _file_digest(self, path: Path) -> str:
        from hf_curate.gradients.directions import file_digest

        return file_digest(path)

    # -- which direction ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "direction": self._which()}

    def _which(self) -> dict[str, Any] | None:
        """The direction, by what it was made from (or by its file, where only that is known)."""
        if self.fitted is not None and self.fitted.key is None:
            return {"sha256": self.fitted.sha256}
        key = self.fitted.key if self.fitted is not None else self._key
        return None if key is None else {"fit": key}

    def expect(self, dataset: Any) -> None:
        """A fit that `score` made on another pool does not stay."""
        if self.fitted is None or self._implicit:
            self._key = self._fit_key(dataset)
            if self.fitted is not None and self.fitted.key != self._key:
                self.fitted, self._implicit = None, False

    def prepare(self, dataset: Any) -> None:
        """Fits on the dataset, unless the scorer is fitted."""
        if self.fitted is None:
            check_pool(dataset)
            key, made = self._key or self._fit_key(dataset), self.rolled_by or {}  # named before its rows had rollouts
            self._fit(dataset, key, verifier=made.get("verifier"))
            self._implicit = True
        self._check_still()

    def _check_still(self) -> None:
        """Raises if the weights are no longer those of the direction, however they were changed."""
        record = self.direction_record() if self.fitted is not None else None
        if record is None or self.source.live is None:
            return
        try:
            self._check_model(record)
        except DirectionError:
            self._at_hand = self._weights = None  # `Dataset.map` goes on where a hash fails: the next row is refused
            raise

    def record(self) -> dict[str, Any]:
        return {**super().record(), "direction": self.direction_record(), "zero_without_signal": True}

    def direction_record(self) -> dict[str, Any] | None:
        """What the fitted direction says of itself; None before it is fitted."""
        path = None if self.fitted is None else self.fitted.path
        if self._record is None and path is not None and path.exists():
            self._record = self._record_at(path)
        return self._record

    def _fit_key(self, dataset: Any) -> str:
        """sha256 of all that changes a fit: model, rows, parameters, settings."""
        what = {
            "kind": self.kind,
            "algorithm_version": self.algorithm_version,
            "model": which_weights(self.model_record()),
            "settings": self._fit_settings(),
            "rows": rows_digest(dataset, self.reads(dataset.column_names)),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _fit_settings(self) -> dict[str, Any]:
        """The settings that a direction depends on."""
        return PolicyScorer.settings(self)

    # -- fitting ------------------------------------------------------------------------------------------------------

    def fit(
        self: Self,
        dataset: Any,
        out: str | Path | None = None,
        *,
        source: str | None = None,
        verifier: Any = None,
    ) -> Self:
        """Computes the direction from a dataset of rollouts and keeps it as a file; returns the scorer.

        Args:
            dataset: a map-style dataset with prompts, responses (or response_ids) and rewards.
            out: the file to write (a folder, for projected features); None is a file in the Hugging Face cache
                (`$HF_HOME/hf_curate/directions`), named by what it was made from. A file of the same fit is used as
                it is; one of another fit is never overwritten. The file is as large as the parameters in float32.
            source, verifier: where the rows came from and who gave their rewards, for the record alone.

        Raises:
            DirectionError: no row has a signal, or `out` holds something else.
        """
        check_pool(dataset)
        self.check_columns(self.reads(dataset.column_names), dataset[0])
        return self._fit(dataset, self._fit_key(dataset), out, source, verifier)

    def _fit(
        self: Self,
        dataset: Any,
        key: str,
        out: str | Path | None = None,
        source: str | None = None,
        verifier: Any = None,
    ) -> Self:
        path = Path(out).expanduser().resolve() if out is not None else cached(key, self._suffix())
        self._at_hand, self._record, self._implicit = None, None, False
        verifier = verifier or (None if self.rollouts is None else self.rollouts.verifier.record())
        said = {"source": public_name(source), "verifier": verifier}
        if self._is_there(path, key):  # made of the same rows, which may have come from elsewhere
            self._record = {**self._record_at(path), **json.loads(json.dumps(said, sort_keys=True))}
        else:
            check_writable(path)
            self._make(self.complete(dataset), path, key, said)
        self.fitted = Fitted(path, key, self._file_digest(path))
        return self

    def _suffix(self) -> str:
        return ".safetensors"

    def _is_there(self, path: Path, key: str) -> bool:
        """Whether the path holds this very fit. Raises if it holds anything else."""
        if not path.exists():
            return False
        record = self._record_at(path)
        if record.get("key") != key:
            raise DirectionError(
                f"{path.name!r} holds a direction of another fit ({str(record.get('key'))[:12]}, now {key[:12]}): "
                "give another out=, or delete it."
            )
        logger.info("direction of %s rows taken from %s", f"{record['rows']['in']:,}", path.name)
        return True

    def _make(self, dataset: Any, path: Path, key: str, said: Mapping[str, Any]) -> None:
        direction = self._computed(dataset, key, said)
        direction.save(path)
        rows, size = direction.record["rows"]["in"], path.stat().st_size / 1e6
        logger.info("direction of %s rows -> %s (%.0f MB)", f"{rows:,}", path, size)

    def _computed(
        self, dataset: Any, key: str, said: Mapping[str, Any], together: Together | None = None
    ) -> Direction:
        """The direction with its record, of a dataset or of groups."""
        model = self.load()
        parameters, seen = self.chosen(model), Counts(self.correct_above)
        with evaluating(model.model):
            direction = self._mean(model, parameters, dataset, seen)
        if together is not None:
            together(direction, seen)
        counts, norm = seen.record(), direction.norm
        if norm == 0.0 or not counts["with_signal"]:
            raise NoSignalError(no_signal(self.kind, counts))
        direction.record = {**self._describe(key, counts, parameters), **said, "norm": norm}
        return direction

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
        }

    def _mean(
        self, model: LanguageModel, parameters: Mapping[str, nn.Parameter], dataset: Any, counts: Counts
    ) -> Direction:
        """The direction: the mean gradient, unless a subclass means something else."""
        what = f"fitting the {self.kind}"
        return mean_gradient(self.reader, model, parameters, dataset, what, counts, self.token_budget(model))

    # -- on a policy in training --------------------------------------------------------------------------------------

    def bound_to(self: Self, policy: LanguageModel, before: Self | None = None) -> Self:
        """This scorer, made without a model, on a live policy as it is now: over those parameters of its set that are
        trained (`requires_grad`), which for an adapter are the adapter's. Its direction is `fit_groups`'s.

        before: what this gave for the same policy at an earlier step, to take again: it knows what memory holds, and
        what it has warned of.
        """
        bound = self._bound(policy) if before is None else before
        bound.release()
        bound.fitted = bound._record = None
        bound._loaded, bound._policy = policy, policy_record(policy)
        bound.chosen(policy)
        return bound

    def _bound(self: Self, policy: LanguageModel) -> Self:
        """A scorer of a live policy with the settings of this one, which has none."""
        if not isinstance(self.source, Awaited):
            raise ScoreError(
                f"this {type(self).__name__} has a model of its own ({self.source.label}), and a selector scores with "
                f"the policy in training: make it without one, {type(self).__name__}(...)."
            )
        for name in ("direction", "rollouts", "tokenizer", "revision", "dtype", "device", "model_kwargs"):
            if self._arguments.get(name) is not None:
                raise ScoreError(
                    f"{type(self).__name__}({name}=...) does not fit the policy in training, which changes and has "
                    f"its own: leave {name}= away; a selector samples by its own settings."
                )
        self._check_awaits()
        arguments = {**self._arguments, "model": policy.model, "tokenizer": policy.tokenizer}
        bound = type(self)(**arguments)
        bound._trained = True
        return bound

    def _check_awaits(self) -> None:
        """Raises for settings that need a direction as files."""

    def fit_groups(
        self: Self, groups: Iterable[Group | RowError], what: Mapping[str, Any], together: Together | None = None
    ) -> Self:
        """The direction of groups that are at hand, in memory, for the weights as they are now; returns the scorer.

        Args:
            groups: read before, for the tokenizer of this model.
            what: JSON that names them (a round and how it was sampled), for the record and for the direction's key.
            together: makes a direction and its counts those of all processes, each of which has a part of the groups.

        Raises:
            NoSignalError: no problem has a signal.
        """
        made_of = {
            "kind": self.kind,
            "algorithm_version": self.algorithm_version,
            "model": which_weights(self.model_record()),
            "settings": self._fit_settings(),
            "what": dict(what),
        }
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        direction = self._computed(groups, key, what, together)
        model = self.load()
        self._at_hand = (model, direction.beside(self.chosen(model)), direction.record["norm"])
        self._weights, self._record, self._implicit = self._mark(), direction.record, False
        self.fitted = Fitted(None, key)
        return self

    def score_groups(self, groups: Iterable[Group | RowError]) -> list[dict[str, Any] | RowError]:
        """As `score_rows`, of groups that were read before."""
        return [self._result(item, None) for item in groups]

    # -- using it -----------------------------------------------------------------------------------------------------

    def direction(self, model: LanguageModel) -> tuple[dict[str, torch.Tensor], float]:
        """The direction beside the model's parameters, and its norm; read and checked once, and again when the
        weights have changed since."""
        if self._at_hand is None or self._at_hand[0] is not model or self._weights != self._mark():
            tensors = self._read(model)
            from hf_curate.gradients.directions import Direction

            norm = Direction(tensors).norm
            if norm == 0.0:
                raise DirectionError("the direction is zero everywhere: nothing can point along it.")
            self._at_hand, self._weights = (model, tensors, norm), self._mark()
        return self._at_hand[1:]

    def _mark(self) -> Any:
        """Something cheap that changes with the weights: all but writes through `.data`, which `_check_still` sees."""
        if self.source.live is not None:
            return id(self.source.live), _version(self.source.live)
        return folder_digest(Path(self.source.name)) if self.source.kind == "folder" else self.source.commit

    def _read(self, model: LanguageModel) -> dict[str, torch.Tensor]:
        from hf_curate.gradients.directions import Direction, file_digest

        fitted = self.need_fit()
        path = fitted.path
        if path is None:
            raise DirectionError(
                "the direction was kept in memory for the weights of its fit, and these have changed since, or the "
                "scorer has travelled: fit it again."
            )
        if fitted.sha256 is not None and path.is_file() and file_digest(path) != fitted.sha256:
            raise DirectionError(f"{path.name!r} has changed since the scorer was made: make the scorer again.")
        direction = Direction.load(path)
        if fitted.key is not None and direction.record.get("key") != fitted.key:
            raise DirectionError(f"{path.name!r} has changed since the scorer was fitted: fit it again.")
        self._check_kind(direction.record)
        direction.check(self.chosen(model), f"the direction {path.name!r}")
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
        theirs, ours = record.get("model"), self.model_record()
        theirs = theirs if isinstance(theirs, Mapping) else {}
        known = [name for name in ("digest", "sha") if theirs.get(name) and ours.get(name)]
        if (known and any(theirs[name] != ours[name] for name in known)) or not known:
            raise DirectionError(
                f"the direction was made with {named(theirs)}, and this scorer has {named(ours)}: gradients of two "
                "models cannot be compared. Fit it again with this model."
            )

    def need_fit(self) -> Fitted:
        if self.fitted is None:
            raise ScoreError(f"{type(self).__name__} is not fitted: scorer.fit(dataset) before dataset.map(scorer).")
        return self.fitted

    def products(
        self, group: Group, rank: int | None, per_rollout: bool = False, norm: bool = True
    ) -> tuple[Products, float]:
        """Inner products of a problem's gradient with the direction, and the direction's norm; see
        `policy_products`."""
        from hf_curate.gradients.inner import policy_products
        from hf_curate.gradients.policy import within

        model = self.load(rank)
        tensors, length = self.direction(model)
        weights = advantages(group.rewards).tolist()
        wanted = {"per_rollout": per_rollout, "norm": norm}
        work = partial(policy_products, model, group.rollouts, weights, self.chosen(model), tensors, **wanted)
        with evaluating(model.model):
            return within(self.token_budget(model), model, group.rollouts, work), length

    # -- pickles ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._check_still()
        return super().__getstate__()

    def _portable_arguments(self) -> dict[str, Any]:
        arguments = self._fitted_argument()
        if isinstance(arguments["direction"], Fitted):
            arguments["direction"] = arguments["direction"].without_digest()
        return {**super()._portable_arguments(), **arguments}

    def _travelling_arguments(self) -> dict[str, Any]:
        arguments = super()._travelling_arguments()  # a live model is refused before anything is fitted
        self.need_fit()
        return {**arguments, **self._fitted_argument()}

    def _fitted_argument(self) -> dict[str, Any]:
        return {"direction": self.fitted}


def _version(model: nn.Module) -> int:
    """Grows with every change of the weights in place, as optimizers and `load_state_dict` make them."""
    return sum(p._version for p in model.parameters() if not p.is_inference())
