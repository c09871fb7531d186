"""Large files: the batch call on the Hub, and the second origin that holds their content.

Addresses there carry a signature of their own and end after an hour. Nobody needs a token there, so a request that
brings one has leaked it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import Any
from urllib.parse import quote, urlencode

from .answers import HubError, Reply, bad_request, entry_not_found, json_reply
from .registry import web_path
from .request import Core, Request, route
from .store import Repo, write_whole

LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}
SECONDS = 3600

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _signature(core: Core, method: str, path: str, expires: str) -> str:
    return hmac.new(core.secret, f"{method} {path} {expires}".encode(), hashlib.sha256).hexdigest()


def signed_url(core: Core, method: str, repo: Repo, sha256: str) -> str:
    """An address on the second origin, good for one method on one object."""
    path = f"/{repo.kind}/{repo.id}/{sha256}"
    expires = str(int(time.time()) + SECONDS)
    query = urlencode({"expires": expires, "signature": _signature(core, method, path, expires)})
    return f"{core.storage_url}{path}?{query}"


@route("POST", r"/{web}(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
def batch(request: Request) -> Reply:
    repo = request.repo()
    request.writer()  # whoever may read may upload for a pull request
    data = request.json()
    verify = f"{request.base}/{web_path(repo.kind, repo.id)}.git/info/lfs/objects/verify"
    objects: list[dict[str, Any]] = []
    for item in data.get("objects", []):
        oid, size = str(item.get("oid")), item.get("size")
        known: dict[str, Any] = {"oid": oid, "size": size}
        if data.get("operation") != "upload" or not _SHA256.fullmatch(oid):
            known["error"] = {"code": 422, "message": "This Hub takes uploads, by SHA-256"}
        elif not repo.has(oid):
            upload = {"href": signed_url(request.core, "PUT", repo, oid)}
            known |= {"authenticated": True, "actions": {"upload": upload, "verify": {"href": verify}}}
        objects.append(known)
    return json_reply({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, headers=LFS_JSON)


@route("POST", r"/{web}(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/verify")
def verify(request: Request) -> Reply:
    repo = request.repo()
    request.writer()
    data = request.json()
    oid = str(data.get("oid"))
    if not _SHA256.fullmatch(oid) or not repo.has(oid) or repo.lfs_entry(oid).size != data.get("size"):
        raise HubError(404, f"Object {oid} was not uploaded")
    return json_reply({"success": True}, headers=LFS_JSON)


def _stored(request: Request) -> Repo:
    """The repository of a signed address; strangers and late comers get 403."""
    method = "PUT" if request.method == "PUT" else "GET"
    expires = request.first("expires", "0")
    expected = _signature(request.core, method, request.path, expires)
    if not hmac.compare_digest(expected, request.first("signature")) or int(expires) < time.time():
        raise HubError(403, "The signature does not match, or has expired")
    repo = request.core.registry.find(request.args["kind"], request.args["repo"])
    if repo is None:
        raise entry_not_found("No such object")
    return repo


@route("PUT", "/{kind}/{repo}/{sha256}", origin="storage")
def put_object(request: Request) -> Reply:
    repo, sha256 = _stored(request), request.args["sha256"]
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise bad_request("The content does not match its SHA-256")
    request.look_for_tokens(request.body, f"LFS object {sha256}")
    write_whole(repo.object_path(sha256), request.body)
    return Reply(200, b"", {"ETag": f'"{sha256}"'})


@route("GET", "/{kind}/{repo}/{sha256}", origin="storage")
def get_object(request: Request) -> Reply:
    repo, sha256 = _stored(request), request.args["sha256"]
    if not repo.has(sha256):
        raise entry_not_found("No such object")
    return ranged(request, repo.read(sha256), {"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"})


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """The content, or the one range of bytes that was asked for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if asked is None or asked[0] == "bytes=-":
        return Reply(200, content, headers)
    size = len(content)
    if not asked[1]:
        start, stop = max(0, size - int(asked[2])), size
    else:
        start, stop = int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size
    if start >= stop:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return Reply(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


def disposition(path: str) -> str:
    name = path.rpartition("/")[2]
    return f"inline; filename*=UTF-8''{quote(name)}; filename=\"{quote(name)}\";"
