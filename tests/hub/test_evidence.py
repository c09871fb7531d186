"""Evidence for each claim: there where it is, and nothing in its place where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import golden_selections
import pytest
from pools import Scorer, plain, pool

from hf_curate import select
from hf_curate.errors import CurateError
from hf_curate.hub.card import Card
from hf_curate.hub.evidence import CLAIMS, claims

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_a_bare_column_gives_no_claim_any_evidence() -> None:
    picked = select(plain(), "score", 2)
    found = picked.manifest["claims"]
    assert tuple(found) == CLAIMS
    assert [name for name, evidence in found.items() if evidence] == []
    body = Card(picked.manifest | {"config_name": "c", "split": "train"})["What makes it useful"].body
    assert body.count("| not measured |") == len(CLAIMS)


def test_correctness_needs_a_contract_and_its_outcomes() -> None:
    picked = golden_selections.learnalign()
    found = picked.manifest["claims"]["correctness"]
    outcomes = [one for row in picked.dataset["rollouts_outcomes"] for one in row]
    assert found["outcomes"] == {name: outcomes.count(name) for name in set(outcomes)}
    assert (found["verifier"], found["version"]) == ("exact", "1")
    without = {**picked.manifest, "verification": {**picked.manifest["verification"], "verifier": None}}
    assert claims(without)["correctness"] is None
    assert golden_selections.gradalign().manifest["claims"]["correctness"] is None


def test_difficulty_names_policy_and_sampling_or_says_that_they_are_not_recorded() -> None:
    known, unknown = golden_selections.learnalign(), golden_selections.gradalign()
    found = known.manifest["claims"]["difficulty"]
    assert found["policy"]["id"] == "Qwen/Qwen3-0.6B"
    assert found["sampling"]["temperature"] == 1.0
    assert found["success_rate"] == known.manifest["rollouts"]["success_rate"]["kept"]
    assert unknown.manifest["claims"]["difficulty"]["policy"] is None
    body = Card(unknown.manifest)["What makes it useful"].body
    assert "policy not recorded; sampling not recorded" in body


def test_trace_quality_counts_the_steps_and_says_what_they_were_held_against() -> None:
    picked = golden_selections.grace()
    found = picked.manifest["claims"]["trace_quality"]
    assert found["steps"] == sum(map(len, picked.dataset["grace_step_scores"]))
    assert found["audit"] == {"rows": 64, "value": 0.43}
    assert golden_selections.learnalign().manifest["claims"]["trace_quality"] is None
    assert select(pool(), Scorer(), "20%").manifest["claims"]["trace_quality"]["audit"] is None


def test_training_is_evidence_only_where_a_run_was_recorded() -> None:
    manifest = golden_selections.grace().manifest
    assert manifest["training"] is manifest["claims"]["training"] is None
    card = Card(manifest)
    assert "Training on more or fewer of these rows: not measured." in card["How it scales"].body
    assert "Training" not in card["How it scales"].sections
    run = {"recipe": "SFT, 3 epochs", "accuracy": {"before": 0.412, "after": 0.455}, "seeds": 3}
    recorded = golden_selections.grace().with_training(run)
    card = recorded.card
    assert "not repeated" in card["Limits"].body
    assert "not measured" not in card["How it scales"].body
    assert "| `accuracy.after` | `0.455` |" in card["How it scales"]["Training"].body


@pytest.mark.parametrize("run", [{}, {"a": float("nan")}, {"a": object()}, 3])
def test_a_record_that_is_none_is_refused(run: object) -> None:
    with pytest.raises(CurateError, match="the record of a training run"):
        golden_selections.grace().with_training(run)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["grace", "gradalign"])
def test_a_manifest_from_before_gets_the_evidence_that_its_parts_hold(name: str) -> None:
    manifest = json.loads((GOLDENS / f"manifest_{name}.json").read_text("utf-8"))
    assert "claims" not in manifest
    found = claims(manifest)
    assert found["correctness"] is found["trace_quality"] is found["training"] is None
    assert (found["difficulty"] is None) == (name == "grace")
    assert "Other budgets: not measured." in Card(manifest)["How it scales"].body


@pytest.mark.parametrize("value", [None, [], "x", 3, {"verifier": 1}, {"kept": "x"}])
def test_parts_of_another_make_up_are_no_evidence(value: object) -> None:
    parts = ("verification", "rollouts", "steps", "selector", "rows", "strata", "source", "training")
    found = claims(dict.fromkeys(parts, value))
    assert found["correctness"] is found["difficulty"] is found["trace_quality"] is None
