"""AlignScorer: the cosine of a problem's policy gradient with the mean over the pool, and nothing of LearnAlign."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from rollouts import (
    SIGNAL,
    forwards,
    gradients,
    policy,
    pool,
    reference,
    rollout_vectors,
    rows_of_every_kind,
    saved_policy,
    solved,
    tokenizer,
    with_a_rare_parameter,
)
from tolerances import COLUMN, POLICY, SAME_RUN

from hf_curate import score
from hf_curate.errors import DirectionError, ScoreError
from hf_curate.scorers.align import AlignScorer
from hf_curate.scorers.gradalign import GradAlignScorer

SAME = SAME_RUN[torch.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("align") / "policy")


@pytest.fixture(scope="module")
def fitted(folder: Path) -> AlignScorer:
    return AlignScorer(folder).fit(pool())


@pytest.mark.parametrize("which", ["all", "linear"])
@pytest.mark.parametrize("kind", ["GPT2", "Qwen3"])
def test_scores_are_cosines_with_the_mean_of_explicit_gradients(kind: str, which: str) -> None:
    model = policy(kind).double() if kind == "GPT2" else policy(kind)
    rows = rows_of_every_kind()
    scorer = AlignScorer(model, tokenizer=tokenizer(), parameters=which).fit(pool())
    wanted = reference.align(gradients(rollout_vectors(scorer, rows, which), rows))
    found = scorer(pool()[:])
    assert found["align_error"] == [""] * 12
    tolerance = COLUMN if kind == "GPT2" else POLICY[torch.float32]
    np.testing.assert_allclose(found["align_score"], wanted, rtol=0, atol=tolerance)
    assert [value != 0.0 for value in found["align_score"]] == SIGNAL


def test_it_is_gradalign_with_the_pool_as_validation(folder: Path, fitted: AlignScorer) -> None:
    other = GradAlignScorer(folder, validation=pool())
    assert fitted(pool()[:])["align_score"] == other(pool()[:])["gradalign_score"]


def test_batches_and_splits_of_rows_change_nothing(folder: Path, fitted: AlignScorer) -> None:
    alone = [fitted(row)["align_score"] for row in pool()]
    assert pool().map(fitted, batched=True, batch_size=5)["align_score"][:] == alone
    assert [row["align_score"] for row in pool().to_iterable_dataset().map(fitted)] == alone
    split = AlignScorer(folder, batch_tokens=60).fit(pool())
    np.testing.assert_allclose([split(row)["align_score"] for row in pool()], alone, rtol=SAME, atol=SAME)


def test_the_order_of_the_pool_changes_nothing(folder: Path, fitted: AlignScorer) -> None:
    turned = AlignScorer(folder).fit(pool().select(range(11, -1, -1)))
    np.testing.assert_allclose(
        turned(pool()[:])["align_score"], fitted(pool()[:])["align_score"], rtol=SAME, atol=SAME
    )


def test_problems_without_signal_score_exactly_zero_without_a_forward(fitted: AlignScorer) -> None:
    rows = [row for row, signal in zip(rows_of_every_kind(), SIGNAL, strict=True) if not signal]
    with forwards(fitted) as seen:
        assert [fitted(row) for row in rows] == [{"align_score": 0.0, "align_error": ""}] * 4
        assert not seen
        fitted(solved(1)[0])
        assert seen


def test_a_problem_that_reaches_no_parameter_of_the_set_scores_zero() -> None:
    model, reached, missed = with_a_rare_parameter()
    rows = Dataset.from_list(reached + missed)
    found = AlignScorer(model, tokenizer=tokenizer(), parameters="embed_tokens.rare").fit(rows)(rows[:])
    assert found["align_error"] == [""] * 5
    assert found["align_score"][3:] == [0.0, 0.0]
    assert all(found["align_score"][:3])


def test_an_added_constant_and_a_factor_of_the_rewards_change_nothing(fitted: AlignScorer) -> None:
    row = pool()[0]
    moved: dict[str, Any] = {**row, "rewards": [4.0 * reward - 16.0 for reward in row["rewards"]]}
    assert fitted(moved)["align_score"] == pytest.approx(fitted(row)["align_score"], rel=1e-4)


def test_score_fits_on_the_pool_and_an_unfitted_map_says_what_to_call(folder: Path, fitted: AlignScorer) -> None:
    scored = score(pool(), AlignScorer(folder))
    assert scored["align_score"][:] == fitted(pool()[:])["align_score"]
    wanted = Features({"align_score": Value("float32"), "align_error": Value("string")})
    assert Features({name: scored.features[name] for name in wanted}) == fitted.columns == wanted
    with pytest.raises(ScoreError, match=r"AlignScorer is not fitted: scorer\.fit\(dataset\)"):
        AlignScorer(folder)(pool()[0])


def test_a_pool_without_signal_is_an_error_that_says_what_to_change(folder: Path) -> None:
    rows = [{**row, "rewards": [1.0] * 4} for row in solved(2)] + [{**row, "rewards": [0.0] * 4} for row in solved(3)]
    with pytest.raises(DirectionError, match=r"of 5 problems 2 are solved by every rollout, 3 by none.*more rollouts"):
        AlignScorer(folder).fit(Dataset.from_list(rows))


def test_a_fitted_scorer_pickles_by_its_file(fitted: AlignScorer) -> None:
    content = pickle.dumps(fitted)
    assert len(content) < 4000
    again = pickle.loads(content)
    assert again.identity == fitted.identity
    assert again(pool()[:]) == fitted(pool()[:])
    assert fitted.record()["direction"]["kind"] == "pool gradient"
    assert fitted.record()["direction"]["rows"]["with_signal"] == sum(SIGNAL)
