"""Where the steps and the answer of a reasoning trace are, as character spans of the completion.

The answer, in this order: the answer column's text when the trace holds it (last occurrence), the last \\boxed{...}
after </think>, the last \\boxed{...}, "#### x", "†Answer:", "Final answer:", the text after </think>.
The steps, when `split` is "auto": ready steps, numbered "Step k:" markers, GSM8K lines, the inside of
<think>...</think>, blank lines, lines, sentences. GRACE (arXiv 2605.13130) leaves both open: these rules are our
reconstruction. Every rule is linear in the length of the trace, also on hostile input.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NamedTuple

from hf_curate.errors import CurateError, RowError

Span = tuple[int, int]  # character span in the completion, end exclusive
Splitter = str | re.Pattern[str] | Callable[[str], Sequence[str] | Sequence[Span]]


@dataclass(frozen=True)
class Spans:
    """Character spans in one completion: ordered, disjoint, not empty, without whitespace at their ends.

    Attributes:
        steps: One span per step, at least one; none overlaps the answer or its marker.
        answer: The answer's text alone, without marker and closing brace.
        splitter: What found the steps: a name of `SPLITTERS`, "steps" (ready steps), "regex" or "callable".
        answer_by: "column", "boxed", "####", "†Answer:", "Final answer:" or "after </think>".
    """

    steps: tuple[Span, ...]
    answer: Span
    splitter: str
    answer_by: str


def check_splitter(split: Any) -> None:
    """Raise `CurateError` unless `split` is "auto", a name of `SPLITTERS`, a regex for text, or a callable."""
    names = ", ".join(["auto", *SPLITTERS])
    if isinstance(split, re.Pattern):
        if not isinstance(split.pattern, str):
            raise CurateError(
                f"the splitter {split.pattern!r} is a regex for bytes, expected one for text: drop the b"
            )
    elif isinstance(split, str):
        # A name with a typo is a valid regex that matches nothing: the whole trace would be one step.
        if split not in names.split(", ") and (near := get_close_matches(split, ["auto", *SPLITTERS], 1, 0.7)):
            raise CurateError(
                f"the splitter {split!r} is not one of {names}. Did you mean {near[0]!r}? "
                f"If it is a regex, pass re.compile({split!r})."
            )
        try:
            re.compile(split)
        except re.error as error:
            raise CurateError(
                f"the splitter {split!r} is not one of {names}, and as a regex it does not compile: {error}"
            ) from error
    elif not callable(split):
        raise CurateError(
            f"a splitter cannot be {type(split).__name__} {split!r}: pass one of {names}, a regex of what stands "
            f"between two steps, or a callable that takes the completion and returns texts or spans"
        )


def find_answer(completion: str, gold: str | None = None) -> tuple[Span, int, str]:
    """The span of the answer's text, where its marker starts (at the latest where the text does), and what found it.

    Raises:
        RowError: "no answer".
    """
    marked = [found for rule in (_after_hashes, _after_dagger, _after_final) if (found := rule(completion))]
    boxes = _boxes(completion)
    think_end = completion.rfind("</think>")
    gold_at = _find_whole(completion, gold.strip()) if gold and gold.strip() else None
    if gold_at is not None:
        found = _Found(gold_at, gold_at[0], "column")
    elif boxes or marked:
        # The last box of all is the one after </think>, if any is.
        found = boxes[-1] if boxes else marked[0]
    elif think_end >= 0 and (rest := _strip(completion, think_end + len("</think>"), len(completion))):
        found = _Found(rest, think_end, "after </think>")
    else:
        raise RowError(
            "no answer",
            "no answer column text, \\boxed{}, '####', '†Answer:', 'Final answer:' or text after </think> found; "
            "pass answer=COLUMN",
        )
    # "#### 72" found by the column's text, or a box in a line "Final answer: ...": the marker goes with the answer.
    around = [other.start for other in (*boxes, *marked) if other.span[0] <= found.span[0] < other.span[1]]
    return found.span, min([found.start, *around]), found.by


def find_spans(
    completion: str,
    *,
    gold: str | None = None,
    steps: Sequence[str] | None = None,
    split: Splitter = "auto",
    think_open: bool = False,
) -> Spans:
    """Find the steps and the answer of a trace.

    Steps end before the answer's marker, and those that begin at it or later are dropped.

    Args:
        completion: The trace.
        gold: The answer column's text.
        steps: Ready steps, which stand in the completion in this order; with "auto" they come before every rule.
        split: "auto", a name of `SPLITTERS`, a regex of what stands between two steps (as in `re.split`), or a
            callable from the completion to the steps' texts (in order) or spans.
        think_open: Whether the prompt ended with an opened <think>: then the text up to </think> is inside it.

    Raises:
        RowError: "no answer", "no step", "steps not found" or "splitter failed".
        CurateError: the splitter is unknown, or a callable returned something that is not texts or spans.
    """
    answer, marker, by = find_answer(completion, gold)
    if split == "auto":
        splitter, found = _auto(completion, steps, marker, think_open)
    elif isinstance(split, str) and split in SPLITTERS:
        raw = _think(completion, think_open) if split == "think" else SPLITTERS[split](completion)
        splitter, found = split, _before(completion, raw, marker, words=True)
    elif isinstance(split, str | re.Pattern):
        check_splitter(split)
        splitter, found = "regex", _before(completion, _between(re.finditer(split, completion), completion), marker)
    else:
        check_splitter(split)
        splitter, found = "callable", _before(completion, _called(split, completion), marker)
    if not found:
        raise RowError("no step", f"the splitter {splitter!r} found none before the answer at character {marker}")
    return Spans(tuple(found), answer, splitter, by)


# -- the answer -----------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    span: Span
    start: int  # of the marker
    by: str


# What str.splitlines breaks at.
_BREAK = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_LINE_END = re.compile(f"[{_BREAK}]|\\Z")
_DAGGER = re.compile(r"†[ \t]?answer[ \t]?[::]", re.IGNORECASE)
_FINAL = re.compile(r"\*{0,3}\bfinal[ \t]{1,4}answer[ \t]?\*{0,3}[ \t]?[::]\*{0,3}", re.IGNORECASE)
# In Markdown "#### " also begins a heading.
_HEADING = re.compile(r"[*_ \t]{0,8}(?:step[ \t]{1,4}\d|(?:final[ \t]{1,4})?answer[*_: \t]{0,8}$)", re.IGNORECASE)
_BRACE = re.compile(r"\\boxed[ \t]{0,8}\{|\\.|[{}]", re.DOTALL)
# Letters of scripts written without spaces (Thai, kana, Han) or with attached particles (Hangul) do not join a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")


def _line(text: str, start: int, marker: int, by: str, strip: str = "") -> _Found | None:
    """What stands from `start` to the end of the line, if anything."""
    end = _LINE_END.search(text, start)
    span = _strip(text, start, end.start() if end else len(text), strip)
    return _Found(span, marker, by) if span else None


def _after_hashes(text: str) -> _Found | None:
    """The last line if it begins with "#", else what follows the last "####"."""
    end = len(text.rstrip())
    start = max(text.rfind(mark, 0, end) for mark in _BREAK) + 1
    if not text.startswith("#", start):
        start = text.rfind("####")
        if start < 0:
            return None
        start = len(text[:start].rstrip("#"))
    content = start + len(text[start:]) - len(text[start:].lstrip("#"))
    found = _line(text, content, start, "####")
    return None if found is None or _HEADING.match(text[slice(*found.span)][:80]) else found


def _after_dagger(text: str) -> _Found | None:
    last = _last(_DAGGER.finditer(text))
    return _line(text, last.end(), last.start(), "†Answer:") if last else None


def _after_final(text: str) -> _Found | None:
    last = _last(_FINAL.finditer(text))
    return _line(text, last.end(), last.start(), "Final answer:", "*") if last else None


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    last = None
    for last in matches:  # noqa: B007
        pass
    return last


def _boxes(text: str) -> list[_Found]:
    """All \\boxed{...} with balanced braces and some content, by where they start."""
    if "\\boxed" not in text:
        return []
    found: list[_Found] = []
    open_braces: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        mark = brace.group()
        if mark[-1] == "{" and mark != "\\{":
            open_braces.append(brace)
        elif mark == "}" and open_braces:
            opened = open_braces.pop()
            if len(opened.group()) > 1 and (span := _strip(text, opened.end(), brace.start())):
                found.append(_Found(span, opened.start(), "boxed"))
    return sorted(found, key=lambda box: box.start)


def _find_whole(text: str, gold: str) -> Span | None:
    """The last occurrence of `gold` that is not part of a longer word or number.

    Searched from the back in the reversed text, since str.find is linear and str.rfind is not. An occurrence that
    overlaps a rejected one is seen for short texts only: for long ones the time would be quadratic.
    """
    backward, wanted = text[::-1], gold[::-1]
    hop = 1 if len(gold) <= 64 else len(gold)
    at = backward.find(wanted)
    while at >= 0:
        start, end = len(text) - at - len(gold), len(text) - at
        if not _goes_on(text, start, end):
            return start, end
        at = backward.find(wanted, at + hop)
    return None


def _goes_on(text: str, start: int, end: int) -> bool:
    before, first = text[max(start - 2, 0) : start], text[start]
    last, after = text[end - 1], text[end : end + 2]
    if _joined(before[-1:], first) or _joined(last, after[:1]):
        return True
    if first.isdigit() and before[-1:] in (".", ",") and before[:-1].isdigit():  # the 5 of 3.5
        return True
    if first.isdigit() and before[-1:] in ("-", "−") and (not before[:-1] or before[0] in " \t\n=($:*{["):  # of -5
        return True
    return last.isdigit() and after[:1] in (".", ",") and after[1:].isdigit()  # of 5.2


def _joined(left: str, right: str) -> bool:
    return _in_word(left) and _in_word(right)


def _in_word(char: str) -> bool:
    if not char or _UNSPACED.match(char):
        return False
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"  # M: accents and vowel signs


# -- the steps ------------------------------------------------------------------------------------------------------

_STEP = re.compile(
    f"(?<![^{_BREAK}])"  # at the start of a line
    r"[ \t]{0,8}[#>*_ \t-]{0,8}step[ \t]{1,4}\d{1,4}[*_ \t]{0,8}"
    f"(?:[:.)\uff1a\u2013\u2014-]|(?=[{_BREAK}]|\\Z))",
    re.IGNORECASE,
)
_INLINE_STEP = re.compile(r"\bStep[ \t]{1,4}(\d{1,4}):")
_SENTENCE_END = re.compile("[.!?…؟۔][\"'”’)\\]*]{0,4}(?=\\s)|[。！？](?![。！？])[”’」』）]{0,4}")
_NO_SENTENCE_END = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|etc|vs|cf|approx|Dr|Mr|Mrs|Ms|Prof|Fig|Eq)$")


def _numbered(text: str) -> list[Span]:
    """Each step runs from its "Step k:" to the next one, or to a </think>."""
    starts = [match.start() for match in _STEP.finditer(text)]
    if len(starts) < 2:
        inline = list(_INLINE_STEP.finditer(text))
        # Within a line "Step 2:" may also be a reference: only an unbroken count from 1 is taken for steps.
        if len(inline) > 1 and [int(match[1]) for match in inline] == list(range(1, len(inline) + 1)):
            starts = [match.start() for match in inline]
    spans = []
    for start, end in pairwise([*starts, len(text)]):
        close = text.find("</think>", start, end)
        spans.append((start, end if close < 0 else close))
    return spans


def _gsm8k(text: str) -> list[Span]:
    found = _after_hashes(text)
    return _lines(text[: found.start]) if found else []


def _think(text: str, think_open: bool = False) -> list[Span]:
    blocks: list[Span] = []
    close = text.find("</think>")
    if think_open and close >= 0 and not 0 <= text.find("<think>") < close:
        blocks.append((0, close))
    at = text.find("<think>", max(close, 0) if blocks else 0)
    while at >= 0:
        close = text.find("</think>", at)
        if close < 0:
            break
        blocks.append((at + len("<think>"), close))
        at = text.find("<think>", close)
    spans: list[Span] = []
    for rule in (_blank_lines, _lines, _sentences):
        spans = [(start + a, start + b) for start, end in blocks for a, b in rule(text[start:end])]
        if len(_before(text, spans, len(text), words=True)) > 1:
            break
    return spans


def _lines(text: str) -> list[Span]:
    spans, at = [], 0
    for line in text.splitlines(keepends=True):
        if not line.isspace():
            spans.append((at, at + len(line)))
        at += len(line)
    return spans


def _blank_lines(text: str) -> list[Span]:
    spans: list[Span] = []
    for start, end in _lines(text):
        if spans and spans[-1][1] == start:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return spans


def _sentences(text: str) -> list[Span]:
    """Sentences end at . ! ? and their like before whitespace, and at blank lines; not after "1." or "e.g."."""
    spans = []
    for start, end in _blank_lines(text):
        for match in _SENTENCE_END.finditer(text, start, end):
            tail = text[max(start, match.start() - 8) : match.start()]
            enumerator = match.start() - start <= 8 and tail.strip().isalnum() and len(tail.strip()) <= 2
            if not (match.group()[0] == "." and (enumerator or _NO_SENTENCE_END.search(tail))):
                spans.append((start, match.end()))
                start = match.end()
        spans.append((start, end))
    return spans


SPLITTERS: dict[str, Callable[[str], list[Span]]] = {
    "numbered": _numbered,
    "gsm8k": _gsm8k,
    "think": _think,
    "blank_lines": _blank_lines,
    "lines": _lines,
    "sentences": _sentences,
}
_AT_LEAST = {"numbered": 2, "blank_lines": 2, "lines": 2}


def _auto(text: str, ready: Sequence[str] | None, marker: int, think_open: bool) -> tuple[str, list[Span]]:
    if ready:
        return "steps", _before(text, _locate(text, ready, "the steps column"), marker)
    hashes = _after_hashes(text)
    for name, rule in SPLITTERS.items():
        # Without this a Markdown heading "#### ..." would make GSM8K lines of a trace whose answer is boxed.
        if name == "gsm8k" and (hashes is None or hashes.start != marker):
            continue
        raw = _think(text, think_open) if name == "think" else rule(text)
        found = _before(text, raw, marker, words=True)
        if len(found) >= _AT_LEAST.get(name, 1):
            return name, found
    return "auto", []


def _before(text: str, spans: Iterable[Span], marker: int, *, words: bool = False) -> list[Span]:
    """The spans cut at the answer's marker and stripped; with `words`, only those that hold a letter or a digit."""
    found = []
    for start, end in spans:
        span = _strip_tags(text, start, min(end, marker)) if words else _strip(text, start, min(end, marker))
        if span and (not words or any(map(str.isalnum, text[slice(*span)]))):
            found.append(span)
    return found


def _strip(text: str, start: int, end: int, also: str = "") -> Span | None:
    while start < end and (text[start].isspace() or text[start] in also):
        start += 1
    while start < end and (text[end - 1].isspace() or text[end - 1] in also):
        end -= 1
    return (start, end) if start < end else None


def _strip_tags(text: str, start: int, end: int) -> Span | None:
    """Without whitespace and <think> tags at the ends: a line that is only a tag is no step."""
    while span := _strip(text, start, end):
        start, end = span
        if tag := next((tag for tag in ("<think>", "</think>") if text.startswith(tag, start, end)), None):
            start += len(tag)
        elif tag := next((tag for tag in ("<think>", "</think>") if text.endswith(tag, start, end)), None):
            end -= len(tag)
        else:
            break
    return span


def _between(separators: Iterator[re.Match[str]], text: str) -> Iterator[Span]:
    at = 0
    for match in separators:
        yield at, match.start()
        at = match.end()
    yield at, len(text)


def _locate(text: str, items: Sequence[str], whose: str) -> list[Span]:
    """Find the items in order, exactly or, from the first that is not found so, without whitespace at their ends."""
    spans, at, exact = [], 0, True
    for number, item in enumerate(items, 1):
        wanted = item.strip()
        if not wanted:
            continue
        start = text.find(item, at) if exact else -1
        if start >= 0:
            wanted = item
        else:
            exact = False  # for good: to search twice for each of many items could take quadratic time
            start = text.find(wanted, at)
        if start < 0:
            shown = repr(wanted[:40] + "…" * (len(wanted) > 40))
            raise RowError("steps not found", f"step {number} of {whose}, {shown}, is not in the text from {at} on")
        at = start + len(wanted)
        spans.append((start, at))
    return spans


def _called(split: Callable[[str], Any], text: str) -> list[Span]:
    name = getattr(split, "__name__", type(split).__name__)
    try:
        result = split(text)
        items = list(result)
    except Exception as error:  # the caller's own code may raise anything; it costs this row only
        raise RowError("splitter failed", f"{type(error).__name__}: {error}") from error
    if not isinstance(result, str | bytes) and all(isinstance(item, str) for item in items):
        return _locate(text, items, f"the splitter {name}")
    spans, at = [], 0
    for item in items:
        try:
            start, end = map(operator.index, item)
        except (TypeError, ValueError) as error:
            raise CurateError(
                f"the splitter {name} returned {type(result).__name__} with {item!r:.60}, expected a list of texts, "
                f"or one of (start, end) pairs"
            ) from error
        if not at <= start <= end <= len(text):
            raise CurateError(
                f"the splitter {name} returned the span ({start}, {end}) after {at}, in a text of {len(text)} "
                f"characters: spans must be in order, apart, and inside the text"
            )
        spans.append((start, end))
        at = end
    return spans
