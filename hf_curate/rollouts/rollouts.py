"""Rollouts: a policy samples n responses to each problem, and a verification contract says which of them are right.

What comes out is what the scorers of policy gradients read. Sampled token ids are kept, so that nothing is tokenised
again for the gradients; rewards come from a named, versioned contract with three outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import CurateError, RowError
from hf_curate.rollouts.prompts import Problem, PromptReader
from hf_curate.rollouts.verify import Verdict, Verifier, verifier
from hf_curate.scorers.model import ModelScorer

if TYPE_CHECKING:
    import torch
    from datasets import Features

    from hf_curate.rollouts.sample import Sampled
    from hf_curate.rollouts.server import ServerGenerator

CORRECT_ABOVE = 0.5


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
            are then texts and no token ids. `model` still names the policy and its tokenizer.
        revision, tokenizer, dtype, device, model_kwargs: as for `GraceScorer`.
        prompt, messages (`str`, *optional*): names of columns. Without them: `messages`, `conversations`, `prompt` or
            its aliases.
        batch_tokens (`int`, *optional*): rows times (prompt + new tokens) sampled side by side; changes memory and
            speed.

    Adds `responses` (list of string), `response_ids` (list of lists of int32, with the end token; not with a server),
    `rewards` (list of float32), `success_rate` and `learnability` (float32: p, the share of rewards above 0.5, and
    p (1 - p)), `rollouts_outcomes` (list of "right", "wrong", "could not parse"), `rollouts_truncated` (int32) and
    `rollouts_error` (string, "" where there are rollouts). Where the verifier fails on a row, its responses stay, and
    rewards are null with the reason.

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
        self.temperature, self.top_p, self.seed = float(temperature), float(top_p), int(seed)
        self.server = server
        self.reader = PromptReader(self.source, {"prompt": prompt, "messages": messages}, tokenizer)

    # -- what a Scorer answers ----------------------------------------------------------------------------------------

    @property
    def columns(self) -> Features:
        from datasets import Features, List, Value

        texts = {"responses": List(Value("string"))}
        ids = {"response_ids": List(List(Value("int32")))} if self.server is None else {}
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

    def settings(self) -> dict[str, Any]:
        return {
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
        options = "".join(f", {name}={value!r}" for name, value in self.verifier.options.items())
        made = f"verifier=verifier({self.verifier.name!r}{options})" + (
            ", server=server" if self.server is not None else ""
        )
        return f"{super().call()[:-1]}, {made})"

    def reads(self, names: Sequence[str]) -> list[str]:
        if not self.verifier.columns:  # a reward function may look at anything
            return list(names)
        return [name for name in names if name in (*self.reader.reads(names), *self.verifier.columns)]

    def check_columns(self, names: Sequence[str], first_row: Mapping[str, Any] | None) -> None:
        super().check_columns(names, first_row)
        self.verifier.check_columns(names)

    def score_rows(
        self, rows: Sequence[Mapping[str, Any]], rank: int | None = None
    ) -> list[dict[str, Any] | RowError]:
        read = [self.reader.read(row) for row in rows]
        results: list[dict[str, Any] | RowError] = [
            item if isinstance(item, RowError) else RowError("no rollouts") for item in read
        ]
        asked = [(index, item) for index, item in enumerate(read) if isinstance(item, Problem)]
        if not asked:
            return results
        self._warn_about_unknown_tokens([problem.ids for _, problem in asked])
        sampled = self._sample([problem for _, problem in asked], rank)
        for (index, problem), found in zip(asked, sampled, strict=True):
            results[index] = found if isinstance(found, RowError) else self._verified(rows[index], problem, found)
        return results

    # -- the work -----------------------------------------------------------------------------------------------------

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
            batch_tokens=self.batch_tokens,
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
            seeds=[int.from_bytes(_key(problem)[:4], "big") ^ self.seed for problem in problems],
        )
        return [
            own if isinstance(own, RowError) else [_Response(one.text, None, one.finished) for one in own]
            for own in found
        ]

    def _verified(
        self, row: Mapping[str, Any], problem: Problem, responses: list[_Response]
    ) -> dict[str, Any] | RowError:
        made: dict[str, Any] = dict.fromkeys(self.columns)
        made["responses"] = [response.text for response in responses]
        if self.server is None:
            made["response_ids"] = [response.ids for response in responses]
        made["rollouts_truncated"] = np.int32(sum(not response.finished for response in responses))
        ids = made.get("response_ids")
        verdicts = self.verifier.verify(made["responses"], [row] * len(responses), ids)
        failed = next((verdict for verdict in verdicts if isinstance(verdict, RowError)), None)
        if failed is not None:
            return {**made, "rollouts_error": str(failed)}
        known = [verdict for verdict in verdicts if isinstance(verdict, Verdict)]
        rewards = np.array([verdict.reward for verdict in known], dtype=np.float32)
        p = float((rewards > CORRECT_ABOVE).mean())
        made |= {
            "rewards": rewards,
            "success_rate": np.float32(p),
            "learnability": np.float32(p * (1.0 - p)),
            "rollouts_outcomes": [verdict.outcome for verdict in known],
        }
        return {**made, "rollouts_error": ""}


class _Response:
    """One response: its text, its token ids (None from a server), and whether it ended by itself."""

    __slots__ = ("finished", "ids", "text")

    def __init__(self, text: str, ids: list[int] | None, finished: bool) -> None:
        self.text, self.ids, self.finished = text, ids, finished


def _key(problem: Problem) -> bytes:
    import hashlib

    return hashlib.sha256(problem.text.encode("utf-8", "surrogatepass")).digest()


def _made(asked: str | Verifier | Callable[..., Any]) -> Verifier:
    return asked if isinstance(asked, Verifier) else verifier(asked)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CurateError(f"{name}={value!r} must be a whole number from 1 on.")
    return value
