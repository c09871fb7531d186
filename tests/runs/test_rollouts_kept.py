"""Rollouts in a run folder: as the scorer, and as what a scorer of policy gradients makes for its rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from lengths import files_of, results_of

from hf_curate import AlignScorer, GradAlignScorer, LearnAlignScorer, Rollouts, score, verifier
from hf_curate.demo import MODEL, world
from hf_curate.errors import CurateError
from hf_curate.runs.local import load_run

OPTIONS: dict[str, Any] = {"dtype": "float32", "parameters": "linear"}
IN_TWOS: dict[str, Any] = {"shard_rows": 2}


def problems(count: int, seed: int = 0) -> Dataset:
    drawn = world.draw_problems(count, random.Random(seed), "held_out")
    return Dataset.from_list([{"prompt": one.prompt, "answer": str(world.true_answer(one.prompt))} for one in drawn])


def roller(**options: Any) -> Rollouts:
    """Rollouts of the shipped model, made for two problems at a time."""
    judge = verifier("exact", pattern=r"(?m)^#(\d+)$")
    made = Rollouts(MODEL, judge, 4, **{"max_new_tokens": 40, "dtype": "float32", **options})
    made.batch_rows = 2
    return made


@contextmanager
def sampling(stop: int | None = None) -> Iterator[list[int]]:
    """How many problems were sampled at a time; the n-th time is interrupted."""
    seen: list[int] = []
    before = Rollouts._sample

    def counted(self: Rollouts, asked: Any, rank: int | None) -> Any:
        seen.append(len(asked))
        if len(seen) == stop:
            raise KeyboardInterrupt
        return before(self, asked, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollouts, "_sample", counted)
        yield seen


def stopping_at(scorer: Any, group: int) -> Any:
    """The scorer, interrupted when it comes to the n-th problem."""
    before, seen = scorer.score_group, []

    def counted(found: Any, rank: int | None) -> Any:
        seen.append(found)
        if len(seen) == group:
            raise KeyboardInterrupt
        return before(found, rank)

    scorer.score_group = counted
    return scorer


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return problems(5)


@pytest.fixture(scope="module")
def trusted() -> Dataset:
    return problems(4, seed=3)


def test_rollouts_that_are_done_are_not_sampled_again(pool: Dataset, tmp_path: Path) -> None:
    score(pool, roller(), out=tmp_path / "whole")
    with sampling(stop=3), pytest.raises(KeyboardInterrupt):
        score(pool, roller(), out=tmp_path / "run")
    with sampling() as seen:
        rolled = score(pool, roller(), out=tmp_path / "run")
    assert seen == [1]
    assert results_of(tmp_path / "run") == results_of(tmp_path / "whole")
    assert rolled.to_list() == load_run(tmp_path / "run").dataset.to_list()


def test_rollouts_made_for_a_scorer_are_kept_while_they_are_made(pool: Dataset, tmp_path: Path) -> None:
    def scorer() -> LearnAlignScorer:
        return LearnAlignScorer(MODEL, rollouts=roller(), **OPTIONS)

    whole = score(pool, scorer(), out=tmp_path / "whole", **IN_TWOS)
    run = tmp_path / "run"
    with sampling(stop=3), pytest.raises(KeyboardInterrupt):
        score(pool, scorer(), out=run, **IN_TWOS)
    assert len(list(run.glob("rollouts/parts/*.json"))) == 2
    with sampling() as seen, pytest.raises(KeyboardInterrupt):
        score(pool, stopping_at(scorer(), 4), out=run, **IN_TWOS)
    assert seen == [1]
    assert len(list(run.glob("parts/*.json"))) == 1
    with sampling() as seen:
        scored = score(pool, scorer(), out=run, **IN_TWOS)
    assert seen == []
    assert results_of(run) == results_of(tmp_path / "whole")
    assert scored.to_list() == whole.to_list() == load_run(run).dataset.to_list()
    assert load_run(run / "rollouts").identity == roller().identity
    assert scored.features == {**pool.features, **scorer().columns}


def test_what_is_in_the_rollouts_is_not_kept_twice(pool: Dataset, trusted: Dataset, tmp_path: Path) -> None:
    scorer = AlignScorer(MODEL, rollouts=roller(), **OPTIONS).fit(trusted)
    score(pool, scorer, out=tmp_path / "run", **IN_TWOS)
    part = pq.read_schema(tmp_path / "run" / "parts" / "00000.parquet").names
    assert part == ["row", "align_score", "align_error"]
    rolled = load_run(tmp_path / "run" / "rollouts").dataset
    given = score(rolled, AlignScorer(MODEL, rollouts=roller(), **OPTIONS).fit(trusted), out=tmp_path / "given")
    part = pq.read_schema(tmp_path / "given" / "parts" / "00000.parquet").names
    assert set(part) == {"row", *scorer.columns}
    assert not (tmp_path / "given" / "rollouts").exists()
    assert given["align_score"][:] == load_run(tmp_path / "run").dataset["align_score"][:]


def test_rollouts_of_a_validation_set_are_kept_in_a_folder_of_their_own(
    pool: Dataset, trusted: Dataset, tmp_path: Path
) -> None:
    def scorer(statistic: str = "cosine") -> GradAlignScorer:
        seeded = roller(seed=11)  # a direction that no other test has fitted
        return GradAlignScorer(MODEL, validation=trusted, rollouts=seeded, statistic=statistic, **OPTIONS)

    run = tmp_path / "run"
    with sampling(stop=5) as seen, pytest.raises(KeyboardInterrupt):
        score(pool, scorer(), out=run, **IN_TWOS)
    assert seen == [2, 2, 1, 2, 2]
    assert len(list(run.glob("validation_rollouts/parts/*.json"))) == 1
    with sampling() as seen:
        score(pool, scorer(), out=run, **IN_TWOS)
    assert seen == [2]
    assert len(load_run(run / "validation_rollouts").dataset) == 4
    with pytest.raises(CurateError, match=r"settings\.statistic 'cosine', now 'dot'"):
        score(pool, scorer("dot"), out=run)
    with sampling() as seen:
        score(pool, scorer("dot"), out=run, overwrite=True)
    assert seen == [], "the same rollouts serve another score"


def test_other_rollouts_in_a_folder_of_rollouts_are_refused_by_its_name(
    pool: Dataset, trusted: Dataset, tmp_path: Path
) -> None:
    def scorer(seed: int) -> AlignScorer:
        return AlignScorer(MODEL, rollouts=roller(seed=seed), **OPTIONS)

    run = tmp_path / "run"
    with sampling(stop=2), pytest.raises(KeyboardInterrupt):
        score(pool, scorer(1), out=run, **IN_TWOS)
    before = files_of(run / "rollouts")
    with pytest.raises(CurateError, match=r"'run/rollouts' holds a run of .* \(settings\.seed 1, now 2; identity"):
        score(pool, scorer(2), out=run, **IN_TWOS)
    assert files_of(run / "rollouts") == before
    with sampling() as seen:
        score(pool, scorer(2), out=run, overwrite=True, **IN_TWOS)
    assert seen == [2, 2, 1]


def test_a_scorer_keeps_nothing_when_its_run_is_over(pool: Dataset, tmp_path: Path) -> None:
    scorer = AlignScorer(MODEL, rollouts=roller(), **OPTIONS)
    with sampling(stop=2), pytest.raises(KeyboardInterrupt):
        score(pool, scorer, out=tmp_path / "run")
    assert scorer.keep is None
    before = files_of(tmp_path / "run")
    score(pool, scorer)
    assert files_of(tmp_path / "run") == before
