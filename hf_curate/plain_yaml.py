"""A YAML file as plain values, with the lines of its keys; a key that is there twice is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_curate.errors import CurateError

MOST = 2**20
"""Bytes that are read."""
MERGE = "tag:yaml.org,2002:merge"


def read_plain(path: Path, fix: str) -> tuple[Any, dict[str, int]]:
    """The values of a YAML file, and place ("score.alpha", "rollouts[1].n") -> line, from 1 on.

    Values are text, numbers, booleans, dates, nulls, lists and mappings; anchors and merges are resolved.
    fix: what to do with a file that holds nothing.

    Raises:
        CurateError: it cannot be read, holds nothing, something else, or a key twice in one mapping.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CurateError(f"the recipe {path.name!r} cannot be read ({error.strerror}): give a .yaml file.") from error
    if len(raw) > MOST:
        raise CurateError(f"the recipe {path.name!r} has {len(raw):,} bytes, and {MOST:,} at most are read.")
    lines: dict[str, int] = {}
    try:
        loader = yaml.SafeLoader(raw.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            raise CurateError(f"{path.name} holds nothing but comments: {fix}.")
        _look(node, "", lines, path.name, set())
        return loader.construct_document(node), lines
    except CurateError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, a date such as 2020-13-45
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise CurateError(f"{path.name} cannot be read as YAML with plain values: {why}") from error


def _look(node: yaml.Node, place: str, lines: dict[str, int], name: str, looked_at: set[int]) -> None:
    """Notes the lines of keys, and refuses one that is there twice: YAML would take the last and say nothing.

    What an anchor names is looked at once: anchors in anchors could name more than there is time for.
    """
    if id(node) in looked_at:
        return
    looked_at.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, inner in enumerate(node.value, 1):
            _look(inner, f"{place}[{number}]", lines, name, looked_at)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        line, here = key.start_mark.line + 1, f"{place}.{key.value}" if place else key.value
        if key.value in seen:
            raise CurateError(
                f"{name}, line {line}: {here} is there twice, first in line {seen[key.value]}: drop or rename one."
            )
        seen[key.value] = lines[here] = line
        _look(value, here, lines, name, looked_at)
