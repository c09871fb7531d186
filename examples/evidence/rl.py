"""The part with rewards: what GRPO makes of the problems that are chosen, and LearnAlign without each of its parts.

The protocol is that of examples/09_train_on_the_selected.py, whose recorded results are the other rows of the table:
pools of scenarios.py, a tenth kept, 80 steps of TRL's GRPOTrainer, accuracy on held-out problems of the part that
counts. Added here: LearnAlign with its warm-up, without learnability, with features in the place of gradients, and the
filter by pass rate that its reviewers asked for.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scenarios import FULL, SCENARIOS, Design, Pool, best, draw
from transformers import AutoModelForCausalLM, AutoTokenizer

from evidence.cells import work
from hf_curate import LearnAlignScorer, PassRateBandScorer
from hf_curate.demo import POLICY, tasks
from hf_curate.scorers.learnalign import success_rate

WARM_UP = {"problems": 300, "n": 8, "learning_rate": 1e-5}
"""The authors' 300 problems and 8 rollouts; their rate of 1e-6 hardly moves so small a policy (benchmarks/LOG.md)."""


@dataclass(frozen=True)
class Run:
    """One training: a cell of this part."""

    scenario: str
    seed: int
    selector: str

    @property
    def name(self) -> str:
        return f"{self.scenario}-{self.seed}-{self.selector.replace(', ', '-').replace(' ', '_')}"


class EveryProblemAlike(LearnAlignScorer):
    """LearnAlign with 1 in the place of p (1 - p), wherever there is a signal."""

    name = "LearnAlign, no learnability"
    prefix = "learnalign"

    def learnability(self, rewards: np.ndarray) -> float:
        return float(0.0 < success_rate(rewards, self.correct_above) < 1.0)


def _column(rows: Dataset, scorer: Any) -> np.ndarray:
    added = rows.map(scorer, batched=True, batch_size=16, features=scorer.features(rows), load_from_cache_file=False)
    return np.array(added[scorer.column], dtype=np.float64)


def warmed_up(pool: Pool, seed: int, folder: Path) -> np.ndarray:
    """The whole method: rollouts and gradients of a policy that had a short GRPO on problems of the pool."""
    plain = pool.rows.remove_columns(
        [name for name in pool.rows.column_names if name not in ("prompt", "family", "answer", "numbers", "target")]
    )
    settings = {**WARM_UP, "problems": min(int(WARM_UP["problems"]), len(plain)), "max_new_tokens": tasks.LONGEST}
    scorer = LearnAlignScorer.warmed_up(
        POLICY, plain, tasks.solved, seed=seed, out=folder / "warm", dtype="float32", **settings
    )
    return _column(plain, scorer.fit(plain, out=folder / "warm.safetensors"))


def no_learnability(pool: Pool, seed: int, folder: Path) -> np.ndarray:
    scorer = EveryProblemAlike(POLICY, dtype="float32")
    return _column(pool.rows, scorer.fit(pool.rows, out=folder / "alike.safetensors"))


def by_features(pool: Pool, seed: int, folder: Path) -> np.ndarray:
    """LearnAlign's formula with the mean last hidden state of a problem's rollouts where its gradient stood."""
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(POLICY)
    features = np.stack([hidden_state(model, reader, row) for row in pool.rows.to_list()])
    rates = np.array(pool.rows["success_rate"], dtype=np.float64)
    unit = (rates * (1.0 - rates))[:, None] * features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit @ unit.mean(axis=0)


@torch.no_grad()
def hidden_state(model: Any, reader: Any, row: dict[str, Any]) -> np.ndarray:
    """[width] mean over the tokens of each response, and over the responses."""
    prompt = reader(row["prompt"])["input_ids"]
    means = []
    for response in row["response_ids"]:
        ids = torch.tensor([[*prompt, *response]])
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        means.append(states[len(prompt) :].mean(dim=0))
    return torch.stack(means).mean(dim=0).double().numpy()


def pass_rate_band(pool: Pool, seed: int, folder: Path) -> np.ndarray:
    """Some rollouts right and some wrong; the pool's order is random, and ties go by it."""
    return _column(pool.rows, PassRateBandScorer())


ADDED: dict[str, Callable[[Pool, int, Path], np.ndarray]] = {
    "LearnAlign, warmed up": warmed_up,
    "LearnAlign, no learnability": no_learnability,
    "LearnAlign, features": by_features,
    "pass-rate band": pass_rate_band,
}


def runs(seeds: int = 3) -> list[Run]:
    """As many seeds as the recorded results have."""
    return [Run(SCENARIOS[0], seed, name) for seed in range(seeds) for name in ADDED]


def train(run: Run, design: Design = FULL, steps: int = 80) -> dict[str, Any]:
    """Accuracy before and after, and how many of the kept count, in percent."""
    example = import_module("09_train_on_the_selected")  # a name that no import statement can say
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = draw(run.scenario, design, run.seed)
        rows = best(ADDED[run.selector](pool, run.seed, folder), round(example.KEPT * len(pool.rows)))
        rate = example.LEARNING_RATE[run.scenario]
        model = example.train(
            pool.rows.select(np.sort(rows)), example.Training(steps=steps), rate, run.seed, folder / "trainer"
        )
        return {
            "before": example.accuracy(pool.evaluation, run.seed),
            "after": example.accuracy(pool.evaluation, run.seed, model),
            "counting": 100.0 * float(pool.counts[rows].mean()),
        }


def record(folder: Path, out: Path) -> Path:
    """The runs that are done, one on a line: results/rl.json."""
    cells = [json.loads(path.read_text("utf-8")) for path in sorted((folder / "cells").glob("*.json"))]
    path = out / "rl.json"
    lines = ",\n".join(f"  {json.dumps(cell)}" for cell in cells)
    path.write_text('{"cells": [\n' + lines + "\n]}\n", encoding="utf-8")
    return path


def run_all(folder: Path) -> int:
    """Does the runs that are missing."""
    return work(runs(), folder / "cells", train)
