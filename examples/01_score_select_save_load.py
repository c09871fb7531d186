"""The four verbs on the traces that ship with hf_curate: score, select, save, load.

    python examples/01_score_select_save_load.py

Takes a few seconds on a laptop. With your own data, replace `load_traces()` by `datasets.load_dataset(...)` and
`MODEL` by a Hub id or a folder; the rest stays as it is.
"""

import tempfile

from datasets import load_dataset

from hf_curate import GraceScorer, load_curated, score, select
from hf_curate.demo import MODEL, load_traces

dataset = load_traces()
scorer = GraceScorer(MODEL, dtype="float32")
scored = score(dataset, scorer)
print(scored[0])

picked = select(scored, scorer, budget="20%")
print(picked)
print("also kept by simpler choices:", {name: found["shared"] for name, found in picked.baselines.items()})

with tempfile.TemporaryDirectory() as folder:
    picked.save(folder, "grace-20pct")
    print(load_dataset(folder, "grace-20pct", split="train"))
    print(load_curated(folder, "grace-20pct").manifest["digests"])
