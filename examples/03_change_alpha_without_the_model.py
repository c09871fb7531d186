"""Score once, then try other settings: every GRACE score is a function of one small matrix of inner products.

    python examples/03_change_alpha_without_the_model.py

`keep_gram=True` stores the matrix for each row, (steps + 1) squared floats. How much does the choice of alpha and
history matter for the top 20 %? Here is the overlap with the default's.
"""

import numpy as np

from hf_curate import GraceScorer, score, step_scores
from hf_curate.demo import MODEL, load_traces

scored = score(load_traces(), GraceScorer(MODEL, dtype="float32", keep_gram=True))
grams = [
    np.reshape(gram, (len(tokens), len(tokens)))
    for gram, tokens in zip(scored["grace_gram"], scored["grace_gram_tokens"], strict=True)
]
budget = len(scored) // 5


def top(**settings: object) -> set[int]:
    """Row numbers of the top 20 % under other settings."""
    tokens = scored["grace_gram_tokens"]
    values = [step_scores(gram, count, **settings).mean() for gram, count in zip(grams, tokens, strict=True)]  # type: ignore[arg-type]
    return set(np.argsort(values)[-budget:].tolist())


default = top()
for settings in ({"alpha": 0.5}, {"alpha": 0.9}, {"alpha": 1.0}, {"history": ("window", 1)}, {"target": "suffix"}):
    shared = len(default & top(**settings)) / budget
    print(f"{settings!s:<28} {shared:.0%} of the default's rows")
