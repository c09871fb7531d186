"""Bergson's scores of the same rollouts, for `policy_over_bergson.py`: run by the Python of Bergson's own environment.

Reads one JSON line that says what to score, makes it ready, and then scores once for every line "go": the answer is a
JSON line with the seconds and the score of each rollout.
"""

# pyright: reportMissingImports=false
# Bergson is in another environment than this project's

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any


def ready(asked: dict[str, Any]) -> Callable[[], tuple[float, list[float]]]:
    """asked: folder of the model, file of the direction, rollouts ("input_ids", "start"), tokens of a batch,
    threads."""
    import torch
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.data import allocate_batches
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.score.scorer import Scorer
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    direction = load_file(asked["direction"])
    ids = [rollout["input_ids"] for rollout in asked["rollouts"]]
    labels = [[-100] * r["start"] + r["input_ids"][r["start"] :] for r in asked["rollouts"]]
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    batches = allocate_batches(list(map(len, ids)), asked["batch_tokens"])
    inside = model.base_model_prefix
    query = {
        name.removeprefix(f"{inside}.").removesuffix(".weight"): tensor.flatten()[None]
        for name, tensor in direction.items()
    }

    def score() -> tuple[float, list[float]]:
        writer = InMemorySequenceScoreWriter(len(data), 1)
        scorer = Scorer(query, list(query), writer, torch.device("cpu"), torch.float32)
        with tempfile.TemporaryDirectory() as place:
            cfg = IndexConfig(run_path=f"{place}/run", loss_reduction="mean", loss_fn="ce")
            cfg.partial_run_path.mkdir(parents=True)
            collector = InMemoryCollector(model=model.base_model, data=data, cfg=cfg, scorer=scorer)
            assert set(collector.target_info) == set(query), "other modules"
            start = time.perf_counter()
            CollectorComputer(model, data, collector=collector, batches=batches, cfg=cfg).run_with_collector_hooks()
            return time.perf_counter() - start, writer.scores[:, 0].tolist()

    return score


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    score = ready(json.loads(sys.stdin.readline()))
    for _ in sys.stdin:
        seconds, scores = score()
        print(json.dumps({"seconds": seconds, "scores": scores}), file=answers, flush=True)


if __name__ == "__main__":
    main()
