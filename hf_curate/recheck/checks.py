"""The checks, each of one claim: it adds a verdict and raises nothing but what the caller gave wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import parse_budget
from hf_curate.comparisons import OUTCOMES, outcomes
from hf_curate.errors import BudgetError, CurateError, MissingPackageError, ModelError, RowError, ScoreError
from hf_curate.hub.manifest import SOURCE_ROW, digest_indices, digest_rows
from hf_curate.recheck.rebuild import CannotRebuild, differs, scorer_of
from hf_curate.recheck.verdicts import Verdicts
from hf_curate.scored import numbers

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.selection import Selection

TOLERANCES = {"float32": 1e-4, "float64": 1e-6}
COARSE = 0.02
"""Of a score of 1, what it may differ by: batches of other sizes round differently, in 16 bits far more."""
SAMPLE_STREAM = 11
LOCAL = "local "


def check_data(picked: Selection, verdicts: Verdicts) -> None:
    """The rows are those of the manifest's digests."""
    why = "; ".join(picked.problems) or f"{len(picked):,} rows with the recorded row numbers and content"
    verdicts.say("rows", not picked.problems, why)


def check_budget(picked: Selection, verdicts: Verdicts) -> None:
    """As many rows as the budget pays for, none below the threshold, and the summary of their scores."""
    manifest, budget = picked.manifest, picked.manifest["budget"]
    kept, wrong = len(picked), []
    try:
        asked = None if budget.get("unit") == "min_score" else parse_budget(budget["asked"])
    except BudgetError as error:
        verdicts.leave("budget", f"the budget cannot be read: {error}")
        return
    if asked is not None and asked.unit != "tokens" and asked.rows(manifest["rows"]["in"]) != kept:
        paid = asked.rows(manifest["rows"]["in"])
        wrong.append(f"{asked.asked!r} of {manifest['rows']['in']:,} rows are {paid:,}, and {kept:,} were kept")
    if asked is not None and asked.unit == "tokens" and int(budget.get("tokens") or 0) > int(asked.amount):
        wrong.append(f"{asked.asked!r} were asked for, and {budget['tokens']:,} were kept")
    scores = _scores(picked)
    for name, said in (("threshold", budget.get("threshold")), ("min_score", budget.get("min_score"))):
        if said is None or scores is None:
            continue
        lowest = float(scores.min())
        if lowest < said or (name == "threshold" and lowest != said):
            wrong.append(f"{name} {said:.6g}, and the lowest score kept is {lowest:.6g}")
    verdicts.say(
        "budget", not wrong, "; ".join(wrong) or f"{budget['asked']}: {kept:,} rows, none below the threshold"
    )


def check_summary(picked: Selection, verdicts: Verdicts) -> None:
    """The numbers that the card prints of the kept scores."""
    said, scores = (picked.manifest.get("scores") or {}).get("kept"), _scores(picked)
    if not said or scores is None:
        verdicts.leave("summary", "the manifest or the data holds no scores of the kept rows")
        return
    found = {"count": len(scores), "min": scores.min(), "median": np.median(scores), "max": scores.max()}
    found["mean"] = scores.mean()
    wrong = [
        f"{name} {said[name]:.6g}, in the data {float(value):.6g}"
        for name, value in found.items()
        if not math.isclose(said[name], float(value), rel_tol=1e-9, abs_tol=1e-12)
    ]
    verdicts.say("summary", not wrong, "; ".join(wrong) or "count, min, median, max and mean of the kept scores")


def _scores(picked: Selection) -> np.ndarray | None:
    column = picked.manifest["selector"].get("column")
    if column not in picked.dataset.column_names:
        return None
    scores = numbers(picked.dataset, column)
    return scores if len(scores) and np.isfinite(scores).all() else None


def check_source(picked: Selection, source: str | None, verdicts: Verdicts) -> None:
    """The pinned source holds these rows at these places."""
    from hf_curate.sources import load_source

    record = picked.manifest.get("source") or {}
    place = source or _pinned(record)
    if place is None:
        named = record.get("id")
        why = f"{named} is known by its name alone" if named else "the source was not recorded"
        verdicts.leave("source", f"{why}: give it with source= (--source)")
        return
    try:
        rows, name = load_source(place)
    except CurateError as error:
        if source is not None:
            raise
        verdicts.leave("source", str(error))
        return
    verdicts.say("source", *_holds(rows, picked, name))


def _pinned(record: Mapping[str, Any]) -> str | None:
    if not record.get("id") or not record.get("sha") or str(record["id"]).startswith(LOCAL):
        return None
    place = f"{record.get('config') or ''}/{record['split']}" if record.get("split") else record.get("config")
    return f"{record['id']}@{record['sha']}" + (f":{place}" if place else "")


def _holds(rows: Dataset, picked: Selection, name: str) -> tuple[bool, str]:
    manifest = picked.manifest
    columns, pool = list(manifest["columns"]["source"]), manifest["rows"]["in"]
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        return False, f"{name} lacks the columns {', '.join(missing)}"
    if len(rows) != pool:
        return False, f"{name} has {len(rows):,} rows, and {pool:,} were scored"
    if digest_indices(picked.indices) != manifest["digests"]["source_row"] or picked.indices.max() >= pool:
        return False, f"the column {SOURCE_ROW} does not hold the recorded row numbers"
    if digest_rows(rows.select(picked.indices), columns) != manifest["digests"]["rows"]:
        return False, f"{name} holds other rows at these places"
    return True, f"{len(picked):,} rows are those of {name}"


def sample(picked: Selection, rows: int, seed: int) -> Dataset:
    """Rows of the selection, drawn at random."""
    order = np.random.default_rng([seed, SAMPLE_STREAM]).permutation(len(picked.dataset))
    return picked.dataset.select(np.sort(order[:rows])).with_format(None)


def check_scores(
    picked: Selection, some: Dataset, model: Any, direction: Any, tolerance: float | None, verdicts: Verdicts
) -> None:
    """The pinned model gives a sample of the rows the scores that they have."""
    manifest = picked.manifest
    column = str(manifest["selector"]["column"])
    try:
        scorer = scorer_of(manifest, model, direction)
        other = differs(manifest, scorer)
        now = _scored_again(scorer, some, column, direction)
    except (CannotRebuild, ModelError, MissingPackageError) as why:
        if isinstance(why, ModelError) and model is not None:  # what was given here does not fit
            raise
        verdicts.leave("selector", str(why))
        verdicts.leave("scores", str(why))
        return
    except ScoreError as error:
        verdicts.say("scores", False, str(error))
        return
    if other:
        verdicts.leave("selector", f"made again it is not quite the same: {other}")
    else:
        verdicts.say("selector", True, f"{type(scorer).__name__} with identity {scorer.identity[:12]}")
    verdicts.say("scores", *_agree(numbers(some, column), now, _tolerance(manifest, tolerance)))


def _scored_again(scorer: Any, some: Dataset, column: str, direction: Any) -> np.ndarray:
    """[rows] float64, NaN where there is no score now."""
    own = set(scorer.columns) | {SOURCE_ROW}
    rows = some.select_columns([name for name in some.column_names if name not in own])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what there is to say of this scorer was said when it scored
        if direction is not None:
            scorer.prepare(rows)
        found = scorer(rows[:])[column]  # type: ignore[arg-type]
    return np.array([np.nan if value is None else float(value) for value in found])


def _tolerance(manifest: Mapping[str, Any], asked: float | None) -> float:
    dtype = (manifest.get("model") or {}).get("dtype")
    return asked if asked is not None else TOLERANCES.get(str(dtype), 1e-4 if dtype is None else COARSE)


def _agree(before: np.ndarray, now: np.ndarray, limit: float) -> tuple[bool, str]:
    lost = int(np.isnan(now).sum())
    if lost:
        return False, f"{lost:,} of {len(now):,} rows that have a score get none now"
    gap = np.abs(now - before) / np.maximum(1.0, np.abs(before))
    worst = int(gap.argmax())
    text = f"{len(now):,} rows scored again, largest difference {gap[worst]:.2g} (tolerance {limit:g})"
    bad = gap > limit
    if bad.any():
        text += f": {int(bad.sum()):,} rows differ, one from {before[worst]:.6g} to {now[worst]:.6g}"
    return not bad.any(), text


def check_verification(picked: Selection, some: Dataset, verdicts: Verdicts) -> None:
    """The contract's outcomes are those of the column, and it judges a sample of the rollouts as it did."""
    said = picked.manifest.get("verification")
    if not isinstance(said, Mapping):
        return
    counts = (said.get("outcomes") or {}).get("kept")
    if isinstance(counts, Mapping):
        found = outcomes(picked.dataset) or {}
        verdicts.say("outcomes", dict(counts) == found, f"recorded {_counted(counts)}; in the data {_counted(found)}")
    contract = said.get("verifier")
    if not isinstance(contract, Mapping):
        verdicts.leave("rewards", "the contract that judged the rollouts was not recorded")
        return
    verdict = _judged(contract, some)
    if isinstance(verdict, str):
        verdicts.leave("rewards", verdict)
    else:
        verdicts.say("rewards", *verdict)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _judged(contract: Mapping[str, Any], some: Dataset) -> tuple[bool, str] | str:
    """(whether, what was found), or why nothing was."""
    from hf_curate.rollouts.verify import NAMES, verifier

    name = contract.get("name")
    if contract.get("kind") != "deterministic checker" or name not in NAMES:
        return f"{name} is a function that no name calls"
    lacking = [one for one in ("responses", OUTCOMES) if one not in some.column_names]
    if lacking:
        return f"the rows have no column {lacking[0]}"
    try:
        judge = verifier(str(name), **(contract.get("options") or {}))
        judge.check_columns(some.column_names)
    except (CurateError, TypeError) as error:
        return f"the contract cannot be made again: {error}"
    if judge.version != contract.get("version"):
        return f"its version is {judge.version} here, and {contract.get('version')} was used"
    before, now = [], []
    for row in some:
        said, texts = row[OUTCOMES], row["responses"]  # type: ignore[call-overload,index]
        results = judge.verify(list(texts), [row] * len(texts))  # type: ignore[list-item]
        before += said
        now += [str(one) if isinstance(one, RowError) else one.outcome for one in results]
    bad = sum(one != other for one, other in zip(before, now, strict=True))
    other = {
        key: value for key, value in judge.packages().items() if (contract.get("packages") or {}).get(key) != value
    }
    note = f"; other packages: {', '.join(f'{key} {value}' for key, value in other.items())}" if other else ""
    return not bad, f"{len(now):,} rollouts judged again by {name}, {bad:,} otherwise{note}"


def check_card(readme: str | None, card: str | None, verdicts: Verdicts) -> None:
    """What stands in the README is what the manifest gives."""
    if readme is None or card is None:
        verdicts.leave("card", "there is no README.md, or no card could be made of the manifest")
    elif card.strip() in readme.replace("\r\n", "\n"):
        verdicts.say("card", True, "the section of README.md is that of the manifest, byte for byte")
    else:
        verdicts.leave("card", "the section of README.md was edited, or is of another version of hf_curate")
