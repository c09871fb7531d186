"""How far does a problem's score depend on which rollouts were drawn? Split halves of the same problems' rollouts.

    python examples/05_reliability.py
    python examples/05_reliability.py --full --json reliability.json

Every candidate has two independent halves of n rollouts (true rewards, temperature 1), each is scored, and the two
columns of scores are correlated over the candidates. The first table takes ONE validation gradient for both halves,
so that its noise is shared and does not show; the second, with --full, scores the second half against the
gradient of other validation problems with rollouts of their own. Standard errors: bootstrap over the candidates, for
this model, this draw of rollouts and these validation problems.

The authors (arXiv 2602.21492) report 0.30, 0.49 and 0.79 between two draws of 32, 128 and 512 rollouts, with a large
language model on mathematics: other policy, problems and rewards, so that the trend compares and the numbers do not.
`--full` took 4 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from one_pass import score_at_once
from sampling import load_demo_model, one_thread, sampled_rows

from hf_curate import GradAlignScorer, __version__
from hf_curate.demo import MODEL, world
from hf_curate.scorers.gradalign import STATISTICS

AUTHORS = {32: 0.30, 128: 0.49, 512: 0.79}
COLUMNS = (*STATISTICS, "success rate")
RESAMPLES = 2000


@dataclass(frozen=True)
class Design:
    """Candidates, rollouts in each half, validation problems and rollouts of each, and whether to draw them twice."""

    candidates: int = 16
    halves: tuple[int, ...] = (8, 16)
    validation: int = 8
    validation_rollouts: int = 16
    second_direction: bool = False
    seed: int = 0


FULL = Design(128, (8, 16, 32, 64, 128, 512), 64, 128, True)


@dataclass
class Pool:
    """The candidates with all their rollouts, and one or two scorers with validation gradients of their own."""

    rows: list[dict]
    scorers: list[GradAlignScorer]


def draw(design: Design, folder: Path) -> Pool:
    """Draws problems and rollouts, and fits the validation gradients; no problem has two roles."""
    model, tokenizer = load_demo_model()
    draws = 2 if design.second_direction else 1
    count = design.candidates + draws * design.validation
    problems = world.draw_problems(count, random.Random(design.seed), "held_out")
    prompts = [problem.prompt for problem in problems]
    rows = sampled_rows(model, tokenizer, prompts[: design.candidates], 2 * max(design.halves), seed=design.seed)
    scorers = []
    for index in range(draws):
        first = design.candidates + index * design.validation
        own = prompts[first : first + design.validation]
        seed = design.seed + 1001 + index  # other random numbers than the candidates'
        trusted = Dataset.from_list(sampled_rows(model, tokenizer, own, design.validation_rollouts, seed=seed))
        scorer = GradAlignScorer(MODEL, validation=trusted, dtype="float32")
        scorers.append(scorer.fit(trusted, out=folder / f"validation-{index}.safetensors"))
    return Pool(rows, scorers)


def half(rows: list[dict], which: int, n: int) -> list[dict]:
    """The rows with the first n rollouts of their first (0) or second (1) half."""
    start = which * (len(rows[0]["rewards"]) // 2)
    part = slice(start, start + n)
    return [{**row, "response_ids": row["response_ids"][part], "rewards": row["rewards"][part]} for row in rows]


def scores(scorer: GradAlignScorer, rows: list[dict]) -> dict[str, np.ndarray]:
    """Column -> [rows] scores."""
    return {**score_at_once(scorer, rows), "success rate": np.array([np.mean(row["rewards"]) for row in rows])}


def reliability(first: np.ndarray, second: np.ndarray, seed: int) -> dict[str, float | int]:
    """Pearson correlation of two draws' scores, its bootstrap standard error, and the candidates that have both."""
    both = np.isfinite(first) & np.isfinite(second)
    a, b = first[both], second[both]
    rng = np.random.default_rng(seed)
    again = [_pearson(a[pick], b[pick]) for pick in rng.integers(0, len(a), (RESAMPLES, len(a)))]
    return {"pearson": _pearson(a, b), "standard_error": float(np.std(again, ddof=1)), "candidates": int(both.sum())}


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def measure(design: Design, pool: Pool) -> list[dict]:
    """One record for each number of rollouts."""
    found = []
    for n in design.halves:
        start = time.perf_counter()
        rows = [half(pool.rows, which, n) for which in (0, 1)]
        one, two = (scores(pool.scorers[0], part) for part in rows)
        signal = np.mean(
            [len(set(a["rewards"])) > 1 and len(set(b["rewards"])) > 1 for a, b in zip(*rows, strict=True)]
        )
        record = {
            "rollouts": n,
            "signal_in_both": float(signal),
            "authors": AUTHORS.get(n),
            "same_direction": {name: reliability(one[name], two[name], design.seed) for name in COLUMNS},
        }
        if design.second_direction:
            other = scores(pool.scorers[1], rows[1])
            record["own_directions"] = {name: reliability(one[name], other[name], design.seed) for name in STATISTICS}
        found.append({**record, "seconds": round(time.perf_counter() - start, 1)})
    return found


def table(found: list[dict], which: str, names: tuple[str, ...]) -> str:
    lines = [f"{'rollouts':>8}" + "".join(f"{name:>15}" for name in names) + f"{'signal':>9}{'authors':>9}"]
    for record in found:
        cells = [record[which][name] for name in names]
        line = f"{record['rollouts']:>8}" + "".join(
            f"{cell['pearson']:>8.2f} +-{cell['standard_error']:>4.2f}" for cell in cells
        )
        authors = f"{record['authors']:.2f}" if record["authors"] is not None else "-"
        lines.append(f"{line}{record['signal_in_both']:>9.0%}{authors:>9}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Split-half reliability of GradAlign's statistics.")
    parser.add_argument("--full", action="store_true", help="more candidates, and up to 512 rollouts in a half")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    asked = parser.parse_args()
    design = FULL if asked.full else Design()
    start = time.perf_counter()
    disable_progress_bars()
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        pool = draw(design, Path(folder))
        found = measure(design, pool)
    seconds = time.perf_counter() - start
    rates = [np.mean(row["rewards"]) for row in pool.rows]
    print(
        f"{design.candidates} candidates (mean success rate {np.mean(rates):.2f}); validation {design.validation} "
        f"problems x {design.validation_rollouts} rollouts; {seconds:.0f} s\n"
        "\nPearson between two halves +- standard error; one validation gradient for both:\n"
    )
    print(table(found, "same_direction", COLUMNS))
    if design.second_direction:
        print("\nEach half against a validation gradient of its own (other problems, other rollouts):\n")
        print(table(found, "own_directions", STATISTICS))
    print("\nsignal: candidates whose rewards differ in both halves; the others score exactly 0 in one half or both.")
    if asked.json:
        versions = {"hf_curate": __version__, "torch": torch.__version__}
        record = {"design": asdict(design), "seconds": round(seconds, 1), "versions": versions, "found": found}
        asked.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
