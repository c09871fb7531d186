"""Our sections of a README, each between two marker lines that carry its name and a version.

    <!-- hf_curate:begin config=NAME split=SPLIT v1 -->      <!-- hf_curate:begin comparison v1 -->
    <!-- hf_curate:end config=NAME split=SPLIT -->           <!-- hf_curate:end comparison -->

Only what stands between the two markers of a section is ever replaced. Where they are missing, doubled or broken the
section is written anew at the end, and a sentence says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from hf_curate.errors import CurateError

COMPARISON = "comparison"
VERSION = "v1"

MARKER = re.compile(
    r"^<!-- hf_curate:(?P<kind>begin|end) (?P<name>config=\S+ split=\S+|comparison)(?: v\d+)? -->[ \t]*(?=\r?$)", re.M
)
_FRESH = (
    "<!-- The markers of an earlier section of this split are doubled or broken; this section is the current one. -->"
)


@dataclass(frozen=True)
class Place:
    """A section by the name on its markers, and what sentences call it."""

    name: str
    called: str

    @classmethod
    def of(cls, config: str, split: str) -> Place:
        return cls(f"config={config} split={split}", f"{config!r}, split {split!r},")

    @classmethod
    def comparison(cls) -> Place:
        return cls(COMPARISON, "the comparison")

    @property
    def begin(self) -> str:
        return f"<!-- hf_curate:begin {self.name} {VERSION} -->"

    @property
    def end(self) -> str:
        return f"<!-- hf_curate:end {self.name} -->"

    def markers(self, body: str) -> list[re.Match[str]]:
        """Those of this section in a text."""
        return [found for found in MARKER.finditer(body) if found["name"] == self.name]


def with_section(
    body: str, rendered: str, place: Place, newline: str, notes: list[str], *, first: bool = False
) -> str:
    """The body with a section replaced, or added where it is missing or its markers cannot be trusted.

    first: a section that was never there stands before all our others, and not at the end.
    """
    if MARKER.search(rendered):
        raise CurateError(
            "A section of the card holds a marker line <!-- hf_curate:begin ... -->: take it out of the section's body"
        )
    markers, ours = list(MARKER.finditer(body)), place.markers(body)
    pairs = [
        (a, b)
        for a, b in pairwise(markers)
        if a["name"] == b["name"] == place.name and (a["kind"], b["kind"]) == ("begin", "end")
    ]
    broken = len(ours) != 0 and not (len(ours) == 2 and len(pairs) == 1)
    lines = [place.begin, *([_FRESH] if broken else []), "", *rendered.strip("\n").split("\n"), "", place.end]
    section = newline.join(lines)
    if broken:
        notes.append(
            f"The markers of {place.called} are doubled or broken in README.md: the card is at its end and nothing "
            "else was touched. Delete the old section with its markers."
        )
        pairs = [(a, b) for a, b in pairs if _FRESH in body[a.end() : b.start()]]
    if pairs:
        start, stop = pairs[-1]
        return body[: start.start()] + section + body[stop.end() :]
    if first and markers and not broken:
        at = markers[0].start()
        return body[:at] + section + newline + newline + body[at:]
    if body and not body.endswith(newline):
        body += newline
    return body + newline + section + newline
