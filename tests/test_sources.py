"""Sources: how they are written, what can be read, and what records may call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from hf_curate import sources
from hf_curate.errors import CurateError
from hf_curate.sources import check_local, check_run, is_local, load_source, parse, public_name, source_record

ROWS = [{"prompt": "a", "completion": "1"}, {"prompt": "سلام", "completion": "\u2028"}]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("gsm8k", ("gsm8k", None, None, None)),
        ("openai/gsm8k", ("openai/gsm8k", None, None, None)),
        ("openai/gsm8k@v1.0", ("openai/gsm8k", "v1.0", None, None)),
        ("openai/gsm8k@refs/pr/1:main/train", ("openai/gsm8k", "refs/pr/1", "main", "train")),
        ("openai/gsm8k:main", ("openai/gsm8k", None, "main", None)),
        ("openai/gsm8k:main/train", ("openai/gsm8k", None, "main", "train")),
        ("openai/gsm8k:/train", ("openai/gsm8k", None, None, "train")),
        ("a/b@main:c/d", ("a/b", "main", "c", "d")),
    ],
)
def test_a_source_is_an_id_with_a_revision_config_and_split(source: str, parts: tuple[str | None, ...]) -> None:
    assert tuple(parse(source).values()) == parts


@pytest.mark.parametrize(
    "source",
    [
        "",
        "a/b/c",
        "a b",
        "@main",
        "a/b@",
        "a/b:c/d/e",
        "/a",
        "a/",
        "-a/b",
        "a\nb",
        "https://x.y/z",
        "a--b/c",
        "a..b",
        "x" * 200,
        "x.git",
        "x" * 10**5 + "!",
    ],
)
def test_what_is_no_source_is_refused_with_the_forms(source: str) -> None:
    with pytest.raises(CurateError, match="org/name@revision:config/split") as caught:
        parse(source)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "x [1]*.jsonl", "ü %20.jsonl"])
def test_local_files_are_read_and_called_by_their_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "MARKER" / name
    file.parent.mkdir()
    if name.endswith("parquet"):
        Dataset.from_list(ROWS).to_parquet(file)
    elif name.endswith("json"):
        file.write_text(json.dumps(ROWS), "utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    dataset, called = load_source(str(file))
    assert dataset.to_list() == ROWS
    assert called == f"local file {name}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"a,b\n1,2\n", "neither .jsonl, .json nor .parquet"),
        ("x.pkl", b"\x80\x04.", "neither .jsonl, .json nor .parquet"),
        ("x.jsonl", b"", "no rows in 'x.jsonl'"),
        ("x.jsonl", b"\n \n", "no rows in 'x.jsonl'"),
        ("x.JSONL", b"", "no rows in 'x.JSONL'"),
        ("x.json", b"[]", "no rows in 'x.json'"),
        ("x.json", b"  ", "no rows in 'x.json'"),
        ("x.jsonl", b'{"a": 1}\n{bad\n', "cannot be read as jsonl: JSON parse error"),
        ("x.jsonl", b"\x00\x01\x02", "cannot be read as jsonl"),
        ("x.json", b"[" * 10, "cannot be read as json"),
        ("x.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_files_that_cannot_be_read_say_why_without_their_folder(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CurateError) as caught:
        load_source(str(tmp_path / name))
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_and_a_folder_are_not_files(tmp_path: Path) -> None:
    for path in (tmp_path / "no.jsonl", tmp_path / "no.parquet"):
        with pytest.raises(CurateError, match="there is no file 'no"):
            load_source(str(path))
    with pytest.raises(CurateError, match="is a folder: give"):
        load_source(str(tmp_path))
    for odd in ("x" * 5000, "a\x00b", "https://x.y/z"):
        with pytest.raises(CurateError, match="cannot be read"):
            load_source(odd)
    Dataset.from_dict({"a": []}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(CurateError, match=r"no rows in 'none\.parquet'"):
        load_source(str(tmp_path / "none.parquet"))


@pytest.mark.parametrize(
    "source",
    [
        "no.jsonl",
        "no.JSON",
        "data/no.parquet",
        "./no",
        "../no/x",
        "/nowhere/no",
        "~/no-such-rows",
        "~nobody-of-this-name/x",
        "a/b/c",
        "here/rows.jsnol",
        "C:\\rows\\x",
    ],
)
def test_what_is_written_like_a_file_and_is_not_there_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "dataset_commit", lambda *_: pytest.fail("the Hub was asked"))
    for look in (load_source, check_local):
        with pytest.raises(CurateError, match="there is no file "):
            look(source)


@pytest.mark.parametrize(
    "source",
    [
        "org/name",
        "org/name@refs/pr/1:main/train",
        "name:c/s",
        "rows.csv",
        "away/rows.jsnol",
        "here/name",
        "here/n@v1.0",
    ],
)
def test_a_hub_name_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    check_local(source)
    assert not is_local(source)


def test_a_mistyped_file_is_told_the_name_of_the_nearest(tmp_path: Path) -> None:
    for name in ("traces.jsonl", "other.jsonl", "trace.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CurateError, match=r"there is no file 'trace\.jsonl': did you mean 'traces\.jsonl'\?"):
        load_source(str(tmp_path / "trace.jsonl"))
    with pytest.raises(CurateError, match=r"there is no file 'no\.jsonl': give 'org/name'"):
        load_source(str(tmp_path / "no.jsonl"))


@pytest.mark.parametrize("source", ["no-such-org/no-such-set", "no-such-org/no-such-set@main:main/train", "rows.csv"])
def test_a_hub_dataset_without_network_says_what_to_check(source: str) -> None:
    with pytest.raises(CurateError) as caught:
        load_source(source)
    for words in (source, "HF_HUB_OFFLINE", "not a file or folder here", "hf auth login"):
        assert words in str(caught.value)


def test_a_record_keeps_no_parent_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.from_list(ROWS)
    inside = tmp_path / "MARKER" / "rows.jsonl"
    inside.parent.mkdir()
    inside.write_text("{}")
    monkeypatch.chdir(tmp_path)
    for source in (
        str(inside),
        "MARKER/rows.jsonl",
        "./MARKER/rows.jsonl",
        "~/MARKER/rows.jsonl",
        "MARKER/../MARKER/rows.jsonl",
    ):
        record = source_record(source, data)
        assert record is not None
        assert record["id"] == "local file rows.jsonl"
        assert record["sha"] is record["revision"] is None
    for source in (
        "/nowhere/MARKER/rows",
        "C:\\Users\\MARKER\\rows.jsonl",
        "\\\\MARKER\\share\\rows",
        "local file MARKER/rows",
    ):
        record = source_record(source, data)
        assert record is not None
        assert record["id"].startswith("local file rows")
    folder = source_record(str(inside.parent) + "/", data)
    assert folder is not None
    assert folder["id"] == "local folder MARKER"


def test_a_name_that_was_made_public_stays_as_it_is() -> None:
    for name in ("local file rows.jsonl", "local folder a b", "openai/gsm8k@main:main/train", None):
        assert public_name(public_name(name)) == public_name(name) == name


def test_a_branch_that_cannot_be_resolved_has_no_commit_and_a_commit_is_taken_as_it_is() -> None:
    data = Dataset.from_list(ROWS)
    record = source_record("openai/gsm8k@v2:main/train", data)
    assert record == {
        "id": "openai/gsm8k",
        "revision": "v2",
        "sha": None,
        "config": "main",
        "split": "train",
        "license": None,
        "fingerprint": data._fingerprint,
        "columns": None,
    }
    sha = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    pinned = source_record(f"openai/gsm8k@{sha}", data)
    assert pinned is not None
    assert pinned["sha"] == sha
    assert source_record(None, data) is None


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "rolled").mkdir(parents=True)
    (tmp_path / "runs" / ".rolledx").mkdir()
    return tmp_path


@pytest.mark.parametrize("look", [check_local, load_source])
def test_what_could_be_a_hub_id_and_is_almost_a_folder_here_is_said_to_be_both(
    runs: Path, look: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_curate.sources.dataset_commit", lambda *_: pytest.fail("the Hub was asked"))
    says = r"there is no 'runs/roled' here, and there is 'runs/rolled': did you mean that\?.*'runs/roled@main'"
    with pytest.raises(CurateError, match=says):
        look("runs/roled")


def test_a_hub_id_that_is_like_nothing_here_is_a_hub_id(runs: Path) -> None:
    for source in ("runs/gsm8k", "runs/roled@main", "runs/roled:default/train", "openai/rolled", "roled"):
        check_local(source)
    (runs / "curated").mkdir()
    says = r"curatd cannot be loaded from the Hub: .* not a file or folder here either \(did you mean 'curated'\?\)"
    with pytest.raises(CurateError, match=says):
        load_source("curatd")


def test_the_folder_of_a_run_that_is_not_there_is_told_the_nearest(runs: Path) -> None:
    with pytest.raises(CurateError, match=r"there is no folder 'roled': did you mean 'runs/rolled'\?"):
        check_run("runs/roled")
    for folder in ("runs/rolled", "runs/zzz", "nowhere/rolled"):
        check_run(folder)
