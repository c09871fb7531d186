"""What a run would take, as a dry run tells it: rows, tokens, time, disk, memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_curate.runs.progress import duration

SCORING = "scoring"
SHORT = 9.95
"""Seconds below which a tenth of one is told."""


@dataclass
class Phase:
    """One kind of work: what it took for the probe, and what it would take for all rows.

    rows, seconds, tokens, padded: of the probe; whole: seconds for all rows.
    """

    name: str
    rows: int = 0
    seconds: float = 0.0
    tokens: int = 0
    padded: int = 0
    whole: float = 0.0


@dataclass
class Estimate:
    """What a run would take.

    rows: of the whole; known: whether that is how many there are; probed: rows that were scored; failed: of those;
    loading: seconds until the first rows were scored, with the model's loading; phases: in their order; tokens: of
    all rows, None where none are read; disk: bytes by what they are for; notes: what is not in it.
    """

    rows: int
    known: bool
    probed: int = 0
    failed: int = 0
    loading: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    tokens: float | None = None
    disk: dict[str, float] = field(default_factory=dict)
    free: int | None = None
    memory: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of the whole run, in one process."""
        return self.loading + sum(phase.whole for phase in self.phases)

    def __str__(self) -> str:
        told = {"rows": self._rows(), "tokens": self._tokens(), "speed": self._speed(), "time": self._time()}
        told["disk"] = " + ".join(f"{_size(size)} {name}" for name, size in self.disk.items())
        told["disk"] += "" if self.free is None else f"; {_size(self.free)} are free"
        told["memory"] = ", ".join(f"{_size(size)} {name}" for name, size in self.memory.items())
        lines = [(name, text) for name, text in told.items() if text] + [("note", note) for note in self.notes]
        return "\n".join(f"{name:<8} {text}" for name, text in lines)

    def _rows(self) -> str:
        known = f"{self.rows:,}" if self.known else f"not known (a stream), reckoned for {self.rows:,}"
        failed = f", {self.failed:,} of them without a score" if self.failed else ""
        return f"{known}; the probe has {self.probed:,}{failed}"

    def _tokens(self) -> str:
        if not self.tokens:
            return ""
        padding = f"; padding is {self.padding:.0%}" if self.padding is not None else ""
        return f"{self.tokens / self.rows:,.0f} a row, about {_short(self.tokens)} in all{padding}"

    @property
    def padding(self) -> float | None:
        """The share of what the model reads that is padding; None where it reads nothing."""
        scoring = self.scoring
        return 1 - scoring.tokens / scoring.padded if scoring.padded else None

    @property
    def scoring(self) -> Phase:
        return next(phase for phase in self.phases if phase.name == SCORING)

    def _speed(self) -> str:
        rows, tokens = (count / max(self.scoring.seconds, 1e-9) for count in (self.scoring.rows, self.scoring.tokens))
        told = f"{rows:,.0f} rows/s" if rows >= SHORT else f"{rows:.2g} rows/s"
        return f"{told}, {tokens:,.0f} tokens/s" if tokens else told

    def _time(self) -> str:
        parts = [f"{_seconds(self.loading)} until the first rows"]
        parts += [f"{_seconds(phase.whole)} {phase.name}" for phase in self.phases]
        return f"about {_seconds(self.seconds)} in one process: {', '.join(parts)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < SHORT else duration(seconds)


def _size(count: float) -> str:
    """12 MB, 3.4 GB."""
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    raise AssertionError


def _short(count: float) -> str:
    """123,456 as it is, 12.3M, 4.56B."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:,.0f}"
