"""The answer: which marker gives it, and how the answer column's text is found."""

from __future__ import annotations

import pytest

from hf_curate.answers import find_answer
from hf_curate.errors import RowError
from hf_curate.steps import find_spans

TEA = "Mara sold 48/2 = <<48/2=24>>24 cups in May.\nShe sold 48+24 = <<48+24=72>>72 cups.\n#### 72"
R1 = (
    "<think>\nOkay, half of 48 is 24.\n\nSo 48 + 24 = 72. Maybe \\boxed{70}?\n\nNo, 72.\n</think>\n\n"
    "She sold $\\boxed{72}$ cups."
)


def answer_of(text: str, gold: str | None = None) -> tuple[str, str, str]:
    """The answer, what found it, and the text from its marker on."""
    (start, end), marker, by = find_answer(text, gold)
    return text[start:end], by, text[marker:]


@pytest.mark.parametrize(
    ("text", "answer", "by", "marker"),
    [
        (TEA, "72", "####", "#### 72"),
        ("7 * 6\r\n#### 42\r\n", "42", "####", "#### 42"),
        ("90 + 5\n#95", "95", "####", "#95"),
        ("1 #### 2\nrest", "2", "####", "#### 2"),
        (R1, "72", "boxed", "\\boxed{72}"),
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}", "boxed", "\\boxed{\\frac{1}{2}}"),
        ("so \\boxed{ \\{1, 2\\} }", "\\{1, 2\\}", "boxed", "\\boxed{ \\{1, 2\\} }"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right.", "boxed", "\\boxed{"),
        ("\\boxed{1} then \\boxed{2} then \\boxed{3", "2", "boxed", "\\boxed{2}"),
        ("\\boxed{}\n#### 5", "5", "####", "#### 5"),
        ("<think>\\boxed{5}</think> done", "5", "boxed", "\\boxed{5}"),
        ("a\n†Answer: 7 apples \nb", "7 apples", "†Answer:", "†Answer: 7"),
        ("a\nfinal Answer: 3\nFinal answer: 7", "7", "Final answer:", "Final answer: 7"),
        ("a\n**Final answer:** 7", "7", "Final answer:", "**Final answer:** 7"),
        ("a\n**Final Answer: x^2**", "x^2", "Final answer:", "**Final Answer: x^2**"),
        ("a\n**Final answer:** $\\boxed{7}$", "7", "boxed", "**Final answer:**"),
        ("<think>a</think>\n\nIt is 7.\n", "It is 7.", "after </think>", "</think>"),
        ("#### Step 4: add\n†Answer: 7\nok", "7", "†Answer:", "†Answer: 7"),
        ("#### Final Answer\n\nso <think></think> 7", "7", "after </think>", "</think> 7"),
    ],
)
def test_each_marker_gives_the_answer_alone(text: str, answer: str, by: str, marker: str):
    found = answer_of(text)
    assert found[:2] == (answer, by)
    assert found[2].startswith(marker)


@pytest.mark.parametrize("text", ["", "no answer here", "####", "#### ", "\\boxed{}", "Final answer:", "x</think> \n"])
def test_a_trace_without_answer_says_what_was_looked_for(text: str):
    with pytest.raises(RowError) as caught:
        find_answer(text)
    assert str(caught.value) == (
        "no answer: no answer column text, \\boxed{}, '####', '†Answer:', 'Final answer:' or text after </think> "
        "found; pass answer=COLUMN"
    )


@pytest.mark.parametrize(
    ("text", "gold", "before"),
    [
        ("5 and 5 but not 15", "5", "5 and "),
        ("5, not 3.5 or 5.2 or 1,5 or 5,000", "5", ""),
        ("it is 5. Not -5.", "5", "it is "),
        ("10-5 is 5", "5", "10-5 is "),
        ("10 minus 5: 10-5", "5", "10 minus 5: 10-"),
        ("cat, not catalogue", "cat", ""),
        ("答案是5。", "5", "答案是"),
        ("答案是北京。", "北京", "答案是"),
        ("الناتج هو 42 وليس 142", "42", "الناتج هو "),
        ("x_5 = 5", "5", "x_5 = "),
        ("1 1 1 1", "1 1", "1 1 "),
        ("so (x+1)^2 holds", "(x+1)^2", "so "),
        ("line\r\n72\r\n", " 72 ", "line\r\n"),
    ],
)
def test_gold_text_is_found_last_and_as_a_whole_word(text: str, gold: str, before: str):
    span, marker, by = find_answer(text, gold)
    assert text[slice(*span)] == gold.strip()
    assert (text[: span[0]], marker, by) == (before, span[0], "column")


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        (TEA, "#### 72"),
        (R1, "\\boxed{72}"),
        ("a\n#### $72", "#### $72"),
        ("a\n#72", "#72"),
        ("a\nFinal answer: it is 72 cups", "Final answer: it"),
        ("a\n†Answer:72", "†Answer:72"),
    ],
)
def test_gold_text_behind_a_marker_takes_the_marker_along(text: str, marker: str):
    answer, by, rest = answer_of(text, "72")
    assert (answer, by) == ("72", "column")
    assert rest.startswith(marker)


def test_gold_text_that_is_not_there_leaves_it_to_the_markers():
    assert answer_of("so 1,234\n#### 1,234", "1234")[:2] == ("1,234", "####")
    assert answer_of("so 15\n#### 15", "5")[:2] == ("15", "####")
    assert answer_of("so 15\n#### 15", " ")[:2] == ("15", "####")


@pytest.mark.parametrize(
    ("ending", "by"),
    [
        ("So \\boxed{71}", "boxed"),
        ("#### 71", "####"),
        ("Final answer: 71", "Final answer:"),
        ("†Answer: 71", "†Answer:"),
        ("#71", "####"),
        ("</think>\n\n71", "after </think>"),
    ],
)
def test_gold_text_in_a_step_is_the_answer_also_when_the_trace_ends_with_another(ending: str, by: str):
    """A wrong trace is read up to the gold text: what follows, its own answer too, is in no span."""
    text = f"48/2=24\n24+48=72\n{ending}"
    assert answer_of(text)[:2] == ("71", by)  # without the column
    assert answer_of(text, "72") == ("72", "column", f"72\n{ending}")
    spans = find_spans(text, gold="72")
    assert [text[slice(*span)] for span in spans.steps] == ["48/2=24", "24+48="]
    assert (text[slice(*spans.answer)], spans.answer_by) == ("72", "column")


def test_gold_text_in_a_step_and_behind_the_marker_is_taken_from_behind_the_marker():
    assert answer_of("24+48=72\nso 72\n#### 72", "72") == ("72", "column", "#### 72")
