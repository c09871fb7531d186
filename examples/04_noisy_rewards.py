"""Half of the problems have rewards by coin toss: which scores still find the others?

    python examples/04_noisy_rewards.py
    python examples/04_noisy_rewards.py --full --json noisy_rewards.json

The first setting of GradAlign (arXiv 2602.21492), small: candidates are held-out problems of the demo's arithmetic
with rollouts of the shipped model at temperature 1, and half of them, chosen at random, get Bernoulli(0.5) rewards in
place of the true ones. The validation gradient comes from other problems with more rollouts and true rewards. Printed
is the share of corrupted problems in the top quarter by each score: chance is 50 %. Problems without signal stay in
the pool with score 0; ties go by the order of the rows, which says nothing of corruption; nulls come last. A second
table asks how much of that is direction: a score that finds clean problems by its sign finds few by minus the score,
and one that finds them by its size finds them by |score| as well.

A seed draws the problems, the rollouts, the corruption and the validation set anew; the model stays. 16 rollouts are
the first of the 64. Standard errors are over the seeds, and `- cosine` is the paired difference. Nothing is trained
here. The authors' numbers are of a large language model on mathematics, at step 0.
`--full` took 11 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from one_pass import score_at_once
from sampling import load_demo_model, one_thread, sampled_rows

from hf_curate import (
    AccuracyGreedyScorer,
    AlignScorer,
    GradAlignScorer,
    LearnAlignScorer,
    RandomScorer,
    __version__,
)
from hf_curate.demo import MODEL, world
from hf_curate.scorers.gradalign import STATISTICS

AUTHORS = {"GradAlign, cosine": 17.8, "Align": 33.5, "accuracy-greedy": 81.8}  # at step 0, percent
REFERENCE = "GradAlign, cosine"
KEPT = 0.25


@dataclass(frozen=True)
class Design:
    """Candidates and their rollouts, validation problems and theirs, and how often all of it is drawn."""

    candidates: int = 24
    rollouts: tuple[int, ...] = (16,)
    validation: int = 8
    validation_rollouts: int = 16
    seeds: int = 1


FULL = Design(256, (16, 64), 64, 128, 5)


@dataclass
class Pool:
    """The candidates with all their rollouts, which of them are corrupted, and the trusted problems."""

    rows: list[dict]
    corrupted: np.ndarray
    trusted: Dataset


def draw(design: Design, seed: int) -> Pool:
    """Everything that a seed decides. Exactly half of the candidates are corrupted; no problem has two roles."""
    model, tokenizer = load_demo_model()
    count = design.candidates + design.validation
    problems = world.draw_problems(count, random.Random(seed), "held_out")
    prompts = [problem.prompt for problem in problems]
    rows = sampled_rows(model, tokenizer, prompts[: design.candidates], max(design.rollouts), seed=2 * seed)
    own = prompts[design.candidates :]
    trusted = sampled_rows(model, tokenizer, own, design.validation_rollouts, seed=2 * seed + 1)
    rng = np.random.default_rng([seed, design.candidates])
    corrupted = rng.permutation(design.candidates) < design.candidates // 2
    for row, coin in zip(rows, corrupted, strict=True):
        tosses = rng.integers(0, 2, len(row["rewards"]))
        row["rewards"] = tosses.astype(float).tolist() if coin else row["rewards"]
    return Pool(rows, corrupted, Dataset.from_list(trusted))


def scores(pool: Pool, n: int, seed: int, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, [rows] scores) by every scorer, from the first n rollouts of each candidate; null is NaN."""
    rows = [{**row, "response_ids": row["response_ids"][:n], "rewards": row["rewards"][:n]} for row in pool.rows]
    dataset = Dataset.from_list(rows)
    gradalign = GradAlignScorer(MODEL, validation=pool.trusted, dtype="float32")
    gradalign.fit(pool.trusted, out=folder / f"validation-{seed}.safetensors")
    at_once = score_at_once(gradalign, rows)
    yield from ((f"GradAlign, {name}", at_once[name]) for name in STATISTICS)
    others = {
        "Align": AlignScorer(MODEL, dtype="float32").fit(dataset, out=folder / f"pool-{seed}-{n}.safetensors"),
        "LearnAlign": LearnAlignScorer(MODEL, dtype="float32").fit(
            dataset, out=folder / f"mean-{seed}-{n}.safetensors"
        ),
        "accuracy-greedy": AccuracyGreedyScorer(),
        "random": RandomScorer(seed=seed),
    }
    for name, scorer in others.items():
        scored = dataset.map(scorer, batched=True, features=scorer.features(dataset), load_from_cache_file=False)
        yield name, np.array(scored[scorer.column], dtype=np.float64)


def corrupted_share(found: np.ndarray, corrupted: np.ndarray) -> float:
    """Percent of corrupted problems in the top quarter, ties by order, NaN last."""
    order = np.argsort(-np.nan_to_num(found, nan=-np.inf), kind="stable")
    return 100.0 * float(corrupted[order[: round(KEPT * len(order))]].mean())


def measure(design: Design, folder: Path) -> list[dict]:
    """One record for each seed and number of rollouts."""
    found = []
    for seed in range(design.seeds):
        pool = draw(design, seed)
        for n in design.rollouts:
            start = time.perf_counter()
            known = dict(scores(pool, n, seed, folder))
            silent = np.array([len(set(row["rewards"][:n])) == 1 for row in pool.rows])
            record = {
                "seed": seed,
                "rollouts": n,
                "corrupted_share": {name: corrupted_share(values, pool.corrupted) for name, values in known.items()},
                "control": {
                    name: {
                        "reversed": corrupted_share(-values, pool.corrupted),
                        "size": corrupted_share(np.abs(values), pool.corrupted),
                    }
                    for name, values in known.items()
                    if name.startswith("GradAlign")
                },
                "nulls": {name: int(np.isnan(values).sum()) for name, values in known.items()},
                "without_signal": {
                    "clean": int(silent[~pool.corrupted].sum()),
                    "corrupted": int(silent[pool.corrupted].sum()),
                },
            }
            found.append({**record, "seconds": round(time.perf_counter() - start, 1)})
    return found


def mean_and_error(values: np.ndarray) -> str:
    """Mean and its standard error over the seeds; one seed has none."""
    error = f"{values.std(ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else "-"
    return f"{values.mean():>7.1f} +- {error:>3}"


def table(design: Design, found: list[dict]) -> str:
    """Scorer by scorer: share and paired difference to the cosine, for each number of rollouts."""
    columns = "".join(f"{f'{n} rollouts':>15}{'- cosine':>15}" for n in design.rollouts)
    lines = [f"{'':<20}{columns}{'authors':>10}"]
    for name in found[0]["corrupted_share"]:
        line = f"{name:<20}"
        for n in design.rollouts:
            shares = [record["corrupted_share"] for record in found if record["rollouts"] == n]
            values = np.array([share[name] for share in shares])
            paired = values - np.array([share[REFERENCE] for share in shares])
            line += f"{mean_and_error(values):>15}{mean_and_error(paired) if name != REFERENCE else '':>15}"
        lines.append(line + f"{AUTHORS.get(name, ''):>10}")
    return "\n".join(lines)


def control(design: Design, found: list[dict]) -> str:
    """What of it is direction: the top quarter by the score, by minus the score, and by its size alone."""
    columns = "".join(f"{f'{n}: top':>15}{'minus score':>15}{'|score|':>15}" for n in design.rollouts)
    lines = [f"{'':<20}{columns}"]
    for name in found[0]["control"]:
        line = f"{name:<20}"
        for n in design.rollouts:
            records = [record for record in found if record["rollouts"] == n]
            line += f"{mean_and_error(np.array([r['corrupted_share'][name] for r in records])):>15}"
            for kind in ("reversed", "size"):
                line += f"{mean_and_error(np.array([r['control'][name][kind] for r in records])):>15}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Corrupted rewards: the share of them that each score keeps.")
    parser.add_argument("--full", action="store_true", help="more candidates and rollouts, five seeds; minutes")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    asked = parser.parse_args()
    design = FULL if asked.full else Design()
    start = time.perf_counter()
    disable_progress_bars()
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        found = measure(design, Path(folder))
    seconds = time.perf_counter() - start
    print(
        f"{design.candidates} candidates, half of them corrupted; validation {design.validation} problems x "
        f"{design.validation_rollouts} rollouts; seeds: {design.seeds}; {seconds:.0f} s\n\n"
        "Corrupted problems in the top quarter, % (mean +- standard error):\n"
    )
    print(table(design, found))
    print("\nHow much of it is direction? The same share in the top quarter by minus the score, and by its size:\n")
    print(control(design, found))
    for n in design.rollouts:
        records = [record for record in found if record["rollouts"] == n]
        silent = {kind: np.mean([r["without_signal"][kind] for r in records]) for kind in ("clean", "corrupted")}
        nulls = {name: sum(r["nulls"][name] for r in records) for name in records[0]["nulls"]}
        said = ", ".join(f"{name} {count}" for name, count in nulls.items() if count) or "none"
        print(
            f"\n{n} rollouts: {silent['clean']:.1f} clean and {silent['corrupted']:.1f} corrupted problems a pool are "
            f"without signal; nulls in all: {said}"
        )
    if asked.json:
        versions = {"hf_curate": __version__, "torch": torch.__version__}
        record = {"design": asdict(design), "seconds": round(seconds, 1), "versions": versions, "found": found}
        asked.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
