"""The YAML at the top of a README, edited in place.

YAML is parsed only to find where a value begins and ends; what is written is text, inserted or replaced at that place.
So comments, key order, quoting and everything that we do not know survive byte for byte. After each edit the text is
parsed again and compared with what the edit should have meant: an edit that a strange layout (anchors, duplicate
keys) would get wrong is an error.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from hf_curate.errors import CurateError
from hf_curate.hub.markdown import visible

Keys = tuple[str | int, ...]

_AGAIN = "Nothing was changed: correct the lines between the two --- lines of README.md and save or push again"

_PLAIN = re.compile(r"(?:[A-Za-z]|\d+[KMB]<)[A-Za-z0-9_./@*<-]*")
_LINE_END = re.compile(r"\r\n|\n|\r")


class FrontMatter:
    """The text between the two `---` lines (without them, ending in a line break or empty) and its edits."""

    def __init__(self, text: str, newline: str = "\n") -> None:
        self.text = text
        self.newline = newline
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2020-13-45
            what = " ".join(str(error).split())
            raise CurateError(f"The front matter of README.md is not valid YAML ({what}). {_AGAIN}") from error
        if not isinstance(data, dict | None):
            kind = type(data).__name__
            raise CurateError(f"The front matter of README.md is a {kind}, not a mapping of keys to values. {_AGAIN}")
        self.data: dict[Any, Any] = data or {}
        self._composed: tuple[str, yaml.Node | None] | None = None

    def get(self, *path: str | int) -> Any:
        """The parsed value at a path, or None where there is none."""
        value: Any = self.data
        for key in path:
            known: Any = dict(enumerate(value)) if isinstance(value, list) else value
            if not isinstance(known, dict) or key not in known:
                return None
            value = known[key]
        return value

    def put(self, path: Keys, value: Any) -> None:
        """Set the value at a path; missing mappings on the way are made, an equal value is left as it is written."""
        if self.get(*path) == value:
            return
        *above, key = path
        parent = self.get(*above)
        if parent is None and above:
            self.put(tuple(above), {key: value})
            return
        if not isinstance(parent, dict):
            raise self._unexpected(tuple(above), "a mapping")
        expected = copy.deepcopy(self.data)
        _at(expected, tuple(above))[key] = value
        mapping, node = self._node(tuple(above)), self._node(path)
        if node is not None and mapping is not None:
            start, end = node.start_mark.index, _end(node)
            if start == end and isinstance(value, dict | list) and not getattr(mapping, "flow_style", False):
                start = end = self._after_line(end)
                text = self._block(value, mapping.start_mark.column + (2 if isinstance(value, dict) else 0))
            else:
                text = (" " if start == end else "") + _flow(value)
            self._write(start, end, text, expected)
        elif mapping is None:
            self._write(len(self.text), len(self.text), self._block({key: value}, 0), expected)
        else:
            self._insert(mapping, f"{_scalar(key)}: {_flow(value)}", {key: value}, expected)

    def append(self, path: Keys, value: Any) -> None:
        """Add an item at the end of the list at a path; a missing list is made."""
        items = self.get(*path)
        if items is None:
            self.put(path, [value])
            return
        if not isinstance(items, list):
            raise self._unexpected(path, "a list")
        expected = copy.deepcopy(self.data)
        _at(expected, path).append(value)
        node = self._node(path)
        assert node is not None  # `get` found a list there
        self._insert(node, _flow(value), [value], expected)

    def _insert(self, node: yaml.Node, flow: str, block: Any, expected: dict[Any, Any]) -> None:
        """Write a new last member into a mapping or list, in the style that it has."""
        if getattr(node, "flow_style", False):
            start = node.start_mark.index + 1
            place, text = (_end(_members(node)[-1]), f", {flow}") if node.value else (start, flow)
        else:
            place, text = self._after_line(_end(node)), self._block(block, node.start_mark.column)
        self._write(place, place, text, expected)

    def _write(self, start: int, end: int, text: str, expected: dict[Any, Any]) -> None:
        written = self.text[:start] + text + self.text[end:]
        try:
            understood = repr(yaml.safe_load(written)) == repr(expected)
        except yaml.YAMLError:
            understood = False
        if not understood:
            raise CurateError(
                "The front matter of README.md is laid out in a way that cannot be edited safely (anchors, duplicate "
                f"keys, unusual indentation). {_AGAIN}"
            )
        self.text, self.data = written, expected

    def _node(self, path: Keys) -> yaml.Node | None:
        if self._composed is None or self._composed[0] != self.text:
            self._composed = self.text, yaml.compose(self.text, Loader=yaml.SafeLoader)
        node = self._composed[1]
        for key in path:
            if isinstance(node, yaml.MappingNode):
                node = next((v for k, v in reversed(node.value) if k.value == key), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                node = node.value[key]
            else:
                return None
        return node

    def _after_line(self, index: int) -> int:
        if index and self.text[index - 1] in "\r\n":
            return index
        match = _LINE_END.search(self.text, index)
        return match.end() if match else len(self.text)

    def _block(self, value: Any, column: int) -> str:
        return "".join(" " * column + line + self.newline for line in _lines(value))

    def _unexpected(self, path: Keys, wanted: str) -> CurateError:
        where, what = ".".join(map(str, path)), visible(repr(self.get(*path)))[:80]
        return CurateError(f"In the front matter of README.md, {where} is {what} where {wanted} is expected. {_AGAIN}")


def _at(data: Any, path: Keys) -> Any:
    for key in path:
        data = data[key]
    return data


def _members(node: yaml.Node) -> list[yaml.Node]:
    return [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value


def _end(node: yaml.Node) -> int:
    """Where the text of a value ends: for a block collection its last leaf; its own mark lies past comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        return _end(_members(node)[-1])
    return node.end_mark.index


def _scalar(value: Any) -> str:
    """A key or a simple value: plain where no YAML version reads it as something else, otherwise in double quotes."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    text = str(value)
    return text if _is_plain(text) else json.dumps(visible(text), ensure_ascii=False)


@functools.lru_cache(maxsize=4096)
def _is_plain(text: str) -> bool:
    return bool(_PLAIN.fullmatch(text)) and yaml.safe_load(text) == text


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _lines(value: Any) -> Iterator[str]:
    """A mapping or list in block style; lists are not indented below their key, as the Hub's client writes them."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                yield f"{_scalar(key)}:"
                yield from (line if isinstance(item, list) else f"  {line}" for line in _lines(item))
            else:
                yield f"{_scalar(key)}: {_flow(item)}"
    else:
        for item in value:
            lines = list(_lines(item)) if isinstance(item, dict | list) and item else [_flow(item)]
            yield from (f"{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines))
