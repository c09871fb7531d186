"""All repositories of a Hub: found by kind and id, created, moved and deleted."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any

from .answers import HubError, bad_request
from .store import MAIN, Repo, now

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}

# fmt: off
LFS_SUFFIXES = (
    "7z", "arrow", "bin", "bz2", "ckpt", "feather", "flac", "gz", "h5", "jpeg", "jpg", "joblib", "lz4", "mlmodel",
    "model", "mp3", "mp4", "msgpack", "npy", "npz", "ogg", "onnx", "parquet", "pb", "pickle", "pkl", "png", "pt",
    "pth", "rar", "safetensors", "tar", "tflite", "tgz", "wasm", "wav", "webm", "webp", "xz", "zip", "zst",
)
# fmt: on

GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def web_path(kind: str, repo_id: str) -> str:
    """Where a repository lies on the site: models have no prefix."""
    return repo_id if kind == "models" else f"{kind}/{repo_id}"


class Registry:
    """The repositories under ``folder``, those of an earlier run included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._moved: dict[tuple[str, str], str] = {}
        self._repos: dict[tuple[str, str], Repo] = {}
        for state in sorted(folder.glob("*/*/*/repo.json")):
            repo = Repo(state.parent)
            self._repos[repo.kind, repo.id] = repo

    def find(self, kind: str, repo_id: str) -> Repo | None:
        return self._repos.get((kind, repo_id))

    def moved(self, kind: str, repo_id: str) -> str | None:
        """The new id of a repository that was moved."""
        return self._moved.get((kind, repo_id))

    def all(self) -> list[Repo]:
        return [self._repos[key] for key in sorted(self._repos)]

    def _free(self, kind: str, repo_id: str) -> Path:
        namespace, _, name = repo_id.partition("/")
        bad = name.endswith(".git") or ".." in name or "--" in name
        if bad or not _NAME.fullmatch(name) or not _NAME.fullmatch(namespace):
            raise bad_request(f"Invalid repo name: {repo_id}")
        if (kind, repo_id) in self._repos:
            raise HubError(409, f"You already created this {kind[:-1]} repo: {repo_id}")
        return self.folder / kind / namespace / name

    def create(self, kind: str, repo_id: str, *, author: str, private: bool = False) -> Repo:
        """A repository with one commit on main, which holds .gitattributes."""
        with self.lock:
            state: dict[str, Any] = {"kind": kind, "id": repo_id, "private": private, "gated": False, "granted": []}
            repo = Repo(self._free(kind, repo_id), state | {"created": now(), "refs": {}, "pulls": {}})
            first = repo.record(
                {".gitattributes": repo.write(GITATTRIBUTES.encode())}, (), "initial commit", "", author
            )
            repo.set_ref(MAIN, first.oid)
            self._repos[kind, repo_id] = repo
            self._moved.pop((kind, repo_id), None)
            return repo

    def delete(self, repo: Repo) -> None:
        with self.lock, repo.lock:
            del self._repos[repo.kind, repo.id]
            shutil.rmtree(repo.folder)

    def move(self, repo: Repo, repo_id: str) -> None:
        """The old id answers with a redirect from now on."""
        with self.lock, repo.lock:
            folder = self._free(repo.kind, repo_id)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(repo.folder, folder)
            del self._repos[repo.kind, repo.id]
            self._moved[repo.kind, repo.id] = repo_id
            repo.folder = folder
            repo.change(id=repo_id)
            self._repos[repo.kind, repo_id] = repo
