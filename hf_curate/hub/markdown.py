"""Foreign text made safe for Markdown.

A manifest carries text that others wrote: column names, ids, reasons, settings. On a card none of it may become a
heading, a link, HTML, a table cell or one of our own markers. Two rules hold that: characters that mean something are
written as HTML entities, which every Markdown renderer decodes after parsing (also inside tables, where backslash
escapes and code spans differ between renderers), and characters that cannot be seen are shown as backslash escapes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from numbers import Integral, Real
from typing import Any

LONGEST = 300
"""Characters of one foreign text that a card shows; fenced blocks are never cut."""

_INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPECIAL = re.compile(r"[\\`*\[\]<>&|$~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)
_PLAIN_CODE = re.compile(r"(?:list<)*[\w.,:;=+*/@#%^?!'\"(){}-]+(?: [\w.,:;=+*/@#%^?!'\"(){}-]+)*>*")


class Safe(str):
    """Markdown that this package wrote itself; `escape` leaves it as it is."""

    __slots__ = ()


def visible(text: str, keep: str = "") -> str:
    """`text` with controls, bidi marks, odd spaces and lone surrogates as escapes such as `\\u202e`; `keep` stays."""
    return "".join(
        _shown(c) if c != " " and c not in keep and unicodedata.category(c) in _INVISIBLE else c for c in text
    )


def _shown(char: str) -> str:
    return _SHORT.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")


def shortened(text: str) -> str:
    """At most `LONGEST` characters of `text`, and how many there were."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def escape(value: Any) -> Safe:
    """Any value as inline Markdown that renders as exactly its text; every template expression goes through it."""
    if isinstance(value, Safe):
        return value
    if value is None:
        return Safe("not recorded")
    if isinstance(value, Real) and not isinstance(value, bool):
        return number(value)
    return Safe(_SPECIAL.sub(lambda match: f"&#{ord(match[0])};", visible(shortened(str(value)))))


def code(value: Any) -> Safe:
    """Inline code: backticks around harmless text, otherwise `<code>` around entities (safe in tables too)."""
    text = str(value) if isinstance(value, str) else _as_json(value)
    text = text or '""'
    if len(text) <= LONGEST and _PLAIN_CODE.fullmatch(text):
        return Safe(f"`{text}`")
    return Safe(f"<code>{escape(str(text))}</code>")


def fence(text: str, language: str = "") -> Safe:
    """A fenced block that its text cannot leave; exact but for invisible characters and a `<` that may begin a tag."""
    body = visible(text.replace("\r\n", "\n"), keep="\n\t")
    body = re.sub(r"<(?=[A-Za-z/!?])", r"\\u003c", body)
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return Safe(f"{ticks}{language}\n{body}\n{ticks}")


def literal(value: str) -> Safe:
    """A double-quoted Python string literal that is harmless in a fenced block."""
    if isinstance(value, Safe):
        return Safe(f'"{value}"')
    return Safe(json.dumps(str(value)).replace("`", "\\u0060").replace("<", "\\u003c"))


def number(value: Any, decimals: int | None = None) -> Safe:
    """`7465` as 7,465 and `0.31271` as 0.3127: four significant digits, or `decimals` places; the rest is escaped."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return escape(value)
    if isinstance(value, Integral):
        return Safe(f"{int(value):,}")
    text = f"{float(value):.4g}" if decimals is None else f"{float(value):.{decimals}f}"
    return Safe(text.removeprefix("-") if not text.strip("-0.") else text)  # no "-0.00"


def percent(part: Any, whole: Any) -> Safe:
    """`part` of `whole` as "20.0 %"; two significant digits below 0.1 %; "n/a" where there is no whole."""
    if not whole or not all(isinstance(value, Real) for value in (part, whole)):
        return Safe("n/a")
    share = 100.0 * float(part) / float(whole)
    return Safe(f"{share:.2g} %" if 0 < share < 0.1 else f"{share:.1f} %")


def _as_json(value: Any) -> str:
    """Numbers, lists and dicts as one line of JSON; numpy scalars as plain numbers."""
    return json.dumps(
        value, ensure_ascii=False, default=lambda other: other.item() if hasattr(other, "item") else str(other)
    )
