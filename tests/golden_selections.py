"""Selections whose cards are the golden ones: made without a model, of pools that look like real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from pools import MODEL, SCORES, Scorer

from hf_curate import Selection, select
from hf_curate.hub.evidence import claims
from hf_curate.rollouts.verify import verifier

SOURCE = {
    "id": "openai/gsm8k",
    "revision": "main",
    "sha": "e53f048856ff4f594e959d75785d2c2d37b678ee",
    "config": "main",
    "split": "train",
    "license": "mit",
    "fingerprint": "0f1e2d3c4b5a6978",
}
VERSIONS = {"hf_curate": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "datasets": "5.2.0"}
COLUMNS = {"level": "aliases", "prompt": "question", "completion": "answer", "hashes": True}
COLUMNS |= dict.fromkeys(("answer", "steps", "messages"))
ROLLED = Features(
    {
        "problem": Value("string"),
        "answer": Value("string"),
        "responses": List(Value("string")),
        "rewards": List(Value("float32")),
        "rollouts_outcomes": List(Value("string")),
    }
)
MODEL_OF_GOLDENS = MODEL | {"id": "Qwen/Qwen3-0.6B", "dtype": "bfloat16"}


class Grace(Scorer):
    """GRACE with an audit, over rows as GSM8K has them."""

    def record(self) -> dict[str, Any]:
        record = super().record()
        audit = {"rows": 64, "parameters": "linear", "proxy": "representation", "time_ratio": 0.05}
        audit["spearman"] = {"alignment": 0.41, "history": 0.37, "value": 0.43}
        return {
            **record,
            "settings": record["settings"] | {"columns": COLUMNS},
            "model": MODEL_OF_GOLDENS,
            "audit": audit,
            "call": f"GraceScorer('Qwen/Qwen3-0.6B', revision='{MODEL['sha']}')",
        }


class OfRollouts:
    """A scorer of policy gradients: GradAlign or LearnAlign."""

    def __init__(self, name: str, rollouts: Mapping[str, Any] | None, zero: bool | str) -> None:
        self.name, self.rollouts, self.zero = name, rollouts, zero
        self.column = f"{name.lower()}_score"
        self.columns = Features({self.column: Value("float32"), f"{name.lower()}_error": Value("string")})
        self.identity = f"{len(name):064x}"

    def record(self) -> dict[str, Any]:
        columns = {"level": "problem", "prompt": "problem", "messages": None, "responses": "responses"}
        columns |= {"response_ids": None, "rewards": "rewards"}
        rows = {"in": 64, "with_signal": 41, "without_signal": 22, "all_right": 3, "all_wrong": 19}
        rows |= {"failed": {"too long": 1}, "rollouts": 504}
        of_pool = self.name == "LearnAlign"
        direction = {"kind": "mean direction" if of_pool else "validation gradient", "key": "5be1d0c9" * 8}
        direction |= {"model": MODEL_OF_GOLDENS, "rows": rows, "verifier": None, "norm": 0.25}
        direction |= {"parameters": {"set": "all", "tensors": 30, "values": 834_000}}
        return {
            "name": self.name,
            "class": f"{self.name}Scorer",
            "algorithm_version": 1,
            "identity": self.identity,
            "column": self.column,
            "settings": {"parameters": "all", "columns": columns},
            "model": MODEL_OF_GOLDENS,
            "direction": direction,
            "zero_without_signal": self.zero,
            **({} if self.rollouts is None else {"rollouts": dict(self.rollouts)}),
        }


def traces(rows: int = 800, seed: int = 3) -> Dataset:
    """Word problems with numbered steps; longer ones score a little lower, later steps a little higher."""
    rng = np.random.default_rng(seed)
    table: dict[str, list[Any]] = {name: [] for name in ("question", "answer", *SCORES)}
    for row in range(rows):
        steps, total, lines = int(rng.integers(2, 9)), int(rng.integers(2, 50)), []
        first = total
        for number in range(1, steps + 1):
            more = int(rng.integers(1, 30))
            lines.append(f"Step {number}: {total} + {more} = {total + more}")
            total += more
        failed = row % 97 == 5
        base = rng.normal(0.3 - 0.015 * steps, 0.08)
        scores = (base + 0.02 * np.arange(steps) + rng.normal(0, 0.1, steps)).astype(np.float32)
        table["question"].append(
            f"Ann has {first} stamps and buys more {row if row % 50 else 0} times. How many are there?"
        )
        table["answer"].append("\n".join([*lines, f"#### {total}"]))
        table["grace_step_scores"].append(None if failed else scores.tolist())
        table["grace_value"].append(None if failed else np.float32(scores.mean()))
        table["grace_tokens"].append(None if failed else 30 + 14 * steps + int(rng.integers(0, 6)))
        table["grace_loss"].append(None if failed else np.float32(rng.gamma(4.0, 0.1)))
        table["grace_error"].append("too long: 41000 tokens" if failed else "")
    return Dataset.from_dict(
        table, features=Features({"question": Value("string"), "answer": Value("string"), **SCORES})
    )


def problems(rows: int, name: str, seed: int = 5) -> Dataset:
    """Problems with eight rollouts each and the scores of `name`; a third always fails, a quarter always passes."""
    rng, column = np.random.default_rng(seed), f"{name.lower()}_score"
    table: dict[str, list[Any]] = {key: [] for key in (*ROLLED, column, f"{name.lower()}_error")}
    for row in range(rows):
        rate = [0.0, 1.0, 0.15, 0.0, 0.4, 0.6, 0.8, 0.3][row % 8]
        right = rng.random(8) < rate
        unread = ~right & (rng.random(8) < 0.1)
        failed = row % 53 == 9
        table["problem"].append(f"How much is {row} + {row % 7}?")
        table["answer"].append(str(row + row % 7))
        texts = [f"It is {'9' * int(rng.integers(1, 30))}.\n#### {row + row % 7 if ok else row}" for ok in right]
        table["responses"].append(texts)
        table["rewards"].append(right.astype(float).tolist())
        outcome = np.where(right, "right", np.where(unread, "could not parse", "wrong"))
        table["rollouts_outcomes"].append(outcome.tolist())
        p = float(right.mean())
        score = 0.0 if p in (0.0, 1.0) else rng.normal(p * (1 - p), 0.1)
        table[column].append(None if failed else np.float32(score))
        table[f"{name.lower()}_error"].append("too long: 9000 tokens" if failed else "")
    kinds = {column: Value("float32"), f"{name.lower()}_error": Value("string")}
    return Dataset.from_dict(table, features=Features({**ROLLED, **kinds}))


def grace(budget: str = "20%", **options: Any) -> Selection:
    return settled(select(traces(), Grace(), budget, **options), "grace-20pct")


def learnalign() -> Selection:
    made = {
        "model": MODEL_OF_GOLDENS,
        "verifier": verifier("exact").record(),
        "settings": {"n": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 512, "seed": 0},
        "call": "Rollouts('Qwen/Qwen3-0.6B', 'exact', n=8)",
    }
    picked = select(problems(400, "LearnAlign"), OfRollouts("LearnAlign", made, "0 < p < 1"), "25%")
    return settled(picked, "learnalign-25pct")


def gradalign() -> Selection:
    picked = select(problems(400, "GradAlign"), OfRollouts("GradAlign", None, True), "25%")
    return settled(picked, "gradalign-25pct")


def settled(picked: Selection, config: str) -> Selection:
    """With a source, versions and a name that are the same everywhere."""
    source = {**SOURCE, "columns": list(picked.manifest["columns"]["source"])}
    changes = {"source": source, "versions": VERSIONS, "config_name": config, "split": "train"}
    manifest = {**picked.manifest, **changes}
    return Selection(picked.dataset, picked.indices, {**manifest, "claims": claims(manifest)})
