"""Rows with other column names, and steps that are split in your own way.

    python examples/02_your_own_columns_and_steps.py

A splitter is a name ("numbered", "lines", ...), a regex of the separators, or a function from the completion to its
steps. Rows without a step or an answer get a reason instead of a score.
"""

from collections.abc import Callable

from datasets import Dataset

from hf_curate import GraceScorer
from hf_curate.demo import MODEL

rows = Dataset.from_list(
    [
        {"task": "7+8*3?\n", "work": "7+8=15; 15*3=45; so 45", "result": "45"},
        {"task": "9-2+6?\n", "work": "9-2=7; 7+6=13; so 13", "result": "13"},
        {"task": "4*5-1?\n", "work": "no idea", "result": "19"},
    ]
)


def between_semicolons(completion: str) -> list[str]:
    """The parts of the trace, one step each; the answer's own text is cut out of the last one."""
    return [part.strip() for part in completion.split(";")]


def scored_by(split_steps: str | Callable[[str], list[str]]) -> None:
    """Scores the rows with one way of splitting, and prints what came of it."""
    scorer = GraceScorer(
        MODEL, dtype="float32", prompt="task", completion="work", answer="result", split_steps=split_steps
    )
    for row in rows.map(scorer, batched=True, features=scorer.features(rows)).to_list():
        print(row["work"], "->", row["grace_value"], row["grace_step_scores"], row["grace_error"])


scored_by(r";\s*")
scored_by(between_semicolons)
