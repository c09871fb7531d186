"""The manifest's account of a selection: what went in, what was asked, what came out, and what it looks like.

Every number on a card is computed here or read from the scorer's record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import Budget, preference
from hf_curate.comparisons import baselines, confounds, overlap_confound, rollouts_account, verification
from hf_curate.hub.evidence import claims
from hf_curate.hub.lines import BATCH_ROWS, batches
from hf_curate.hub.manifest import SCHEMA, SOURCE_ROW, digest_indices, digest_rows, versions
from hf_curate.measures import rewards_column
from hf_curate.nested import nested_account
from hf_curate.profiles import length_account, pass_rate_account, steps_account
from hf_curate.scored import column_of, is_text, prefix_of, type_name
from hf_curate.sources import source_record

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.rows import Columns

BINS = 40
LOOKS = 2
"""Each holds a few arrays as long as the pool."""
CHAT_OF_ROLLOUTS = "chat of rollouts"
"""The level of columns whose whole chat is the prompt, but for a last message of the assistant's."""
CITED = {"GRACE": "grace", "LearnAlign": "learnalign", "GradAlign": "gradalign", "Align": "gradalign"}
"""Scorer -> the paper it comes from (cards/citation.md.j2); Align is a baseline of GradAlign's."""


@dataclass(frozen=True)
class Choice:
    """What was asked of `select`, and what it looked at.

    scores: [n] float64, NaN where there is none; measures: tokens, loss and steps of the rows and what their rollouts
    are like, where known (`scored.measures_of`); kept: [m] ascending rows; asked: None for a threshold; groups: [n]
    numbers of the strata of the column `group`.
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
    groups: np.ndarray | None = None


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
    overlap = overlap_confound(choice.dataset, choice.scores, scorer)
    best = preference(choice.scores)
    looks = _at_once(
        {
            "digests": lambda: {"source_row": digest_indices(choice.kept), "rows": digest_rows(subset, sources)},
            "rows": lambda: _rows(choice, record),
            "nested": lambda: nested_account(choice, best),
            "strata": lambda: _strata(choice),
            "scores": lambda: _summary(choice.scores, choice.kept),
            "steps": lambda: steps_account(choice),
            "length": lambda: length_account(choice),
            "pass_rate": lambda: pass_rate_account(choice),
            "rollouts": lambda: rollouts_account(choice, record),
            "verification": lambda: verification(choice, subset, record),
            "confounds": lambda: confounds(choice, best, overlap),
            "baselines": lambda: baselines(choice),
        }
    )
    found = {
        "schema": SCHEMA,
        "config_name": None,
        "split": None,
        "source": None if where is None else {**where, "columns": sources},
        "rows": looks["rows"],
        "selector": _selector(choice, record),
        "model": record.get("model"),
        "budget": _budget(choice),
        **{name: look for name, look in looks.items() if name not in ("rows", "digests")},
        "columns": _column_types(subset, sources, added),
        "digests": looks["digests"],
        "versions": versions(),
        "command": _command(choice, record, where),
        "citations": [CITED[name] for name in [str(record.get("name"))] if name in CITED],
        "training": None,
    }
    return {**found, "claims": claims(found)}


def _at_once(looks: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each look at the selection finds, `LOOKS` at a time: arrow and most of numpy leave the others a core."""
    with ThreadPoolExecutor(LOOKS) as pool:
        return dict(zip(looks, pool.map(lambda look: look(), looks.values()), strict=True))


def _rows(choice: Choice, record: Mapping[str, Any]) -> dict[str, Any]:
    errors = f"{prefix_of(choice.column)}_error"
    failed: Counter[str] = Counter()
    if prefix_of(choice.column) and errors in choice.dataset.column_names:
        failed.update(_reasons(column_of(choice.dataset, errors)))
    nulls = int(np.isnan(choice.scores).sum())
    if nulls > sum(failed.values()):
        failed["null without a reason"] = nulls - sum(failed.values())
    repeated = _duplicates(choice, record)
    return {
        "in": len(choice.dataset),
        "scored": len(choice.dataset) - nulls,
        "failed": dict(sorted(failed.items(), key=lambda item: (-item[1], item[0]))),
        "duplicate_prompts": None if repeated is None else repeated[0],
        "duplicate_prompts_kept": None if repeated is None else repeated[1],
        "kept": len(choice.kept),
    }


def _strata(choice: Choice) -> dict[str, Any] | None:
    """How many groups of the column `group` there are, and out of how many of them rows were kept."""
    if choice.groups is None:
        return None
    kept = np.bincount(choice.groups[choice.kept])
    return {
        "column": choice.group,
        "groups": int(choice.groups.max()) + 1,  # they are numbered in order of appearance
        "kept": int((kept > 0).sum()),
    }


def _reasons(errors: Any) -> Iterator[str]:
    """The kind of each failure, out of a column of errors."""
    import pyarrow.compute as pc

    told = errors.filter(pc.not_equal(errors, "")) if is_text(errors.type) else errors  # type: ignore[attr-defined]
    return (text.partition(":")[0] for text in told.to_pylist() if text and isinstance(text, str))


def _duplicates(choice: Choice, record: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows whose prompt repeats that of an earlier row exactly, among all and among the kept; None where the columns
    are not known.

    Hashes of 64 bits are compared: two of ten million different prompts share one with a probability of 3e-6.
    """
    dataset, columns = choice.dataset, _prompt_columns(choice, record)
    if columns is None:
        return None
    names = [n for n in (columns.messages, columns.prompt) if n is not None and n in dataset.column_names]
    if not names:
        return None
    prompts = _prompts(dataset, names[0], columns)
    found = [np.fromiter((hash(text) if text else 0 for text in some), dtype=np.int64) for some in prompts]
    hashes = np.concatenate([np.empty(0, dtype=np.int64), *found])  # 0: no prompt
    return _repeated(hashes), _repeated(hashes[choice.kept])


def _repeated(hashes: np.ndarray) -> int:
    ordered = np.sort(hashes[hashes != 0])
    return int((ordered[1:] == ordered[:-1]).sum())


def _prompts(dataset: Dataset, name: str, columns: Columns) -> Iterator[Iterable[str | None]]:
    """The prompts of so many rows at a time, out of the column `name`, as `prompt_key` gives them; a text is its own
    prompt."""
    from hf_curate.rows import prompt_key

    if columns.messages is None and type_name(dataset.features[name]) in ("string", "large_string"):
        yield from (table[name].to_pylist() for table in batches(dataset, [name]))
        return
    for batch in dataset.select_columns([name]).with_format(None).iter(batch_size=BATCH_ROWS):
        keys = [prompt_key({name: value}, columns) for value in batch[name]]  # type: ignore[index]
        yield keys if columns.level != CHAT_OF_ROLLOUTS else map(_without_answer, keys)


def _prompt_columns(choice: Choice, record: Mapping[str, Any]) -> Columns | None:
    """Where the prompts are, by the record or else by the names of the columns; None where neither says it."""
    from hf_curate.rows import Columns, detect_columns

    names = choice.dataset.column_names
    try:
        asked = dict((record.get("settings") or {}).get("columns") or {})
        if "rollouts" not in choice.measures or "completion" in asked:
            return Columns(**asked) if asked.get("level") else detect_columns(names, None, **asked)
        prompt = asked.get("prompt")
        chat = asked.get("messages") or next((n for n in ("messages", "conversations") if n in names), None)
        if prompt is None and chat is not None:
            return Columns(CHAT_OF_ROLLOUTS, str(chat), None, None, None, None)
        found = detect_columns(names, None, prompt=prompt, completion=rewards_column(record))
        return Columns("explicit", found.prompt, None, None, None, None)
    except (ValueError, TypeError):  # ours, or a foreign scorer's record that says "columns" about something else
        return None


def _without_answer(key: str) -> str:
    """The key of a chat without its last message, where that is the assistant's: it is no part of the prompt."""
    before, _, last = key.rpartition("\x1e")
    return before if last.startswith("assistant\x1f") else key


def _selector(choice: Choice, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": record.get("name") or f"column {choice.column}",
        "class": record.get("class"),
        "algorithm_version": record.get("algorithm_version"),
        "identity": record.get("identity"),
        "column": choice.column,
        "strategy": choice.strategy,
        "settings": record.get("settings") or {},
        "direction": record.get("direction"),
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
        "at_threshold": _ties(choice) if choice.strategy == "top" else None,
        "seed": int(choice.seed),
        "group": choice.group,
    }


def _ties(choice: Choice) -> dict[str, int]:
    """How many scored rows, and how many kept ones, have the lowest score that was kept."""
    tied = choice.scores == choice.scores[choice.kept].min()
    return {"scored": int(tied.sum()), "kept": int(tied[choice.kept].sum())}


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
    lines = [*_rolled(record, call), *lines]
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


def _rolled(record: Mapping[str, Any], call: str | None) -> list[str]:
    """The calls that repeat the rollouts: an argument of the scorer, or a run before it."""
    made = record.get("rollouts")
    if not isinstance(made, Mapping) or not made.get("call"):
        return []
    own = call is not None and "rollouts=rollouts" in call
    return [f"rollouts = {made['call']}", *([] if own else ["dataset = score(dataset, rollouts)"])]
