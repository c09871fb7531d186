"""A request as routes see it, and the table that leads from paths to routes.

Paths are matched as they were sent: ``refs%2Fpr%2F1`` is one segment, a branch called ``a/b`` comes as ``a%2Fb``. What
a pattern captures is decoded afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .accounts import Accounts, Caller
from .answers import HubError, Reply, bad_request, forbidden, repo_not_found
from .faults import FaultBook, Journal, Leak
from .registry import Registry
from .store import Repo

SEGMENTS = {
    "kind": r"(?P<kind>models|datasets|spaces)",
    "web": r"(?:(?P<kind>datasets|spaces)/)?",
    "repo": r"(?P<repo>[^/]+/[^/]+)",
    "rev": r"(?P<rev>refs/(?:pr|heads|tags|convert)/[^/]+|[^/]+)",
    "path": r"(?P<path>.+)",
    "name": r"(?P<name>[^/]+)",
    "num": r"(?P<num>\d+)",
    "sha256": r"(?P<sha256>[0-9a-f]{64})",
}


@dataclass
class Core:
    """What all requests of one Hub share; ``storage_url`` is the second origin."""

    registry: Registry
    accounts: Accounts
    page_size: int
    secret: bytes
    faults: FaultBook = field(default_factory=FaultBook)
    journal: Journal = field(default_factory=Journal)
    storage_url: str = ""


@dataclass
class Request:
    """``target`` is the raw path and query, ``base`` the origin that the client speaks to, ``args`` come decoded."""

    core: Core
    method: str
    target: str
    headers: Message
    body: bytes
    base: str
    origin: str
    caller: Caller = field(default_factory=Caller)
    args: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def first(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.first(name).lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """The body; a form is read as lists by name."""
        if "urlencoded" in self.headers.get("Content-Type", ""):
            return parse_qs(self.body.decode(), keep_blank_values=True)
        try:
            data = json.loads(self.body or b"{}")
        except ValueError as error:
            raise bad_request(f"The body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise bad_request("The body is not a JSON object")
        return data

    def writer(self) -> str:
        """The caller's name, once it is known that the token may write anything."""
        if self.caller.name is None:
            raise HubError(401, "Invalid username or password.")
        if self.caller.role != "write":
            raise forbidden("You must use a write token to do this: the token is read-only")
        return self.caller.name

    def repo(self, *, write: bool = False) -> Repo:
        """The repository in the path, if the caller may see it, and write to it where ``write`` is set."""
        kind, repo_id = self.args.get("kind") or "models", self.args["repo"]
        repo = self.core.registry.find(kind, repo_id)
        if repo is None and (new_id := self.core.registry.moved(kind, repo_id)) is not None:
            location = self.target.replace(repo_id, new_id, 1)
            raise HubError(307, f"Temporary Redirect. Redirecting to {location}", headers={"Location": location})
        if repo is None or not self.caller.sees(repo):
            raise repo_not_found(self.caller.name is None)
        if write:
            self.writer()
            if not self.caller.owns(repo_id.partition("/")[0]):
                raise forbidden(f"You don't have the rights to write to {repo_id}")
        return repo

    def note_leak(self, what: str) -> None:
        self.core.journal.note(Leak(self.method, self.path, self.origin, what))

    def look_for_tokens(self, content: bytes | str, what: str) -> None:
        """A token in something that is kept or shown counts as leaked."""
        text = content if isinstance(content, str) else content.decode("latin-1")
        if self.core.accounts.found_in(text):
            self.note_leak(what)


Handler = Callable[[Request], Reply]

_ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, template: str, origin: str = "hub") -> Callable[[Handler], Handler]:
    """Answer ``method`` on a path such as ``/api/{kind}/{repo}/tree/{rev}``; GET routes answer HEAD too."""
    pattern = re.sub(r"\{(\w+)\}", lambda found: SEGMENTS[found[1]], template)

    def register(handler: Handler) -> Handler:
        _ROUTES.append((f"{origin} {method}", re.compile(pattern), handler))
        return handler

    return register


def find_route(request: Request) -> tuple[str, Handler] | None:
    """The route's name and handler; fills ``request.args``."""
    wanted = f"{request.origin} {'GET' if request.method == 'HEAD' else request.method}"
    for method, pattern, handler in _ROUTES:
        if method == wanted and (found := pattern.fullmatch(request.path)):
            request.args = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
            return getattr(handler, "__name__", ""), handler
    return None
