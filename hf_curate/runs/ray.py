"""The engine on Ray: actors score the batches, on one machine or on a cluster, and this process keeps the shards.

As with the workers of one machine an actor is handed one batch at a time, one that dies is replaced and its batch
tried again, and what kills three of them is a row without a score, and why.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from hf_curate.errors import CurateError, RowError
from hf_curate.runs.calling import packages
from hf_curate.runs.ray_actor import Answer, ScoringActor
from hf_curate.runs.ray_cluster import connected, first_line, resources_for
from hf_curate.runs.shards import Plan
from hf_curate.runs.travel import as_bytes, as_table, packed
from hf_curate.runs.work import Batch, Found, Pool, Shard, joined, lost, refuse_first, variables
from hf_curate.runs.workers import PATIENCE, TRIES, error_of, pass_on, with_notes

logger = logging.getLogger("hf_curate")

WAITS = 30.0
"""Seconds after which a run that has no actor yet says what it waits for; then after twice as many, and so on."""


def on_ray(
    scorer: Any,
    pool: Pool,
    kept: list[str],
    plan: Plan,
    shards: Iterable[int],
    count: int,
    proven: bool,
    address: str | None = None,
) -> Generator[Batch | Shard]:
    """The engine: shards are handed to whichever of `count` actors is free. proven: some row of the run has a score
    already; otherwise a first batch that fails entirely is an error.

    address: of the cluster, "host:port" or "auto". None: the one that this process is connected to, else the one that
    the environment names (RAY_ADDRESS), else one of this machine for this call alone.

    Raises what the scorer raises in any of them, and CurateError where there is no cluster, actors cannot be started
    on it, or the scorer cannot travel; all of them are gone then.
    """
    numbers = list(shards)
    begin = (packed(scorer), packed(pool.features), kept)
    count = min(count, len(numbers))
    with connected(address, count * plan.threads):
        team = _Team(scorer, pool, plan, numbers, begin, proven)
        try:
            yield from team.events(count, len(numbers))
        finally:
            team.stop()


# -- actors -----------------------------------------------------------------------------------------------------------


@dataclass
class _Place:
    """An actor, and who comes after it when it dies: what it is at, and what became of it."""

    rank: int
    actor: Any = None
    ready: bool = False
    shard: int | None = None
    left: list[range] = field(default_factory=list)  # batches of the shard; the first is the one at hand
    batch: bytes = b""
    found: list[Found] = field(default_factory=list)
    starts: int = 0  # of actors that died before they were ready, since one was
    deaths: int = 0  # over the batch at hand
    notes: list[str] = field(default_factory=list)


class _Team:
    """Actors, each at one batch; this process asks, and waits for whichever answers first."""

    def __init__(
        self,
        scorer: Any,
        pool: Pool,
        plan: Plan,
        numbers: list[int],
        begin: tuple[bytes, bytes, list[str]],
        proven: bool,
    ) -> None:
        self.scorer, self.pool, self.plan, self.kept = scorer, pool, plan, begin[2]
        self._begin = [ray.put(part) for part in begin]
        self._resources = resources_for(scorer, plan.threads)
        self._made = ray.remote(ScoringActor).options(**self._options())  # type: ignore[arg-type]
        self._first, self._waiting = None if proven else numbers[0], iter(numbers)
        self._places: list[_Place] = []
        self._asked: dict[Any, _Place] = {}  # by the answer that is waited for
        self._packages = packages()
        self._since, self._patience = time.monotonic(), WAITS
        self._has_begun = False  # an actor was there

    def events(self, count: int, shards: int) -> Iterator[Batch | Shard]:
        self._places += map(_Place, range(count))
        for place in self._places:
            self._start(place)
        while shards:  # there may be actors that found no room
            answered, _ = ray.wait(list(self._asked), timeout=WAITS / 6)
            for ref in answered:
                for event in self._answered(self._asked.pop(ref), ref):
                    shards -= isinstance(event, Shard)
                    yield event
            self._say_what_is_waited_for()

    def stop(self) -> None:
        for place in self._places:
            with suppress(Exception):  # the cluster may be gone, and its actors with it
                ray.kill(place.actor)

    def _options(self) -> dict[str, Any]:
        who_tries_again = {"max_restarts": 0, "max_task_retries": 0}  # this process does, and counts
        options = {**self._resources, **who_tries_again, "scheduling_strategy": "SPREAD"}
        return {**options, "runtime_env": {"env_vars": variables(self.plan.threads)}}

    def _start(self, place: _Place) -> None:
        path = [entry or os.getcwd() for entry in sys.path]
        place.actor, place.ready = self._made.remote(os.getcwd(), path, self.plan.threads), False
        self._asked[place.actor.begin.remote(*self._begin, place.rank, logger.getEffectiveLevel())] = place

    def _go_on(self, place: _Place) -> None:
        """Asks for the next batch, of another shard where there is none left; without any the actor is let go."""
        if not place.left:
            place.shard, place.found = next(self._waiting, None), []
            if place.shard is None:
                ray.kill(place.actor)
                return
            place.left = self.plan.batches(place.shard)
        if not place.batch:
            place.batch, place.deaths, place.notes = as_bytes(self.pool.of(place.left[0])), 0, []
        self._asked[place.actor.score.remote(place.batch, place.left[0])] = place

    # -- what comes back ----------------------------------------------------------------------------------------------

    def _answered(self, place: _Place, ref: Any) -> Iterator[Batch | Shard]:
        try:
            answer: Answer = ray.get(ref)
        except exceptions.LocalRayletDiedError as error:
            raise CurateError("the Ray cluster is gone: what is finished is kept, run the same again.") from error
        except exceptions.RayTaskError:  # what the actor could not even answer with
            raise
        except exceptions.RayError as error:
            yield from self._died(place, error)
            return
        for said in answer.said:
            pass_on(*said)
        if answer.error is not None:
            data, text = answer.error
            raise error_of(data, text)
        if answer.about is None or answer.scores is None:
            self._check_packages(answer.packages or {})
            place.ready, place.starts, self._has_begun = True, 0, True
        else:
            found = Found(as_table(answer.scores), answer.about)
            if place.shard == self._first and not place.found:
                refuse_first(self.scorer, found)
            yield from self._found(place, found)
        self._go_on(place)

    def _found(self, place: _Place, found: Found) -> Iterator[Batch | Shard]:
        """The batch at hand is done, and with the last of them the shard."""
        about = with_notes(found.about, place.notes)
        place.found.append(Found(found.scores, about))
        yield about
        del place.left[0]
        place.batch = b""
        if not place.left:
            assert place.shard is not None
            yield joined(place.shard, place.found)

    def _died(self, place: _Place, error: BaseException) -> Iterator[Batch | Shard]:
        how = _how(place.actor, error)
        if not place.ready:
            place.starts += 1
            if place.starts == TRIES:
                raise CurateError(
                    f"a worker on Ray died {TRIES} times at its start ({how}): is hf_curate, and what the scorer "
                    "needs, installed on every node? Ray's logs of the session have its own messages."
                ) from error
            self._start(place)
            return
        rows, place.deaths = place.left[0], place.deaths + 1
        place.notes.append(f"worker {place.rank} died ({how}) over rows {rows.start} to {rows.stop - 1}")
        logger.warning("%s%s", place.notes[-1], ": tried again" if place.deaths < TRIES else "")
        if place.deaths == TRIES:
            reason = RowError("worker died", f"{TRIES} times over this row's batch")  # how: may name a node
            yield from self._found(place, lost(self.scorer, rows, reason, self.kept))
        self._start(place)

    def _check_packages(self, theirs: dict[str, str]) -> None:
        """CurateError: an actor would score with other versions than the record of the run names."""
        others = [name for name in self._packages if theirs.get(name) != self._packages[name]]
        if others:
            told = ", ".join(f"{name} {theirs.get(name, 'none')}, here {self._packages[name]}" for name in others)
            raise CurateError(f"a node of the Ray cluster has other packages ({told}): install the same on all nodes.")

    def _say_what_is_waited_for(self) -> None:
        places = self._asked.values()
        if self._has_begun or not places or time.monotonic() - self._since < self._patience:
            return
        self._patience *= 2
        asked = ", ".join(f"{name}={value:g}" for name, value in self._resources.items())
        there = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        logger.warning(
            "no worker has started yet: %d of them ask for %s each, the Ray cluster has %g CPUs and %g GPUs in all",
            *(len(places), asked, there["CPU"], there["GPU"]),
        )


def _how(actor: Any, error: BaseException) -> str:
    """How an actor's process ended, in Ray's words; the actor is gone after this."""
    if isinstance(error, exceptions.ActorUnavailableError):
        try:  # the connection broke first: it takes a moment until it is known why
            ray.get(actor.alive.remote(), timeout=PATIENCE)
        except exceptions.RayError as later:
            error = later if isinstance(later, exceptions.ActorDiedError) else error
    with suppress(exceptions.RayError):
        ray.kill(actor)
    text = str(error)
    if getattr(error, "actor_init_failed", False):
        return first_line(text.rstrip().splitlines()[-1])
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text, re.S)
    return first_line(detail[1] if detail else text).rstrip(".")
