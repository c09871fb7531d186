"""The responses to one prompt, out of as many requests as the server makes it take, and how an answer is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_curate.errors import RowError
from hf_curate.rollouts.wire import AgainError, Wire, together

Prompt = str | Sequence[Mapping[str, Any]]
PATHS = {"chat": "/chat/completions", "text": "/completions"}


@dataclass(frozen=True)
class Sampled:
    """One response. finished: the server says that it ended by itself; token_ids: its tokens, where the server tells
    them."""

    text: str
    finished: bool
    token_ids: list[int] | None = None


class Sampling:
    """One call of `generate`: the same numbers for every prompt."""

    def __init__(self, wire: Wire, completions: str, fields: dict[str, Any], wanted: int) -> None:
        self.wire, self.completions, self.fields, self.wanted = wire, completions, fields, wanted
        self.one_each = False  # the server gives one choice, whatever is asked

    async def row(self, prompt: Prompt, seed: int) -> list[Sampled] | RowError:
        """The responses to one prompt, or why there are none."""
        try:
            return await self._responses(prompt, seed)
        except RowError as error:
            return error

    async def _responses(self, prompt: Prompt, seed: int) -> list[Sampled]:
        found: list[Sampled] = []
        lone = 0
        while not self.one_each and len(found) < self.wanted:
            asked = self.wanted - len(found)
            given = (await self._choices(prompt, seed, len(found), asked))[:asked]
            found += given
            lone += len(given) == 1 < asked
            self.one_each = self.one_each or lone == 2
        rest = range(len(found), self.wanted)
        return found + [one[0] for one in await together([self._choices(prompt, seed, k, 1) for k in rest])]

    async def _choices(self, prompt: Prompt, seed: int, already: int, asked: int) -> list[Sampled]:
        """At least one response; `already` of the prompt's are there."""
        what = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(message) for message in prompt]}
        body = {**self.fields, **what, "seed": _seed(seed, already), **({"n": asked} if asked > 1 else {})}
        return await self.wire.ask(PATHS[self.completions], body, lambda answer: _read(answer, self.completions))


def _read(answer: Any, completions: str) -> list[Sampled]:
    """The choices of an answer, by their index; at least one."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise AgainError(f"its answer holds no choices: {json.dumps(answer)}")
    if all(isinstance(choice.get("index"), int) for choice in choices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    return [_sampled(choice, completions == "chat") for choice in choices]


def _sampled(choice: dict[str, Any], chat: bool) -> Sampled:
    holder = choice.get("message") if chat else choice
    holder = holder if isinstance(holder, dict) else {}
    if taken := holder.get("reasoning_content") or holder.get("reasoning"):
        detail = f"{len(str(taken)):,} characters; start the server without its reasoning parser: responses come whole"
        raise RowError("server took out the reasoning", detail)
    text = holder.get("content" if chat else "text")
    if not isinstance(text, str):
        raise AgainError(f"a choice holds no text: {json.dumps(choice)}")
    ids = choice.get("token_ids")
    known = isinstance(ids, list) and all(isinstance(token, int) for token in ids)
    valid = text.encode("utf-8", "replace").decode()  # JSON may hold halves of characters
    return Sampled(valid, choice.get("finish_reason") == "stop", ids if known else None)


def _seed(seed: int, already: int) -> int:
    """The seed of the request after `already` responses: the prompt's own, then others drawn from it."""
    digest = hashlib.sha256(f"{seed} {already}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1 if already else int(seed)
