"""load_curated: the selection that was saved, and a word where data and manifest differ."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import Scorer, plain, pool

from hf_curate import CurateError, Selection, load_curated, select
from hf_curate.errors import ManifestError
from hf_curate.hub.load import curated_configs

MANIFEST = "grace/train.manifest.json"


@pytest.fixture(scope="module")
def picked() -> Selection:
    return select(pool(), Scorer(), "20%")


@pytest.fixture(scope="module")
def saved(picked: Selection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    picked.save(folder, "grace")
    return folder


@pytest.fixture
def repo(saved: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(saved, tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture
def shard(repo: Path) -> Path:
    [path] = (repo / "grace").glob("train-*.parquet")
    return path


def change_manifest(repo: Path, change: Any) -> None:
    manifest = json.loads((repo / MANIFEST).read_text("utf-8"))
    change(manifest)
    (repo / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def test_what_comes_back_is_what_was_saved(saved: Path, picked: Selection) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_curated(saved, "grace")
    assert again.problems == []
    assert again.indices.dtype == np.int64
    assert again.indices.tolist() == picked.indices.tolist()
    assert again.dataset.to_list() == picked.dataset.to_list()
    assert again.manifest == {**picked.manifest, "config_name": "grace", "split": "train"}
    assert again.baselines == picked.baselines
    assert again.card["Limits"].body in (saved / "README.md").read_text("utf-8")
    assert load_curated(str(saved), "grace", split="train").indices.tolist() == picked.indices.tolist()


def test_a_loaded_selection_can_be_saved_again_under_another_name(repo: Path) -> None:
    load_curated(repo, "grace").save(repo, "again", split="dev")
    assert load_curated(repo, "again").problems == []
    assert curated_configs(repo) == {"again": ["dev"], "grace": ["train"]}


def test_a_wrong_name_lists_those_that_there_are(repo: Path, picked: Selection) -> None:
    picked.save(repo, "other")
    for name in ("grce", "../grace", "", "*", "grace/", "GRACE", ".", "\x1b[31m"):
        with pytest.raises(ManifestError, match="there are: 'grace', 'other'") as caught:
            load_curated(repo, name)
        assert str(caught.value).isprintable()
    with pytest.raises(ManifestError, match="there are: none"):
        load_curated(repo / "grace", "grace")
    with pytest.raises(ManifestError, match="neither a folder that exists nor a repo id"):
        load_curated(repo / "missing", "grace")
    with pytest.raises(ManifestError, match="neither a folder that exists nor a repo id"):
        load_curated(repo / "README.md", "grace")


def test_one_split_is_taken_and_of_several_one_must_be_named(repo: Path, picked: Selection) -> None:
    with pytest.raises(ManifestError, match="no split 'dev'; it has train"):
        load_curated(repo, "grace", split="dev")
    picked.save(repo, "grace", split="dev")
    with pytest.raises(ManifestError, match="has the splits dev, train: pass split="):
        load_curated(repo, "grace")
    assert len(load_curated(repo, "grace", split="dev")) == 20


def test_the_same_folder_saved_again_gives_the_new_rows(repo: Path) -> None:
    """`datasets` keys its cache for folders without looking at the files, so load_curated reads the files."""
    assert len(load_curated(repo, "grace")) == 20
    for budget in (7, 9):
        select(pool(seed=budget), Scorer(), budget).save(repo, "grace")
        again = load_curated(repo, "grace")
        assert (len(again), again.problems) == (budget, [])


def test_two_folders_of_the_same_name_are_not_mixed_up(tmp_path: Path) -> None:
    for name, scores in (("one", [1.0, 2.0, 3.0]), ("two", [3.0, 2.0, 1.0])):
        select(plain(scores), "score", 1).save(tmp_path / name / "out", "c")
    assert load_curated(tmp_path / "one" / "out", "c").dataset["prompt"][:] == ["c"]
    assert load_curated(tmp_path / "two" / "out", "c").dataset["prompt"][:] == ["a"]


@pytest.mark.parametrize("name", ["json", "parquet", "csv", "text", "imagefolder"])
def test_a_folder_may_be_called_like_a_builder_of_datasets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    select(plain(), "score", 2).save(name, "c")
    assert load_curated(name, "c").problems == []


def tamper(path: Path, change: Any) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def replaced(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.slice(0, 19), "the manifest says 20 rows, the data has 19"),
        (lambda t: replaced(t, "prompt", 3, "another"), "the content of the source columns"),
        (lambda t: replaced(t, "completion", 19, None), "the content of the source columns"),
        (lambda t: replaced(t, "source_row", 0, 10**6), "the source rows are not those"),
        (lambda t: t.take(list(range(19, -1, -1))), "the source rows are not those"),
        (lambda t: t.drop_columns(["topic"]), "the columns topic, which the data lacks"),
        (lambda t: t.drop_columns(["source_row"]), "the columns source_row, which the data lacks"),
    ],
    ids=["shorter", "text", "null", "row", "order", "column", "source_row"],
)
def test_changed_data_is_a_warning_that_says_what_differs(repo: Path, shard: Path, change: Any, words: str) -> None:
    tamper(shard, change)
    with pytest.warns(UserWarning, match="grace/train: ") as caught:
        again = load_curated(repo, "grace")
    assert len(caught) == 1
    assert words in str(caught[0].message)
    assert any(words in problem for problem in again.problems)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["rows"].update(kept=21),
        lambda m: m["rows"].update(kept=-1),
        lambda m: m["digests"].update(rows="sha256:" + "0" * 64),
        lambda m: m["digests"].update(source_row=""),
        lambda m: m["columns"]["source"].update(gone="string"),
        lambda m: m["columns"].update(source={"prompt": "string"}),
    ],
)
def test_a_changed_manifest_is_a_warning_too(repo: Path, change: Any) -> None:
    change_manifest(repo, change)
    with pytest.warns(UserWarning, match="manifest"):
        assert load_curated(repo, "grace").problems


def test_a_manifest_of_another_schema_or_no_json_is_refused(repo: Path) -> None:
    change_manifest(repo, lambda m: m.update(schema="hf_curate/manifest/9"))
    with pytest.raises(ManifestError, match="manifest/9"):
        load_curated(repo, "grace")
    (repo / MANIFEST).write_text("{", "utf-8")
    with pytest.raises(ManifestError, match="cannot be read"):
        load_curated(repo, "grace")


def test_files_that_are_no_parquet_or_are_gone_are_a_clear_error(repo: Path, shard: Path) -> None:
    whole = shard.read_bytes()
    for content in (b"", b"PAR1", whole[:-100], whole[100:]):
        shard.write_bytes(content)
        with pytest.raises(ManifestError, match="cannot be loaded"):
            load_curated(repo, "grace")
    shard.unlink()
    with pytest.raises(ManifestError, match=r"no files train-\*\.parquet"):
        load_curated(repo, "grace")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*above, key)
            yield from places(item, (*above, key))


@given(st.data())
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_value_in_a_manifest_crashes_the_load(repo: Path, saved: Path, data: st.DataObject) -> None:
    original = json.loads((saved / MANIFEST).read_text("utf-8"))
    manifest = copy.deepcopy(original)
    *above, key = data.draw(st.sampled_from(list(places(original))))
    target = manifest
    for part in above:
        target = target[part]
    if data.draw(st.booleans()):
        target[key] = data.draw(JSON)
    else:
        del target[key]
    (repo / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            again = load_curated(repo, "grace")
        except CurateError:
            return
        assert len(again) == 20
        assert isinstance(repr(again), str)
        assert isinstance(again.problems, list)


def test_other_files_and_folders_of_a_repo_are_no_configs(repo: Path) -> None:
    (repo / "notes").mkdir()
    (repo / "notes" / "train.manifest.txt").write_text("{}")
    (repo / "train.manifest.json").write_text("{}")
    (repo / "a" / "b").mkdir(parents=True)
    (repo / "a" / "b" / "train.manifest.json").write_text("{}")
    assert curated_configs(repo) == {"grace": ["train"]}
