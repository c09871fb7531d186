"""Accounts, and a repository as a whole: create, delete, move, settings, branches, tags, access."""

from __future__ import annotations

import re
from typing import Any

from .answers import HubError, Reply, bad_request, forbidden, gated, json_reply, revision_not_found
from .registry import KINDS, web_path
from .request import Request, route
from .store import MAIN, Repo

_BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[/.-]|[/.]$|\.lock$|^refs/|^[0-9a-f]{40}$")


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> Reply:
    caller = request.caller
    if caller.name is None:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"type": "org", "id": name, "name": name, "roleInOrg": role} for name, role in sorted(caller.orgs.items())]
    who: dict[str, Any] = {"type": "user", "id": caller.name, "name": caller.name, "fullname": caller.name}
    token = {"displayName": "loopback", "role": caller.role}
    return json_reply(who | {"orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})


def _named(request: Request) -> tuple[str, str]:
    """Kind and id from the body of create and delete."""
    data = request.json()
    kind = KINDS.get(data.get("type") or "model")
    if kind is None or not isinstance(data.get("name"), str):
        raise bad_request("Give a name, and a type: model, dataset or space")
    return kind, f"{data.get('organization') or request.caller.name}/{data['name']}"


def _visibility(data: dict[str, Any]) -> bool | None:
    """Whether the body asks for a private repository; None when it does not say."""
    if data.get("visibility") is not None:
        return data["visibility"] != "public"
    return data.get("private")


@route("POST", "/api/repos/create")
def create_repo(request: Request) -> Reply:
    author = request.writer()
    kind, repo_id = _named(request)
    if not request.caller.owns(repo_id.partition("/")[0]):
        namespace = repo_id.partition("/")[0]
        raise forbidden(f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"')
    url = f"{request.base}/{web_path(kind, repo_id)}"
    try:
        private = bool(_visibility(request.json()))
        request.core.registry.create(kind, repo_id, author=author, private=private)
    except HubError as error:
        if error.status == 409:
            error.extra = {"url": url, "name": repo_id}
        raise
    return json_reply({"url": url, "name": repo_id, "id": repo_id})


def _owned(request: Request, kind: str, repo_id: str) -> Repo:
    request.args |= {"kind": kind, "repo": repo_id}
    return request.repo(write=True)


@route("DELETE", "/api/repos/delete")
def delete_repo(request: Request) -> Reply:
    request.core.registry.delete(_owned(request, *_named(request)))
    return json_reply({"success": True})


@route("POST", "/api/repos/move")
def move_repo(request: Request) -> Reply:
    data = request.json()
    repo = _owned(request, KINDS.get(data.get("type") or "model", ""), str(data.get("fromRepo")))
    new_id = str(data.get("toRepo"))
    if not request.caller.owns(new_id.partition("/")[0]):
        raise forbidden(f"You don't have the rights to move a repository to {new_id}")
    request.core.registry.move(repo, new_id)
    return json_reply({"success": True, "url": f"{request.base}/{web_path(repo.kind, new_id)}"})


@route("PUT", "/api/{kind}/{repo}/settings")
def settings(request: Request) -> Reply:
    repo = request.repo(write=True)
    data = request.json()
    changes: dict[str, Any] = {}
    if (private := _visibility(data)) is not None:
        changes["private"] = private
    if "gated" in data:
        if data["gated"] not in ("auto", "manual", False):
            raise bad_request("gated is one of auto, manual, false")
        changes["gated"] = data["gated"]
    repo.change(**changes)
    return json_reply({"private": repo.state["private"], "gated": repo.state["gated"]})


@route("POST", "/api/{kind}/{repo}/user-access-request/grant")
def grant_access(request: Request) -> Reply:
    repo = request.repo(write=True)
    repo.change(granted=sorted({*repo.state["granted"], str(request.json().get("user"))}))
    return json_reply({"success": True})


@route("GET", "/api/{kind}/{repo}/auth-check")
def may_read(request: Request) -> Reply:
    repo = request.repo()
    if not request.caller.may_download(repo):
        raise gated(repo.id, request.caller.name is None)
    return json_reply({"success": True})


@route("GET", "/api/{kind}/{repo}/auth-check/write")
def may_write(request: Request) -> Reply:
    request.repo(write=True)
    return json_reply({"success": True})


def _new_ref(repo: Repo, prefix: str, name: str, oid: str) -> Reply:
    if not name or _BAD_REF.search(name):
        raise bad_request(f"Invalid reference name: {name}")
    with repo.lock:
        if prefix + name in repo.refs:
            raise HubError(409, f"Reference {prefix}{name} already exists")
        repo.set_ref(prefix + name, oid)
    return json_reply({"success": True})


def _drop_ref(repo: Repo, ref: str, name: str) -> Reply:
    with repo.lock:
        if ref not in repo.refs:
            raise revision_not_found(name)
        repo.set_ref(ref, None)
    return json_reply({"success": True})


@route("POST", "/api/{kind}/{repo}/branch/{rev}")
def create_branch(request: Request) -> Reply:
    repo = request.repo(write=True)
    start = repo.resolve(str(request.json().get("startingPoint") or "main"))
    return _new_ref(repo, "refs/heads/", request.args["rev"], start.oid)


@route("DELETE", "/api/{kind}/{repo}/branch/{rev}")
def delete_branch(request: Request) -> Reply:
    repo = request.repo(write=True)
    ref = f"refs/heads/{request.args['rev']}"
    if ref == MAIN:
        raise forbidden("Cannot delete the main branch")
    return _drop_ref(repo, ref, request.args["rev"])


@route("POST", "/api/{kind}/{repo}/tag/{rev}")
def create_tag(request: Request) -> Reply:
    repo = request.repo(write=True)
    return _new_ref(repo, "refs/tags/", str(request.json().get("tag", "")), repo.resolve(request.args["rev"]).oid)


@route("DELETE", "/api/{kind}/{repo}/tag/{rev}")
def delete_tag(request: Request) -> Reply:
    repo = request.repo(write=True)
    return _drop_ref(repo, f"refs/tags/{request.args['rev']}", request.args["rev"])
