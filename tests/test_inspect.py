"""inspect: how rows are read, what a run holds, what a config claims; and nothing of it may drive a terminal."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from pools import Scorer, pool

from hf_curate import load_curated, select
from hf_curate.errors import ColumnsError, CurateError, ManifestError
from hf_curate.inspect import inspect_config, inspect_run, inspect_source
from hf_curate.runs.local import RECORD_FILE, SCHEMA, SCORES_FILE, load_run

ROWS = [
    {"question": "2+3?", "solution": "2+3=5\n#### 5"},
    {"question": "\x1b[31mred\u202e", "solution": "a\x07\x9b2J\nb\n#### \x1b]0;x\x07"},
    {"question": "no answer", "solution": "nothing"},
    {"question": None, "solution": "x\n#### 1"},
    {"question": "long " * 100, "solution": "y\n#### 1"},
]


def is_safe(text: str) -> bool:
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") for c in text)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as `score(..., out=)` writes it."""
    folder = tmp_path / "run"
    folder.mkdir()
    data = pool()
    data.to_parquet(folder / SCORES_FILE)
    record = {"schema": SCHEMA, "source": "local file rows.jsonl", "rows": len(data)}
    record |= {"score_columns": list(Scorer.columns), "scorer": Scorer().record()}
    (folder / RECORD_FILE).write_text(json.dumps(record), "utf-8")
    return folder


def test_the_first_rows_are_shown_as_a_scorer_reads_them(source: str) -> None:
    text = inspect_source(source, 5, {}, "auto")
    assert text.startswith("local file rows.jsonl: 5 rows\ncolumns: prompt=question, completion=solution (by aliases)")
    assert "row 0: 1 steps by" in text
    assert "  prompt   2+3?\n  step 1   2+3=5\n  answer   5" in text
    assert "row 2: cannot be scored (no answer" in text
    assert "row 3: cannot be scored (wrong type: column 'question' holds None" in text
    assert max(map(len, text.splitlines())) < 200
    assert is_safe(text)


@pytest.mark.parametrize(("rows", "shown"), [(0, 0), (-3, 0), (2, 2), (99, 5)])
def test_as_many_rows_are_shown_as_were_asked_for(source: str, rows: int, shown: int) -> None:
    assert inspect_source(source, rows, {}, "auto").count("\nrow ") == shown


def test_rows_that_are_problems_alone_are_pointed_to_what_makes_rollouts(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "1+2*3?", "answer": "9"}\n' * 3, encoding="utf-8")
    text = inspect_source(str(path), 1, {}, "auto")
    assert "of the first 3 rows 0 can be read" in text
    assert text.endswith(f"hf-curate rollouts {path} --model ./policy --verifier exact --out runs/rolled")


def test_columns_and_splitters_can_be_chosen(source: str) -> None:
    text = inspect_source(source, 1, {"prompt": "solution", "completion": "question", "answer": None}, "lines")
    assert "prompt=solution, completion=question (by explicit)" in text
    with pytest.raises(ColumnsError, match="nope"):
        inspect_source(source, 1, {"prompt": "nope"}, "auto")


def test_chats_are_shown_and_hostile_column_names_are_not_obeyed(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "2+3=5\n#### 5"}]
    Dataset.from_dict({"messages": [chat], "\x1b[31m": [1]}).to_parquet(tmp_path / "x.parquet")
    assert '[{"role": "user", "content": "2+3?"}]' in inspect_source(str(tmp_path / "x.parquet"), 1, {}, "auto")
    Dataset.from_list([{"\x1b[31mq": "a", "s\u202e": "b\n#### 1"}]).to_parquet(tmp_path / "y.parquet")
    named = {"prompt": "\x1b[31mq", "completion": "s\u202e"}
    assert is_safe(inspect_source(str(tmp_path / "y.parquet"), 1, named, "auto"))


ROLLED = [
    {"prompt": "2+3?", "responses": ["5", "\x1b[31m6\u202e", "x" * 500, "7", "8"], "rewards": [1, 0, 0, 0, 0.25]},
    {"prompt": "1+1?", "responses": ["2"], "rewards": [1.0]},
    {"prompt": "cannot be scored", "responses": ["a", "b"], "rewards": [-1.0, -1.0]},
    {"prompt": "none", "responses": [], "rewards": []},
]


def test_rollouts_are_shown_shortened_with_their_rewards_and_their_signal(tmp_path: Path) -> None:
    path = tmp_path / "rolled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROLLED), "utf-8")
    text = inspect_source(str(path), 9, {}, "auto")
    assert text.startswith("local file rolled.jsonl: 4 rows\ncolumns: prompt=prompt, responses=responses, rewards=")
    assert "row 0: 5 responses, signal\n  prompt      2+3?\n  rewards     1, 0, 0, 0, 0.25\n" in text
    assert "  response 1  5\n  response 2   [31m6 \n  response 3  xxx" in text
    assert "\n  and 2 more\n" in text
    assert "row 1: 1 response, no signal: all rewards are equal\n" in text
    assert "row 3: cannot be scored (no rollouts" in text
    assert "of the first 4 rows 3 can be read; row 3: cannot be scored (no rollouts" in text
    start = f"hf-curate score {path} --scorer"
    model = "--model MODEL --out runs/"
    assert text.endswith(
        "\n1 of them have a signal: rewards that differ\n\n"
        f"next: {start} learnalign {model}learnalign\n"
        f"  or: {start} gradalign --validation TRUSTED {model}gradalign"
    )
    assert max(map(len, text.splitlines()[:-2])) < 200
    assert is_safe(text)


def test_the_commands_to_try_name_the_columns_that_were_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "out": ["x", "y"], "the reward": [1.0, 0.0]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "a b.parquet")
    named = {"responses": "out", "rewards": "the reward"}
    text = inspect_source(str(tmp_path / "a b.parquet"), 1, named, "auto")
    start = f"hf-curate score '{tmp_path}/a b.parquet' --responses out --rewards 'the reward' --scorer "
    assert f"\nnext: {start}learnalign " in text
    equal = Dataset.from_list([rows[0] | {"the reward": [1.0, 1.0 + 1e-9]}])
    equal.to_parquet(tmp_path / "equal.parquet")
    text = inspect_source(str(tmp_path / "equal.parquet"), 1, named, "auto")
    assert "no signal: all rewards are equal" in text
    assert text.endswith("\n0 of them have a signal: rewards that differ")


def test_sampled_ids_and_chats_are_shown_too(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "2+3?"}]
    row = {"messages": chat, "response_ids": [[5, 6, 7], [8]], "rewards": [0.0, 1.0]}
    Dataset.from_list([row]).to_parquet(tmp_path / "ids.parquet")
    text = inspect_source(str(tmp_path / "ids.parquet"), 1, {}, "auto")
    assert '  prompt      [{"role": "user", "content": "2+3?"}]\n' in text
    assert "  response 1  3 ids: 5 6 7\n  response 2  1 ids: 8\n" in text


def test_a_row_that_speaks_of_failure_does_not_count_as_one(tmp_path: Path) -> None:
    row = {"prompt": "it cannot be scored", "completion": "it cannot be scored\nreally\n#### 5"}
    Dataset.from_list([row]).to_parquet(tmp_path / "x.parquet")
    assert inspect_source(str(tmp_path / "x.parquet"), 1, {}, "auto").endswith("of the first 1 rows 1 can be read")


def test_columns_named_for_a_trace_or_for_rollouts_decide_how_rows_are_read(tmp_path: Path) -> None:
    row = {"prompt": "2+3?", "completion": "2+3=5\nso\n#### 5", "responses": ["5", "6"], "rewards": [1.0, 0.0]}
    Dataset.from_list([row]).to_parquet(tmp_path / "x.parquet")
    source = str(tmp_path / "x.parquet")
    assert "2 responses, signal" in inspect_source(source, 1, {}, "auto")
    assert "2 steps by gsm8k" in inspect_source(source, 1, {"completion": "completion"}, "auto")
    with pytest.raises(ColumnsError, match="would be rollouts"):
        inspect_source(source, 1, {"completion": "completion", "rewards": "rewards"}, "auto")


def test_a_run_is_summed_up(run: Path) -> None:
    text = inspect_run(run)
    assert text.splitlines()[0] == "GRACE with tiny/model, 100 rows of local file rows.jsonl"
    assert "warm-up: none; identity 5d41402abc4b" in text
    assert "grace_value: 92 scored; 0%" in text
    reasons = [text.partition(":")[0] for text in pool()["grace_error"] if text]
    for kind in ("no answer", "too long"):
        assert f"not scored: {reasons.count(kind)} x {kind}" in text


def test_small_scores_keep_their_digits(run: Path) -> None:
    data = pool()
    small = [None if value is None else value * 1e-6 for value in data["grace_value"]]
    kind = data.features["grace_value"]
    data.remove_columns("grace_value").add_column("grace_value", small, feature=kind).to_parquet(run / SCORES_FILE)
    known = [value for value in small if value is not None]
    assert f"50% {np.median(np.float32(known)):.4g}, " in inspect_run(run)
    assert "e-07" in inspect_run(run)


def test_a_run_stands_in_for_its_scorer(run: Path) -> None:
    stored = load_run(run)
    kept, direct = select(stored.dataset, stored, "20%"), select(pool(), Scorer(), "20%")
    assert kept.indices.tolist() == direct.indices.tolist()
    assert kept.manifest == direct.manifest
    with pytest.raises(CurateError, match="cannot score rows"):
        stored({})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(schema="hf_curate/run/9"), "'hf_curate/run/9'; this version reads"),
        (lambda r: r.update(rows=7), "speaks of 7 rows"),
        (lambda r: r.update(score_columns=["gone"]), "without gone"),
        (lambda r: r.update(score_columns=[3]), "not complete"),
        (lambda r: r.update(scorer=[]), "not complete"),
        (lambda r: r.update(source=3), "not complete"),
        (lambda r: r["scorer"].pop("identity"), "not complete"),
        (lambda r: r.clear(), "has the schema 'None'"),
    ],
)
def test_a_run_whose_record_and_scores_differ_is_refused(run: Path, change: object, words: str) -> None:
    record = json.loads((run / RECORD_FILE).read_text("utf-8"))
    change(record)  # type: ignore[operator]
    (run / RECORD_FILE).write_text(json.dumps(record), "utf-8")
    with pytest.raises(CurateError) as caught:
        load_run(run)
    assert words in str(caught.value)


def test_a_broken_run_folder_is_a_clear_error(run: Path, tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 10**5):
        (run / RECORD_FILE).write_bytes(content)
        with pytest.raises(CurateError, match=r"run\.json"):
            load_run(run)
    with pytest.raises(CurateError, match="not a run folder"):
        load_run(tmp_path / "nothing")


def test_scores_that_cannot_be_read_are_a_clear_error(run: Path) -> None:
    (run / SCORES_FILE).write_bytes(b"PAR1")
    with pytest.raises(CurateError, match="score again"):
        load_run(run)
    (run / SCORES_FILE).unlink()
    with pytest.raises(CurateError, match="score again"):
        load_run(run)


def test_a_config_is_shown_in_short_with_its_verdict(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="neither a run nor a curated config"):
        inspect_config(tmp_path, None, None)
    kept = select(pool(), Scorer(), "20%")
    kept.save(tmp_path, "grace")
    m = kept.manifest
    low, high = m["scores"]["all"], m["scores"]["kept"]
    assert inspect_config(tmp_path, None, None).splitlines() == [
        "grace: 20 of 100 rows (20.0 %) of a source that was not recorded, chosen by GRACE with tiny/model@c1899de, "
        "budget 20 %",
        "data and manifest agree",
        "rows: 100 in, 92 scored, 20 kept",
        *(f"not scored: {count} x {kind}" for kind, count in m["rows"]["failed"].items()),
        f"budget: 20%, 20 rows, {m['budget']['tokens']:,} tokens, threshold {m['budget']['threshold']:.4g}",
        f"grace_value of all scored rows: min {low['min']:.4g}, median {low['median']:.4g}, max {low['max']:.4g}",
        f"grace_value of kept rows: min {high['min']:.4g}, median {high['median']:.4g}, max {high['max']:.4g}",
        f"the whole manifest: hf-curate inspect {tmp_path} --config grace --json",
    ]
    kept.save(tmp_path, "grace", split="dev")
    listed = inspect_config(tmp_path, None, None)
    assert listed.endswith("holds these configs (choose with --config):\n  grace: dev, train")
    with pytest.raises(ManifestError, match="holds these configs"):
        inspect_config(tmp_path, None, None, whole=True)
    assert (
        json.loads(inspect_config(tmp_path, "grace", "train", whole=True))
        == load_curated(tmp_path, "grace", split="train").manifest
    )
    file = tmp_path / "grace" / "dev.manifest.json"
    file.write_text(
        file.read_text("utf-8").replace('"20%"', '"\\u001b[31m\\u202e"').replace('"in": 100', '"in": 7'), "utf-8"
    )
    [shard] = (tmp_path / "grace").glob("dev-*.parquet")
    Dataset.from_dict({"a": [1]}).to_parquet(shard)
    text = inspect_config(tmp_path, "grace", "dev")
    assert "DATA AND MANIFEST DIFFER: the manifest says 20 rows, the data has 1" in text
    assert text.endswith("--config grace --split dev --json")
    assert is_safe(text)
    with pytest.warns(UserWarning, match="the manifest says 20 rows"):
        assert is_safe(inspect_config(tmp_path, "grace", "dev", whole=True))


def test_a_manifest_that_says_too_little_for_a_card_is_shown_all_the_same(tmp_path: Path) -> None:
    kept = select(pool(), Scorer(), "20%")
    kept.save(tmp_path, "grace")
    file = tmp_path / "grace" / "train.manifest.json"
    stored = json.loads(file.read_text("utf-8"))
    for name in ("scores", "model", "versions", "confounds"):
        del stored[name]
    del stored["rows"]["failed"]
    stored["rows"]["scored"] = None
    file.write_text(json.dumps(stored), "utf-8")
    assert inspect_config(tmp_path, "grace", "train").splitlines()[:4] == [
        "grace: Selection(20 of 100 rows by GRACE, budget 20%)",
        "data and manifest agree",
        "rows: 100 in, 20 kept",
        f"budget: 20%, 20 rows, {stored['budget']['tokens']:,} tokens, threshold {stored['budget']['threshold']:.4g}",
    ]
