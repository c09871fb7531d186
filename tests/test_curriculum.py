"""The online selector by itself: no trainer, no model."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Value, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate import AccuracyGreedyScorer, GradAlignScorer, RandomScorer, load_curated
from hf_curate.curriculum.journal import read_journal
from hf_curate.curriculum.selector import OnlineSelector
from hf_curate.curriculum.walk import Walk
from hf_curate.errors import BudgetError, CurateError, ScoreError


def pool(rows: int = 20) -> Dataset:
    return Dataset.from_dict({"prompt": [f"{n}?" for n in range(rows)], "answer": list(range(rows))})


def selector(rows: int = 20, **others: Any) -> OnlineSelector:
    given: dict[str, Any] = {"chunk": 6, "keep": "50%", "every": 2} | others
    return OnlineSelector(AccuracyGreedyScorer(), pool(rows), **given)


def played(one: OnlineSelector, steps: range, prompts: int = 2) -> list[list[int]]:
    """Rounds where they are due, scores that depend on the row and the round, a batch at every step."""
    batches = []
    for step in steps:
        if one.due(step):
            scores = [float(np.sin(row + 3 * len(one.history))) for row in one.next_chunk()]
            one.accept(one.decided(step, scores, [True] * len(scores), seconds=0.5, rollouts=12))
        batches.append(one.take(prompts, step))
    return batches


# -- chunks -----------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 30), counts=st.lists(st.integers(1, 40), max_size=12), seed=st.integers(0, 5))
def test_a_walk_visits_each_number_once_a_pass_and_none_twice_in_a_batch(n: int, counts: list[int], seed: int) -> None:
    walk, seen = Walk(n, (seed, 0)), []
    for count in counts:
        assert walk.peek(count) == walk.peek(count)
        batch = walk.take(count)
        assert len(batch) == count
        assert count > n or len(set(batch)) == count
        seen += batch
    for start in range(0, len(seen) - n + 1, n):
        assert sorted(seen[start : start + n]) == list(range(n))


def test_passes_are_shuffled_anew_and_by_the_seed() -> None:
    first, second = Walk(30, (0,)).take(60)[:30], Walk(30, (0,)).take(60)[30:]
    assert first != second
    assert first != Walk(30, (1,)).take(30)
    assert first == Walk(30, (0,)).take(30)


def test_rounds_are_due_at_the_first_boundary_after_a_multiple_of_every() -> None:
    one = selector(every=10)
    rounds = []
    for step in range(0, 61, 3):
        if one.due(step):
            rounds.append(step)
            one.accept(one.decided(step, [0.0] * 6))
    assert rounds == [0, 12, 21, 30, 42, 51, 60]


# -- what is kept -----------------------------------------------------------------------------------------------------


@given(scores=st.lists(st.none() | st.floats(-1, 1, width=32), min_size=6, max_size=6))
def test_the_best_of_the_chunk_are_kept_and_none_without_a_score(scores: list[float | None]) -> None:
    one = selector()
    known = [score for score in scores if score is not None]
    if not known:
        with pytest.raises(ScoreError, match="none of the 6 rows of the chunk has a score"):
            one.decided(0, scores)
        return
    record = one.decided(0, scores)
    score = dict(zip(record["rows"], scores, strict=True))
    kept = [score[row] for row in record["kept"]]
    assert kept == sorted(known, reverse=True)[:3]
    assert json.loads(json.dumps(record)) == record
    assert one.history == [], "to decide changes nothing"


@pytest.mark.parametrize(("keep", "rows"), [("25%", 2), ("1%", 1), (4, 4), ("5 rows", 5), ("100%", 6)])
def test_budgets_are_read_as_select_reads_them(keep: Any, rows: int) -> None:
    one = selector(keep=keep)
    one.accept(one.decided(0, list(range(6))))
    assert len(one.selection) == rows
    assert one.chooses == (rows < 6)


def test_scores_that_are_not_finite_are_not_kept() -> None:
    one = selector()
    record = one.decided(0, [float("nan"), float("inf"), 1.0, None, -1.0, float("-inf")])
    assert record["scores"] == [None, None, 1.0, None, -1.0, None]
    assert record["kept"] == [record["rows"][2], record["rows"][4]]


@pytest.mark.parametrize("how", ["no scores", "no signal"])
def test_chance_decides_where_nothing_has_a_signal_and_says_so_once(how: str) -> None:
    one, kept = selector(rows=60), []
    for step in range(0, 20, 2):
        given = (None, None) if how == "no scores" else ([0.0] * 6, [False] * 6)
        record = one.decided(step, *given)
        if step == 0:
            with pytest.warns(UserWarning, match="drawn by chance"):
                one.accept(record)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                one.accept(record)
        assert record["chance"]
        assert len(record["kept"]) == 3
        assert set(record["kept"]) < set(record["rows"])
        kept.append([record["rows"].index(row) for row in record["kept"]])
    assert len(set(map(tuple, kept))) > 5, "another draw in each round"
    assert not one.decided(30, [0.0] * 6, [False, True] * 3)["chance"]
    assert not one.decided(30, [0.0] * 6, [None] * 5 + [True])["chance"]


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_batches_go_through_the_selection_in_an_order_of_their_own() -> None:
    one = selector(rows=40, chunk=20, keep=10)
    batches = played(one, range(0, 2), prompts=5)
    assert sorted(batches[0] + batches[1]) == sorted(one.selection)
    assert batches[0] + batches[1] != one.selection
    assert one.used[1] == {"step": 1, "round": 0, "rows": batches[1], "reused": 0}


def test_a_selection_smaller_than_a_batch_is_gone_through_again_and_that_is_said_once() -> None:
    one = selector()
    with pytest.warns(UserWarning, match="takes 8 prompts and 3 problems are selected") as warned:
        batches = played(one, range(0, 6), prompts=8)
    assert len(warned) == 1
    for batch in batches:
        assert max(Counter(batch).values()) - min(Counter(batch).values()) <= 1


def test_no_prompt_is_given_out_before_the_first_round() -> None:
    with pytest.raises(CurateError, match="a round comes first"):
        selector().take(2, 0)


# -- state ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 25),
    chunk=st.integers(1, 25),
    every=st.integers(1, 5),
    prompts=st.integers(1, 6),
    stop=st.integers(0, 12),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_state_goes_on_exactly_at_any_moment(rows: int, chunk: int, every: int, prompts: int, stop: int) -> None:
    def fresh() -> OnlineSelector:
        return selector(rows, chunk=chunk, every=every, seed=3)

    whole, first, second = fresh(), fresh(), fresh()
    expected = played(whole, range(12), prompts)
    before = played(first, range(stop), prompts)
    second.load_state(json.loads(json.dumps(first.state())), first.journal())
    assert (second.history, second.used) == (first.history, first.used)
    assert before + played(second, range(stop, 12), prompts) == expected
    assert (second.history, second.used) == (whole.history, whole.used)
    assert second.state() == whole.state()


def test_a_state_of_another_selector_is_refused_with_both_values() -> None:
    state, journal = selector().state(), selector().journal()
    with pytest.raises(CurateError, match=r"saved with chunk=6, and this selector has chunk=7"):
        selector(chunk=7).load_state(state, journal)
    with pytest.raises(CurateError, match="saved with pool='sha256:"):
        selector(rows=21).load_state(state, journal)
    with pytest.raises(CurateError, match="saved with scorer='<AccuracyGreedyScorer"):
        OnlineSelector(RandomScorer(), pool(), chunk=6, keep="50%", every=2).load_state(state, journal)
    with pytest.raises(CurateError, match="no state of a selector"):
        selector().load_state({"schema": "something"}, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state["prompts"].update(at=999), "ValueError: place 999 in pass 0 of a walk over 3"),
        (lambda state: state["walk"].update(at=-1), "ValueError: place -1"),
        (lambda state: state["walk"].update(late=["x"]), "ValueError: place"),
        (lambda state: state.pop("walk"), "KeyError: 'walk'"),
        (lambda state: state.pop("settings"), "KeyError: 'settings'"),
        (lambda state: state.update(walk=[]), "TypeError"),
        (lambda state: state.update(elapsed=None), "TypeError"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change: Any, said: str) -> None:
    one = selector()
    played(one, range(3))
    state, fresh = json.loads(json.dumps(one.state())), selector()
    change(state)
    with pytest.raises(CurateError, match="the state of a selector is damaged") as raised:
        fresh.load_state(state, one.journal())
    assert said in str(raised.value)
    assert (fresh.history, fresh.used, fresh.selection) == ([], [], [])
    with pytest.raises(CurateError, match="no state of a selector"):
        fresh.load_state([], "")  # type: ignore[arg-type]
    played(fresh, range(2))


def test_a_history_that_is_not_the_states_is_refused_with_both() -> None:
    one = selector()
    played(one, range(3))
    state, journal = one.state(), one.journal()
    played(one, range(3, 5))
    says = r"has 8 lines \(sha256 [0-9a-f]{12}\), and the state was saved with 5 \([0-9a-f]{12}\)"
    with pytest.raises(CurateError, match=says):
        selector().load_state(state, one.journal())
    for text in ("{", "[]\n", '{"signal":"x","kept":[]}\n'):
        with pytest.raises(CurateError, match="line 1 of the selector's history cannot be read"):
            read_journal(text)
    assert read_journal(journal) == (one.history[:2], one.used[:3])


def test_a_state_does_not_grow_and_a_line_is_made_once() -> None:
    one = selector(rows=4_000, chunk=512, keep="25%", every=1)
    sizes, lines = [], []
    for step in range(6):
        rng = np.random.default_rng(step)
        one.accept(one.decided(step, rng.normal(size=512).tolist(), (rng.random(512) < 0.5).tolist(), seconds=1.5))
        one.take(16, step)
        sizes.append(len(json.dumps(one.state())))
        lines = one.journal().splitlines()
    assert max(sizes) - min(sizes) < 100
    assert max(map(len, lines)) < 12_000
    json_of_the_round, one.history[0]["step"] = lines[0], 99
    assert one.journal().splitlines()[0] == json_of_the_round


def test_another_validation_set_is_another_selector() -> None:
    def of(rows: int) -> OnlineSelector:
        return OnlineSelector(GradAlignScorer(validation=pool(rows)), pool(), chunk=6)

    of(3).load_state(of(3).state(), "")
    with pytest.raises(CurateError, match="saved with validation='sha256:"):
        of(4).load_state(of(3).state(), "")


def test_processes_that_have_had_other_rounds_are_found_out() -> None:
    one, other = selector(), selector()
    record = one.decided(0, [0.0] * 6)
    one.accept(record)
    with pytest.raises(CurateError, match="of round 0, and this selector has had 1 rounds"):
        one.accept(record)
    other.accept(record)
    assert other.selection == one.selection


# -- account ----------------------------------------------------------------------------------------------------------


def test_the_summary_compares_with_the_round_before() -> None:
    one = selector(rows=8, chunk=8, keep=4)
    rows = one.next_chunk()
    one.accept(one.decided(0, [8.0, 7, 6, 5, 4, 3, 2, 1], [True] * 6 + [False] * 2))
    assert one.selection == rows[:4]
    first = one.summary()
    assert first == {
        "without_signal": 0.25,
        "kept_without_signal": 0.0,
        "score_mean": 6.5,
        "score_min": 5.0,
        "score_max": 8.0,
    }
    again = [9.0 if row in rows[2:6] else 0.0 for row in one.next_chunk()]
    one.accept(one.decided(2, again, None))
    assert one.summary() == {"overlap": 0.5, "score_mean": 9.0, "score_min": 9.0, "score_max": 9.0}


def test_the_history_as_a_dataset_says_which_problem_was_used_when() -> None:
    one = selector()
    batches = played(one, range(4))
    made = one.history_dataset()
    assert made.column_names == ["prompt", "answer", "step", "round", "source_row", "score"]
    assert made["source_row"][:] == [row for batch in batches for row in batch] == made["answer"][:]
    assert made["step"][:] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert made["round"][:] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert made["score"][:] == pytest.approx([np.sin(r + 3 * (n // 4)) for n, r in enumerate(made["source_row"][:])])
    assert made.features["score"] == Value("float32")


def test_a_score_is_null_where_chance_decided() -> None:
    one = selector()
    with pytest.warns(UserWarning, match="by chance"):
        one.accept(one.decided(0, [0.0] * 6, [False] * 6))
    one.take(2, 0)
    assert one.history_dataset()["score"][:] == [None, None]
    assert "score_mean" not in one.summary()


def test_the_problems_used_are_a_selection_with_a_card(tmp_path: Path) -> None:
    one = selector()
    batches = played(one, range(4))
    made = one.used_selection(source="org/name@0123456789012345678901234567890123456789")
    rows = sorted({row for batch in batches for row in batch})
    assert made.indices.tolist() == rows == made.dataset["answer"][:]
    steps = [[step for step, batch in enumerate(batches) if row in batch] for row in rows]
    assert made.dataset["online_steps"][:] == steps
    assert made.dataset["online_uses"][:] == list(map(len, steps))
    folder = made.save(tmp_path / "out", "online")
    again = load_dataset(str(folder), "online", split="train")
    assert again["online_steps"][:] == steps
    card = (folder / "README.md").read_text("utf-8")
    assert "Online selection, Accuracy greedy" in card
    assert "org/name" in card
    loaded = load_curated(folder, "online")
    assert loaded.problems == []
    assert loaded.manifest["selector"]["settings"]["chunk"] == 6
    assert loaded.manifest["selector"]["settings"]["selection_rollouts"] == 24


def test_there_is_no_history_of_nothing_and_none_under_a_taken_name() -> None:
    for ask in ("history_dataset", "used_selection"):
        with pytest.raises(CurateError, match="no problem was given out"):
            getattr(selector(), ask)()
    one = OnlineSelector(AccuracyGreedyScorer(), pool().add_column("step", [0] * 20), chunk=6)
    played(one, range(1))
    with pytest.raises(CurateError, match="the pool has a column 'step'"):
        one.history_dataset()


def test_the_record_adds_up_the_rounds() -> None:
    one = selector()
    played(one, range(4))
    record = one.record()
    assert (record["rounds"], record["rounds_by_chance"], record["selection_rollouts"]) == (2, 0, 24)
    assert record["seconds"] == {"selection": 1.0, "all": 0.0}
    assert json.loads(json.dumps(record)) == record


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_pool_smaller_than_a_chunk_is_one_chunk_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="the pool has 4 rows and chunk=6") as warned:
        one = OnlineSelector(AccuracyGreedyScorer(), pool(4), chunk=6)
    assert warned[0].filename == __file__
    assert sorted(one.next_chunk()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"keep": "2M tokens"}, BudgetError, "keep='2M tokens' of a chunk of 6"),
        ({"keep": 7}, BudgetError, "up to 6"),
        ({"keep": 0.25}, BudgetError, "Did you mean '25%'"),
        ({"every": 0}, CurateError, "every=0"),
        ({"chunk": 1.5}, CurateError, "chunk=1.5"),
        ({"rollouts": True}, CurateError, "rollouts=True"),
        ({"validation_rollouts": -1}, CurateError, "validation_rollouts=-1"),
        ({"validation_rollouts": 0}, CurateError, "validation_rollouts=0"),
        ({"max_new_tokens": 0}, CurateError, "max_new_tokens=0"),
        ({"temperature": 0}, CurateError, "temperature=0 must be above 0"),
        ({"top_p": 1.5}, CurateError, "top_p=1.5 above 0 and at most 1"),
        ({"seed": -1}, CurateError, "seed=-1"),
        ({"temperature": "hot"}, CurateError, "temperature='hot' must be above 0"),
        ({"reuse_rollouts": True, "keep": "100%"}, CurateError, "keep='100%' trains on the trainer's own prompts"),
        ({"stop_early": 1.5}, CurateError, "stop_early=1.5 is a confidence"),
        ({"stop_early": 0.95}, CurateError, "needs a score whose spread is known"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        selector(**settings)


@pytest.mark.parametrize(
    ("scorer", "data", "says"),
    [
        ("gradalign", pool(), "is a str, expected a scorer"),
        (AccuracyGreedyScorer(), [{"prompt": "x"}], "pool= is a list"),
        (AccuracyGreedyScorer(), pool(0), "the pool is empty"),
    ],
)
def test_what_is_no_scorer_or_no_pool_is_refused(scorer: Any, data: Any, says: str) -> None:
    with pytest.raises(CurateError, match=says):
        OnlineSelector(scorer, data)


def test_half_of_too_few_rollouts_decides_nothing() -> None:
    scorer = GradAlignScorer(validation=pool(3), statistic="t")
    assert OnlineSelector(scorer, pool(), chunk=6, rollouts=8, stop_early=0.95).stop_early == 0.95
    with pytest.raises(CurateError, match="half of rollouts=7"):
        OnlineSelector(scorer, pool(), chunk=6, rollouts=7, stop_early=0.95)


def test_scores_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ScoreError, match="5 scores for the 6 rows"):
        selector().decided(0, [0.0] * 5)
    with pytest.raises(ScoreError, match="7 signals for the 6 rows"):
        selector().decided(0, [0.0] * 6, [True] * 7)
