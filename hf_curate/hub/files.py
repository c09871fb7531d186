"""A selection as the files of a Hub dataset repo: `<config>/<split>-*.parquet`, manifest, plots, README.md."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError, MissingPackageError
from hf_curate.hub.manifest import check_names, is_shard, manifest_bytes, shard_name, with_files

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.selection import Selection

logger = logging.getLogger("hf_curate")

SHARD_BYTES = 500 * 2**20
TITLE = "Curated reasoning data"
"""Heading of a README that is new; one that is there keeps its own."""


def save(selection: Selection, folder: Path, config_name: str, split: str) -> Path:
    """See `Selection.save`."""
    from hf_curate.hub.card import Card
    from hf_curate.hub.readme import merge_readme

    check_names(config_name, split)
    manifest = {**selection.manifest, "config_name": config_name, "split": split}
    readme = folder / "README.md"
    before = _text(readme)
    plots, images = _plots(manifest, config_name, split)
    card = Card(manifest, plots)
    text, notes = merge_readme(before, manifest, card=card, title=TITLE)
    own = folder / config_name
    try:
        own.mkdir(parents=True, exist_ok=True)
        _write_shards(selection.dataset, own, manifest)
        _replace(own / f"{split}.manifest.json", manifest_bytes(manifest))
        for name, image in images.items():
            _replace(folder / name, image)
        _replace(readme, text.encode("utf-8"))
    except OSError as error:
        raise CurateError(
            f"{folder.name!r} cannot be written ({type(error).__name__}: {error.strerror}): give another folder."
        ) from error
    for note in notes:
        logger.warning("%s", note)
    return folder


def _text(readme: Path) -> str | None:
    try:
        return readme.read_bytes().decode("utf-8") if readme.is_file() else None
    except UnicodeDecodeError as error:
        raise CurateError(
            f"README.md of {readme.parent.name!r} is not UTF-8 (byte {error.start}): convert it first; nothing was "
            "changed."
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all: a README.md that people wrote must not be lost halfway."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _write_shards(dataset: Dataset, folder: Path, manifest: Mapping[str, Any]) -> None:
    """All shards are written under temporary names, then the old ones go and the new ones get their names: a shard
    that is there is whole, and an error while writing leaves what was there."""
    from datasets.features.features import require_storage_embed

    share = len(dataset) / max(1, dataset.data.num_rows)
    shards = max(1, min(len(dataset), math.ceil(dataset.data.nbytes * share / SHARD_BYTES)))
    names = [shard_name(manifest, index, shards) for index in range(shards)]
    plain = dataset.with_format("arrow")
    files = any(require_storage_embed(feature) for feature in dataset.features.values())
    try:
        for index, name in enumerate(names):
            shard = plain.shard(shards, index, contiguous=True)
            if files:
                shard = shard.map(with_files, batched=True, batch_size=100, keep_in_memory=True)
            shard.to_parquet(folder / f".{name}")
        for path in folder.iterdir():
            if is_shard(path.name, manifest["split"]):
                path.unlink()
        for name in names:
            (folder / f".{name}").replace(folder / name)
    finally:
        for name in names:
            (folder / f".{name}").unlink(missing_ok=True)


def _plots(manifest: dict, config_name: str, split: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """({plot: path in the repo}, {path: PNG}); without matplotlib a card has no pictures, and the log says why."""
    from hf_curate.report import plot_scores

    if not manifest["scores"]["histogram"]:
        return {}, {}
    path = f"{config_name}/{split}.scores.png"
    try:
        return {"scores": path}, {path: plot_scores(manifest)}
    except MissingPackageError as error:
        logger.warning("%s; the card is written without it.", error)
        return {}, {}
