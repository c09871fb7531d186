"""The manifest: everything a card claims, as JSON with a versioned schema, and the digests that tie it to the data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import ColumnsError, ConfigNameError, ManifestError
from hf_curate.hub.lines import batches, json_lines

if TYPE_CHECKING:
    from datasets import Dataset

SCHEMA = "hf_curate/manifest/2"
READABLE = ("hf_curate/manifest/1", SCHEMA)
"""The first lacks nested budgets, profiles (steps, length, pass_rate), strata and claims; a card says so."""
SOURCE_ROW = "source_row"
_CONFIG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SPLIT = re.compile(r"\w+(\.\w+)*", re.ASCII)
_RESERVED = ("data", "readme.md")
_NEEDED: dict[str, type] = {
    "rows.in": int,
    "rows.kept": int,
    "columns.source": dict,
    "digests.source_row": str,
    "digests.rows": str,
    "selector.name": str,
    "budget.asked": str,
    "baselines": dict,
}
"""What loading relies on, and its types; everything else of a foreign manifest is only passed on."""


def check_names(config_name: str, split: str) -> None:
    """Raises unless both names survive a round trip through the Hub and `datasets`."""
    if not isinstance(config_name, str) or not _CONFIG.fullmatch(config_name) or config_name.lower() in _RESERVED:
        raise ConfigNameError(
            f"config name {_short(config_name)} cannot be used: 1 to 96 letters, digits, '.', '_' or '-', beginning "
            "with a letter or digit, and not 'data'; other names can make every config of a repo unloadable. Try "
            "'grace-20pct'."
        )
    if not isinstance(split, str) or not _SPLIT.fullmatch(split) or len(split) > 96 or split.lower() == "all":
        raise ConfigNameError(
            f"split name {_short(split)} cannot be used: letters, digits, '_' and '.' between them (datasets takes no "
            "'-'), and not 'all', which means every split. Try 'train'."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def digest_rows(dataset: Dataset, columns: list[str]) -> str:
    """sha256 over the rows' values, one JSON line each with sorted keys: the same before and after a round trip of
    parquet."""
    from datasets.features.features import require_storage_embed

    digest = hashlib.sha256()
    files = any(require_storage_embed(dataset.features[name]) for name in columns)
    for table in batches(dataset, columns):
        digest.update(json_lines(with_files(table) if files else table))
    return f"sha256:{digest.hexdigest()}"


def with_files(table: Any) -> Any:
    """The table with the bytes of local images and sounds in place of the paths of this machine."""
    from datasets.table import embed_table_storage

    try:
        return embed_table_storage(table, remote_files=False)
    except OSError as error:
        raise ColumnsError(f"a file that the dataset points to cannot be read: {error}.") from error


def digest_indices(indices: np.ndarray) -> str:
    """sha256 over the source rows as little-endian int64."""
    return f"sha256:{hashlib.sha256(np.asarray(indices, dtype='<i8').tobytes()).hexdigest()}"


def versions() -> dict[str, str]:
    """Installed versions of the packages that the numbers depend on."""
    found = {}
    for package in ("hf_curate", "torch", "transformers", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def differences(manifest: Mapping[str, Any], dataset: Dataset) -> list[str]:
    """What the data and its manifest disagree about, in words; empty when they agree."""
    kept = manifest["rows"]["kept"]
    if kept != len(dataset):
        return [f"the manifest says {kept:,} rows, the data has {len(dataset):,}"]
    columns = list(manifest["columns"]["source"])
    missing = [name for name in [*columns, SOURCE_ROW] if name not in dataset.column_names]
    if missing:
        return [f"the manifest lists the columns {', '.join(missing)}, which the data lacks"]
    found = []
    rows = np.asarray(dataset.with_format("numpy")[:][SOURCE_ROW])
    if rows.dtype.kind != "i" or digest_indices(rows) != manifest["digests"]["source_row"]:
        found.append("the source rows are not those of the manifest")
    if digest_rows(dataset, columns) != manifest["digests"]["rows"]:
        found.append("the content of the source columns is not that of the manifest")
    return found


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as its file holds it."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False, default=_number)
    return (text + "\n").encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape


def _number(value: Any) -> int | float:
    """numpy scalars, of manifests that were made by hand."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a manifest cannot hold {type(value).__name__}")


def data_files(manifest: Mapping[str, Any]) -> str:
    """Pattern of the parquet files in the repo. `datasets` keys its cache for a folder by the folder's last name and
    this pattern alone, so the pattern has to change with the content: it ends in a digest of the manifest."""
    return f"{manifest['config_name']}/{manifest['split']}-*-{_content(manifest)}.parquet"


def shard_name(manifest: Mapping[str, Any], index: int, shards: int) -> str:
    """File name of one shard, matched by `data_files`."""
    return f"{manifest['split']}-{index:05d}-of-{shards:05d}-{_content(manifest)}.parquet"


def is_shard(name: str, split: str) -> bool:
    """Whether a file name is that of a shard of this split, of whatever content."""
    return re.fullmatch(rf"{re.escape(split)}-\d{{5}}-of-\d{{5}}(-[0-9a-f]{{12}})?\.parquet", name) is not None


def content_digest(manifest: bytes) -> str:
    """12 hex digits of sha256 over a manifest file, the last part of its shards' names."""
    return hashlib.sha256(manifest).hexdigest()[:12]


def _content(manifest: Mapping[str, Any]) -> str:
    return content_digest(manifest_bytes(manifest))


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks the schema. Raises ManifestError with what was found."""
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = (getattr(error, "strerror", None) or str(error))[:120]
        raise ManifestError(f"{path.name} cannot be read ({why}): save the config again.") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema not in READABLE:
        raise ManifestError(
            f"{path.name} has the schema {_short(schema)}; this version of hf_curate reads "
            f"{' and '.join(map(repr, READABLE))}."
        )
    for place, kind in _NEEDED.items():
        value: Any = manifest
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            found = "nothing" if value is None else _short(value)
            raise ManifestError(
                f"{path.name} holds {found} as {place}, where {kind.__name__} is expected: save the config again."
            )
    return manifest
