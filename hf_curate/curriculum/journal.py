"""What a selector did, as text: one JSON line for each round, then one for each generation batch."""

from __future__ import annotations

import json
from typing import Any

from hf_curate.errors import CurateError

FLAGS = ("signal", "stopped")
"""Lists of true, false and null by row; one character for each in a line."""
DIGITS = 7
"""Significant digits of a score: those that float32 holds."""
_MARKS = {True: "1", False: "0", None: "-"}
_MEANT = {mark: value for value, mark in _MARKS.items()}


def short(score: float) -> float:
    """A score as a record holds it."""
    return float(f"{score:.{DIGITS}g}")


class Journal:
    """Lines are made once: a checkpoint after many rounds costs what is new since the last."""

    def __init__(self) -> None:
        self._rounds: list[str] = []
        self._batches: list[str] = []

    def text(self, history: list[dict[str, Any]], used: list[dict[str, Any]]) -> str:
        """history, used: those of a selector, which only grow."""
        self._rounds += map(_line, history[len(self._rounds) :])
        self._batches += map(_line, used[len(self._batches) :])
        return "".join(self._rounds + self._batches)


def read_journal(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(history, used) of a selector's journal. CurateError: it is none."""
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            for name in FLAGS:
                if record.get(name) is not None:
                    record[name] = [_MEANT[mark] for mark in record[name]]
            found["kept" not in record].append(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CurateError(f"line {number} of the selector's history cannot be read: {line[:60]!r}.") from error
    return found


def _line(record: dict[str, Any]) -> str:
    flags = {name: "".join(_MARKS[own] for own in record[name]) for name in FLAGS if record.get(name) is not None}
    return json.dumps({**record, **flags}, separators=(",", ":")) + "\n"
