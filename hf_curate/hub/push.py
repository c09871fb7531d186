"""Push: one atomic commit of one or more configs, safe beside other people's commits and human edits.

The data is staged once. Each attempt reads the head of the branch, puts our sections into the README found there, and
sends one commit with that head as its parent. A head that moved (409, 412) means another attempt; an answer that
leaves open whether the commit was made (5xx, a cut connection) means looking at the head before anything is sent
again.
"""

from __future__ import annotations

import hashlib
import logging
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from hf_curate.errors import HubError
from hf_curate.hub.files import Staged, merged_readme, stage
from hf_curate.hub.manifest import check_names
from hf_curate.hub.resolve import HUB_ID, UNREACHABLE

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from hf_curate.selection import Selection

logger = logging.getLogger("hf_curate")

ATTEMPTS = 12
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class PushPlan:
    """What a push would send: path -> bytes, files that would go, the README, and sentences for the user."""

    files: dict[str, int]
    deleted: list[str]
    readme: str
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"{size:>14,}  {path}" for path, size in sorted(self.files.items())]
        lines += [f"{'deleted':>14}  {path}" for path in self.deleted]
        return "\n".join(["would send:", *lines, *self.notes, "", self.readme])


def push(
    selections: Mapping[str, Selection],
    repo_id: str,
    *,
    split: str = "train",
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    max_shard_size: int | str | None = None,
    token: str | bool | None = None,
    allow_gated: bool = False,
    dry_run: bool = False,
) -> CommitInfo | PushPlan:
    """Pushes several selections, such as nested budgets, in one commit.

    Args:
        selections: config name -> selection; the other arguments are those of `Selection.push_to_hub`.

    Example:
        >>> push({"grace-5pct": five, "grace-20pct": twenty}, "me/gsm8k-grace")  # doctest: +SKIP
    """
    from datasets.utils.py_utils import convert_file_size_to_int

    if not selections:
        raise HubError("there is nothing to push: give at least one config name and its selection.")
    for config_name in selections:
        check_names(config_name, split)
    size = convert_file_size_to_int(max_shard_size) if max_shard_size is not None else None
    with tempfile.TemporaryDirectory() as folder:
        staged = [stage(one, Path(folder), name, split, shard_bytes=size) for name, one in selections.items()]
        return push_staged(
            staged,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=revision,
            commit_message=commit_message,
            token=token,
            allow_gated=allow_gated,
            dry_run=dry_run,
        )


def push_staged(
    staged: Sequence[Staged],
    repo_id: str,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    allow_gated: bool = False,
    dry_run: bool = False,
) -> CommitInfo | PushPlan:
    """Sends staged configs in one commit and reads them back at it."""
    if not HUB_ID.fullmatch(repo_id):
        raise HubError(f"repo id {repo_id[:80]!r} cannot be used: 'owner/name' of letters, digits, '.', '_' and '-'.")
    api = HfApi(token=token)
    _refuse_plain_http(api.endpoint, token)
    restricted = _source_access(api, staged, allow_gated)
    if not dry_run:
        private = restricted if private is None else private
        _call(repo_id, lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True))
        if revision is not None and not create_pr:
            _call(repo_id, lambda: api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True))
    message = commit_message or f"Add {', '.join(f'{part.config_name} ({part.split})' for part in staged)}"
    for attempt in range(ATTEMPTS):
        head, before, there = _head(api, repo_id, revision, missing_ok=dry_run)
        readme, notes = merged_readme(before, staged)
        files = {path: local for part in staged for path, local in part.files.items()}
        stale = sorted(path for path in there if any(part.replaces(path) for part in staged) and path not in files)
        if dry_run:
            sizes = {path: local.stat().st_size for path, local in files.items()}
            sizes |= {"README.md": len(readme.encode())}
            return PushPlan(sizes, stale, readme, notes)
        operations = [CommitOperationAdd(path, str(local)) for path, local in files.items()]
        operations += [CommitOperationAdd("README.md", readme.encode())]
        try:
            done = api.create_commit(
                repo_id,
                [*operations, *(CommitOperationDelete(path) for path in stale)],
                commit_message=message,
                repo_type="dataset",
                revision=revision,
                create_pr=create_pr,
                parent_commit=head,
            )
        except UNREACHABLE as error:
            sha = _after(error, api, repo_id, revision, head, files, readme, create_pr)
            if sha is None:
                _wait(error, attempt)
                continue
            done = _found(api, repo_id, sha, message)
        for note in notes:
            logger.warning("%s", note)
        _read_back(api, repo_id, done.pr_revision or done.oid, staged, token)
        return done
    raise HubError(
        f"{repo_id}: {ATTEMPTS} attempts failed, each time because somebody else had committed first or the Hub gave "
        "no clear answer. Nothing of ours is half there; try again later."
    )


def _refuse_plain_http(endpoint: str, token: str | bool | None) -> None:
    address = urlparse(endpoint)
    sends = token is not False and (token or get_token())
    if address.scheme != "https" and address.hostname not in LOOPBACK and sends:
        raise HubError(
            f"the endpoint {address.scheme}://{address.hostname} is not encrypted, and a token would be sent: use "
            "https, or token=False."
        )


def _source_access(api: HfApi, staged: Sequence[Staged], allow_gated: bool) -> bool | None:
    """True where a source is private (None: not known to be); refuses gated ones unless allowed."""
    private = None
    for source in {(s["id"], s["sha"]) for part in staged if (s := part.manifest["source"]) and s["sha"]}:
        try:
            info = api.dataset_info(source[0])
        except UNREACHABLE:  # gone, renamed, or not ours to see any more: nothing can be said about it
            continue
        if info.gated and not allow_gated:
            raise HubError(
                f"the source {source[0]} is gated: its owner lets people read it under conditions, which a copy would "
                "not carry. If you may publish this subset, pass allow_gated=True (--allow-gated)."
            )
        private = True if info.private or info.gated else private
    return private


def _call(repo_id: str, action: Any) -> Any:
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except UNREACHABLE as error:
            status = _status(error)
            if status is not None and status < 500 and status not in (409, 429):
                raise _refused(repo_id, error) from error
            _wait(error, attempt)
    raise HubError(f"{repo_id}: the Hub does not answer. Try again later.")


def _head(
    api: HfApi, repo_id: str, revision: str | None, *, missing_ok: bool
) -> tuple[str | None, str | None, list[str]]:
    """(commit, README text or None, files) of the branch's head, all of the same commit."""
    try:
        info = _call(repo_id, lambda: api.dataset_info(repo_id, revision=revision))
    except HubError as error:
        if missing_ok and isinstance(error.__cause__, RepositoryNotFoundError):
            return None, None, []
        raise
    there = [sibling.rfilename for sibling in info.siblings or []]
    if "README.md" not in there:
        return info.sha, None, there
    path = _call(repo_id, lambda: api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=info.sha))
    return info.sha, Path(path).read_bytes().decode("utf-8"), there


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _refused(repo_id: str, error: BaseException) -> HubError:
    """The Hub's no, in our words; the client's text may hold headers, so only its first line is kept."""
    reasons = {
        401: "no valid token: log in (hf auth login) or pass token=",
        403: "the token may not write there: use one with write access to it",
        404: "there is no such repo or branch, or the token may not see it",
    }
    status = _status(error)
    first = (str(getattr(error, "server_message", None) or error).strip().splitlines() or [""])[0]
    return HubError(f"{repo_id}: the Hub refused ({status}): {reasons.get(status or 0, first[:200])}.")


def _after(
    error: BaseException,
    api: HfApi,
    repo_id: str,
    revision: str | None,
    parent: str | None,
    files: Mapping[str, Path],
    readme: str,
    create_pr: bool,
) -> str | None:
    """After a commit that was not confirmed: the commit if it was made, None if it has to be tried again."""
    status = _status(error)
    if status in (409, 412, 429):
        return None
    if status is not None and status < 500:
        raise _refused(repo_id, error) from error
    if create_pr:
        raise HubError(
            f"{repo_id}: the Hub did not say whether the pull request was opened ({status or type(error).__name__}). "
            "Look at its open pull requests before you try again."
        ) from error
    head, text, there = _head(api, repo_id, revision, missing_ok=False)
    if head == parent or text != readme or not set(files) <= set(there):
        return None
    remote = {info.path: info for info in api.get_paths_info(repo_id, list(files), repo_type="dataset", revision=head)}
    return head if all(_same(remote.get(path), local) for path, local in files.items()) else None


def _same(remote: Any, local: Path) -> bool:
    """Whether the file on the Hub is the local one: by sha256 for LFS, by git's blob id otherwise."""
    if remote is None:
        return False
    content = local.read_bytes()
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _found(api: HfApi, repo_id: str, sha: str, message: str) -> CommitInfo:
    from huggingface_hub import CommitInfo

    url = f"{api.endpoint}/datasets/{repo_id}/commit/{sha}"
    return CommitInfo(commit_url=url, commit_message=message, commit_description="", oid=sha)


def _wait(error: BaseException, attempt: int) -> None:
    """Retry-After if the Hub says so, else exponential with jitter, at most 30 s."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = headers.get("Retry-After", "")
    seconds = float(asked) if asked.isdecimal() else min(30.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.5)
    time.sleep(seconds)


def _read_back(api: HfApi, repo_id: str, revision: str, staged: Sequence[Staged], token: str | bool | None) -> None:
    """Compares row counts and column types at the new commit with what was staged."""
    import pyarrow.parquet as pq

    system = HfFileSystem(endpoint=api.endpoint, token=token)
    for part in staged:
        rows = 0
        for path in part.parquet:
            with system.open(f"datasets/{repo_id}/{path}", "rb", revision=revision) as file:
                remote = pq.ParquetFile(file)
                rows += remote.metadata.num_rows
                if not remote.schema_arrow.equals(pq.read_schema(part.files[path])):
                    raise HubError(f"{repo_id}@{revision}: {path} came back with other columns than were sent.")
        if rows != part.manifest["rows"]["kept"]:
            kept = part.manifest["rows"]["kept"]
            raise HubError(
                f"{repo_id}@{revision}: {part.config_name} came back with {rows:,} rows, {kept:,} were sent."
            )
