"""The other configs of a folder or repo, as far as a comparison needs them: manifests, and which rows are kept.

A comparison is a courtesy: what cannot be read is left out of it, the log says so, and no data is held up.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import CurateError
from hf_curate.hub.comparison import Compared
from hf_curate.hub.manifest import SOURCE_ROW, content_digest, is_shard, read_manifest
from hf_curate.hub.resolve import UNREACHABLE

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileSystem

logger = logging.getLogger("hf_curate")

MANIFEST = re.compile(r"([^/]+)/([^/]+)\.manifest\.json")
READING = (CurateError, OSError, ValueError, LookupError, TypeError, *UNREACHABLE)
"""What reading files of other people's may raise; pyarrow's errors are among these."""

Keys = set[tuple[str, str]]


def of_files(manifest: Any, paths: Sequence[Path]) -> Compared:
    """A config whose parquet files are on this machine."""
    return Compared(manifest, _rows(list(paths)))


def in_folder(folder: Path, own: Keys) -> list[Compared]:
    """The configs of a folder, but for those of `own` (config, split)."""
    found = []
    for path in sorted(folder.glob("*/*.manifest.json")):
        key = (path.parent.name, path.name.removesuffix(".manifest.json"))
        if key in own:
            continue
        names = [one.name for one in path.parent.iterdir()]
        one = _read(key, path, lambda names, here=path.parent: _rows([here / name for name in names]), names)
        found += [] if one is None else [one]
    return found


def in_repo(api: HfApi, repo_id: str, head: str | None, there: Iterable[str], own: Keys) -> list[Compared]:
    """The configs of a repo at a commit, out of the names of its files. Of the data only the row numbers are read."""
    from huggingface_hub import HfFileSystem

    there = list(there)
    keys = {path: match.groups() for path in there if (match := MANIFEST.fullmatch(path))}
    others = {path: (config, split) for path, (config, split) in keys.items() if (config, split) not in own}
    if not others or head is None:
        return []
    system, found = HfFileSystem(endpoint=api.endpoint, token=api.token), []
    with tempfile.TemporaryDirectory() as cache:
        for path, key in others.items():
            try:
                local = Path(api.hf_hub_download(repo_id, path, repo_type="dataset", revision=head, cache_dir=cache))
            except READING as error:
                _leave_out(key, error)
                continue
            names = [name for folder, _, name in (one.rpartition("/") for one in there) if folder == key[0]]
            one = _read(key, local, _remote(system, repo_id, head, key[0]), names)
            found += [] if one is None else [one]
    return found


def _remote(system: HfFileSystem, repo_id: str, head: str, config: str) -> Callable[[Sequence[str]], np.ndarray]:
    def rows(names: Sequence[str]) -> np.ndarray:
        files = [system.open(f"datasets/{repo_id}/{config}/{name}", "rb", revision=head) for name in names]
        try:
            return _rows(files)
        finally:
            for file in files:
                file.close()

    return rows


def _read(
    key: tuple[str, str], path: Path, rows: Callable[[Sequence[str]], np.ndarray], names: Iterable[str]
) -> Compared | None:
    """A config by its manifest and by the shards beside it; without its rows where those cannot be read."""
    try:
        manifest = read_manifest(path)
        if (manifest.get("config_name"), manifest.get("split")) != key:
            raise ValueError("its manifest is of another config or split")
        digest = content_digest(path.read_bytes())
    except READING as error:
        _leave_out(key, error)
        return None
    shards = sorted(name for name in names if is_shard(name, key[1]) and name.endswith(f"{digest}.parquet"))
    try:
        return Compared(manifest, rows(shards) if shards else None)
    except READING as error:
        _leave_out(key, error)
        return Compared(manifest, None)


def _leave_out(key: tuple[str, str], error: BaseException) -> None:
    what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    logger.info("%s, split %s, could not be read for the comparison of configs: %s", *key, what)


def _rows(files: Sequence[Any]) -> np.ndarray:
    """The row numbers in parquet files; no other column is read."""
    import pyarrow.parquet as pq

    found = [pq.read_table(file, columns=[SOURCE_ROW])[SOURCE_ROW].to_numpy() for file in files]
    return np.concatenate([np.empty(0, dtype=np.int64), *found]).astype(np.int64)
