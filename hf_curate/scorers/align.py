"""Align: cosine of a problem's policy gradient with the pool's mean gradient. A baseline of the GradAlign paper.

It asks what GradAlign asks, of the pool itself instead of a trusted validation set: noise in the pool's rewards is in
the direction too. It is not LearnAlign, which normalises each gradient and weighs by learnability. Differences from
the paper: none known; problems without signal count in the mean as 0, as they do in GradAlign's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.scorers.fitting import has_signal
from hf_curate.scorers.groups import Group
from hf_curate.scorers.policy import DirectedScorer

if TYPE_CHECKING:
    import torch


class AlignScorer(DirectedScorer):
    """Scores problems by the cosine of their policy gradient with the pool's mean. Fit it on the pool first.

    Args: as for `GradAlignScorer`, without `validation` and `statistic`. An `OnlineSelector` fits it on each chunk.

    Adds `align_score` (float32) and `align_error` (string, "" when scored). A problem without signal scores exactly
    0.0.

    Source: the baseline "Align" of GradAlign, arXiv 2602.21492.
    """

    name = "Align"
    prefix = "align"
    algorithm_version = 1
    kind = "pool gradient"
    placing = (*DirectedScorer.placing, "direction", "rollouts")

    def __init__(
        self,
        model: Any = None,
        *,
        rollouts: Any = None,
        parameters: str = "all",
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
        self._take_direction(direction)

    @property
    def own_columns(self) -> dict[str, Any]:
        from datasets import Value

        return {"align_score": Value("float32"), "align_error": Value("string")}

    @property
    def column(self) -> str:
        return "align_score"

    def score_group(self, group: Group, rank: int | None) -> dict[str, Any]:
        self.need_fit()
        score = 0.0
        if has_signal(group.rewards):
            found, norm = self.products(group, rank)
            if not found.cancels:
                assert found.dot is not None
                score = found.dot / (found.squared_norm**0.5 * norm)
        return {"align_score": np.float32(score)}
