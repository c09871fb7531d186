"""Where rows come from: a Hub dataset, a local parquet or JSON file, or a folder laid out as a dataset repo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError
from hf_curate.hub.resolve import dataset_commit

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPEC = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[^:@\s]+))?(:(?P<config>[^/:\s]*)(/(?P<split>[^/\s]+))?)?"
)
FORMS = "'org/name', 'org/name@revision', 'org/name@revision:config/split', or a local .jsonl, .json or .parquet file"


def parse(source: str) -> dict[str, str | None]:
    """'id@revision:config/split' -> its parts. Raises CurateError for other text."""
    found = SPEC.fullmatch(source)
    if found is None:
        raise CurateError(f"source {source[:60]!r} cannot be read: give {FORMS}.")
    return {key: found[key] or None for key in ("id", "revision", "config", "split")}


def load_source(source: str) -> tuple[Dataset, str]:
    """The rows, and how to call where they came from: `id@commit:config/split`, or the path as it was given.

    A branch or tag is resolved to a commit first, and exactly that commit is loaded.
    """
    path = Path(source).expanduser()
    if path.exists() or path.suffix in FORMATS:
        return _load_local(path), source
    parts = parse(source)
    from datasets import load_dataset

    sha, _ = dataset_commit(str(parts["id"]), parts["revision"] or "main")
    try:
        loaded = load_dataset(str(parts["id"]), parts["config"], revision=sha or parts["revision"])
    except (OSError, ValueError) as error:  # not found, offline, several configs: the message of datasets names them
        raise CurateError(f"{source} cannot be loaded: {str(error).splitlines()[0]}") from error
    split = _only([str(split) for split in loaded], parts["split"], source)
    dataset = loaded[split]  # type: ignore[index]
    config = parts["config"] or dataset.info.config_name
    return dataset, f"{parts['id']}@{sha or parts['revision'] or 'main'}:{config}/{split}"


def _load_local(path: Path) -> Dataset:
    from datasets import load_dataset

    if not path.is_file():
        raise CurateError(f"{path.name!r} is not a file: give {FORMS}.")
    if path.suffix not in FORMATS:
        raise CurateError(f"{path.name!r} is neither .jsonl, .json nor .parquet: other formats are not read.")
    return load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")  # type: ignore[return-value]


def _only(splits: list[str], asked: str | None, source: str) -> str:
    if asked is None and len(splits) == 1:
        return splits[0]
    if asked not in splits:
        config = parse(source)["config"] or ""
        start = source.partition(":")[0]
        raise CurateError(f"{source} has the splits {', '.join(splits)}: choose one, '{start}:{config}/{splits[0]}'.")
    return asked


def source_record(source: str | None, dataset: Dataset) -> dict[str, Any] | None:
    """The manifest's account of the source; None stays "not recorded".

    Of a local file or folder only the name is kept. Where a branch cannot be resolved (offline) `sha` is None, and
    the card says so.
    """
    if source is None:
        return None
    record: dict[str, Any] = dict.fromkeys(("id", "revision", "sha", "config", "split", "license"))
    record |= {"fingerprint": dataset._fingerprint, "columns": None}
    path = Path(source).expanduser()
    if path.exists() or path.is_absolute() or source.startswith((".", "~")):
        return {**record, "id": f"local {'folder' if path.is_dir() else 'file'} {path.name}"}
    parts = parse(source)
    sha, license_name = dataset_commit(str(parts["id"]), parts["revision"] or "main")
    return {**record, **parts, "revision": parts["revision"] or "main", "sha": sha, "license": license_name}
