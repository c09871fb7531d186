"""The page's tables of the part with rewards: examples/09's recorded results, and what `rl` added to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from evidence.results import HEADROOM, mean_and_error

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results"
SCENARIOS = ("unbalanced", "low-utility")
ADDED = ("LearnAlign, warmed up", "LearnAlign, no learnability", "LearnAlign, features", "pass-rate band")
"""What `rl` trains on: the keys of its `ADDED`."""

CLAIM = """\
## Problems with rewards

GRPO on a tenth of the pool for as many steps as on all of it (`python examples/09_train_on_the_selected.py --full`;
rows marked * by `python -m evidence run rl`; what online selection does is in [docs/online.md](../../docs/online.md)).
LearnAlign's authors: a selected 1,000 of 7,500 problems 77.5, all 77.0, random 75.6, without warm-up 76.6, without
learnability 75.6, with features 75.7 (Qwen2.5-1.5B on GSM8K, one run each, a standard error of 1.2 points).
"""


def section(recorded: Path) -> str:
    """The tables, scenario by scenario, from what is recorded."""
    path = recorded / "rl.json"
    added = json.loads(path.read_text("utf-8"))["cells"] if path.exists() else []
    return "\n".join([CLAIM, *(_scenario(scenario, added) for scenario in SCENARIOS)])


def _scenario(scenario: str, added: list[dict[str, Any]]) -> str:
    found = json.loads((RECORDED / f"trained_on_the_selected_{scenario}.json").read_text("utf-8"))["found"]
    chance = {record["seed"]: record["after"]["random"] for record in found}
    after = {name: {record["seed"]: record["after"][name] for record in found} for name in found[0]["after"]}
    for cell in added:
        if cell["scenario"] == scenario:
            after.setdefault(f"{cell['selector']} *", {})[cell["seed"]] = cell["after"]
    lines = [
        f"`{scenario}`, accuracy before {_told([record['before'] for record in found])} %:\n",
        "| | accuracy after, % | - random | seeds |",
        "|---|---|---|---|",
    ]
    for name, values in after.items():
        paired = "" if name == "random" else _told([values[seed] - chance[seed] for seed in values])
        lines.append(f"| {name} | {_told(list(values.values()))} | {paired} | {len(values)} |")
    lines += [f"| {name} * | not measured | | 0 |" for name in ADDED if f"{name} *" not in after]
    mean, error = mean_and_error(np.array([after["oracle"][seed] - chance[seed] for seed in chance]))
    if mean <= HEADROOM * error:
        lines.append("\nThe oracle is not above random by 3 standard errors: uninformative.")
    return "\n".join(lines) + "\n"


def _told(values: list[float]) -> str:
    mean, error = mean_and_error(np.array(values))
    return f"{mean:.1f} +- {error:.1f}" if len(values) > 1 else f"{mean:.1f}"
