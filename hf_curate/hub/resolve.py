"""Which commit is meant: branches and tags of Hub repos resolved to 40 hex digits, online or from the cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from hf_curate.errors import HubError

try:
    import httpx2 as transport  # huggingface_hub >= 2
except ImportError:
    import httpx as transport  # type: ignore[no-redef]

logger = logging.getLogger("hf_curate")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
UNREACHABLE = (HfHubHTTPError, OfflineModeIsEnabled, transport.HTTPError, OSError)
"""What asking the Hub may raise: it says no, it is not to be asked, it does not answer."""


def check_token(endpoint: str, token: str | bool | None) -> None:
    """Refuses tokens that would go over plain http to another machine, and what is no token, without saying it."""
    if isinstance(token, str) and token and not re.fullmatch(r"[!-~]+", token):
        raise HubError("token= holds characters that no token has, such as a space or a line end: pass it bare.")
    address = urlparse(endpoint)
    if (
        address.scheme != "https"
        and address.hostname not in LOOPBACK
        and token is not False
        and (token or get_token())
    ):
        raise HubError(
            f"the endpoint {address.scheme}://{address.hostname} is not encrypted, and a token would be sent: use "
            "https, or token=False (without one: hf auth logout, and no HF_TOKEN)."
        )


def model_commit(name: str, revision: str) -> tuple[str | None, str]:
    """(commit, why there is none). Without an answer from the Hub the commit comes from the cache."""
    commit, why = _commit(name, revision, "model", None)
    if commit is not None:
        remember(name, revision, "model", commit)
    return commit, why


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
    if not constants.HF_HUB_OFFLINE:
        check_token(constants.ENDPOINT, token)
    if COMMIT.fullmatch(revision):
        return revision, ""
    try:
        sha = HfApi(token=token).repo_info(name, revision=revision, repo_type=kind).sha
        return sha, "" if sha else "the Hub gave no commit"
    except RepositoryNotFoundError:
        return None, "there is no such repo, or the token may not see it"
    except RevisionNotFoundError:
        return None, f"there is no revision {revision!r}"
    except HFValidationError as error:
        return None, f"{error}".splitlines()[0].rstrip(".")
    except OfflineModeIsEnabled:
        why, silent = "offline (HF_HUB_OFFLINE)", True
    except UNREACHABLE as error:
        why, silent = (f"{type(error).__name__}: {error}".splitlines() or [""])[0], False
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status < 500 and status != 429:  # the Hub did answer: no
            return None, why
    cached = _cached_commit(name, revision, kind)
    if cached and not silent:
        logger.warning(
            "The Hub gives no answer (%s): %s@%s is %s of the local cache.", why, name, revision, cached[:7]
        )
    return cached, "" if cached else f"{why}, and not in the local cache"


def remember(name: str, revision: str, kind: str, commit: str) -> None:
    """Notes in the Hub's cache which commit a branch or tag had, as downloads by branch do, for offline use later.

    We download by commit, and the client then notes nothing.
    """
    if revision == commit:
        return
    note = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / revision
    try:
        if not note.is_file() or note.read_text("utf-8") != commit:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(commit, "utf-8")
    except OSError:  # a cache that may only be read, or a branch "a" beside a branch "a/b"
        logger.info("The commit of %s@%s could not be noted in the cache for offline use.", name, revision)


def _cached_commit(name: str, revision: str, kind: str) -> str | None:
    """The commit that a branch or tag had when last downloaded by name; else, for main, the only one in the cache."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    reference, there = folder / "refs" / revision, [path.name for path in folder.glob("snapshots/*")]
    noted = reference.read_text("utf-8").strip() if reference.is_file() else ""
    if noted in there:
        return noted if COMMIT.fullmatch(noted) else None
    return there[0] if revision == "main" and len(there) == 1 and COMMIT.fullmatch(there[0]) else None
