"""Selections over rows with rollouts on the loopback Hub: scored on a tiny policy, pushed, loaded back, and what their
cards say of rollouts and direction."""

from __future__ import annotations

import html
from typing import Any

import pytest
import yaml
from clients import Client, load_checked, load_plain
from loopback import LoopbackHub

from hf_curate.hub.card import Card

METHODS = ("GradAlign", "LearnAlign")
RATHER_RIGHT = 12
"""The row whose rewards differ and are all above 0.5: a signal, and no learnability."""


def push_scored(repo: str, config: str, method: str, strategy: str = "top") -> dict[str, Any]:
    """Score 13 problems of every kind with a random policy, select 10 of them and push; the scored rows and more."""
    from datasets import Dataset
    from rollouts import policy, rows_of_every_kind, solved, tokenizer, trusted

    import hf_curate
    from hf_curate import score, select
    from hf_curate.plots import draw

    rows = [*rows_of_every_kind(), solved(1, seed=3)[0] | {"rewards": [0.6, 0.7, 0.8, 0.9]}]
    pool, parts = Dataset.from_list(rows), {"tokenizer": tokenizer(), "parameters": "linear"}
    if method == "GradAlign":
        scorer: Any = hf_curate.GradAlignScorer(policy(), validation=trusted(), **parts)
        scorer.fit(trusted(), source="local file trusted.jsonl", verifier="by hand")
    else:
        scorer = hf_curate.LearnAlignScorer(policy(), **parts).fit(pool)
    scored = score(pool, scorer)
    picked = select(scored, scorer, 10, strategy=strategy)
    real, draw.plot = draw.plot, lambda name, manifest: b"\x89PNG"
    try:
        picked.push_to_hub(repo, config)
    finally:
        draw.plot = real
    return {
        "rows": [{name: row[name] for name in ("prompt", "responses", "rewards", scorer.column)} for row in scored],
        "kept": picked.indices.tolist(),
        "manifest": picked.manifest,
        "text": repr(picked),
    }


def plain_rows(repo: str, config: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return load_dataset(repo, config, split="train").to_list()


def counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Rows, those without signal, right and wrong throughout, by a plain loop."""
    found = dict.fromkeys(("rows", "without_signal", "always_right", "always_wrong"), 0)
    for row in rows:
        rewards, right = row["rewards"], [reward > 0.5 for reward in row["rewards"]]
        twins = len(set(row["responses"])) == 1  # what cancels: nothing tells the responses apart
        found["rows"] += 1
        found["without_signal"] += len(set(rewards)) == 1 or twins
        found["always_right"] += all(right)
        found["always_wrong"] += not any(right)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_selection_over_rollouts_is_pushed_and_loaded_back_with_its_account(
    hub: LoopbackHub, alice: Client, repo: str, method: str
) -> None:
    config, column = f"{method.lower()}-10", f"{method.lower()}_score"
    pushed = alice.run(push_scored, repo=repo, config=config, method=method)
    rows, kept = pushed["rows"], pushed["kept"]
    assert pushed["text"] == f"Selection(10 of 13 rows by {method}, budget 10 rows)"
    assert alice.run(load_plain, repo=repo, config=config) == kept
    loaded = alice.run(load_checked, repo=repo, config=config)
    assert (loaded["rows"], loaded["problems"]) == (kept, [])
    manifest = loaded["manifest"]
    for row, index in zip(alice.run(plain_rows, repo=repo, config=config), kept, strict=True):
        assert row["source_row"] == index
        assert {name: row[name] for name in rows[index]} == rows[index]

    everything, inside = counted(rows), counted([rows[index] for index in kept])
    for name, count in everything.items():
        assert manifest["rollouts"][name] == {"scored": count, "kept": inside[name]}, name
    assert inside["without_signal"] > 1
    assert (rows[RATHER_RIGHT][column] == 0.0) == (method == "LearnAlign")
    assert sum(row[column] == 0.0 for row in rows) == everything["without_signal"] + (method == "LearnAlign")
    direction = manifest["selector"]["direction"]
    assert manifest["selector"]["settings"]["direction"] == {"fit": direction["key"]}

    readme = hub.read("dataset", repo, "README.md").decode()
    plots = ("scores", "length", "pass_rate", "nested")
    card = Card(manifest, {name: f"{config}/train.{name}.png" for name in plots}, repo_id=repo)
    assert card.render().rstrip() in readme
    assert f", chosen by {method} with " in html.unescape(card.body)
    chosen, useful = card["How it was constructed"], card["What makes it useful"]
    assert f"| without signal | {everything['without_signal']} | " in useful["Pass rate"].body
    told = chosen["Direction"].body
    assert f"| Problems | {direction['rows']['in']}, {direction['rows']['with_signal']} with signal |" in told
    assert ("| Source of its rows | `local file trusted.jsonl` |" in told) == (method == "GradAlign")
    assert ("| Verifier | `by hand` |" in told) == (method == "GradAlign")
    assert direction["key"] in told
    assert f"{inside['without_signal']} kept rows are without signal" in card["Limits"].body
    assert f"eprint        = {{{'2602.21492' if method == 'GradAlign' else '2506.11480'}}}" in readme
    front = yaml.safe_load(readme.split("---\n")[1])
    assert [entry["config_name"] for entry in front["configs"]] == [config]


def test_rows_drawn_at_random_are_pushed_as_such_beside_those_that_were_chosen(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(push_scored, repo=repo, config="gradalign-10", method="GradAlign")
    pushed = alice.run(push_scored, repo=repo, config="random-10", method="GradAlign", strategy="random")
    readme = hub.read("dataset", repo, "README.md").decode()
    parts = {name: readme.split(f"## {name}-10, split train\n\n")[1] for name in ("gradalign", "random")}
    first = {name: part.splitlines()[0] for name, part in parts.items()}
    assert ", chosen by GradAlign with " in first["gradalign"]
    assert ", chosen at random among the rows scored by GradAlign with " in first["random"]
    assert pushed["text"].startswith("Selection(10 of 13 rows, chosen at random among the rows scored by GradAlign, ")
    assert alice.run(load_plain, repo=repo, config="random-10") == pushed["kept"]
    shared = pushed["manifest"]["baselines"]["random"]
    assert shared == {"rows": 10, "shared": 10}
