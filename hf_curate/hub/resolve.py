"""Which commit is meant: branches and tags of Hub repos resolved to 40 hex digits, online or from the cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

try:
    import httpx2 as transport  # huggingface_hub >= 2
except ImportError:
    import httpx as transport  # type: ignore[no-redef]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
UNREACHABLE = (HfHubHTTPError, OfflineModeIsEnabled, transport.HTTPError, OSError)
"""What asking the Hub may raise: it says no, it is not to be asked, it does not answer."""


def model_commit(name: str, revision: str) -> tuple[str | None, str]:
    """(commit, why there is none). Without an answer from the Hub the commit comes from the cache path."""
    if COMMIT.fullmatch(revision):
        return revision, ""
    why = "the Hub gave no commit"
    try:
        sha = HfApi().model_info(name, revision=revision).sha
        if sha:
            return sha, ""
    except UNREACHABLE as error:
        why = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str) and COMMIT.fullmatch(Path(cached).parent.name):
        return Path(cached).parent.name, ""
    return None, why


def dataset_commit(name: str, revision: str) -> tuple[str | None, str | None]:
    """(commit, licence) of a Hub dataset; a commit is taken as it is when the Hub cannot be asked."""
    try:
        info = HfApi().dataset_info(name, revision=revision)
    except UNREACHABLE:
        return (revision if COMMIT.fullmatch(revision) else None), None
    named = info.card_data.get("license") if info.card_data else None
    return info.sha, named if isinstance(named, str) else None
