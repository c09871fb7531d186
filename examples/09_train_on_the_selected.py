"""GRPO on what each score keeps: does the choice show in the accuracy on held-out problems?

    python examples/09_train_on_the_selected.py                       one seed, a few steps: how it is done
    python examples/09_train_on_the_selected.py --full --json trained.json

From each pool of scenarios.py a tenth is kept by each score, and the shipped policy is trained on it by TRL's
GRPOTrainer: the same optimizer steps, prompts and rollouts a step for all, so a smaller set is seen more often. Beside
the scores stand random tenths, the whole pool (`full`), and exactly the problems that count (`oracle`), which no score
may know. Printed is the accuracy on held-out problems of the part that counts: the mean reward of 4 rollouts each at
temperature 1, before and after. The learning rates were fixed on `full` and `random` alone, with another seed.

A seed draws pool, rollouts, validation and evaluation problems, and the training's order and samples anew. Standard
errors are over the seeds; `- random` is the paired difference. Where `oracle` is not clearly above `random`, the
scenario has no room for any selection to show itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset, disable_progress_bars
from sampling import one_thread
from scenarios import SCENARIOS, Design, Pool, best, draw, grpo, mean_and_error, sampled, scores
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.grpo_trainer import GRPOTrainer

from hf_curate import __version__
from hf_curate.demo import POLICY, tasks

KEPT = 0.1
COMPARED = ("GradAlign, cosine", "Align", "LearnAlign", "accuracy-greedy", "random")
ROLLOUTS = 4  # of each evaluation problem
LEARNING_RATE = {"unbalanced": 3e-4, "low-utility": 3e-5}


@dataclass(frozen=True)
class Training:
    """A run of GRPO: optimizer steps, prompts a step, rollouts a prompt."""

    steps: int = 80
    prompts: int = 8
    rollouts: int = 8


def kept_rows(pool: Pool, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Name -> the rows to train on."""
    count = round(KEPT * len(pool.rows))
    found = {name: best(values, count) for name, values in scores(pool, seed, folder) if name in COMPARED}
    return {**found, "full": np.arange(len(pool.rows)), "oracle": np.flatnonzero(pool.counts)}


def train(rows: Dataset, training: Training, learning_rate: float, seed: int, folder: Path) -> Any:
    """The shipped policy after GRPO on the rows, in float32."""
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    settings = grpo(folder, training.steps, training.prompts, training.rollouts, learning_rate, seed)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=tasks.solved,
        args=settings,
        train_dataset=rows.select_columns(["prompt", "family", "answer", "numbers", "target"]),
        processing_class=AutoTokenizer.from_pretrained(POLICY),
    )
    trainer.train()
    return model.eval()


def accuracy(problems: list[dict[str, Any]], seed: int, model: Any = None) -> float:
    """Percent right over the problems' rollouts, by the model or else the shipped policy."""
    policy = (POLICY,) if model is None else (model, AutoTokenizer.from_pretrained(POLICY))
    return 100.0 * float(np.mean(sampled(problems, ROLLOUTS, seed, *policy)["success_rate"]))


def measure(scenario: str, design: Design, training: Training, folder: Path) -> list[dict]:
    """One record for each seed."""
    found = []
    for seed in range(design.seeds):
        pool = draw(scenario, design, seed)
        before = accuracy(pool.evaluation, seed)
        after, counting = {}, {}
        for name, rows in kept_rows(pool, seed, folder).items():
            model = train(pool.rows.select(np.sort(rows)), training, LEARNING_RATE[scenario], seed, folder / "trainer")
            after[name] = accuracy(pool.evaluation, seed, model)
            counting[name] = 100.0 * float(pool.counts[rows].mean())
            print(f"{scenario}, seed {seed}, {name}: {before:.1f} -> {after[name]:.1f} %", flush=True)
        found.append({"scenario": scenario, "seed": seed, "before": before, "after": after, "counting": counting})
    return found


def table(scenario: str, found: list[dict]) -> str:
    """Score by score: accuracy after, the paired difference to random, and what part of the kept rows counts."""
    lines = [f"\n{scenario:<20}{'accuracy, %':>16}{'- random':>16}{'kept that count, %':>22}"]
    lines.append(f"{'before':<20}{mean_and_error([record['before'] for record in found]):>16}")
    chance = np.array([record["after"]["random"] for record in found])
    for name in found[0]["after"]:
        values = np.array([record["after"][name] for record in found])
        paired = "" if name == "random" else mean_and_error(values - chance)
        counting = mean_and_error([record["counting"][name] for record in found])
        lines.append(f"{name:<20}{mean_and_error(values):>16}{paired:>16}{counting:>22}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy after GRPO on what each score keeps.")
    parser.add_argument("--full", action="store_true", help="larger pools, 80 steps, three seeds: most of an hour")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="only this one")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    asked = parser.parse_args()
    design = Design(600, 16, 64, 64, 300, 3) if asked.full else Design()
    training = Training() if asked.full else Training(2, 4, 4)
    start = time.perf_counter()
    found = []
    disable_progress_bars()
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        for scenario in asked.scenario or (SCENARIOS if asked.full else SCENARIOS[:1]):
            own = measure(scenario, design, training, Path(folder) / scenario)
            print(table(scenario, own), end="\n\n", flush=True)
            found += own
    seconds = time.perf_counter() - start
    print(
        f"{design.pool} problems, a tenth of them kept; {training.steps} steps of {training.prompts} prompts x "
        f"{training.rollouts} rollouts, learning rates {LEARNING_RATE}; evaluation {design.evaluation} "
        f"problems x {ROLLOUTS}; seeds: {design.seeds}; {seconds:.0f} s"
    )
    if asked.json:
        versions = {"hf_curate": __version__, "torch": torch.__version__, "trl": trl.__version__}
        record = {"design": asdict(design), "training": asdict(training), "learning_rate": LEARNING_RATE}
        record |= {"seconds": round(seconds, 1)}
        record |= {"versions": versions, "found": found}
        asked.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
