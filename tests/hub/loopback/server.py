"""The Hub as a whole: two origins on 127.0.0.1, started and stopped together."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .accounts import USERS, Accounts
from .faults import Access, Fault, Leak
from .handler import Server
from .registry import KINDS, Registry
from .request import Core
from .store import Commit, Repo


class LoopbackHub:
    """A small Hugging Face Hub for tests and for trying things out.

    ``folder`` keeps the repositories (None: a temporary folder that goes with the Hub). ``users`` is described at
    ``accounts.Accounts``; by default alice (hf_alice, read-only hf_alice_read), bob and carol, and the organisation
    lab, where alice writes and bob reads. ``page_size`` is how many entries a listing gives at once. ``port`` 0 takes
    a free one. Only 127.0.0.1 is listened on.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        users: Mapping[str, Mapping[str, Any]] | None = None,
        page_size: int = 50,
        port: int = 0,
    ) -> None:
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="loopback-hub-") if folder is None else folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        accounts = Accounts(USERS if users is None else users)
        self.core = Core(Registry(self.folder), accounts, page_size, secrets.token_bytes(32))
        self._servers = [Server(self.core, "hub", port), Server(self.core, "storage", 0)]
        self.url, self.storage_url = (server.url for server in self._servers)
        self.core.storage_url = self.storage_url
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening, cut open connections, remove the temporary folder."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.cut_all()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> LoopbackHub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def env(self, token: str | None = None, home: str | os.PathLike[str] = "hf-home") -> dict[str, str]:
        """Variables that lead a subprocess here, with caches of its own: ``os.environ | hub.env(...)``.

        Every variable that could lead elsewhere is set, if need be to nothing.
        """
        home = Path(home)
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def fail(self, method: str, pattern: str, status: int | None = None, when: str = "before", **how: Any) -> Fault:
        """Inject a fault into coming requests: see ``faults.Fault`` for times, delay, cut and retry_after."""
        return self.core.faults.add(Fault(method, pattern, status, when, **how))

    def log(self, clear: bool = False) -> list[Access]:
        """The requests so far; ``clear`` starts a new log (and a new list of leaks)."""
        accesses = list(self.core.journal.accesses)
        if clear:
            self.core.journal.clear()
        return accesses

    def leaks(self) -> list[Leak]:
        """Tokens in requests to the second origin, in paths, committed files, LFS objects and commit messages."""
        return list(self.core.journal.leaks)

    def repo(self, repo_type: str, repo_id: str) -> Repo:
        """The repository itself, past all access rules. KeyError when there is none."""
        repo = self.core.registry.find(KINDS[repo_type], repo_id)
        if repo is None:
            raise KeyError(f"{repo_type} {repo_id}")
        return repo

    def commits(self, repo_type: str, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        repo = self.repo(repo_type, repo_id)
        return list(repo.history(repo.resolve(revision).oid))

    def read(self, repo_type: str, repo_id: str, path: str, revision: str = "main") -> bytes:
        """A file's content. KeyError when there is none."""
        repo = self.repo(repo_type, repo_id)
        return repo.read(repo.resolve(revision).tree[path].sha256)
