"""Attack: a manifest whose texts try Markdown, HTML, YAML, Jinja, our own markers, bidi and control characters.

The card has to stay the card: our headings and links, tables with their columns, fences that hold, YAML that parses.
"""

from __future__ import annotations

import copy
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import golden_selections
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_curate.hub.card import Card
from hf_curate.hub.comparison import Compared, comparison
from hf_curate.hub.evidence import claims
from hf_curate.hub.files import Staged, full_card
from hf_curate.hub.markdown import code, escape, fence, literal
from hf_curate.hub.readme import merge_readme, with_comparison

OLD = json.loads((Path(__file__).parents[1] / "goldens" / "manifest_grace.json").read_text(encoding="utf-8"))
NEW = golden_selections.learnalign().manifest | {"config_name": "grace-20pct"}
MANIFEST = {**copy.deepcopy(NEW), **{key: OLD[key] for key in ("selector", "versions", "command", "citations")}}
MANIFEST["steps"] = golden_selections.grace().manifest["steps"]
MANIFEST["training"] = {"steps": 80, "accuracy": {"before": 0.2, "after": 0.3}}
MANIFEST["claims"] = claims(MANIFEST) | {"training": MANIFEST["training"]}
PLOTS = {name: f"grace-20pct/train.{name}.png" for name in ("scores", "steps", "length", "pass_rate", "nested")}
END = "<!-- hf_curate:end config=grace-20pct split=train -->"

ATTACKS = [
    *("# heading", "\n\n# heading\n\n", "\r# heading", "\u2028# heading", "x\n===\n", "- item", "> quote", "1. one"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</code><script>", "<!-- comment", "-->"),
    *(
        "&lt;script&gt;",
        "[click](https://evil.example)",
        "![x](https://evil.example/x.png)",
        "](https://evil.example)",
    ),
    *("[a]: https://evil.example", "https://evil.example", "www.evil.example", "<https://evil.example>"),
    *("a | b | c", "\\|", "`|`", "|---|---|", "\\", "\\\\|"),
    *("```\n# out\n```", "````", "`" * 40, "~~~", "`a", "``", "` `"),
    *("{{ 7 * 7 }}", "{% raw %}", "{{ m.__class__.__mro__ }}", "{# #}"),
    *("---\nlicense: evil\n---", "x: [", "!!python/object:os.system", "'\"", "key: value #", "\t\ttab", "..."),
    *(END, f"\n{END}\n", "\n<!-- hf_curate:begin config=grace-20pct split=train v1 -->\n"),
    *("\u202egnp.exe", "\u2066x\u2069", "a\x00b", "\x1b[31m", "\x07", "\ud800", "\ufeff", "\u200b", "\ufffe", "\x85"),
    *(
        "\U000e0041",
        "$$x$$",
        "\\(x\\)",
        "*bold*",
        "__bold__",
        "_it_",
        "~~gone~~",
        "",
        " ",
        "  a  ",
        "a" * 100_000,
        "سلام",
        "列",
    ),
]
SHORT = [text for text in ATTACKS if len(text) < 1000]


def attacked(text: str, where: str = "everywhere") -> dict[str, Any]:
    """The golden manifest with a hostile text in each place that others can write to, or in one of them."""
    m = copy.deepcopy(MANIFEST)
    source = dict.fromkeys(("id", "revision", "config", "split", "fingerprint", "license", "sha"), text)
    chosen = dict.fromkeys(("name", "class", "identity", "column", "strategy"), text)
    deep = {text: text, "list": [text, {text: text}], "deep": {text: {text: text}}}
    weights = {"id": text, "sha": None, "digest": text, "dtype": text, "architecture": text}
    contract = {"kind": text, "name": text, "version": text, "failure_surface": text, "columns": [text]}
    contract |= {"options": {text: text, "gold": text}, "packages": {text: text}}
    outcomes = {"all": {text: 3, "right": 1}, "kept": {text: 1, "right": 1}}
    changes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "source": (m["source"], source | {"columns": [text]}),
        "failed": (m["rows"], {"failed": {text: 5, f"{text}2": 3}}),
        "selector": (m["selector"], chosen | {"settings": deep}),
        "audit": (m["selector"]["audit"], {"parameters": text, "proxy": text, "spearman": {text: 0.5}}),
        "model": (m["model"], weights | {"warm_up": {text: text, "x": [text]}}),
        "budget": (m["budget"], {"asked": text, "group": text}),
        "confounds": (m["confounds"], {text: 0.9}),
        "baselines": (m["baselines"], {text: {"rows": 1, "shared": 1}}),
        "columns": (m["columns"], {"source": {text: text}, "scores": {text: text}, "added": {text: text}}),
        "versions": (
            m,
            {"versions": {text: text}, "digests": {text: text, "rows": text}, "citations": ["grace", text]},
        ),
        "command": (m, {"command": text}),
        "verification": (m["verification"], {"policy": weights, "sampling": {text: text}, "outcomes": outcomes}),
        "contract": (m["verification"]["verifier"], contract),
        "columns_of_settings": (m["selector"]["settings"], {"columns": {"prompt": text, text: text}}),
        "nested": (m["nested"]["budgets"][0], {"budget": text, "threshold": text}),
        "length": (m["length"], {"of": text}),
        "strata": (m, {"strata": {"column": text, "groups": 3, "kept": 2}}),
        "training": (m, {"training": {text: text, "deep": {text: [text]}}}),
    }
    for place, (part, change) in changes.items():
        if where in ("everywhere", place):
            part.update(change)
    return {**m, "claims": claims(m)}


PLACES = [
    "everywhere",
    "source",
    "failed",
    "selector",
    "audit",
    "model",
    "budget",
    "confounds",
    "baselines",
    "columns",
]
PLACES += ["versions", "command", "verification", "contract", "columns_of_settings", "nested", "length", "strata"]
PLACES += ["training"]


def outside_fences(text: str) -> list[str]:
    """The lines outside fenced blocks, after the CommonMark rule for where a fence ends."""
    lines, fence_of = [], ""
    for line in text.split("\n"):
        ticks = re.match(r"`{3,}|~{3,}", line)
        if fence_of:
            if ticks and ticks[0][0] == fence_of[0] and len(ticks[0]) >= len(fence_of) and line.strip() == ticks[0]:
                fence_of = ""
        elif ticks:
            fence_of = ticks[0]
        else:
            lines.append(line)
    assert fence_of == "", "a fence is still open at the end of the card"
    return lines


HEADINGS = [line for line in outside_fences(Card(MANIFEST, PLOTS).render()) if line.startswith("#")]


def assert_intact(manifest: dict[str, Any]) -> None:
    card = Card(manifest, PLOTS, repo_id="me/x")
    rendered = card.render()
    rendered.encode("utf-8")
    lines = outside_fences(rendered)
    assert [line for line in lines if line.startswith("#")] == HEADINGS
    assert not any(re.match(r" {0,3}(=+|-+|\*\*\*|>|~~~)\s*$", line) for line in lines)
    body = re.sub(r"`[^`\n]*`", "", "\n".join(lines))  # code spans show their text as it is
    assert "`" not in body
    assert sorted(re.findall(r"\]\((.*?)\)", body)) == sorted(PLOTS.values())
    assert set(re.findall(r"<[^>\s]*>?", body)) <= {"<code>", "</code>"}
    assert "://" not in body
    assert not re.search(r"www\.", body, re.IGNORECASE)
    assert "<!--" not in rendered
    assert "<script" not in rendered
    hidden = [
        c
        for c in rendered
        if c != "\n" and c != "\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn")
    ]
    assert hidden == []
    table: list[int] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append(line.count("|"))
        else:
            assert len(set(table)) <= 1, "a table lost or gained a column"
            assert len(table) != 1
            table = []
    text, _ = merge_readme(None, manifest, card=card)
    assert len(re.findall(r"^<!-- hf_curate:", text, re.MULTILINE)) == 2
    header = text.split("\n---\n")[0].removeprefix("---\n")
    data = yaml.safe_load(header)
    assert set(data) <= {"license", "tags", "size_categories", "source_datasets", "configs", "hf_curate"}
    assert len(data["configs"]) == 1
    assert set(data["hf_curate"]["configs"]["grace-20pct"]["train"]) <= {"selector", "model", "budget"}
    assert merge_readme(text, manifest, card=card)[0] == text


def assert_compared(manifest: dict[str, Any]) -> None:
    """Beside another config the sections keep their bytes, and the comparison is a table like any other."""
    text, _ = merge_readme(None, manifest, card=Card(manifest, PLOTS, repo_id="me/x"))
    other = {**MANIFEST, "config_name": "other"}
    both, _ = merge_readme(text, other, card=Card(other))
    compared = comparison([Compared(manifest, np.arange(3)), Compared(other, np.arange(4))])
    whole, notes = with_comparison(both, compared)
    assert notes == []
    assert text[text.index("\n<!-- hf_curate:begin config") :].rstrip() in whole
    assert len(re.findall(r"^<!-- hf_curate:", whole, re.MULTILINE)) == 6
    lines = outside_fences(compared.render())
    assert [line for line in lines if line.startswith("#")] == ["## Configs"]
    body = re.sub(r"`[^`\n]*`", "", "\n".join(lines))
    assert set(re.findall(r"<[^>\s]*>?", body)) <= {"<code>", "</code>"}
    assert "://" not in body
    assert "](" not in body
    first = lines[2:6]
    assert len({line.count("|") for line in first}) == 1
    assert with_comparison(whole, compared)[0] == whole


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda text: ascii(text)[:30])
def test_hostile_text_everywhere_leaves_the_card_intact(attack: str) -> None:
    assert_intact(attacked(attack))


@pytest.mark.parametrize("place", PLACES)
def test_all_attacks_at_once_in_one_place_leave_the_card_intact(place: str) -> None:
    assert_intact(attacked(" ".join(SHORT), place))
    assert_intact(attacked("\n".join(SHORT), place))


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(SHORT),
        st.text(max_size=8),
        st.text("`|\\<>[]()!#*_~&${}%\n\r\t -=:/'\"w.", max_size=12),
    ),
    max_size=5,
).map("".join)


@settings(max_examples=80, deadline=None)
@given(text=HOSTILE, place=st.sampled_from(PLACES))
def test_any_text_anywhere_leaves_the_card_intact(text: str, place: str) -> None:
    assert_intact(attacked(text, place))


@settings(max_examples=20, deadline=None)
@given(text=st.one_of(st.sampled_from(SHORT), HOSTILE))
def test_any_text_in_a_config_leaves_the_comparison_and_its_neighbours_intact(text: str) -> None:
    assert_compared(attacked(text))


def test_all_attacks_at_once_leave_the_comparison_intact() -> None:
    assert_compared(attacked("\n".join(SHORT)))


def test_templates_in_data_are_shown_and_not_run() -> None:
    rendered = Card(attacked("{{ 7777 * 7 }}")).render()
    assert "54439" not in rendered
    assert "{{ 7777 * 7 }}" in rendered


@pytest.mark.parametrize(
    "part", ["nested", "length", "pass_rate", "steps", "rollouts", "verification", "claims", "rows"]
)
@pytest.mark.parametrize("value", [[], "<b>", 7, {"x": "# y"}, {"budgets": "<b>", "groups": "x", "kept": "y"}])
def test_a_part_of_another_make_up_gives_a_whole_card_or_a_minimal_one_and_never_a_broken_one(
    part: str, value: Any, tmp_path: Path
) -> None:
    manifest = {**copy.deepcopy(MANIFEST), part: value}
    rendered = full_card(Staged(manifest, {}, {})).render()
    headings = [line for line in outside_fences(rendered) if line.startswith("#")]
    assert set(headings) <= set(HEADINGS)
    assert "<b>" not in rendered


def test_what_cannot_be_seen_is_shown_as_an_escape() -> None:
    assert escape("a\u202eb") == "a&#92;u202eb"
    assert code("\ud800\n") == "<code>&#92;ud800&#92;n</code>"
    assert fence("a\u202eb\x1b") == "```\na\\u202eb\\u001b\n```"
    assert escape("\U000e0041") == "&#92;U000e0041"


def test_a_fence_is_longer_than_any_run_of_backticks_in_it() -> None:
    assert fence("a ````` b", "bash") == "``````bash\na ````` b\n``````"


def test_a_command_stays_exact_where_it_is_harmless() -> None:
    command = "hf-curate select x --budget '20%' \\\n  < rows.jsonl > out | tee $LOG"
    assert fence(command, "bash") == f"```bash\n{command}\n```"


@pytest.mark.parametrize("name", ['a"); import os  # ', "`", "<b>", "\n", "\\"])
def test_names_in_the_load_snippet_stay_inside_their_string(name: str) -> None:
    assert eval(literal(name), {}) == name


def test_plot_paths_are_percent_encoded() -> None:
    rendered = Card(MANIFEST, {"scores": "a) ](x\n/é.png"}, repo_id="x").render()
    assert "](a%29%20%5D%28x%0A/%C3%A9.png)" in rendered


def test_every_character_reads_back_as_itself_after_html_decoding() -> None:
    import html

    text = "a|b`c\\d[e](f)<g>&h;*i*_j_~k~$l$ #m https://n www.o"
    assert html.unescape(escape(text)) == text
    assert html.unescape(code(text)) == f"<code>{text}</code>"
