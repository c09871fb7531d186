"""The card: a tree that says what the manifest says, in the same bytes every time."""

from __future__ import annotations

import copy
import html
import json
import os
import re
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path
from typing import Any

import golden_selections
import numpy as np
import pytest

from hf_curate import Selection
from hf_curate.budgets import STRATEGIES
from hf_curate.errors import ManifestError
from hf_curate.hub.card import PARTS, UNRANKED, Card, budget_words, model_name, source_name, templates
from hf_curate.hub.comparison import Compared, comparison
from hf_curate.hub.readme import merge_readme, with_comparison
from hf_curate.plots import draw

GOLDENS = Path(__file__).parents[1] / "goldens"
PLOTS = {"scores": "grace-20pct/train.scores.png"}
ORDERS = (
    "Orders that need a model (losses, GRACE, GradAlign, LearnAlign, Align) appear only where their columns are in "
    "the dataset.\n"
)
HUMAN = """---
# Kept by hand; see the issue tracker before changing.
pretty_name:   "Traces, mixed"
license: cc-by-4.0
configs:
  - config_name: raw   # everything
    data_files: "raw/*.parquet"
    default: true
tags: [math, 'our own']
---

# Traces, mixed

Text that a person wrote.

---

More of it, after a rule.
"""


@pytest.fixture
def manifest() -> dict[str, Any]:
    return json.loads((GOLDENS / "manifest_grace.json").read_text(encoding="utf-8"))


@pytest.fixture
def rollouts() -> dict[str, Any]:
    """The manifest of a selection by GradAlign."""
    return json.loads((GOLDENS / "manifest_gradalign.json").read_text(encoding="utf-8"))


def assert_golden(name: str, text: str) -> None:
    """Compare with tests/goldens/NAME; HF_CURATE_UPDATE_GOLDENS=1 writes it anew."""
    path = GOLDENS / name
    if os.environ.get("HF_CURATE_UPDATE_GOLDENS") == "1":
        path.write_bytes(text.encode())
    want = path.read_bytes().decode() if path.is_file() else ""
    if text != want:
        diff = "\n".join(unified_diff(want.splitlines(), text.splitlines(), f"goldens/{name}", "now", lineterm=""))
        pytest.fail(f"{name} changed. Meant? Run with HF_CURATE_UPDATE_GOLDENS=1\n{diff}", pytrace=False)


PLOTTED = {
    "grace": ("scores", "steps", "length", "nested"),
    "learnalign": ("scores", "length", "pass_rate", "nested"),
    "gradalign": ("scores", "length", "pass_rate", "nested"),
}


def plots_of(manifest: dict[str, Any]) -> dict[str, str]:
    return {name: f"{manifest['config_name']}/train.{name}.png" for name in draw.PLOTS if draw.has(name, manifest)}


@pytest.fixture(scope="module")
def made() -> dict[str, Selection]:
    return {name: getattr(golden_selections, name)() for name in PLOTTED}


@pytest.mark.parametrize("method", PLOTTED)
def test_the_card_of_a_new_readme_is_the_golden_one(made: dict[str, Selection], method: str) -> None:
    manifest = made[method].manifest
    assert tuple(plots_of(manifest)) == PLOTTED[method]
    card = Card(manifest, plots_of(manifest), repo_id=f"me/{method}")
    text, notes = merge_readme(None, manifest, card=card, title=method)
    assert notes == []
    assert_golden(f"card_{method}.md", text)


def test_the_card_beside_human_text_is_the_golden_one(made: dict[str, Selection]) -> None:
    manifest = made["learnalign"].manifest
    text, _ = merge_readme(HUMAN, manifest, card=Card(manifest, plots_of(manifest)))
    assert_golden("card_beside_human_text.md", text)


def test_the_card_of_a_repo_with_two_configs_is_the_golden_one(made: dict[str, Selection]) -> None:
    one, other = made["grace"], golden_selections.grace("10%", strategy="random")
    other.manifest["config_name"] = "random-10pct"
    text = None
    for picked in (one, other):
        card = Card(picked.manifest, plots_of(picked.manifest), repo_id="me/two")
        text, _ = merge_readme(text, picked.manifest, card=card, title="Two choices")
    assert text is not None
    compared = comparison([Compared(picked.manifest, picked.indices) for picked in (one, other)])
    text, notes = with_comparison(text, compared)
    assert notes == []
    assert_golden("card_two_configs.md", text)


@pytest.mark.parametrize("method", ["grace", "gradalign"])
def test_the_card_of_a_manifest_from_before_is_the_golden_one(method: str) -> None:
    manifest = json.loads((GOLDENS / f"manifest_{method}.json").read_text("utf-8"))
    assert manifest["schema"] == "hf_curate/manifest/1"
    text, notes = merge_readme(None, manifest, card=Card(manifest, PLOTS), title="From before")
    assert notes == []
    assert_golden(f"card_from_before_{method}.md", text)


def test_the_first_line_is_the_whole_story_in_one_sentence(manifest: dict[str, Any]) -> None:
    assert Card(manifest).body == (
        "1,495 of 7,473 rows (20.0 %) of openai/gsm8k@e53f048, "
        "chosen by GRACE with Qwen/Qwen3-0.6B@c1899de, budget 20 %"
    )


def test_the_same_manifest_renders_to_the_same_bytes_and_is_not_changed(manifest: dict[str, Any]) -> None:
    before = copy.deepcopy(manifest)
    assert Card(manifest, PLOTS).render() == Card(copy.deepcopy(manifest), PLOTS).render()
    assert manifest == before


def test_sections_can_be_selected_edited_and_rendered_again(manifest: dict[str, Any]) -> None:
    card = Card(manifest)
    assert list(card.sections) == list(PARTS)
    assert "`alpha` | `0.7`" in card["How it was constructed"]["Settings"].body
    card["Limits"].body += "\n- Only English."
    assert "- Only English.\n\n### Citation" in card.render()
    with pytest.raises(KeyError, match=r"no section 'Limit' .* there are: What is in it, What makes it useful"):
        card["Limit"]


def test_the_plot_is_shown_with_its_numbers_in_words_or_not_at_all(manifest: dict[str, Any]) -> None:
    image = re.search(r"!\[(.*)\]\((.*)\)", Card(manifest, PLOTS).render())
    assert image is not None
    assert image[2] == "grace-20pct/train.scores.png"
    assert "7,465 scored rows: 1,495 kept, 5,970 dropped, threshold 0.3127" in image[1]
    assert "![" not in Card(manifest).render()


def test_everything_that_may_be_null_is_null_and_the_card_says_so(manifest: dict[str, Any]) -> None:
    manifest["source"] = dict.fromkeys(manifest["source"])
    manifest["model"] |= {"sha": None, "digest": None, "dtype": None, "architecture": None}
    manifest["budget"] |= {"tokens": None, "threshold": None, "seed": None}
    manifest["confounds"] = dict.fromkeys(manifest["confounds"])
    manifest["baselines"] = {}
    manifest["selector"] |= {"audit": None, "settings": {}, "class": None, "algorithm_version": None, "identity": None}
    manifest["scores"]["histogram"] = None
    manifest["rows"]["duplicate_prompts"] = None
    manifest["command"] = None
    card = Card(manifest)
    assert "of a source that was not recorded, chosen by GRACE with Qwen/Qwen3-0.6B (commit not recorded)" in card.body
    assert "unknown: see source" in card["How it was constructed"]["Source and licence"].body
    assert card["What makes it useful"]["Audit against exact gradients"].body == "Not measured."
    assert card["What makes it useful"]["Overlap with simpler choices"].body == "Not measured."
    assert card["What makes it useful"]["Confounds"].body.count("| not measured |") == 4
    assert "The score was not compared with exact gradients." in card["Limits"].body
    assert "warm-up: none" in card["How it was constructed"].body
    assert "None" not in card.render().replace("None recorded.", "")


def test_a_plain_column_without_source_or_model_has_a_card_too(manifest: dict[str, Any]) -> None:
    manifest |= {"source": None, "model": None, "citations": []}
    manifest["selector"] |= {"name": "length", "column": "length", "settings": {}, "audit": None}
    card = Card(manifest)
    assert card.body.endswith("of a source that was not recorded, chosen by length, budget 20 %")
    assert "no paper to cite" in card["Citation"].body
    assert "GRACE" not in card.render().replace(ORDERS, "")
    audit = card["What makes it useful"]["Audit against exact gradients"].body
    assert audit == "Does not apply: no model was read for this choice."


def test_a_threshold_selection_names_its_minimum_score_where_a_budget_would_stand(manifest: dict[str, Any]) -> None:
    manifest["selector"]["strategy"] = "threshold"
    manifest["budget"] |= {"asked": None, "min_score": 0.25}
    assert Card(manifest).body.endswith(", minimum score 0.25")


def test_a_warm_up_is_told_with_its_settings(manifest: dict[str, Any]) -> None:
    manifest["model"]["warm_up"] = {"fraction": 0.05, "rows": 373, "method": "lora"}
    card = Card(manifest)
    assert "warm-up: fraction `0.05`, rows `373`, method `lora`." in card["How it was constructed"].body
    assert "warmed up" not in card["Limits"].body


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("20%", "20 %"),
        ("12.5 %", "12.5 %"),
        (5000, "5,000 rows"),
        ("5000", "5,000 rows"),
        ("5000 rows", "5,000 rows"),
        ("2M tokens", "2M tokens"),
        (None, "none"),
    ],
)
def test_budgets_are_written_as_a_reader_writes_them(asked: str | int | None, words: str) -> None:
    assert budget_words(asked) == words


def test_a_local_model_is_named_by_its_weights_and_a_source_without_commit_says_so(manifest: dict[str, Any]) -> None:
    manifest["model"] |= {"id": "my-model", "sha": None, "digest": "sha256:0123456789"}
    manifest["source"]["sha"] = None
    assert model_name(manifest) == "my-model (weights 0123456)"
    assert source_name(manifest) == "openai/gsm8k (commit not recorded)"


@pytest.mark.parametrize("part", ["budget", "rows", "selector", "columns", "digests", "versions"])
def test_a_manifest_without_a_part_is_an_error_and_not_an_empty_cell(manifest: dict[str, Any], part: str) -> None:
    del manifest[part]
    with pytest.raises(ManifestError, match=part):
        Card(manifest)


# -- rollouts -------------------------------------------------------------------------------------------------------


def test_the_rollouts_of_scored_and_kept_rows_stand_side_by_side(rollouts: dict[str, Any]) -> None:
    r = rollouts["rollouts"]
    lines = Card(rollouts)["What makes it useful"]["Pass rate"].body.splitlines()
    labels = {"all": "rows", "without signal": "without_signal", "always right": "always_right"}
    for label, name in {**labels, "always wrong": "always_wrong"}.items():
        counts, cells = r[name], [f"| {label}"]
        for side in ("scored", "kept"):
            cells += [f"{counts[side]:,}", f"{100 * counts[side] / r['rows'][side]:.1f} %"]
        assert " | ".join(cells) + " |" in lines
    text = " ".join(lines)
    assert f"{r['success_rate']['all']:.4g} of the scored rows, {r['success_rate']['kept']:.4g} of the kept" in text
    assert f"{r['rollouts_per_row']['min']} to {r['rollouts_per_row']['max']}, median" in text
    r["rollouts_per_row"] = {"min": 8, "median": 8.0, "max": 8}
    assert "Rollouts of a row: 8. Mean" in Card(rollouts)["What makes it useful"]["Pass rate"].body
    assert "- The 8 rollouts of a row are a sample" in Card(rollouts)["Limits"].body


def test_a_card_without_rollouts_does_not_speak_of_them(manifest: dict[str, Any]) -> None:
    before = Card(manifest, PLOTS).render()
    assert "rollout" not in before.lower().replace("the traces or rollouts", "")
    manifest["rollouts"] = manifest["selector"]["direction"] = None
    assert Card(manifest, PLOTS).render() == before


def test_what_is_said_of_traces_is_said_of_grace_alone(rollouts: dict[str, Any]) -> None:
    assert rollouts["selector"]["audit"] is rollouts["model"]["warm_up"] is None
    for name, papers in (("GradAlign", ["gradalign"]), ("LearnAlign", ["learnalign"]), ("Loss", [])):
        rollouts["selector"]["name"], rollouts["citations"] = name, papers
        text = Card(rollouts).render().replace(ORDERS, "")
        for words in (
            "GRACE",
            "a trace's steps",
            "random 5 %",
            "not compared with exact gradients",
            "number of steps",
        ):
            assert words not in text, (name, words)
        assert "Rewards are taken as given: nothing was verified again." in text


@pytest.mark.parametrize(
    ("name", "papers", "words", "warm_up"),
    [
        ("GradAlign", ["gradalign"], "that of the validation problems", False),
        ("LearnAlign", ["learnalign"], "those of all problems of the pool", True),
        ("Align", ["gradalign"], "the mean one of the pool", False),
    ],
)
def test_limits_say_what_each_score_of_policy_gradients_measures(
    rollouts: dict[str, Any], name: str, papers: list[str], words: str, warm_up: bool
) -> None:
    rollouts["selector"]["name"], rollouts["citations"] = name, papers
    limits = Card(rollouts)["Limits"].body
    assert limits.count("It measures how far a problem's policy gradient points along") == limits.count(words) == 1
    assert ("No such warm-up is recorded here." in limits) == warm_up
    assert "`gradalign_stderr` is the standard error of the inner product" in limits
    kept = rollouts["rollouts"]["without_signal"]["kept"]
    assert kept > 0
    assert f"- {kept} kept rows are without signal" in limits
    rollouts["rollouts"]["without_signal"]["kept"] = 0
    del rollouts["columns"]["scores"]["gradalign_stderr"]
    limits = Card(rollouts)["Limits"].body
    assert "without signal:" not in limits
    assert "standard error" not in limits
    assert "\n\n" not in limits


def test_a_projected_score_is_called_an_estimate_and_an_exact_one_needs_no_audit(rollouts: dict[str, Any]) -> None:
    audit = Card(rollouts)["What makes it useful"]["Audit against exact gradients"].body
    assert audit.startswith(
        "Does not apply: the score is made of the gradients themselves, over the parameter set `all`"
    )
    assert "random projection" not in Card(rollouts)["Limits"].body
    rollouts["selector"]["settings"]["projection_dim"] = 4096
    assert Card(rollouts)["What makes it useful"]["Audit against exact gradients"].body == "Not measured."
    assert "after a random projection" in Card(rollouts)["Limits"].body


def test_the_direction_has_a_table_of_its_own_without_what_is_said_elsewhere(rollouts: dict[str, Any]) -> None:
    chosen, direction = Card(rollouts)["How it was constructed"], rollouts["selector"]["direction"]
    assert chosen["Direction"].body.splitlines()[2:] == [
        "| Kind | validation gradient |",
        f"| Source of its rows | `{direction['source']}` |",
        "| Problems | 64, 41 with signal |",
        "| Right or wrong throughout | 3 right, 19 wrong |",
        "| Not read | too long 1 |",
        "| Rollouts | 504 |",
        "| Parameters | `all`, 30 tensors, 834,000 values |",
        "| Model | Qwen/Qwen3-0.6B@c1899de |",
        f"| Key | `{direction['key']}` |",
    ]
    assert "irection" not in chosen.body + chosen["Settings"].body
    assert "comes from 64 problems, 41 with signal" in Card(rollouts)["Limits"].body
    direction |= {"verifier": "math, version 1", "source": None}
    lines = Card(rollouts)["How it was constructed"]["Direction"].body.splitlines()
    assert "| Verifier | `math, version 1` |" in lines
    assert not any("Source" in line for line in lines)
    direction["verifier"] = {"kind": "deterministic checker", "name": "math", "version": "2", "options": {}}
    assert (
        "| Verifier | `math`, version 2 |" in Card(rollouts)["How it was constructed"]["Direction"].body.splitlines()
    )
    rollouts["selector"]["direction"] = {"kind": "by hand"}
    lines = Card(rollouts)["How it was constructed"]["Direction"].body.splitlines()
    assert lines == ["| Direction | Value |", "|---|---|", "| Kind | by hand |"]


def test_without_a_direction_its_file_stays_among_the_settings(rollouts: dict[str, Any]) -> None:
    rollouts["selector"]["direction"] = None
    chosen = Card(rollouts)["How it was constructed"]
    assert "Direction" not in chosen.sections
    assert f"| `direction.fit` | `{rollouts['selector']['settings']['direction']['fit']}` |" in chosen["Settings"].body
    assert "that problems are compared with" not in Card(rollouts)["Limits"].body
    rollouts["selector"]["settings"] = {}
    assert Card(rollouts)["How it was constructed"]["Settings"].body == "None recorded."


CHOSEN = {
    "random": "chosen at random among the rows scored by",
    "longest": "the longest among the rows scored by",
    "most_steps": "those with the most steps among the rows scored by",
    "lowest_loss": "those with the lowest loss among the rows scored by",
    "highest_loss": "those with the highest loss among the rows scored by",
    "accuracy_greedy": "those with a success rate nearest 0.5 among the rows scored by",
    "pass_rate_band": "the first that are neither always right nor always wrong among the rows scored by",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("golden", ["manifest_grace.json", "manifest_gradalign.json"])
def test_only_a_selector_that_ranked_the_rows_has_chosen_them(golden: str, strategy: str) -> None:
    manifest = json.loads((GOLDENS / golden).read_text("utf-8"))
    selector, budget = manifest["selector"], manifest["budget"]
    selector |= {"strategy": strategy, "audit": None}
    manifest["confounds"] = {"loss": 0.9}
    ranked = strategy not in CHOSEN
    if not ranked:
        budget |= {"threshold": None, "at_threshold": None}
    if strategy == "threshold":
        budget |= {"asked": "min_score 0.25", "unit": "min_score", "min_score": 0.25}
    card = Card(manifest)
    words = f", {CHOSEN.get(strategy, 'chosen by')} {selector['name']} with {model_name(manifest)}, "
    assert card.body.endswith(words + ("minimum score 0.25" if strategy == "threshold" else "budget 20 %"))
    assert (f"By the strategy `{strategy}`, " in card["How it was constructed"].body) != ranked
    assert ("The score did not rank them." in card["How it was constructed"].body) != ranked
    assert ("The score did not rank these rows" in card["Limits"].body) != ranked
    assert ("in part this is a choice by that property" in card["Limits"].body) == ranked
    audit = card["What makes it useful"]["Audit against exact gradients"].body
    assert (audit == "Does not apply: the score did not rank these rows.") != ranked


def test_every_strategy_that_does_not_rank_by_the_score_has_its_words() -> None:
    assert set(CHOSEN) == set(UNRANKED) == set(STRATEGIES) - {"top", "threshold", "stratified"}


def test_a_minimum_score_is_named_beside_another_order(rollouts: dict[str, Any]) -> None:
    rollouts["selector"]["strategy"] = "longest"
    rollouts["budget"]["min_score"] = 0.125
    body = Card(rollouts)["How it was constructed"].body
    assert "out of those that have a number in `gradalign_score` of 0.125 or more." in body


def test_ties_at_the_threshold_are_told_where_not_all_of_them_were_kept(rollouts: dict[str, Any]) -> None:
    words = "60 rows share the threshold score; ties go by row order, and 3 of them were kept."
    assert words in Card(rollouts)["How it was constructed"].body.splitlines()
    for at in ({"scored": 3, "kept": 3}, None):
        rollouts["budget"]["at_threshold"] = at
        assert "share the threshold score" not in Card(rollouts).render()
    del rollouts["budget"]["at_threshold"]
    assert "share the threshold score" not in Card(rollouts).render()


@pytest.mark.parametrize(
    ("column", "own"),
    [
        ("accuracy_greedy_score", {"success_rate", "learnability"}),
        ("pass_rate_band_score", {"success_rate", "learnability"}),
        ("learnability", {"success_rate", "learnability"}),
        ("longest_score", {"tokens", "length"}),
        ("grace_tokens", {"tokens"}),
        ("most_steps_score", {"steps"}),
        ("lowest_loss_score", {"loss"}),
        ("grace_loss", {"loss"}),
        ("learnalign_score", set()),
        ("grace_value", set()),
    ],
)
def test_a_score_that_is_a_property_is_not_said_to_go_along_with_it(
    rollouts: dict[str, Any], column: str, own: set[str]
) -> None:
    names = ("steps", "tokens", "loss", "overlap", "success_rate", "learnability", "length")
    rollouts["selector"]["column"], rollouts["confounds"] = column, dict.fromkeys(names, -0.9)
    limits = Card(rollouts)["Limits"].body
    assert limits.count("in part this is a choice by that property") == len(names) - len(own)


def test_a_loss_is_not_audited_against_gradients(manifest: dict[str, Any]) -> None:
    manifest["selector"] |= {
        "name": "Lowest loss",
        "class": "LossScorer",
        "column": "lowest_loss_score",
        "audit": None,
    }
    audit = Card(manifest | {"citations": []})["What makes it useful"]["Audit against exact gradients"].body
    assert audit == "Does not apply: the score is the model's loss, not made of gradients."


def test_one_row_is_told_in_the_singular(rollouts: dict[str, Any]) -> None:
    rollouts["rollouts"]["without_signal"]["kept"] = 1
    rollouts["rows"]["scored"] = rollouts["rows"]["in"] - 1
    limits = Card(rollouts)["Limits"].body.splitlines()
    words = "its rollouts give no policy gradient, and its score is 0 whatever it is worth."
    assert f"- 1 kept row is without signal: {words}" in limits
    assert "- 1 row could not be scored and is missing here whatever it is worth." in limits


def test_a_column_among_the_other_choices_is_explained_once(
    rollouts: dict[str, Any], manifest: dict[str, Any]
) -> None:
    overlap = Card(rollouts)["What makes it useful"]["Overlap with simpler choices"].body
    assert "| `learnalign_score` | 24 |" in overlap
    assert overlap.count("A line that names a column") == 1
    rollouts["baselines"]["lowest_loss_score"] = {"rows": 24, "shared": 1}
    assert (
        Card(rollouts)["What makes it useful"]["Overlap with simpler choices"].body.count("A line that names a column")
        == 1
    )
    assert "A line that names" not in Card(manifest).render()


@pytest.mark.parametrize(
    "text", ["# x", "a | b", "<script>", "[x](https://evil.example)", "```", "{{ 7 * 7 }}", "\n\n# x", "\u202ex"]
)
def test_hostile_text_in_what_is_new_with_rollouts_stays_text(rollouts: dict[str, Any], text: str) -> None:
    before = Card(rollouts).render()
    headings = [line for line in before.splitlines() if line.startswith("#")]
    rollouts["selector"]["direction"] = {
        "kind": text,
        "rows": {"in": text, "with_signal": text},
        text: {text: text},
    }
    rollouts["selector"]["settings"]["parameters"] = text
    rollouts["rollouts"] |= {"correct_above": text, "rollouts_per_row": {"min": text, "max": "y", "median": text}}
    rollouts["rollouts"]["success_rate"] = {"all": text, "kept": text}
    rollouts["columns"]["scores"] = {f"{text}_stderr": text}
    rollouts["citations"].append(text)
    rendered = Card(rollouts).render()
    assert [line for line in rendered.splitlines() if line.startswith("#")] == headings
    for mark in ("<script", "](https", "\u202e", "https://evil", " | b"):
        assert mark not in rendered
    assert rendered.count("```") == before.count("```")


@pytest.mark.parametrize("part", ["rows", "without_signal", "success_rate", "rollouts_per_row", "correct_above"])
def test_rollouts_without_a_part_are_an_error_and_not_an_empty_cell(rollouts: dict[str, Any], part: str) -> None:
    del rollouts["rollouts"][part]
    with pytest.raises(ManifestError, match=part):
        Card(rollouts)


# -- the whole ------------------------------------------------------------------------------------------------------


def test_numpy_numbers_read_like_python_numbers(manifest: dict[str, Any]) -> None:
    plain = Card(manifest).render()
    manifest["rows"]["kept"] = np.int64(manifest["rows"]["kept"])
    manifest["budget"]["threshold"] = np.float32(manifest["budget"]["threshold"])
    manifest["selector"]["settings"]["alpha"] = np.float64(0.7)
    manifest["selector"]["settings"]["max_length"] = np.int32(40960)
    assert Card(manifest).render() == plain


def test_every_number_in_a_table_of_the_card_comes_from_the_manifest(manifest: dict[str, Any]) -> None:
    rows, found = manifest["rows"], set()

    def collect(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            collect(item)
        if isinstance(value, int | float):
            found.update({f"{value:,}", f"{value:.4g}", f"{value:.2f}"})

    collect(manifest)
    for count in [rows["in"], rows["scored"], rows["kept"], *rows["failed"].values()]:
        share = 100 * count / rows["in"]
        found |= {f"{share:.1f} %", f"{share:.2g} %"}
    found |= {f"{100 * b['shared'] / b['rows']:.1f} %" for b in manifest["baselines"].values()}
    found.add(f"{100 * rows['kept'] / rows['scored']:.1f} %")
    cells = {
        c.strip() for line in Card(manifest).render().splitlines() if line.startswith("|") for c in line.split("|")
    }
    numbers = {cell for cell in cells if re.fullmatch(r"-?[\d.,]+(?: %)?", cell)} - {
        "5 %",
        "95 %",
    }  # two column titles
    assert len(numbers) > 25
    assert numbers <= found


def words_of(value: Any, found: set[str]) -> None:
    """All numbers in a manifest as a card may write them, those inside of its texts included."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        words_of(item, found)
    for key in value if isinstance(value, dict) else ():
        found.update(NUMBER.findall(key))
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        shown = {f"{value:,}", f"{value}", f"{value:.4g}", f"{value:.2f}", f"{100 * value:.1f}", f"{100 * value:.2g}"}
        found.update(word.removeprefix("-") for word in shown)
    elif isinstance(value, str):
        found.update(NUMBER.findall(value))


NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e-?\d+)?")


def shares_of(manifest: dict[str, Any]) -> set[str]:
    """The percentages that a card works out, each of two numbers of the manifest."""
    rows, pairs = manifest["rows"], []
    pairs += [(count, rows["in"]) for count in (rows["in"], rows["scored"], rows["kept"], *rows["failed"].values())]
    pairs += [(one["shared"], one["rows"]) for one in manifest["baselines"].values()]
    pairs += [(rows["kept"], rows["scored"])]
    pairs += [(group["kept"], group["rows"]) for group in (manifest.get("length") or {}).get("groups", [])]
    rollouts = manifest.get("rollouts") or {}
    for name in ("rows", "without_signal", "always_right", "always_wrong"):
        pairs += [(rollouts[name][side], rollouts["rows"][side]) for side in ("scored", "kept") if rollouts]
    for counts in ((manifest.get("verification") or {}).get("outcomes") or {}).values():
        pairs += [(count, sum(counts.values())) for count in counts.values()]
    shares = [100 * part / whole for part, whole in pairs if whole]
    return {text for share in shares for text in (f"{share:.1f}", f"{share:.2g}")}


def of_the_templates() -> set[str]:
    """The numbers that stand in the templates themselves: of papers, headings, the method's own."""
    text = " ".join(path.read_text("utf-8") for path in templates().glob("*.j2"))
    outside = re.sub(r"\{[{%].*?[%}]\}", " ", text, flags=re.DOTALL)
    return set(NUMBER.findall(outside))


@pytest.mark.parametrize("method", PLOTTED)
@pytest.mark.parametrize("drawn", [True, False], ids=["with plots", "without"])
def test_every_number_on_the_card_is_in_the_manifest_or_a_share_of_two_that_are(
    made: dict[str, Selection], method: str, drawn: bool
) -> None:
    manifest = made[method].manifest
    known: set[str] = set()
    words_of(manifest, known)
    known |= shares_of(manifest) | of_the_templates()
    scores, kept = manifest["scores"]["all"]["count"], manifest["rows"]["kept"]
    known.add(f"{scores - kept:,}")  # dropped rows, in the words of the histogram
    places = [f"{number}" for number in range(0, 101, 10)]  # of steps, in ten equal parts
    for part in (manifest.get("steps") or {}).values():
        known.add(f"{sum(part['steps']):,}")
    text = html.unescape(Card(manifest, plots_of(manifest) if drawn else None, repo_id="me/x").render())
    text = re.sub(r"`sha256:[0-9a-f]+`|`[0-9a-f]{40,}`|@[0-9a-f]{7}\b", " ", text)  # digests are held by other tests
    strange = {word for word in NUMBER.findall(text) if word not in known}
    assert strange <= set(places), strange
    assert len(NUMBER.findall(text)) > 150


def test_a_word_that_the_manifest_does_not_hold_would_be_seen(made: dict[str, Selection]) -> None:
    known: set[str] = set()
    words_of(made["grace"].manifest, known)
    assert "160" in known
    assert "161" not in known | shares_of(made["grace"].manifest) | of_the_templates()


def test_each_template_is_used_and_no_line_of_one_begins_with_data() -> None:
    used = (
        {part for part, _ in PARTS.values()}
        | {sub for _, subs in PARTS.values() for sub in subs.values()}
        | {"summary", "comparison"}
    )
    files = {path.name.removesuffix(".md.j2"): path.read_text(encoding="utf-8") for path in templates().glob("*.j2")}
    assert set(files) == used
    begins = [
        line for text in files.values() for line in text.splitlines() if re.match(r"\s*(?:\{%.*?%\}\s*)*\{\{", line)
    ]
    assert [line for line in begins if "| number" not in line.split("}}")[0] and "| fence" not in line] == []


def test_card_and_readme_import_no_torch() -> None:
    check = (
        "import sys, hf_curate.hub.card, hf_curate.hub.readme, hf_curate.plots.draw; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
