"""README.md: ours is written, everybody else's survives byte for byte, and the result loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate.errors import ConfigNameError, CurateError
from hf_curate.hub.card import Card
from hf_curate.hub.manifest import data_files
from hf_curate.hub.readme import merge_readme

MANIFEST = json.loads((Path(__file__).parents[1] / "goldens" / "manifest_grace.json").read_text(encoding="utf-8"))
HUMAN = "---\npretty_name: X # mine\nlicense: mit\n---\n\n# Mine\n\nMy text.\n"


def made(config: str = "grace-20pct", split: str = "train", **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(MANIFEST) | {"config_name": config, "split": split} | changes


def merge(
    existing: str | None, manifest: dict[str, Any] | None = None, title: str | None = None
) -> tuple[str, list[str]]:
    manifest = manifest or made()
    return merge_readme(existing, manifest, card=Card(manifest), title=title)


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.lstrip("\ufeff").split("---")[1])


def sections(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("<!-- hf_curate:begin")]


def is_kept_in_order(lines: list[str], text: str) -> bool:
    """Every line, with its line end, occurs in the text in the same order."""
    rest = iter(text.splitlines(keepends=True))
    return all(line in rest for line in lines)


def test_a_new_readme_declares_config_tags_size_source_licence_and_our_key() -> None:
    text, notes = merge(None, title="My <traces>")
    data = front(text)
    assert notes == []
    assert data["configs"] == [
        {"config_name": "grace-20pct", "data_files": [{"split": "train", "path": data_files(made())}]}
    ]
    assert data["tags"] == ["hf_curate", "reasoning", "data-selection"]
    assert data["size_categories"] == ["1K<n<10K"]
    assert data["source_datasets"] == ["openai/gsm8k"]
    assert data["license"] == "mit"
    entry = {"selector": "GRACE", "model": "Qwen/Qwen3-0.6B@c1899de", "budget": "20 %"}
    assert data["hf_curate"] == {"schema": "hf_curate/manifest/1", "configs": {"grace-20pct": {"train": entry}}}
    assert "\n# My &#60;traces&#62;\n" in text


def test_merging_the_same_manifest_again_changes_nothing() -> None:
    for existing in (None, HUMAN, HUMAN.replace("\n", "\r\n")):
        once, _ = merge(existing)
        assert merge(once) == (once, [])


def test_human_text_front_matter_comments_and_order_survive_byte_for_byte() -> None:
    text, notes = merge(HUMAN)
    assert text.startswith("---\npretty_name: X # mine\nlicense: mit\n")
    assert "---\n\n# Mine\n\nMy text.\n\n<!-- hf_curate:begin config=grace-20pct split=train v1 -->\n" in text
    assert len(notes) == 1
    assert "declared no configs" in notes[0]


def test_a_second_config_and_a_second_split_are_added_and_the_first_stays() -> None:
    first, _ = merge(None)
    second, notes = merge(first, made("grace-5pct"))
    third, more = merge(second, made("grace-20pct", "test"))
    assert notes == more == []
    files = [{"split": s, "path": data_files(made("grace-20pct", s))} for s in ("train", "test")]
    assert front(third)["configs"][0] == {"config_name": "grace-20pct", "data_files": files}
    assert [c["config_name"] for c in front(third)["configs"]] == ["grace-20pct", "grace-5pct"]
    assert set(front(third)["hf_curate"]["configs"]["grace-20pct"]) == {"train", "test"}
    assert len(sections(third)) == 3
    assert is_kept_in_order(first.splitlines(keepends=True), second)
    assert is_kept_in_order(second.splitlines(keepends=True), third)


def test_a_changed_manifest_replaces_its_own_section_and_entry_only() -> None:
    text, _ = merge(merge(HUMAN)[0], made("other"))
    text += "\nA person's last words.\n"
    manifest = made()
    manifest["budget"]["asked"] = "10%"
    manifest["model"] = None
    again, notes = merge(text, manifest)
    assert notes == []
    assert len(sections(again)) == 2
    assert front(again)["hf_curate"]["configs"]["grace-20pct"]["train"] == {
        "selector": "GRACE", "model": None, "budget": "10 %"
    }  # fmt: skip
    assert "budget 10 %" in again
    assert again.count("budget 20 %") == 1
    assert again.endswith("\nA person's last words.\n")


@pytest.mark.parametrize(
    "configs",
    [
        "configs: []\n",
        "configs:\n",
        "configs: null # none yet\n",
        "configs: [{config_name: a, data_files: a.csv}] # flow\n",
        "configs: [\n  {config_name: a, data_files: a.csv}, # one\n]\n",
        "configs:\n- config_name: a\n  data_files:\n  - split: train\n    path:\n    - a.csv\n# after\nz: 1\n",
        "configs:\n    - config_name: a\n      data_files: |\n        a.csv\n\n    # trailing\nz: 1\n",
        "configs:\n- config_name: grace-20pct\n  default: true\n",
        "configs:\n- config_name: grace-20pct\n  data_files: # f\n  - {split: test, path: t.csv}\n  default: true\n",
        "configs:\n- {config_name: grace-20pct, data_files: [{split: test, path: t.csv}]}\n",
        "'configs':\n- config_name: b\n",
        "hf_curate: {schema: old, configs: {b: {train: {selector: X}}}}\n",
        "hf_curate:\n",
        "tags:\n- a\n- hf_curate\nsize_categories: [n<1K]\nsource_datasets: []\n",
        "dataset_info:\n- config_name: a\n  features:\n  - name: x\n    dtype: string\n",
        "x: &anchor [1, 2]\ny: *anchor\nzz: !!str 5\n",
        "",
        "# only a comment\n",
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_front_matter_in_any_style_is_added_to_and_nothing_is_lost(configs: str, newline: str) -> None:
    existing = f"---\na: 1\n{configs}b: [x]\n---\n# T\n".replace("\n", newline)
    text, _ = merge(existing)
    data, old = front(text), front(existing)
    ours = next(c for c in data["configs"] if c["config_name"] == "grace-20pct")
    assert {"split": "train", "path": data_files(made())} in ours["data_files"]
    for key, value in old.items():
        if key not in ("configs", "hf_curate", "tags", "size_categories", "source_datasets"):
            assert data[key] == value
    for config in old.get("configs") or []:
        if config["config_name"] != "grace-20pct":
            assert config in data["configs"]
        else:
            assert set(config) <= set(ours)
            assert all(f in ours["data_files"] for f in config.get("data_files") or [])
    if newline == "\r\n":
        assert "\n" not in text.replace("\r\n", "")
    if "[" not in configs and "{" not in configs and "null" not in configs:
        assert is_kept_in_order(existing.splitlines(keepends=True), text)
    assert merge(text) == (text, [])


def test_a_readme_without_front_matter_gets_one_above_it() -> None:
    text, _ = merge("# Mine\n\nMy text without line end")
    assert "---\n\n# Mine\n\nMy text without line end\n\n<!-- hf_curate:begin" in text
    assert front(text)["configs"]


def test_an_unclosed_front_matter_is_kept_as_text_and_said() -> None:
    existing = "---\npretty_name: X\n\n# Mine\n"
    text, notes = merge(existing)
    assert existing in text
    assert "never closed" in notes[0]


@pytest.mark.parametrize(
    "yaml_text", ["a: [1", "a: b: c", "- a list", "just words", "d: 2020-13-45", "a: \x07", "a: !!python/none 1"]
)
def test_front_matter_that_cannot_be_read_is_refused_and_nothing_is_lost(yaml_text: str) -> None:
    with pytest.raises(CurateError, match=r"front matter of README.md .* Nothing was changed"):
        merge(f"---\n{yaml_text}\n---\n# Mine\n")


@pytest.mark.parametrize(
    "yaml_text",
    [
        "base: &c\n- config_name: a\nconfigs: *c",
        "configs: words",
        "configs:\n- data_files: x.csv",
        "1: number as key",
        "configs:\n- config_name: grace-20pct\n  data_files: mine.csv",
    ],
)
def test_front_matter_that_we_cannot_edit_or_that_would_not_load_is_refused(yaml_text: str) -> None:
    with pytest.raises(CurateError, match="Nothing was changed"):
        merge(f"---\n{yaml_text}\n---\n# Mine\n")


def test_a_byte_order_mark_stays_where_it_is() -> None:
    text, _ = merge("\ufeff" + HUMAN)
    assert text.startswith("\ufeff---\npretty_name")


def test_a_split_that_pointed_elsewhere_is_repointed_and_said() -> None:
    text, notes = merge(
        "---\nconfigs:\n- config_name: grace-20pct\n  data_files:\n  - split: train\n    path: old.csv # here\n---\n"
    )
    assert f"    path: {data_files(made())} # here\n" in text
    assert notes == [f"Split 'train' of 'grace-20pct' was read from 'old.csv', and now from {data_files(made())!r}."]


def test_a_licence_that_is_there_is_never_changed_and_an_unknown_one_never_invented() -> None:
    text, notes = merge("---\nlicense: cc0-1.0\nconfigs: []\n---\n")
    assert front(text)["license"] == "cc0-1.0"
    assert "license 'cc0-1.0', the source says 'mit'" in notes[0]
    manifest = made()
    manifest["source"]["license"] = None
    assert "license" not in front(merge(None, manifest)[0])
    manifest["source"]["license"] = "My own: terms"
    text, notes = merge(None, manifest)
    assert "license" not in front(text)
    assert "not a Hub licence id" in notes[0]


@pytest.mark.parametrize(
    ("source", "sha", "known"),
    [
        ("openai/gsm8k", None, True),
        ("gsm8k", "a" * 40, True),
        ("traces", None, False),
        ("a/b/c", "a" * 40, False),
        (None, None, False),
    ],
)
def test_only_hub_ids_become_source_datasets(source: str | None, sha: str | None, known: bool) -> None:
    manifest = made()
    manifest["source"] |= {"id": source, "sha": sha}
    assert front(merge(None, manifest)[0]).get("source_datasets") == ([source] if known else None)


def test_numpy_scalars_and_awkward_names_reach_yaml_as_plain_text() -> None:
    manifest = made("1e3")
    manifest["rows"]["kept"] = np.int64(12)
    manifest["budget"]["asked"] = np.str_("20%")
    text, _ = merge(None, manifest)
    assert "!!" not in text
    assert 'config_name: "1e3"' in text
    assert front(text)["size_categories"] == ["n<1K"]


BEGIN, END = (
    "<!-- hf_curate:begin config=grace-20pct split=train v1 -->",
    "<!-- hf_curate:end config=grace-20pct split=train -->",
)


@pytest.mark.parametrize(
    "body",
    [
        f"{BEGIN}\nA\n{END}\nhuman\n{BEGIN}\nB\n{END}\n",
        f"{BEGIN}\nhuman without end\n",
        f"human\n{END}\n",
        f"{END}\nhuman\n{BEGIN}\n",
        f"{BEGIN}\n{BEGIN.replace('20pct', '5pct')}\nnested\n{END}\n",
    ],
)
def test_with_doubled_or_broken_markers_the_card_is_written_anew_once_and_said(body: str) -> None:
    existing = f"---\nconfigs: []\n---\n{body}"
    once, notes = merge(existing)
    assert body in once
    assert "doubled or broken" in notes[0]
    twice, notes = merge(once)
    assert twice == once  # it does not grow with every push
    assert "doubled or broken" in notes[0]


def test_markers_of_an_older_version_are_replaced() -> None:
    text, notes = merge(f"---\nconfigs: []\n---\nx\n{BEGIN.replace('v1', 'v0')}\nold\n{END}\ny\n")
    assert notes == []
    assert "\nold\n" not in text
    assert text.index("\nx\n") < text.index(BEGIN) < text.index("\ny\n")


def test_a_section_edited_to_hold_a_marker_is_refused() -> None:
    card = Card(made())
    card["Limits"].body += f"\n{END}"
    with pytest.raises(CurateError, match="marker line"):
        merge_readme(None, made(), card=card)


@pytest.mark.parametrize("config", ["a/b", "x*", "[x]", "a\nb", "-x", "", "data", "n" * 97, "../x", "a b"])
def test_config_names_that_could_not_be_loaded_back_are_refused(config: str) -> None:
    with pytest.raises(ConfigNameError, match="config name"):
        merge(None, made(config))


@pytest.mark.parametrize("split", ["tr-ain", "", "a/b", "a\n", "a..b", "*"])
def test_split_names_that_could_not_be_loaded_back_are_refused(split: str) -> None:
    with pytest.raises(ConfigNameError, match="split name"):
        merge(None, made(split=split))


def test_a_dataset_info_of_the_same_config_is_left_and_said() -> None:
    text, notes = merge("---\nconfigs: []\ndataset_info:\n- config_name: grace-20pct\n  splits: []\n---\n")
    assert "dataset_info:\n- config_name: grace-20pct\n  splits: []\n" in text
    assert "dataset_info" in notes[0]


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


@settings(max_examples=40, deadline=None)
@given(before=st.lists(LINE, max_size=5), after=st.lists(LINE, max_size=5), newline=st.sampled_from(["\n", "\r\n"]))
def test_any_human_text_survives_two_pushes_byte_for_byte(before: list[str], after: list[str], newline: str) -> None:
    top = newline.join(["---", "configs: []", "---", "", *before, ""])
    once, _ = merge(top)
    body = newline.join(["", *before, ""])
    assert body in once
    twice, _ = merge(once + newline.join([*after, ""]), made("other"))
    assert body in twice
    assert newline.join([END, *after, ""]) in twice
