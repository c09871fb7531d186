"""What is said of a claim: verified, failed, or not checked, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_curate.hub.markdown import visible

VERIFIED, FAILED, NOT_CHECKED = "verified", "failed", "not checked"


@dataclass(frozen=True)
class Verdict:
    """state: "verified", "failed" or "not checked"; why: what was compared, with both values, or what would be
    needed."""

    claim: str
    state: str
    why: str


@dataclass
class Verdicts:
    """The verdicts on a config, in the order of its claims."""

    name: str
    found: list[Verdict] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(one.state != FAILED for one in self.found)

    @property
    def complete(self) -> bool:
        """Whether everything was checked, and verified."""
        return all(one.state == VERIFIED for one in self.found)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.found)

    def __getitem__(self, claim: str) -> Verdict:
        return next(one for one in self.found if one.claim == claim)

    def __str__(self) -> str:
        width = max((len(one.claim) for one in self.found), default=0)
        lines = [f"{one.state:<12} {one.claim:<{width}}  {one.why}" for one in self.found]
        counts = [f"{sum(one.state == state for one in self.found)} {state}" for state in (VERIFIED, FAILED)]
        counts.append(f"{sum(one.state == NOT_CHECKED for one in self.found)} {NOT_CHECKED}")
        return visible("\n".join([f"{self.name}: {', '.join(counts)}", *lines]), keep="\n")

    def record(self) -> dict[str, Any]:
        """The verdicts as JSON."""
        return {"config": self.name, "ok": self.ok, "verdicts": [asdict(one) for one in self.found]}

    def say(self, claim: str, good: bool, why: str) -> None:
        self.found.append(Verdict(claim, VERIFIED if good else FAILED, why))

    def leave(self, claim: str, why: str) -> None:
        self.found.append(Verdict(claim, NOT_CHECKED, why))
