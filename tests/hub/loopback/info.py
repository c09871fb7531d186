"""Reading a repository: what it is, its files, refs and commits."""

from __future__ import annotations

import base64
import html
from typing import Any
from urllib.parse import urlencode

from . import git
from .answers import Reply, entry_not_found, json_reply
from .card import card_data, tags
from .request import Request, route
from .store import Commit, Entry, Repo

EXPANDED_PAGE = 50


def _lfs(entry: Entry) -> dict[str, Any]:
    return {"oid": entry.sha256, "size": entry.size, "pointerSize": len(git.pointer(entry.sha256, entry.size))}


def describe(repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """All that the info endpoints know."""
    siblings: list[dict[str, Any]] = []
    for path, entry in commit.tree.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                lfs = _lfs(entry)
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    card = card_data(repo, commit)
    known = {
        "_id": git.blob_id(f"{repo.kind}/{repo.id}".encode())[:24],
        "id": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.state["created"],
        "private": repo.state["private"],
        "gated": repo.state["gated"],
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(card),
        "cardData": card,
        "siblings": siblings,
        "usedStorage": sum(entry.size for entry in commit.tree.values()),
    }
    if repo.kind == "models":
        known |= {
            "modelId": repo.id,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
        }
    return known


def _info(request: Request, commit: Commit, repo: Repo) -> Reply:
    known = describe(repo, commit, request.flag("blobs"))
    expand = [*request.query.get("expand", []), *request.query.get("expand[]", [])]
    if expand:
        known = {key: value for key, value in known.items() if key in ("_id", "id", *expand)}
    return json_reply(known)


@route("GET", "/api/{kind}/{repo}")
def info(request: Request) -> Reply:
    repo = request.repo()
    return _info(request, repo.resolve("main"), repo)


@route("GET", "/api/{kind}/{repo}/revision/{rev}")
def info_at_revision(request: Request) -> Reply:
    repo = request.repo()
    return _info(request, repo.resolve(request.args["rev"]), repo)


@route("GET", "/api/{kind}")
def repositories(request: Request) -> Reply:
    """Those that the caller sees, by ``author`` and ``search``."""
    author, search = request.first("author"), request.first("search")
    shown: list[dict[str, Any]] = []
    for repo in request.core.registry.all():
        wanted = author in ("", repo.id.partition("/")[0]) and search.lower() in repo.id.lower()
        if wanted and repo.kind == request.args["kind"] and request.caller.sees(repo):
            known = describe(repo, repo.resolve("main"))
            shown.append({key: value for key, value in known.items() if key not in ("siblings", "cardData")})
    return json_reply(shown)


class Listing:
    """The files and folders of a commit, each as the API shows it."""

    def __init__(self, repo: Repo, commit: Commit, expand: bool) -> None:
        self.repo = repo
        self.commit = commit
        self.expand = expand
        self.folders = _folders(commit)

    def show(self, path: str) -> dict[str, Any] | None:
        entry = self.commit.tree.get(path)
        if entry is not None:
            shown: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.lfs:
                shown["lfs"] = _lfs(entry)
        elif path in self.folders:
            shown = {"type": "directory", "oid": self.folders[path], "size": 0, "path": path}
        else:
            return None
        if self.expand:
            last = self._last_commit(path)
            shown["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        return shown

    def _last_commit(self, path: str) -> Commit:
        """The newest commit that gave ``path`` the content that it has."""
        last = self.commit
        for commit in self.repo.history(self.commit.oid):
            same_file = commit.tree.get(path) == self.commit.tree.get(path)
            if not same_file or _folders(commit).get(path) != self.folders.get(path):
                break
            last = commit
        return last


def _folders(commit: Commit) -> dict[str, str]:
    return git.tree_ids({path: entry.oid for path, entry in commit.tree.items()})


def _page(request: Request, names: list[str], size: int) -> tuple[list[str], dict[str, str]]:
    """One page of sorted ``names`` and the Link header to the next: the cursor is the last name of this page."""
    limit = min(size, int(request.first("limit") or size))
    if cursor := request.first("cursor"):
        after = base64.urlsafe_b64decode(cursor).decode()
        names = [name for name in names if name > after]
    page = names[:limit]
    if len(names) <= limit:
        return page, {}
    query = {name: values[0] for name, values in request.query.items()}
    query["cursor"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
    return page, {"Link": f'<{request.base}{request.path}?{urlencode(query)}>; rel="next"'}


@route("GET", "/api/{kind}/{repo}/tree/{rev}(?:/{path})?")
def tree(request: Request) -> Reply:
    repo = request.repo()
    revision, expand = request.args["rev"], request.flag("expand")
    listing = Listing(repo, repo.resolve(revision), expand)
    folder = request.args.get("path", "").strip("/")
    if folder and folder not in listing.folders:
        raise entry_not_found(f'{folder} does not exist on "{revision}"', listing.commit.oid)
    prefix = f"{folder}/" if folder else ""
    names = [name for name in {*listing.commit.tree, *listing.folders} if name.startswith(prefix) and name]
    if not request.flag("recursive"):
        names = [name for name in names if "/" not in name[len(prefix) :]]
    size = request.core.page_size
    page, headers = _page(request, sorted(names), min(size, EXPANDED_PAGE) if expand else size)
    return json_reply([listing.show(name) for name in page], headers=headers)


@route("POST", "/api/{kind}/{repo}/paths-info/{rev}")
def paths_info(request: Request) -> Reply:
    repo = request.repo()
    data = request.json()
    paths, expand = data.get("paths", []), data.get("expand", False)
    wanted = [paths] if isinstance(paths, str) else paths
    expanded = str(expand[0] if isinstance(expand, list) else expand).lower() in ("1", "true")
    listing = Listing(repo, repo.resolve(request.args["rev"]), expanded)
    shown = [listing.show(path.strip("/")) for path in dict.fromkeys(wanted) if path.strip("/")]
    return json_reply([item for item in shown if item is not None])


@route("GET", "/api/{kind}/{repo}/refs")
def refs(request: Request) -> Reply:
    repo = request.repo()
    groups = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/", "pullRequests": "refs/pr/"}
    if not request.flag("include_prs"):
        del groups["pullRequests"]
    shown: dict[str, list[dict[str, str]]] = {group: [] for group in groups}
    for ref, oid in sorted(repo.refs.items()):
        for group, prefix in groups.items():
            if ref.startswith(prefix):
                shown[group].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid})
    return json_reply(shown)


@route("GET", "/api/{kind}/{repo}/commits/{rev}")
def commits(request: Request) -> Reply:
    repo = request.repo()
    history = list(repo.history(repo.resolve(request.args["rev"]).oid))
    number, size = int(request.first("p", "0")), request.core.page_size
    formatted = "formatted" in request.query.get("expand[]", [])
    shown: list[dict[str, Any]] = []
    for commit in history[number * size : (number + 1) * size]:
        item: dict[str, Any] = {"id": commit.oid, "title": commit.title, "message": commit.description}
        item |= {"date": commit.date, "authors": [{"user": commit.author}]}
        if formatted:
            item["formatted"] = {"title": html.escape(commit.title), "message": html.escape(commit.description)}
        shown.append(item)
    headers = {"X-Total-Count": str(len(history))}
    if (number + 1) * size < len(history):
        query = [(name, value) for name, values in request.query.items() if name != "p" for value in values]
        following = urlencode([*query, ("p", str(number + 1))])
        headers["Link"] = f'<{request.base}{request.path}?{following}>; rel="next"'
    return json_reply(shown, headers=headers)
