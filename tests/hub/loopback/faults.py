"""Faults to inject, and the log of what was asked."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """What befalls the next ``times`` requests whose method and raw target (path and query) match.

    ``when`` is "before" (the request has no effect), "after" (it has taken effect, the reply is lost) or "midway" (it
    has taken effect and half of the reply's body is sent; with ``cut`` only). ``status`` replaces the reply, ``cut``
    closes the connection without one, ``delay`` waits that many seconds; with neither of the first two the request is
    only slow. ``retry_after`` is in seconds. ``hits`` counts the requests that met the fault.
    """

    method: str
    pattern: str
    status: int | None = None
    when: str = "before"
    times: int = 1
    delay: float = 0.0
    cut: bool = False
    retry_after: int | None = None
    message: str = "Injected fault"
    hits: int = 0

    def __post_init__(self) -> None:
        if self.when not in ("before", "after", "midway"):
            raise ValueError(f'when is {self.when!r}: write "before", "after" or "midway"')
        if self.when == "midway" and not self.cut:
            raise ValueError("midway only makes sense with cut=True")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error

    def matches(self, method: str, target: str) -> bool:
        return self.hits < self.times and self.method in ("*", method) and bool(re.search(self.pattern, target))


class FaultBook:
    """Faults in the order in which they were added; the first that matches is taken."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def waiting(self) -> list[Fault]:
        with self._lock:
            return [fault for fault in self._faults if fault.hits < fault.times]

    def take(self, method: str, target: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.matches(method, target):
                    fault.hits += 1
                    return fault
        return None


@dataclass(frozen=True)
class Access:
    """One request: ``status`` 0 is a cut connection, ``route`` "" a path that nothing answers.

    ``authorization`` says whether such a header was sent; the header itself is kept nowhere. ``origin`` is "hub" or
    "storage". ``fault`` is what was injected: "" for nothing.
    """

    method: str
    path: str
    status: int
    user: str | None
    authorization: bool
    origin: str
    route: str
    fault: str


@dataclass(frozen=True)
class Leak:
    """A token seen where none may be: in ``what`` of the request."""

    method: str
    path: str
    origin: str
    what: str


@dataclass
class Journal:
    """Requests and leaks since the start or the last ``clear``."""

    accesses: list[Access] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def note(self, entry: Access | Leak) -> None:
        with self._lock:
            if isinstance(entry, Access):
                self.accesses.append(entry)
            else:
                self.leaks.append(entry)

    def clear(self) -> None:
        with self._lock:
            self.accesses.clear()
            self.leaks.clear()
