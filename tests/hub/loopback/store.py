"""One repository on disk: content-addressed objects, immutable commits, and one state file with refs and settings.

A commit is atomic: objects and the commit are written first, then the state file is replaced in one step. Whatever
changes the state holds the repository's lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import git
from .answers import HubError, revision_not_found

MAIN = "refs/heads/main"


@dataclass(frozen=True)
class Entry:
    """One file: git's name for it (of the pointer, for LFS), the SHA-256 and size in bytes of its content."""

    oid: str
    sha256: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """A whole tree by path, its parents, and who wrote it when (ISO 8601, UTC)."""

    oid: str
    parents: tuple[str, ...]
    tree: dict[str, Entry]
    title: str
    description: str
    author: str
    date: str


Edit = Callable[[dict[str, Entry]], dict[str, Entry]]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def write_whole(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    part.write_bytes(content)
    os.replace(part, path)


class Repo:
    """A repository in ``folder``; ``state`` holds kind, id, private, gated, granted, created, refs and pulls."""

    def __init__(self, folder: Path, state: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._commits: dict[str, Commit] = {}
        if state is None:
            self.state: dict[str, Any] = json.loads((folder / "repo.json").read_text(encoding="utf-8"))
        else:
            self.state = {}
            self.change(**state)

    @property
    def id(self) -> str:
        return self.state["id"]

    @property
    def kind(self) -> str:
        """models, datasets or spaces"""
        return self.state["kind"]

    @property
    def refs(self) -> dict[str, str]:
        return self.state["refs"]

    def change(self, **state: Any) -> None:
        """Replace parts of the state, on disk first."""
        with self.lock:
            changed = self.state | state
            write_whole(self.folder / "repo.json", json.dumps(changed, indent=1).encode())
            self.state = changed

    # Objects

    def object_path(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.object_path(sha256).is_file()

    def read(self, sha256: str) -> bytes:
        return self.object_path(sha256).read_bytes()

    def write(self, content: bytes) -> Entry:
        """Keep a regular file's content."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has(sha256):
            write_whole(self.object_path(sha256), content)
        return Entry(git.blob_id(content), sha256, len(content), lfs=False)

    def lfs_entry(self, sha256: str) -> Entry:
        """The entry of an LFS object that has been uploaded."""
        size = self.object_path(sha256).stat().st_size
        return Entry(git.blob_id(git.pointer(sha256, size)), sha256, size, lfs=True)

    # Commits and refs

    def commit_of(self, oid: str) -> Commit:
        if oid not in self._commits:
            path = self.folder / "commits" / f"{oid}.json"
            if not path.is_file():
                raise revision_not_found(oid)
            data = json.loads(path.read_text(encoding="utf-8"))
            tree = {path: Entry(**entry) for path, entry in data["tree"].items()}
            self._commits[oid] = Commit(**data | {"tree": tree, "parents": tuple(data["parents"])})
        return self._commits[oid]

    def ref(self, revision: str) -> str | None:
        """The full name of the branch, tag or pull request that ``revision`` names."""
        for prefix in ("", "refs/heads/", "refs/tags/"):
            if prefix + revision in self.refs:
                return prefix + revision
        return None

    def resolve(self, revision: str) -> Commit:
        """A branch, tag, full ref, commit, or at least seven digits of one."""
        ref = self.ref(revision)
        if ref is not None:
            return self.commit_of(self.refs[ref])
        if 7 <= len(revision) <= 40 and all(digit in "0123456789abcdef" for digit in revision):
            for path in (self.folder / "commits").glob(f"{revision}*.json"):
                return self.commit_of(path.stem)
        raise revision_not_found(revision)

    def history(self, oid: str) -> Iterator[Commit]:
        """The commit and its first parents, newest first."""
        commit = self.commit_of(oid)
        yield commit
        while commit.parents:
            commit = self.commit_of(commit.parents[0])
            yield commit

    def record(
        self, tree: dict[str, Entry], parents: tuple[str, ...], title: str, description: str, author: str
    ) -> Commit:
        """Write a commit object that no ref names yet."""
        date = now()
        seconds = int(datetime.fromisoformat(date).timestamp())
        root = git.tree_ids({path: entry.oid for path, entry in tree.items()})[""]
        oid = git.commit_id(root, parents, author, seconds, f"{title}\n\n{description}")
        commit = Commit(oid, parents, dict(sorted(tree.items())), title, description, author, date)
        write_whole(self.folder / "commits" / f"{oid}.json", json.dumps(asdict(commit)).encode())
        self._commits[oid] = commit
        return commit

    def set_ref(self, ref: str, oid: str | None) -> None:
        """Point ``ref`` at a commit, or drop it."""
        with self.lock:
            refs = {name: target for name, target in self.refs.items() if name != ref}
            self.change(refs=refs if oid is None else refs | {ref: oid})

    def commit(self, ref: str, edit: Edit, *, parent: str | None, title: str, description: str, author: str) -> Commit:
        """Apply ``edit`` to the tree at ``ref``: all of it or, when it raises or ``parent`` is not the head,
        nothing."""
        with self.lock:
            head = self.commit_of(self.refs[ref])
            if parent and not head.oid.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            commit = self.record(edit(dict(head.tree)), (head.oid,), title, description, author)
            self.set_ref(ref, commit.oid)
            return commit
