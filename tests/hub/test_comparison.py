"""Several configs in one README: each has its section, all have a comparison, and none changes another's bytes."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Scorer, pool

from hf_curate import Selection, select
from hf_curate.hub import files, others
from hf_curate.hub.card import Card, Section
from hf_curate.hub.comparison import MOST, Compared, comparison, is_comparison, same_rows
from hf_curate.hub.readme import merge_readme, with_comparison

SOURCE = "local file rows.jsonl"
BEGIN, END = "<!-- hf_curate:begin comparison v1 -->", "<!-- hf_curate:end comparison -->"


@pytest.fixture(scope="module")
def three() -> dict[str, Selection]:
    data = pool(300)
    return {
        "top-10pct": select(data, Scorer(), "10%", source=SOURCE),
        "top-30pct": select(data, Scorer(), "30%", source=SOURCE),
        "random-20pct": select(data, Scorer(), "20%", strategy="random", source=SOURCE),
    }


def section_of(text: str, config: str) -> str:
    name = f"config={config} split=train"
    found = re.search(f"<!-- hf_curate:begin {name} v1 -->.*?<!-- hf_curate:end {name} -->", text, re.DOTALL)
    assert found is not None
    return found[0]


def read(folder: Path) -> str:
    return (folder / "README.md").read_bytes().decode()


def test_each_config_saved_leaves_the_sections_of_the_others_and_human_text_as_they_are(
    three: dict[str, Selection], tmp_path: Path
) -> None:
    human = "# Mine\r\n\r\nWhy I made this.   \r\n"
    (tmp_path / "README.md").write_bytes(human.encode())
    sections: dict[str, str] = {}
    for name, picked in three.items():
        picked.save(tmp_path, name)
        text = read(tmp_path)
        assert human in text
        assert {other: section_of(text, other) for other in sections} == sections
        sections[name] = section_of(text, name)
    text = read(tmp_path)
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index("Why I made this") < text.index(BEGIN) < text.index("hf_curate:begin config=")
    three["top-10pct"].save(tmp_path, "top-10pct")
    assert read(tmp_path) == text


def test_the_table_says_how_many_rows_any_two_configs_share(three: dict[str, Selection], tmp_path: Path) -> None:
    for name, picked in three.items():
        picked.save(tmp_path, name)
    text = read(tmp_path)
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()
    rows = {name: set(picked.indices.tolist()) for name, picked in three.items()}
    for name, own in rows.items():
        [line] = [line for line in lines if line.startswith(f"| `{name}` | ") and "%" in line and "GRACE" not in line][
            -1:
        ]
        for other, theirs in rows.items():
            shared = len(own & theirs)
            assert (f" {shared} ({100 * shared / len(own):.1f} %) |" in line) or name == other
        assert f" {len(own)} |" in line
    assert "not comparable" not in text
    assert any(line.startswith("| `random-20pct` | 60 | 300 | random |") for line in lines)


def test_one_config_alone_is_not_compared(three: dict[str, Selection], tmp_path: Path) -> None:
    three["top-10pct"].save(tmp_path, "a")
    three["top-30pct"].save(tmp_path, "a", split="dev")
    assert BEGIN not in read(tmp_path)
    assert not is_comparison([Compared({"config_name": "a", "split": split}, None) for split in ("x", "y")])


def test_rows_of_different_sources_are_not_compared(three: dict[str, Selection], tmp_path: Path) -> None:
    one = three["top-10pct"].manifest
    for key, value in {"id": "x/y", "config": "z", "split": "z", "fingerprint": "0"}.items():
        other = copy.deepcopy(one)
        other["source"][key] = value
        assert not same_rows(one, other), key
    assert same_rows(one, copy.deepcopy(one))
    assert not same_rows({**one, "source": None}, {**one, "source": None})
    assert not same_rows(one, {**one, "rows": {**one["rows"], "in": 299}})
    pinned = {**one, "source": {**one["source"], "sha": "a" * 40}}
    assert same_rows(pinned, {**pinned, "source": {**pinned["source"], "fingerprint": "another run's"}})
    three["top-10pct"].save(tmp_path, "a")
    select(pool(300), Scorer(), "10%").save(tmp_path, "b")
    assert read(tmp_path).count("| not comparable |") == 2
    assert "of sources that were not recorded" in read(tmp_path)


def test_more_configs_than_can_be_read_are_listed_and_the_matrix_says_so() -> None:
    manifest = select(pool(), Scorer(), "10%").manifest
    many = [Compared({**manifest, "config_name": f"c{i:02}", "split": "train"}, np.arange(3)) for i in range(MOST + 1)]
    body = comparison(many).body
    assert f"| `c{MOST}` | 10 | 100 | GRACE |" in body
    assert f"The first {MOST} configs are shown." in body


def test_other_configs_that_cannot_be_read_hold_nothing_up(
    three: dict[str, Selection], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("top-10pct", "top-30pct"):
        three[name].save(tmp_path, name)
    (tmp_path / "top-10pct" / "train.manifest.json").write_text("{", "utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.manifest.json").write_text('{"schema": "hf_curate/manifest/9"}', "utf-8")
    with caplog.at_level(logging.INFO, logger="hf_curate"):
        three["random-20pct"].save(tmp_path, "random-20pct")
    assert "top-10pct, split train, could not be read for the comparison" in caplog.text
    text = read(tmp_path)
    compared = text[text.index(BEGIN) : text.index(END)]
    assert "`top-30pct`" in compared
    assert "`top-10pct`" not in compared
    assert len(others.in_folder(tmp_path, set())) == 2
    for shard in (tmp_path / "top-30pct").glob("*.parquet"):
        shard.write_bytes(b"PAR1")
    three["random-20pct"].save(tmp_path, "random-20pct")
    assert "| not comparable |" in read(tmp_path)


def made(config: str) -> dict[str, Any]:
    return {**select(pool(), Scorer(), "10%").manifest, "config_name": config, "split": "train"}


@pytest.fixture(scope="module")
def compared() -> Section:
    return comparison([Compared(made(name), None) for name in ("a", "b")])


def two(human: str = "") -> str:
    text: str | None = f"---\nconfigs: []\n---\n{human}" if human else None
    for name in ("a", "b"):
        text, _ = merge_readme(text, made(name), card=Card(made(name)))
    return text or ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace(BEGIN, ""), "doubled or broken"),
        (lambda text: text.replace(END, ""), "doubled or broken"),
        (lambda text: text.replace(END, f"{END}\n\n{BEGIN}\nmine\n{END}"), "doubled or broken"),
        (lambda text: re.sub(f"{BEGIN}.*{END}\n", "", text, flags=re.DOTALL), "is gone from README.md"),
    ],
    ids=["no begin", "no end", "doubled", "gone"],
)
def test_a_comparison_whose_markers_are_damaged_is_appended_and_said(
    compared: Section, damage: Any, words: str
) -> None:
    whole, _ = with_comparison(two(), compared)
    damaged = damage(whole)
    text, notes = with_comparison(damaged, compared)
    assert any(words in note for note in notes)
    assert text.startswith(damaged)
    assert text.rstrip().endswith(END)
    again, _ = with_comparison(text, compared)
    assert again == text


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


@settings(max_examples=30, deadline=None)
@given(before=st.lists(LINE, max_size=4), after=st.lists(LINE, max_size=4), newline=st.sampled_from(["\n", "\r\n"]))
def test_any_human_text_survives_a_comparison_byte_for_byte(
    compared: Section, before: list[str], after: list[str], newline: str
) -> None:
    top = newline.join(["---", "configs: []", "---", "", *before, ""])
    text, _ = merge_readme(top, made("a"), card=Card(made("a")))
    text += newline.join([*after, ""])
    once, _ = with_comparison(text, compared)
    body = text[text.index("<!-- hf_curate:begin") :]
    assert once.endswith(body)
    assert newline.join(["", *before, ""]) in once
    assert with_comparison(once, compared)[0] == once


def test_a_comparison_that_cannot_be_made_leaves_the_readme_without_it(
    three: dict[str, Selection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    three["top-10pct"].save(tmp_path, "a")

    def fail(entries: Any) -> Section:
        raise KeyError("rows")

    monkeypatch.setattr(files, "comparison", fail)
    three["top-30pct"].save(tmp_path, "b")
    assert BEGIN not in read(tmp_path)
    assert "The configs are not compared in the card: KeyError" in caplog.text
