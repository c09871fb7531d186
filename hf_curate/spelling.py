"""Messages as the command line would have them: options by their flags, and folders as they were typed.

What raises does not know who called. In a message for the command line `top_p=2` is `--top-p 2`, `gold='x'` of a
verifier is `--verifier-option gold=x`, and a folder that is named by its last part alone has the path that was typed.
Calls, as in `score(..., out=)`, are left as they are.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CALL = re.compile(r"\w+\((?:[^()]|\([^()]*\))*\)")
_NAMED = re.compile(r"(?<![\w.`-])([a-z]\w*)=('[^']*'|\"[^\"]*\"|[\w%+-]+(?:\.\w+)*|(?=[\s,.;:)]|$))")
_TWICE = re.compile(r"(--[\w-]+) \(\1\)")
_PLAIN = re.compile(r"['\"]([\w./:%@+-]+)['\"]")
"""A quoted value that needs no quotes in a shell."""


def as_typed(message: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """A message that names Python's arguments and the last parts of paths, for who typed these arguments."""
    flags = _flags(parser, arguments)
    calls = [found.span() for found in _CALL.finditer(message)]

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        inside = any(start <= found.start() < stop for start, stop in calls)
        if inside or name not in flags or value == "False":
            return found[0]
        if value == "True":
            return flags[name].strip()
        return (flags[name] + _PLAIN.sub(r"\1", value)).strip()

    message = _TWICE.sub(r"\1", _NAMED.sub(flag, message))
    for name, path in _paths(arguments).items():
        message = message.replace(repr(name), repr(path))
    return message


def _flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, str]:
    """Name of an argument -> what is typed before its value."""
    flags = {one.dest: f"{one.option_strings[-1]} " for one in parser._actions if one.option_strings}
    flags |= {
        one.dest: f"{one.option_strings[0]} " for one in parser._actions if one.nargs == 0 and one.option_strings
    }
    return flags | {name: f"--verifier-option {name}=" for name in _of_verifier(flags, arguments)}


def _of_verifier(flags: Mapping[str, str], arguments: argparse.Namespace) -> list[str]:
    """The options of the verifier that was named; one that is an option of the command too only if it was typed."""
    from hf_curate.rollouts.verify import NAMES, option_types

    name = getattr(arguments, "verifier", None)
    if name not in NAMES:
        return []
    typed = {text.partition("=")[0] for text in getattr(arguments, "verifier_option", None) or ()}
    return [option for option in option_types(name) if option not in flags or option in typed]


def _paths(arguments: argparse.Namespace) -> dict[str, str]:
    """Last part -> path, of what was typed; not where two end alike."""
    found: dict[str, Any] = {}
    for value in vars(arguments).values():
        if isinstance(value, str) and "/" in value and "://" not in value and len(value.splitlines()) == 1:
            name = Path(value).name
            found[name] = value if found.get(name, value) == value else None
    return {name: value for name, value in found.items() if name and value is not None}
