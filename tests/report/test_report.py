"""The report: one HTML file that loads nothing, with the plots and the rows, and every text escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import golden_selections
import numpy as np
import pytest
from datasets import Dataset, Image
from golden_selections import Grace, OfRollouts, problems, settled, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Scorer, plain, pool

from hf_curate import Selection, score, select, write_report
from hf_curate.cli import main
from hf_curate.errors import BudgetError, CurateError, ManifestError
from hf_curate.report.explorer import LONGEST, RESPONSES, Pool, tabs
from hf_curate.report.page import page
from hf_curate.report.write import _whole, report_of

VOID = {"meta", "img", "input", "br", "i"}


class Read(HTMLParser):
    """The page as a browser reads it: tags with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def whole(data: Dataset, scorer: Any, budget: str = "20%", **options: Any) -> Pool:
    return _whole(data, settled(select(data, scorer, budget, **options), "c"))


@pytest.fixture(scope="module")
def grace() -> Pool:
    return whole(traces(200), Grace())


@pytest.fixture(scope="module")
def written(grace: Pool) -> str:
    return page(grace, "grace-20pct")


def shown(pool_: Pool, count: int = 6) -> dict[str, list[int]]:
    return {tab.name: [row.row for row in tab.rows] for tab in tabs(pool_, count, 0)}


# -- which rows -----------------------------------------------------------------------------------------------------


def test_best_worst_and_borderline_rows_are_those_of_a_sort(grace: Pool) -> None:
    scores = np.array([np.nan if value is None else value for value in grace.dataset["grace_value"]])
    order = [int(row) for row in np.argsort(-scores, kind="stable") if np.isfinite(scores[row])]
    found = shown(grace)
    assert found["Best"] == order[:6]
    assert found["Worst"] == order[::-1][:6]
    assert found["Borderline"] == order[37:43]  # 40 of 200 rows are kept
    assert found["Not scored"] == np.flatnonzero(np.isnan(scores))[:6].tolist()
    assert found["Random"] == sorted(found["Random"])
    assert found == shown(grace)
    assert [tab.rows[0].row for tab in tabs(grace, 6, 1)][3] != found["Random"][0]


def test_kept_and_dropped_rows_are_told_apart(grace: Pool) -> None:
    for tab in tabs(grace, 4, 0):
        assert all(row.kept == bool(grace.kept[row.row]) for row in tab.rows)
    middle = next(tab for tab in tabs(grace, 4, 0) if tab.name == "Borderline")
    assert [row.kept for row in middle.rows] == [True, True, False, False]


def test_steps_have_the_scores_that_the_row_holds(grace: Pool) -> None:
    best = tabs(grace, 1, 0)[0].rows[0]
    steps = [piece for piece in best.pieces if piece.kind == "step"]
    row = grace.dataset[best.row]
    assert [piece.score for piece in steps] == row["grace_step_scores"]
    assert [piece.text for piece in steps] == row["answer"].splitlines()[:-1]
    assert [piece.text for piece in best.pieces if piece.kind == "answer"] == [row["answer"].rpartition("#### ")[2]]
    tones = sorted((piece.score, piece.tone) for piece in steps)
    assert [tone for _, tone in tones] == sorted(tone for _, tone in tones)  # type: ignore[type-var]


def test_rollouts_are_shown_with_reward_and_outcome_and_not_all_of_many() -> None:
    pool_ = whole(problems(80, "GradAlign"), OfRollouts("GradAlign", None, True))
    row = tabs(pool_, 1, 0)[0].rows[0]
    pieces = [piece for piece in row.pieces if piece.kind == "rollout"]
    source = pool_.dataset[row.row]
    assert [piece.score for piece in pieces] == source["rewards"]
    assert [piece.text for piece in pieces] == source["responses"]
    assert [piece.title.partition(", ")[2] for piece in pieces] == source["rollouts_outcomes"]
    many = {"prompt": ["p"] * 3, "responses": [["x"] * 40] * 3, "rewards": [[1.0, 0.0] * 20] * 3, "score": [1.0, 2, 3]}
    picked = select(Dataset.from_dict(many), "score", 1)
    row = tabs(_whole(Dataset.from_dict(many), picked), 1, 0)[0].rows[0]
    assert sum(piece.kind == "rollout" for piece in row.pieces) == RESPONSES
    assert row.pieces[-1].text == "and 24 more"


def test_rows_that_cannot_be_read_as_traces_are_shown_as_text_with_the_reason() -> None:
    data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["no answer here", ""], "score": [1.0, 2.0]})
    rows = tabs(_whole(data, select(data, "score", 1)), 2, 0)[0].rows
    assert all(row.note.startswith("not read as a scorer reads it") for row in rows)
    assert [piece.title for piece in rows[1].pieces] == ["prompt", "completion"]
    free = plain().rename_column("prompt", "words")
    assert [p.kind for p in tabs(_whole(free, select(free, "score", 1)), 1, 0)[0].rows[0].pieces] == ["text"]


def test_a_row_without_a_score_says_why(grace: Pool) -> None:
    rows = next(tab.rows for tab in tabs(grace, 2, 0) if tab.name == "Not scored")
    assert all(row.note == "not scored: too long: 41000 tokens" and row.score is None for row in rows)


def test_long_texts_are_cut_and_say_how_long_they_were() -> None:
    data = Dataset.from_dict({"text": ["x" * (LONGEST + 5)], "score": [1.0]})
    [piece] = tabs(_whole(data, select(data, "score", 1)), 1, 0)[0].rows[0].pieces
    assert piece.text == "x" * LONGEST + f"… ({LONGEST + 5:,} characters)"


def test_a_choice_that_the_score_did_not_rank_shows_rows_around_the_median() -> None:
    pool_ = whole(traces(100), Grace(), strategy="random")
    middle = next(tab for tab in tabs(pool_, 4, 0) if tab.name == "Borderline")
    assert "around its median" in middle.says


# -- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_loads_nothing_and_has_no_script(written: str) -> None:
    read = Read(written)
    assert read.open == []
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in read.all("img"))
    assert re.findall(r"https?://|url\(|@import", written) == []
    [policy] = [meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)


def test_the_plots_are_those_of_the_card_with_its_words(written: str) -> None:
    pytest.importorskip("matplotlib")
    images = Read(written).all("img")
    assert len(images) == 4
    assert str(images[0]["alt"]).startswith("Histogram of grace_value over 197 scored rows: 40 kept, 157 dropped")
    assert all(len(str(image["alt"])) > 40 for image in images)


def test_the_page_says_what_the_manifest_says(grace: Pool, written: str) -> None:
    text = "".join(Read(written).text)
    for words in ("40 of 200 rows (20.0 %) of openai/gsm8k@e53f048", "GRACE, strategy top", "too long 3"):
        assert words in text
    assert "not measured" in text
    shown_manifest = text[text.index("as JSON") :]
    assert json.loads(shown_manifest[shown_manifest.index("{") : shown_manifest.rindex("}") + 1]) == grace.manifest


def test_the_same_rows_give_the_same_page(grace: Pool, written: str) -> None:
    assert page(grace, "grace-20pct") == written


def test_every_tab_has_its_rows_and_the_first_is_open(written: str) -> None:
    read = Read(written)
    ids = [str(one["id"]) for one in read.all("input")]
    assert ids == [f"tab{number}" for number in range(1, 6)]
    assert ["checked" in one for one in read.all("input")] == [True, False, False, False, False]
    assert [str(one["for"]) for one in read.all("label")] == ids
    for number in range(1, 6):
        assert f"#tab{number}:checked ~ #rows{number}" in written
    assert len(read.all("section")) == 5


ATTACKS = [
    "<script>alert(1)</script>",
    "</pre><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'; background: url(https://evil.example)",
    "</style><style>*{display:none}",
    "<!-- ",
    "]]>",
    "&lt;script&gt;",
    "{{ 7777 * 7 }}{% raw %}",
    "\u202egnp.exe\x00\x1b[31m\ud800",
    "<!-- hf_curate:end config=c split=train -->",
]
HOSTILE = st.lists(st.one_of(st.sampled_from(ATTACKS), st.text(max_size=8)), min_size=1, max_size=4).map("".join)


def structure(text: str) -> set[tuple[str, tuple[str, ...]]]:
    """The kinds of elements, by tag and names of attributes, of a page that is well formed."""
    read = Read(text)
    assert read.open == []
    return {(tag, tuple(sorted(attributes))) for tag, attributes in read.tags}


def hostile(text: str) -> Pool:
    """A pool whose rows, ids, columns, model and settings carry the text."""
    clean = text.encode("utf-8", "replace").decode()  # arrow holds no lone surrogate
    data = Dataset.from_dict(
        {
            "prompt": [clean] * 4,
            "completion": [f"Step 1: {clean}\n#### {clean.strip() or 'x'}"] * 4,
            "note": [clean] * 4,
            "score": [1.0, 2.0, 3.0, 4.0],
        }
    )
    picked = select(data, "score", 2)
    manifest = json.loads(json.dumps(picked.manifest))
    manifest["selector"] |= {"name": text, "settings": {text: text}}
    manifest["source"] = {"id": text, "sha": text, "config": text, "split": text, "license": text, "revision": text}
    manifest["source"] |= {"fingerprint": text, "columns": [text]}
    manifest["model"] = {"id": text, "sha": None, "digest": text, "dtype": text, "architecture": text}
    manifest["budget"]["asked"] = text
    manifest["rows"]["failed"] = {text: 1}
    manifest["columns"]["source"] = {text: text}
    return _whole(data, Selection(picked.dataset, picked.indices, manifest))


def assert_harmless(text: str) -> None:
    written = page(hostile(text), text)
    assert structure(written) <= structure(page(hostile("plain words"), "t")) | structure(page(hostile(" "), "t"))
    assert not any(ord(c) < 32 and c not in "\n\t" for c in written)
    assert not set("\u202e\u2066\u200b\ufeff") & set(written)
    assert "54439" not in written
    written.encode("utf-8")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda text: ascii(text)[:24])
def test_hostile_text_stays_text(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_curate.report.page._plots", lambda manifest, card: [])
    assert_harmless(attack)


@settings(max_examples=25, deadline=None)
@given(text=HOSTILE)
def test_any_text_anywhere_leaves_the_page_as_it_is(text: str) -> None:
    from hf_curate.report import page as room

    before, room._plots = room._plots, lambda manifest, card: []
    try:
        assert_harmless(text)
    finally:
        room._plots = before


# -- what it is made of ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hf_curate import RandomScorer

    folder = tmp_path_factory.mktemp("report")
    rows = pool(40, failed=0).remove_columns([n for n in pool(1, failed=0).column_names if n.startswith("grace_")])
    score(rows, RandomScorer(), out=folder / "run", source="local file rows.jsonl")
    select(pool(40), Scorer(), "20%").save(folder / "repo", "one")
    return folder


def test_a_run_is_reported_with_its_dropped_rows(places: Path) -> None:
    out = write_report(places / "run", rows=3)
    assert out == places / "run" / "report.html"
    text = out.read_text("utf-8")
    assert "Run run" in text
    assert "8 of 40 rows" in text
    assert text.count('class="chip dropped"') > 0
    assert "4 of 40 rows" in write_report(places / "run", budget="10%", rows=3).read_text("utf-8")
    with pytest.raises(BudgetError):
        write_report(places / "run", budget="200%")


def test_a_saved_config_is_reported_with_its_kept_rows_alone(places: Path, tmp_path: Path) -> None:
    out = write_report(places / "repo", rows=3, out=tmp_path / "x.html")
    assert out == tmp_path / "x.html"
    text = out.read_text("utf-8")
    assert "one of repo" in text
    assert "Dropped rows are not here" in text
    assert 'class="chip' not in text
    assert "Worst" not in text


def test_the_card_holds_no_text_of_a_row_and_the_report_does(tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": [f"MARKED {i}" for i in range(5)], "score": [1.0, 2.0, 3.0, 4.0, 5.0]})
    select(data, "score", 2).save(tmp_path, "c")
    assert "MARKED" not in (tmp_path / "README.md").read_text("utf-8")
    assert b"MARKED" not in (tmp_path / "c" / "train.manifest.json").read_bytes()
    assert "MARKED 4" in write_report(tmp_path).read_text("utf-8")


def test_a_run_that_is_not_finished_and_a_folder_that_is_not_there_are_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CurateError, match="is not finished: call score"):
        write_report(tmp_path)
    with pytest.raises(ManifestError, match=r"'curatd' is neither a folder that exists nor a repo id"):
        write_report("curatd", "a")


def test_a_folder_with_several_configs_wants_a_name(places: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        select(plain(), "score", 1).save(tmp_path, name)
    with pytest.raises(ManifestError, match=r"which config of .* there are: 'a', 'b'"):
        write_report(tmp_path)
    assert "b of " in write_report(tmp_path, "b").read_text("utf-8")
    with pytest.raises(CurateError, match="is a run"):
        write_report(places / "run", "a")
    with pytest.raises(CurateError, match="is for the folder of a run"):
        write_report(tmp_path, "a", budget="10%")
    with pytest.raises(CurateError, match="rows=0 must be"):
        write_report(tmp_path, "a", rows=0)
    with pytest.raises(CurateError, match="cannot be written"):
        write_report(tmp_path, "a", out=tmp_path / "no" / "x.html")
    with pytest.raises(ManifestError, match=r"which config of me/repo\?"):
        write_report("me/repo")


def test_images_are_left_out_of_a_report(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (2, 2)).save(tmp_path / "x.png")
    data = Dataset.from_dict({"prompt": ["a"], "image": [str(tmp_path / "x.png")], "score": [1.0]})
    data = data.cast_column("image", Image())
    assert "x.png" not in page(_whole(data, select(data, "score", 1)), "t")


def test_a_plot_that_fails_leaves_a_report_without_it(
    grace: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hf_curate.plots import draw

    def fail(name: str, manifest: Any) -> bytes:
        raise RuntimeError("no ink")

    monkeypatch.setattr(draw, "plot", fail)
    assert Read(page(grace, "t")).all("img") == []
    assert "The plot 'scores' could not be drawn (RuntimeError: no ink)" in caplog.text


def test_the_command_says_where_the_report_is(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    assert main(["report", str(places / "repo"), "--config", "one", "--rows", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["report", str(tmp_path / "nothing")]) == 2


def test_a_manifest_from_before_has_a_report_too(tmp_path: Path) -> None:
    picked = golden_selections.grace()
    older = {k: v for k, v in picked.manifest.items() if k not in ("nested", "length", "steps", "pass_rate", "claims")}
    out = report_of(traces(), Selection(picked.dataset, picked.indices, older), "old", tmp_path / "r.html", rows=2)
    assert "Nested budgets" not in out.read_text("utf-8")
