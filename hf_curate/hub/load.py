"""load_curated(): a selection with its manifest, checked against its data."""

from __future__ import annotations

import glob
import warnings
from pathlib import Path

import numpy as np

from hf_curate.errors import HubError, ManifestError
from hf_curate.hub.manifest import SOURCE_ROW, check_names, content_digest, differences, is_shard, read_manifest
from hf_curate.hub.resolve import HUB_ID, UNREACHABLE, dataset_commit, remember
from hf_curate.selection import Selection

_SUFFIX = ".manifest.json"


def load_curated(
    repo_or_folder: str | Path,
    config_name: str,
    *,
    split: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Selection:
    """Loads a config that `Selection.push_to_hub` or `Selection.save` wrote, with its manifest.

    Args:
        repo_or_folder: a dataset repo "owner/name", or a folder laid out as one.
        config_name: the config; a wrong name is an error that lists those there are.
        split: may be left out when the config has one split.
        revision: branch, tag or commit of a repo. It is resolved to a commit first, and exactly that is loaded;
            offline the commit comes from the cache.
        token: for private repos; None takes the login or HF_TOKEN.

    Returns:
        The selection with its manifest. Where data and manifest differ (row count, source rows, content) a warning
        says in what, and `.problems` lists it; the data is what the files hold.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    root = Path(repo_or_folder).expanduser()
    place = root.name if root.is_dir() else str(repo_or_folder)
    if not root.is_dir():
        root = _snapshot(str(repo_or_folder), config_name, revision, token)
    elif revision is not None:
        raise ManifestError(f"revision={revision!r} was given with the folder {root.name!r}: folders have none.")
    splits = _splits(root, config_name, place)
    if split is None:
        if len(splits) > 1:
            raise ManifestError(
                f"config {config_name!r} has the splits {', '.join(splits)}: pass split={splits[0]!r}."
            )
        split = splits[0]
    if split not in splits:
        raise ManifestError(f"config {config_name!r} has no split {split!r}; it has {', '.join(splits)}.")
    manifest = read_manifest(root / config_name / f"{split}{_SUFFIX}")
    own = (root / config_name).resolve()
    shards = sorted(path for path in own.iterdir() if is_shard(path.name, split))
    digest = content_digest((root / config_name / f"{split}{_SUFFIX}").read_bytes())
    shards = [path for path in shards if path.stem.endswith(digest)] or shards  # none: one of both was changed
    files = [glob.escape(str(path)) for path in shards]
    try:
        # Not by folder and config: `datasets` keys its cache for folders by their last name and the patterns of the
        # config, so that it would give what another folder of that name, or this one before, held.
        dataset = load_dataset("parquet", data_files=files, split="train") if files else None
    except (OSError, ValueError, DatasetsError) as error:
        why = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise ManifestError(
            f"the files of {config_name!r}, split {split!r}, cannot be loaded ({why[:200]}): save the config again."
        ) from error
    if dataset is None:
        raise ManifestError(
            f"config {config_name!r} has no files {split}-*.parquet beside its manifest: save the config again."
        )
    problems = differences(manifest, dataset)  # type: ignore[arg-type]
    if problems:
        warnings.warn(f"{config_name}/{split}: {'; '.join(problems)}.", UserWarning, stacklevel=2)
    whole = SOURCE_ROW in dataset.column_names and dataset.features[SOURCE_ROW].dtype == "int64"  # type: ignore[union-attr]
    indices = np.asarray(dataset.with_format("numpy")[:][SOURCE_ROW]) if whole else np.arange(0)  # type: ignore[index,union-attr]
    return Selection(dataset, indices, manifest, problems)  # type: ignore[arg-type]


def _snapshot(repo_id: str, config_name: str, revision: str | None, token: str | bool | None) -> Path:
    """A folder of the cache with the config's files at one commit, and every manifest of the repo."""
    from huggingface_hub import snapshot_download

    check_repo_id(repo_id)
    commit, why = dataset_commit(repo_id, revision or "main", token)
    if commit is None:
        raise HubError(f"{repo_id}@{revision or 'main'} cannot be loaded: {why}. It is not a folder here either.")
    wanted = [f"*/*{_SUFFIX}", f"{glob.escape(config_name)}/*.parquet"]
    try:
        found = snapshot_download(repo_id, repo_type="dataset", revision=commit, allow_patterns=wanted, token=token)
    except UNREACHABLE as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise HubError(f"{repo_id}@{commit[:7]} cannot be loaded: {first[:200]}") from error
    remember(repo_id, revision or "main", "dataset", commit)
    return Path(found)


def check_repo_id(repo_id: str) -> None:
    """Raises for the name of a folder that is not there, and of no repo: nothing is asked of the Hub."""
    if not HUB_ID.fullmatch(repo_id) or "/" not in repo_id:
        shown = Path(repo_id).name if repo_id.startswith(("/", "~")) else repo_id
        raise ManifestError(f"{shown[:80]!r} is neither a folder that exists nor a repo id ('owner/name').")


def curated_configs(root: Path) -> dict[str, list[str]]:
    """Config -> splits of the manifests in a folder."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob(f"*/*{_SUFFIX}")):
        found.setdefault(path.parent.name, []).append(path.name.removesuffix(_SUFFIX))
    return found


def _splits(root: Path, config_name: str, place: str) -> list[str]:
    found = curated_configs(root)
    if config_name not in found:
        there = ", ".join(map(repr, found)) or "none"
        raise ManifestError(f"there is no curated config {config_name!r} in {place!r}; there are: {there}.")
    check_names(config_name, found[config_name][0])
    return found[config_name]
