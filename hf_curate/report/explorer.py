"""Which rows a report shows: best, worst, borderline and random ones, each read as a scorer reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import ColumnsError, RowError
from hf_curate.groups import GroupColumns, detect_group_columns, read_group
from hf_curate.rows import Columns, detect_columns, read_trace
from hf_curate.scored import numbers, prefix_of
from hf_curate.steps import find_spans

if TYPE_CHECKING:
    from datasets import Dataset

LONGEST = 4000
"""Characters of a text that are shown."""
RESPONSES = 16
"""Rollouts of a row that are shown."""
FACTS = 8
PLAIN = (str, int, float, bool)


@dataclass(frozen=True)
class Piece:
    """A part of a row: kind "prompt", "step", "answer", "text" or "rollout"; score of a step or reward of a rollout;
    tone in [-1, 1] for its colour, None without one."""

    kind: str
    title: str
    text: str
    score: float | None = None
    tone: float | None = None


@dataclass(frozen=True)
class Shown:
    """One row of the report."""

    row: int
    score: float | None
    kept: bool | None
    facts: dict[str, Any]
    pieces: list[Piece]
    note: str = ""


@dataclass(frozen=True)
class Pool:
    """The rows that a report may show.

    kept: [n] bool; row: [n] int64, the number of each in the source; whole: whether dropped rows are among them.
    """

    dataset: Dataset
    manifest: Mapping[str, Any]
    kept: np.ndarray
    row: np.ndarray
    whole: bool

    @property
    def scores(self) -> np.ndarray:
        return numbers(self.dataset, str(self.manifest["selector"]["column"]))


@dataclass
class Tab:
    """Rows under one heading, and a sentence on how they were picked."""

    name: str
    says: str
    rows: list[Shown] = field(default_factory=list)


def tabs(pool: Pool, count: int, seed: int) -> list[Tab]:
    """The groups of rows to look at, each of at most `count` rows."""
    scores = pool.scores
    scored = np.flatnonzero(np.isfinite(scores))
    best = scored[np.argsort(-scores[scored], kind="stable")]
    random = np.sort(np.random.default_rng([seed, 9]).permutation(len(scores))[:count])
    picked = [("Best", "The highest scores.", best[:count])]
    if pool.whole:
        picked.append(("Worst", "The lowest scores, the lowest first.", best[::-1][:count]))
        picked.append(("Borderline", *_borderline(pool, best, count)))
    else:
        says = "The lowest scores that were kept. Dropped rows are not here: make a report of the run to see them."
        picked.append(("Borderline", says, best[::-1][:count]))
    picked.append(("Random", f"Drawn at random, seed {seed}, in the order of the rows.", random))
    if pool.whole and len(scored) < len(scores):
        failed = np.flatnonzero(~np.isfinite(scores))[:count]
        picked.append(("Not scored", "The first rows without a score, and why.", failed))
    wanted = np.unique(np.concatenate([rows for _, _, rows in picked]).astype(np.int64))
    shown = dict(zip(wanted.tolist(), _read(pool, wanted, scores), strict=True))
    return [Tab(name, says, [shown[int(row)] for row in rows]) for name, says, rows in picked]


def _borderline(pool: Pool, best: np.ndarray, count: int) -> tuple[str, np.ndarray]:
    """Half of the rows just inside, half just outside; where the score did not rank them, those around its median."""
    if pool.manifest["budget"].get("threshold") is None:
        middle = max(0, len(best) // 2 - count // 2)
        return "The score did not rank the rows: these are around its median.", best[middle : middle + count]
    inside = pool.kept[best]
    last_in, first_out = best[inside][-(count - count // 2) :], best[~inside][: count // 2]
    return "Around the threshold: the last that were kept, then the first that were not.", np.r_[last_in, first_out]


def _read(pool: Pool, places: np.ndarray, scores: np.ndarray) -> list[Shown]:
    dataset = pool.dataset.select(places).with_format(None)
    readable = dataset.select_columns([name for name in dataset.column_names if not _is_file(dataset, name)])
    rows = [dict(row) for row in readable]  # type: ignore[call-overload]
    columns = _columns(pool, rows[0] if rows else {})
    span = _span(pool, rows)
    return [
        _shown(pool, int(place), row, columns, span, float(scores[place]))
        for place, row in zip(places, rows, strict=True)
    ]


def _is_file(dataset: Dataset, name: str) -> bool:
    from datasets.features.features import require_decoding

    return require_decoding(dataset.features[name])


def _columns(pool: Pool, row: Mapping[str, Any]) -> Columns | GroupColumns | None:
    """How the rows are read: as the manifest says, else by their names; None where neither can be."""
    names = list(row)
    settings = pool.manifest["selector"].get("settings")
    said = settings.get("columns") if isinstance(settings, Mapping) else None
    asked = {k: v for k, v in said.items() if v is None or v in names} if isinstance(said, Mapping) else {}
    rolled = "rewards" in names and ("responses" in names or "response_ids" in names)
    kinds = [(GroupColumns, detect_group_columns), (Columns, detect_columns)]
    for kind, detect in kinds if rolled else kinds[::-1]:
        roles = {role: asked[role] for role in kind.__dataclass_fields__ if role in asked}
        try:
            if kind is Columns and roles.get("level") == "aliases" and said:
                return Columns(**{**dict.fromkeys(Columns.__dataclass_fields__), **said})  # type: ignore[arg-type]
            return detect(
                names, row, **{role: name for role, name in roles.items() if role not in ("level", "hashes")}
            )
        except (ColumnsError, TypeError):
            continue
    return None


def _span(pool: Pool, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The scores of steps between which colours go, of the rows that are shown."""
    name = _step_scores(pool)
    found = [score for row in rows for score in row.get(name) or () if isinstance(score, float) and np.isfinite(score)]
    return (float(np.quantile(found, 0.05)), float(np.quantile(found, 0.95))) if found else (0.0, 0.0)


def _step_scores(pool: Pool) -> str:
    return f"{prefix_of(str(pool.manifest['selector']['column']))}_step_scores"


def _shown(
    pool: Pool,
    place: int,
    row: Mapping[str, Any],
    columns: Columns | GroupColumns | None,
    span: tuple[float, float],
    score: float,
) -> Shown:
    prefix, note = prefix_of(str(pool.manifest["selector"]["column"])), ""
    error = row.get(f"{prefix}_error")
    try:
        if isinstance(columns, GroupColumns):
            pieces = _rollouts(row, columns)
        elif columns is not None:
            pieces, note = _trace(row, columns, row.get(_step_scores(pool)), _split(pool), span)
        else:
            pieces = _texts(row)
    except RowError as problem:
        pieces, note = _texts(row), f"not read as a scorer reads it: {problem}"
    if error:
        note = f"not scored: {error}"
    used = {name for name in vars(columns).values() if isinstance(name, str)} if columns is not None else set()
    facts = {name: value for name, value in row.items() if isinstance(value, PLAIN) and name not in used}
    facts = {name: value for name, value in facts.items() if not (isinstance(value, str) and len(value) > 80)}
    dull = {f"{prefix}_error", str(pool.manifest["selector"]["column"])}
    facts = {name: value for name, value in facts.items() if name not in dull}
    return Shown(
        row=int(pool.row[place]),
        score=score if np.isfinite(score) else None,
        kept=bool(pool.kept[place]) if pool.whole else None,
        facts=dict(list(facts.items())[:FACTS]),
        pieces=pieces,
        note=note,
    )


def _split(pool: Pool) -> str:
    """The splitter by its name; one that was a function or an expression cannot be called from a manifest."""
    settings = pool.manifest["selector"].get("settings")
    name = settings.get("split_steps") if isinstance(settings, Mapping) else None
    return name if isinstance(name, str) and name.isidentifier() else "auto"


def _trace(
    row: Mapping[str, Any], columns: Columns, scores: Any, split: str, span: tuple[float, float]
) -> tuple[list[Piece], str]:
    trace = read_trace(row, columns)
    spans = find_spans(trace.completion, gold=trace.gold, steps=trace.steps, split=split)
    texts = [trace.completion[a:b] for a, b in spans.steps]
    known = list(scores) if isinstance(scores, list) and len(scores) == len(texts) else [None] * len(texts)
    note = "" if known and known[0] is not None else "the steps have no scores of their own"
    pieces = [Piece("prompt", "prompt", _text(trace.prompt))]
    for number, (text, score) in enumerate(zip(texts, known, strict=True), 1):
        pieces.append(Piece("step", f"step {number}", _cut(text), score, _tone(score, span)))
    return [*pieces, Piece("answer", "answer", _cut(trace.completion[slice(*spans.answer)]))], note


def _tone(score: float | None, span: tuple[float, float]) -> float | None:
    if score is None or not np.isfinite(score):
        return None
    low, high = span
    return float(np.clip(2.0 * (score - low) / (high - low) - 1.0, -1.0, 1.0)) if high > low else 0.0


def _rollouts(row: Mapping[str, Any], columns: GroupColumns) -> list[Piece]:
    group = read_group(row, columns)
    outcomes = row.get("rollouts_outcomes")
    said = outcomes if isinstance(outcomes, list) and len(outcomes) == len(group.rewards) else None
    texts = group.responses or row.get("responses")
    if not isinstance(texts, list | tuple) or len(texts) != len(group.rewards):
        texts = [" ".join(map(str, ids)) for ids in group.response_ids or ()]
    span = (float(group.rewards.min()), float(group.rewards.max()))
    pieces = [Piece("prompt", "prompt", _text(group.prompt))]
    for number, (text, reward) in enumerate(zip(texts, group.rewards.tolist(), strict=True)):
        title = f"rollout {number + 1}" + (f", {said[number]}" if said else "")
        tone = _tone(reward, span) if span[1] > span[0] else 0.0
        pieces.append(Piece("rollout", title, _cut(text if isinstance(text, str) else str(text)), reward, tone))
        if number + 1 == RESPONSES and len(texts) > RESPONSES:
            pieces.append(Piece("text", "", f"and {len(texts) - RESPONSES:,} more"))
            break
    return pieces


def _texts(row: Mapping[str, Any]) -> list[Piece]:
    return [Piece("text", name, _cut(value)) for name, value in row.items() if isinstance(value, str) and value]


def _text(prompt: Any) -> str:
    """A prompt as it is; a chat by its messages."""
    if isinstance(prompt, str):
        return _cut(prompt)
    return _cut("\n\n".join(f"{message['role']}: {message['content']}" for message in prompt))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
