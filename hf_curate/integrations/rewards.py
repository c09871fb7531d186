"""A trainer's own reward functions as the contract by which selection judges responses."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from trl.chat_template_utils import parse_response

from hf_curate.errors import CurateError, RowError
from hf_curate.rollouts.verify import RIGHT, WRONG, Ids, Row, Verdict, Verifier, same_number

RIGHT_ABOVE = 0.5
_PARSES = ("response_template", "response_schema")
_NOT_PASSED = ("prompt", "completion", "completion_ids")  # TRL passes every other column of the row


class TrainerRewards(Verifier):
    """The weighted sum of a trainer's reward functions, called as the trainer calls them, all responses of one problem
    at a time.

    A function that returns None for a response does not count for it; a response without any reward makes the problem
    a RowError, as it counts for nothing in training. What the functions log goes nowhere: it is not of training. What
    they raise is a CurateError that says that it was selection.
    """

    name = "the trainer's rewards"
    version = "1"
    kind = "reward function"
    failure_surface = "whatever the reward functions get wrong: they were called, not examined"

    def __init__(self, trainer: Any) -> None:
        names = list(trainer.reward_func_names)
        super().__init__({}, {"functions": names, "weights": trainer.reward_weights.tolist()})
        self.trainer = trainer
        for function, name in zip(trainer.reward_funcs, names, strict=True):
            if hasattr(function, "forward"):
                raise CurateError(
                    f"the reward {name!r} is a model, and selection calls functions: give the selector its own "
                    "contract, OnlineSelector(..., verifier=...), such as a function that asks this model."
                )

    def verify(
        self, completions: Sequence[str], rows: Sequence[Row], completion_ids: Ids | None = None
    ) -> list[Verdict | RowError]:
        same_number(completions, rows)
        ids = [list(own) for own in completion_ids or []]
        told = zip(rows, completions, ids or [None] * len(rows), strict=True)
        given = [self._completion(row["prompt"], text, own) for row, text, own in told]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in _NOT_PASSED}
        arguments = {"prompts": [row["prompt"] for row in rows], "completions": given, "completion_ids": ids}
        arguments |= {"trainer_state": self.trainer.state, "log_extra": _nowhere, "log_metric": _nowhere}
        found = [self._called(place, arguments | columns) for place in range(len(self.trainer.reward_funcs))]
        weights: list[float] = self.options["weights"]
        return [_summed(own, weights) for own in zip(*found, strict=True)]

    def _completion(self, prompt: Any, text: str, ids: list[int] | None) -> str | list[dict[str, Any]]:
        """A response as a chat message after a chat, parsed where the trainer's tokenizer can; else its text."""
        if not isinstance(prompt, list):
            return text
        tokenizer = self.trainer._tokenizer
        if ids is None or all(getattr(tokenizer, name, None) is None for name in _PARSES):
            return [{"role": "assistant", "content": text}]
        asked = self.trainer._tokenize_prompts([prompt])[0][0]
        return [parse_response(tokenizer, ids, prefix=list(asked))]

    def _called(self, place: int, arguments: dict[str, Any]) -> list[float]:
        """One number for each response, NaN for None."""
        function: Callable[..., Any] = self.trainer.reward_funcs[place]
        name = self.options["functions"][place]
        try:
            returned = function(**arguments)
            if inspect.isawaitable(returned):
                returned = asyncio.run_coroutine_threadsafe(_awaited(returned), self.trainer.async_loop).result()
            rewards = [math.nan if reward is None else float(reward) for reward in returned]
        except Exception as error:  # whatever that code raises; the caller must learn where it was
            raise CurateError(
                f"reward function {name!r} raised {type(error).__name__} in selection, not in training, at step "
                f"{self.trainer.state.global_step}: {error}. It is called with the rows of pool= and validation=; "
                "give the selector verifier= to judge these otherwise."
            ) from error
        if len(rewards) != len(arguments["completions"]):
            raise CurateError(
                f"reward function {name!r} returned {len(rewards):,} rewards in selection for "
                f"{len(arguments['completions']):,} responses: it has to return one for each."
            )
        return rewards


def _nowhere(*_: Any) -> None:
    pass


async def _awaited(found: Any) -> Any:
    return await found


def _summed(rewards: Sequence[float], weights: Sequence[float]) -> Verdict | RowError:
    known = [weight * reward for weight, reward in zip(weights, rewards, strict=True) if not math.isnan(reward)]
    if not known:
        return RowError("no reward", "no reward function applies to a response")
    total = sum(known)
    if not math.isfinite(total):
        return RowError("verifier failed", f"the reward is {total}")
    return Verdict(RIGHT if total > RIGHT_ABOVE else WRONG, total)
