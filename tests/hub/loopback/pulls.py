"""Pull requests: opened by a commit with create_pr or as empty drafts, written to as refs/pr/N, merged or closed."""

from __future__ import annotations

from typing import Any

from .answers import HubError, Reply, bad_request, forbidden, json_reply
from .request import Request, route
from .store import MAIN, Commit, Edit, Entry, Repo, now


def author(repo: Repo, revision: str) -> str | None:
    """Who opened the pull request that ``revision`` (refs/pr/N) names."""
    pull = repo.state["pulls"].get(revision.rpartition("/")[2])
    return pull["author"] if pull else None


def _register(repo: Repo, base: Commit, head: Commit, title: str, name: str, status: str) -> int:
    number = len(repo.state["pulls"]) + 1
    pull = {"num": number, "title": title, "author": name, "createdAt": now(), "status": status, "base": base.oid}
    refs = repo.refs | {f"refs/pr/{number}": head.oid}
    repo.change(pulls=repo.state["pulls"] | {str(number): pull}, refs=refs)
    return number


def open_pull(repo: Repo, revision: str, edit: Edit, title: str, description: str, name: str) -> tuple[int, Commit]:
    """A pull request with one commit on top of ``revision``; its number and that commit."""
    with repo.lock:
        base = repo.resolve(revision)
        head = repo.record(edit(dict(base.tree)), (base.oid,), title, description, name)
        return _register(repo, base, head, title, name, "open"), head


def _shown(repo: Repo, pull: dict[str, Any]) -> dict[str, Any]:
    shown = {key: pull[key] for key in ("num", "title", "createdAt", "status")}
    where = {"name": repo.id, "type": repo.kind[:-1]}
    return shown | {"author": {"name": pull["author"]}, "repo": where, "isPullRequest": True}


def _pull(request: Request, repo: Repo) -> dict[str, Any]:
    pull = repo.state["pulls"].get(request.args["num"])
    if pull is None:
        raise HubError(404, "Discussion not found")
    return pull


def _changes(before: dict[str, Entry], after: dict[str, Entry]) -> dict[str, Entry | None]:
    """Paths that differ, with what they hold afterwards."""
    return {path: after.get(path) for path in {*before, *after} if before.get(path) != after.get(path)}


def _merge_parts(repo: Repo, pull: dict[str, Any]) -> tuple[dict[str, Entry | None], list[str]]:
    """What the pull request changes, and the files among these that main has changed otherwise."""
    base = repo.commit_of(pull["base"]).tree
    changed = _changes(base, repo.resolve(f"refs/pr/{pull['num']}").tree)
    on_main = _changes(base, repo.resolve(MAIN).tree)
    return changed, sorted(path for path in changed if path in on_main and changed[path] != on_main[path])


@route("GET", "/api/{kind}/{repo}/discussions")
def discussions(request: Request) -> Reply:
    repo = request.repo()
    shown = [_shown(repo, pull) for pull in reversed(repo.state["pulls"].values())]
    return json_reply({"discussions": shown, "count": len(shown), "start": 0})


@route("POST", "/api/{kind}/{repo}/discussions")
def open_discussion(request: Request) -> Reply:
    repo, name = request.repo(), request.writer()
    data = request.json()
    if not data.get("pullRequest"):
        raise bad_request("This Hub has pull requests, and no other discussions")
    with repo.lock:
        base = repo.resolve(MAIN)
        number = _register(repo, base, base, str(data.get("title")), name, "draft")
    return json_reply(_shown(repo, repo.state["pulls"][str(number)]))


@route("GET", "/api/{kind}/{repo}/discussions/{num}")
def discussion(request: Request) -> Reply:
    repo = request.repo()
    pull = _pull(request, repo)
    merged = pull.get("merged")
    details = {"changes": {"base": MAIN, "mergeCommitId": merged}, "events": [], "diff": ""}
    conflicts = [] if merged else _merge_parts(repo, pull)[1]
    return json_reply(_shown(repo, pull) | details | {"filesWithConflicts": conflicts})


def _set_status(repo: Repo, pull: dict[str, Any], **changes: Any) -> None:
    repo.change(pulls=repo.state["pulls"] | {str(pull["num"]): pull | changes})


@route("POST", "/api/{kind}/{repo}/discussions/{num}/status")
def change_status(request: Request) -> Reply:
    repo = request.repo()
    pull, status = _pull(request, repo), request.json().get("status")
    if request.writer() != pull["author"]:
        request.repo(write=True)
    if status not in ("open", "closed") or pull["status"] == "merged":
        raise bad_request(f"Cannot make {pull['status']} into {status}")
    _set_status(repo, pull, status=status)
    event = {"id": f"{pull['num']}", "type": "status-change", "createdAt": now(), "author": {"name": pull["author"]}}
    return json_reply({"newStatus": event | {"data": {"status": status}}})


@route("POST", "/api/{kind}/{repo}/discussions/{num}/merge")
def merge(request: Request) -> Reply:
    repo = request.repo(write=True)
    with repo.lock:
        pull = _pull(request, repo)
        if pull["status"] in ("merged", "closed"):
            raise forbidden(f"This pull request is {pull['status']}")
        changed, conflicts = _merge_parts(repo, pull)
        if conflicts:
            raise HubError(409, f"Conflicts in {', '.join(conflicts)}")

        def edit(tree: dict[str, Entry]) -> dict[str, Entry]:
            merged: dict[str, Entry | None] = {**tree, **changed}
            return {path: entry for path, entry in merged.items() if entry is not None}

        title = f"{pull['title']} (#{pull['num']})"
        made = repo.commit(MAIN, edit, parent=None, title=title, description="", author=request.writer())
        _set_status(repo, pull, status="merged", merged=made.oid)
    return json_reply({"success": True})
