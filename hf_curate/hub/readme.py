"""README.md of a dataset repo: our part is written, everybody else's survives byte for byte.

Ours are: our entries in `configs` (so that plain `datasets` loads them), our tags, the key `hf_curate`, and what is
between our markers (`sections.py`): a section per config and split, and a comparison where there are several configs.
Lists that we share with people (tags, size_categories, source_datasets) are only added to; a licence that is there is
never changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from hf_curate.errors import ConfigNameError, CurateError
from hf_curate.hub.card import UNRANKED, Section, budget_words, model_name
from hf_curate.hub.frontmatter import FrontMatter
from hf_curate.hub.manifest import check_names, data_files
from hf_curate.hub.markdown import escape, shortened, visible
from hf_curate.hub.sections import COMPARISON, VERSION, Place, with_section

TAGS = ["hf_curate", "reasoning", "data-selection"]

_BLOCK = re.compile(
    r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))"
)  # what huggingface_hub reads
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SIZES = [
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
]


def merge_readme(
    existing: str | None, manifest: Mapping[str, Any], *, card: Section, title: str | None = None
) -> tuple[str, list[str]]:
    """Put the card of one config and split into a README.

    Args:
        existing (`str`, *optional*): the README as it is, line ends included; None where there is none.
        manifest (`dict`): the manifest that the card was made from.
        card (`Card` or `Section`): what stands between our markers.
        title (`str`, *optional*): heading of a new README; not used where one exists.

    Returns:
        `tuple[str, list[str]]`: the new text, and sentences that the user should read.

    Raises:
        ConfigNameError: a config or split name that could not be loaded back.
        CurateError: front matter that cannot be read or edited without loss, or a result that would not load.
    """
    config, split = str(manifest["config_name"]), str(manifest["split"])
    check_names(config, split)
    notes: list[str] = []
    parts = _Parts.of(existing, notes)
    front = parts.front
    known = front.get("hf_curate", "configs", config, split) is not None
    _edit_front_matter(front, manifest, config, split, existing is not None, notes)
    if not parts.text.strip() and title is not None:
        parts.body += f"{parts.newline}# {escape(title)}{parts.newline}"
    place = Place.of(config, split)
    if known and not place.markers(parts.body):
        notes.append(f"The section of {config!r}, split {split!r}, is gone from README.md: the card is at its end.")
    parts.body = with_section(parts.body, card.render(), place, parts.newline, notes)
    merged = parts.joined()
    _check_loads(merged, config, split)
    return parts.bom + merged, notes


def with_comparison(existing: str, section: Section) -> tuple[str, list[str]]:
    """The README with the comparison of its configs: a new one stands before their sections.

    Returns the new text, and sentences that the user should read.
    """
    notes: list[str] = []
    parts, place = _Parts.of(existing, notes), Place.comparison()
    known = parts.front.get("hf_curate", COMPARISON) is not None
    if known and not place.markers(parts.body):
        notes.append("The comparison of configs is gone from README.md: it is at its end.")
    rendered = section.render()
    parts.body = with_section(parts.body, rendered, place, parts.newline, notes, first=not known)
    if isinstance(parts.front.get("hf_curate"), dict):
        parts.front.put(("hf_curate", COMPARISON), VERSION)
    return parts.bom + parts.joined(), notes


@dataclass
class _Parts:
    """A README taken apart; `joined` puts it together again, without its byte order mark."""

    bom: str
    text: str
    newline: str
    block: re.Match[str] | None
    front: FrontMatter
    body: str

    @classmethod
    def of(cls, existing: str | None, notes: list[str]) -> _Parts:
        bom, text = ("\ufeff", existing[1:]) if existing and existing.startswith("\ufeff") else ("", existing or "")
        newline = next(iter(re.findall(r"\r\n|\n|\r", text)), "\n")
        block = _BLOCK.match(text)
        if block is None and text.lstrip().startswith("---"):
            notes.append(
                "README.md begins with --- but its front matter is never closed: it was kept as text, below a new one."
            )
        front = FrontMatter(block[2] + newline if block and block[2] else "", newline)
        return cls(bom, text, newline, block, front, text[block.end() :] if block else text)

    def joined(self) -> str:
        newline, block = self.newline, self.block
        header = (block[1] if block else f"---{newline}") + self.front.text.removesuffix(newline)
        header += block[3] if block else f"{newline}---{newline}"
        if self.text.strip() and not block and not self.body.startswith(("\n", "\r")):
            header += newline
        return header + self.body


def _edit_front_matter(
    front: FrontMatter, manifest: Mapping[str, Any], config: str, split: str, exists: bool, notes: list[str]
) -> None:
    source = manifest["source"] or {}
    if exists and front.get("configs") is None:
        notes.append(
            "README.md declared no configs: data files that load_dataset found by itself are from now on reached only "
            "through a config of their own."
        )
    if config in _declared_infos(front.get("dataset_info")):
        notes.append(
            f"README.md has a dataset_info for {config!r} that was left as it is: remove it if loading reports other "
            "sizes or columns."
        )
    _add_license(front, source.get("license"), notes)
    _add_items(front, "tags", TAGS, notes)
    kept = manifest["rows"]["kept"]
    _add_items(front, "size_categories", [next((name for limit, name in _SIZES if kept < limit), "100M<n<1B")], notes)
    source_id = str(source.get("id") or "")
    if _HUB_ID.fullmatch(source_id) and ("/" in source_id or source.get("sha")):
        _add_items(front, "source_datasets", [source_id], notes)
    _add_config(front, manifest, notes)
    entry = {
        "selector": _selector(manifest["selector"]),
        "model": model_name(manifest),
        "budget": budget_words(manifest["budget"]["asked"]),
    }
    if not isinstance(front.get("hf_curate"), dict | None):
        notes.append("README.md has a key hf_curate that is not a mapping: it was left as it is.")
        return
    front.put(("hf_curate", "schema"), str(manifest["schema"]))
    for key, value in entry.items():
        front.put(("hf_curate", "configs", config, split, key), None if value is None else visible(shortened(value)))


def _selector(selector: Mapping[str, Any]) -> str:
    """The scorer that chose the rows, or the strategy that did not ask it."""
    strategy = str(selector.get("strategy"))
    return strategy if strategy in UNRANKED else str(selector["name"])


def _declared_infos(infos: Any) -> list[str]:
    infos = infos if isinstance(infos, list) else [infos]
    return [str(info.get("config_name", "default")) for info in infos if isinstance(info, dict)]


def _add_license(front: FrontMatter, license_id: Any, notes: list[str]) -> None:
    present = front.get("license")
    if license_id is None:
        return
    name = visible(str(license_id))[:120]
    if present is not None:
        if name not in (present if isinstance(present, list) else [present]):
            notes.append(f"README.md says license {present!r}, the source says {name!r}: README.md was left as it is.")
    elif _LICENSE.fullmatch(name):
        front.put(("license",), name)
    else:
        notes.append(f"The source's licence {name!r} is not a Hub licence id: it is named in the card only.")


def _add_items(front: FrontMatter, key: str, items: list[str], notes: list[str]) -> None:
    present = front.get(key)
    if present is None:
        front.put((key,), items)
    elif isinstance(present, list):
        for item in items:
            if item not in present:
                front.append((key,), item)
    elif [present] != items:
        notes.append(f"README.md has {key} {present!r}, which is not a list: {', '.join(items)} was not added.")


def _add_config(front: FrontMatter, manifest: Mapping[str, Any], notes: list[str]) -> None:
    """Our data files into `configs`: a new entry, a new split of an entry, or nothing where it is there already."""
    config, split, path = manifest["config_name"], manifest["split"], data_files(manifest)
    configs = front.get("configs")
    entries = configs if isinstance(configs, list) else []
    place = next(
        (i for i, e in enumerate(entries) if isinstance(e, dict) and str(e.get("config_name")) == config), None
    )
    if place is None:
        front.append(("configs",), {"config_name": config, "data_files": [{"split": split, "path": path}]})
        return
    files = entries[place].get("data_files")
    if not isinstance(files, list | None) or not all(isinstance(f, dict) and "split" in f for f in files or []):
        raise ConfigNameError(
            f"README.md already has a config {config!r} whose data_files name no splits, so it was not made here. "
            "Nothing was changed: choose another config name"
        )
    for i, file in enumerate(files or []):
        if str(file["split"]) == split:
            if file.get("path") not in (path, [path]):
                old = visible(str(file.get("path")))
                if not old.startswith(f"{config}/{split}-*-"):  # not an earlier content of the same split
                    notes.append(f"Split {split!r} of {config!r} was read from {old!r}, and now from {path!r}.")
                front.put(("configs", place, "data_files", i, "path"), path)
            return
    front.append(("configs", place, "data_files"), {"split": split, "path": path})


def _check_loads(text: str, config: str, split: str) -> None:
    """Read the README as the Hub's client and `datasets` will."""
    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard(text).data)  # pyright: ignore[reportArgumentType]
        loads = any(file["split"] == split for file in configs[config]["data_files"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # their ways of refusing a foreign key or entry
        raise CurateError(
            f"README.md with the new card would not load ({type(error).__name__}: {visible(str(error))[:300]}). "
            "Nothing was changed: correct its front matter and save or push again"
        ) from error
    if not loads:
        raise CurateError(
            f"README.md with the new card does not name the files of {config!r}, split {split!r}. Nothing was changed"
        )
