"""Where the answer of a reasoning trace is: `find_answer` and its markers. Every rule is linear in the trace's length.

In this order: the answer column's text when the trace holds it (last occurrence, also inside a step of a trace that
ends with another answer), the last \\boxed{...}, "#### x", "†Answer:", "Final answer:", the text after </think>.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from hf_curate.errors import RowError

Span = tuple[int, int]  # character span in the completion, end exclusive

_DAGGER = re.compile(r"†[ \t]?answer[ \t]?:", re.IGNORECASE)
_FINAL = re.compile(r"\*{0,3}\bfinal[ \t]{1,4}answer[ \t]?\*{0,3}[ \t]?:\*{0,3}", re.IGNORECASE)
# In Markdown "#### " also begins a heading.
_HEADING = re.compile(r"[*_ \t]{0,8}(?:step[ \t]{1,4}\d|(?:final[ \t]{1,4})?answer[*_: \t]{0,8}$)", re.IGNORECASE)
_BRACE = re.compile(r"\\boxed[ \t]{0,8}\{|\\.|[{}]", re.DOTALL)
# Letters of scripts written without spaces (Thai, kana, Han) or with attached particles (Hangul) do not join a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")


class Found(NamedTuple):
    span: Span
    start: int  # of the marker
    by: str


def find_answer(text: str, gold: str | None = None) -> tuple[Span, int, str]:
    """The span of the answer's text, where its marker starts (at the latest where the text does), and what found it.

    RowError: "no answer".
    """
    boxes = _boxes(text)
    marked = [after_hashes(text), _after(_DAGGER, "†Answer:", text), _after(_FINAL, "Final answer:", text, "*")]
    found = next(filter(None, [_column(text, gold), *boxes[-1:], *marked, _after_think(text)]), None)
    if found is None:
        raise RowError(
            "no answer",
            "no answer column text, \\boxed{}, '####', '†Answer:', 'Final answer:' or text after </think> found; "
            "pass answer=COLUMN",
        )
    # "#### 72" found by the column's text, or a box in a line "Final answer: ...": the marker goes with the answer.
    around = [other.start for other in (*boxes, *marked) if other and other.span[0] <= found.span[0] < other.span[1]]
    return found.span, min([found.start, *around]), found.by


def after_hashes(text: str) -> Found | None:
    """The last line if it begins with "#", else what follows the last "####"."""
    shown = text.rstrip()
    start = len(shown) - len((shown.splitlines() or [""])[-1])
    if not text.startswith("#", start):
        start = text.rfind("####")
        if start < 0:
            return None
        start = len(text[:start].rstrip("#"))
    found = _line(text, len(text) - len(text[start:].lstrip("#")), start, "####")
    return None if found is None or _HEADING.match(text[slice(*found.span)][:80]) else found


def strip(text: str, start: int, end: int, also: str = "") -> Span | None:
    """The span without whitespace (and characters of `also`) at its ends; None if nothing is left."""
    while start < end and (text[start].isspace() or text[start] in also):
        start += 1
    while start < end and (text[end - 1].isspace() or text[end - 1] in also):
        end -= 1
    return (start, end) if start < end else None


def _after(marker: re.Pattern[str], by: str, text: str, also: str = "") -> Found | None:
    matches = list(marker.finditer(text))
    return _line(text, matches[-1].end(), matches[-1].start(), by, also) if matches else None


def _line(text: str, start: int, marker: int, by: str, also: str = "") -> Found | None:
    """What stands from `start` to the end of the line, if anything."""
    line = (text[start:].splitlines() or [""])[0]
    span = strip(text, start, start + len(line), also)
    return Found(span, marker, by) if span else None


def _after_think(text: str) -> Found | None:
    start = text.rfind("</think>")
    span = strip(text, start + len("</think>"), len(text)) if start >= 0 else None
    return Found(span, start, "after </think>") if span else None


def _boxes(text: str) -> list[Found]:
    """All \\boxed{...} with balanced braces and some content, by where they start."""
    found: list[Found] = []
    open_braces: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        mark = brace.group()
        if mark == "{" or len(mark) > 2:
            open_braces.append(brace)
        elif mark == "}" and open_braces:
            opened = open_braces.pop()
            if opened.group() != "{" and (span := strip(text, opened.end(), brace.start())):
                found.append(Found(span, opened.start(), "boxed"))
    return sorted(found, key=lambda box: box.start)


def _column(text: str, gold: str | None) -> Found | None:
    """The last occurrence of `gold` that is not part of a longer word or number.

    Searched from the back in the reversed text, since str.find is linear and str.rfind is not. An occurrence that
    overlaps a rejected one is seen for short texts only: for long ones the time would be quadratic.
    """
    backward, wanted = text[::-1], (gold or "").strip()[::-1]
    size = len(wanted)
    at = backward.find(wanted) if wanted else -1
    while at >= 0:
        end = len(text) - at
        if not _goes_on(text, end - size, end):
            return Found((end - size, end), end - size, "column")
        at = backward.find(wanted, at + (1 if size <= 64 else size))
    return None


def _goes_on(text: str, start: int, end: int) -> bool:
    before, first = text[max(start - 2, 0) : start], text[start]
    last, after = text[end - 1], text[end : end + 2]
    if (_in_word(before[-1:]) and _in_word(first)) or (_in_word(last) and _in_word(after[:1])):
        return True
    if first.isdigit() and before[-1:] in (".", ",") and before[:-1].isdigit():  # the 5 of 3.5
        return True
    if first.isdigit() and before[-1:] in ("-", "−") and (before[:-1] or " ") in " \t\n=($:*{[":  # of -5
        return True
    return last.isdigit() and after[:1] in (".", ",") and after[1:].isdigit()  # of 5.2


def _in_word(char: str) -> bool:
    if not char or _UNSPACED.match(char):
        return False
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"  # M: accents and vowel signs
