"""Where the steps of a reasoning trace are, as character spans of the completion; they end before the answer.

When `split` is "auto": ready steps, numbered "Step k:" markers, GSM8K lines, the inside of <think>...</think>, blank
lines, lines, sentences. GRACE (arXiv 2605.13130) leaves open what a step is: these rules are our reconstruction.
Every rule is linear in the length of the trace, also on hostile input.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, pairwise
from typing import Any

from hf_curate.answers import Span, after_hashes, find_answer, strip
from hf_curate.errors import CurateError, RowError

Splitter = str | re.Pattern[str] | Callable[[str], Sequence[str] | Sequence[Span]]


@dataclass(frozen=True)
class Spans:
    """Character spans in one completion: ordered, disjoint, not empty, without whitespace at their ends."""

    steps: tuple[Span, ...]  # at least one; none overlaps the answer or its marker
    answer: Span  # the answer's text alone, without marker and closing brace
    splitter: str  # what found the steps: a name of `SPLITTERS`, "steps" (ready steps), "regex" or "callable"
    answer_by: str  # "column", "boxed", "####", "†Answer:", "Final answer:" or "after </think>"


def check_splitter(split: Any) -> None:
    """Raise `CurateError` unless `split` is "auto", a name of `SPLITTERS`, a regex for text, or a callable."""
    names = ["auto", *SPLITTERS]
    listed = ", ".join(names)
    if isinstance(split, re.Pattern) and not isinstance(split.pattern, str):
        raise CurateError(f"the splitter {split.pattern!r} is a regex for bytes, expected one for text: drop the b")
    if not isinstance(split, str | re.Pattern) and not callable(split):
        raise CurateError(
            f"a splitter cannot be {type(split).__name__} {split!r}: pass one of {listed}, a regex of what stands "
            f"between two steps, or a callable that takes the completion and returns texts or spans"
        )
    if not isinstance(split, str) or split in names:
        return
    unknown = f"the splitter {split!r} is not one of {listed}"
    # A name with a typo is a valid regex that matches nothing: the whole trace would be one step.
    if near := get_close_matches(split, names, 1, 0.7):
        raise CurateError(f"{unknown}. Did you mean {near[0]!r}? If it is a regex, pass re.compile({split!r}).")
    try:
        re.compile(split)
    except re.error as error:
        raise CurateError(f"{unknown}, and as a regex it does not compile: {error}") from error


def find_spans(
    completion: str,
    *,
    gold: str | None = None,
    steps: Sequence[str] | None = None,
    split: Splitter = "auto",
    think_open: bool = False,
) -> Spans:
    """Find the steps and the answer of a trace. Steps end before the answer's marker; later ones are dropped.

    Args:
        steps: Ready steps, which stand in the completion in this order; with "auto" they come before every rule.
        split: "auto", a name of `SPLITTERS`, a regex of what stands between two steps (as in `re.split`), or a
            callable from the completion to the steps' texts (in order) or spans.
        think_open: Whether the prompt ended with an opened <think>: then the text up to </think> is inside it.

    RowError: "no answer", "no step", "steps not found" or "splitter failed" (a callable raised an exception, or
    returned something that is not texts or spans). CurateError: the splitter is unknown.
    """
    answer, marker, by = find_answer(completion, gold)
    if split == "auto":
        splitter, found = _auto(completion, steps, marker, think_open)
    elif isinstance(split, str) and split in SPLITTERS:
        splitter, found = split, _by_rule(split, completion, marker, think_open)
    else:
        check_splitter(split)
        splitter = "callable" if callable(split) else "regex"
        raw = _called(split, completion) if callable(split) else _between(split, completion)
        found = _before(completion, raw, marker)
    if not found:
        raise RowError("no step", f"the splitter {splitter!r} found none before the answer at character {marker}")
    return Spans(tuple(found), answer, splitter, by)


# -- the rules ------------------------------------------------------------------------------------------------------

_BREAK = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # what str.splitlines breaks at
_STEP = re.compile(
    f"(?<![^{_BREAK}])"  # at the start of a line
    r"[ \t]{0,8}[#>*_ \t-]{0,8}step[ \t]{1,4}\d{1,4}[*_ \t]{0,8}"
    f"(?:[:.)\uff1a\u2013\u2014-]|(?=[{_BREAK}]|\\Z))",
    re.IGNORECASE,
)
_INLINE_STEP = re.compile(r"\bStep[ \t]{1,4}(\d{1,4}):")
_SENTENCE_END = re.compile("[.!?…؟۔][\"'”’)\\]*]{0,4}(?=\\s)|[。！？](?![。！？])[”’」』）]{0,4}")
_NO_SENTENCE_END = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|etc|vs|cf|approx|Dr|Mr|Mrs|Ms|Prof|Fig|Eq)$")
_TAGS = ("<think>", "</think>")


def _numbered(text: str) -> list[Span]:
    """Each step runs from its "Step k:" to the next one, or to a </think>."""
    starts = [match.start() for match in _STEP.finditer(text)]
    if len(starts) < 2:
        inline = list(_INLINE_STEP.finditer(text))
        # Within a line "Step 2:" may also be a reference: only an unbroken count from 1 is taken for steps.
        if len(inline) > 1 and [int(match[1]) for match in inline] == list(range(1, len(inline) + 1)):
            starts = [match.start() for match in inline]
    return [(a, a + len(text[a:b].partition("</think>")[0])) for a, b in pairwise([*starts, len(text)])]


def _gsm8k(text: str) -> list[Span]:
    found = after_hashes(text)
    return _lines(text[: found.start]) if found else []


def _think(text: str, think_open: bool = False) -> list[Span]:
    """Paragraphs, else lines, else sentences of all that stands inside <think>...</think>."""
    blocks, at = [], 0
    for part in text.split("</think>")[:-1]:
        start, end = part.find("<think>"), at + len(part)
        if start >= 0:
            blocks.append((at + start + len("<think>"), end))
        elif think_open and at == 0:
            blocks.append((0, end))
        at = end + len("</think>")
    spans: list[Span] = []
    for rule in (_blank_lines, _lines, _sentences):
        spans = [(start + a, start + b) for start, end in blocks for a, b in rule(text[start:end])]
        if len(_before(text, spans, len(text), words=True)) > 1:
            break
    return spans


def _lines(text: str) -> list[Span]:
    bounds = accumulate(map(len, text.splitlines(keepends=True)), initial=0)
    return [(start, end) for start, end in pairwise(bounds) if not text[start:end].isspace()]


def _blank_lines(text: str) -> list[Span]:
    spans: list[Span] = []
    for start, end in _lines(text):
        if spans and spans[-1][1] == start:
            start, _ = spans.pop()
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


def _by_rule(name: str, text: str, marker: int, think_open: bool) -> list[Span]:
    raw = _think(text, think_open) if name == "think" else SPLITTERS[name](text)
    return _before(text, raw, marker, words=True)


def _auto(text: str, ready: Sequence[str] | None, marker: int, think_open: bool) -> tuple[str, list[Span]]:
    if ready:
        return "steps", _before(text, _locate(text, ready, "the steps column"), marker)
    hashes = after_hashes(text)
    for name in SPLITTERS:
        # Without this a Markdown heading "#### ..." would make GSM8K lines of a trace whose answer is boxed.
        if name == "gsm8k" and (hashes is None or hashes.start != marker):
            continue
        found = _by_rule(name, text, marker, think_open)
        if len(found) > (name in ("numbered", "blank_lines", "lines")):  # these need two
            return name, found
    return "auto", []


def _before(text: str, spans: Iterable[Span], marker: int, *, words: bool = False) -> list[Span]:
    """The spans cut at the answer's marker and stripped; with `words`, only those that hold a letter or a digit."""
    cut = _strip_tags if words else strip
    found = [span for start, end in spans if (span := cut(text, start, min(end, marker)))]
    return [span for span in found if not words or any(map(str.isalnum, text[slice(*span)]))]


def _strip_tags(text: str, start: int, end: int) -> Span | None:
    """Without whitespace and <think> tags at the ends: a line that is only a tag is no step."""
    while span := strip(text, start, end):
        start, end = span
        if text.startswith(_TAGS, start, end):
            start = text.index(">", start) + 1
        elif text.endswith(_TAGS, start, end):
            end = text.rindex("<", start, end)
        else:
            break
    return span


def _between(separator: str | re.Pattern[str], text: str) -> list[Span]:
    edges = [0, *(edge for match in re.finditer(separator, text) for edge in match.span()), len(text)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _locate(text: str, items: Sequence[str], whose: str) -> list[Span]:
    """Find the items in order, exactly or, from the first that is not found so, without whitespace at their ends."""
    spans, at, exact = [], 0, True
    for number, item in enumerate(items, 1):
        wanted = item.strip()
        if not wanted:
            continue
        start = text.find(item, at) if exact else -1
        exact = start >= 0  # False for good: to search twice for each of many items could take quadratic time
        if exact:
            wanted = item
        elif (start := text.find(wanted, at)) < 0:
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
            what = f"{name} returned {type(result).__name__} with {item!r:.60}, expected texts or (start, end) pairs"
            raise RowError("splitter failed", what) from error
        if not at <= start <= end <= len(text):
            what = f"{name} returned the span ({start}, {end}) after {at}, in a text of {len(text)} characters"
            raise RowError("splitter failed", f"{what}: spans must be in order, apart, and inside it")
        spans.append((start, end))
        at = end
    return spans
