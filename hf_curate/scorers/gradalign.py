"""GradAlign (arXiv 2602.21492): problems whose policy gradient points where a trusted validation set wants to go.

With A_k = r_k - mean r, grad_i = mean_k A_k (1/|o_k|) sum_t grad log pi(o_kt) for problem i, and g_val the mean of it
over the validation problems, a problem scores cos(grad_i, g_val).

The inner product is additive over rollouts: with d_k = <(1/|o_k|) sum_t grad log pi(o_kt), g_val> and
s_k = A_k (d_k - mean d) it is mean_k s_k, and its standard error, with advantages and g_val held fixed, is
std(s, ddof=1) / sqrt(K).

Differences from the paper: none in the cosine, which is the default; `dot` is in its ablation; the standard error, `t`
and `corr` are ours. A group with equal rewards has no gradient and so no cosine: the authors' released code gives it
the score 0, and so do we. That code samples candidates at temperature 0.7 and top-p 0.95; here rollouts are taken as
they are, and who made them must say how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import ColumnsError, DirectionError, RowError
from hf_curate.scorers.fitting import advantages, cached, check_pool, has_signal
from hf_curate.scorers.groups import Group
from hf_curate.scorers.model import one_of
from hf_curate.scorers.policy import DirectedScorer, Fitted

if TYPE_CHECKING:
    import torch


STATISTICS = ("cosine", "dot", "t", "corr")
SPREAD_NEEDS = 3
"""Rollouts from which on their spread says something."""
SPREAD = 1e-9
"""Standard deviations below this share of the largest value are 0 up to rounding."""


def statistics(rewards: np.ndarray, products: np.ndarray) -> dict[str, float]:
    """What K rollouts say of the inner product of a problem's gradient with a direction.

    Args:
        rewards: [K]; products: [K] d_k, each rollout's gradient along the direction.

    Returns:
        "dot" mean_k A_k d_k; "stderr" its standard error; "t" their ratio, NaN where the standard error is 0 or all
        products are equal; "corr" the Pearson correlation of rewards and products, 0 where one is constant. Of fewer
        than 3 rollouts stderr, t and corr are NaN: the two s_k of K = 2 are always equal.
    """
    a, d = advantages(np.asarray(rewards, dtype=np.float64)), np.asarray(products, dtype=np.float64)
    apart = d - d.mean()
    s = a * apart
    dot = float(s.mean())
    few = len(s) < SPREAD_NEEDS
    stderr = float("nan") if few else float(s.std(ddof=1) / len(s) ** 0.5)
    norms = float(np.linalg.norm(a) * np.linalg.norm(apart))
    differ = norms > SPREAD * float(np.linalg.norm(a) * np.linalg.norm(d))
    return {
        "dot": dot,
        "stderr": stderr,
        "t": dot / stderr if differ and stderr > SPREAD * float(np.abs(s).max()) else float("nan"),
        "corr": float("nan") if few else float(s.sum()) / norms if differ else 0.0,
    }


class GradAlignScorer(DirectedScorer):
    """Scores problems with rollouts by GradAlign. Use it as `dataset.map(GradAlignScorer(model, validation=val),
    batched=True)`.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): Hub id ("org/name" or "org/name@revision"), folder (also a PEFT
            adapter folder), or a live causal LM together with `tokenizer`: the policy that sampled the rollouts. None
            for an `OnlineSelector`, which brings the policy in training and samples for both sets of problems.
        validation (`Dataset`, *optional*): trusted problems with their own responses and rewards, in columns of the
            same names. Its mean gradient is computed before the first row is scored, and kept in the Hugging Face
            cache.
        direction (`str` or `Path`, *optional*): a direction file that `fit` wrote, instead of `validation`.
        parameters (`str`, *optional*, defaults to `"all"`): "all" (as the authors), "linear" (every linear layer but
            the LM head), "adapters" (of a PEFT model), or a regular expression for parameter names. In a selector
            those of the set that are trained: with an adapter "all" are the adapter's.
        statistic (`str`, *optional*, defaults to `"cosine"`): "cosine", "dot" (inner product), "t" (its ratio to its
            standard error) or "corr" (correlation of rewards and products); the last two are null for fewer than 3
            rollouts. Measured: see the README on what they reward beside direction.
        rollouts (`Rollouts`, *optional*): makes responses and rewards where the rows (also those to fit on) have none;
            its columns are then kept too.
        revision, tokenizer, dtype, device, model_kwargs: as for `GraceScorer`.
        prompt, messages, responses, response_ids, rewards (`str`, *optional*): names of columns. Without them:
            `messages`, `conversations`, `prompt` or its aliases; `response_ids` before `responses`; `rewards`.
        max_length (`int`, *optional*): problems with a longer prompt and response are null. Defaults to the context.
        batch_tokens (`int`, *optional*): padded tokens per forward and backward. A problem with more keeps its whole
            gradient in memory until it is done. Defaults to 8,192 on the CPU and 32,768 elsewhere.

    Adds `gradalign_score` (float32), `gradalign_stderr` (float32, standard error of the inner product over the
    rollouts, null for fewer than 3) and `gradalign_error` (string, "" when scored). A problem whose rewards are all
    equal, or whose gradient cancels to rounding noise, has no signal: its score is exactly 0.0, and it costs no
    forward.

    Raises: `DirectionError` for a validation set without signal or a direction that does not fit, `ModelError`,
    `ColumnsError`, and `ScoreError` when a first batch of 8 rows or more fails entirely. Rows that cannot be scored
    get nulls and a reason.

    Source: GradAlign, arXiv 2602.21492. Differences from the paper: see the module.

    Example:
        >>> scorer = GradAlignScorer("Qwen/Qwen3-0.6B", validation=trusted)                   # doctest: +SKIP
        >>> scored = dataset.map(scorer, batched=True, batch_size=16)                         # doctest: +SKIP
    """

    name = "GradAlign"
    prefix = "gradalign"
    algorithm_version = 1
    kind = "validation gradient"
    placing = (*DirectedScorer.placing, "validation", "direction", "rollouts")

    def __init__(
        self,
        model: Any = None,
        validation: Any = None,
        direction: str | Path | None = None,
        *,
        rollouts: Any = None,
        parameters: str = "all",
        statistic: str = "cosine",
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
        self.statistic = one_of(statistic, STATISTICS, "statistic")
        if (validation is None) == (direction is None):
            got = "neither: pass trusted problems" if direction is None else "both: drop one of the two"
            raise DirectionError(
                "GradAlignScorer needs validation=dataset (with rollouts and rewards) or direction=path (of an "
                f"earlier fit), and got {got}."
            )
        self.validation = validation
        if validation is not None:
            check_pool(validation)
        self._take_direction(direction)

    @property
    def own_columns(self) -> dict[str, Any]:
        from datasets import Value

        return {
            "gradalign_score": Value("float32"),
            "gradalign_stderr": Value("float32"),
            "gradalign_error": Value("string"),
        }

    @property
    def column(self) -> str:
        return "gradalign_score"

    def settings(self) -> dict[str, Any]:
        return {"statistic": self.statistic, **super().settings()}

    def _which(self) -> dict[str, Any] | None:
        if self.fitted is None and self._key is None:  # known beforehand: a second process finds the cached scores
            self._key = self._fit_key(self.validation)
        return super()._which()

    def expect(self, dataset: Any) -> None:
        """The direction is that of the validation set, whatever the pool."""

    def call(self) -> str:
        how = "validation=validation" if self.validation is not None else "direction=direction"
        return super().call()[:-1] + f", {how})"

    def fit(
        self,
        dataset: Any,
        out: str | Path | None = None,
        *,
        source: str | None = None,
        verifier: Any = None,
    ) -> GradAlignScorer:
        try:
            with self.reader.aside():
                return super().fit(dataset, out, source=source, verifier=verifier)
        except ColumnsError as error:
            raise ColumnsError(f"of the validation set: {error}") from error

    def direction_record(self) -> dict[str, Any] | None:
        """Of the validation gradient, also where an earlier process made it."""
        if self.fitted is None and (path := self._fitted_argument()["direction"].path).is_file():
            return self._record_at(path)
        return super().direction_record()

    def prepare(self, dataset: Any = None) -> None:
        """Computes the validation gradient, unless it is there."""
        if self.fitted is None:
            self.fit(self.validation)
        self._check_still()

    def need_fit(self) -> Fitted:
        if self.fitted is None:
            self.fit(self.validation)
        return super().need_fit()

    def measure(self, group: Group, rank: int | None = None, *, cosine: bool = True) -> dict[str, float] | None:
        """All statistics of one problem and the standard error of its inner product; None where it has no signal.

        What `statistics` gives, with the inner product over the whole gradient as "dot", and "cosine" unless it is not
        wanted: the others need no norm, and so no gradient of a parameter. Raises RowError.
        """
        if not has_signal(group.rewards):
            return None
        found, norm = self.products(group, rank, per_rollout=True, norm=cosine)
        if found.cancels:
            return None
        assert found.per_rollout is not None
        assert found.dot is not None
        known = {**statistics(group.rewards, found.per_rollout), "dot": found.dot}
        return {**known, "cosine": found.dot / (found.squared_norm**0.5 * norm)} if cosine else known

    def score_group(self, group: Group, rank: int | None) -> dict[str, Any]:
        known = self.measure(group, rank, cosine=self.statistic == "cosine")
        if known is None:
            few = len(group.rewards) < SPREAD_NEEDS
            return {"gradalign_score": np.float32(0.0), "gradalign_stderr": None if few else np.float32(0.0)}
        score, stderr = known[self.statistic], known["stderr"]
        if np.isnan(score):
            raise RowError(
                "no spread",
                f"{len(group.rewards)} rollouts say nothing of their spread, and {self.statistic} needs it",
            )
        return {
            "gradalign_score": np.float32(score),
            "gradalign_stderr": None if np.isnan(stderr) else np.float32(stderr),
        }

    # -- pickles ------------------------------------------------------------------------------------------------------

    def _fitted_argument(self) -> dict[str, Any]:
        """The file's place is known before it is made."""
        if self.fitted is not None:
            return {"validation": None, "direction": self.fitted}
        key = (self._which() or {})["fit"]
        return {"validation": None, "direction": Fitted(cached(key, self._suffix()), key=key)}
