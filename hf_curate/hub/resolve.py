"""Which commit is meant: branches and tags of Hub repos resolved to 40 hex digits, online or from the cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

try:
    import httpx2 as transport  # huggingface_hub >= 2
except ImportError:
    import httpx as transport  # type: ignore[no-redef]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
UNREACHABLE = (HfHubHTTPError, OfflineModeIsEnabled, transport.HTTPError, OSError)
"""What asking the Hub may raise: it says no, it is not to be asked, it does not answer."""


def model_commit(name: str, revision: str) -> tuple[str | None, str]:
    """(commit, why there is none). Without an answer from the Hub the commit comes from the cache."""
    return _commit(name, revision, "model", None)


def dataset_commit(name: str, revision: str, token: str | bool | None = None) -> tuple[str | None, str]:
    """(commit, why there is none). Without an answer from the Hub the commit comes from the cache."""
    return _commit(name, revision, "dataset", token)


def dataset_license(name: str, commit: str) -> str | None:
    """The licence that a Hub dataset's card names, if the Hub can be asked and names one."""
    try:
        info = HfApi().dataset_info(name, revision=commit)
    except UNREACHABLE:
        return None
    named = info.card_data.get("license") if info.card_data else None
    return named if isinstance(named, str) else None


def _commit(name: str, revision: str, kind: str, token: str | bool | None) -> tuple[str | None, str]:
    if COMMIT.fullmatch(revision):
        return revision, ""
    try:
        sha = HfApi(token=token).repo_info(name, revision=revision, repo_type=kind).sha
        return sha, "" if sha else "the Hub gave no commit"
    except RepositoryNotFoundError:
        return None, "there is no such repo, or the token may not see it"
    except RevisionNotFoundError:
        return None, f"there is no revision {revision!r}"
    except OfflineModeIsEnabled:
        why = "offline (HF_HUB_OFFLINE)"
    except UNREACHABLE as error:
        why = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    cached = _cached_commit(name, revision, kind)
    return cached, "" if cached else f"{why}, and not in the local cache"


def _cached_commit(name: str, revision: str, kind: str) -> str | None:
    """The commit that a branch or tag had when last downloaded by name; else the only one in the cache, if any."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    reference = folder / "refs" / revision
    if reference.is_file():
        commits = [reference.read_text("utf-8").strip()]
    else:
        commits = [path.name for path in folder.glob("snapshots/*")] if revision == "main" else []
    return commits[0] if len(commits) == 1 and COMMIT.fullmatch(commits[0]) else None
