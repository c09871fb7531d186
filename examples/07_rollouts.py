"""From problems to a selection: sample rollouts, verify them, score by GradAlign, select.

    python examples/07_rollouts.py

A row is a problem and its gold answer, nothing else. `Rollouts` samples n responses to each from the policy, and a
verifier says which of them are right: here "exact" with a pattern for the answer line of the demo's arithmetic, for
mathematics "math", else a reward function as TRL takes it. Given to a scorer as `rollouts=`, they are made where rows
lack them, and the scorer's record says how: policy, temperature, seed, and the verifier with its known mistakes.
"""

import random
import tempfile

from datasets import Dataset
from sampling import one_thread

from hf_curate import GradAlignScorer, Rollouts, score, select, verifier
from hf_curate.demo import MODEL, world


def problems(count: int, seed: int) -> Dataset:
    drawn = world.draw_problems(count, random.Random(seed), "held_out")
    return Dataset.from_list([{"prompt": one.prompt, "answer": str(world.true_answer(one.prompt))} for one in drawn])


with one_thread(), tempfile.TemporaryDirectory() as folder:
    answer_line = verifier("exact", pattern=r"(?m)^#(\d+)$")
    rollouts = Rollouts(MODEL, answer_line, n=8, max_new_tokens=48, dtype="float32")

    rolled = score(problems(4, seed=1), rollouts)  # the rollouts alone
    print({key: rolled[0][key] for key in ("prompt", "responses", "rewards", "success_rate", "rollouts_outcomes")})

    gradalign = GradAlignScorer(MODEL, validation=problems(12, seed=2), rollouts=rollouts, dtype="float32")
    gradalign.fit(gradalign.validation, out=f"{folder}/validation.safetensors")  # without it: in the cache
    scored = score(problems(32, seed=0), gradalign)
    picked = select(scored, gradalign, budget="25%")
    print(picked)
    picked.save(f"{folder}/curated", "gradalign-25pct")
    made = gradalign.record()["rollouts"]
    print(made["call"])
    print(f"{made['verifier']['name']} {made['verifier']['version']}: {made['verifier']['failure_surface']}")
