"""Push: one atomic commit of one or more configs, safe beside other people's commits and human edits.

The data is staged once. Each attempt reads the head of the branch, puts our sections into the README found there, and
sends one commit with that head as its parent. A head that moved (409, 412) means another attempt; an answer that
leaves open whether the commit was made (5xx, a cut connection) means looking at the head before anything is sent
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, HfFileSystem
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_curate.errors import ConfigNameError, HubError
from hf_curate.hub.comparison import Compared
from hf_curate.hub.files import Staged, full_card, merged_readme, minimal_card, stage
from hf_curate.hub.manifest import check_names, data_files
from hf_curate.hub.markdown import visible
from hf_curate.hub.others import in_repo
from hf_curate.hub.resolve import HUB_ID, UNREACHABLE, check_token

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from hf_curate.selection import Selection

logger = logging.getLogger("hf_curate")

ATTEMPTS = 12
READS = 5
"""Attempts at reading back what was committed."""

Answer = TypeVar("Answer")


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
    _check_target(repo_id, revision, create_pr)
    api = HfApi(token=token)
    check_token(api.endpoint, token)
    restricted, said = _source_access(api, staged, allow_gated)
    if not dry_run:
        visibility = restricted if private is None else private
        _call(repo_id, lambda: api.create_repo(repo_id, repo_type="dataset", private=visibility, exist_ok=True))
        if restricted and private is None and not _call(repo_id, lambda: api.dataset_info(repo_id)).private:
            raise HubError(
                f"{repo_id} is public, and the source is private, gated or not to be seen with this token. Nothing "
                "was sent: push to a private repo, or pass private=False (--no-private) if you may publish these rows."
            )
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            _call(repo_id, lambda: api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True))
    message = commit_message or f"Add {', '.join(f'{part.config_name} ({part.split})' for part in staged)}"
    files = {path: local for part in staged for path, local in part.files.items()}
    refused = None
    for attempt in range(ATTEMPTS):
        head, before, there = _head(api, repo_id, revision, missing_ok=dry_run)
        own = {(part.config_name, part.split) for part in staged}
        readme, notes = _readme(before, staged, repo_id, refused, in_repo(api, repo_id, head, there, own))
        notes = [*said, *notes]
        stale = sorted(path for path in there if any(part.replaces(path) for part in staged) and path not in files)
        if dry_run:
            sizes = {path: local.stat().st_size for path, local in files.items()}
            sizes |= {"README.md": len(readme)} if readme is not None else {}
            return PushPlan(sizes, stale, (readme or b"").decode(), notes)
        operations = [CommitOperationAdd(path, str(local)) for path, local in files.items()]
        operations += [CommitOperationAdd("README.md", readme)] if readme is not None else []
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
        except (*UNREACHABLE, json.JSONDecodeError) as error:  # an answer that is no JSON comes from a gateway
            sha = _after(error, api, repo_id, revision, head, files, readme, create_pr)
            if sha is None:
                _wait(error, attempt)
                continue
            done = _found(api, repo_id, sha, message)
        except RuntimeError as error:  # what the client makes of an upload that failed, after its own retries
            raise HubError(
                f"{repo_id}: a file could not be uploaded ({_first_line(error.__cause__ or error)}). Nothing was "
                "committed; push again, and what is there already is not sent twice."
            ) from error
        except ValueError as error:  # what the client makes of a README that the Hub does not take
            if readme is None or not str(error).startswith("Invalid metadata"):
                raise HubError(f"{repo_id}: nothing was committed: {_first_line(error)}.") from error
            refused = "the Hub does not take it: " + " ".join(str(error).split())[:300]
            continue
        for note in notes:
            logger.warning("%s", note)
        _read_back(api, repo_id, done.pr_revision or done.oid, staged, token)
        return done
    raise HubError(
        f"{repo_id}: {ATTEMPTS} attempts failed, each time because somebody else had committed first or the Hub gave "
        "no clear answer. Nothing of ours is half there; try again later."
    )


def _check_target(repo_id: str, revision: str | None, create_pr: bool) -> None:
    try:
        if not HUB_ID.fullmatch(repo_id) or "/" not in repo_id:
            raise HFValidationError
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(
            f"repo id {repo_id[:80]!r} cannot be used: 'owner/name' of letters, digits, '.', '_' and '-'."
        ) from error
    if create_pr and revision not in (None, "main"):
        raise HubError(f"create_pr opens a pull request for main, and revision={revision!r} was given: leave one out.")


def _source_access(api: HfApi, staged: Sequence[Staged], allow_gated: bool) -> tuple[bool | None, list[str]]:
    """(True where a source is or may be private, sentences for the user); refuses gated ones unless allowed."""
    private, notes = None, []
    named = {str(source["id"]) for part in staged if (source := part.manifest["source"])}
    for name in sorted(filter(HUB_ID.fullmatch, named)):
        try:
            info = _ask(api, name)
        except HubError as error:
            if not isinstance(error.__cause__, RepositoryNotFoundError | HFValidationError):
                raise
            private = True
            notes.append(
                f"The source {name} cannot be seen with this token, so nothing is known about who may read it: a repo "
                "that is new is private unless private=False."
            )
            continue
        if info.gated and not allow_gated:
            raise HubError(
                f"the source {name} is gated: its owner lets people read it under conditions, which a copy would "
                "not carry. If you may publish this subset, pass allow_gated=True (--allow-gated)."
            )
        private = True if info.private or info.gated else private
    return private, notes


def _ask(api: HfApi, name: str) -> Any:
    try:
        return _call(name, lambda: api.dataset_info(name))
    except HFValidationError as error:
        raise HubError(f"{name!r} is no name of a dataset.") from error


def _readme(
    before: bytes | None,
    staged: Sequence[Staged],
    repo_id: str,
    refused: str | None,
    others: Sequence[Compared] = (),
) -> tuple[bytes | None, list[str]]:
    """(the README to send, sentences for the user). A card that fails loses no data: where a whole one cannot be
    written a minimal one is, and where the README there cannot be edited it stays as it is (None)."""
    why = refused
    if why is None:
        try:
            text = None if before is None else before.decode("utf-8")
        except UnicodeDecodeError as error:
            text, why = None, f"it is not UTF-8 (byte {error.start})"
        notes: list[str] = []
        for make in (partial(full_card, repo_id=repo_id), minimal_card) if why is None else ():
            try:
                merged, more = merged_readme(text, staged, make, others)
                return merged.encode("utf-8"), [*notes, *more, *_other_format(merged)]
            except ConfigNameError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, jinja2.TemplateError) as error:
                # CurateError: front matter that cannot be edited; the others: a manifest of another make-up
                why = _first_line(error).partition(" Nothing was changed")[0].rstrip(".")
                notes = [f"The card is a minimal one, the whole one could not be written: {why}."]
    one = staged[0]
    return None, [
        f"README.md of {repo_id} was {'not written' if before is None else 'left as it is'}, without a card: {why}. "
        f"The data is there: load_curated({repo_id!r}, {one.config_name!r}) or load_dataset('parquet', data_files="
        f"'hf://datasets/{repo_id}/{data_files(one.manifest)}'). Repair README.md and push again."
    ]


def _other_format(readme: str) -> list[str]:
    """A sentence where `datasets`, which reads all configs of a repo in the format of the first, cannot read ours."""
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard(readme).data)  # pyright: ignore[reportArgumentType]
    files = next(iter(configs.values())).get("data_files")
    listed = files if isinstance(files, list) else [files]
    paths = [one.get("path") if isinstance(one, dict) else one for one in listed]
    flat = [path for one in paths for path in (one if isinstance(one, list) else [one]) if isinstance(path, str)]
    other = next((path for path in flat if PurePosixPath(path).suffix not in ("", ".parquet")), None)
    if other is None:
        return []
    return [
        f"load_dataset reads all configs of a repo in the format of the first, here {visible(other)!r}, so it cannot "
        "load what was pushed by name: load_curated can. Push it to a repo of its own."
    ]


def _call(repo_id: str, action: Callable[[], Answer], attempts: int | None = None) -> Answer:
    for attempt in range(attempts or ATTEMPTS):
        try:
            return action()
        except OfflineModeIsEnabled as error:
            raise HubError(f"{repo_id}: offline (HF_HUB_OFFLINE), and a push needs the Hub.") from error
        except UNREACHABLE as error:
            status = _status(error)
            if status is not None and status < 500 and status not in (409, 429):
                raise _refused(repo_id, error) from error
            _wait(error, attempt)
    raise HubError(f"{repo_id}: the Hub does not answer. Try again later.")


def _head(
    api: HfApi, repo_id: str, revision: str | None, *, missing_ok: bool
) -> tuple[str | None, bytes | None, list[str]]:
    """(commit, README or None, files) of the branch's head, all of the same commit."""
    try:
        info = _call(repo_id, lambda: api.dataset_info(repo_id, revision=revision))
    except HubError as error:
        if missing_ok and isinstance(error.__cause__, RevisionNotFoundError) and revision is not None:
            return _head(api, repo_id, None, missing_ok=True)  # where the branch would begin
        if missing_ok and isinstance(error.__cause__, RepositoryNotFoundError):
            return None, None, []
        raise
    there = [sibling.rfilename for sibling in info.siblings or []]
    if "README.md" not in there:
        return info.sha, None, there
    with tempfile.TemporaryDirectory() as cache:  # in the user's cache this commit would seem to be there offline
        fetch = {"repo_type": "dataset", "revision": info.sha, "cache_dir": cache}
        path = _call(repo_id, lambda: api.hf_hub_download(repo_id, "README.md", **fetch))
        return info.sha, Path(path).read_bytes(), there


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
    why = reasons.get(status or 0) or _first_line(error).rstrip(".")
    return HubError(f"{repo_id}: the Hub refused ({status}): {why}.")


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "server_message", None) or error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]


def _after(
    error: BaseException,
    api: HfApi,
    repo_id: str,
    revision: str | None,
    parent: str | None,
    files: Mapping[str, Path],
    readme: bytes | None,
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
    head, now, there = _head(api, repo_id, revision, missing_ok=False)
    if head == parent or (readme is not None and now != readme) or not set(files) <= set(there):
        return None
    paths = list(files)
    found = _call(repo_id, lambda: api.get_paths_info(repo_id, paths, repo_type="dataset", revision=head))
    remote = {info.path: info for info in found}
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
    if seconds > 5:
        logger.info("The Hub is busy or does not answer; the next attempt is in %.0f s.", seconds)
    time.sleep(seconds)


def _read_back(api: HfApi, repo_id: str, revision: str, staged: Sequence[Staged], token: str | bool | None) -> None:
    """Compares row counts and column types at the new commit with what was staged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    system = HfFileSystem(endpoint=api.endpoint, token=token)

    def read(path: str) -> tuple[int, pa.Schema]:
        system.invalidate_cache()
        with system.open(f"datasets/{repo_id}/{path}", "rb", revision=revision) as file:
            remote = pq.ParquetFile(file)
            return remote.metadata.num_rows, remote.schema_arrow

    for part in staged:
        rows, kept, wrong = 0, part.manifest["rows"]["kept"], ""
        try:
            for path in part.parquet:
                count, schema = _call(repo_id, lambda path=path: read(path), READS)
                rows += count
                if not schema.equals(pq.read_schema(part.files[path])):
                    wrong = f"{path} came back with other columns than were sent"
        except (HubError, pa.ArrowException) as error:
            raise HubError(
                f"{repo_id}@{revision}: the commit was made, but {part.config_name} could not be read back: "
                f"{_first_line(error)}"
            ) from error
        wrong = wrong or (
            f"{part.config_name} came back with {rows:,} rows, {kept:,} were sent" if rows != kept else ""
        )
        if wrong:
            raise HubError(f"{repo_id}@{revision}: the commit was made, but {wrong}. Do not use it; push again.")
