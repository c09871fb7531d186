"""Rollouts: a policy samples n responses to each problem, and a verification contract says which of them are right.

What comes out is what the scorers of policy gradients read. Sampled token ids are kept, so that nothing is tokenised
again for the gradients; rewards come from a named, versioned contract with three outcomes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_curate.errors import ColumnsError, CurateError, RowError
from hf_curate.groups import CORRECT_ABOVE
from hf_curate.rollouts.prompts import Problem, PromptReader
from hf_curate.rollouts.verify import Verdict, Verifier, verifier
from hf_curate.scorers.checks import checked_number, checked_seed
from hf_curate.scorers.model import ModelScorer

if TYPE_CHECKING:
    import torch
    from datasets import Features

    from hf_curate.models import LanguageModel
    from hf_curate.rollouts.completions import Sampled as FromServer
    from hf_curate.rollouts.sample import Sampled
    from hf_curate.rollouts.server import ServerGenerator


class Rollouts(ModelScorer):
    """Samples responses and verifies them. Use it as `dataset.map(Rollouts(model, "exact"), batched=True)`.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): the policy: Hub id ("org/name" or "org/name@revision"), folder
            (also a PEFT adapter folder), or a live causal LM together with `tokenizer`.
        verifier (`str`, `Verifier` or callable): "exact", "math", "choice", "countdown", what `hf_curate.verifier`
            makes, or a reward function as TRL's trainers take it.
        n (`int`, *optional*, defaults to 16): responses to each problem.
        temperature, top_p (`float`, *optional*, default to 1.0): of the sampling distribution. At 1.0 the responses
            are the policy's own, which is what policy gradients assume.
        max_new_tokens (`int`, *optional*, defaults to 1024): longer responses are cut there, kept, verified as they
            are and counted in `rollouts_truncated`.
        seed (`int`, *optional*, defaults to 0): the random numbers of a row depend on it and on the prompt, not on the
            rows beside it.
        server (`ServerGenerator`, *optional*): an OpenAI-compatible server that samples instead of this process; there
            are then texts, and token ids with its token_ids=True, checked against the tokenizer. `model` still names
            the policy and its tokenizer.
        revision, tokenizer, dtype, device, model_kwargs: as for `GraceScorer`.
        prompt, messages (`str`, *optional*): names of columns. Without them: `messages`, `conversations`, `prompt` or
            its aliases.
        batch_tokens (`int`, *optional*): rows times (prompt + new tokens) sampled side by side; changes memory and
            speed. Fewer after they did not fit. Defaults to 16,384 on the CPU and 131,072 elsewhere.

    Adds `responses` (list of string), `response_ids` (list of lists of int32, with the end token; with a server where
    it tells them), `rewards` (list of float32), `success_rate` and `learnability` (float32: p, the share of rewards
    above 0.5, and p (1 - p)), `rollouts_outcomes` (list of "right", "wrong", "could not parse"), `rollouts_truncated`
    (int32) and `rollouts_error` (string, "" where there are rollouts). Where the verifier fails on a row, its
    responses stay, and rewards are null with the reason.

    Raises: `ModelError`, `ColumnsError`, `CurateError` for settings that cannot be sampled with, and `ScoreError` when
    a first batch of 8 rows or more fails entirely.

    Example:
        >>> rolled = problems.map(Rollouts("Qwen/Qwen3-0.6B", "math", n=16), batched=True)     # doctest: +SKIP
    """

    name = "Rollouts"
    prefix = "rollouts"
    algorithm_version = 1
    reader: PromptReader
    batch_rows = 64
    placing = (*ModelScorer.placing, "verifier", "server")

    def __init__(
        self,
        model: Any,
        verifier: str | Verifier | Callable[..., Any],
        n: int = 16,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
        server: ServerGenerator | None = None,
        revision: str | None = None,
        tokenizer: Any = None,
        prompt: str | None = None,
        messages: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self._take(locals())
        self.verifier = _made(verifier)
        self.n, self.max_new_tokens = _count(n, "n"), _count(max_new_tokens, "max_new_tokens")
        self.temperature, self.top_p = checked_number(temperature, "temperature"), checked_number(top_p, "top_p")
        if self.temperature < 0:
            raise CurateError(f"temperature={temperature!r} must be 0 (the most likely token) or more.")
        if not 0 < self.top_p <= 1:
            raise CurateError(f"top_p={top_p!r} must be above 0 and at most 1 (the whole distribution).")
        self.seed = checked_seed(seed)
        self.server = server
        self.reader = PromptReader(self.source, {"prompt": prompt, "messages": messages}, tokenizer)

    @classmethod
    def on(cls, policy: LanguageModel, verifier: str | Verifier | Callable[..., Any], n: int, **options: Any) -> Self:
        """On a model that is loaded and proved already, such as a policy in training; options as above."""
        made = cls(policy.model, verifier, n, tokenizer=policy.tokenizer, **options)
        made._loaded = policy
        return made

    # -- what a Scorer answers ----------------------------------------------------------------------------------------

    @property
    def columns(self) -> Features:
        from datasets import Features, List, Value

        texts = {"responses": List(Value("string"))}
        ids = {"response_ids": List(List(Value("int32")))} if self._has_ids else {}
        return Features(
            {
                **texts,
                **ids,
                "rewards": List(Value("float32")),
                "success_rate": Value("float32"),
                "learnability": Value("float32"),
                "rollouts_outcomes": List(Value("string")),
                "rollouts_truncated": Value("int32"),
                "rollouts_error": Value("string"),
            }
        )

    @property
    def column(self) -> str:
        return "learnability"

    @property
    def _has_ids(self) -> bool:
        return self.server is None or self.server.token_ids

    def settings(self) -> dict[str, Any]:
        from hf_curate.rollouts.sample import named_ends

        return {
            **({"ends": named_ends(self.source)} if self.server is None else {}),
            "n": self.n,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "verifier": self.verifier.identity,
            "server": None if self.server is None else self.server.record(),
            "model_kwargs": self.model_kwargs_record,
            **self.reader.settings(),
        }

    def record(self) -> dict[str, Any]:
        return {**super().record(), "verifier": self.verifier.record()}

    def call(self) -> str:
        server = "" if self.server is None else ", server=server"
        return f"{super().call()[:-1]}, verifier={_call_of(self.verifier)}{server})"

    def reads(self, names: Sequence[str]) -> list[str]:
        """The columns of the prompt and the gold answer; all of them for a reward function, which may look at
        anything, and where a gold column is missing, so that the error can say which could be meant."""
        if not self._has_ids and "response_ids" in names:
            raise ColumnsError(
                "the rows hold `response_ids`, a server gives texts alone, and scorers would read the old ids beside "
                "the new rewards: dataset.remove_columns('response_ids'), or ServerGenerator(..., token_ids=True)."
            )
        golds, prompt = self.verifier.columns, self.reader.reads(names)
        if not golds or not set(golds) <= set(names):
            return list(names)
        return [name for name in names if name in prompt or name in golds]

    def advice(self) -> str:
        return (
            f"{super().advice()} If prompts and new tokens are too long, lower max_new_tokens={self.max_new_tokens}."
        )

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        super().check_columns(names, first_row)
        self.verifier.check_columns(names)

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        return self.rolled(rows, [self.reader.read(row) for row in rows], rank)

    def rolled(
        self, rows: Sequence[Mapping[str, Any]], read: Sequence[Problem | RowError], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        """As `score_rows`, of rows whose prompts were read before."""
        results: list[dict[str, Any] | RowError] = [
            item if isinstance(item, RowError) else RowError("no rollouts") for item in read
        ]
        asked = [(index, item) for index, item in enumerate(read) if isinstance(item, Problem)]
        if not asked:
            return results
        self._warn_about_unknown_tokens([problem.ids for _, problem in asked])
        sampled = self._sample([problem for _, problem in asked], rank)
        for (index, _), found in zip(asked, sampled, strict=True):
            results[index] = found if isinstance(found, RowError) else self._verified(rows[index], found)
        return results

    # -- the work -----------------------------------------------------------------------------------------------------

    def token_limit(self, model: LanguageModel) -> int:
        """Rows times (prompt + new tokens) sampled side by side."""
        from hf_curate.rollouts.sample import default_room

        return self.batch_tokens or default_room(model.device)

    def _sample(self, problems: Sequence[Problem], rank: int | None) -> list[list[_Response] | RowError]:
        if self.server is not None:
            return self._from_server(problems)
        from hf_curate.rollouts.sample import end_tokens, sample

        model = self.load(rank)
        ends = end_tokens(model)
        found = sample(
            model,
            [problem.ids for problem in problems],
            self.n,
            keys=[_key(problem) for problem in problems],
            seed=self.seed,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            eos=ends,
            batch_tokens=self.token_budget(model),
        )
        return [own if isinstance(own, RowError) else [self._response(one) for one in own] for own in found]

    def _response(self, sampled: Sampled) -> _Response:
        text = self.reader.tokenizer.decode(sampled.ids, skip_special_tokens=True)
        return _Response(text, sampled.ids, sampled.finished)

    def _from_server(self, problems: Sequence[Problem]) -> list[list[_Response] | RowError]:
        assert self.server is not None
        found = self.server.generate(
            [problem.asked if isinstance(problem.asked, str) else list(problem.asked) for problem in problems],
            self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_new_tokens,
            seeds=[_server_seed(self.seed, problem) for problem in problems],
        )
        return [self._told(own, problem) for own, problem in zip(found, problems, strict=True)]

    def _told(self, sampled: list[FromServer] | RowError, problem: Problem) -> list[_Response] | RowError:
        """A server's responses to one prompt; with token ids only where these can be believed."""
        if isinstance(sampled, RowError):
            return sampled
        if self._has_ids:
            from hf_curate.rollouts.told import check_told

            try:
                check_told(sampled, problem.ids, self.reader.tokenizer)
            except RowError as error:
                return error
        return [_Response(one.text, one.token_ids if self._has_ids else None, one.finished) for one in sampled]

    def _verified(self, row: Mapping[str, Any], responses: list[_Response]) -> dict[str, Any]:
        """The columns of one row. Responses stay where there are no rewards."""
        made: dict[str, Any] = dict.fromkeys(self.columns)
        made["responses"] = [response.text for response in responses]
        if self._has_ids:
            made["response_ids"] = [response.ids for response in responses]
        made["rollouts_truncated"] = np.int32(sum(not response.finished for response in responses))
        try:
            verdicts = self._verdicts(row, made["responses"], made.get("response_ids"))
            rewards = _as_float32([verdict.reward for verdict in verdicts])
        except RowError as error:
            return {**made, "rollouts_error": str(error)}
        p = float((rewards > CORRECT_ABOVE).mean())
        return {
            **made,
            "rewards": rewards.tolist(),
            "success_rate": np.float32(p),
            "learnability": np.float32(p * (1.0 - p)),
            "rollouts_outcomes": [verdict.outcome for verdict in verdicts],
            "rollouts_error": "",
        }

    def _verdicts(self, row: Mapping[str, Any], texts: list[str], ids: list[list[int]] | None) -> list[Verdict]:
        """One for each response. RowError: one of them was not judged."""
        lent = None if ids is None else [list(own) for own in ids]  # a reward function may change what it is given
        found = self.verifier.verify(list(texts), [row] * len(texts), lent)
        if failed := next((verdict for verdict in found if isinstance(verdict, RowError)), None):
            raise failed
        verdicts = [verdict for verdict in found if isinstance(verdict, Verdict)]
        if not len(verdicts) == len(found) == len(texts):
            detail = f"{len(verdicts):,} verdicts among {len(found):,} results, expected {len(texts):,}"
            raise RowError("verifier failed", detail)
        return verdicts


@dataclass(frozen=True)
class _Response:
    """One response: its text, its token ids (None where a server tells none), and whether it ended by itself."""

    text: str
    ids: list[int] | None
    finished: bool


def _as_float32(rewards: list[float]) -> np.ndarray:
    """[K] rewards as the column holds them. RowError: one is not finite there."""
    with np.errstate(over="ignore"):
        narrow = np.array(rewards, dtype=np.float32)
    for number, (reward, value) in enumerate(zip(rewards, narrow, strict=True), 1):
        if not np.isfinite(value):
            raise RowError("verifier failed", f"reward {number} is {reward:g}, and a float32 holds up to 3.4e+38")
    return narrow


def _key(problem: Problem) -> bytes:
    """What a problem's random numbers are drawn by, beside the seed: its rendered text."""
    return hashlib.sha256(problem.text.encode("utf-8", "surrogatepass")).digest()


def _server_seed(seed: int, problem: Problem) -> int:
    """31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(b"%d " % seed + _key(problem)).digest()[:4], "big") >> 1


def _call_of(contract: Verifier) -> str:
    """The call that makes a verifier again, with the options that differ from their defaults."""
    defaults = {name: p.default for name, p in inspect.signature(type(contract)).parameters.items()}
    given = {n: v for n, v in contract.options.items() if n in defaults and n != "function" and v != defaults[n]}
    options = [f"{name}={value!r}" for name, value in given.items()]
    if not type(contract).__module__.startswith("hf_curate."):
        return f"{type(contract).__name__}({', '.join(options)})"
    named = repr(contract.name)
    if "function" in contract.options:
        named = contract.name if contract.name.isidentifier() else "function"
    return f"verifier({', '.join([named, *options])})"


def _made(asked: str | Verifier | Callable[..., Any]) -> Verifier:
    return asked if isinstance(asked, Verifier) else verifier(asked)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CurateError(f"{name}={value!r} must be a whole number from 1 on.")
    return value
