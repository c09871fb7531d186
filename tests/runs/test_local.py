"""score(): a whole dataset in this process, and the folder it leaves behind."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_dataset

from hf_curate import GraceScorer, score, select
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, ScoreError
from hf_curate.runs.local import failed_rows, load_run

BAD = {"prompt": "1+1?", "completion": ""}


class Counting:
    """A scorer that is none of ours: a callable on batches with three properties."""

    def __init__(self, scale: int = 1) -> None:
        self.scale = scale

    columns = Features({"count_value": Value("float32"), "count_error": Value("string")})

    @property
    def identity(self) -> str:
        return f"counting-{self.scale}"

    def record(self) -> dict[str, Any]:
        return {"name": "Counting", "identity": self.identity, "column": "count_value"}

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        texts = rows["completion"]
        return {
            "count_value": [float(len(text) * self.scale) if text else None for text in texts],
            "count_error": ["" if text else "empty: no text" for text in texts],
        }


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return load_traces().select_columns(["prompt", "completion"]).select(range(16))


@pytest.fixture(scope="module")
def scorer() -> GraceScorer:
    return GraceScorer(MODEL, dtype="float32")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- what it takes ----------------------------------------------------------------------------------------------------


def test_a_scored_dataset_keeps_its_columns_and_gets_typed_scores(pool: Dataset, scorer: GraceScorer) -> None:
    scored = score(pool, scorer)
    assert scored.features == Features({**pool.features, **scorer.columns})
    assert scored.select_columns(pool.column_names).to_list() == pool.to_list()
    assert scored.to_list() == pool.map(scorer, batched=True).to_list()


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_rows_read_at_a_time_do_not_change_scores(size: int, pool: Dataset, scorer: GraceScorer) -> None:
    one, other = score(pool, scorer), score(pool, scorer, batch_rows=size)
    np.testing.assert_allclose(one["grace_value"], other["grace_value"], atol=1e-5)


def test_an_empty_dataset_is_an_error(pool: Dataset, scorer: GraceScorer) -> None:
    with pytest.raises(ScoreError, match="the dataset is empty"):
        score(pool.select([]), scorer)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda pool: DatasetDict({"train": pool}), "DatasetDict"),
        (lambda pool: pool.to_list(), "list"),
        (lambda pool: pool.to_pandas(), "DataFrame"),
        (lambda pool: None, "NoneType"),
    ],
)
def test_what_is_not_a_dataset_is_an_error_that_names_the_fix(
    make: Any, kind: str, pool: Dataset, scorer: GraceScorer
) -> None:
    with pytest.raises(ScoreError, match=rf"takes a datasets.Dataset or IterableDataset, this is a {kind}\..*'train'"):
        score(make(pool), scorer)


def test_a_scorer_that_is_none_of_ours_works(pool: Dataset, tmp_path: Path) -> None:
    made = Counting()
    scored = score(pool, made, out=tmp_path / "run")
    assert scored["count_value"][:] == [float(len(text)) for text in pool["completion"]]
    assert scored.features["count_value"] == Value("float32")
    picked = select(scored, made, budget=4)
    assert sorted(picked.indices.tolist()) == sorted(np.argsort(-np.array(scored["count_value"]), kind="stable")[:4])
    assert picked.manifest["selector"]["name"] == "Counting"
    assert load_run(tmp_path / "run").identity == "counting-1"


def test_a_foreign_scorer_without_an_error_column_works(pool: Dataset) -> None:
    class Bare(Counting):
        columns = Features({"count_value": Value("float32")})

        def __call__(self, rows: Any) -> dict[str, list[Any]]:
            return {"count_value": super().__call__(rows)["count_value"]}

    assert failed_rows(score(pool, Bare()), Bare()) == {}


# -- failures ---------------------------------------------------------------------------------------------------------


def test_all_rows_failed_is_an_error_with_the_reasons(pool: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    bad = [BAD] * 3 + [{"prompt": "1+1?", "completion": "no mark"}] * 2
    with pytest.raises(ScoreError, match="none of the 5 rows could be scored") as caught:
        score(Dataset.from_list(bad), scorer, out=tmp_path / "run")
    assert "3 x empty trace" in str(caught.value)
    assert "2 x no answer" in str(caught.value)
    assert set(files_of(tmp_path / "run")) == {"plan.json", "log.txt", "recipe.yaml"}
    with pytest.raises(ScoreError, match="5 x empty: no text"):
        score(Dataset.from_list([BAD] * 5), Counting())


def test_failures_are_counted_in_the_log_and_nothing_is_dropped(
    pool: Dataset, scorer: GraceScorer, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = Dataset.from_list([*pool.to_list(), BAD, BAD])
    with caplog.at_level(logging.INFO, logger="hf_curate"):
        scored = score(mixed, scorer)
    assert len(scored) == 18
    assert scored["grace_value"][16:] == [None, None]
    assert sum(failed_rows(scored, scorer).values()) == 2
    assert "2 of 18 rows have no score:\n  2 x empty trace" in caplog.text


def test_a_small_first_batch_that_fails_does_not_lose_the_run(pool: Dataset) -> None:
    fresh = GraceScorer(MODEL, dtype="float32")
    scored = score(Dataset.from_list([BAD] * 4 + pool.to_list()), fresh, batch_rows=4)
    assert scored["grace_value"][:4] == [None] * 4
    assert None not in scored["grace_value"][4:]


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_with_the_same_numbers(pool: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    mixed = Dataset.from_list([*pool.to_list(), BAD])
    scored = score(mixed, scorer, out=tmp_path / "run", source="org/name@main:default/train")
    assert set(files_of(tmp_path / "run")) == {
        *("scored.parquet", "run.json", "plan.json", "log.txt", "recipe.yaml"),
        *("parts/00000.parquet", "parts/00000.json"),
    }
    run = load_run(tmp_path / "run")
    assert run.dataset.features == scored.features
    assert run.dataset.to_list() == scored.to_list()
    assert (run.identity, run.column, run.source) == (scorer.identity, "grace_value", "org/name@main:default/train")
    assert run.columns == scorer.columns
    assert run.record() == json.loads(json.dumps(scorer.record()))
    for name, content in files_of(tmp_path / "run").items():
        assert str(tmp_path).encode() not in content or name == "recipe.yaml", name
    one, other = (select(data, made, budget=5) for data, made in ((scored, scorer), (run.dataset, run)))
    assert one.indices.tolist() == other.indices.tolist()
    assert one.manifest["digests"] == other.manifest["digests"]
    with pytest.raises(CurateError, match="a stored run cannot score rows"):
        run({"prompt": "1?"})


def test_the_same_scorer_may_write_its_folder_again(pool: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    score(pool, scorer, out=tmp_path / "run")
    before = files_of(tmp_path / "run")
    score(pool, GraceScorer(MODEL, dtype="float32", batch_tokens=99), out=tmp_path / "run")
    after = files_of(tmp_path / "run")
    assert after.pop("log.txt").startswith(before.pop("log.txt"))
    assert after == before


def test_another_scorers_folder_is_kept_unless_overwritten(pool: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    score(pool, scorer, out=tmp_path / "run")
    before = files_of(tmp_path / "run")
    other = GraceScorer(MODEL, dtype="float32", alpha=0.1)
    with pytest.raises(CurateError, match=r"'run' holds a run of another scorer or other settings .*overwrite=True"):
        score(pool, other, out=tmp_path / "run")
    assert files_of(tmp_path / "run") == before
    score(pool, other, out=tmp_path / "run", overwrite=True)
    assert load_run(tmp_path / "run").identity == other.identity


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_foreign_files_is_refused_and_untouched(
    overwrite: bool, pool: Dataset, scorer: GraceScorer, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(CurateError, match=r"'run' holds other files and no run.json: give the run its own folder"):
        score(pool, scorer, out=tmp_path / "run", overwrite=overwrite)
    assert files_of(tmp_path / "run") == {"notes.txt": b"mine"}


@pytest.mark.parametrize("content", ['{"mine": 1}', "not json", "[]", '{"schema": "hf_curate/run/1"}'])
def test_a_record_that_is_not_ours_is_not_replaced_unasked(
    content: str, pool: Dataset, scorer: GraceScorer, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(CurateError, match="give another folder"):
        score(pool, scorer, out=tmp_path / "run")
    assert files_of(tmp_path / "run") == {"run.json": content.encode()}


def test_a_file_in_place_of_the_folder_is_refused(pool: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CurateError, match="'run' is a file"):
        score(pool, scorer, out=tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_write_that_was_cut_short_leaves_no_record_of_other_numbers(
    pool: Dataset, scorer: GraceScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(pool, scorer, out=tmp_path / "run")
    real = Path.replace

    def cut(self: Path, target: Any) -> Path:
        if Path(target).name == "run.json":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    other = GraceScorer(MODEL, dtype="float32", alpha=0.1)
    with pytest.raises(KeyboardInterrupt):
        score(pool, other, out=tmp_path / "run", overwrite=True)
    monkeypatch.undo()
    with pytest.raises(CurateError, match="the run 'run' is not finished"):
        load_run(tmp_path / "run")
    with pytest.raises(CurateError, match=r"settings\.alpha 0\.1, now 0\.7"):
        score(pool, scorer, out=tmp_path / "run")
    score(pool, other, out=tmp_path / "run")
    assert load_run(tmp_path / "run").identity == other.identity


def test_scored_rows_are_plain_parquet(pool: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    scored = score(pool, scorer, out=tmp_path / "run")
    plain = load_dataset("parquet", data_files=str(tmp_path / "run" / "scored.parquet"), split="train")
    assert plain.features == scored.features


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": "other/1"}'])
def test_what_is_no_run_folder_is_an_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CurateError, match=r"is not a run folder|has the schema"):
        load_run(tmp_path)
