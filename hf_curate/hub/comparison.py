"""The configs of one repo side by side: what each keeps and by what, and how many rows any two of them share.

Row numbers say something about two configs only where both count the rows of the same source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_curate.hub.card import UNRANKED, Section, budget_words, environment, model_name, source_name

MOST = 12
"""Configs in the table of shared rows: a wider one cannot be read."""


@dataclass(frozen=True)
class Compared:
    """A config and split of a repo: its manifest, and the rows of the source that it keeps ([n] int64, ascending),
    None where they could not be read."""

    manifest: Mapping[str, Any]
    rows: np.ndarray | None

    @property
    def key(self) -> tuple[str, str]:
        return str(self.manifest["config_name"]), str(self.manifest["split"])


def is_comparison(entries: Sequence[Compared]) -> bool:
    """Whether there is anything to compare."""
    return len({config for config, _ in (one.key for one in entries)}) > 1


def comparison(entries: Sequence[Compared]) -> Section:
    """The section that stands before the configs' own."""
    ordered = sorted(entries, key=lambda one: one.key)
    splits = {split for _, split in (one.key for one in ordered)}
    names = [config if len(splits) == 1 else f"{config}, {split}" for config, split in (one.key for one in ordered)]
    shown = ordered[:MOST]
    overlaps = [[_shared(one, other) for other in shown] for one in shown]
    context = {
        "configs": [_told(name, one.manifest) for name, one in zip(names, ordered, strict=True)],
        "names": names[:MOST],
        "overlaps": overlaps,
        "incomparable": any(row.count(None) > 1 for row in overlaps),  # one of them is the config itself
        "sizes": [one.manifest["rows"]["kept"] for one in shown],
        "most": MOST,
    }
    return Section("Configs", environment().get_template("comparison.md.j2").render(context).strip())


def _told(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    selector, rows = manifest["selector"], manifest["rows"]
    strategy = str(selector.get("strategy"))
    return {
        "name": name,
        "kept": rows["kept"],
        "in": rows["in"],
        "selector": strategy if strategy in UNRANKED else selector["name"],
        "model": model_name(manifest),
        "budget": budget_words(manifest["budget"]["asked"]),
        "threshold": manifest["budget"].get("threshold"),
        "source": source_name(manifest),
    }


def _shared(one: Compared, other: Compared) -> int | None:
    """How many rows two configs share; None where that cannot be said."""
    if one is other or one.rows is None or other.rows is None or not same_rows(one.manifest, other.manifest):
        return None
    return len(np.intersect1d(one.rows, other.rows))


def same_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the row numbers of two manifests count the same rows: those of one commit, or of one fingerprint."""
    sources = [manifest.get("source") or {} for manifest in (one, other)]
    if not all(sources):
        return False
    named = [[source.get(key) for key in ("id", "sha", "config", "split")] for source in sources]
    same = named[0] == named[1] and one["rows"]["in"] == other["rows"]["in"]
    prints = [source.get("fingerprint") for source in sources]
    return same and (named[0][1] is not None or (prints[0] is not None and prints[0] == prints[1]))
