"""A selection as the files of a Hub dataset repo: `<config>/<split>-*.parquet`, manifest, plots, README.md.

What is saved and what is pushed is staged by the same function, so both hold the same bytes.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from hf_curate.errors import CurateError, MissingPackageError
from hf_curate.hub.card import Card, Section
from hf_curate.hub.comparison import Compared, comparison, is_comparison
from hf_curate.hub.lines import batches
from hf_curate.hub.manifest import (
    check_names,
    content_digest,
    is_shard,
    manifest_bytes,
    read_manifest,
    shard_name,
    with_files,
)
from hf_curate.hub.others import in_folder, of_files
from hf_curate.hub.readme import merge_readme, with_comparison
from hf_curate.plots import draw
from hf_curate.plots.draw import PLOTS

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.selection import Selection

logger = logging.getLogger("hf_curate")

SHARD_BYTES = 500 * 2**20
TITLE = "Curated reasoning data"
"""Heading of a README that is new; one that is there keeps its own."""


@dataclass(frozen=True)
class Staged:
    """One config and split as files on this machine, all but the README.

    files: path in the repo -> local file; plots: name of a plot -> path in the repo.
    """

    manifest: Mapping[str, Any]
    files: dict[str, Path]
    plots: dict[str, str]

    @property
    def config_name(self) -> str:
        return self.manifest["config_name"]

    @property
    def split(self) -> str:
        return self.manifest["split"]

    @property
    def parquet(self) -> list[str]:
        return sorted(path for path in self.files if path.endswith(".parquet"))

    @property
    def shards(self) -> list[Path]:
        return [self.files[path] for path in self.parquet]

    def replaces(self, path: str) -> bool:
        """Whether a file of the repo is a shard or a plot of this config and split, of whatever content."""
        folder, _, name = path.rpartition("/")
        own = is_shard(name, self.split) or name in {plot_name(self.split, plot) for plot in PLOTS}
        return folder == self.config_name and own


def plot_name(split: str, plot: str) -> str:
    """File name of a plot in the folder of its config."""
    return f"{split}.{plot}.png"


def stage(
    selection: Selection, folder: Path, config_name: str, split: str, *, shard_bytes: int | None = None
) -> Staged:
    """Writes a selection's parquet, manifest and plots under `folder`, laid out as in the repo."""
    check_names(config_name, split)
    manifest = {**selection.manifest, "config_name": config_name, "split": split}
    plots, images = _plots(manifest, config_name, split)
    own = folder / config_name
    own.mkdir(parents=True, exist_ok=True)
    names = _write_shards(selection.dataset, own, manifest, shard_bytes or SHARD_BYTES)
    (own / f"{split}.manifest.json").write_bytes(manifest_bytes(manifest))
    for path, image in images.items():
        (folder / path).write_bytes(image)
    paths = [f"{config_name}/{name}" for name in (*names, f"{split}.manifest.json")]
    return Staged(manifest, {path: folder / path for path in (*paths, *images)}, plots)


def staged_in(folder: Path, config_name: str, split: str) -> Staged:
    """The files of a config and split that `save` wrote."""
    import pyarrow.parquet as pq

    own = folder / config_name
    path = own / f"{split}.manifest.json"
    manifest = read_manifest(path)
    digest = content_digest(path.read_bytes())
    names = sorted(one.name for one in own.iterdir() if is_shard(one.name, split) and one.stem.endswith(digest))
    said = (manifest.get("config_name"), manifest.get("split"), manifest["rows"]["kept"])
    try:
        rows = sum(pq.read_metadata(own / name).num_rows for name in names)
    except (OSError, ValueError) as error:
        raise CurateError(
            f"the files of {config_name!r}, split {split!r}, cannot be read ({type(error).__name__}): save the config "
            "again."
        ) from error
    if not names or said != (config_name, split, rows):
        raise CurateError(
            f"{folder.name}/{config_name} does not hold what its manifest says (config {said[0]!r}, split "
            f"{said[1]!r}, {said[2]:,} rows; there are {len(names)} parquet files of it with {rows:,} rows): save the "
            "config again."
        )
    paths = [f"{config_name}/{name}" for name in names]
    there = {plot: f"{config_name}/{plot_name(split, plot)}" for plot in PLOTS}
    plots = {plot: path for plot, path in there.items() if (folder / path).is_file()}
    paths += [f"{config_name}/{split}.manifest.json", *plots.values()]
    return Staged(manifest, {path: folder / path for path in paths}, plots)


CARD_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, jinja2.TemplateError)
"""What a manifest of another make-up (or an installation without templates) makes of a card: no data is lost by it."""


def full_card(part: Staged, repo_id: str | None = None) -> Section:
    """The card of a staged config and split; a minimal one, and a warning, where it cannot be written."""
    try:
        return Card(dict(part.manifest), part.plots, repo_id=repo_id)
    except CARD_ERRORS as error:
        why = first(error)
        logger.warning(
            "The card of %r is a minimal one, the whole one could not be written: %s", part.config_name, why
        )
        return minimal_card(part)


def minimal_card(part: Staged) -> Section:
    """What stands for a card that could not be written."""
    where = f"`{part.config_name}/{part.split}.manifest.json`"
    return Section(f"{part.config_name}, split {part.split}", f"How these rows were chosen is in {where}.")


def merged_readme(
    before: str | None,
    staged: Sequence[Staged],
    make: Callable[[Staged], Section] = full_card,
    others: Sequence[Compared] = (),
) -> tuple[str, list[str]]:
    """The README with a section for each staged config and split, and sentences that the user should read.

    others: the other configs of the place it is for, to compare these with.
    """
    text, notes = before, []
    for part in staged:
        text, more = merge_readme(text, part.manifest, card=make(part), title=TITLE)
        notes += more
    compared = [*others, *(Compared(part.manifest, None) for part in staged)]
    if text is None or not is_comparison(compared):
        return text or "", notes
    try:
        entries = [*others, *(of_files(part.manifest, part.shards) for part in staged)]
        text, more = with_comparison(text, comparison(entries))
    except CARD_ERRORS as error:
        logger.warning("The configs are not compared in the card: %s", first(error))
        return text, notes
    return text, [*notes, *more]


def save(selection: Selection, folder: Path, config_name: str, split: str) -> Path:
    """See `Selection.save`. Everything is written beside the folder's files first and then renamed into place."""
    check_names(config_name, split)
    readme = folder / "README.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".hf_curate-") as unfinished:
            staged = stage(selection, Path(unfinished), config_name, split)
            others = in_folder(folder, {(config_name, split)})
            text, notes = merged_readme(_text(readme), [staged], others=others)
            (Path(unfinished) / "README.md").write_bytes(text.encode("utf-8"))
            own = folder / config_name
            own.mkdir(exist_ok=True)
            for path in own.iterdir():
                if staged.replaces(f"{config_name}/{path.name}"):
                    path.unlink()
            for path, local in staged.files.items():
                local.replace(folder / path)
            (Path(unfinished) / "README.md").replace(readme)
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


def _write_shards(dataset: Dataset, folder: Path, manifest: Mapping[str, Any], shard_bytes: int) -> list[str]:
    """The names of the shards, written under `folder`; files of images and audio travel inside."""
    from datasets.features.features import require_storage_embed

    share = len(dataset) / max(1, dataset.data.num_rows)
    shards = max(1, min(len(dataset), math.ceil(dataset.data.nbytes * share / shard_bytes)))
    plain = dataset.with_format("arrow")
    files = any(require_storage_embed(feature) for feature in dataset.features.values())
    names = [shard_name(manifest, index, shards) for index in range(shards)]
    for index, name in enumerate(names):
        shard = plain.shard(shards, index, contiguous=True)
        if files:
            shard = shard.map(with_files, batched=True, batch_size=100, keep_in_memory=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".hf_curate-") as place:
            _in_one_piece(shard, Path(place) / "rows.arrow").to_parquet(folder / name)
    return names


def _in_one_piece(rows: Dataset, path: Path) -> Dataset:
    """The rows of a view, copied to a file: `datasets` gathers those of a row group one by one and all in memory."""
    import pyarrow as pa
    from datasets import Dataset

    if rows._indices is None:
        return rows
    with pa.ipc.new_stream(path, rows.data.schema) as writer:
        for table in batches(rows, rows.column_names):
            writer.write_table(table)
    return Dataset.from_file(str(path), info=rows.info)


def _plots(manifest: dict, config_name: str, split: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """({plot: path in the repo}, {path: PNG}). What cannot be drawn is left out of the card, and the log says why."""
    plots: dict[str, str] = {}
    images: dict[str, bytes] = {}
    for name in PLOTS:
        try:
            if not draw.has(name, manifest):
                continue
            image = draw.plot(name, manifest)
        except MissingPackageError as error:
            logger.warning("%s; the card is written without plots.", error)
            return {}, {}
        except Exception as error:  # noqa: BLE001 - whatever a drawing library raises: no picture is worth the data
            logger.warning("The plot %r could not be drawn (%s); the card is written without it.", name, first(error))
            continue
        plots[name] = f"{config_name}/{plot_name(split, name)}"
        images[plots[name]] = image
    return plots, images


def first(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
