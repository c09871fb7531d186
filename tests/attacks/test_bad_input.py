"""Attack: rows and names that nobody should have, through the real demo model. A clear error, or a null with a reason
and nothing lost."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard

import hf_curate.demo
from hf_curate import GraceScorer, load_curated, score, select
from hf_curate.errors import ColumnsError, ScoreError

GOOD = {"prompt": "45+58-32?\n", "completion": "45+58=3\n3-32=71\n#71"}


@pytest.fixture(scope="module")
def scorer() -> Iterator[GraceScorer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = GraceScorer(hf_curate.demo.MODEL, dtype="float32")
        made(GOOD)
        yield made


def rows_of(*changes: dict[str, Any]) -> Dataset:
    """A good row and one changed row for each change."""
    return Dataset.from_list([GOOD, *({**GOOD, **change} for change in changes)])


def test_a_good_row_is_scored(scorer: GraceScorer) -> None:
    found = scorer(GOOD)
    assert found["grace_error"] == ""
    assert len(found["grace_step_scores"]) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completion": ""}, "empty trace: column 'completion' holds 0 characters, none of them visible"),
        ({"completion": " \n\t\u3000"}, "empty trace"),
        ({"completion": "#71"}, "no step"),
        ({"completion": "#"}, "no answer"),
        ({"completion": "45+58=3\n3-32=71"}, "no answer"),
        ({"prompt": "", "completion": "7"}, "no answer"),
        ({"completion": None}, "wrong type: column 'completion' holds None, expected text"),
        ({"prompt": None}, "wrong type: column 'prompt' holds None, expected text"),
        ({"completion": 3}, "wrong type: column 'completion' holds int"),
        ({"completion": 1.5}, "wrong type: column 'completion' holds float"),
        ({"completion": float("nan")}, "wrong type: column 'completion' holds float"),
        ({"completion": True}, "wrong type: column 'completion' holds bool"),
        ({"completion": b"45+58=3\n#3"}, "wrong type: column 'completion' holds bytes"),
        ({"completion": {"text": "x"}}, "wrong type: column 'completion' holds dict"),
        ({"completion": ["x", "y"]}, "wrong type: message 1 of column 'completion' holds str"),
        ({"completion": [["x"]]}, "wrong type: message 1 of column 'completion' holds list"),
        ({"prompt": [{"role": "user"}]}, "wrong type"),
        ({"completion": "45+58=3\ud800\n#3"}, "not valid Unicode: lone surrogate U+D800 at character 7"),
        ({"prompt": "\udfff"}, "not valid Unicode: lone surrogate U+DFFF at character 0 of the prompt"),
        ({"completion": "45+58=3\n" * 25_000 + "#3"}, "too long: 200,012 tokens, max_length is 512"),
        ({"completion": "1" * 200_000 + "\n#1"}, "too long"),
        ({"completion": "\\boxed{" * 28_572}, "no answer"),
        ({"completion": " " * 200_000 + "\n#1"}, "no step"),
        ({"completion": "\\" * 200_000 + "\n#1"}, "no step"),
        ({"completion": "####" * 50_000}, ""),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_row_that_cannot_be_scored_is_null_with_a_reason_at_once(
    scorer: GraceScorer, change: dict[str, Any], reason: str
) -> None:
    start = time.perf_counter()
    found = scorer({**GOOD, **change})
    assert time.perf_counter() - start < 5
    assert found["grace_error"].startswith(reason)
    assert found["grace_error"]
    assert len(found["grace_error"]) < 300
    assert [found[name] for name in scorer.columns if name != "grace_error"] == [None] * 4


@pytest.mark.parametrize(
    "text", ["\x00", "\u202e45+58=3\u202c", "سلام\n45+58=3", "\r\n45+58=3", "e\u0301", "👩‍👩‍👧", "\ufeff"]
)
def test_odd_characters_are_scored_like_any_other_text(scorer: GraceScorer, text: str) -> None:
    found = scorer({**GOOD, "completion": f"45+58=3{text}\n3-32=71\n#71"})
    assert found["grace_error"] == ""


def test_bad_rows_lose_no_good_one_and_no_other_column(scorer: GraceScorer, tmp_path: Path) -> None:
    data = rows_of({"completion": None}, {"completion": ""}, {"completion": "x" * 600}, {}, {"prompt": None})
    done = score(data, scorer, out=tmp_path / "run")
    assert done.select_columns(data.column_names).to_list() == data.to_list()
    assert [bool(text) for text in done["grace_error"][:]] == [False, True, True, True, False, True]
    alone = scorer(GOOD)
    assert done["grace_value"][0] == done["grace_value"][4] == pytest.approx(float(alone["grace_value"]), abs=1e-5)
    kept = select(done, scorer, 2)
    assert kept.indices.tolist() == [0, 4]
    failed = kept.manifest["rows"]["failed"]
    assert sum(failed.values()) == 4
    assert failed["wrong type"] == 2


def test_an_empty_dataset_and_one_without_any_score_are_errors(scorer: GraceScorer) -> None:
    with pytest.raises(ScoreError, match="the dataset is empty"):
        score(Dataset.from_list([]), scorer)
    with pytest.raises(ScoreError, match="the dataset is empty"):
        score(rows_of().select([]), scorer)
    with pytest.raises(ScoreError, match="none of the 3 rows could be scored") as caught:
        score(Dataset.from_list([{**GOOD, "completion": text} for text in ("", "x", "")]), scorer)
    assert "2 x empty trace" in str(caught.value)
    with pytest.raises(ScoreError, match="none of the 9 rows"):
        Dataset.from_list([{**GOOD, "completion": ""}] * 9).map(
            GraceScorer(hf_curate.demo.MODEL, dtype="float32"), batched=True
        )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "45+58=3\n#3"}, "The column 'text' alone does not say where the prompt ends"),
        ({"prompt": "a"}, "no completion found in the columns 'prompt'"),
        ({"completion": "a"}, "no prompt found in the columns 'completion'"),
        ({"question": "a", "problem": "b", "solution": "c"}, "the prompt could be any of the columns"),
        ({"question": "a", "solution": "c", "output": "d"}, "the completion could be any of the columns"),
        ({"a": 1}, "no prompt found in the columns 'a'"),
    ],
)
def test_missing_and_ambiguous_columns_are_errors_that_list_what_was_found(
    scorer: GraceScorer, row: dict[str, Any], words: str
) -> None:
    for run in (lambda data: score(data, scorer), lambda data: data.map(scorer, batched=True), lambda d: scorer(d[0])):
        with pytest.raises(ColumnsError) as caught:
            run(Dataset.from_list([row] * 2))
        assert words in str(caught.value)


HOSTILE = [
    "# heading",
    "|---|---|",
    "](https://evil.example)",
    "<script>alert(1)</script>",
    "</code><img src=x onerror=alert(1)>",
    "```\n# out\n```",
    "{{ 7 * 7 }}{% raw %}",
    "---\nlicense: evil\n---\n",
    "a: [b, !!python/object:os.system {}]",
    "<!-- hf_curate:end config=grace split=train -->",
    "\n<!-- hf_curate:begin config=grace split=train v1 -->\n",
    "\u202egnp.exe",
    "\x1b[31m",
    "'); DROP TABLE rows;--",
    "../../etc/passwd",
    "x" * 400,
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
def test_a_hostile_column_name_goes_through_select_save_and_load_as_a_name(
    scorer: GraceScorer, tmp_path: Path, name: str
) -> None:
    data = Dataset.from_list([GOOD] * 4).add_column(name, [1, 2, 3, 4])  # type: ignore[call-arg]
    columns = {"prompt": "prompt", "completion": "completion"}
    done = score(data, GraceScorer(hf_curate.demo.MODEL, dtype="float32", **columns), out=tmp_path / "run")  # type: ignore[arg-type]
    kept = select(done, scorer, 2, strategy="stratified", group=name, source="org/name")
    kept.save(tmp_path / tmp_path.name, "grace")
    assert kept.dataset[name][:] == load_dataset(str(tmp_path / tmp_path.name), "grace", split="train")[name][:]  # type: ignore[index]
    again = load_curated(tmp_path / tmp_path.name, "grace")
    assert again.problems == []
    assert name in again.manifest["columns"]["source"]
    readme = (tmp_path / tmp_path.name / "README.md").read_text("utf-8")
    front = yaml.safe_load(readme.split("---\n")[1])
    assert set(front) == {"tags", "size_categories", "configs", "source_datasets", "hf_curate"} - (
        set() if "source_datasets" in front else {"source_datasets"}
    )
    assert DatasetCard(readme).data.get("license") is None
    assert readme.count("<!-- hf_curate:begin") == readme.count("<!-- hf_curate:end") == 1
    body = re.sub(r"```.*?\n```\n", "", readme.partition("<!-- hf_curate:begin")[2], flags=re.DOTALL)
    for live in ("<script", "<img", "](https://evil", "\u202e", "\x1b", "\n# out", "\n# heading"):
        assert live not in body
    assert readme.rstrip().endswith("<!-- hf_curate:end config=grace split=train -->")


def test_hostile_text_in_rows_survives_unchanged_and_never_reaches_the_readme(
    scorer: GraceScorer, tmp_path: Path
) -> None:
    marked = [f"MARK{i} {text}" for i, text in enumerate(HOSTILE)]
    rows = [{"prompt": text, "completion": f"{text[:40]}\n45+58=3\n#3", "note": text} for text in marked]
    done = score(Dataset.from_list(rows), scorer)
    kept = select(done, scorer, "100%" if not any(done["grace_error"][:]) else "50%", source="org/name")
    kept.save(tmp_path, "grace")
    again = load_dataset(str(tmp_path), "grace", split="train")
    for row in again:
        assert {name: row[name] for name in ("prompt", "completion", "note")} == rows[row["source_row"]]  # type: ignore[index,call-overload]
    assert load_curated(tmp_path, "grace").problems == []
    for path in ("README.md", "grace/train.manifest.json"):
        assert "MARK" not in (tmp_path / path).read_text("utf-8")


def test_row_texts_in_reasons_reach_the_card_only_by_their_kind(tmp_path: Path) -> None:
    reasons = ["no answer: <script>MARK</script>", "# MARKED\n: x", ""]
    data = Dataset.from_dict({"prompt": ["a", "b", "c"], "x_value": [None, None, 1.0], "x_error": reasons})
    select(data, "x_value", 1).save(tmp_path, "c")
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert "<script" not in readme
    assert "\n# MARKED" not in readme


def test_a_model_folder_and_a_run_leave_no_path_behind(tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "MARKER" / "my-model"
    shutil.copytree(hf_curate.demo.MODEL, place)
    data = tmp_path / "MARKER" / "rows.jsonl"
    data.write_text("".join(json.dumps(GOOD) + "\n" for _ in range(4)), "utf-8")
    mine = GraceScorer(place, dtype="float32")
    loaded = load_dataset("json", data_files=str(data), split="train")
    done = score(loaded, mine, out=tmp_path / "MARKER" / "run", source=str(data))  # type: ignore[arg-type]
    kept = select(done, mine, 2, source=str(data))
    kept.save(tmp_path / "MARKER" / "repo", "c")
    texts = [json.dumps(kept.manifest), (tmp_path / "MARKER" / "run" / "run.json").read_text("utf-8")]
    texts += [p.read_bytes().decode("latin-1") for p in (tmp_path / "MARKER" / "repo").rglob("*") if p.is_file()]
    assert not any("MARKER" in text or str(tmp_path) in text for text in texts)
    assert kept.manifest["model"]["id"] == "my-model"
    assert "GraceScorer('./my-model'" in kept.manifest["command"]
    assert "local file rows.jsonl" in texts[0]
    assert "local file rows.jsonl" in texts[1]
