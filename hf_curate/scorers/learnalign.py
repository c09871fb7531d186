"""LearnAlign (arXiv 2506.11480): problems that are neither solved nor hopeless, and whose policy gradients agree.

With p_i the success rate of problem i, V_i = p_i (1 - p_i) its learnability and phi_i its policy gradient,
S_ij = V_i V_j cos(phi_i, phi_j) and score_i = mean_j S_ij over all n rows. That is linear in n: with
z_i = V_i phi_i / |phi_i|, score_i = <z_i, mean_j z_j>.

Differences from the paper: it leaves open which parameters and which projection; here all linear layers, exactly (two
passes over the data, one for mean_j z_j and one for the scores) or by a seeded projection of each layer (one pass,
features kept). Its advantages are divided by the rewards' standard deviation and its objective has a KL term: both
vanish here, the first in the cosine, the second because the policy is its own reference. Its rewards are 0 or 1; of
others a rollout counts as correct above `correct_above`. The paper's rollouts (8 at temperature 1.0) come from a
policy that was warmed up by GRPO on a random part of the pool, as `warmed_up` makes one; without it rollouts are taken
as they are. The authors' released code was not compared with their text.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import CurateError, DirectionError, RowError
from hf_curate.models import evaluating
from hf_curate.scorers.base import in_worker
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
        model: Any = None,
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
        self._warned = False
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

    def _check_awaits(self) -> None:
        if self.projection_dim is not None:
            raise DirectionError(
                f"projection_dim={self.projection_dim} keeps features as files, and those of a policy in training are "
                "of use for one round: leave it away (None) in a selector."
            )

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

    def _before_load(self) -> None:
        """Once per scorer, in the user's process: workers are silent. A live policy may be in training now."""
        known = self.source.live is not None or (self.source.warm_up or {}).get("kind") == "GRPO"
        if self._warned or known or in_worker():
            return
        self._warned = True
        warnings.warn(
            "LearnAlign's authors take rollouts and gradients of a policy that was warmed up by GRPO on some hundred "
            "problems of the pool; no such warm-up of this one is recorded, and its records will say so. See "
            "LearnAlignScorer.warmed_up.",
            UserWarning,
            stacklevel=6,
        )

    # -- exact: the mean of z_j as a direction ------------------------------------------------------------------------

    def _mean(
        self, model: LanguageModel, parameters: Mapping[str, nn.Parameter], dataset: Any, counts: Counts
    ) -> Direction:
        """mean_j z_j. Beside the model there are two gradients: the sum, and that of one problem."""
        from hf_curate.gradients.directions import Direction
        from hf_curate.gradients.inner import whole_gradient
        from hf_curate.gradients.policy import within

        total, budget = Direction.zeros(parameters), self.token_budget(model)
        for item in read_groups(self.reader, dataset, f"fitting the {self.kind}"):
            value = 0.0 if isinstance(item, RowError) else self.learnability(item.rewards)
            if isinstance(item, RowError) or not (value and has_signal(item.rewards)):
                counts.see(item)
                continue
            weights = advantages(item.rewards).tolist()
            work = partial(whole_gradient, model, item.rollouts, weights, parameters)
            try:
                found = within(budget, model, item.rollouts, work)
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

    # -- around it ----------------------------------------------------------------------------------------------------

    @classmethod
    def warmed_up(
        cls,
        model: Any,
        dataset: Any,
        verifier: Any,
        problems: int = 300,
        seed: int = 0,
        *,
        out: str | Path,
        n: int = 8,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        method: str | None = None,
        learning_rate: float = 1e-6,
        beta: float = 0.04,
        clip: float = 0.2,
        updates: int = 1,
        batch_problems: int = 8,
        **arguments: Any,
    ) -> LearnAlignScorer:
        """A scorer on a copy of the policy that was trained briefly by GRPO on random problems, and samples with it.

        Its `rollouts` are the warmed-up policy's own, by the same protocol and verifier: `score(dataset, scorer)` is
        the whole method. The training is TRL's (needs `hf_curate[trl]`).

        Args:
            model: Hub id, folder or live model, as for the scorer.
            dataset: the pool, with prompts and what the verifier reads, and without rollouts.
            verifier: as for `Rollouts`.
            problems: rows to train on, drawn with `seed` (the authors: 300 of GSM8K, 1000 of DAPO-MATH-17K); those
                that cannot be read are left out. All, with a warning, where the pool has fewer.
            seed: of the draw, the training, the rollouts and the projection.
            out: folder for the warmed-up weights (safetensors), the tokenizer and the record of the training.
            n, temperature, max_new_tokens: of the rollouts, in the training and afterwards.
            method: "lora" (rank 8, alpha 32, all linear layers; needs peft) or "full". None: "full" under 10 M
                parameters.
            learning_rate: of AdamW; constant, with the gradient norm clipped at 1.
            beta: KL coefficient, with the policy before the training as reference; 0 is without one.
            clip: how far the ratio of probabilities may go from 1. At the first update from a batch of rollouts it is
                1, so this takes effect from `updates` = 2 on.
            updates: from the same rollouts.
            batch_problems: problems of an update, at most. One epoch: the problems are shuffled and cut into batches
                of equal size; where that does not come out even, the last is filled up with problems of the first.
            arguments: of the scorer; those that `Rollouts` has too hold for both, but for `batch_tokens`.

        The rows trained on stay in the pool, and are not counted in a budget.
        """
        from hf_curate.rollouts.rollouts import Rollouts
        from hf_curate.scorers.grpo import Recipe
        from hf_curate.scorers.policy_warm_up import warm_up_policy

        if arguments.get("rollouts") is not None:
            raise CurateError(
                "rollouts= samples with the policy before its warm-up: leave it away, and give n=, temperature= and "
                "max_new_tokens= here."
            )
        if arguments.get("direction") is not None:
            raise CurateError(
                "direction= was fitted with the policy before its warm-up, and gradients of two models cannot be "
                "compared: leave it away."
            )
        recipe = Recipe(
            problems=problems,
            seed=seed,
            n=n,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            method=method,
            learning_rate=learning_rate,
            beta=beta,
            clip=clip,
            updates=updates,
            batch_problems=batch_problems,
        )
        protocol = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        alike = ("prompt", "messages", "dtype", "device", "model_kwargs")

        def on(policy: Any, judge: Any, own: Mapping[str, Any]) -> LearnAlignScorer:
            shared = {name: own[name] for name in (*alike, "revision", "tokenizer") if name in own}
            return cls(policy, rollouts=Rollouts(policy, judge, n, **protocol, **shared), seed=seed, **own)

        base = on(model, verifier, arguments)
        warm_up_policy(base, dataset, Path(out), recipe)
        keep = {name: value for name, value in arguments.items() if name not in ("revision", "tokenizer")}
        return on(Path(out), base.rollouts.verifier, keep)
