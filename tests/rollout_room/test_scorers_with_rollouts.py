"""Scorers of policy gradients that make the rollouts which their rows lack: the numbers of rollouts made before."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from problems import CONTEXT, answers, problems, rolled, roller, sampling
from transformers import AutoTokenizer

from hf_curate import AlignScorer, GradAlignScorer, LearnAlignScorer, score, verifier
from hf_curate.demo import MODEL
from hf_curate.errors import RowError, ScoreError
from hf_curate.runs.local import load_run

OPTIONS: dict[str, Any] = {"dtype": "float32", "parameters": "linear"}


def gradalign(validation: Dataset, **options: Any) -> GradAlignScorer:
    return GradAlignScorer(MODEL, validation=validation, **OPTIONS, **options)


def align(pool: Dataset, **options: Any) -> AlignScorer:
    return AlignScorer(MODEL, **OPTIONS, **options).fit(pool)


def learnalign(pool: Dataset, **options: Any) -> LearnAlignScorer:
    return LearnAlignScorer(MODEL, **OPTIONS, **options).fit(pool)


def projected(pool: Dataset, **options: Any) -> LearnAlignScorer:
    return LearnAlignScorer(MODEL, 8, **OPTIONS, **options).fit(pool)


EVERY = pytest.mark.parametrize("make", [gradalign, align, learnalign, projected], ids=lambda make: make.__name__)


def scored_by(scorer: Any, data: Dataset, **options: Any) -> list[dict[str, Any]]:
    return data.map(scorer, **{"batched": True, "features": scorer.features(data), **options}).to_list()


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return problems(8)


@pytest.fixture(scope="module")
def trusted() -> Dataset:
    return problems(5, seed=3)


@pytest.fixture(scope="module")
def made(pool: Dataset) -> Dataset:
    return rolled(pool, roller())


@EVERY
def test_the_numbers_are_those_of_rollouts_that_were_made_first(
    make: Any, pool: Dataset, trusted: Dataset, made: Dataset
) -> None:
    own, plain = make(trusted, rollouts=roller()), make(rolled(trusted, roller()))
    wanted = scored_by(plain, made)
    assert scored_by(own, pool) == wanted
    assert len({row[plain.column] for row in wanted} - {0.0, None}) > 2
    row, batch = own(pool[2]), own({name: pool[2:4][name] for name in pool.column_names})
    assert row[own.column] == pytest.approx(wanted[2][own.column], rel=1e-6)
    assert batch["response_ids"] == [wanted[2]["response_ids"], wanted[3]["response_ids"]]
    stream = pool.to_iterable_dataset().map(own, batched=True, batch_size=3)
    assert [row["rewards"] for row in stream] == made["rewards"][:]


def test_score_samples_each_problem_once(pool: Dataset, made: Dataset) -> None:
    with sampling() as sampled:
        found = score(pool, LearnAlignScorer(MODEL, rollouts=roller(), **OPTIONS))
    assert sampled == [8]
    assert found.to_list() == score(made, LearnAlignScorer(MODEL, **OPTIONS)).to_list()


def test_rows_that_have_rollouts_are_not_sampled_and_keep_theirs(made: Dataset, trusted: Dataset) -> None:
    with sampling() as sampled:
        own = gradalign(rolled(trusted, roller()), rollouts=roller(n=7, seed=3))
        sampled.clear()
        found = scored_by(own, made)
    assert sampled == []
    assert found == scored_by(gradalign(rolled(trusted, roller())), made)
    given = made.select_columns(["prompt", "responses", "rewards"])
    with sampling() as sampled:
        bare = scored_by(own, given)
    assert sampled == []
    assert [row["responses"] for row in bare] == made["responses"][:]
    assert {row["success_rate"] for row in bare} == {None}, "what was not made is not invented"


def test_rows_that_fail_keep_their_rollouts_and_say_why(pool: Dataset, trusted: Dataset, made: Dataset) -> None:
    rows = pool.to_list()
    rows[1]["answer"] = None
    rows[4]["prompt"] = "1" * CONTEXT
    own = align(trusted, rollouts=roller())
    found, wanted = scored_by(own, Dataset.from_list(rows)), scored_by(own, pool)
    assert found[1]["align_error"] == found[1]["rollouts_error"] == "gold missing: column 'answer' holds None"
    assert (found[1]["response_ids"], found[1]["rewards"]) == (made[1]["response_ids"], None)
    reason = "too long: 512 prompt tokens and 40 new ones, the context is 512"
    assert found[4]["align_error"] == found[4]["rollouts_error"] == reason
    assert found[4]["responses"] is found[1]["align_score"] is found[4]["align_score"] is None
    rest = [i for i in range(8) if i not in (1, 4)]
    assert [found[i] for i in rest] == [wanted[i] for i in rest]


def test_a_row_whose_gradient_fails_keeps_its_rollouts(
    pool: Dataset, trusted: Dataset, made: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = align(trusted, rollouts=roller())

    def fails(*_: Any) -> dict[str, Any]:
        raise RowError("not finite", "the gradient overflows")

    monkeypatch.setattr(own, "score_group", fails)
    found = own(pool[0])
    assert (found["align_score"], found["align_error"]) == (None, "not finite: the gradient overflows")
    assert (found["response_ids"], found["rollouts_error"]) == (made[0]["response_ids"], "")


@EVERY
def test_the_records_of_scorer_and_direction_name_the_verifier(make: Any, trusted: Dataset) -> None:
    rolling = roller(answers(ignore_case=True))
    own = make(trusted, rollouts=rolling)
    if own.fitted is None:
        own.fit(trusted)
    record = own.record()
    assert record["rollouts"]["verifier"] == rolling.verifier.record() == record["direction"]["verifier"]
    assert record["rollouts"]["call"] == rolling.call()
    assert record["settings"]["rollouts"] == rolling.identity
    assert ast.parse(own.call(), mode="eval")
    assert ", rollouts=rollouts" in own.call()


@EVERY
def test_other_rollouts_are_another_scorer_and_another_direction(make: Any, trusted: Dataset) -> None:
    found = [make(trusted, rollouts=roller(seed=seed)) for seed in (0, 1, 1)]
    one, two, same = [scorer.identity for scorer in found]
    assert one != two == same
    assert found[0].settings()["direction"] != found[1].settings()["direction"]


def test_the_columns_are_those_of_the_rollouts_and_of_the_score(trusted: Dataset) -> None:
    own = LearnAlignScorer(MODEL, rollouts=roller(), **OPTIONS)
    assert set(own.columns) == {*roller().columns, *LearnAlignScorer(MODEL, **OPTIONS).columns}
    assert set(own.reads(["id", "prompt", "answer"])) == {"prompt", "answer"}


def test_rollouts_of_another_tokenizer_are_refused_where_their_ids_would_be_read(pool: Dataset, made: Dataset) -> None:
    other = AutoTokenizer.from_pretrained(MODEL)
    other.eos_token = "0"
    scorer = LearnAlignScorer(MODEL, rollouts=roller(tokenizer=other), **OPTIONS)
    with pytest.raises(ScoreError, match=r"another tokenizer \(sha256 [0-9a-f]{12}, this scorer's [0-9a-f]{12}\)"):
        scorer.check_columns(pool.column_names, pool[0])
    scorer.check_columns(made.column_names, made[0])


def test_something_else_in_the_place_of_rollouts_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"rollouts= is a str: pass a Rollouts\(model, verifier, ...\)"):
        AlignScorer(MODEL, rollouts="exact")


def test_an_interrupt_while_rewards_are_given_leaves_no_run_and_the_next_one_is_whole(
    pool: Dataset, tmp_path: Path
) -> None:
    calls: list[int] = []

    def interrupted(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [1.0] * len(completions)

    own = LearnAlignScorer(MODEL, rollouts=roller(verifier(interrupted, timeout=None)), **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        score(pool, own, out=tmp_path / "run")
    assert calls == [4, 4, 4]
    assert not (tmp_path / "run" / "run.json").exists()
    whole = LearnAlignScorer(MODEL, rollouts=roller(), **OPTIONS)
    assert score(pool, whole, out=tmp_path / "run").to_list() == load_run(tmp_path / "run").dataset.to_list()


def test_an_interrupt_while_gradients_are_taken_leaves_no_run(
    pool: Dataset, trusted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = align(trusted, rollouts=roller())
    before, seen = own.score_group, []

    def interrupted(group: Any, rank: int | None) -> dict[str, Any]:
        seen.append(group)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return before(group, rank)

    monkeypatch.setattr(own, "score_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(pool, own, out=tmp_path / "run")
    assert len(seen) == 5
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_second_run_with_the_same_settings_may_go_into_the_same_folder(
    pool: Dataset, trusted: Dataset, tmp_path: Path
) -> None:
    for _ in range(2):
        own = align(trusted, rollouts=roller())
        found = score(pool, own, out=tmp_path / "run")
    assert load_run(tmp_path / "run").identity == own.identity
    assert load_run(tmp_path / "run").dataset.to_list() == found.to_list()


def test_a_second_run_that_fits_on_its_pool_may_go_into_the_same_folder(pool: Dataset, tmp_path: Path) -> None:
    for _ in range(2):
        own = LearnAlignScorer(MODEL, rollouts=roller(), **OPTIONS)
        own.expect(pool)
        before = own.identity
        score(pool, own, out=tmp_path / "run")
        assert own.identity == before
