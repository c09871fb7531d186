"""The small verifiers: an answer that is equal to the gold one, and a letter that is chosen."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from hf_curate.answers import find_answer
from hf_curate.errors import CurateError, RowError
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Checker, Row, Verdict, flag, read_gold, shown, verdict

_NUMBER = re.compile(r"([+\-−]?)\$?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]+))?")


class Exact(Checker):
    """The completion's answer is the gold answer, as text or as a plain decimal number.

    Parameters:
        gold: the column of the gold answer; its text after the last "####" counts.
        ignore_case: whether texts are compared without regard to case.
        numbers: whether two plain decimal numbers compare as numbers: "1,000", "$1000" and "1000.0." are equal. "$"
            (also "\\$") at the ends, commas between thousands, a trailing "." and needless zeros do not count;
            "1e3", "1/2", "50%" and "12 km" are texts.
        pattern: a regular expression with one group, whose last match is the answer; by default the last
            \\boxed{...}, else what follows "####", "†Answer:", "Final answer:" or </think>.
    """

    name = "exact"
    version = "1"
    failure_surface = (
        "calls an equal answer in another form wrong (1/2 and 0.5, 12 km and 12, Paris and Paris.), and cannot parse "
        "a right answer without one of the marks it looks for"
    )

    def __init__(
        self, gold: str = "answer", ignore_case: bool = False, numbers: bool = True, pattern: str | None = None
    ) -> None:
        chosen = {"ignore_case": flag("ignore_case", ignore_case), "numbers": flag("numbers", numbers)}
        super().__init__({"gold": gold}, chosen | {"pattern": pattern})
        self._pattern = None if pattern is None else _one_group(pattern)

    def check(self, completion: str, row: Row) -> Verdict:
        gold = read_gold(row, self.roles["gold"])
        found = self._found(completion)
        if not found:
            where = r"\boxed{}, '####', '†Answer:', 'Final answer:' or text after </think>"
            return verdict(UNPARSED, f"no {where if self._pattern is None else 'match of the pattern'}")
        return verdict(RIGHT if self._same(found, gold) else WRONG, found)

    def _found(self, completion: str) -> str:
        """The answer's text, "" if there is none."""
        if self._pattern is None:
            try:
                return completion[slice(*find_answer(completion)[0])]
            except RowError:
                return ""
        last = deque(self._pattern.finditer(completion), maxlen=1)
        return (last[0][1] or "").strip() if last else ""

    def _same(self, found: str, gold: str) -> bool:
        if self.options["numbers"] and (number := plain_number(gold)) is not None:
            return number == plain_number(found)
        return found.casefold() == gold.casefold() if self.options["ignore_case"] else found == gold


def plain_number(text: str) -> str | None:
    """A plain decimal number without what does not change it, such as "-1000.5"; None for any other text."""
    bare = text.strip().removesuffix(".").replace("\\$", "$").strip("$").strip()
    match = _NUMBER.fullmatch(bare)
    if match is None or not (match[2] or match[3]):
        return None
    whole, part = match[2].replace(",", "").lstrip("0"), (match[3] or "").rstrip("0")
    sign = "-" if match[1] in tuple("-−") and (whole or part) else ""
    return f"{sign}{whole or '0'}{'.' if part else ''}{part}"


def _one_group(pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise CurateError(f"pattern={pattern!r} is of type {type(pattern).__name__}, expected text.")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CurateError(f"pattern={pattern!r} is no regular expression: {error}.") from error
    if compiled.groups != 1:
        raise CurateError(f"pattern={pattern!r} has {compiled.groups} groups, expected 1: the answer.")
    return compiled


class Choice(Checker):
    """The letter that the completion chooses is the gold one.

    Of the last \\boxed{...}, the last "Answer: ..." (or "answer is X") and a last line that is a letter alone, the one
    that stands last counts; where there is none of these, the last line with a letter in parentheses. What is
    found must hold one of the letters, and no other.

    Parameters:
        gold: the column of the gold letter; its text after the last "####" counts.
        choices: the letters, each a character.
    """

    name = "choice"
    version = "1"
    failure_surface = (
        "takes a capital letter of the choices that stands alone for one ('Answer: A dog'), cannot parse an answer "
        "that names an option by its text or in lower case, or speaks of a second option in the same line"
    )

    def __init__(self, gold: str = "answer", choices: str = "ABCDE") -> None:
        if not isinstance(choices, str) or len(set(choices)) != len(choices) or not choices.isalnum():
            raise CurateError(f"choices={choices!r} are not letters, each once: give a text such as 'ABCD'.")
        super().__init__({"gold": gold}, {"choices": choices})
        one = f"(?-i:[{choices}])"
        self._letter = re.compile(rf"(?<![\w']){one}(?![\w'])")
        asked = rf"\banswer(?:[ \t*]{{0,8}}:|[ \t]is\b(?=[ \t:*(]{{1,8}}{one}\b))(.*)"
        self._answer = re.compile(asked, re.IGNORECASE)
        self._alone = re.compile(rf"[ \t*_(\[]*{one}[ \t*_)\].:]*")
        self._bracketed = re.compile(rf"\({one}\)")

    def check(self, completion: str, row: Row) -> Verdict:
        gold = read_gold(row, self.roles["gold"]).strip("().:* ")
        choices = self.options["choices"]
        if len(gold) != 1 or gold not in choices:
            detail = f"column {self.roles['gold']!r} holds {shown(repr(gold))}, expected one of {', '.join(choices)}"
            raise RowError("gold unreadable", detail)
        text = self._marked(completion)
        if text is None:
            return verdict(UNPARSED, r"no \boxed{}, 'Answer:', last line or parentheses with a letter")
        found = sorted({match[0] for match in self._letter.finditer(text)})
        if len(found) != 1:
            return verdict(UNPARSED, f"{' and '.join(found) if found else 'no letter'} in {shown(repr(text.strip()))}")
        return verdict(RIGHT if found[0] == gold else WRONG, found[0])

    def _marked(self, completion: str) -> str | None:
        """The text that names the choice."""
        shortened = completion.rstrip()
        start = shortened.rfind("\n") + 1
        found = [(start, shortened[start:])] if self._alone.fullmatch(shortened, start) else []
        found += [(m.start(), m[1]) for m in self._answer.finditer(completion) if m[1].strip(" \t*_")]
        try:
            span, _, by = find_answer(completion)
            found += [(span[0], completion[slice(*span)])] if by == "boxed" else []
        except RowError:
            pass
        if found:
            return max(found)[1]
        lines = [line for line in completion.splitlines() if "(" in line and self._bracketed.search(line)]
        return " ".join(match[0] for match in self._bracketed.finditer(lines[-1])) if lines else None
