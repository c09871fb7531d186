"""Responses from a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, `transformers serve`, a provider.

The server may be slow, busy, restarted half-way or give fewer choices than asked; rows come out complete, or with the
reason why not. The API key is read from the environment when it is sent; neither records nor errors nor pickles hold
it.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hf_curate.errors import CurateError, RowError
from hf_curate.rollouts.completions import PATHS, Prompt, Sampled, Sampling
from hf_curate.rollouts.verify import flag, seconds
from hf_curate.rollouts.wire import Manners, UnreachableError, Wire, address, apart, is_loopback, together

OWN_FIELDS = ("model", "messages", "prompt", "n", "temperature", "top_p", "max_tokens", "seed", "stream")
TOKEN_IDS = "return_token_ids"
EQUAL_ROWS = 8
"""Prompts whose responses have to be equal before that is worth a warning."""
SAID = ("id", "owned_by", "root", "max_model_len")
"""What is kept of a server's words on its model: no times, no permissions."""


class ServerGenerator:
    """Samples from a model behind an OpenAI-compatible server, for `Rollouts(..., server=ServerGenerator(...))`.

    Args:
        base_url (`str`): the address as the server's documentation gives it, mostly "http://localhost:8000/v1".
        model (`str`): the model's name at the server.
        concurrency (`int`, *optional*, defaults to 32): requests under way at a time, waits between retries included.
        timeout (`float`, *optional*, defaults to 120.0): seconds for one request from start to end.
        retries (`int`, *optional*, defaults to 5): of a request that got no connection, no answer in time, an answer
            that cannot be read, or one of the statuses 408, 409, 429, 500, 502, 503 and 504. Waits double from half a
            second on, with jitter; a `Retry-After` is kept to up to 60 seconds.
        api_key_env (`str` or `None`, *optional*, defaults to `"OPENAI_API_KEY"`): the environment variable with the
            key; unset or `None`, none is sent.
        completions (`str`, *optional*, defaults to `"chat"`): "chat" asks with messages, which the server puts into
            its chat template; "text" lets a prompt of plain text be continued.
        token_ids (`bool`, *optional*, defaults to `False`): ask for the sampled token ids (`return_token_ids`, which
            vLLM and SGLang know), so that nothing is tokenised again for the gradients. A prompt whose responses come
            without them is "no token ids". The end token belongs to them where the server says so.
        extra (`Mapping`, *optional*): further fields of each request, as JSON. They are part of the record.

    A server may go by the model's `generation_config` where a request says nothing of it (top_k, repetition penalty).
    vLLM leaves that out with `--generation-config vllm`. `transformers serve` even ignores the temperature unless
    `do_sample` is set there, or by extra={"generation_config": '{"do_sample": true, "top_k": 0}'}. Warns where the
    responses to each of 8 prompts or more are equal in spite of a temperature.

    Raises: `CurateError` for an address, name or number that cannot be used, and for a key that would travel
    unencrypted to another machine.

    Example:
        >>> server = ServerGenerator("http://localhost:8000/v1", "Qwen/Qwen3-0.6B")
        >>> server
        ServerGenerator('http://localhost:8000/v1', 'Qwen/Qwen3-0.6B')
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 5,
        api_key_env: str | None = "OPENAI_API_KEY",
        completions: str = "chat",
        token_ids: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._url = address(base_url)
        if not isinstance(model, str) or not model:
            raise CurateError(f"model={model!r} is not the name of a model at the server.")
        if completions not in PATHS:
            raise CurateError(f"completions={completions!r} is neither 'chat' nor 'text'.")
        self.model, self.completions, self.extra = model, completions, _fields(extra)
        self.token_ids = flag("token_ids", token_ids)
        self.manners = Manners(
            base_url.rstrip("/"),
            api_key_env or None,
            _whole("concurrency", concurrency, 1),
            seconds("timeout", timeout),
            _whole("retries", retries, 0),
        )
        self._said: dict[str, Any] | None = None
        self._asked_itself = self._warned = False
        self.key()

    def __repr__(self) -> str:
        more = "".join(
            f", {name}={self._arguments[name]!r}"
            for name, default in (("completions", "chat"), ("token_ids", False), ("extra", None))
            if self._arguments[name] != default
        )
        return f"ServerGenerator({self.manners.base_url!r}, {self.model!r}{more})"

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def key(self) -> str | None:
        """The API key as it is now in the environment. CurateError: it cannot be sent, or would travel unencrypted."""
        name = self.manners.key_name
        key = os.environ.get(name, "").strip() if name else ""
        if not key:
            return None
        if re.search(r"[^\x21-\x7e]", key):
            raise CurateError(f"the key in {name} holds spaces or characters beyond ASCII: set it again.")
        if self._url.scheme == "http" and not is_loopback(self._url):
            raise CurateError(
                f"the key in {name} would travel unencrypted to {self._url.hostname}: use https, or "
                "api_key_env=None to send none."
            )
        return key

    def record(self) -> dict[str, Any]:
        """Which server and model, as JSON: the address (this machine is "loopback", whatever the port), the model's
        name, the protocol, and what the server says of the model (GET /models, asked once; None where it does not).

        CurateError: the server cannot be reached, fails, or refuses the key.
        """
        if not self._asked_itself:
            self._said = apart(self._ask_itself)
            self._asked_itself = True
        host = "loopback" if is_loopback(self._url) else self._url.netloc.lower()
        return {
            "base_url": f"{self._url.scheme}://{host}{self._url.path.rstrip('/')}",
            "model": _without_folders(self.model),
            "protocol": f"OpenAI {PATHS[self.completions]}",
            "token_ids": self.token_ids,
            "extra": self.extra,
            "says": self._said,
        }

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seeds: Sequence[int],
    ) -> list[list[Sampled] | RowError]:
        """`n` responses to each prompt, in the order of the prompts, or why a prompt has none.

        prompts: messages ({"role", "content"}) with completions="chat", texts with completions="text". temperature:
        above 0, or 0 for the most likely response, asked for once and given n times. seeds: one for each prompt; a
        server that gives fewer choices than asked is asked again, with a seed drawn from the prompt's.

        May be called from within a running event loop. RowError: "server refused" (statuses 400, 422 and the like),
        "server failed" (after all retries), "server took out the reasoning", "no token ids". CurateError: statuses
        401, 403, 404 and redirects; no prompt could be sent at all.
        """
        _check(n, temperature, top_p, max_tokens, len(prompts), len(seeds))
        for number, prompt in enumerate(prompts, 1):
            self._check_kind(prompt, number)
        if not prompts:
            return []
        fields: dict[str, Any] = {"model": self.model, "temperature": temperature, "top_p": top_p}
        fields |= {"max_tokens": max_tokens, **({TOKEN_IDS: True} if self.token_ids else {}), **self.extra}

        async def work() -> list[list[Sampled] | RowError]:
            async with Wire(self.manners, self.key()) as wire:
                sampling = Sampling(wire, self.completions, fields, 1 if temperature == 0 else n, self.token_ids)
                return await together([sampling.row(*pair) for pair in zip(prompts, seeds, strict=True)])

        found = apart(work)
        if all(isinstance(own, UnreachableError) for own in found):
            raise CurateError(self._silent(found[0]))
        if temperature == 0:
            return [own if isinstance(own, RowError) else own * n for own in found]
        self._warn_where_nothing_is_sampled([own for own in found if not isinstance(own, RowError)], n)
        return found

    def _warn_where_nothing_is_sampled(self, found: Sequence[Sequence[Sampled]], n: int) -> None:
        """Once: the policy gradient of equal responses is zero, and no error would say why."""
        if self._warned or n == 1 or len(found) < EQUAL_ROWS or any(one != own[0] for own in found for one in own):
            return
        self._warned = True
        warnings.warn(
            f"all {n} responses to each of {len(found):,} prompts are equal: does {self.manners.base_url} sample at "
            "all? `transformers serve` needs extra={'generation_config': '{\"do_sample\": true, \"top_k\": 0}'}.",
            UserWarning,
            stacklevel=3,
        )

    def _check_kind(self, prompt: Prompt, number: int) -> None:
        text = isinstance(prompt, str)
        if text and self.completions == "chat":
            raise CurateError(
                f"prompt {number} is plain text, and completions='chat' asks with messages: completions='text' "
                "continues the text as it is; or give messages, which then go through the chat template."
            )
        if not text and self.completions == "text":
            raise CurateError(
                f"prompt {number} is a {type(prompt).__name__}, and completions='text' continues plain text: use "
                "completions='chat' for messages."
            )

    async def _ask_itself(self) -> dict[str, Any] | None:
        async with Wire(self.manners, self.key()) as wire:
            try:
                listed = await wire.ask("/models", None, lambda answer: answer)
            except RowError as error:
                if error.kind == "server refused":
                    return None
                raise CurateError(self._silent(error)) from None
        entries = listed.get("data") if isinstance(listed, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("id") == self.model:
                plain = {name: entry[name] for name in SAID if isinstance(entry.get(name), str | int)}
                return {name: _without_folders(v) if isinstance(v, str) else v for name, v in plain.items()}
        return None

    def _silent(self, error: Any) -> str:
        url = self.manners.base_url
        return f"no request to {url} succeeded: {error.detail}. Is the server running? Look with: curl {url}/models"


def _without_folders(name: str) -> str:
    """A server may name its model by a folder, which says something of a machine only."""
    return PurePath(name).name if name.startswith(("/", "./", "../", "~")) else name


def _fields(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        fields = json.loads(json.dumps(dict(extra or {}), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CurateError(f"extra={extra!r} cannot be sent as JSON fields: {error}.") from None
    if own := [name for name in fields if name in OWN_FIELDS]:
        raise CurateError(f"extra holds {own[0]!r}, which is not to be set there: it is sent already, or not at all.")
    if TOKEN_IDS in fields:
        raise CurateError(f"extra holds {TOKEN_IDS!r}, whose answers would be dropped: token_ids=True keeps them.")
    return fields


def _check(n: int, temperature: float, top_p: float, max_tokens: int, prompts: int, seeds: int) -> None:
    _whole("n", n, 1)
    _whole("max_tokens", max_tokens, 1)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise CurateError(f"temperature={temperature} must be a number of 0 (the most likely response) or more.")
    if not 0 < top_p <= 1:
        raise CurateError(f"top_p={top_p} must be above 0 and at most 1 (the whole distribution).")
    if prompts != seeds:
        raise CurateError(f"{seeds:,} seeds for {prompts:,} prompts: give one for each.")


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CurateError(f"{name}={value!r} must be a whole number from {least} on.")
    return value
