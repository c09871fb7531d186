"""The scorers to compare with: what they count, on rollouts and on traces; honest nulls; identities that hold."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_level, run_script, saved, tiny
from tolerances import COLUMN, LOSS, SAME_RUN
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_curate import (
    AccuracyGreedyScorer,
    GraceScorer,
    LongestScorer,
    LossScorer,
    MostStepsScorer,
    PassRateBandScorer,
    RandomScorer,
    load_curated,
    score,
    select,
)
from hf_curate.demo import MODEL, load_traces, world
from hf_curate.errors import ColumnsError, CurateError, ScoreError
from hf_curate.gradients.head import Head
from hf_curate.gradients.losses import token_losses
from hf_curate.gradients.upstream import Segments, pooled_signals
from hf_curate.scorers import model as model_module
from hf_curate.scorers.texts import count_steps

SAME = SAME_RUN[torch.float32]


def loss_scorer(**options: Any) -> LossScorer:
    named: dict[str, Any] = {"dtype": "float32"} | options
    return LossScorer(MODEL, **named)


MAKERS: dict[str, Any] = {
    "accuracy_greedy": AccuracyGreedyScorer,
    "pass_rate_band": PassRateBandScorer,
    "random": RandomScorer,
    "longest": lambda **options: LongestScorer(MODEL, **options),
    "most_steps": lambda **options: MostStepsScorer(MODEL, **options),
    "lowest_loss": loss_scorer,
    "highest_loss": lambda **options: loss_scorer(prefer="highest", **options),
}
ON_TEXT = ("longest", "most_steps", "lowest_loss", "highest_loss")


def sampled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Problems of the demo's world with four responses each, of which 0 to 4 are right."""
    rng, rows = random.Random(seed), []
    for problem in world.draw_problems(count, rng, "held_out"):
        right = rng.randint(0, 4)
        texts = [world.filler(problem, rng) for _ in range(right)]
        texts += [world.propagated(problem, rng) for _ in range(4 - right)]
        rewards = [1.0] * right + [0.0] * (4 - right)
        rows.append({"prompt": problem.prompt, "responses": texts, "rewards": rewards})
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return sampled(10)


@pytest.fixture(scope="module")
def traces() -> list[dict[str, Any]]:
    return load_traces().select_columns(["prompt", "completion"]).select(range(10)).to_list()


def scores(scorer: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    """The score of each row, alone; none may fail."""
    done = [scorer(row) for row in rows]
    assert {row[f"{scorer.prefix}_error"] for row in done} == {""}
    return np.array([row[scorer.column] for row in done])


def rewarded(*rewards: Any) -> dict[str, Any]:
    return {"prompt": "1+1?\n", "responses": ["#2"] * len(rewards), "rewards": list(rewards)}


# -- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [([1, 1, 0, 0], 0.0), ([1, 0, 0, 0], -0.25), ([0, 0], -0.5), ([1.0], -0.5), ([True, False, False], -1 / 6)],
)
def test_accuracy_greedy_is_the_distance_of_the_success_rate_from_one_half(rewards: list[Any], wanted: float) -> None:
    done = AccuracyGreedyScorer()(rewarded(*rewards))
    assert done == {"accuracy_greedy_score": np.float32(wanted), "accuracy_greedy_error": ""}


def test_success_rates_as_far_from_one_half_on_both_sides_tie_exactly() -> None:
    for right, count in ((3, 10), (1, 3), (2, 7)):
        ways = [rewarded(*[1] * k, *[0] * (count - k)) for k in (right, count - right)]
        one, other = scores(AccuracyGreedyScorer(), ways)
        assert one == other


def test_a_rollout_is_correct_above_the_threshold_and_not_at_it() -> None:
    row = rewarded(0.5, 0.6, -1.0, 2.0)
    assert AccuracyGreedyScorer()(row)["accuracy_greedy_score"] == 0.0
    assert AccuracyGreedyScorer(correct_above=0.6)(row)["accuracy_greedy_score"] == np.float32(-0.25)
    assert AccuracyGreedyScorer(correct_above=-2)(row)["accuracy_greedy_score"] == np.float32(-0.5)
    assert PassRateBandScorer(correct_above=-2)(row)["pass_rate_band_score"] == 0.0


def test_the_band_is_open_at_both_ends() -> None:
    four = [rewarded(*[1] * k, *[0] * (4 - k)) for k in range(5)]
    assert scores(PassRateBandScorer(), four).tolist() == [0, 1, 1, 1, 0]
    assert scores(PassRateBandScorer(low=0.25, high=0.75), four).tolist() == [0, 0, 1, 0, 0]
    assert scores(PassRateBandScorer(low=0.2, high=0.8), four).tolist() == [0, 1, 1, 1, 0]


def test_rows_in_the_band_are_taken_in_their_order() -> None:
    pool = Dataset.from_list([rewarded(*[1] * (k % 3), *[0] * (2 - k % 3)) for k in range(12)])
    picked = select(score(pool, PassRateBandScorer()), PassRateBandScorer(), 3)
    assert picked.indices.tolist() == [1, 4, 7]


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        (None, "reward missing: column 'rewards' holds None"),
        ([], "no rollouts: column 'rewards' holds an empty list"),
        ([1.0, None], "reward missing: reward 2 is None"),
        ([1.0, float("nan")], "reward not finite: reward 2 is nan"),
        ([float("inf")], "reward not finite: reward 1 is inf"),
        (3.0, "wrong type: column 'rewards' holds "),
        (["good"], "wrong type: reward 1 holds "),
    ],
)
@pytest.mark.parametrize("name", ["accuracy_greedy", "pass_rate_band"])
def test_rewards_that_cannot_be_read_are_null_with_the_reason(name: str, rewards: Any, says: str) -> None:
    done = MAKERS[name]()({"prompt": "1+1?\n", "responses": ["#2"], "rewards": rewards})
    assert done[f"{name}_score"] is None
    assert done[f"{name}_error"].startswith(says)


def test_the_column_of_rewards_can_be_named_and_one_that_lacks_is_an_error() -> None:
    row = {"prompt": "x", "reward": [1.0, 0.0]}
    assert AccuracyGreedyScorer(rewards="reward")(row)["accuracy_greedy_score"] == 0.0
    with pytest.raises(ColumnsError, match="Did you mean rewards='reward'"):
        AccuracyGreedyScorer()(row)
    with pytest.raises(ColumnsError, match="Name the column"):
        PassRateBandScorer()({"prompt": "x"})
    with pytest.raises(ColumnsError, match=r"rewards='rewrd' is not a column.*Did you mean rewards='reward'"):
        AccuracyGreedyScorer(rewards="rewrd")(row)


def test_a_pool_without_one_readable_reward_is_an_error() -> None:
    pool = Dataset.from_dict({"rewards": [[]] * 9})
    with pytest.raises(ScoreError, match="9 x no rollouts"):
        score(pool, AccuracyGreedyScorer())


# -- chance -----------------------------------------------------------------------------------------------------------


def test_random_scores_do_not_depend_on_order_neighbours_or_the_order_of_columns(rows: list[dict[str, Any]]) -> None:
    alone = scores(RandomScorer(), rows)
    mapped = Dataset.from_list(rows[::-1]).map(RandomScorer(), batched=True, batch_size=3)["random_score"]
    np.testing.assert_array_equal(alone[::-1], mapped)
    turned = [dict(reversed(row.items())) for row in rows]
    np.testing.assert_array_equal(alone, scores(RandomScorer(), turned))


def test_equal_rows_get_equal_random_scores_and_others_do_not(rows: list[dict[str, Any]]) -> None:
    found = scores(RandomScorer(), [*rows, *rows])
    np.testing.assert_array_equal(found[: len(rows)], found[len(rows) :])
    assert len(set(found.tolist())) == len(rows)
    assert not set(found.tolist()) & set(scores(RandomScorer(seed=1), rows).tolist())


def test_scores_that_were_added_do_not_change_the_random_score(rows: list[dict[str, Any]]) -> None:
    pool = Dataset.from_list(rows)
    first = score(pool, RandomScorer())
    again = score(score(first, AccuracyGreedyScorer()), RandomScorer())
    assert again["random_score"] == first["random_score"]
    more = [{**row, "learnability": 0.1 * k, "learnalign_score": 0.0, "learnalign_error": ""} for k, row in
            enumerate(rows)]  # fmt: skip
    np.testing.assert_array_equal(scores(RandomScorer(), more), first["random_score"])


def test_random_scores_are_uniform() -> None:
    found = np.sort(scores(RandomScorer(), [{"id": k} for k in range(4000)]))
    assert found[0] >= 0.0
    assert found[-1] < 1.0
    assert found.dtype == np.float32
    distance = np.abs(found - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < 1.63 / 4000**0.5  # Kolmogorov-Smirnov, 1 %; the rows and the seed are fixed


def test_a_value_that_cannot_be_written_is_a_null_with_a_reason() -> None:
    done = RandomScorer()({"id": 1, "picture": object()})
    assert done["random_score"] is None
    assert done["random_error"] == "not plain: column 'picture' holds a object: score without that column"
    assert RandomScorer()({"id": 1, "data": b"\xff", "x": np.array([1.5])})["random_error"] == ""


# -- text -------------------------------------------------------------------------------------------------------------


def test_the_longest_counts_response_tokens_with_eos(rows: list[dict[str, Any]]) -> None:
    wanted = [np.mean([len(text) + 1 for text in row["responses"]]) for row in rows]  # one token a character
    assert scores(LongestScorer(MODEL), rows).tolist() == np.array(wanted, dtype=np.float32).tolist()
    ids = [{"prompt": "1+1?\n", "response_ids": [[5, 6, 7], [5]], "rewards": [0.0, 1.0]}]
    assert scores(LongestScorer(MODEL), ids).tolist() == [2.0]


def test_on_traces_the_baselines_measure_what_grace_measures(traces: list[dict[str, Any]]) -> None:
    grace = [GraceScorer(MODEL, dtype="float32")(row) for row in traces]
    assert scores(LongestScorer(MODEL), traces).tolist() == [row["grace_tokens"] for row in grace]
    assert scores(MostStepsScorer(MODEL), traces).tolist() == [len(row["grace_step_scores"]) for row in grace]
    loss = np.array([row["grace_loss"] for row in grace])
    np.testing.assert_allclose(scores(MAKERS["highest_loss"](), traces), loss, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(scores(MAKERS["lowest_loss"](), traces), -loss, rtol=SAME, atol=SAME)


def test_steps_are_counted_in_each_response() -> None:
    texts = ["1+2=3\n3+4=7\n#7", "1+2=3\n3+0=3\n3+4=7\n#7", "1+2=3\n3+4=7", "#7", ""]
    row = {"prompt": "1+2+4?\n", "responses": texts, "rewards": [1.0, 1.0, 0.0, 1.0, 0.0]}
    assert [count_steps(text) for text in texts] == [2, 3, 2, 0, 0]
    assert MostStepsScorer(MODEL)(row)["most_steps_score"] == np.float32(7 / 5)
    assert MostStepsScorer(MODEL, split_steps="=")(row)["most_steps_score"] == np.float32((3 + 4 + 3 + 0 + 0) / 5)


@given(text=st.text(alphabet="12 =#.\n<think/>Final answer:\\boxed{}", max_size=60), opened=st.booleans())
def test_steps_of_any_response_can_be_counted(text: str, opened: bool) -> None:
    assert 0 <= count_steps(text, "auto", opened) <= len(text)


def test_steps_of_sampled_ids_are_those_of_their_text(rows: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = [
        {
            "prompt": row["prompt"],
            "response_ids": [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in row["responses"]],
            "rewards": row["rewards"],
        }
        for row in rows
    ]
    for scorer in (MostStepsScorer(MODEL), LongestScorer(MODEL), MAKERS["lowest_loss"]()):
        np.testing.assert_allclose(scores(scorer, ids), scores(scorer, rows), rtol=SAME)


def test_a_response_after_an_opened_think_has_the_steps_inside_it() -> None:
    text = "first thing\nsecond thing\n</think>\nThe answer is 4."
    assert count_steps(text, "think", True) == 2
    assert count_steps(text, "think", False) == 0
    tokenizer = byte_level()
    scorer = MostStepsScorer(tiny(), tokenizer=tokenizer, split_steps="think")
    row = {"prompt": "2+2?\n<think>\n", "responses": [text], "rewards": [1.0]}
    assert scorer(row)["most_steps_score"] == 2.0
    assert scorer({**row, "prompt": "2+2?\n"})["most_steps_score"] == 0.0


def test_a_splitter_that_fails_costs_its_row_only() -> None:
    def split(text: str) -> list[str]:
        if "9" in text:
            raise KeyError("nine")
        return text.splitlines()

    good = {"prompt": "1+2?\n", "responses": ["1+2=3\n#3"], "rewards": [1.0]}
    bad = {**good, "responses": ["1+2=9\n#9"]}
    done = [MostStepsScorer(MODEL, split_steps=split)(row) for row in (good, bad)]
    assert done[0] == {"most_steps_score": np.float32(1), "most_steps_error": ""}
    assert done[1]["most_steps_score"] is None
    assert done[1]["most_steps_error"].startswith("splitter failed: KeyError")


def test_the_loss_is_that_of_a_plain_loop_in_float64(rows: list[dict[str, Any]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    wanted = []
    for row in rows:
        means = []
        for text in row["responses"]:
            prompt = tokenizer(row["prompt"])["input_ids"]
            ids = [*prompt, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            means.append(-np.mean([float(logs[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]))
        wanted.append(np.mean(means))
    np.testing.assert_allclose(scores(LossScorer(MODEL, dtype="float64"), rows), -np.array(wanted), rtol=COLUMN)
    half = scores(LossScorer(MODEL, dtype="float32", prefer="highest"), rows)
    np.testing.assert_allclose(half, wanted, rtol=LOSS[torch.float32])


def test_one_dataset_holds_the_lowest_and_the_highest_loss_beside_each_other(rows: list[dict[str, Any]]) -> None:
    lowest, highest = MAKERS["lowest_loss"](), MAKERS["highest_loss"]()
    scored = score(score(Dataset.from_list(rows), lowest), highest)
    columns = {f"{prefer}_loss_{part}" for prefer in ("lowest", "highest") for part in ("score", "error")}
    assert set(scored.column_names) == {"prompt", "responses", "rewards"} | columns
    found = {scorer: np.array(scored[scorer.column]) for scorer in (lowest, highest)}
    np.testing.assert_array_equal(found[lowest], -found[highest])
    picked = [set(select(scored, scorer, 4).indices.tolist()) for scorer in (lowest, highest)]
    assert not picked[0] & picked[1]


@pytest.mark.parametrize("tokens", [1, 100, 100_000])
def test_losses_do_not_depend_on_batches(
    tokens: int, rows: list[dict[str, Any]], traces: list[dict[str, Any]]
) -> None:
    for own in (rows, traces):
        alone = scores(MAKERS["lowest_loss"](batch_tokens=1), own)
        batch = {name: [row[name] for row in own] for name in own[0]}
        together = MAKERS["lowest_loss"](batch_tokens=tokens)(batch)
        assert together["lowest_loss_error"] == [""] * len(own)
        np.testing.assert_allclose(together["lowest_loss_score"], alone, rtol=SAME)


@pytest.mark.parametrize("options", [{}, {"bias": torch.ones(300)}, {"scale": 0.5, "softcap": 3.0}])
@pytest.mark.parametrize("budget", [1, 2**12, 2**28])
def test_token_losses_are_those_that_the_signals_come_with(options: dict[str, Any], budget: int) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(300, 8, generator=generator), **options)
    hidden, labels = torch.randn(23, 8, generator=generator), torch.randint(0, 300, (23,), generator=generator)
    hidden[4] = float("nan")
    found = token_losses(head, hidden, labels, budget)
    _, wanted = pooled_signals(head, hidden, labels, Segments.of([list(range(23))]))
    torch.testing.assert_close(found, wanted, rtol=LOSS[torch.float32], atol=0.0, equal_nan=True)
    assert found.isnan().nonzero().flatten().tolist() == [4]


def test_weights_that_are_nan_give_nulls_with_a_reason(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    unlucky = tokenizer("0")["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[unlucky] = float("nan")  # type: ignore[index]
        model.config.tie_word_embeddings = False
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    model.set_output_embeddings(head)
    folder = saved(tmp_path, model, tokenizer)
    clean = {"prompt": "1+1?\n", "responses": ["1+1=2\n#2", "2"], "rewards": [1.0, 0.0]}
    bad = {**clean, "responses": ["1+1=2\n#2", "1+9=10\n#10"]}
    done = LossScorer(folder, dtype="float32")({name: [clean[name], bad[name]] for name in clean})
    assert done["lowest_loss_error"][0] == ""
    assert np.isfinite(done["lowest_loss_score"][0])
    assert done["lowest_loss_score"][1] is None
    assert done["lowest_loss_error"][1].startswith("not finite: the model's logits for token ")


# -- rollouts or a trace ----------------------------------------------------------------------------------------------


def test_columns_decide_whether_a_row_holds_rollouts_or_a_trace(traces: list[dict[str, Any]]) -> None:
    both = {**traces[0], "responses": ["#1", "#22"], "rewards": [0.0, 1.0]}
    long = LongestScorer(MODEL)(traces[0])["longest_score"]
    assert LongestScorer(MODEL)(both)["longest_score"] == 3.5
    assert LongestScorer(MODEL, completion="completion")(both)["longest_score"] == long
    assert LongestScorer(MODEL)({**traces[0], "rewards": [1.0]})["longest_score"] == long
    renamed = {**traces[0], "samples": ["#1", "#22"], "rewards": [0.0, 1.0]}
    assert LongestScorer(MODEL)(renamed)["longest_score"] == long
    assert LongestScorer(MODEL, responses="samples")(renamed)["longest_score"] == 3.5


def test_columns_of_both_kinds_cannot_be_named_together() -> None:
    with pytest.raises(ColumnsError, match=r"rewards='r' would be rollouts and steps='s' a trace"):
        LongestScorer(MODEL, rewards="r", steps="s")


@pytest.mark.parametrize("name", ON_TEXT)
def test_rows_that_cannot_be_read_are_null_and_their_neighbours_are_not(name: str, rows: list[dict[str, Any]]) -> None:
    bad = [
        {**rows[0], "rewards": [1.0]},
        {**rows[0], "responses": []},
        {**rows[0], "rewards": [1.0, None, 0.0, 0.0]},
        {**rows[0], "responses": ["1" * 2000] * 4},
    ]
    pool = Dataset.from_list([row for pair in zip(rows[:4], bad, strict=True) for row in pair])
    scorer = MAKERS[name]()
    scored = score(pool, scorer)
    kinds = [text.partition(":")[0] for text in scored[f"{scorer.prefix}_error"]]
    assert kinds[::2] == [""] * 4
    assert kinds[1::2] == ["rewards and responses differ", "no rollouts", "reward missing", "too long"]
    assert scored[scorer.column][1::2] == [None] * 4
    np.testing.assert_allclose(scored[scorer.column][::2], scores(MAKERS[name](), rows[:4]), rtol=SAME)


# -- what all of them share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_rows_and_batches_and_maps_give_the_same_scores(name: str, rows: list[dict[str, Any]]) -> None:
    scorer = MAKERS[name]()
    alone = scores(scorer, rows)
    pool = Dataset.from_list(rows)
    batch = scorer({column: pool[:][column] for column in pool.column_names})
    one_by_one = pool.map(scorer, load_from_cache_file=False)[scorer.column]
    stream = [row[scorer.column] for row in pool.to_iterable_dataset().map(scorer, batched=True, batch_size=3)]
    for found in (batch[scorer.column], one_by_one, stream, score(pool, scorer)[scorer.column]):
        np.testing.assert_allclose(found, alone, rtol=SAME)
    assert score(pool, scorer).features[scorer.column].dtype == "float32"
    assert set(scorer.columns) == {scorer.column, f"{scorer.prefix}_error"}


def test_worker_processes_give_the_same_scores(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    Dataset.from_list(rows).to_parquet(tmp_path / "pool.parquet")
    code = """
        import json, sys
        from datasets import load_dataset
        from hf_curate import LongestScorer, LossScorer, PassRateBandScorer, RandomScorer

        pool = load_dataset("parquet", data_files=sys.argv[2], split="train")
        model, found = sys.argv[1], {}
        for scorer in (PassRateBandScorer(high=0.5), RandomScorer(3), LongestScorer(model),
                       LossScorer(model, prefer="highest", dtype="float32")):
            pool = pool.map(scorer, batched=True, num_proc=2)
            found[scorer.column] = pool[:][scorer.column]
        print(json.dumps(found))
    """
    found = run_script(tmp_path, code, MODEL, tmp_path / "pool.parquet")
    for scorer in (PassRateBandScorer(high=0.5), RandomScorer(3), LongestScorer(MODEL), MAKERS["highest_loss"]()):
        np.testing.assert_allclose(found.pop(scorer.column), scores(scorer, rows), rtol=SAME)
    assert found == {}


def test_counting_tokens_and_steps_reads_no_weights(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    wanted = scores(LongestScorer(MODEL), rows)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    other = saved(tmp_path, model, AutoTokenizer.from_pretrained(MODEL))
    (other / "model.safetensors").write_bytes(b"not weights")
    monkeypatch.setattr(model_module, "load_model", refuse)
    monkeypatch.setattr("hf_curate.weights.folder_digest", refuse)
    np.testing.assert_array_equal(scores(LongestScorer(other), rows), wanted)
    assert score(Dataset.from_list(rows), MostStepsScorer(other)).num_rows == len(rows)
    assert LongestScorer(other).identity == LongestScorer(MODEL).identity
    assert LongestScorer(other).record()["model"] is None
    with pytest.raises(AssertionError, match="weights were read"):
        LossScorer(other)(rows[0])


@pytest.mark.parametrize("name", MAKERS)
def test_pickles_keep_settings_and_hashes_are_stable(name: str, rows: list[dict[str, Any]]) -> None:
    scorer = MAKERS[name]()
    before = Hasher.hash(scorer)
    scores(scorer, rows[:2])
    assert Hasher.hash(scorer) == Hasher.hash(MAKERS[name]()) == before
    again = pickle.loads(pickle.dumps(scorer))
    assert (again.identity, again.call(), again.name) == (scorer.identity, scorer.call(), scorer.name)
    np.testing.assert_array_equal(scores(again, rows[:3]), scores(MAKERS[name](), rows[:3]))
    assert len(pickle.dumps(scorer)) < 10_000


def test_the_call_of_a_record_makes_the_same_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODEL.parent)
    made = [
        AccuracyGreedyScorer(correct_above=0.7, rewards="r"),
        PassRateBandScorer(low=0.1, high=0.9),
        RandomScorer(7),
        LongestScorer(MODEL, max_length=60, responses="samples"),
        MostStepsScorer(MODEL, split_steps="lines"),
        LossScorer(MODEL, prefer="highest", dtype="float32", batch_tokens=7, device="cpu"),
    ]
    for scorer in made:
        again = eval(scorer.record()["call"])  # our own text
        assert type(again) is type(scorer)
        assert again.identity == scorer.identity
        assert repr(scorer) == f"<{scorer.call()}>"
        assert str(MODEL.parent) not in str(scorer.record())


def test_identities_differ_where_numbers_may_and_nowhere_else() -> None:
    made = [make() for make in MAKERS.values()]
    made += [AccuracyGreedyScorer(correct_above=0.6), AccuracyGreedyScorer(rewards="r"), PassRateBandScorer(low=0.1)]
    made += [RandomScorer(1), LongestScorer(MODEL, max_length=50), MostStepsScorer(MODEL, split_steps="lines")]
    made += [LossScorer(MODEL, dtype="bfloat16"), LossScorer(MODEL, dtype="float32", responses="samples")]
    identities = [scorer.identity for scorer in made]
    assert len(set(identities)) == len(identities)
    assert (
        LossScorer(MODEL, dtype="float32", batch_tokens=3, device="cpu").identity == MAKERS["lowest_loss"]().identity
    )
    assert PassRateBandScorer(low=0, high=1).identity == PassRateBandScorer().identity


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AccuracyGreedyScorer(correct_above=float("nan")), "correct_above=nan"),
        (lambda: AccuracyGreedyScorer(correct_above=True), "correct_above=True"),
        (lambda: PassRateBandScorer(low=0.5, high=0.5), "low=0.5 and high=0.5"),
        (lambda: PassRateBandScorer(low=-0.1), "low=-0.1 and high=1.0"),
        (lambda: PassRateBandScorer(high=1.1), "low=0.0 and high=1.1"),
        (lambda: RandomScorer(-1), "seed=-1"),
        (lambda: RandomScorer(True), "seed=True"),
        (lambda: RandomScorer(0.5), "seed=0.5"),  # type: ignore[arg-type]
        (lambda: LossScorer(MODEL, prefer="low"), "prefer='low' is not one of 'lowest', 'highest'"),
        (lambda: LossScorer(MODEL, batch_tokens=0), "batch_tokens=0"),
        (lambda: MostStepsScorer(MODEL, split_steps="sentence"), "Did you mean 'sentences'"),
        (lambda: LongestScorer(MODEL, max_length=1), "max_length=1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_once(make: Any, says: str) -> None:
    with pytest.raises(CurateError) as caught:
        make()
    assert says in str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_every_baseline_can_be_selected_by_saved_and_loaded(
    name: str, rows: list[dict[str, Any]], traces: list[dict[str, Any]], tmp_path: Path
) -> None:
    pools = [rows, traces] if name in (*ON_TEXT, "random") else [rows]
    scorer = MAKERS[name]()
    for number, own in enumerate(pools):
        scored = score(Dataset.from_list(own), scorer)
        picked = select(scored, scorer, 4)
        order = np.argsort(-np.array(scored[scorer.column]), kind="stable")[:4]
        assert sorted(picked.indices.tolist()) == sorted(order.tolist())
        picked.save(tmp_path, f"config-{number}")
        again = load_curated(tmp_path, f"config-{number}")
        assert again.problems == []
        assert again.manifest["selector"]["name"] == scorer.name
        assert (again.manifest["model"] is None) == ("loss" not in scorer.prefix)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert scorer.name in card
    assert ("No model was read for this choice." in card) == ("loss" not in scorer.prefix)


def test_settings_name_the_columns_that_were_read(rows: list[dict[str, Any]], traces: list[dict[str, Any]]) -> None:
    scorer = LongestScorer(MODEL)
    scorer(rows[0])
    assert scorer.record()["settings"]["columns"]["responses"] == "responses"
    scorer(traces[0])
    assert scorer.record()["settings"]["columns"]["completion"] == "completion"
    assert AccuracyGreedyScorer().record()["settings"]["columns"] == {"rewards": "rewards"}
