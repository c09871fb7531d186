"""`hf-curate rollouts`: its options, and the `Rollouts` that they describe."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    from hf_curate.rollouts.rollouts import Rollouts
    from hf_curate.rollouts.verify import Verifier

HELP = """\
Sample responses to the problems of a dataset, verify them, and keep both in a folder that `hf-curate score` reads.

  hf-curate rollouts openai/gsm8k@main:main/train --model Qwen/Qwen3-0.6B --verifier math --n 16 \\
      --out runs/rolled
  hf-curate rollouts problems.jsonl --model ./my-policy --verifier exact --verifier-option gold=solution \\
      --server http://localhost:8000/v1 --server-model my-policy --token-ids --out runs/rolled
  hf-curate score runs/rolled --scorer learnalign --model ./my-policy --out runs/learnalign
"""
VERIFIERS_HELP = """\
verifiers, with their options:
  exact      the answer is the gold one, as text or plain number (gold, ignore_case, numbers, pattern)
  math       the answer is the gold one, as mathematics; needs hf_curate[math] (gold, timeout, workers)
  choice     the letter chosen is the gold one (gold, choices)
  countdown  an expression over given numbers reaches a target (numbers, target, use_all)
Reward functions of your own are for Python: score(dataset, Rollouts(model, function), out=...).
"""
SAMPLING = ("n", "temperature", "top_p", "max_new_tokens", "seed")
COLUMNS = ("prompt", "messages")
MODEL = ("revision", "tokenizer", "dtype", "device", "batch_tokens")
SERVER = ("completions", "token_ids", "concurrency", "timeout", "retries", "api_key_env")
"""Options of `ServerGenerator` by their own names; its base_url, model and extra have others here."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of the model. Those left out are left to Python's own defaults."""
    group = parser.add_argument_group("verification")
    group.add_argument("--verifier", required=True, metavar="NAME", help="who says what is right, see below")
    group.add_argument(
        "--verifier-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as gold=solution, the column of the gold answer (may be repeated)",
    )
    group = parser.add_argument_group("sampling")
    group.add_argument("--n", type=int, help="responses to each problem (default: 16)")
    group.add_argument("--temperature", type=float, help="0 for the most likely response (default: 1.0)")
    group.add_argument("--top-p", type=float, metavar="P", help="share of the distribution (default: 1.0, all)")
    group.add_argument(
        "--max-new-tokens", type=int, metavar="TOKENS", help="longer responses are cut there (default: 1024)"
    )
    group.add_argument("--seed", type=int, help="of the random numbers, with each row's prompt (default: 0)")
    group = parser.add_argument_group("columns", "found by their usual names (prompt, question, messages, ...)")
    group.add_argument("--prompt", metavar="COLUMN", help="the problem")
    group.add_argument("--messages", metavar="COLUMN", help="the problem as a chat")
    _add_server(parser.add_argument_group("server", "an OpenAI-compatible one that samples instead of this process"))


def _add_server(group: Any) -> None:
    group.add_argument("--server", metavar="URL", help="its address, mostly with /v1; --model names the tokenizer")
    group.add_argument("--server-model", metavar="NAME", help="what the server calls the model (default: as --model)")
    group.add_argument(
        "--completions", metavar="KIND", help="chat, for prompts that are messages, or text (default: chat)"
    )
    group.add_argument(
        "--token-ids", action="store_true", default=None, help="ask for token ids too, as vLLM and SGLang tell them"
    )
    group.add_argument("--concurrency", type=int, metavar="N", help="requests under way at a time (default: 32)")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="of one request (default: 120)")
    group.add_argument("--retries", type=int, metavar="N", help="of a request that failed (default: 5)")
    group.add_argument(
        "--api-key-env", metavar="VARIABLE", help="environment variable with the key (default: OPENAI_API_KEY)"
    )
    group.add_argument("--server-extra", metavar="JSON", help="further fields of each request: '{\"top_k\": 0}'")


def rollouts_of(arguments: argparse.Namespace) -> Rollouts:
    """What the options describe. CurateError: one of them cannot be used, or goes with --server and there is none."""
    from hf_curate.rollouts.rollouts import Rollouts

    if arguments.model is None:
        raise CurateError("rollouts are sampled from a model: --model org/name, or a folder with safetensors.")
    contract = _verifier(arguments.verifier, arguments.verifier_option)
    given = _given(arguments, (*SAMPLING, *COLUMNS, *MODEL))
    return Rollouts(arguments.model, contract, server=_server(arguments), **given)


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _verifier(name: str, options: Sequence[str]) -> Verifier:
    from hf_curate.rollouts.verify import NAMES, option_types, verifier

    if name not in NAMES:
        try:
            verifier(name)
        except CurateError as error:
            raise CurateError(
                f"--verifier: {error} A reward function of your own is given in Python, where it is an object: "
                "score(dataset, Rollouts(model, function), out=...)."
            ) from error
    types, given = option_types(name), {}
    for text in options:
        option, equals, value = text.partition("=")
        if not equals or not option:
            raise CurateError(f"--verifier-option {text!r} is not NAME=VALUE, such as gold=solution.")
        if option in given:
            raise CurateError(f"--verifier-option {option} is given twice: drop one of them.")
        given[option] = value if "str" in types.get(option, "str") else _plain(value)
    return verifier(name, **given)


def _plain(value: str) -> Any:
    """A number, true, false or null; else the text, which the verifier refuses by name."""
    try:
        return json.loads({"True": "true", "False": "false"}.get(value, value))
    except ValueError:
        return value


def _server(arguments: argparse.Namespace) -> Any:
    given = _given(arguments, (*SERVER, "server_model", "server_extra"))
    if arguments.server is None:
        if given:
            flag = f"--{next(iter(given)).replace('_', '-')}"
            raise CurateError(f"{flag} is for a server that samples, and there is none: --server URL, or drop it.")
        return None
    from hf_curate.rollouts.server import ServerGenerator

    extra = given.pop("server_extra", None)
    return ServerGenerator(
        arguments.server,
        given.pop("server_model", None) or _served(arguments.model),
        extra=None if extra is None else _fields(extra),
        **given,
    )


def _served(model: str) -> str:
    """What a server is likely to call a model: its id without the revision."""
    return model if os.path.isdir(model) else model.partition("@")[0]


def _fields(text: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise CurateError(f"--server-extra {text!r} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise CurateError(f"--server-extra {text!r} is a {type(fields).__name__}, expected an object: '{{...}}'.")
    return fields
