"""Spans: which parts of a trace are steps, and what holds for every text."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import gsm8k_rows, needs_gsm8k

from hf_curate.answers import find_answer
from hf_curate.errors import CurateError, RowError
from hf_curate.rows import detect_columns, read_trace
from hf_curate.steps import SPLITTERS, Spans, check_splitter, find_spans

TEA = "Mara sold 48/2 = <<48/2=24>>24 cups in May.\nShe sold 48+24 = <<48+24=72>>72 cups.\n#### 72"
R1 = (
    "<think>\nOkay, half of 48 is 24.\n\nSo 48 + 24 = 72. Maybe \\boxed{70}?\n\nNo, 72.\n</think>\n\n"
    "She sold $\\boxed{72}$ cups."
)
NUMBERED = "Let me think.\n**Step 1:** Halve 48,\nwhich is 24.\n### Step 2. Add.\nStep 3) Check.\nFinal answer: 72"


def steps_of(text: str, **options: Any) -> list[str]:
    return [text[start:end] for start, end in find_spans(text, **options).steps]


def error_of(text: str, **options: Any) -> str:
    with pytest.raises(RowError) as caught:
        find_spans(text, **options)
    return str(caught.value)


def spans_if_any(text: str, **options: Any) -> Spans | None:
    try:
        return find_spans(text, **options)
    except RowError as error:
        if error.kind not in ("no answer", "no step"):
            raise
        return None


# -- the steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "splitter", "steps"),
    [
        (TEA, "gsm8k", TEA.split("\n")[:2]),
        (TEA.replace("\n", "\r\n"), "gsm8k", TEA.split("\n")[:2]),
        ("48/2=24 #### 24", "gsm8k", ["48/2=24"]),
        ("90 / 2 = 45\n\n45 + 50 = 95\n#95", "gsm8k", ["90 / 2 = 45", "45 + 50 = 95"]),
        (R1, "think", ["Okay, half of 48 is 24.", "So 48 + 24 = 72. Maybe \\boxed{70}?", "No, 72."]),
        ("<think>a\nb</think>\\boxed{1}", "think", ["a", "b"]),
        ("<think>Add 2. Then 3.</think>\\boxed{5}", "think", ["Add 2.", "Then 3."]),
        ("<think>a</think>b<think>c</think>\\boxed{1}", "think", ["a", "c"]),
        (
            NUMBERED,
            "numbered",
            ["**Step 1:** Halve 48,\nwhich is 24.", "### Step 2. Add.", "Step 3) Check."],
        ),
        ("**Step 1**\nx\n\n**Step 2**\ny\n\\boxed{2}", "numbered", ["**Step 1**\nx", "**Step 2**\ny"]),
        ("Step 1: a b Step 2: c \\boxed{2}", "numbered", ["Step 1: a b", "Step 2: c"]),
        ("<think>\nStep 1: a\nStep 2: b\n</think>\nSo c. \\boxed{2}", "numbered", ["Step 1: a", "Step 2: b"]),
        ("As Step 2: says, a.\nAs Step 1: says, b.\n\\boxed{2}", "lines", None),
        ("First\nhalf.\n\nThen all.\n\nSo $\\boxed{2}$", "blank_lines", ["First\nhalf.", "Then all.", "So $"]),
        ("a\n \t\nb\u2028\u2028c\n†Answer: 1", "blank_lines", ["a", "b", "c"]),
        ("a = 1\nb = 2\n\n\\boxed{3}", "lines", ["a = 1", "b = 2"]),
        ("أولا نجمع\nثم نضرب\n†Answer: ٤٢", "lines", ["أولا نجمع", "ثم نضرب"]),
        (
            "We add 1.5 and 2, i.e. 3.5. Then stop! \\boxed{3.5}",
            "sentences",
            ["We add 1.5 and 2, i.e. 3.5.", "Then stop!"],
        ),
        ("先算24。再加48。\\boxed{72}", "sentences", ["先算24。", "再加48。"]),
        ("هل نجمع؟ نعم. \\boxed{72}", "sentences", ["هل نجمع؟", "نعم."]),
        ("1. Add. 2. Stop. \\boxed{1}", "sentences", ["1. Add.", "2. Stop."]),
        ("only one \\boxed{1}", "sentences", ["only one"]),
        ("#### Heading\n\nReason.\n\nMore.\n\n\\boxed{1}", "blank_lines", ["#### Heading", "Reason.", "More."]),
        ("---\na\n**\nb\n$$\n\\boxed{1}", "lines", ["a", "b"]),
    ],
)
def test_auto_takes_the_first_rule_that_applies(text: str, splitter: str, steps: list[str] | None):
    spans = find_spans(text)
    assert spans.splitter == splitter
    if steps is not None:
        assert [text[slice(*span)] for span in spans.steps] == steps


def test_numbered_markers_come_before_gsm8k_lines_and_think():
    text = "<think>\nhm\n\nhm\n</think>\nStep 1: a\nStep 2: b\n#### 7"
    assert find_spans(text).splitter == "numbered"


def test_a_think_tag_that_the_template_opened_counts_as_opened():
    text = "Half is 24.\n\nSum is 72.\n</think>\n\nSo it is 72 cups."
    assert find_spans(text, think_open=True).splitter == "think"
    assert steps_of(text, think_open=True) == ["Half is 24.", "Sum is 72."]
    assert find_spans(text).splitter == "blank_lines"
    assert find_spans("<think>\n" + text, think_open=True).splitter == "think"
    assert steps_of("<think>\n" + text, think_open=True) == ["Half is 24.", "Sum is 72."]
    assert steps_of("a\n\nb</think>c</think>\\boxed{1}", think_open=True) == ["a", "b"]


def test_steps_end_before_the_answer_and_none_begins_behind_it():
    assert steps_of("We add.\nSo 72 it is.\nIndeed.", gold="72") == ["We add.", "So"]


def test_steps_behind_a_gold_text_that_an_earlier_step_holds_are_dropped():
    spans = find_spans("48/2=24\n24+48=72\n72-1=71\n#### 71", gold="24")
    assert (spans.steps, spans.answer, spans.answer_by, spans.splitter) == (((0, 7),), (8, 10), "column", "sentences")


def test_nothing_before_the_answer_is_an_error():
    assert error_of("\\boxed{1}\nbecause\nof this") == (
        "no step: the splitter 'auto' found none before the answer at character 0"
    )


def test_think_steps_stay_whole_when_the_answer_is_behind_them():
    assert find_spans(R1, gold="72").splitter == "think"
    assert steps_of(R1, gold="72") == steps_of(R1)


# -- ready steps, named splitters, regexes, callables ---------------------------------------------------------------


def test_ready_steps_are_located_in_order():
    text = "a b\na b\nc\n#### 1"
    spans = find_spans(text, steps=["a b", "", " a b ", "c\n#### 1"])
    assert (spans.steps, spans.splitter) == (((0, 3), (4, 7), (8, 9)), "steps")


def test_ready_steps_that_are_not_in_the_trace_are_an_error():
    assert error_of(TEA, steps=["Mara sold", "Nora bought"]) == (
        "steps not found: step 2 of the steps column, 'Nora bought', is not in the text from 9 on"
    )


def test_a_named_splitter_stands_alone():
    assert steps_of(TEA, split="lines") == TEA.split("\n")[:2]
    assert steps_of("one line \\boxed{1}", split="blank_lines") == ["one line"]
    assert find_spans(TEA, steps=["Mara"], split="sentences").splitter == "sentences"
    assert error_of(TEA, split="numbered") == (
        "no step: the splitter 'numbered' found none before the answer at character 82"
    )
    assert error_of(TEA, split="think").startswith("no step")


@pytest.mark.parametrize("split", [r"\s*;\s*", re.compile(r"\s*;\s*"), r"(;)"])
def test_a_regex_is_what_stands_between_two_steps(split: str | re.Pattern[str]):
    text = "; a ;b; \\boxed{1}"
    assert steps_of(text, split=split) == ["a", "b"]
    assert find_spans(text, split=split).splitter == "regex"


def test_a_regex_of_no_width_splits_too():
    assert steps_of("a 1 b 2 \\boxed{1}", split=r"(?=b)") == ["a 1", "b 2"]


def halves(text: str) -> Sequence[tuple[int, int]]:
    return [(0, 4), (4, 4), (5, len(text))]


def test_a_callable_returns_texts_or_spans():
    text = "ab cd ef \\boxed{1}"
    assert steps_of(text, split=str.split) == ["ab", "cd", "ef"]
    assert steps_of(text, split=halves) == ["ab c", "ef"]
    assert find_spans(text, split=halves).splitter == "callable"
    assert error_of(text, split=lambda text: []).startswith("no step")


@pytest.mark.parametrize(
    "returned", ["text", [(0, 99)], [(3, 5), (0, 2)], [(0, 3), (2, 5)], [(0.5, 1)], [(1, 2, 3)], ["a", (0, 1)]]
)
def test_a_callable_that_returns_something_else_costs_only_the_row_and_is_named(returned: Any):
    def by_hand(text: str) -> Any:
        return returned

    assert error_of("ab cd \\boxed{1}", split=by_hand).startswith("splitter failed: by_hand returned ")


def test_a_callable_that_fails_costs_only_the_row():
    def broken(text: str) -> list[str]:
        raise TypeError("no splitting today")

    assert error_of("a \\boxed{1}", split=broken) == "splitter failed: TypeError: no splitting today"


@pytest.mark.parametrize("split", ["auto", *SPLITTERS, r"\n+", re.compile("x"), str.split])
def test_known_splitters_pass_the_check(split: Any):
    check_splitter(split)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (7, "a splitter cannot be int 7"),
        (None, "a splitter cannot be NoneType None"),
        ("(", "as a regex it does not compile"),
        ("sentence", "Did you mean 'sentences'?"),
        ("blanklines", "Did you mean 'blank_lines'?"),
        (re.compile(b"x"), "a regex for bytes"),
    ],
)
def test_unknown_splitters_are_refused_with_what_there_is(split: Any, words: str):
    with pytest.raises(CurateError) as caught:
        check_splitter(split)
    assert words in str(caught.value)


# -- what holds for every text --------------------------------------------------------------------------------------

FRAGMENTS = [
    *(
        "Half of 48 is 24.",
        "So x = 3.5, i.e. 7/2!",
        "نجمع العددين",
        "因此答案是5。",
        "5",
        "e\u0301",
        "😀",
        "...",
        "$",
        "**",
    ),
    *(" ", "\t", "\n", "\n\n", "\r\n", "\u2028", "\x85", "<think>", "</think>", "Step 1:", "**Step 2**", "step 3)"),
    *("\\boxed{", "{", "}", "\\{", "\\boxed{\\frac{1}{2}}", "#", "####", "#### 72"),
    *("†Answer:", "**Final answer:**", "Final answer: 5"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)
splits = st.sampled_from(["auto", *SPLITTERS, r"\.\s*", str.split, str.splitlines])


@settings(max_examples=1000, deadline=None)
@given(texts, st.sampled_from([None, "5", "72", "\\frac{1}{2}", "العددين"]), splits, st.booleans())
def test_spans_are_ordered_apart_stripped_and_free_of_the_answer(text: str, gold: Any, split: Any, think_open: bool):
    spans = spans_if_any(text, gold=gold, split=split, think_open=think_open)
    if spans is None:
        return
    _, marker, _ = find_answer(text, gold)
    assert spans.steps
    assert marker <= spans.answer[0]
    bounds = [bound for span in (*spans.steps, spans.answer) for bound in span]
    assert bounds == sorted(bounds)
    assert 0 <= bounds[0] <= bounds[-1] <= len(text)
    assert spans.steps[-1][1] <= marker
    for start, end in (*spans.steps, spans.answer):
        assert start < end
        assert text[start:end] == text[start:end].strip()


@given(texts, st.lists(st.sampled_from(["a 1", "b\nc", "د", " d "]), min_size=1, max_size=5))
def test_ready_steps_that_are_there_are_found_with_any_text_between(between: str, steps: list[str]):
    text = f"\n{between}\n".join(steps) + "\n\\boxed{7}"
    assert len(find_spans(text, steps=steps, gold="7").steps) == len(steps)


HOSTILE = {
    "braces": "{" * 100_000,
    "open boxes": "\\boxed{" * 100_000,
    "line breaks": "\n" * 100_000,
    "spaced line breaks": "\n \t" * 70_000,
    "dots": "." * 200_000,
    "sentences": ". " * 100_000,
    "hashes": "#" * 200_000,
    "hash lines": "#### \n" * 40_000,
    "stars": "*" * 200_000,
    "digits": "5" * 200_000,
    "spaced digits": "5 " * 100_000,
    "open thinks": "<think>" * 30_000,
    "closed thinks": "</think>" * 25_000,
    "markers": "final answer:" * 15_000,
    "steps": "Step 1: " * 25_000,
    "a step far away": "Step" + " " * 200_000 + "1:",
    "a box far away": "\\boxed" + " " * 200_000,
    "backslashes": "\\" * 200_000,
    "ideographic stops": "好。" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("gold", [None, "5", "5" * 50_000], ids=["no gold", "short gold", "long gold"])
def test_hostile_texts_take_no_longer_than_their_length_allows(name: str, gold: str | None):
    text = HOSTILE[name] + "\n†Answer: 1\nend"
    started = time.process_time()
    spans_if_any(text, gold=gold, think_open=True)
    # About 0.4 s at most on a slow core; a quadratic rule takes minutes.
    assert time.process_time() - started < 3


def test_a_long_ordinary_trace_is_fast():
    text = "".join(f"So we add {n} and {n + 1}, and get {2 * n + 1}.\n\n" for n in range(6_000)) + "\\boxed{12000}"
    started = time.process_time()
    assert len(find_spans(text, gold="12000").steps) == 6_000
    assert time.process_time() - started < 1


# -- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@needs_gsm8k
@pytest.mark.parametrize(("split", "count", "long"), [("train", 7_473, 103), ("test", 1_319, 23)])
def test_every_gsm8k_row_has_its_lines_as_steps_and_the_text_after_the_hashes_as_answer(
    split: str, count: int, long: int
):
    rows = gsm8k_rows(split)
    columns = detect_columns(list(rows[0]), rows[0])
    lengths: Counter[int] = Counter()
    for row in rows:
        trace = read_trace(row, columns)
        spans = find_spans(trace.completion, gold=trace.gold, steps=trace.steps)
        lines, _, value = row["answer"].partition("####")
        assert trace.completion[slice(*spans.answer)] == value.strip()
        assert [trace.completion[slice(*step)] for step in spans.steps] == [
            line.strip() for line in lines.splitlines() if line.strip()
        ]
        assert (spans.splitter, spans.answer_by) == ("gsm8k", "####")
        assert find_spans(trace.completion, gold=value).steps == spans.steps
        lengths[len(spans.steps)] += 1
    assert lengths.total() == count
    # The authors of GRACE keep traces of at least 8 steps: 103 of GSM8K's training rows.
    assert sum(number for steps, number in lengths.items() if steps >= 8) == long
