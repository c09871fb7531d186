"""The manifest's account of a selection: what went in, what was asked, what came out, and what it looks like.

Every number on a card is computed here or read from the scorer's record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import MEASURED, Budget, preference, take
from hf_curate.errors import BudgetError
from hf_curate.hub.manifest import SCHEMA, SOURCE_ROW, digest_indices, digest_rows, versions
from hf_curate.scored import column_of, prefix_of, rank_by, type_name
from hf_curate.sources import source_record
from hf_curate.stats import spearman

if TYPE_CHECKING:
    from datasets import Dataset

BINS = 40
OVERLAP_ROWS = 1000
"""Rows of the seeded sample on which the token overlap of steps and answer is measured (it needs the tokenizer)."""
OVERLAP_STREAM = 3
"""The sample's own random stream: one shared with the warm-up or the random baseline would draw the same rows."""


@dataclass(frozen=True)
class Choice:
    """What was asked of `select`, and what it looked at.

    scores: [n] float64, NaN where there is none; measures: tokens, loss and steps of the rows, where known; kept: [m]
    ascending rows; asked: None for a threshold.
    """

    dataset: Dataset
    column: str
    scores: np.ndarray
    measures: Mapping[str, np.ndarray]
    kept: np.ndarray
    asked: Budget | None
    strategy: str
    min_score: float | None
    group: str | None
    seed: int


def account(
    choice: Choice, subset: Dataset, scorer: Any, record: Mapping[str, Any], added: list[str], source: str | None
) -> dict[str, Any]:
    """The manifest of a selection, without its config name and split.

    Args:
        subset: the kept rows with `source_row`; added: names of the score columns.
        scorer: for the overlap of tokens, where it can measure it; record: what it says of itself.
    """
    sources = [name for name in choice.dataset.column_names if name not in added]
    where = source_record(source, choice.dataset, getattr(scorer, "fingerprint", None))
    return {
        "schema": SCHEMA,
        "config_name": None,
        "split": None,
        "source": None if where is None else {**where, "columns": sources},
        "rows": _rows(choice, record),
        "selector": _selector(choice, record),
        "model": record.get("model"),
        "budget": _budget(choice),
        "scores": _summary(choice.scores, choice.kept),
        "confounds": _confounds(choice, scorer),
        "baselines": _baselines(choice),
        "columns": _column_types(subset, sources, added),
        "digests": {"source_row": digest_indices(choice.kept), "rows": digest_rows(subset, sources)},
        "versions": versions(),
        "command": _command(choice, record, where),
        "citations": ["grace"] if record.get("name") == "GRACE" else [],
    }


def _rows(choice: Choice, record: Mapping[str, Any]) -> dict[str, Any]:
    errors = f"{prefix_of(choice.column)}_error"
    failed: Counter[str] = Counter()
    if prefix_of(choice.column) and errors in choice.dataset.column_names:
        reasons = column_of(choice.dataset, errors).to_pylist()
        failed.update(text.partition(":")[0] for text in reasons if text and isinstance(text, str))
    nulls = int(np.isnan(choice.scores).sum())
    if nulls > sum(failed.values()):
        failed["null without a reason"] = nulls - sum(failed.values())
    return {
        "in": len(choice.dataset),
        "scored": len(choice.dataset) - nulls,
        "failed": dict(sorted(failed.items(), key=lambda item: (-item[1], item[0]))),
        "duplicate_prompts": _duplicates(choice.dataset, record),
        "kept": len(choice.kept),
    }


def _duplicates(dataset: Dataset, record: Mapping[str, Any]) -> int | None:
    """Rows whose prompt repeats that of an earlier row exactly; None where the columns are not known."""
    from hf_curate.rows import Columns, detect_columns, prompt_key

    try:
        asked = dict((record.get("settings") or {}).get("columns") or {})
        columns = Columns(**asked) if asked.get("level") else detect_columns(dataset.column_names, None, **asked)
    except (ValueError, TypeError):  # ours, or a foreign scorer's record that says "columns" about something else
        return None
    names = [n for n in (columns.messages, columns.prompt) if n is not None and n in dataset.column_names]
    if not names:
        return None
    needed = [n for n in vars(columns).values() if isinstance(n, str) and n in dataset.column_names]
    plain = dataset.select_columns(list(dict.fromkeys(needed))).with_format(None)
    seen = Counter(prompt_key(row, columns) for row in plain)  # type: ignore[arg-type]
    seen.pop("", None)
    return sum(count - 1 for count in seen.values())


def _selector(choice: Choice, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": record.get("name") or f"column {choice.column}",
        "class": record.get("class"),
        "algorithm_version": record.get("algorithm_version"),
        "identity": record.get("identity"),
        "column": choice.column,
        "strategy": choice.strategy,
        "settings": record.get("settings") or {},
        "audit": record.get("audit"),
    }


def _budget(choice: Choice) -> dict[str, Any]:
    tokens = choice.measures["tokens"][choice.kept] if "tokens" in choice.measures else np.array([np.nan])
    by_score = choice.strategy in ("top", "threshold")
    return {
        "asked": choice.asked.asked if choice.asked else f"min_score {choice.min_score:g}",
        "unit": choice.asked.unit if choice.asked else "min_score",
        "rows": len(choice.kept),
        "tokens": int(tokens.sum()) if np.isfinite(tokens).all() else None,
        "min_score": None if choice.min_score is None else float(choice.min_score),
        "threshold": float(choice.scores[choice.kept].min()) if by_score else None,
        "seed": int(choice.seed),
        "group": choice.group,
    }


def _summary(scores: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    scored = scores[np.isfinite(scores)]
    if not len(scored):
        return {"all": None, "kept": None, "histogram": None}
    edges = _edges(scored)
    inside = np.zeros(len(scores), dtype=bool)
    inside[kept] = True
    counts = {
        name: np.histogram(scores[mask & np.isfinite(scores)], bins=edges)[0].tolist()
        for name, mask in (("kept", inside), ("dropped", ~inside))
    }
    return {
        "all": _quantiles(scored),
        "kept": _quantiles(scores[kept][np.isfinite(scores[kept])]),
        "histogram": {"edges": edges.tolist(), **counts},
    }


def _edges(values: np.ndarray) -> np.ndarray:
    """The bins of the histogram; values too close or too far apart for numpy's own get the nearest range that
    works."""
    low, high = float(values.min()), float(values.max())
    room = max(abs(low), abs(high), 1e-290) * 1e-12
    if high - low < room:
        low, high = low - room, high + room
    return np.histogram_bin_edges(values, bins=min(BINS, max(8, int(2 * len(values) ** 0.5))), range=(low, high))


def _quantiles(values: np.ndarray) -> dict[str, float | int] | None:
    if not len(values):
        return None
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    named = {"min": values.min(), "p05": low, "median": median, "p95": high, "max": values.max()}
    named |= {"mean": values.mean(), "std": values.std()}
    return {"count": len(values), **{name: float(value) for name, value in named.items()}}


def _confounds(choice: Choice, scorer: Any) -> dict[str, float | None]:
    """Spearman of the score with what it should not merely be: steps, tokens, loss, overlap of steps and answer."""
    measures = choice.measures
    found = {
        name: spearman(choice.scores, measures[name]) if name in measures else None
        for name in ("steps", "tokens", "loss")
    }
    return {**found, "overlap": overlap_confound(choice.dataset, choice.scores, scorer)}


def overlap_confound(dataset: Dataset, scores: np.ndarray, scorer: Any) -> float | None:
    """Spearman of the score with the token overlap of steps and answer, on a sample; None where it cannot be measured.

    A stored run has it measured already.
    """
    if not hasattr(scorer, "overlaps"):
        return getattr(scorer, "overlap", None)
    scored = np.flatnonzero(np.isfinite(scores))
    rows = np.random.default_rng([0, OVERLAP_STREAM]).permutation(scored)[:OVERLAP_ROWS]
    return spearman(scores[rows], scorer.overlaps(dataset.select(rows).with_format(None)))


def _baselines(choice: Choice) -> dict[str, dict[str, int]]:
    """What simpler orders would keep under the same budget out of all scored rows, and how much of it is kept here."""
    found = {}
    for name in ("random", *MEASURED):
        if name in MEASURED and MEASURED[name][0] not in choice.measures:
            continue
        order = preference(rank_by(name, choice.scores, choice.measures), strategy=name, seed=choice.seed)
        if choice.asked is not None and choice.asked.unit == "tokens":
            try:
                chosen = take(order, choice.asked, len(choice.dataset), choice.measures.get("tokens"))
            except BudgetError:  # its first row alone does not fit
                chosen = order[:0]
        else:
            chosen = order[: len(choice.kept)]
        found[name] = {"rows": len(chosen), "shared": len(np.intersect1d(chosen, choice.kept))}
    return found


def _column_types(subset: Dataset, sources: list[str], added: list[str]) -> dict[str, dict[str, str]]:
    types = {name: type_name(subset.features[name]) for name in subset.column_names}
    return {
        "source": {name: types[name] for name in sources},
        "scores": {name: types[name] for name in added},
        "added": {SOURCE_ROW: types[SOURCE_ROW]},
    }


def _command(choice: Choice, record: Mapping[str, Any], source: Mapping[str, Any] | None) -> str:
    """The Python calls that repeat the selection; model and source by what the manifest calls them, never by path."""
    call = record.get("call") or (f"{record['class']}(...)" if record.get("class") else None)
    lines = [f"scorer = {call}", "scored = score(dataset, scorer)"] if call else []
    text = "select(scored, scorer" if call else f"select(dataset, {choice.column!r}"
    asked = choice.asked.asked if choice.asked else None
    options = {"strategy": choice.strategy, "min_score": choice.min_score, "group": choice.group}
    defaults = {"strategy": "top", "min_score": None, "group": None}
    text += f", budget={asked!r}" if asked else ""
    text += "".join(f", {name}={value!r}" for name, value in options.items() if value != defaults[name])
    text += f", seed={choice.seed}"
    if source and source["revision"]:
        place = f"{source['config'] or ''}/{source['split']}" if source["split"] else source["config"]
        named = f"{source['id']}@{source['sha'] or source['revision']}" + (f":{place}" if place else "")
        text += f", source={named!r}"
    return "\n".join([*lines, text + ")"])
