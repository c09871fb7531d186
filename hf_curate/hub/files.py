"""A selection as the files of a Hub dataset repo: `<config>/<split>-*.parquet`, manifest, plots, README.md."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hf_curate.errors import MissingPackageError
from hf_curate.hub.manifest import check_names, write_manifest

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
    before = readme.read_bytes().decode("utf-8") if readme.is_file() else None
    plots, images = _plots(manifest, config_name, split)
    card = Card(manifest, plots)
    text, notes = merge_readme(before, manifest, card=card, title=TITLE)
    own = folder / config_name
    own.mkdir(parents=True, exist_ok=True)
    written = _write_shards(selection.dataset, own, split)
    stale = re.compile(rf"{re.escape(split)}-\d{{5}}-of-\d{{5}}\.parquet")
    for path in own.iterdir():
        if stale.fullmatch(path.name) and path.name not in written:
            path.unlink()
    write_manifest(manifest, own / f"{split}.manifest.json")
    for name, image in images.items():
        (folder / name).write_bytes(image)
    readme.write_bytes(text.encode("utf-8"))
    for note in notes:
        logger.warning("%s", note)
    return folder


def _write_shards(dataset: Dataset, folder: Path, split: str) -> set[str]:
    """Each shard is written under a temporary name and renamed, so that a shard that is there is whole."""
    share = len(dataset) / max(1, dataset.data.num_rows)
    shards = max(1, min(len(dataset), math.ceil(dataset.data.nbytes * share / SHARD_BYTES)))
    names = [f"{split}-{index:05d}-of-{shards:05d}.parquet" for index in range(shards)]
    for index, name in enumerate(names):
        unfinished = folder / f".{name}"
        dataset.shard(shards, index, contiguous=True).to_parquet(unfinished)
        unfinished.replace(folder / name)
    return set(names)


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
