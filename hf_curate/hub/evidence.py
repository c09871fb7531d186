"""What a manifest has to show for each claim that a reader may make of the rows.

No single number licenses every claim: that answers are right needs a verifier, that problems are hard a policy and
how it sampled, that traces are good the trajectory, that the rows cover something their lineage. A claim without its
evidence is None, and the card prints "not measured".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLAIMS = ("correctness", "difficulty", "trace_quality", "coverage", "training")
POLICY = ("id", "sha", "digest")


def claims(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Claim -> its evidence, out of the other parts of the manifest; None is "not measured"."""
    return {
        "correctness": _correctness(_part(manifest, "verification")),
        "difficulty": _difficulty(_part(manifest, "rollouts"), _part(manifest, "verification")),
        "trace_quality": _trace_quality(_part(manifest, "steps"), _part(manifest, "selector")),
        "coverage": _coverage(_part(manifest, "rows"), _part(manifest, "strata"), _part(manifest, "source")),
        "training": dict(_part(manifest, "training")) or None,
    }


def _part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, Mapping) else {}


def _correctness(verification: Mapping[str, Any]) -> dict[str, Any] | None:
    """A contract that is named, and what it said of the rollouts of the kept rows."""
    contract, outcomes = _part(verification, "verifier"), _part(_part(verification, "outcomes"), "kept")
    if not contract or not outcomes:
        return None
    return {"verifier": contract.get("name"), "version": contract.get("version"), "outcomes": dict(outcomes)}


def _difficulty(rollouts: Mapping[str, Any], verification: Mapping[str, Any]) -> dict[str, Any] | None:
    """A success rate: for whom, sampled how. What is not known of both stays None."""
    rate = _part(rollouts, "success_rate").get("kept")
    if rate is None:
        return None
    policy, sampling = _part(verification, "policy"), _part(verification, "sampling")
    return {
        "success_rate": rate,
        "rollouts_per_row": rollouts.get("rollouts_per_row"),
        "policy": {name: policy.get(name) for name in POLICY} if policy else None,
        "sampling": dict(sampling) or None,
    }


def _trace_quality(steps: Mapping[str, Any], selector: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every step of the trajectory has a score, and that score was or was not held against exact gradients."""
    kept = _part(steps, "kept")
    counts = kept.get("steps")
    if not isinstance(counts, list) or not sum(counts):
        return None
    audit = _part(selector, "audit")
    said = {"rows": audit.get("rows"), "value": _part(audit, "spearman").get("value")} if audit else None
    return {"steps": sum(counts), "column": selector.get("column"), "audit": said}


def _coverage(rows: Mapping[str, Any], strata: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any] | None:
    """How many different prompts there are, out of which groups, from where."""
    repeated = rows.get("duplicate_prompts_kept")
    if repeated is None and not strata:
        return None
    named = {name: source.get(name) for name in ("id", "sha")} if source else None
    return {"duplicate_prompts": repeated, "strata": dict(strata) or None, "lineage": named}
