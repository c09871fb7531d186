"""hf_curate: choose which reasoning data to post-train on. Four verbs: score, select, push, load."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_curate.errors import CurateError
    from hf_curate.gradients.alignment import step_scores
    from hf_curate.hub.card import Card
    from hf_curate.hub.load import load_curated
    from hf_curate.hub.push import push
    from hf_curate.recheck.contrast import diff_curated
    from hf_curate.recheck.curated import verify_curated
    from hf_curate.report.write import write_report
    from hf_curate.rollouts.rollouts import Rollouts
    from hf_curate.rollouts.server import ServerGenerator
    from hf_curate.rollouts.verify import verifier
    from hf_curate.runs.local import score
    from hf_curate.scorers.align import AlignScorer
    from hf_curate.scorers.baselines import (
        AccuracyGreedyScorer,
        LongestScorer,
        LossScorer,
        MostStepsScorer,
        PassRateBandScorer,
        RandomScorer,
    )
    from hf_curate.scorers.grace import GraceScorer
    from hf_curate.scorers.gradalign import GradAlignScorer
    from hf_curate.scorers.learnalign import LearnAlignScorer
    from hf_curate.selection import Selection, select

__version__ = "0.1.0"

_HOMES = {
    "AccuracyGreedyScorer": "scorers.baselines",
    "AlignScorer": "scorers.align",
    "Card": "hub.card",
    "CurateError": "errors",
    "GraceScorer": "scorers.grace",
    "GradAlignScorer": "scorers.gradalign",
    "LearnAlignScorer": "scorers.learnalign",
    "LongestScorer": "scorers.baselines",
    "LossScorer": "scorers.baselines",
    "MostStepsScorer": "scorers.baselines",
    "PassRateBandScorer": "scorers.baselines",
    "RandomScorer": "scorers.baselines",
    "Rollouts": "rollouts.rollouts",
    "Selection": "selection",
    "ServerGenerator": "rollouts.server",
    "diff_curated": "recheck.contrast",
    "load_curated": "hub.load",
    "push": "hub.push",
    "score": "runs.local",
    "select": "selection",
    "step_scores": "gradients.alignment",
    "verifier": "rollouts.verify",
    "verify_curated": "recheck.curated",
    "write_report": "report.write",
}

__all__ = [
    "AccuracyGreedyScorer",
    "AlignScorer",
    "Card",
    "CurateError",
    "GraceScorer",
    "GradAlignScorer",
    "LearnAlignScorer",
    "LongestScorer",
    "LossScorer",
    "MostStepsScorer",
    "PassRateBandScorer",
    "RandomScorer",
    "Rollouts",
    "Selection",
    "ServerGenerator",
    "diff_curated",
    "load_curated",
    "push",
    "score",
    "select",
    "step_scores",
    "verifier",
    "verify_curated",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Public names are imported when first used, so that `import hf_curate` stays cheap and free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_curate' has no attribute {name!r}")
    value = getattr(import_module(f"hf_curate.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
