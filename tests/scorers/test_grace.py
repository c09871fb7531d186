"""GraceScorer: the same numbers however rows come, honest nulls, settings that are checked, an identity that holds."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from realdata import gsm8k_rows, needs_gsm8k
from tiny import CHAT, byte_level, run_script, saved, tiny
from tolerances import SAME_RUN

from hf_curate import GraceScorer, load_curated, score, select
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, ModelError, ScoreError
from hf_curate.gradients.alignment import step_scores
from hf_curate.scorers import model as model_module

SAME = SAME_RUN[torch.float32]
NUMBERS = ("grace_step_scores", "grace_value", "grace_tokens", "grace_loss")
BAD = {"prompt": "1+1?", "completion": ""}


def scorer_of(**settings: Any) -> GraceScorer:
    return GraceScorer(MODEL, **({"dtype": "float32"} | settings))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return load_traces().select_columns(["prompt", "completion"]).select(range(24)).to_list()


@pytest.fixture(scope="module")
def pool(rows: list[dict[str, str]]) -> Dataset:
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def scorer() -> GraceScorer:
    return scorer_of()


@pytest.fixture(scope="module")
def reference(pool: Dataset) -> Dataset:
    """Every row alone, in its own batch."""
    return pool.map(scorer_of(), load_from_cache_file=False)


def assert_same(one: Dataset | list[dict[str, Any]], other: Dataset | list[dict[str, Any]], room: float) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a["grace_error"] == b["grace_error"]
        assert a["grace_tokens"] == b["grace_tokens"]
        for name in ("grace_step_scores", "grace_value", "grace_loss"):
            np.testing.assert_allclose(a[name], b[name], rtol=room, atol=room)


# -- the same numbers however rows come -------------------------------------------------------------------------------


def test_a_row_and_a_batch_of_one_give_identical_numbers(scorer: GraceScorer, rows: list[dict[str, str]]) -> None:
    for row in rows[:6]:
        alone = scorer(row)
        batch = scorer({name: [value] for name, value in row.items()})
        assert set(alone) == set(batch) == set(scorer.columns)
        for name in NUMBERS:
            np.testing.assert_array_equal(alone[name], batch[name][0])
        assert alone["grace_error"] == batch["grace_error"][0] == ""


@pytest.mark.parametrize("proxy", ["representation", "outer", "last", "exact"])
def test_batch_size_padding_and_batch_tokens_do_not_change_scores(proxy: str, rows: list[dict[str, str]]) -> None:
    batch = {name: [row[name] for row in rows[:12]] for name in rows[0]}
    alone = [scorer_of(proxy=proxy, batch_tokens=1)]
    alone_rows = [alone[0](row) for row in rows[:12]]
    for tokens in (1, 150, 100_000):
        together = scorer_of(proxy=proxy, batch_tokens=tokens)(batch)
        assert_same([{name: values[i] for name, values in together.items()} for i in range(12)], alone_rows, SAME)


def test_row_order_does_not_change_scores(scorer: GraceScorer, pool: Dataset, reference: Dataset) -> None:
    order = np.random.default_rng(0).permutation(len(pool))
    shuffled = pool.select(order).map(scorer, batched=True, batch_size=10)
    assert_same(shuffled, reference.select(order), SAME)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batched_map_gives_the_scores_of_unbatched_map(
    size: int, scorer: GraceScorer, pool: Dataset, reference: Dataset
) -> None:
    assert_same(pool.map(scorer, batched=True, batch_size=size), reference, SAME)


def test_a_failing_neighbour_in_the_batch_does_not_change_a_score(
    scorer: GraceScorer, rows: list[dict[str, str]], reference: Dataset
) -> None:
    mixed = [row for good in rows for row in (good, BAD)]
    scored = Dataset.from_list(mixed).map(scorer, batched=True)
    assert_same(scored.select(range(0, 48, 2)), reference, SAME)
    assert all(text.startswith("empty trace") for text in scored[1::2]["grace_error"])


# -- every way to map -------------------------------------------------------------------------------------------------


def test_with_rank_alone_works_in_this_process(pool: Dataset, reference: Dataset) -> None:
    assert_same(pool.map(scorer_of(), batched=True, with_rank=True), reference, SAME)
    assert_same(pool.select(range(3)).map(scorer_of(), with_rank=True), reference.select(range(3)), SAME)


def test_remove_columns_leaves_the_scores_alone(scorer: GraceScorer, pool: Dataset, reference: Dataset) -> None:
    scored = pool.map(scorer, batched=True, remove_columns=pool.column_names)
    assert scored.features == scorer.columns
    assert_same(scored, reference, SAME)


def test_map_with_features_writes_exactly_those(scorer: GraceScorer, pool: Dataset, reference: Dataset) -> None:
    features = scorer.features(pool)
    assert features == Features({**pool.features, **scorer.columns})
    scored = pool.map(scorer, batched=True, features=features)
    assert scored.features == features
    assert_same(scored, reference, SAME)


@pytest.mark.parametrize("batched", [False, True])
def test_an_iterable_dataset_gives_the_same_scores(
    batched: bool, scorer: GraceScorer, pool: Dataset, reference: Dataset
) -> None:
    stream = pool.to_iterable_dataset().map(scorer, batched=batched, batch_size=7)
    assert_same(list(stream), reference, SAME)


def test_an_iterable_dataset_without_features_can_be_given_them(
    scorer: GraceScorer, rows: list[dict[str, str]], reference: Dataset
) -> None:
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None
    features = scorer.features(stream)
    scored = stream.map(scorer, batched=True, batch_size=8, features=features)
    assert scored.features == Features({"prompt": Value("string"), "completion": Value("string"), **scorer.columns})
    assert_same(list(scored), reference, SAME)


def test_removed_columns_and_features_go_together_on_an_iterable_dataset(
    scorer: GraceScorer, pool: Dataset, reference: Dataset
) -> None:
    stream = pool.to_iterable_dataset().map(
        scorer, batched=True, remove_columns=pool.column_names, features=scorer.columns
    )
    assert_same(list(stream), reference, SAME)


def test_scoring_twice_replaces_the_columns(scorer: GraceScorer, reference: Dataset) -> None:
    again = score(reference, scorer)
    assert again.column_names == reference.column_names
    assert_same(again, reference, SAME)


WORKERS = """
import sys

if __name__ == "__main__":
    import json, warnings
    import multiprocess, torch
    from hf_curate import GraceScorer
    from hf_curate.demo import MODEL, load_traces

    method = sys.argv[1]
    torch.set_num_threads(2)
    if method == "spawn":
        multiprocess.set_start_method("spawn")
    pool = load_traces().select_columns(["prompt", "completion"]).select(range(12))
    scorer = GraceScorer(MODEL, dtype="float32")
    split = lambda text: [line for line in text.split("\\n") if line and not line.startswith("#")]
    objects = GraceScorer(MODEL, dtype="float32", tokenizer=scorer.reader.tokenizer, split_steps=split)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        here = pool.map(scorer, batched=True, load_from_cache_file=False)["grace_value"][:]
        torch.rand(512, 512) @ torch.rand(512, 512)  # wakes the thread pool that does not survive a fork
        ways = {"rank": (scorer, dict(num_proc=2, batched=True, with_rank=True))}
        if method == "fork":
            ways["one"] = (scorer, dict(num_proc=1, batched=True))
            ways["objects"] = (objects, dict(num_proc=2))
        there = {name: pool.map(made, load_from_cache_file=False, **way)["grace_value"][:]
                 for name, (made, way) in ways.items()}
    ours = [str(w.message) for w in seen if "warm-up" in str(w.message)]
    print(json.dumps({"here": here, "there": there, "warnings": len(ours)}))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_give_the_same_scores_also_after_torch_ran_in_the_parent(method: str, tmp_path: Path) -> None:
    found = run_script(tmp_path, WORKERS, method, OMP_NUM_THREADS="2", timeout=100)
    assert len(found["there"]) == (3 if method == "fork" else 1)
    for values in found["there"].values():
        np.testing.assert_allclose(values, found["here"], rtol=SAME, atol=SAME)
    assert found["warnings"] == (2 if method == "fork" else 1), "once per scorer, never from a worker"


HELD = """
from hf_curate import GraceScorer
from hf_curate.demo import MODEL

SCORER = GraceScorer(MODEL, dtype="float32")


def held(rows):
    return SCORER(rows)
"""
HOLDER = """
import json, warnings
import torch
from held import held
from hf_curate.demo import load_traces

warnings.simplefilter("ignore")
torch.set_num_threads(2)
pool = load_traces().select_columns(["prompt", "completion"]).select(range(40))
here = pool.map(held, batched=True, load_from_cache_file=False)["grace_value"][:]
torch.rand(512, 512) @ torch.rand(512, 512)
there = pool.map(held, batched=True, num_proc=2, load_from_cache_file=False)["grace_value"][:]
print(json.dumps({"here": here, "there": there}))
"""


def test_a_loaded_scorer_that_was_forked_inside_a_function_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    found = run_script(tmp_path, HOLDER, OMP_NUM_THREADS="2", timeout=60)
    np.testing.assert_allclose(found["there"], found["here"], rtol=SAME, atol=SAME)


# -- types and nulls --------------------------------------------------------------------------------------------------

TYPES = {
    "grace_step_scores": List(Value("float32")),
    "grace_value": Value("float32"),
    "grace_tokens": Value("int32"),
    "grace_loss": Value("float32"),
    "grace_error": Value("string"),
}


@pytest.mark.parametrize("batched", [False, True])
def test_map_without_features_infers_the_declared_types(batched: bool, scorer: GraceScorer, pool: Dataset) -> None:
    assert dict(scorer.columns) == TYPES
    scored = pool.map(scorer, batched=batched)
    assert {name: scored.features[name] for name in TYPES} == TYPES
    types = {name: TYPES[name] for name in TYPES}
    kept = pool.select(range(4)).map(scorer_of(keep_gram=True), batched=batched)
    types |= {"grace_gram": List(Value("float32")), "grace_gram_tokens": List(Value("int32"))}
    assert {name: kept.features[name] for name in types} == types


def test_the_value_is_the_mean_of_the_step_scores_and_the_error_is_empty(reference: Dataset) -> None:
    for row in reference:
        assert row["grace_error"] == ""
        assert row["grace_value"] == pytest.approx(np.mean(row["grace_step_scores"]), abs=1e-6)
        assert all(-1 <= value <= 1 for value in row["grace_step_scores"])
        assert row["grace_loss"] >= 0
        steps = row["completion"].split("\n")[:-1]
        assert len(row["grace_step_scores"]) == len(steps)
        assert row["grace_tokens"] == len(row["prompt"]) + len(row["completion"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "1+1?", "completion": ""}, "empty trace"),
        ({"prompt": "1+1?", "completion": None}, "wrong type"),
        ({"prompt": None, "completion": "1+1=2\n#2"}, "wrong type"),
        ({"prompt": "1+1?", "completion": "1+1=2"}, "no answer"),
        ({"prompt": "1+1?", "completion": "#2"}, "no step"),
        ({"prompt": "1+1?\n", "completion": "1+1=2\n" * 200 + "#2"}, "too long"),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_row_that_cannot_be_scored_has_nulls_and_a_reason(
    row: dict[str, Any], reason: str, batched: bool, scorer: GraceScorer, rows: list[dict[str, str]]
) -> None:
    scored = Dataset.from_list([rows[0], row]).map(scorer, batched=batched)
    assert scored[0]["grace_error"] == ""
    assert scored[1]["grace_error"].partition(":")[0] == reason
    assert [scored[1][name] for name in NUMBERS] == [None] * 4


def test_wrong_shapes_of_rows_are_rows_and_not_batches(scorer: GraceScorer) -> None:
    chat = [{"role": "user", "content": "1+1?"}]
    for rows, reason in (
        ([{"prompt": ["1", "+"], "completion": "1+1=2\n#2"}], "wrong type"),
        ([{"prompt": {"text": "1"}, "completion": "1+1=2\n#2"}], "wrong type"),
        ([{"messages": chat}, {"messages": []}], "no completion"),
    ):
        for batched in (False, True):
            scored = Dataset.from_list(rows).map(scorer, batched=batched)
            assert scored.num_rows == len(rows)
            assert {text.partition(":")[0] for text in scored["grace_error"]} == {reason}
    assert scorer({"messages": []})["grace_error"].startswith("no completion")
    assert scorer({"prompt": [], "completion": []}) == {name: [] for name in scorer.columns}


def test_a_failing_row_after_a_thousand_good_ones_does_not_lose_the_run(
    scorer: GraceScorer, rows: list[dict[str, str]]
) -> None:
    for good, batched, options in ((1001, True, {}), (101, False, {"writer_batch_size": 100})):
        long = Dataset.from_list([rows[0]] * good + [BAD] * 3 + [rows[1]])
        scored = long.map(scorer, batched=batched, **options)
        assert scored[good]["grace_value"] is None
        assert scored[good]["grace_error"].startswith("empty trace")
        assert scored[good + 3]["grace_error"] == ""


def test_a_first_batch_of_eight_that_fails_entirely_is_an_error_with_the_reasons(rows: list[dict[str, str]]) -> None:
    bad = [BAD] * 5 + [{"prompt": "1?", "completion": "1+1=2"}] * 3
    with pytest.raises(ScoreError, match="none of the 8 rows") as caught:
        Dataset.from_list(bad + rows).map(scorer_of(), batched=True, batch_size=8)
    text = str(caught.value)
    assert "5 x empty trace" in text
    assert "3 x no answer" in text
    assert text.index("empty trace") < text.index("no answer")
    assert "hf-curate inspect" in text


@pytest.mark.parametrize("batched", [False, True])
def test_seven_failing_rows_before_good_ones_are_seven_nulls(batched: bool, rows: list[dict[str, str]]) -> None:
    scored = Dataset.from_list([BAD] * 7 + rows).map(scorer_of(), batched=batched, batch_size=16)
    assert scored["grace_value"][:7] == [None] * 7
    assert None not in scored["grace_value"][7:]


def test_a_thousand_failing_rows_one_by_one_are_an_error_and_not_a_lost_run(rows: list[dict[str, str]]) -> None:
    mapped = Dataset.from_list([BAD] * 1000 + rows)
    with pytest.raises(ScoreError, match="none of the 1,000 rows"):
        mapped.map(scorer_of())
    again = mapped.map(scorer_of(), features=(made := scorer_of()).features(mapped), batched=True, batch_size=1001)
    assert made.columns.keys() <= again.features.keys()
    assert again["grace_value"][1000] is not None


def test_null_features_keep_their_types_when_every_row_of_a_small_batch_fails(rows: list[dict[str, str]]) -> None:
    mapped = Dataset.from_list([BAD] * 4 + rows)
    made = scorer_of()
    scored = mapped.map(made, batched=True, batch_size=4, features=made.features(mapped))
    assert scored["grace_value"][:4] == [None] * 4
    assert {name: scored.features[name] for name in TYPES} == TYPES


def test_weights_that_are_nan_give_null_rows_with_a_reason(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    model = tiny(vocabulary=20)
    with torch.no_grad():
        model.get_output_embeddings().weight[5, 0] = float("nan")
    tokenizer = scorer_of().reader.tokenizer
    for proxy in ("representation", "outer", "last", "exact"):
        broken = GraceScorer(model, tokenizer=tokenizer, proxy=proxy)
        found = broken(rows[0])
        assert found["grace_error"].startswith("not finite")
        assert found["grace_value"] is None
    with pytest.raises(ScoreError, match="not finite"):
        Dataset.from_list(rows).map(broken, batched=True)


# -- the datasets cache -----------------------------------------------------------------------------------------------

CACHED = """
import json, sys, warnings
from datasets import load_dataset
from datasets.fingerprint import Hasher
from hf_curate import GraceScorer
from hf_curate.demo import MODEL
import hf_curate.scorers.model as model

warnings.simplefilter("ignore")
file, first = sys.argv[1], sys.argv[2] == "first"
loads = []
real = model.load_model
model.load_model = lambda *a, **k: (loads.append(1), real(*a, **k))[1]
pool = load_dataset("parquet", data_files=file, split="train")
plain = GraceScorer(MODEL, dtype="float32")
hashes = [Hasher.hash(plain), Hasher.hash(GraceScorer(MODEL, split_steps=lambda text: text.split("\\n")))]
values = pool.map(plain, batched=True)["grace_value"][:]
counts = [len(loads)]
for other in (dict(batch_tokens=77), dict(device="cpu"), dict(model_kwargs={})):
    scored = pool.map(GraceScorer(MODEL, dtype="float32", **other), batched=True)
    counts.append(len(loads))
print(json.dumps({"values": values, "loads": counts, "hashes": hashes, "identity": plain.identity}))
"""


def test_the_datasets_cache_is_hit_in_a_second_process_and_with_another_batch_tokens_or_device(
    tmp_path: Path, pool: Dataset
) -> None:
    pool.to_parquet(tmp_path / "pool.parquet")
    caches = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    first = run_script(tmp_path, CACHED, tmp_path / "pool.parquet", "first", **caches)
    second = run_script(tmp_path, CACHED, tmp_path / "pool.parquet", "second", PYTHONHASHSEED="2", **caches)
    assert first["loads"] == [1, 1, 1, 1]
    assert second["loads"] == [0, 0, 0, 0]
    for what in ("values", "hashes", "identity"):
        assert first[what] == second[what]


def test_the_cache_is_missed_when_anything_that_changes_numbers_changes(
    tmp_path: Path, pool: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.select(range(2)).to_parquet(tmp_path / "pool.parquet")
    stored = load_dataset("parquet", data_files=str(tmp_path / "pool.parquet"), split="train")
    tokenizer = scorer_of().reader.tokenizer
    folder = saved(tmp_path / "model", tiny(vocabulary=20), tokenizer)
    loads: list[int] = []
    real = model_module.load_model
    monkeypatch.setattr(model_module, "load_model", lambda *a, **k: (loads.append(1), real(*a, **k))[1])

    def misses(**settings: Any) -> bool:
        before = len(loads)
        stored.map(GraceScorer(folder, **settings), batched=True)
        return len(loads) > before

    assert misses()
    assert not misses()
    for settings in (
        {"alpha": 0.5},
        {"history": ("window", 2)},
        {"history": ("ema", 0.5)},
        {"target": "suffix"},
        {"proxy": "last"},
        {"dtype": "bfloat16"},
        {"split_steps": "lines"},
        {"max_length": 300},
        {"keep_gram": True},
        {"model_kwargs": {"attn_implementation": "eager"}},
        {"prompt": "prompt", "completion": "completion"},
    ):
        assert misses(**settings), settings
        assert not misses(**settings), settings
    monkeypatch.setattr(GraceScorer, "algorithm_version", 999)
    assert misses()
    monkeypatch.undo()
    monkeypatch.setattr(model_module, "load_model", lambda *a, **k: (loads.append(1), real(*a, **k))[1])
    saved(folder, tiny(vocabulary=20, seed=1), tokenizer)
    assert misses(), "other weights in the same folder"
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    assert misses(), "another chat template"


def test_identity_ignores_how_a_setting_is_written() -> None:
    one = scorer_of(dtype=torch.float32, history=("ema", 0.5), alpha=np.float64(0.5)).identity
    two = scorer_of(dtype="torch.float32", history=["ema", np.float64(0.5)], alpha=0.5).identity
    assert one == two == scorer_of(dtype="float", history=("ema", 0.5), alpha=0.5).identity
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert one != scorer_of(history=("ema", 0.25), alpha=0.5).identity


# -- pickles ----------------------------------------------------------------------------------------------------------


def test_a_pickle_holds_no_weights_and_no_device(rows: list[dict[str, str]]) -> None:
    made = scorer_of(device="cpu", batch_tokens=4321)
    made(rows[0])
    content = pickle.dumps(made)
    assert len(content) < 4000
    assert b"torch" not in content
    assert b"4321" not in content
    assert b"cpu" not in content
    again = pickle.loads(content)
    assert again.identity == made.identity
    assert again.device is None
    assert again.batch_tokens is None
    np.testing.assert_array_equal(again(rows[0])["grace_step_scores"], made(rows[0])["grace_step_scores"])


def test_the_pickle_of_a_live_scorer_says_what_to_do(rows: list[dict[str, str]]) -> None:
    made = GraceScorer(tiny(vocabulary=20), tokenizer=scorer_of().reader.tokenizer)
    made(rows[0])
    content = pickle.dumps(made)
    assert len(content) < 4000
    with pytest.raises(CurateError, match="save both to a folder"):
        pickle.loads(content)


def test_changing_the_weights_of_a_live_model_changes_the_identity(rows: list[dict[str, str]]) -> None:
    model = tiny(vocabulary=20)
    made = GraceScorer(model, tokenizer=scorer_of().reader.tokenizer)
    before, value = made.identity, made(rows[0])["grace_value"]
    assert made.identity == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    assert made.identity != before
    assert made(rows[0])["grace_value"] != value
    assert made.record()["identity"] == made.identity


def test_live_weights_that_were_replaced_or_cast_are_the_ones_scored_with(rows: list[dict[str, str]]) -> None:
    tokenizer = scorer_of().reader.tokenizer
    model = tiny("GPT2", 20)
    made = GraceScorer(model, tokenizer=tokenizer)
    first = made(rows[0])["grace_value"]
    model.double()
    assert made(rows[0])["grace_value"] == pytest.approx(first, abs=1e-5)
    model.load_state_dict(tiny("GPT2", 20, seed=3).double().state_dict(), assign=True)
    fresh = GraceScorer(model, tokenizer=tokenizer)
    assert made(rows[0])["grace_value"] == fresh(rows[0])["grace_value"]
    assert made(rows[0])["grace_value"] != pytest.approx(first, abs=1e-3)


@pytest.mark.parametrize("proxy", ["representation", "last", "exact"])
def test_a_live_model_in_training_mode_is_scored_without_dropout_and_stays_in_training(
    proxy: str, rows: list[dict[str, str]]
) -> None:
    model = tiny("GPT2", 20)
    made = GraceScorer(model, tokenizer=scorer_of().reader.tokenizer, proxy=proxy)
    value = made(rows[0])["grace_value"]
    model.train()
    model.transformer.h[0].eval()
    assert made(rows[0])["grace_value"] == value
    assert GraceScorer(model, tokenizer=made.reader.tokenizer, proxy=proxy)(rows[0])["grace_value"] == value
    assert model.training
    assert model.transformer.h[1].training
    assert not model.transformer.h[0].attn.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_live_model_with_num_proc_is_an_error_that_names_the_fix(workers: int, pool: Dataset) -> None:
    made = GraceScorer(tiny(vocabulary=20), tokenizer=scorer_of().reader.tokenizer)
    with pytest.raises(CurateError, match=r"save_pretrained\(folder\).*leave num_proc= and workers= away"):
        pool.map(made, batched=True, num_proc=workers)


# -- keep_gram --------------------------------------------------------------------------------------------------------


def test_step_scores_of_the_stored_gram_are_those_of_a_scorer_with_other_settings(pool: Dataset) -> None:
    few = pool.select(range(8))
    stored = few.map(scorer_of(keep_gram=True), batched=True)
    for settings in (
        {"alpha": 0.25},
        {"history": ("window", 1)},
        {"history": ("ema", 0.6), "alpha": 0.5},
        {"target": "steps+answer"},
        {"target": "suffix", "history": ("window", 2)},
    ):
        direct = few.map(scorer_of(**settings), batched=True)
        for kept, made in zip(stored, direct, strict=True):
            segments = len(kept["grace_gram_tokens"])
            gram = np.reshape(kept["grace_gram"], (segments, segments))
            assert segments == len(kept["grace_step_scores"]) + 1
            derived = step_scores(gram, np.array(kept["grace_gram_tokens"]), **settings)
            np.testing.assert_allclose(derived, made["grace_step_scores"], atol=1e-5)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": -1}, "alpha=-1"),
        ({"alpha": "x"}, "alpha='x'"),
        ({"alpha": None}, "alpha=None"),
        ({"alpha": True}, "alpha=True"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"history": "windows"}, "history='windows'"),
        ({"history": "window"}, "history='window'"),
        ({"history": ("window", 0)}, "W = 1, 2"),
        ({"history": ("window", 1.5)}, "history="),
        ({"history": ("window", True)}, "history="),
        ({"history": ("ema", 0)}, "0 < beta < 1"),
        ({"history": ("ema", 1)}, "history="),
        ({"history": ("ema", float("nan"))}, "history="),
        ({"history": ("ema",)}, "history="),
        ({"history": None}, "history=None"),
        ({"target": "answers"}, "target='answers' is not one of 'answer', 'steps\\+answer', 'suffix'"),
        ({"proxy": "full"}, "proxy='full' is not one of 'representation', 'outer', 'last', 'exact'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"dtype": torch.int8}, "floating point"),
        ({"dtype": "float33"}, "dtype='float33'"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"max_length": 1}, "max_length=1"),
        ({"split_steps": "(unclosed"}, "does not compile"),
        ({"split_steps": "senteces"}, "Did you mean 'sentences'"),
        ({"split_steps": 3}, "splitter"),
        ({"split_steps": re.compile(b"x")}, "bytes"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_once(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CurateError, match=says):
        GraceScorer(MODEL, **settings)


def test_numpy_numbers_are_numbers() -> None:
    made = scorer_of(alpha=np.float32(0.5), history=("window", np.int64(2)))
    assert made.settings()["alpha"] == 0.5
    assert made.settings()["history"] == ["window", 2]


def test_a_column_that_is_not_there_is_named_before_the_model_is_loaded(pool: Dataset) -> None:
    with pytest.raises(CurateError, match=r"completion='completions' is not a column.*Did you mean"):
        pool.map(scorer_of(completion="completions"), batched=True)


# -- the warning ------------------------------------------------------------------------------------------------------


def test_a_scorer_without_warm_up_warns_once(pool: Dataset) -> None:
    made = scorer_of()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pool.map(made, batched=True, load_from_cache_file=False)
        pool.map(made, load_from_cache_file=False)
        made.audit(pool, rows=2)
    assert [w.category for w in seen if "warm-up" in str(w.message)] == [UserWarning]
    assert made.record()["model"]["warm_up"] is None


# -- the record -------------------------------------------------------------------------------------------------------


def test_the_record_is_json_without_paths(pool: Dataset) -> None:
    made = scorer_of()
    score(pool, made)
    record = made.record()
    assert record["name"] == "GRACE"
    assert record["column"] == made.column == "grace_value"
    assert record["model"]["id"] == Path(MODEL).name
    assert record["model"]["sha"] is None
    assert re.fullmatch("[0-9a-f]{64}", record["model"]["digest"])
    assert record["model"]["dtype"] == "float32"
    assert record["settings"]["columns"]["completion"] == "completion"
    assert record["settings"]["max_length"] == 512
    assert str(Path(MODEL).parent) not in repr(record)


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gsm8k_scorer(tmp_path: Path) -> tuple[list[dict[str, str]], GraceScorer]:
    rows = gsm8k_rows("train")[:200]
    tokenizer = byte_level([row["question"] + row["answer"] for row in rows], size=500)
    return rows, GraceScorer(saved(tmp_path / "model", tiny(vocabulary=len(tokenizer)), tokenizer))


@pytest.mark.realdata
@needs_gsm8k
def test_gsm8k_rows_go_through_score_select_save_and_load(
    tmp_path: Path, gsm8k_scorer: tuple[list[dict[str, str]], GraceScorer]
) -> None:
    rows, made = gsm8k_scorer
    scored = score(Dataset.from_list(rows), made, out=tmp_path / "run")
    assert all(error == "" for error in scored["grace_error"])
    source = f"openai/gsm8k@{'ab' * 20}:main/train"
    picked = select(scored, made, budget="20%", source=source)
    picked.save(tmp_path / "out", "grace-20pct")
    plain = load_dataset(str(tmp_path / "out"), "grace-20pct", split="train")
    assert len(plain) == 40
    assert plain.features["source_row"] == Value("int64")
    best = np.sort(np.argsort(-np.array(scored["grace_value"]), kind="stable")[:40])
    assert plain["source_row"][:] == best.tolist()
    for row in plain:
        assert {name: row[name] for name in ("question", "answer")} == rows[row["source_row"]]
    again = load_curated(tmp_path / "out", "grace-20pct")
    assert again.problems == []
    assert again.manifest["source"]["sha"] == "ab" * 20
    assert (again.manifest["rows"]["in"], again.manifest["rows"]["kept"]) == (200, 40)
    assert again.manifest["selector"]["settings"]["columns"]["completion"] == "answer"


def test_a_live_model_without_a_tokenizer_is_an_error_that_names_the_argument(rows: list[dict[str, str]]) -> None:
    with pytest.raises(ModelError, match=r"beside the model, tokenizer=tokenizer"):
        GraceScorer(tiny(vocabulary=20))(rows[0])
