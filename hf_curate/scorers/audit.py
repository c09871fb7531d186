"""How close is a proxy to the exact gradients? Measured on a sample of the user's own rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import Example, pad
from hf_curate.errors import ScoreError
from hf_curate.gradients.alignment import alignments, step_scores
from hf_curate.models import evaluating
from hf_curate.stats import spearman

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel
    from hf_curate.scorers.grace import GraceScorer


AUDIT_STREAM = 2
"""The sample's own random stream: with the warm-up's it would consist of the rows that were trained on."""


def audit(scorer: GraceScorer, dataset: Any, rows: int, *, parameters: str, seed: int) -> dict[str, Any]:
    """See `GraceScorer.audit`."""
    chosen = np.sort(np.random.default_rng([seed, AUDIT_STREAM]).permutation(len(dataset))[:rows])
    read = [scorer.reader.read(dataset[int(index)]) for index in chosen]
    examples = [item for item in read if isinstance(item, Example)]
    if not examples:
        raise ScoreError(
            f"none of the {len(read)} sampled rows can be scored: {read[0] if read else 'the dataset is empty'}"
        )
    model = scorer.load()
    with evaluating(model.model):
        return _compare(scorer, model, examples, parameters, seed)


def _compare(
    scorer: GraceScorer, model: LanguageModel, examples: list[Example], parameters: str, seed: int
) -> dict[str, Any]:
    from tqdm.auto import tqdm

    from hf_curate.gradients.segments import exact_row, segment_grams

    sides: dict[str, dict[str, list[float]]] = {
        side: {"alignment": [], "history": [], "value": []} for side in ("proxy", "exact")
    }
    seconds = {"proxy": 0.0, "exact": 0.0}
    for example in tqdm(examples, desc="audit", unit="row"):
        ids = pad([example], model.device)
        tokens = np.array([len(span) for span in example.spans])
        for side in ("proxy", "exact"):
            start = time.perf_counter()
            if side == "proxy":
                gram = segment_grams(model, ids, [example.spans], scorer.proxy)[0][0].numpy()
            else:
                gram = exact_row(model, ids[0], example.spans, parameters)[0].numpy()
            seconds[side] += time.perf_counter() - start
            aligned, consistent = alignments(gram, tokens, history=scorer.history, target=scorer.target)
            scores = step_scores(gram, tokens, alpha=scorer.alpha, history=scorer.history, target=scorer.target)
            sides[side]["alignment"] += aligned.tolist()
            sides[side]["history"] += consistent.tolist()
            sides[side]["value"].append(float(scores.mean()))
    return {
        "rows": len(examples),
        "steps": len(sides["proxy"]["alignment"]),
        "parameters": parameters,
        "proxy": scorer.proxy,
        "seed": seed,
        "spearman": {
            what: spearman(np.array(sides["proxy"][what]), np.array(sides["exact"][what])) for what in sides["proxy"]
        },
        "time_ratio": seconds["proxy"] / seconds["exact"],
    }
