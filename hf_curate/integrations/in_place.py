"""A round of selection with the policy where it stands: sampled from, judged and scored, and left as it was found.

In several processes each has a part of the problems; the directions are summed, the scores gathered, and the first
process decides.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_curate.curriculum.selector import OnlineSelector
from hf_curate.errors import ColumnsError, NoSignalError, RowError, ScoreError
from hf_curate.integrations.processes import Processes
from hf_curate.integrations.sampling import Rolled, Sampler
from hf_curate.integrations.stopping import decided, predicted
from hf_curate.models import LanguageModel
from hf_curate.rollouts.verify import Verifier
from hf_curate.scorers.base import Scorer, reasons_of
from hf_curate.scorers.baselines import RandomScorer, RewardScorer
from hf_curate.scorers.groups import Group
from hf_curate.scorers.in_training import policy_record
from hf_curate.scorers.policy import DirectedScorer

Row = Mapping[str, Any]
Results = list[dict[str, Any] | RowError]

VALIDATION, AGAIN = 4, 5
"""The streams of random numbers for responses to validation problems, and for the second half of a problem's that is
not decided by the first; see `curriculum.selector` for the others."""
MADE = (
    *("responses", "response_ids", "rewards", "success_rate", "learnability"),
    *("rollouts_outcomes", "rollouts_truncated", "rollouts_error"),
)
"""Columns of rollouts: a pool's own are of another policy."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around work in the middle of training: the streams of python, numpy and torch go on as if it had not been.

    Modes, gradients, flags and caches of the model need no care: gradients are taken on aliases, sampling has a cache
    of its own, and both leave modes as they are.
    """
    python, plain, torch_cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(plain)
        torch.random.set_rng_state(torch_cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@dataclass
class Scored:
    """This process's part of a round. results, signal: of its rows of the chunk; rollouts: that were drawn here;
    stopped: which rows of the whole chunk needed no more of them; by_chance: there is no direction to score along."""

    results: Results
    signal: list[bool | None]
    rollouts: int = 0
    policy: str | None = None
    direction: dict[str, Any] | None = None
    stopped: list[bool] | None = None
    by_chance: bool = False


@dataclass
class InPlace:
    """What a round needs beside the selector.

    policy: the model in training; ids_of: a prompt's tokens, as in training; new_tokens: of a response, as in
    training; autocast: the type of training's products where it is not that of the weights, and narrow_head: whether
    the LM head's are of it too; quiet: no progress bar; drawn: row of the pool -> the responses that the last round
    drew for it, of the problems it kept, where they are to be used again.
    """

    selector: OnlineSelector
    policy: LanguageModel
    verifier: Verifier
    ids_of: Callable[[Any], list[int]]
    new_tokens: int
    processes: Processes
    autocast: torch.dtype | None = None
    narrow_head: bool = True
    quiet: bool = False
    drawn: dict[int, list[list[int]]] = field(default_factory=dict)
    _sampler: Sampler | None = field(default=None, init=False)
    _bound: DirectedScorer | None = field(default=None, init=False)

    def round(self, step: int) -> dict[str, Any]:
        """Scores the next chunk and decides; every process goes on with the same record, which is returned."""
        began, self.drawn = time.perf_counter(), {}
        self.policy = self.policy.as_now(self.autocast, narrow_head=self.narrow_head)
        with undisturbed():
            found = self._scored()
        self._let_go()
        record = self.processes.from_first(self._record(step, found, began))
        self.selector.accept(record)
        kept = set(record["kept"]) if self.selector.reuse_rollouts else set()
        parts = self.processes.each({row: ids for row, ids in self.drawn.items() if row in kept})
        self.drawn = {row: ids for part in parts for row, ids in part.items()}
        return record

    def _record(self, step: int, found: Scored, began: float) -> dict[str, Any]:
        selector, column = self.selector, self.selector.scorer.column
        results = self.processes.all_of(found.results)
        signal = self.processes.all_of(found.signal)
        reasons = Counter(str(result) for result in results if isinstance(result, RowError))
        if not found.by_chance and sum(reasons.values()) == len(results):
            raise ScoreError(
                f"none of the {len(results):,} problems of the chunk could be scored in selection, at step {step}:\n"
                f"{reasons_of(reasons)}"
            )
        scores = [None if isinstance(result, RowError) else _number(result.get(column)) for result in results]
        costs: dict[str, Any] = {"rollouts": sum(self.processes.each(found.rollouts))}
        if found.stopped is not None:
            saved = selector.rollouts - selector.rollouts // 2
            costs |= {"stopped": found.stopped, "saved": saved * sum(found.stopped)}
        if notes := [note for part in self.processes.each(self._notes()) for note in part]:
            costs["notes"] = notes
        return selector.decided(
            step,
            None if found.by_chance else scores,
            None if all(own is None for own in signal) else signal,
            **costs,
            failed=dict(Counter(reason.partition(":")[0] for reason in reasons.elements())),
            direction=found.direction,
            policy=found.policy,
            autocast=None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            seconds=time.perf_counter() - began,
        )

    # -- scores -------------------------------------------------------------------------------------------------------

    def _scored(self) -> Scored:
        selector, scorer = self.selector, self.selector.scorer
        numbers = self.processes.mine(selector.next_chunk())
        rows = [dict(selector.pool[number]) for number in numbers]
        directed = isinstance(scorer, DirectedScorer)
        if not directed and not self._needs_rollouts(rows):
            plain = [{name: value for name, value in row.items() if name not in MADE} for row in rows]
            return Scored(self._plainly(plain), [None] * len(rows))
        halves = 1 if selector.stop_early is None else 2
        rolled = self._rolled(rows, selector.rollouts // halves, selector.seed_of_round(), "problems")
        self.drawn = {
            n: own["response_ids"] for n, own in zip(numbers, rolled.columns, strict=True) if own["responses"]
        }
        if directed:
            return self._along_a_direction(scorer, rows, rolled)
        judged = [{**row, **own} for row, own in zip(rows, rolled.columns, strict=True)]
        results = self._plainly(judged)
        for place, group in enumerate(rolled.groups):
            results[place] = group if isinstance(group, RowError) else results[place]
        return Scored(results, rolled.signal, rolled.responses, policy_record(self.policy)["digest"])

    def _plainly(self, rows: Sequence[Row]) -> Results:
        """With a scorer that looks at rows."""
        scorer = self.selector.scorer
        if isinstance(scorer, RandomScorer):  # chance that is new in every round
            scorer = RandomScorer(self.selector.seed_of_round() ^ scorer.seed)
        return list(scorer.score_rows(rows)) if rows else []

    def _needs_rollouts(self, rows: Sequence[Row]) -> bool:
        scorer = self.selector.scorer
        names = [name for name in self.selector.pool.column_names if name not in MADE]
        try:
            scorer.check_columns(scorer.reads(names), rows[0] if rows else None)
        except ColumnsError:
            return True
        return isinstance(scorer, RewardScorer)

    def _along_a_direction(self, scorer: DirectedScorer, rows: Sequence[Row], rolled: Rolled) -> Scored:
        """With a scorer that is fitted first: on the validation problems where it has some, else on the chunk."""
        selector, fitted = self.selector, rolled
        told = Scored([], [], rolled.responses)
        what: dict[str, Any] = {"of": "the chunk", "rollouts": selector.rollouts}
        validation = getattr(scorer, "validation", None)
        if validation is not None:
            trusted = [dict(validation[number]) for number in self.processes.mine(range(len(validation)))]
            n, seed = selector.validation_rollouts, selector.seed_of_round(VALIDATION)
            fitted = self._rolled(trusted, n, seed, "validation problems")
            told.rollouts += fitted.responses
            what = {"of": "the validation set", "rollouts": n}
        what |= {"round": len(selector.history), "temperature": selector.temperature, "top_p": selector.top_p}
        bound = self._bound = scorer.bound_to(self.policy, self._bound)
        told.policy = bound.model_record()["digest"]
        together = self.processes.together if self.processes.several else None
        try:
            bound.fit_groups(self._bar(fitted.groups, "direction"), what, together)
        except NoSignalError:
            told.results = [group if isinstance(group, RowError) else {} for group in rolled.groups]
            told.signal, told.by_chance = rolled.signal, True
            return told
        told.direction = bound.direction_record()
        told.results = bound.score_groups(self._bar(rolled.groups, "scores"))
        if selector.stop_early is not None:
            self._continue(told, bound, rows, rolled)
        told.signal = rolled.signal
        return told

    def _continue(self, told: Scored, bound: DirectedScorer, rows: Sequence[Row], rolled: Rolled) -> None:
        """Draws the other half of the rollouts of what the first half does not decide, and scores that again.

        A problem whose other half fails is null with its reason: the statistic of half of the rollouts is smaller by
        a factor than those it would be compared with, and what the whole would say is not known to be clear.
        """
        selector, column = self.selector, bound.column
        whole, first = selector.rollouts, selector.rollouts // 2
        early = [None if isinstance(result, RowError) else float(result[column]) for result in told.results]
        keep = selector.budget.rows(selector.chunk)
        told.stopped = decided(self.processes.all_of(early), first, whole, keep, selector.stop_early or 1.0)
        here = self.processes.mine(told.stopped)
        rest = [place for place, done in enumerate(here) if not done and isinstance(rolled.groups[place], Group)]
        seed = selector.seed_of_round(AGAIN)
        more = self._rolled([rows[place] for place in rest], whole - first, seed, "undecided problems")
        told.rollouts += more.responses
        for place, group in zip(rest, more.groups, strict=True):
            rolled.add(place, group)
        again = bound.score_groups(self._bar([rolled.groups[place] for place in rest], "scores"))
        for place, result in zip(rest, again, strict=True):
            told.results[place] = result
        for place, score in enumerate(early):
            if here[place] and score is not None:
                told.results[place] = {column: predicted(score, first, whole)}

    # -- tools --------------------------------------------------------------------------------------------------------

    def _rolled(self, rows: Sequence[Row], n: int, seed: int, what: str) -> Rolled:
        one, policy = self.selector, self.policy
        if self._sampler is None:
            new = one.max_new_tokens or self.new_tokens
            self._sampler = Sampler(policy, self.verifier, self.ids_of, one.temperature, one.top_p, new, self._bar)
        self._sampler.policy = policy
        return self._sampler.rolled(rows, n, seed, what)

    def _notes(self) -> list[str]:
        """What happened in this process while it sampled and scored; said once."""
        makers = (None if self._sampler is None else self._sampler.maker, self._bound, self.selector.scorer)
        return [note for maker in makers if isinstance(maker, Scorer) for note in maker.take_notes()]

    def _let_go(self) -> None:
        """Of what lies beside the model: the direction, and the copy of its head."""
        self.policy = self.policy.as_now()
        if self._sampler is not None:
            self._sampler.policy = self.policy
            self._sampler.maker.release()
        if self._bound is not None:
            self._bound.release()

    def _bar(self, items: Iterable[Any], what: str) -> Iterable[Any]:
        from tqdm.auto import tqdm

        return tqdm(items, desc=f"selection: {what}", leave=False, disable=self.quiet or not self.processes.first)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
