"""Small scored datasets, as `score` leaves them, made without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

SCORES = Features(
    {
        "grace_step_scores": List(Value("float32")),
        "grace_value": Value("float32"),
        "grace_tokens": Value("int32"),
        "grace_loss": Value("float32"),
        "grace_error": Value("string"),
    }
)
MODEL = {
    "id": "tiny/model",
    "sha": "c1899de289a04d12100db370d81485cdf75e47ca",
    "digest": None,
    "dtype": "float32",
    "architecture": "Qwen3ForCausalLM",
    "warm_up": None,
}


class Scorer:
    """What `select` asks of a scorer, and nothing else."""

    columns = SCORES
    column = "grace_value"
    identity = "5d41402abc4b2a76b9719d911017c592aa7d3e4f5c6b7a8998a7b6c5d4e3f201"

    def record(self) -> dict[str, Any]:
        columns = {"level": "prompt+completion", "prompt": "prompt", "completion": "completion"}
        columns |= {"answer": None, "steps": None, "messages": None}
        settings = {"alpha": 0.7, "history": "uniform", "target": "answer", "proxy": "representation"}
        settings |= {"split_steps": "auto", "max_length": 512, "columns": columns}
        return {
            "name": "GRACE",
            "class": "GraceScorer",
            "algorithm_version": 1,
            "identity": self.identity,
            "column": self.column,
            "settings": settings,
            "model": MODEL,
        }

    def __call__(self, rows: Any) -> Any:
        raise AssertionError("nothing is scored here")


def pool(rows: int = 100, failed: int = 8, seed: int = 0) -> Dataset:
    """`rows` rows, of which every so many-th failed with a reason; prompts repeat now and then."""
    rng = np.random.default_rng(seed)
    bad = set(np.linspace(1, rows - 2, failed).astype(int).tolist()) if failed else set()
    table: dict[str, list[Any]] = {name: [] for name in ("prompt", "completion", "topic", *SCORES)}
    for i in range(rows):
        steps = int(rng.integers(1, 6))
        table["prompt"].append(f"question {i if i % 20 else 0}")
        table["completion"].append(f"step\n#### {i}")
        table["topic"].append(["algebra", "geometry", "logic"][int(rng.integers(0, 10)) // 4])
        ok = i not in bad
        table["grace_step_scores"].append(rng.normal(size=steps).astype(np.float32).tolist() if ok else None)
        table["grace_value"].append(np.float32(round(rng.normal(), 1)) if ok else None)
        table["grace_tokens"].append(20 * steps + int(rng.integers(0, 9)) if ok else None)
        table["grace_loss"].append(np.float32(rng.random()) if ok else None)
        table["grace_error"].append("" if ok else ("no answer: none found" if i % 2 else "too long: 900 tokens"))
    features = Features({**dict.fromkeys(("prompt", "completion", "topic"), Value("string")), **SCORES})
    return Dataset.from_dict(table, features=features)


def plain(score: Any = (1.0, 2.0, 3.0, 4.0), **columns: Any) -> Dataset:
    """Rows a, b, c, ... with a column `score`."""
    score = list(score)
    return Dataset.from_dict({"prompt": [chr(97 + i) for i in range(len(score))], **columns, "score": score})
