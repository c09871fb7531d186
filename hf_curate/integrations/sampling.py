"""Responses of the policy in training, drawn where it stands and judged; as columns and as groups for the scorers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_curate.batches import Rollout
from hf_curate.errors import RowError
from hf_curate.models import LanguageModel
from hf_curate.rollouts.prompts import Problem
from hf_curate.rollouts.rollouts import Rollouts
from hf_curate.rollouts.verify import Verifier
from hf_curate.scorers.fitting import has_signal
from hf_curate.scorers.groups import Group


@dataclass
class Rolled:
    """Problems with their responses. columns: those of `Rollouts`, null where there are none; groups: tokens and
    rewards, or why there are none."""

    columns: list[dict[str, Any]]
    groups: list[Group | RowError]

    @property
    def responses(self) -> int:
        return sum(len(own["responses"] or ()) for own in self.columns)

    @property
    def signal(self) -> list[bool | None]:
        """Whether a problem's rewards differ; null where there are none."""
        return [None if isinstance(group, RowError) else has_signal(group.rewards) for group in self.groups]

    def add(self, place: int, other: Group | RowError) -> None:
        """More responses of one problem that has some; where these fail, so has the problem."""
        own = self.groups[place]
        if isinstance(own, Group):
            whole = other
            if isinstance(other, Group):
                rewards = np.concatenate([own.rewards, other.rewards])
                whole = Group([*own.rollouts, *other.rollouts], rewards)
            self.groups[place] = whole


@dataclass
class Sampler:
    """How responses are drawn and judged.

    policy: as it is in this round; ids_of: a prompt's tokens, as in training; bar: wraps what takes long, with a word
    on what it is; maker: does the work in all rounds, so it knows what memory holds, and what it has warned of.
    """

    policy: LanguageModel
    verifier: Verifier
    ids_of: Callable[[Any], list[int]]
    temperature: float
    top_p: float
    new_tokens: int
    bar: Callable[[Iterable[Any], str], Iterable[Any]]
    maker: Rollouts = field(init=False)

    def __post_init__(self) -> None:
        self.maker = Rollouts.on(
            self.policy,
            self.verifier,
            1,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.new_tokens,
        )

    def rolled(self, rows: Sequence[Mapping[str, Any]], n: int, seed: int, what: str) -> Rolled:
        """`n` responses to the prompt of each row."""
        maker = self.maker
        maker._loaded, maker.n, maker.seed = self.policy, n, seed
        found = Rolled([], [])
        for first in self.bar(range(0, len(rows), maker.batch_rows), f"rollouts of {what}"):
            part = rows[first : first + maker.batch_rows]
            problems = [self._problem(row["prompt"]) for row in part]
            for problem, made in zip(problems, maker.rolled(part, problems), strict=True):
                found.groups.append(_group(problem, made))
                found.columns.append(dict.fromkeys(maker.columns) if isinstance(made, RowError) else made)
        return found

    def _problem(self, asked: Any) -> Problem:
        """A prompt as the trainer tokenises it."""
        ids, tokenizer = list(self.ids_of(asked)), self.policy.tokenizer
        return Problem(asked, asked if isinstance(asked, str) else str(tokenizer.decode(ids)), ids)


def _group(problem: Problem, made: Mapping[str, Any] | RowError) -> Group | RowError:
    if isinstance(made, RowError):
        return made
    if made["rewards"] is None:
        kind, _, detail = made["rollouts_error"].partition(": ")
        return RowError(kind, detail)
    rollouts = [Rollout(problem.ids + list(ids), len(problem.ids)) for ids in made["response_ids"]]
    return Group(rollouts, np.array(made["rewards"], dtype=np.float64))
