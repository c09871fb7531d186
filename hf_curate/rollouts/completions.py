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
WITHOUT_IDS = "vLLM and SGLang tell them in their later versions; token_ids=False does without"


@dataclass(frozen=True)
class Sampled:
    """One response. finished: the server says that it ended by itself; token_ids, prompt_ids: its tokens and those of
    its prompt, where the server tells them."""

    text: str
    finished: bool
    token_ids: list[int] | None = None
    prompt_ids: list[int] | None = None


class Sampling:
    """One call of `generate`: the same numbers for every prompt. token_ids: whether a response without is an error."""

    def __init__(self, wire: Wire, completions: str, fields: dict[str, Any], wanted: int, token_ids: bool) -> None:
        self.wire, self.completions, self.fields, self.wanted = wire, completions, fields, wanted
        self.token_ids = token_ids
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
        found = await self.wire.ask(PATHS[self.completions], body, lambda answer: _read(answer, self.completions))
        if self.token_ids and not all(one.token_ids for one in found):
            raise RowError("no token ids", f"a choice of {len(found):,} came without its `token_ids`. {WITHOUT_IDS}")
        return found


def _read(answer: Any, completions: str) -> list[Sampled]:
    """The choices of an answer, by their index; at least one."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise AgainError(f"its answer holds no choices: {json.dumps(answer)}")
    if all(isinstance(choice.get("index"), int) for choice in choices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    prompt = answer.get("prompt_token_ids")
    return [_sampled(choice, completions == "chat", prompt) for choice in choices]


def _sampled(choice: dict[str, Any], chat: bool, prompt: Any) -> Sampled:
    holder = choice.get("message") if chat else choice
    holder = holder if isinstance(holder, dict) else {}
    if taken := holder.get("reasoning_content") or holder.get("reasoning"):
        detail = f"{len(str(taken)):,} characters; start the server without its reasoning parser: responses come whole"
        raise RowError("server took out the reasoning", detail)
    text = holder.get("content" if chat else "text")
    if not isinstance(text, str):
        raise AgainError(f"a choice holds no text: {json.dumps(choice)}")
    valid = text.encode("utf-8", "replace").decode()  # JSON may hold halves of characters
    own, before = _ids(choice.get("token_ids")), _ids(choice.get("prompt_token_ids") or prompt)
    return Sampled(valid, choice.get("finish_reason") == "stop", own, before)


def _ids(value: Any) -> list[int] | None:
    whole = isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value)
    return value if whole else None


def _seed(seed: int, already: int) -> int:
    """The seed of the request after `already` responses: the prompt's own, then others drawn from it."""
    digest = hashlib.sha256(f"{seed} {already}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1 if already else int(seed)
