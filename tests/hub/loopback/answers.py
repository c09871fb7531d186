"""What a request gets back: a reply, or an error with the codes that the clients turn into their exceptions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """Status, headers and the whole body; HEAD requests get the same headers and no body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """Raised anywhere below a route; ``code`` becomes X-Error-Code, ``message`` X-Error-Message and the JSON body."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.extra = extra

    def reply(self) -> Reply:
        headers = dict(self.headers)
        headers["X-Error-Message"] = " ".join(self.message.encode("ascii", "replace").decode().split())
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return json_reply({"error": self.message, **self.extra}, self.status, headers)


def json_reply(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """``data`` as JSON; dates inside (YAML has them) are written as text."""
    body = json.dumps(data, default=str).encode()
    return Reply(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def text_reply(text: str, status: int = 200) -> Reply:
    return Reply(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


def bad_credentials() -> HubError:
    return HubError(401, "Invalid credentials in Authorization header")


def repo_not_found(anonymous: bool) -> HubError:
    """The Hub does not say whether a private repository exists: strangers get what a missing one gives.

    Without a token the answer is 401, with one it is 404; the code is the same and so is the client's exception.
    """
    if anonymous:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def gated(repo_id: str, anonymous: bool) -> HubError:
    if anonymous:
        message = f"Access to {repo_id} is restricted. You must have access to it and be authenticated to access it."
        return HubError(401, f"{message} Please log in.", "GatedRepo")
    message = f"Access to {repo_id} is restricted and you are not in the authorized list. Ask for access on its page."
    return HubError(403, message, "GatedRepo")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str, commit: str | None = None) -> HubError:
    """``commit`` goes into X-Repo-Commit, from which the clients remember that the file is absent there."""
    return HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit} if commit else None)


def forbidden(message: str) -> HubError:
    return HubError(403, message)


def bad_request(message: str, **extra: Any) -> HubError:
    return HubError(400, message, **extra)
