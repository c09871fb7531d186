"""diff_curated(): two subsets side by side: the rows they share, how their scores agree, what was set otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import CurateError
from hf_curate.hub.comparison import same_rows
from hf_curate.hub.markdown import visible
from hf_curate.scored import numbers
from hf_curate.stats import spearman

if TYPE_CHECKING:
    from hf_curate.selection import Selection

COMPARED = ("source", "selector", "model", "budget", "versions")
LEFT_OUT = ("selector.audit", "selector.identity", "selector.direction", "source.fingerprint", "source.columns")
LEAST = 3


@dataclass(frozen=True)
class Difference:
    """Two configs compared.

    rows: of each; shared: rows in both, None where their numbers count rows of different sources; scores: Spearman of
    the two scores over the shared rows, None without 3 of them; same_scores: whether all of these are equal, None
    likewise; settings: name -> (value of A, value of B), where these differ.
    """

    names: tuple[str, str]
    rows: tuple[int, int]
    shared: int | None
    scores: float | None
    settings: dict[str, tuple[Any, Any]]
    same_scores: bool | None = None

    @property
    def jaccard(self) -> float | None:
        """Shared rows by all rows of the two."""
        return None if self.shared is None else self.shared / (sum(self.rows) - self.shared)

    def __str__(self) -> str:
        lines = [f"A  {self.names[0]}: {self.rows[0]:,} rows", f"B  {self.names[1]}: {self.rows[1]:,} rows"]
        if self.shared is None:
            lines.append("shared rows: not comparable, the two count the rows of different (or unrecorded) sources")
        else:
            mine, theirs = (100 * self.shared / count for count in self.rows)
            share = f"{mine:.1f} % of A, {theirs:.1f} % of B; Jaccard {self.jaccard:.3f}"
            lines.append(f"shared rows: {self.shared:,} ({share})")
            lines.append(f"scores: {self._of_scores()}")
        lines.append(f"settings: {len(self.settings)} differ" if self.settings else "settings: the same")
        lines += [f"  {name}: {_said(a)} -> {_said(b)}" for name, (a, b) in self.settings.items()]
        return visible("\n".join(lines), keep="\n")

    def _of_scores(self) -> str:
        if self.same_scores:
            return "the same, row by row"
        return "not measured" if self.scores is None else f"Spearman {self.scores:.3f} over the shared rows"

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        settings = {name: list(values) for name, values in self.settings.items()}
        found = {"names": list(self.names), "rows": list(self.rows), "shared": self.shared, "jaccard": self.jaccard}
        return {**found, "spearman": self.scores, "same_scores": self.same_scores, "settings": settings}


def diff_curated(one: str | Path | Selection, other: str | Path | Selection) -> Difference:
    """Compares two configs.

    Args:
        one, other: a selection, or "FOLDER:CONFIG", "owner/name:CONFIG", "owner/name@REVISION:CONFIG", each with
            "/SPLIT" at its end where the config has several.

    Raises:
        CurateError: a place that cannot be read.
    """
    first, second = (_loaded(place) for place in (one, other))
    manifests = (first.manifest, second.manifest)
    names = tuple(_name(place, picked) for place, picked in ((one, first), (other, second)))
    shared, scores, same = None, None, None
    if same_rows(*manifests):
        both, mine, theirs = np.intersect1d(first.indices, second.indices, return_indices=True)
        shared = len(both)
        if shared >= LEAST:
            ours, others = _scores(first)[mine], _scores(second)[theirs]
            scores, same = spearman(ours, others), bool(np.array_equal(ours, others))
    rows = (len(first), len(second))
    return Difference(names, rows, shared, scores, _settings(*manifests), same)  # type: ignore[arg-type]


def _loaded(place: str | Path | Selection) -> Selection:
    from hf_curate.hub.load import load_curated

    if not isinstance(place, str | Path):
        return place
    folder, colon, config = str(place).rpartition(":")
    if not colon or not folder or not config:
        raise CurateError(
            f"{Path(place).name!r} does not say which config: give FOLDER:CONFIG, owner/name:CONFIG or "
            "owner/name@REVISION:CONFIG."
        )
    config, _, split = config.partition("/")
    repo, _, revision = (folder, "", "") if Path(folder).expanduser().is_dir() else folder.partition("@")
    return load_curated(repo, config, split=split or None, revision=revision or None)


def _name(place: str | Path | Selection, picked: Selection) -> str:
    return str(place) if isinstance(place, str | Path) else str(picked.manifest.get("config_name") or "selection")


def _scores(picked: Selection) -> np.ndarray:
    column = picked.manifest["selector"].get("column")
    if column not in picked.dataset.column_names:
        return np.full(len(picked), np.nan)
    return numbers(picked.dataset, column)


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    mine, theirs = (_leaves({name: manifest.get(name) for name in COMPARED}) for manifest in (one, other))
    counted = ("budget.rows", "budget.tokens", "budget.threshold", "budget.at_threshold")
    names = [name for name in {**mine, **theirs} if not name.startswith((*LEFT_OUT, *counted))]
    return {name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)}


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _leaves(inner, f"{name}.{key}" if name else str(key))
    return found


def _said(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
