"""What a command says is in the words of who typed it."""

from __future__ import annotations

import argparse

import pytest

from hf_curate.rollouts import command
from hf_curate.spelling import as_typed

PARSER = argparse.ArgumentParser()
PARSER.add_argument("source")
PARSER.add_argument("--out")
PARSER.add_argument("--overwrite", action="store_true")
PARSER.add_argument("--private", action=argparse.BooleanOptionalAction)
PARSER.add_argument("--shard-rows", type=int)
command.add_options(PARSER)


def said(message: str, *typed: str, source: str = "rows.jsonl") -> str:
    return as_typed(message, PARSER, PARSER.parse_args([source, "--verifier", "exact", *typed]))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("top_p=2.0 must be at most 1.", "--top-p 2.0 must be at most 1."),
        ("give out=, or drop it.", "give --out, or drop it."),
        ("out= takes a folder", "--out takes a folder"),
        ("overwrite=True (--overwrite).", "--overwrite."),
        ("pass private=True, or private=False.", "pass --private, or private=False."),
        ("leave shard_rows= away", "leave --shard-rows away"),
        ("prompt='the text' is not a column", "--prompt 'the text' is not a column"),
        ("Did you mean gold='answer'?", "Did you mean --verifier-option gold=answer?"),
        ("numbers='maybe' is neither", "--verifier-option numbers=maybe is neither"),
        ("call score(dataset, out='x') or f(g(n=3), seed=1) again", None),
        ("a column named x.n=3, or temper=2, or `n=3`", None),
        ("source= is no option", None),
        ("seed=(1, 2) is no number", None),
        ("give out=", "give --out"),
        ("2 + n == 3", None),
    ],
)
def test_arguments_become_options_but_for_those_of_calls(message: str, words: str | None) -> None:
    assert said(message) == (message if words is None else words)


def test_an_option_of_command_and_verifier_is_that_which_was_typed() -> None:
    assert "timeout" in PARSER.parse_args(["x", "--verifier", "math"])
    for typed, words in (
        (["--timeout", "-1"], "--timeout -1"),
        (
            ["--verifier-option", "timeout=-1"],
            "--verifier-option timeout=-1",
        ),
    ):
        arguments = PARSER.parse_args(["x", "--verifier", "math", *typed])
        assert as_typed("timeout=-1 is too short", PARSER, arguments) == f"{words} is too short"


def test_a_folder_is_named_by_the_path_that_was_typed() -> None:
    message = "the folder 'mine' holds a run, and 'other' none"
    assert said(message, "--out", "runs/mine") == "the folder 'runs/mine' holds a run, and 'other' none"
    assert said(message, "--out", "mine") == message
    assert said(message, "--out", "a/mine", source="b/mine") == message, "it is not known which"
    assert said(message, "--server", "http://host/mine") == message


def test_where_no_verifier_is_named_there_are_no_options_of_one() -> None:
    plain = argparse.ArgumentParser()
    plain.add_argument("--seed", type=int)
    arguments = plain.parse_args(["--seed", "-1"])
    assert as_typed("seed=-1, gold='a'", plain, arguments) == "--seed -1, gold='a'"
