"""Downloading a file by revision, and pages for people who open a repository's address in a browser."""

from __future__ import annotations

from .answers import Reply, entry_not_found, gated, repo_not_found, text_reply
from .lfs import disposition, ranged, signed_url
from .registry import web_path
from .request import Request, route


@route("GET", "/{web}{repo}/(?:resolve|raw)/{rev}/{path}")
def resolve(request: Request) -> Reply:
    """Regular files come at once, LFS files by a redirect to the second origin."""
    repo = request.repo()
    if not request.caller.may_download(repo):
        raise gated(repo.id, request.caller.name is None)
    commit = repo.resolve(request.args["rev"])
    path = request.args["path"]
    entry = commit.tree.get(path)
    if entry is None:
        raise entry_not_found("Entry not found", commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.oid}"', "Content-Disposition": disposition(path)}
    if not entry.lfs:
        headers["Content-Type"] = "text/plain; charset=utf-8"
        return ranged(request, repo.read(entry.sha256), headers)
    location = signed_url(request.core, "GET", repo, entry.sha256)
    headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size), "Location": location}
    body = f"Found. Redirecting to {location}".encode()
    return Reply(302, body, headers | {"Content-Type": "text/plain; charset=utf-8"})


@route("GET", "/api/{kind}/{name}(?:/(?:revision|tree|commits)/.+)?")
@route("GET", "/{web}{name}/(?:resolve|raw)/.+")
def without_namespace(request: Request) -> Reply:
    """Old models such as gpt2 have no namespace: there are none here."""
    raise repo_not_found(request.caller.name is None)


@route("GET", "/")
def index(request: Request) -> Reply:
    seen = [repo for repo in request.core.registry.all() if request.caller.sees(repo)]
    lines = [f"{request.base}/{web_path(repo.kind, repo.id)}" for repo in seen]
    return text_reply("\n".join(["A loopback Hub. Its repositories:", "", *lines, ""]))


@route("GET", "/(?!api/){web}{repo}")
def page(request: Request) -> Reply:
    """The files on main and the README as text."""
    repo = request.repo()
    commit = repo.resolve("main")
    lines = [f"{repo.id} at {commit.oid}: {commit.title}", ""]
    lines += [f"{entry.size:>12}  {path}" for path, entry in commit.tree.items()]
    readme = commit.tree.get("README.md")
    text = repo.read(readme.sha256).decode("utf-8", "replace") if readme else ""
    return text_reply("\n".join([*lines, "", text]))
