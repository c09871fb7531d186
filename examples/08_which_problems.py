"""Most of the pool is beside the point: which scores find the problems that are not?

    python examples/08_which_problems.py
    python examples/08_which_problems.py --full --json which_problems.json

The second and third setting of GradAlign (arXiv 2602.21492), small, with the shipped policy of three task families:
an unbalanced pool, in which one problem in ten is of the family that the validation problems are of, and a pool of low
utility, in which nine problems in ten are mastered (see scenarios.py). Printed is the share of problems that count
among the best 5 % by each score; chance is 10 %, and where every kept problem counts it is 100 %. Problems without
signal stay in the pool with score 0.

A seed draws problems and rollouts anew; the policy stays. Standard errors are over the seeds, and `- random` is the
paired difference. Nothing is trained here: 09 does that. The authors' numbers are of a large language model and a pool
of 34 thousand problems with 4 thousand of the target task, at step 0.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from datasets import disable_progress_bars
from sampling import one_thread
from scenarios import FULL, SCENARIOS, Design, best, draw, mean_and_error, scores

from hf_curate import __version__

KEPT = 0.05
AUTHORS = {"GradAlign, cosine": 92.9, "Align": 47.2, "accuracy-greedy": 7.8}  # unbalanced, at step 0, percent


def measure(scenario: str, design: Design, folder: Path) -> list[dict]:
    """One record for each seed."""
    found = []
    for seed in range(design.seeds):
        start = time.perf_counter()
        pool = draw(scenario, design, seed)
        kept = round(KEPT * design.pool)
        rate = np.array(pool.rows["success_rate"])
        silent = np.array([len(set(rewards)) == 1 for rewards in pool.rows["rewards"]])
        record = {
            "scenario": scenario,
            "seed": seed,
            "share": {
                name: 100.0 * float(pool.counts[best(values, kept)].mean())
                for name, values in scores(pool, seed, folder)
            },
            "success_rate": {"counts": float(rate[pool.counts].mean()), "others": float(rate[~pool.counts].mean())},
            "without_signal": {
                "counts": float(silent[pool.counts].mean()),
                "others": float(silent[~pool.counts].mean()),
            },
        }
        found.append({**record, "seconds": round(time.perf_counter() - start, 1)})
    return found


def table(scenario: str, found: list[dict]) -> str:
    """Scorer by scorer: share, and the paired difference to random."""
    authors = AUTHORS if scenario == "unbalanced" else {}
    lines = [f"{scenario:<20}{'share, %':>16}{'- random':>16}{'authors' if authors else '':>10}"]
    chance = np.array([record["share"]["random"] for record in found])
    for name in found[0]["share"]:
        values = np.array([record["share"][name] for record in found])
        paired = "" if name == "random" else mean_and_error(values - chance)
        lines.append(f"{name:<20}{mean_and_error(values):>16}{paired:>16}{authors.get(name, ''):>10}")
    for what, said in (("success_rate", "success rate"), ("without_signal", "share without signal")):
        values = {part: np.mean([record[what][part] for record in found]) for part in ("counts", "others")}
        lines.append(f"{said}: {values['counts']:.2f} of those that count, {values['others']:.2f} of the others")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The share of problems that count among those that each score keeps.")
    parser.add_argument("--full", action="store_true", help="larger pools, more rollouts, five seeds; minutes")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    asked = parser.parse_args()
    design = FULL if asked.full else Design()
    start = time.perf_counter()
    found = []
    disable_progress_bars()
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        for scenario in SCENARIOS:
            own = measure(scenario, design, Path(folder) / scenario)
            print(table(scenario, own), end="\n\n", flush=True)
            found += own
    seconds = time.perf_counter() - start
    print(
        f"{design.pool} problems, {design.rollouts} rollouts each; validation {design.validation} problems x "
        f"{design.validation_rollouts} rollouts; best {KEPT:.0%}; seeds: {design.seeds}; {seconds:.0f} s"
    )
    if asked.json:
        versions = {"hf_curate": __version__, "torch": torch.__version__}
        record = {"design": asdict(design), "seconds": round(seconds, 1), "versions": versions, "found": found}
        asked.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
