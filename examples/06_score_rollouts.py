"""The four verbs on rollouts: which problems are worth a policy-gradient step?

    python examples/06_score_rollouts.py

A row is a problem with several sampled responses and their rewards. GradAlign asks whether a problem's policy gradient
points where a trusted validation set wants to go, LearnAlign whether it is neither solved nor hopeless and agrees with
the rest of the pool. With your own data the rows come from your sampler, with `prompt` or `messages`, `responses` or
`response_ids`, and `rewards`; the rest stays as it is.
"""

import random
import tempfile

from datasets import Dataset, load_dataset
from sampling import load_demo_model, one_thread, sampled_rows

from hf_curate import GradAlignScorer, LearnAlignScorer, load_curated, score, select
from hf_curate.demo import MODEL, world

model, tokenizer = load_demo_model()
prompts = [problem.prompt for problem in world.draw_problems(32, random.Random(0), "held_out")]
pool = Dataset.from_list(sampled_rows(model, tokenizer, prompts[:24], 16, seed=0))
trusted = Dataset.from_list(sampled_rows(model, tokenizer, prompts[24:], 16, seed=1))

with one_thread(), tempfile.TemporaryDirectory() as folder:
    learnalign = LearnAlignScorer(MODEL, dtype="float32").fit(pool, out=f"{folder}/pool.safetensors")
    gradalign = GradAlignScorer(MODEL, validation=trusted, dtype="float32")
    gradalign.fit(trusted, out=f"{folder}/validation.safetensors")  # without it: at the first row, in the cache
    scored = score(score(pool, learnalign), gradalign)
    keys = ("prompt", "learnability", "learnalign_score", "gradalign_score", "gradalign_stderr", "gradalign_error")
    print({key: scored[0][key] for key in keys})

    picked = select(scored, gradalign, budget="25%")
    print(picked)
    print("also kept by other choices:", {name: found["shared"] for name, found in picked.baselines.items()})
    picked.save(f"{folder}/curated", "gradalign-25pct")
    print(load_dataset(f"{folder}/curated", "gradalign-25pct", split="train"))
    print(load_curated(f"{folder}/curated", "gradalign-25pct").manifest["selector"]["name"])
