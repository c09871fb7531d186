"""Names that can be loaded back, and manifests read with suspicion."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_curate.errors import ConfigNameError, ManifestError
from hf_curate.hub.manifest import check_names, differences, manifest_bytes, read_manifest, versions

GOLDEN = Path(__file__).parents[1] / "goldens" / "manifest_grace.json"
BAD_CONFIGS = [
    "a/b",
    "x*",
    "a\nb",
    "",
    "a" * 97,
    "a" * 300,
    "data",
    "Data",
    "[x]",
    "../x",
    "..",
    ".",
    ".x",
    "-x",
    "_x",
]
BAD_CONFIGS += [
    "README.md",
    "readme.MD",
    "a b",
    " a",
    "a\n",
    "a\\b",
    "a:b",
    "a?",
    "a{b,c}",
    "é",
    "a\u202eb",
    "a\x00",
    "!",
]
BAD_SPLITS = [
    "a-b",
    "",
    "x/y",
    "train\n",
    "\ntrain",
    "a b",
    "a.",
    ".a",
    "a..b",
    "é",
    "[0]",
    "train*",
    "a" * 97,
    "train[:5]",
    "all",
    "All",
    "ALL",
]
ODD: list[Any] = [None, 3, b"a", ["a"], True]


@pytest.mark.parametrize("name", [*BAD_CONFIGS, *ODD], ids=lambda name: ascii(name)[:20])
def test_a_config_name_that_cannot_be_loaded_back_is_refused(name: Any) -> None:
    with pytest.raises(ConfigNameError, match="Try 'grace-20pct'") as caught:
        check_names(name, "train")
    assert len(str(caught.value)) < 320
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [*BAD_SPLITS, *ODD], ids=lambda name: ascii(name)[:20])
def test_a_split_name_that_cannot_be_loaded_back_is_refused(name: Any) -> None:
    with pytest.raises(ConfigNameError, match="Try 'train'") as caught:
        check_names("grace", name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "grace-20pct", "0", "A.b_c-D", "a" * 96, "null", "1e5", "a..b", "a."])
def test_plain_names_are_taken(name: str) -> None:
    check_names(name, "train")
    check_names("c", re.sub(r"\W+", "_", name))


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text("utf-8"))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "train.manifest.json"
    path.write_bytes(manifest_bytes(golden()))
    assert read_manifest(path) == golden()
    assert manifest_bytes(golden()) == manifest_bytes(read_manifest(path))


def test_a_manifest_with_nan_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        manifest_bytes({"schema": float("nan")})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not json", "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"[]", "has the schema None"),
        (b"null", "has the schema None"),
        (b'{"schema": "hf_curate/manifest/3"}', "'hf_curate/manifest/3'; this version of hf_curate reads"),
        (b'{"schema": {"a": 1}}', "has the schema {'a': 1}"),
        (b'{"schema": "' + b"x" * 10**5 + b'"}', "has the schema 'xxx"),
        (b'{"schema": "hf_curate/manifest/1"}', "rows.in"),
    ],
    ids=["text", "empty", "utf16", "deep", "digits", "list", "null", "newer", "dict", "long", "bare"],
)
def test_what_is_no_manifest_of_ours_is_refused_with_what_was_found(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "train.manifest.json"
    path.write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_manifest_is_an_error_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="No such file") as caught:
        read_manifest(tmp_path / "train.manifest.json")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["rows.in", "rows.kept", "columns.source", "digests.rows", "selector.name", "budget.asked"]
)
@pytest.mark.parametrize("value", [None, [], "\x1b[31m", 1.5, True, float("inf"), {"a": {}}], ids=repr)
def test_a_hostile_value_where_loading_relies_on_a_type_is_refused(tmp_path: Path, place: str, value: Any) -> None:
    manifest = golden()
    first, second = place.split(".")
    if type(value) is type(manifest[first][second]):
        return  # this type belongs there
    for change in ({second: value}, None):
        manifest[first] = {**golden()[first], **change} if change else value
        path = tmp_path / "m.json"
        path.write_text(json.dumps(manifest), "utf-8")
        with pytest.raises(ManifestError) as caught:
            read_manifest(path)
        assert place.partition(".")[0] in str(caught.value)
        assert str(caught.value).isprintable()


def test_data_that_lacks_columns_or_rows_is_told_apart_from_other_content() -> None:
    manifest = {
        "rows": {"kept": 2},
        "columns": {"source": {"a": "int64"}},
        "digests": {"source_row": "sha256:0", "rows": "sha256:0"},
    }
    assert differences(manifest, Dataset.from_dict({"a": [1]})) == ["the manifest says 2 rows, the data has 1"]
    lacking = differences(manifest, Dataset.from_dict({"a": [1, 2]}))
    assert lacking == ["the manifest lists the columns source_row, which the data lacks"]
    for rows in ([0, 1], ["x", "y"], [0.5, 1.5], [None, 1]):
        found = differences(manifest, Dataset.from_dict({"a": [1, 2], "source_row": rows}))
        assert found == [
            "the source rows are not those of the manifest",
            "the content of the source columns is not that of the manifest",
        ]


def test_versions_name_what_the_numbers_depend_on() -> None:
    assert set(versions()) <= {"hf_curate", "torch", "transformers", "datasets"}
    assert all(isinstance(text, str) for text in versions().values())
