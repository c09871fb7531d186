"""GradAlignScorer: explicit gradients' numbers, the same however rows come; zeros without a forward; honest nulls."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher
from rollouts import (
    SIGNAL,
    by_row,
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
    trusted,
    with_a_rare_parameter,
    with_ids,
)
from tiny import CHAT, run_script
from tolerances import COLUMN, POLICY, SAME_RUN

from hf_curate import score
from hf_curate.errors import CurateError, DirectionError, ModelError, ScoreError
from hf_curate.scorers.fitting import advantages
from hf_curate.scorers.gradalign import STATISTICS, GradAlignScorer, statistics
from hf_curate.scorers.learnalign import LearnAlignScorer

SAME = SAME_RUN[torch.float32]
NUMBERS = ("gradalign_score", "gradalign_stderr")
KIND = dict(zip(("right", "wrong", "twins", "alone", "pair", "odd", "double"), range(5, 12), strict=True))
"""Places of the special rows in the pool."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("gradalign") / "policy")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> GradAlignScorer:
    return GradAlignScorer(folder, validation=trusted())


@pytest.fixture(scope="module")
def alone(scorer: GradAlignScorer) -> list[dict[str, Any]]:
    """Every row of the pool by itself."""
    return [scorer(row) for row in pool()]


def assert_same(found: Any, wanted: Any, room: float = SAME) -> None:
    found, wanted = list(found), list(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a["gradalign_error"] == b["gradalign_error"]
        for name in NUMBERS:
            assert (a[name] is None) == (b[name] is None)
            np.testing.assert_allclose(a[name] or 0.0, b[name] or 0.0, rtol=room, atol=room)


# -- the numbers ------------------------------------------------------------------------------------------------------


def with_adapters() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    model = peft.get_peft_model(policy(), peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # 0 before training
                parameter.normal_(0.0, 0.3)
    return model.eval()


def with_an_unused_parameter() -> Any:
    model = policy("GPT2").double()
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64)))
    return model


MODELS: dict[str, tuple[Callable[[], Any], str, torch.dtype]] = {
    "GPT2, all, float64": (lambda: policy("GPT2").double(), "all", torch.float64),
    "GPT2, linear, float64": (lambda: policy("GPT2").double(), "linear", torch.float64),
    "GPT2, one block, float64": (lambda: policy("GPT2").double(), r"h\.1\.", torch.float64),
    "GPT2, unused, float64": (with_an_unused_parameter, "all", torch.float64),
    "Qwen3, tied, float32": (lambda: policy(tie_word_embeddings=True), "all", torch.float32),
    "Qwen3, two heads, float32": (lambda: policy(tie_word_embeddings=False), "all", torch.float32),
    "Qwen3, adapters, float32": (with_adapters, "adapters", torch.float32),
}


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_standard_errors_are_those_of_explicit_gradients(name: str) -> None:
    make, which, dtype = MODELS[name]
    rows, val = rows_of_every_kind(), trusted().to_list()
    made = {
        kind: GradAlignScorer(make(), tokenizer=tokenizer(), validation=trusted(), parameters=which, statistic=kind)
        for kind in (STATISTICS if which == "all" and "tied" in name else ("cosine", "t"))
    }
    one = made["cosine"]
    vectors = rollout_vectors(one, rows, which)
    direction = reference.mean_of(gradients(rollout_vectors(one, val, which), val))
    wanted: dict[str, list[float | None]] = {kind: [] for kind in (*STATISTICS, "stderr")}
    for own, gradient, row in zip(vectors, gradients(vectors, rows), rows, strict=True):
        a, d = reference.advantages_of(row["rewards"]), [reference.inner(vector, direction) for vector in own]
        parts, signal = reference.parts(a, d), bool(gradient.any())
        wanted["cosine"].append(reference.cosine(gradient, direction))
        wanted["dot"].append(reference.inner(gradient, direction))
        enough = len(parts) > 2
        wanted["corr"].append((reference.correlation(a, d) if enough else None) if signal else 0.0)
        wanted["stderr"].append((reference.standard_error(parts) if signal else 0.0) if enough else None)
        wanted["t"].append((reference.t_statistic(parts) if enough else None) if signal else 0.0)
    assert [value != 0.0 for value in wanted["cosine"]] == SIGNAL
    assert [place for place, value in enumerate(wanted["t"]) if value is None] == [KIND["pair"]]
    assert [place for place, value in enumerate(wanted["stderr"]) if value is None] == [KIND["alone"], KIND["pair"]]
    tolerance = COLUMN if dtype == torch.float64 else POLICY[dtype]
    for kind, its in made.items():
        found = its({column: pool()[column] for column in pool().column_names})
        for column, expected in (("gradalign_score", wanted[kind]), ("gradalign_stderr", wanted["stderr"])):
            largest = max(abs(want) for want in expected if want is not None)
            for place, (value, want) in enumerate(zip(found[column], expected, strict=True)):
                assert (value is None) == (want is None), (kind, column, place)
                assert value is None or abs(value - want) <= tolerance * largest, (kind, column, place)
    group = one.reader.read(rows[0])
    products, norm = one.products(group, None)  # type: ignore[arg-type]
    assert products.dot is not None
    cosine = products.dot / products.squared_norm**0.5 / norm
    assert cosine == pytest.approx(wanted["cosine"][0], abs=POLICY[dtype])


def test_t_and_correlation_of_products_that_are_equal_up_to_rounding_are_not_made_of_rounding() -> None:
    found = statistics(np.array([1.0, 0, 0, 1]), np.array([0.1 + 0.2, 0.3, 0.3, 0.3]))
    assert np.isnan(found["t"])
    assert found["corr"] == 0.0
    near = statistics(np.array([1.0, 0, 0, 1]), np.array([0.3001, 0.3, 0.3, 0.3]))
    assert near["t"] == pytest.approx(1.5**0.5)
    assert near["corr"] == pytest.approx(1 / 3**0.5)


def test_the_cosine_lies_within_one_and_is_one_for_the_validation_set_itself(folder: Path) -> None:
    row = solved(1, seed=8)[0]
    itself = GradAlignScorer(folder, validation=Dataset.from_list([row]))
    assert itself(row)["gradalign_score"] == pytest.approx(1.0, abs=1e-5)
    turned = {**row, "rewards": [1.0 - reward for reward in row["rewards"]]}
    assert itself(turned)["gradalign_score"] == pytest.approx(-1.0, abs=1e-5)


# -- the same numbers however rows come -------------------------------------------------------------------------------


def test_a_row_and_a_batch_of_one_give_identical_numbers(scorer: GradAlignScorer, alone: list[dict[str, Any]]) -> None:
    for row, one in zip(pool(), alone, strict=True):
        batch = scorer({name: [value] for name, value in row.items()})
        assert set(one) == set(batch) == set(scorer.columns)
        assert by_row(batch) == [one]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_batched_map_gives_the_scores_of_single_rows(
    size: int, scorer: GradAlignScorer, alone: list[dict[str, Any]]
) -> None:
    assert_same(pool().map(scorer, batched=True, batch_size=size), alone, 0.0)


def test_unbatched_and_iterable_maps_give_them_too(scorer: GradAlignScorer, alone: list[dict[str, Any]]) -> None:
    assert_same(pool().map(scorer), alone, 0.0)
    assert_same(pool().to_iterable_dataset().map(scorer), alone, 0.0)
    assert_same(pool().to_iterable_dataset().map(scorer, batched=True, batch_size=5), alone, 0.0)
    assert_same(pool().with_format("numpy").map(scorer, batched=True).with_format(None), alone, 0.0)


def test_row_order_and_repeated_rows_change_nothing(scorer: GradAlignScorer, alone: list[dict[str, Any]]) -> None:
    order = [3, 3, *np.random.default_rng(0).permutation(12).tolist(), 0]
    assert_same(pool().select(order).map(scorer, batched=True), [alone[i] for i in order], 0.0)


@pytest.mark.parametrize(
    ("tokens", "passes", "again"),
    [(1, 3, True), (6, 2, True), (60, 1, True), (200, 1, False)],
    ids=["one each", "several passes", "recomputed", "whole"],
)
def test_the_forwards_that_a_group_is_split_into_change_nothing(
    tokens: int, passes: int, again: bool, folder: Path, scorer: GradAlignScorer, alone: list[dict[str, Any]]
) -> None:
    split = GradAlignScorer(folder, validation=trusted(), batch_tokens=tokens)
    row = pool()[0]
    split(row)
    blocks: list[int] = []
    handle = split.load().decoder.layers[0].self_attn.register_forward_hook(lambda *_: blocks.append(1))  # type: ignore[index,union-attr]
    with forwards(split) as seen:
        split(row)
    handle.remove()
    # three different responses of 42 tokens with a prompt each; more than 16 times `tokens` are not in one pass. One
    # more forward is over the prompt alone, for what all responses see of it
    assert len(seen) == passes + 1
    assert len(blocks) == passes * (2 if again else 1) + 1, "a block runs again where it kept its input alone"
    assert_same(by_row(split(pool()[:])), alone)


def test_the_order_of_the_responses_changes_nothing(scorer: GradAlignScorer, alone: list[dict[str, Any]]) -> None:
    for row, one in zip(pool(), alone, strict=True):
        order = np.random.default_rng(len(row["prompt"])).permutation(len(row["rewards"])).tolist()
        turned = {**row, **{name: [row[name][i] for i in order] for name in ("responses", "rewards")}}
        assert_same([scorer(turned)], [one])


def test_texts_chats_and_ids_of_the_same_tokens_have_identical_scores(
    folder: Path, alone: list[dict[str, Any]], scorer: GradAlignScorer
) -> None:
    ids = Dataset.from_list(with_ids(rows_of_every_kind()))
    assert_same(by_row(scorer(ids[:])), alone, 0.0)
    chats = [
        {**row, "responses": [[{"role": "assistant", "content": text}] for text in row["responses"]]} for row in pool()
    ]
    assert_same(by_row(scorer(Dataset.from_list(chats)[:])), alone, 0.0)
    fitted_on_ids = GradAlignScorer(folder, validation=Dataset.from_list(with_ids(trusted().to_list())))
    assert_same(by_row(fitted_on_ids(pool()[:])), alone, 0.0)


def test_messages_are_scored_behind_the_chat_template(tmp_path: Path) -> None:
    from tiny import byte_level, saved, tiny

    chats = saved(tmp_path / "chat", tiny(initializer_range=0.2), byte_level(chat_template=CHAT))
    rows = solved(3)
    messages = [
        {"messages": [{"role": "user", "content": row["prompt"]}], **{n: row[n] for n in ("responses", "rewards")}}
        for row in rows
    ]
    rendered = [{**row, "prompt": f"<|user|>{row['prompt']}\n<|assistant|>"} for row in rows]
    found, wanted = (
        GradAlignScorer(chats, validation=Dataset.from_list(kind))(Dataset.from_list(kind)[:])
        for kind in (messages, rendered)
    )
    assert_same(by_row(found), by_row(wanted), 0.0)
    assert all(found["gradalign_score"])


def test_named_columns_are_read(folder: Path, alone: list[dict[str, Any]], scorer: GradAlignScorer) -> None:
    names = {"prompt": "q", "responses": "tries", "rewards": "marks"}
    renamed = pool().rename_columns(names).add_column("rewards", [0] * 12)  # type: ignore[call-arg]
    val = trusted().rename_columns(names)
    assert_same(by_row(GradAlignScorer(folder, validation=val, **names)(renamed[:])), alone, 0.0)  # type: ignore[arg-type]


WORKERS = """
import sys

if __name__ == "__main__":
    import json
    import multiprocess
    import torch
    from rollouts import pool, trusted
    from hf_curate.scorers.gradalign import GradAlignScorer
    from hf_curate.scorers.learnalign import LearnAlignScorer

    folder, method = sys.argv[1:]
    multiprocess.set_start_method(method)
    rows, count = pool().select(range(4)), 2 if method == "fork" else 1
    scorers = {"gradalign": GradAlignScorer(folder, validation=trusted())}
    if method == "fork":
        scorers["learnalign"] = LearnAlignScorer(folder).fit(rows)
        torch.rand(512, 512) @ torch.rand(512, 512)  # wakes the thread pool that does not survive a fork
    found = {name: rows.map(made, batched=True, num_proc=count)[f"{name}_score"][:] for name, made in scorers.items()}
    print(json.dumps(found))
"""


@pytest.mark.parametrize(("method", "threads"), [("fork", "2"), ("spawn", "1")])
def test_worker_processes_give_the_same_scores(
    method: str, threads: str, folder: Path, tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    found = run_script(tmp_path, WORKERS, folder, method, OMP_NUM_THREADS=threads)
    wanted = {"gradalign": [row["gradalign_score"] for row in alone[:4]]}
    if method == "fork":
        few = pool().select(range(4))
        wanted["learnalign"] = LearnAlignScorer(folder).fit(few)(few[:])["learnalign_score"]
    assert set(found) == set(wanted)
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name], rtol=SAME, atol=SAME)


def test_a_live_model_cannot_travel_and_nothing_is_computed_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = GradAlignScorer(policy(), tokenizer=tokenizer(), validation=trusted())
    monkeypatch.setattr(GradAlignScorer, "_make", lambda *_: pytest.fail("a direction was computed"))
    with pytest.raises(CurateError, match=r"save_pretrained\(folder\).*leave num_proc= and workers= away"):
        pool().map(made, batched=True, num_proc=2)


# -- no signal: exactly 0, and no forward -----------------------------------------------------------------------------


def test_a_problem_without_signal_scores_exactly_zero_without_a_forward(scorer: GradAlignScorer) -> None:
    rows = rows_of_every_kind()
    scorer(rows[0])
    silent = [rows[KIND[name]] for name in ("right", "wrong", "twins", "alone")]
    silent.append({**rows[0], "rewards": [0.3] * 4})
    silent.append({**rows[0], "responses": rows[0]["responses"][:1] * 3, "rewards": [1.0, 0.0, 0.5]})
    with forwards(scorer) as seen:
        found = [scorer(row) for row in silent]
        assert not seen
        scorer(rows[0])
        assert seen
    for row, one in zip(silent, found, strict=True):
        assert one["gradalign_score"] == 0.0
        assert one["gradalign_stderr"] == (None if len(row["rewards"]) < 3 else 0.0)
        assert one["gradalign_error"] == ""


def test_a_pool_without_any_signal_needs_no_direction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = GradAlignScorer(folder, validation=Dataset.from_list(solved(1, seed=77)))
    monkeypatch.setattr(GradAlignScorer, "load", lambda *_: pytest.fail("the model was loaded"))
    rows = [{**row, "rewards": [1.0] * 4} for row in solved(9)]
    assert (
        by_row(made(Dataset.from_list(rows)[:]))
        == [{"gradalign_score": 0.0, "gradalign_stderr": 0.0, "gradalign_error": ""}] * 9
    )


def test_a_problem_that_reaches_no_parameter_of_the_set_scores_zero() -> None:
    model, reached, missed = with_a_rare_parameter()
    made = GradAlignScorer(
        model, tokenizer=tokenizer(), validation=Dataset.from_list(reached), parameters="embed_tokens.rare"
    )
    found = made(Dataset.from_list(reached + missed)[:])
    assert found["gradalign_error"] == [""] * 5
    assert found["gradalign_score"][3:] == [0.0, 0.0]
    assert all(found["gradalign_score"][:3])


@pytest.mark.parametrize("statistic", STATISTICS)
def test_two_rollouts_have_a_score_but_no_standard_error_no_t_and_no_correlation(folder: Path, statistic: str) -> None:
    made = GradAlignScorer(folder, validation=trusted(), statistic=statistic)
    row = rows_of_every_kind()[KIND["pair"]]
    found = made(row)
    assert found["gradalign_stderr"] is None
    if statistic in ("t", "corr"):
        needs = f"2 rollouts say nothing of their spread, and {statistic} needs it"
        assert found == {"gradalign_score": None, "gradalign_stderr": None, "gradalign_error": f"no spread: {needs}"}
    else:
        assert found["gradalign_error"] == ""
        assert found["gradalign_score"] != 0.0
    for few in (1, 2, 3):  # without signal the score is 0 whatever the statistic
        same = {**row, "responses": [*row["responses"], "3"][:few], "rewards": [1.0] * few}
        stderr = 0.0 if few > 2 else None
        assert made(same) == {"gradalign_score": 0.0, "gradalign_stderr": stderr, "gradalign_error": ""}


@pytest.mark.parametrize("count", [1, 2])
def test_the_statistics_of_fewer_than_three_rollouts_know_their_inner_product_alone(count: int) -> None:
    found = statistics(np.array([1.0, 0.0])[:count], np.array([3.0, 1.0])[:count])
    assert found.pop("dot") == {1: 0.0, 2: 0.5}[count]
    assert set(found) == {"stderr", "t", "corr"}
    assert np.isnan(list(found.values())).all()


def test_rewards_that_differ_by_rounding_alone_are_equal(scorer: GradAlignScorer) -> None:
    row = pool()[0]
    sums = [0.1 + 0.2 + 0.7, 0.7 + 0.2 + 0.1, 1.0, 1.0 - 1e-16]
    assert len(set(sums)) > 1
    equal = [sums, [1.0, 1.0 - 9e-7, 1.0, 1.0], [-2e8, -2e8 + 100.0, -2e8, -2e8], [3e-30, 3e-30 * (1 - 5e-7)] * 2]
    scorer(row)
    with forwards(scorer) as seen:
        for rewards in equal:
            assert scorer({**row, "rewards": rewards})["gradalign_score"] == 0.0
        assert not seen
        found = scorer({**row, "rewards": [1.0, 1.0 - 2e-6, 1.0, 1.0]})["gradalign_score"]
        assert seen
    assert found == pytest.approx(scorer({**row, "rewards": [1.0, 0.0, 1.0, 1.0]})["gradalign_score"], rel=1e-4)


def test_advantages_of_large_rewards_keep_the_digits_in_which_these_differ() -> None:
    large = 2.0**52
    found = advantages(np.array([large + 1, large, large, large]))
    assert found.tolist() == [0.75, -0.25, -0.25, -0.25]
    plain = np.array([large + 1, large, large, large])
    assert (plain - plain.mean()).tolist() != found.tolist(), "which a plain mean would lose"
    assert advantages(np.array([1.0, 0.0, 0.0, 1.0])).tolist() == [0.5, -0.5, -0.5, 0.5]


def test_two_rewards_of_three_equal_responses_weigh_as_one_response_with_their_sum(folder: Path) -> None:
    made = GradAlignScorer(folder, validation=trusted(), statistic="dot")
    right, wrong = rows_of_every_kind()[0]["responses"][:2]
    row = {"prompt": rows_of_every_kind()[0]["prompt"], "responses": [right, right, wrong, right]}
    found = made({**row, "rewards": [1.0, 0.0, 0.0, 1.0]})["gradalign_score"]
    pair = made({**row, "responses": [right, wrong], "rewards": [1.0, 0.0]})["gradalign_score"]
    # weights (0.5 - 0.5 + 0.5) / 4 and -0.5 / 4, against 0.5 / 2 and -0.5 / 2
    assert found == pytest.approx(pair / 2, rel=1e-4)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_constant_added_to_the_rewards_changes_nothing_and_a_factor_only_dot_and_standard_error(
    folder: Path, statistic: str
) -> None:
    made = GradAlignScorer(folder, validation=trusted(), statistic=statistic)
    for place in (0, KIND["odd"]):
        row = rows_of_every_kind()[place]
        plain = made(row)
        moved = made({**row, "rewards": [reward - 16.0 for reward in row["rewards"]]})
        assert_same([moved], [plain])
        scaled = made({**row, "rewards": [4.0 * reward for reward in row["rewards"]]})
        factor = 4.0 if statistic == "dot" else 1.0
        assert scaled["gradalign_score"] == pytest.approx(factor * plain["gradalign_score"], rel=1e-4)
        assert scaled["gradalign_stderr"] == pytest.approx(4.0 * plain["gradalign_stderr"], rel=1e-4)
        turned = made({**row, "rewards": [-reward for reward in row["rewards"]]})
        assert turned["gradalign_score"] == pytest.approx(-plain["gradalign_score"], rel=1e-4)


# -- half precision, and a model that is left as it was ---------------------------------------------------------------


def test_scores_of_a_bfloat16_model_are_finite_and_follow_those_in_float32(folder: Path) -> None:
    rows = Dataset.from_list(solved(10, seed=3))
    wide, narrow = (
        np.array(GradAlignScorer(folder, validation=trusted(), dtype=dtype)(rows[:])["gradalign_score"])
        for dtype in ("float32", "bfloat16")
    )
    assert np.isfinite(narrow).all()
    assert np.corrcoef(wide, narrow)[0, 1] > 0.95
    assert not np.array_equal(wide, narrow)


def test_a_live_model_keeps_flags_gradients_mode_hooks_and_weights() -> None:
    model = policy("GPT2").train()
    model.transformer.h[0].eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 3 == 1:
            parameter.grad = torch.full_like(parameter, 0.5)

    def state() -> Any:
        return (
            [module.training for module in model.modules()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
            [(id(p), p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()],
            [(len(p._backward_hooks or {}), len(p._post_accumulate_grad_hooks or {})) for p in model.parameters()],
            torch.is_grad_enabled(),
        )

    before, weights = state(), {name: value.clone() for name, value in model.state_dict().items()}
    made = GradAlignScorer(model, tokenizer=tokenizer(), validation=trusted(), batch_tokens=60)
    first = made(pool()[0])
    assert state() == before
    assert made(pool()[0]) == first, "dropout was off"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_live_model_that_was_trained_since_the_fit_is_refused_until_it_is_fitted_again() -> None:
    model, row = policy(), pool()[0]
    made = GradAlignScorer(model, tokenizer=tokenizer(), validation=trusted())
    made(row)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()
    with pytest.raises(DirectionError, match="gradients of two models cannot be compared"):
        made(row)
    fresh = GradAlignScorer(model, tokenizer=tokenizer(), validation=trusted())
    assert made.fit(trusted())(row) == fresh(row)


def test_all_that_is_measured_of_a_problem_comes_from_one_pass_and_one_over_the_prompt(
    scorer: GradAlignScorer,
) -> None:
    row = pool()[0]
    group = scorer.reader.read(row)
    with forwards(scorer) as seen:
        known = scorer.measure(group)  # type: ignore[arg-type]
    assert len(seen) == 2
    assert known is not None
    assert set(known) == {*STATISTICS, "stderr"}
    assert np.float32(known["cosine"]) == scorer(row)["gradalign_score"]
    silent = scorer.reader.read({**row, "rewards": [1.0] * 4})
    assert scorer.measure(silent) is None  # type: ignore[arg-type]


# -- identity, pickles and the cache ----------------------------------------------------------------------------------


CACHED = """
import json, sys
from datasets import load_dataset
from datasets.fingerprint import Hasher
import hf_curate.scorers.model as model
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer

folder, files = sys.argv[1], sys.argv[2]
loads = []
real = model.load_model
model.load_model = lambda *a, **k: (loads.append(1), real(*a, **k))[1]
pool, val = (load_dataset("parquet", data_files=f"{files}/{name}.parquet", split="train") for name in ("pool", "val"))
scorer = GradAlignScorer(folder, validation=val)
hashes, counts = [Hasher.hash(scorer)], []
values = [pool.map(scorer, batched=True)["gradalign_score"][:]]
hashes.append(Hasher.hash(scorer))
counts.append(len(loads))
again = pool.map(GradAlignScorer(folder, validation=val, device="cpu", batch_tokens=99), batched=True)
counts.append(len(loads))
for dim in (None, 16):
    fitted = LearnAlignScorer(folder, dim).fit(pool)
    values.append(pool.map(fitted, batched=True)["learnalign_score"][:])
    hashes.append(Hasher.hash(fitted))
    counts.append(len(loads))
record = scorer.record()
print(json.dumps({"values": values, "hashes": hashes, "identity": scorer.identity, "loads": counts,
                  "direction": record["direction"]["key"], "column": record["settings"]["columns"]["rewards"]}))
"""


def test_a_second_process_finds_directions_and_scores_without_loading_the_model(folder: Path, tmp_path: Path) -> None:
    pool().to_parquet(tmp_path / "pool.parquet")
    trusted().to_parquet(tmp_path / "val.parquet")
    caches = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    first = run_script(tmp_path, CACHED, folder, tmp_path, **caches)
    second = run_script(tmp_path, CACHED, folder, tmp_path, PYTHONHASHSEED="2", **caches)
    assert first["loads"] == [1, 1, 2, 3]
    assert second["loads"] == [0, 0, 0, 0]
    assert first["hashes"][0] == first["hashes"][1], "the fit changes no hash"
    for what in ("values", "hashes", "identity", "direction"):
        assert first[what] == second[what]
    assert len(list((tmp_path / "home" / "hf_curate" / "directions").iterdir())) == 3


def test_the_identity_changes_with_all_that_changes_numbers_and_with_nothing_else(folder: Path) -> None:
    plain = GradAlignScorer(folder, validation=trusted())
    for same in ({"batch_tokens": 7}, {"device": "cpu"}, {"dtype": "float32"}):
        assert GradAlignScorer(folder, validation=trusted(), **same).identity == plain.identity
    others: list[dict[str, Any]] = [
        {"validation": trusted().select(range(3))},
        {"validation": trusted().select([1, 0, 2, 3])},
        {"statistic": "dot"},
        {"parameters": "linear"},
        {"dtype": "bfloat16"},
        {"max_length": 99},
        {"prompt": "prompt"},
    ]
    made = [GradAlignScorer(folder, **({"validation": trusted()} | other)) for other in others]
    assert len({plain.identity, *(other.identity for other in made)}) == len(others) + 1
    assert len({Hasher.hash(each) for each in (plain, *made)}) == len(others) + 1


def test_a_pickle_holds_neither_weights_nor_rows_and_scores_the_same(
    folder: Path, scorer: GradAlignScorer, alone: list[dict[str, Any]]
) -> None:
    many = Dataset.from_list(trusted().to_list() * 50)
    for made in (scorer, GradAlignScorer(folder, validation=many)):
        content = pickle.dumps(made)
        assert len(content) < 4000
        assert trusted()[0]["prompt"].strip().encode() not in content
        assert b"torch" not in content
        assert pickle.loads(content).identity == made.identity
    again = pickle.loads(pickle.dumps(scorer))
    assert again.validation is None
    assert again(pool()[0]) == alone[0]


# -- the record -------------------------------------------------------------------------------------------------------


def test_the_record_speaks_of_the_pools_columns_and_of_the_validation_gradient(folder: Path) -> None:
    val = Dataset.from_list(with_ids(trusted().to_list()))
    made = GradAlignScorer(folder, validation=val)
    pool().rename_column("prompt", "question").map(made, batched=True)
    record = made.record()
    columns = record["settings"]["columns"]
    assert (columns["prompt"], columns["responses"], columns["response_ids"]) == ("question", "responses", None)
    direction = record["direction"]
    assert direction["kind"] == "validation gradient"
    assert direction["parameters"] == {"set": "all", "tensors": 25, "values": direction["parameters"]["values"]}
    assert direction["parameters"]["values"] == sum(p.numel() for p in made.load().model.parameters())
    assert direction["rows"] == {
        "in": 4, "with_signal": 3, "without_signal": 1, "all_right": 0, "all_wrong": 1, "failed": {}, "rollouts": 20
    }  # fmt: skip
    assert record["zero_without_signal"] is True
    assert GradAlignScorer(folder, validation=val).record()["direction"] == direction, "in a fresh scorer too"
    assert str(folder.parent) not in repr(record)
    assert record["call"] == "GradAlignScorer('./policy', validation=validation)"


def test_score_and_map_give_typed_columns(folder: Path, alone: list[dict[str, Any]]) -> None:
    made = GradAlignScorer(folder, validation=trusted())
    types = {"gradalign_score": Value("float32"), "gradalign_stderr": Value("float32")}
    wanted = Features({**types, "gradalign_error": Value("string")})
    assert made.columns == wanted
    scored = score(pool(), made)
    assert Features({name: scored.features[name] for name in wanted}) == wanted
    assert_same(scored, alone, 0.0)
    mapped = pool().map(made, batched=True)
    assert Features({name: mapped.features[name] for name in wanted}) == wanted


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused_at_once(folder: Path) -> None:
    for settings, error, says in (
        ({"statistic": "cos"}, CurateError, "statistic='cos' is not one of 'cosine', 'dot', 't', 'corr'"),
        ({"parameters": ""}, ScoreError, "parameters=''"),
        ({"parameters": None}, ScoreError, "parameters=None"),
        ({"batch_tokens": 0}, CurateError, "batch_tokens=0"),
        ({"max_length": 1}, CurateError, "max_length=1"),
        ({"dtype": "int8"}, ModelError, "dtype='int8'"),
        ({"validation": None}, DirectionError, "got neither"),
        ({"direction": "x.safetensors"}, DirectionError, "got both"),
        ({"validation": trusted().to_list()}, ScoreError, "this is a list"),
        ({"validation": trusted().to_iterable_dataset()}, ScoreError, "this is a IterableDataset"),
        ({"validation": trusted().select([])}, DirectionError, "is empty"),
    ):
        with pytest.raises(error, match=says):
            GradAlignScorer(folder, **({"validation": trusted()} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("adapters", "has no PEFT adapter"),
        ("layers.9", "matches none of the 25 parameters"),
        ("(unclosed", "neither 'linear', 'all', 'adapters' nor a regular expression"),
    ],
)
def test_a_set_without_parameters_is_an_error_that_says_what_there_is(
    folder: Path, parameters: str, says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        GradAlignScorer(folder, validation=trusted(), parameters=parameters)(pool()[0])
