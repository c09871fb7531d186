"""Where rows come from: a Hub dataset, or a local parquet or JSON file; and what records may call it."""

from __future__ import annotations

import glob
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_curate.errors import CurateError
from hf_curate.hub.resolve import COMMIT, dataset_commit, dataset_license, remember

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPEC = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[^:@\s]+))?(:(?P<config>[^/:\s]*)(/(?P<split>[^/\s]+))?)?"
)
NO_DATA = "corresponds to no data"
"""What `datasets` says of files without a row."""
_LOCAL = re.compile(r"local (file|folder) (.*)", re.DOTALL)
FORMS = "'org/name', 'org/name@revision', 'org/name@revision:config/split', or a local .jsonl, .json or .parquet file"


def parse(source: str) -> dict[str, str | None]:
    """'id@revision:config/split' -> its parts. Raises CurateError for other text."""
    found = SPEC.fullmatch(source)
    try:
        if found is None:
            raise HFValidationError
        validate_repo_id(found["id"])
    except HFValidationError as error:
        raise CurateError(f"source {source[:60]!r} cannot be read: give {FORMS}.") from error
    return {key: found[key] or None for key in ("id", "revision", "config", "split")}


def load_source(source: str) -> tuple[Dataset, str]:
    """The rows, and what to call where they came from: `id@commit:config/split`, or "local file NAME".

    A branch or tag is resolved to a commit first, and exactly that commit is loaded.
    """
    return _loaded(source, streaming=False)


def load_stream(source: str) -> tuple[IterableDataset, str]:
    """As `load_source`, and nothing is read, downloaded or converted before the rows are iterated over."""
    return _loaded(source, streaming=True)


def _loaded(source: str, streaming: bool) -> tuple[Any, str]:
    if is_local(source):
        return _load_local(_path(source), streaming), public_name(source) or source
    _check_no_path(source)
    parts = parse(source)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    sha, why = dataset_commit(str(parts["id"]), parts["revision"] or "main")
    if sha is None and parts["revision"] not in (None, "main"):  # `datasets` would take what is in its cache instead
        raise CurateError(f"{source} cannot be loaded: {why}.")
    try:
        revision = sha or parts["revision"]
        loaded = load_dataset(str(parts["id"]), parts["config"], revision=revision, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:  # not found, offline, several configs: their message says
        if NO_DATA in str(error):
            raise CurateError(_no_rows(source)) from error
        near = _near(_path(source))
        raise CurateError(
            f"{source} cannot be loaded from the Hub: {_first_line(error)}. It is not a file or folder here either"
            + (f" (did you mean {near!r}?)" if near else "")
            + ". Check the name, the connection (HF_HUB_OFFLINE=1 forbids it) and, for a private or gated dataset, hf "
            "auth login."
        ) from error
    split = _only([str(split) for split in loaded], parts["split"], source)
    dataset: Any = loaded[split]  # type: ignore[index]
    given = sha if streaming else _cached_commit(dataset)
    if sha is not None and given not in (None, sha):
        raise CurateError(
            f"{source} cannot be loaded at its commit {sha[:7]}: offline, datasets gives the last one that it loaded, "
            f"{str(given)[:7]}. Connect (no HF_HUB_OFFLINE), or name that commit."
        )
    if not streaming and not len(dataset):
        raise CurateError(_no_rows(f"{source}, split {split}"))
    sha = sha or given
    if sha is not None:
        remember(str(parts["id"]), parts["revision"] or "main", "dataset", sha)
    config = parts["config"] or dataset.info.config_name
    return dataset, f"{parts['id']}@{sha or parts['revision'] or 'main'}:{config}/{split}"


def is_local(source: str) -> bool:
    """Whether a source is there as a file or folder, or is written like one and no Hub id."""
    path, name = _path(source), re.split("[@:]", source, maxsplit=1)[0]
    if os.path.exists(path) or path.suffix.lower() in FORMATS:
        return True
    if "://" in source:
        return False
    written = source.startswith((".", "~", "/")) or "\\" in source or name.count("/") > 1
    return written or ("/" in name and bool(Path(name).suffix) and os.path.isdir(Path(name).parent))


def check_local(source: str) -> None:
    """Raises for a local file that is not there, before anything else is loaded."""
    if is_local(source):
        _check_file(_path(source))
    else:
        _check_no_path(source)


def _check_no_path(source: str) -> None:
    """Raises for what could be a Hub id, and is all but the name of something in a folder that is there."""
    if "/" in source and not set("@:") & set(source) and (near := _near(_path(source), cutoff=0.8)):
        raise CurateError(
            f"there is no {source!r} here, and there is {near!r}: did you mean that? The Hub dataset of this name is "
            f"'{source}@main'."
        )


def _near(path: Path, cutoff: float = 0.6) -> str | None:
    """The path of a file of rows, or of a folder, with almost that name in the same folder."""
    try:
        there = [name for name in os.listdir(path.parent) if _is_rows(path.parent / name)]
    except (OSError, ValueError):  # no such folder, not ours to read, or no name of a folder at all
        return None
    names = {Path(name).stem: name for name in sorted(there)}
    near = get_close_matches(path.stem, names, n=1, cutoff=cutoff)
    return str(path.parent / names[near[0]]) if near else None


def _is_rows(path: Path) -> bool:
    return path.suffix.lower() in FORMATS or (path.is_dir() and not path.name.startswith("."))


def check_run(folder: str) -> None:
    """Raises for the folder of a run that is not there, with the name of one that could be meant."""
    path = _path(folder)
    if not os.path.exists(path) and (near := _near(path)):
        raise CurateError(f"there is no folder {path.name!r}: did you mean {near!r}?")


def _cached_commit(dataset: Dataset) -> str | None:
    """The commit of a Hub dataset in the cache of `datasets`, by the name of its folder."""
    names = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    name = names.pop() if len(names) == 1 else ""
    return name if COMMIT.fullmatch(name) else None


def _load_local(path: Path, streaming: bool) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    _check_file(path)
    if path.suffix.lower() not in FORMATS:
        raise CurateError(
            f"{path.name!r} is neither .jsonl, .json nor .parquet, and other formats are not read: convert it first, "
            "such as Dataset.from_csv('x.csv').to_parquet('x.parquet')."
        )
    if not path.stat().st_size:
        raise CurateError(_no_rows(repr(path.name)))
    try:
        kind, files = FORMATS[path.suffix.lower()], glob.escape(str(path))
        return load_dataset(kind, data_files=files, split="train", streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        if NO_DATA in str(error):
            raise CurateError(_no_rows(repr(path.name))) from error
        why = _first_line(error.__cause__ or error)
        raise CurateError(f"{path.name!r} cannot be read as {path.suffix[1:]}: {why}.") from error


def _check_file(path: Path) -> None:
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        raise CurateError(f"{path.name!r} is a folder: give {FORMS}.")
    near = _near(path)
    fix = f"did you mean {Path(near).name!r}?" if near else f"give {FORMS}."
    raise CurateError(f"there is no file {path.name!r}: {fix}")


def _no_rows(where: str) -> str:
    return f"no rows in {where}: there is nothing to read."


def _path(source: str) -> Path:
    return Path(os.path.expanduser(source))  # unlike Path.expanduser it leaves an unknown user as it is


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def public_name(source: str | None) -> str | None:
    """What a record may call a source: a Hub name as it is, of a local file or folder its last part and never its
    path."""
    if source is None:
        return None
    path = _path(source)
    if stored := _LOCAL.fullmatch(source):
        kind, place = stored.groups()
    elif os.path.exists(path) or path.is_absolute() or path.suffix in FORMATS or source.startswith((".", "~", "\\")):
        kind, place = "folder" if os.path.isdir(path) else "file", os.path.abspath(path)
    else:
        return source
    name = re.split(r"[/\\]", place)[-1]
    return f"local {kind} {name}"


def _only(splits: list[str], asked: str | None, source: str) -> str:
    if asked is None and len(splits) == 1:
        return splits[0]
    if asked not in splits:
        config = parse(source)["config"] or ""
        start = source.partition(":")[0]
        raise CurateError(f"{source} has the splits {', '.join(splits)}: choose one, '{start}:{config}/{splits[0]}'.")
    return asked


def _downloaded_commit(dataset: Dataset, name: str) -> str | None:
    """The commit in the addresses that `datasets` downloaded this dataset's files from."""
    addresses = " ".join(dataset.info.download_checksums or {})
    found = set(re.findall(rf"hf://datasets/{re.escape(name)}@([0-9a-f]{{40}})/", addresses))
    return found.pop() if len(found) == 1 else None


def source_record(source: str | None, dataset: Dataset, fingerprint: str | None = None) -> dict[str, Any] | None:
    """The manifest's account of the source; None stays "not recorded".

    Of a local file or folder only the name is kept. The commit is the one that `datasets` downloaded, where the
    dataset still tells; else the head of the branch now; where neither is known (offline) `sha` is None, and the card
    says so.
    fingerprint: of the dataset before scoring, if it is known; else that of the scored one is recorded.
    """
    if source is None:
        return None
    record: dict[str, Any] = dict.fromkeys(("id", "revision", "sha", "config", "split", "license"))
    record |= {"fingerprint": fingerprint or dataset._fingerprint, "columns": None}
    name = str(public_name(source))
    if _LOCAL.fullmatch(name):
        return {**record, "id": name}
    parts = parse(source)
    revision = parts["revision"] or "main"
    sha = _downloaded_commit(dataset, str(parts["id"])) or dataset_commit(str(parts["id"]), revision)[0]
    license_name = dataset_license(str(parts["id"]), sha) if sha else None
    return {**record, **parts, "revision": revision, "sha": sha, "license": license_name}
