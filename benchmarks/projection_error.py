"""How far cosines of projected policy gradients are from the exact ones, by the dimension kept of each layer.

    python benchmarks/projection_error.py

64 held-out problems of the demo's arithmetic, 16 rollouts each, sampled by the demo model at temperature 1; the
gradients of those with signal over all linear layers, whole and projected with 5 seeds. Cosines of all pairs, and
LearnAlign's scores, are compared. Writes results/projection_error.json.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from hf_curate import LearnAlignScorer
from hf_curate.demo import MODEL, world
from hf_curate.gradients.inner import whole_gradient
from hf_curate.gradients.project import Projection
from hf_curate.models import evaluating
from hf_curate.scorers.fitting import advantages, has_signal
from hf_curate.scorers.groups import Group
from hf_curate.stats import spearman

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from sampling import load_demo_model, sampled_rows

PROBLEMS, ROLLOUTS = 64, 16
DIMENSIONS = (4, 16, 64, 256, 1024, 4096)
SEEDS = 5


def gradients(scorer: LearnAlignScorer, rows: Dataset) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """The whole gradient of every problem with signal, and its learnability."""
    model = scorer.load()
    found, values = [], []
    for row in rows:
        group = scorer.reader.read(row)  # type: ignore[arg-type]
        assert isinstance(group, Group)
        if not has_signal(group.rewards):
            continue
        with evaluating(model.model):
            whole = whole_gradient(model, group.rollouts, advantages(group.rewards).tolist(), scorer.chosen(model))
        if whole is not None:
            found.append(whole[0])
            values.append(scorer.learnability(group.rewards))
    return found, values


def cosines(gram: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.diag(gram))
    return gram / norms / norms[:, None]


def main() -> None:
    torch.set_num_threads(1)
    prompts = [problem.prompt for problem in world.draw_problems(PROBLEMS, random.Random(0), "held_out")]
    rows = Dataset.from_list(sampled_rows(*load_demo_model(), prompts, ROLLOUTS, seed=0))
    scorer = LearnAlignScorer(MODEL, dtype="float32")
    whole, values = gradients(scorer, rows)
    v = np.array(values)
    names = list(whole[0])
    gram = sum(m @ m.T for m in (torch.stack([g[n].flatten().double() for g in whole]).numpy() for n in names))
    exact = cosines(np.asarray(gram))
    upper = np.triu_indices(len(whole), 1)
    scores = v * (exact @ v)
    results = []
    print(
        f"{len(whole)} of {PROBLEMS} problems with signal; cosines from {exact[upper].min():.2f} to "
        f"{exact[upper].max():.2f}, standard deviation {exact[upper].std():.3f}"
    )
    print(f"{'dim a layer':>12}{'features':>10}{'rms error':>11}{'largest':>9}{'Spearman of LearnAlign scores':>32}")
    for dim in DIMENSIONS:
        errors, ranks, size = [], [], 0
        for seed in range(SEEDS):
            projection = Projection(scorer.chosen(scorer.load()), dim, seed)
            size = projection.size
            features = torch.zeros(len(whole), size)
            for i, gradient in enumerate(whole):
                for name in names:
                    projection.into(features[i], name, gradient[name])
            wide = features.double().numpy()
            found = cosines(wide @ wide.T)
            errors.append((found - exact)[upper])
            ranks.append(spearman(v * (found @ v), scores))
        error = np.concatenate(errors)
        line = {
            "dim": dim,
            "features": size,
            "rms_error": float(np.sqrt((error**2).mean())),
            "largest_error": float(np.abs(error).max()),
            "spearman_of_scores": [float(rank or 0.0) for rank in ranks],
        }
        results.append(line)
        print(
            f"{dim:>12}{size:>10,}{line['rms_error']:>11.3f}{line['largest_error']:>9.3f}"
            f"{min(line['spearman_of_scores']):>24.3f} - {max(line['spearman_of_scores']):.3f}"
        )
    told = {
        "problems": PROBLEMS,
        "with_signal": len(whole),
        "rollouts": ROLLOUTS,
        "seeds": SEEDS,
        "std_of_exact_cosines": float(exact[upper].std()),
        "by_dimension": results,
    }
    path = Path(__file__).parent / "results" / "projection_error.json"
    path.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
