"""Names of blobs, folders and commits as git computes them, and the pointer that stands for an LFS file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def _named(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def blob_id(content: bytes) -> str:
    return _named("blob", content)


def pointer(sha256: str, size: int) -> bytes:
    """What git itself stores for an LFS file of ``size`` bytes."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def parents(path: str) -> list[str]:
    """The folders above ``path``, innermost first, without the root: ``a/b/c`` gives ``a/b`` and ``a``."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """The tree id of every folder, the root under ``""``, from blob ids by path."""
    children: dict[str, dict[bytes, tuple[str, str]]] = {"": {}}
    for path, oid in blobs.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name.encode()] = ("100644", oid)
        for above in parents(path):
            children.setdefault(above, {})
    ids: dict[str, str] = {}
    for folder in sorted(children, key=lambda path: (bool(path), path.count("/")), reverse=True):
        # git sorts folders as if their names ended in a slash
        named = sorted(children[folder].items(), key=lambda item: item[0] + b"/" * (item[1][0] == "40000"))
        content = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for name, (mode, oid) in named)
        ids[folder] = _named("tree", content)
        if folder:
            above, _, name = folder.rpartition("/")
            children[above][name.encode()] = ("40000", ids[folder])
    return ids


def commit_id(tree: str, parent_ids: Iterable[str], author: str, seconds: int, message: str) -> str:
    who = f"{author} <{author}@loopback.invalid> {seconds} +0000"
    lines = [
        f"tree {tree}",
        *(f"parent {oid}" for oid in parent_ids),
        f"author {who}",
        f"committer {who}",
        "",
        message,
    ]
    return _named("commit", "\n".join(lines).encode())
