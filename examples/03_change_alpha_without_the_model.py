"""Score once, then try other settings: every GRACE score is a function of one small matrix of inner products.

    python examples/03_change_alpha_without_the_model.py

`keep_gram=True` stores the matrix for each row, (steps + 1) squared floats. How much does the choice of alpha and
history matter for the top 20 %? Here is the overlap with the default's.
"""

import numpy as np

from hf_curate import GraceScorer, score, step_scores
from hf_curate.demo import MODEL, load_traces

scored = score(load_traces(), GraceScorer(MODEL, dtype="float32", keep_gram=True))
pairs = zip(scored["grace_gram"], scored["grace_gram_tokens"], strict=True)
grams = [np.reshape(gram, (len(tokens), len(tokens))) for gram, tokens in pairs]
budget = len(scored) // 5


def top(alpha: float = 0.7, history: str | tuple[str, float] = "uniform", target: str = "answer") -> set[int]:
    """Row numbers of the top 20 % under other settings."""
    values = [
        step_scores(gram, tokens, alpha=alpha, history=history, target=target).mean()
        for gram, tokens in zip(grams, scored["grace_gram_tokens"], strict=True)
    ]
    return set(np.argsort(values)[-budget:].tolist())


default = top()
others = {
    "alpha 0.5": top(alpha=0.5),
    "alpha 0.9": top(alpha=0.9),
    "no history (alpha 1)": top(alpha=1.0),
    "history: the last step": top(history=("window", 1)),
    "target: what follows": top(target="suffix"),
}
for name, rows in others.items():
    print(f"{name:<24} {len(default & rows) / budget:.0%} of the default's rows")
