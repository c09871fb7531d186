"""Writing to a repository: which files go to LFS, and the commit itself."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from collections.abc import Iterator
from typing import Any

from . import git, pulls
from .answers import Reply, bad_request, entry_not_found, forbidden, json_reply, revision_not_found
from .card import front_matter
from .registry import LFS_SUFFIXES, web_path
from .request import Request, route
from .store import Edit, Entry, Repo

LARGE = 10 * 1024 * 1024


def _target(request: Request) -> tuple[Repo, str, str]:
    """The repository, the caller's name and the revision to commit to, if the caller may do so.

    Whoever may read may open a pull request, and goes on writing to it.
    """
    repo, revision = request.repo(), request.args["rev"]
    author = request.writer()
    if request.flag("create_pr") or (revision.startswith("refs/pr/") and pulls.author(repo, revision) == author):
        return repo, author, revision
    return request.repo(write=True), author, revision


def _is_lfs(path: str, size: int, sample: bytes) -> bool:
    """By suffix, by size (10 MiB), or because the first bytes are not UTF-8 text."""
    if path.lower().rpartition(".")[2] in LFS_SUFFIXES or size > LARGE or b"\0" in sample:
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 3  # a character cut at the end of the sample is no sign of binary content
    return False


def _ignored(path: str, gitignore: str) -> bool:
    """The plain patterns of a .gitignore: names, globs and folders; no negation."""
    names = [path, *git.parents(path)]
    rules = [line.strip().strip("/") for line in gitignore.splitlines() if line.strip() and line[0] not in "#!"]
    return any(fnmatch.fnmatch(part, rule) for rule in rules for name in names for part in (name, name.split("/")[-1]))


@route("POST", "/api/{kind}/{repo}/preupload/{rev}")
def preupload(request: Request) -> Reply:
    repo, _, revision = _target(request)
    tree, data = repo.resolve(revision).tree, request.json()
    files: list[dict[str, Any]] = []
    for file in data.get("files", []):
        path = file["path"]
        lfs = _is_lfs(path, file["size"], base64.b64decode(file.get("sample", "")))
        known: dict[str, Any] = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
        known["shouldIgnore"] = _ignored(path, data.get("gitIgnore") or "")
        if path in tree:
            known["oid"] = tree[path].sha256 if tree[path].lfs else tree[path].oid
        files.append(known)
    return json_reply({"files": files})


def _operations(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in request.body.splitlines():
        try:
            if line.strip():
                item = json.loads(line)
                yield item["key"], item["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise bad_request(f"Invalid line in the commit: {error!r}") from error


def _path(value: dict[str, Any], key: str = "path") -> str:
    path = value.get(key)
    if not isinstance(path, str) or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
        raise bad_request(f"Invalid path: {path!r}")
    return path.rstrip("/")


def _content(request: Request, value: dict[str, Any]) -> bytes:
    try:
        content = base64.b64decode(value["content"], validate=True)
    except (KeyError, binascii.Error) as error:
        raise bad_request(f"Invalid content of {value.get('path')}: {error!r}") from error
    request.look_for_tokens(content, f"file {value.get('path')}")
    return content


def _added(request: Request, repo: Repo, key: str, value: dict[str, Any], head: dict[str, Entry]) -> Entry:
    """What a file, lfsFile or copyFile line puts at its path."""
    if key == "file":
        content = _content(request, value)
        if value["path"] == "README.md" and (wrong := front_matter(content.decode("utf-8", "replace"))[1]):
            raise bad_request("Invalid metadata in README.md", errors=[{"message": wrong}])
        return repo.write(content)
    if key == "lfsFile":
        if value.get("algo") != "sha256" or not repo.has(str(value.get("oid"))):
            raise bad_request(f"LFS pointer pointed to a file that does not exist: {value.get('path')}")
        return repo.lfs_entry(value["oid"])
    source = _path(value, "srcPath")
    tree = repo.resolve(value["srcRevision"]).tree if value.get("srcRevision") else head
    if source not in tree:
        raise entry_not_found(f"A file with this name doesn't exist: {source}")
    return tree[source]


def _edit(request: Request, repo: Repo, operations: list[tuple[str, dict[str, Any]]]) -> Edit:
    """The change from one tree to the next; raises, and nothing happens, when one line does not apply."""

    def edit(tree: dict[str, Entry]) -> dict[str, Entry]:
        head = dict(tree)
        for key, value in operations:
            path = _path(value)
            if key in ("file", "lfsFile", "copyFile"):
                tree[path] = _added(request, repo, key, value, head)
            elif key == "deletedFile":
                if tree.pop(path, None) is None:
                    raise entry_not_found(f"A file with this name doesn't exist: {path}")
            elif key == "deletedFolder":
                inside = [name for name in tree if name.startswith(f"{path}/")]
                if not inside:
                    raise entry_not_found(f"A folder with this name doesn't exist: {path}")
                for name in inside:
                    del tree[name]
            else:
                raise bad_request(f"Unknown operation: {key}")
        for path in tree:
            if any(above in tree for above in git.parents(path)):
                raise bad_request(f"{path} lies in a folder that is a file")
        return tree

    return edit


@route("POST", "/api/{kind}/{repo}/commit/{rev}")
def commit(request: Request) -> Reply:
    repo, author, revision = _target(request)
    lines = list(_operations(request))
    header = dict(lines).get("header", {})
    title, description = str(header.get("summary") or ""), str(header.get("description") or "")
    if not title:
        raise bad_request("The commit has no summary")
    request.look_for_tokens(f"{title}\n{description}", "commit message")
    edit = _edit(request, repo, [line for line in lines if line[0] != "header"])
    site = f"{request.base}/{web_path(repo.kind, repo.id)}"
    parent = header.get("parentCommit")
    done: dict[str, Any] = {"success": True, "hookOutput": ""}
    if request.flag("create_pr"):
        number, made = pulls.open_pull(repo, parent or revision, edit, title, description, author)
        done["pullRequestUrl"] = f"{site}/discussions/{number}"
    else:
        ref = repo.ref(revision)
        if ref is None:
            raise revision_not_found(revision)
        if ref.startswith("refs/tags/"):
            raise forbidden(f"Cannot commit to the tag {revision}")
        made = repo.commit(ref, edit, parent=parent, title=title, description=description, author=author)
    return json_reply(done | {"commitUrl": f"{site}/commit/{made.oid}", "commitOid": made.oid})
