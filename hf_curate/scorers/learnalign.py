"""LearnAlign (arXiv 2506.11480): problems that are neither solved nor hopeless, and whose policy gradients agree.

With p_i the success rate of problem i, V_i = p_i (1 - p_i) its learnability and phi_i its policy gradient,
S_ij = V_i V_j cos(phi_i, phi_j) and score_i = mean_j S_ij over all n rows. That is linear in n: with
z_i = V_i phi_i / |phi_i|, score_i = <z_i, mean_j z_j>.

Differences from the paper: it leaves open which parameters and which projection; here all linear layers, exactly (two
passes over the data, one for mean_j z_j and one for the scores) or by a seeded projection of each layer (one pass,
features kept). Its advantages are divided by the rewards' standard deviation and its objective has a KL term: both
vanish here, the first in the cosine, the second because the policy is its own reference. Its rewards are 0 or 1; of
others a rollout counts as correct above `correct_above`. The paper's rollouts (8 at temperature 1.0) come from a
policy that was warmed up by GRPO on a random part of the pool: here they are taken as they are. The authors' released
code was not compared with their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import DirectionError, RowError
from hf_curate.models import evaluating
from hf_curate.scorers.checks import checked_count, checked_number, checked_seed
from hf_curate.scorers.fitting import Counts, advantages, has_signal, read_groups
from hf_curate.scorers.groups import Group
from hf_curate.scorers.policy import DirectedScorer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hf_curate.gradients.directions import Direction
    from hf_curate.models import LanguageModel
    from hf_curate.scorers.features import FeatureStore


def success_rate(rewards: np.ndarray, correct_above: float = 0.5) -> float:
    """Share of the rollouts with a reward above `correct_above`."""
    return float((rewards > correct_above).mean())


class LearnAlignScorer(DirectedScorer):
    """Scores problems with rollouts by LearnAlign. Fit it on the pool, then `dataset.map(scorer, batched=True)`.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): Hub id ("org/name" or "org/name@revision"), folder (also a PEFT
            adapter folder), or a live causal LM together with `tokenizer`: the policy that sampled the rollouts.
        projection_dim (`int`, *optional*): None computes the scores exactly, in two passes over the data. A number
            projects the gradient of each weight matrix to that many features: one pass, features kept as files, scores
            with an error (see the README).
        parameters (`str`, *optional*, defaults to `"linear"`): "linear" (every linear layer but the LM head), "all",
            "adapters" (of a PEFT model), or a regular expression for parameter names.
        correct_above (`float`, *optional*, defaults to 0.5): a rollout with a higher reward counts as correct.
        seed (`int`, *optional*, defaults to 0): of the projection.
        direction (`str` or `Path`, *optional*): what an earlier `fit` wrote, instead of fitting.
        rollouts (`Rollouts`, *optional*): makes responses and rewards where the rows (also those to fit on) have none;
            its columns are then kept too.
        revision, tokenizer, dtype, device, model_kwargs: as for `GraceScorer`.
        prompt, messages, responses, response_ids, rewards (`str`, *optional*): names of columns, as for
            `GradAlignScorer`.
        max_length (`int`, *optional*): problems with a longer prompt and response are null. Defaults to the context.
        batch_tokens (`int`, *optional*): padded tokens per forward and backward. Defaults to 8,192 on the CPU and
            32,768 elsewhere.

    Adds `learnability` (float32, p (1 - p)), `learnalign_score` (float32) and `learnalign_error` (string, "" when
    scored). A problem with p of 0 or 1 scores exactly 0.0 and costs no forward.

    Raises: `ScoreError` when it is not fitted, `DirectionError` when no problem of the pool has a signal or a
    direction does not fit the model, `ModelError`, `ColumnsError`. Rows that cannot be scored get nulls and a reason;
    they are not counted among the n rows.

    Source: LearnAlign, arXiv 2506.11480. Differences from the paper: see the module.

    Example:
        >>> scorer = LearnAlignScorer("Qwen/Qwen3-0.6B").fit(dataset)                         # doctest: +SKIP
        >>> scored = dataset.map(scorer, batched=True, batch_size=16)                         # doctest: +SKIP
    """

    name = "LearnAlign"
    prefix = "learnalign"
    algorithm_version = 1
    kind = "mean direction"
    placing = (*DirectedScorer.placing, "direction", "rollouts")

    def __init__(
        self,
        model: Any,
        projection_dim: int | None = None,
        *,
        rollouts: Any = None,
        parameters: str = "linear",
        correct_above: float = 0.5,
        seed: int = 0,
        direction: str | Path | None = None,
        revision: str | None = None,
        tokenizer: Any = None,
        prompt: str | None = None,
        messages: str | None = None,
        responses: str | None = None,
        response_ids: str | None = None,
        rewards: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self._take(locals())
        self.projection_dim = checked_count(projection_dim, "projection_dim")
        self.correct_above = checked_number(correct_above, "correct_above")
        self.seed = checked_seed(seed)
        self._features: FeatureStore | None = None
        self._take_direction(direction)

    @property
    def own_columns(self) -> dict[str, Any]:
        from datasets import Value

        return {
            "learnability": Value("float32"),
            "learnalign_score": Value("float32"),
            "learnalign_error": Value("string"),
        }

    @property
    def column(self) -> str:
        return "learnalign_score"

    def settings(self) -> dict[str, Any]:
        return {**self._fit_settings(), "direction": self._which()}

    def _fit_settings(self) -> dict[str, Any]:
        return {**self._own(), **super()._fit_settings()}

    def _own(self) -> dict[str, Any]:
        """What makes a fit other than GradAlign's, beside the model and the rows."""
        own = {"projection_dim": self.projection_dim, "correct_above": self.correct_above}
        return own if self.projection_dim is None else {**own, "seed": self.seed}

    def record(self) -> dict[str, Any]:
        return {**super().record(), "zero_without_signal": "0 < p < 1"}

    def learnability(self, rewards: np.ndarray) -> float:
        p = success_rate(rewards, self.correct_above)
        return p * (1.0 - p)

    def score_group(self, group: Group, rank: int | None) -> dict[str, Any]:
        value = self.learnability(group.rewards)
        score = 0.0
        if value and has_signal(group.rewards):
            score = value * self._cosine(group, rank)
        else:
            self.need_fit()
        return {"learnability": np.float32(value), "learnalign_score": np.float32(score)}

    def _cosine(self, group: Group, rank: int | None) -> float:
        """<phi / |phi|, mean_j z_j> of one problem."""
        if self.projection_dim is not None:
            return self._feature_product(group, rank)
        found, _ = self.products(group, rank)
        if found.cancels:
            return 0.0
        assert found.dot is not None
        return found.dot / found.squared_norm**0.5

    # -- exact: the mean of z_j as a direction ------------------------------------------------------------------------

    def _mean(
        self, model: LanguageModel, parameters: Mapping[str, nn.Parameter], dataset: Any, counts: Counts
    ) -> Direction:
        """mean_j z_j. Beside the model there are two gradients: the sum, and that of one problem."""
        from hf_curate.gradients.directions import Direction
        from hf_curate.gradients.inner import whole_gradient

        total, limit = Direction.zeros(parameters), self.token_limit(model)
        for item in read_groups(self.reader, dataset, f"fitting the {self.kind}"):
            value = 0.0 if isinstance(item, RowError) else self.learnability(item.rewards)
            if isinstance(item, RowError) or not (value and has_signal(item.rewards)):
                counts.see(item)
                continue
            try:
                found = whole_gradient(
                    model, item.rollouts, advantages(item.rewards).tolist(), parameters, batch_tokens=limit
                )
            except RowError as error:
                counts.see(error)
                continue
            counts.see(item, found is not None)
            if found is not None:
                gradient, norm = found
                for name in list(gradient):
                    total.add(name, gradient.pop(name), value / norm)
        return total.divided(counts.readable)

    def _describe(self, key: str, counts: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._describe(key, counts, parameters), **self._own()}

    def _check_model(self, record: Mapping[str, Any]) -> None:
        """Raises also if it was made with another projection, or another mark for what is correct."""
        super()._check_model(record)
        ours = self._own()
        theirs = {name: record.get(name) for name in ours}
        if self.projection_dim is not None:  # features do not name their parameters
            ours |= {"parameters": self.parameters}
            theirs |= {"parameters": (record.get("parameters") or {}).get("set")}
        for name, value in ours.items():
            if theirs[name] != value:
                raise DirectionError(
                    f"the direction was made with {name}={theirs[name]!r}, and this scorer has {name}={value!r}: pass "
                    f"{name}={theirs[name]!r}, or fit it again."
                )

    # -- projected: the features of all rows as files -----------------------------------------------------------------

    def _suffix(self) -> str:
        return ".safetensors" if self.projection_dim is None else ""

    def _record_at(self, path: Path) -> dict[str, Any]:
        if self.projection_dim is None:
            return super()._record_at(path)
        from hf_curate.scorers.features import read_index

        return read_index(path)["record"]

    def _file_digest(self, path: Path) -> str:
        if self.projection_dim is None:
            return super()._file_digest(path)
        from hf_curate.scorers.features import INDEX

        return super()._file_digest(path / INDEX)

    def _make(self, dataset: Any, path: Path, key: str, said: Mapping[str, Any]) -> None:
        if self.projection_dim is None:
            super()._make(dataset, path, key, said)
            return
        from hf_curate.scorers.features import write_features

        model = self.load()
        with evaluating(model.model):
            write_features(self, model, dataset, path, key, said)

    def _feature_product(self, group: Group, rank: int | None) -> float:
        from hf_curate.scorers.features import FeatureStore

        fitted = self.need_fit()
        if self._features is None or self._features.fitted != fitted or self._weights != self._mark():
            store = FeatureStore(fitted)
            self._check_kind(store.record)
            self._check_model(store.record)
            self._features, self._weights = store, self._mark()
        return self._features.product(self, group, rank)
