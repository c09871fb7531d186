"""Who may do what: users, their tokens, and organisations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import bad_credentials
from .store import Repo

USERS: dict[str, dict[str, Any]] = {
    "alice": {"token": "hf_alice", "tokens": {"hf_alice_read": "read"}, "orgs": {"lab": "write"}},
    "bob": {"token": "hf_bob", "orgs": {"lab": "read"}},
    "carol": {"token": "hf_carol"},
}


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request: ``name`` is None without a token, ``role`` is the token's, "write" or "read"."""

    name: str | None = None
    role: str = "read"
    orgs: dict[str, str] = field(default_factory=dict)

    def owns(self, namespace: str) -> bool:
        """May write there, given a token that writes at all."""
        return self.name is not None and (namespace == self.name or self.orgs.get(namespace) in ("write", "admin"))

    def sees(self, repo: Repo) -> bool:
        namespace = repo.id.partition("/")[0]
        return not repo.state["private"] or namespace == self.name or namespace in self.orgs

    def may_download(self, repo: Repo) -> bool:
        """False where the repository is gated and nobody let the caller in."""
        namespace = repo.id.partition("/")[0]
        inside = namespace == self.name or namespace in self.orgs
        return not repo.state["gated"] or inside or self.name in repo.state["granted"]


class Accounts:
    """Users by name: ``{"token": ..., "role": "write", "tokens": {more: role}, "orgs": {name: "write" | "read"}}``."""

    def __init__(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        self._callers: dict[str, Caller] = {}
        for name, user in users.items():
            tokens = {user["token"]: user.get("role", "write"), **user.get("tokens", {})}
            for token, role in tokens.items():
                self._callers[token] = Caller(name, role, dict(user.get("orgs", {})))

    @property
    def tokens(self) -> list[str]:
        return list(self._callers)

    def identify(self, authorization: str | None) -> Caller:
        if authorization is None:
            return Caller()
        caller = self._callers.get(authorization.removeprefix("Bearer ").strip())
        if caller is None:
            raise bad_credentials()
        return caller

    def found_in(self, text: str) -> bool:
        """Whether any user's token stands in ``text``."""
        return any(token in text for token in self._callers)
