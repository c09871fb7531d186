"""The bookkeeping of selection while a policy trains: chunks of a seeded shuffle of the pool, their scores, the
problems kept, the order in which these are trained on, and the history, all of it as JSON. It knows no trainer and
computes no score.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import parse_budget, preference
from hf_curate.curriculum.history import by_row, history_dataset, used_selection
from hf_curate.curriculum.journal import Journal, read_journal, short
from hf_curate.curriculum.walk import Walk
from hf_curate.errors import BudgetError, CurateError, ScoreError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.selection import Selection

SCHEMA = "hf_curate/selector/2"
POOL, PROMPTS, CHANCE, SAMPLING = range(4)
"""What random numbers are drawn for; each has a stream of its own."""


class OnlineSelector:
    """Chooses anew, every so many optimizer steps, which problems of a pool a policy is trained on.

    Args:
        scorer (`Scorer`): what ranks the problems of a chunk: `GradAlignScorer(validation=trusted)`,
            `LearnAlignScorer()`, `AlignScorer()`, all without a model, since the policy in training is the model; or
            `AccuracyGreedyScorer()`, `PassRateBandScorer()`, `RandomScorer()`.
        pool (`Dataset`): the problems to train on, with what the reward needs.
        chunk (`int`, *optional*, defaults to 512): problems that are scored in a round. The pool is walked in a seeded
            shuffle, a new one for each pass. A smaller pool is one chunk, with a warning.
        keep (`str` or `int`, *optional*, defaults to `"25%"`): share (rounded up) or number of the chunk to train on
            until the next round. With all of the chunk (`"100%"`) nothing is chosen: rounds are scored and recorded,
            and training takes its own prompts in its own order.
        every (`int`, *optional*, defaults to 10): optimizer steps from one round to the next.
        rollouts (`int`, *optional*, defaults to 16): responses to each problem of the chunk.
        validation_rollouts (`int`, *optional*): responses to each validation problem; 4 times `rollouts` by default.
        temperature (`float`, *optional*, defaults to 0.7), top_p (`float`, *optional*, defaults to 0.95): of the
            responses that are drawn for selection.
        max_new_tokens (`int`, *optional*): of such a response; as many as in training by default.
        verifier (`str`, `Verifier` or callable, *optional*): who judges these responses, as for `Rollouts`; the
            trainer's own reward functions by default.
        seed (`int`, *optional*, defaults to 0): of chunks, responses and order.
        reuse_rollouts (`bool`, *optional*, defaults to False): a problem's first responses of a round are also its
            group of the generation batch that the round was made for, instead of new ones. They are then drawn from
            the very distribution of training (up to rounding): the policy has not moved between, and the trainer
            refuses other `temperature`, `top_p`, `max_new_tokens`, or fewer `rollouts` than its `num_generations`.
            Given the problem alone the group is one as any other. Given that it was chosen, it is not: its rewards are
            among those it was chosen by, so it has a signal more often than new responses of the same problem. Later
            batches of the round draw new responses.
        stop_early (`float`, *optional*): a confidence such as 0.95, for `GradAlignScorer(statistic="t")`. Half of the
            `rollouts` are drawn first; a problem of which it is clear with that probability on which side of the
            selection's edge it will be gets no more (see `integrations.stopping` for the approximation), and its score
            is what they predict. Each round's record says how many rollouts that saved.

    Attributes:
        selection: rows of the pool that are trained on now, best first; empty before the first round.
        history: one record for each round, JSON: round, step, rows (the chunk), scores (7 digits, null where
            there is none), signal (whether a row's rewards differ), kept, chance (whether the round was decided by
            it), rollouts, seconds, policy (digest of the trained weights), autocast (the type of products where
            training has another for them than for weights, else null), direction (its record), failed (how many rows,
            by reason), with `stop_early` stopped (by row) and saved, and notes (sentences, of each process) where
            memory ran out.
        used: one record for each generation batch, JSON: step, round, rows, reused (how many of the groups were drawn
            by the round, see `reuse_rollouts`).
        elapsed, training_rollouts: seconds of training, selection included, and responses drawn for it alone; judge:
            the record of the contract by which responses are judged. The trainer tells all three.

    Raises: `CurateError` for settings out of range and for a pool that is no Dataset or empty, `BudgetError` for a
    `keep` that cannot be read or counts tokens.

    Source: the loop of GradAlign, arXiv 2602.21492: every 10 steps, 16 rollouts at temperature 0.7 and top-p 0.95, the
    best 25 % of the chunk. Differences from the paper: the size of a chunk and 4 times as many rollouts of validation
    problems (it says up to 128) are ours. Rows are kept in the order of their scores as they are: where a score of 0
    means no signal, it ranks above problems that point the other way.
    """

    def __init__(
        self,
        scorer: Any,
        pool: Dataset,
        *,
        chunk: int = 512,
        keep: str | int = "25%",
        every: int = 10,
        rollouts: int = 16,
        validation_rollouts: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.95,
        max_new_tokens: int | None = None,
        verifier: Any = None,
        seed: int = 0,
        reuse_rollouts: bool = False,
        stop_early: float | None = None,
    ) -> None:
        if not hasattr(scorer, "score_rows") or not hasattr(scorer, "column"):
            raise CurateError(
                f"the first argument is a {type(scorer).__name__}, expected a scorer of hf_curate, such as "
                "GradAlignScorer(validation=trusted)."
            )
        check_pool(pool)
        self.scorer, self.pool, self.verifier = scorer, pool, verifier
        self.every, self.rollouts, self.seed = counted(every, "every"), counted(rollouts, "rollouts"), seed
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise CurateError(f"seed={seed!r} must be a whole number from 0 on.")
        trusted = 4 * rollouts if validation_rollouts is None else validation_rollouts
        self.validation_rollouts = counted(trusted, "validation_rollouts")
        numbers = all(isinstance(value, (int, float)) for value in (temperature, top_p))
        if not numbers or not 0 < temperature < float("inf") or not 0 < top_p <= 1:
            raise CurateError(
                f"temperature={temperature!r} must be above 0 (equal responses have no signal) and top_p={top_p!r} "
                "above 0 and at most 1."
            )
        self.temperature, self.top_p = float(temperature), float(top_p)
        self.max_new_tokens = None if max_new_tokens is None else counted(max_new_tokens, "max_new_tokens")
        self.chunk = min(counted(chunk, "chunk"), len(pool))
        if self.chunk < chunk:
            text = f"the pool has {len(pool):,} rows and chunk={chunk:,}: every round scores the whole pool."
            warnings.warn(text, UserWarning, stacklevel=2)
        self.reuse_rollouts, self.stop_early = bool(reuse_rollouts), stop_early
        if stop_early is not None:
            self._check_stopping(stop_early)
        self.budget = parse_budget(keep)
        if self.budget.unit == "tokens" or self.budget.rows(self.chunk) > self.chunk:
            raise BudgetError(
                f"keep={keep!r} of a chunk of {self.chunk:,} problems cannot be kept: give a share ('25%') or a "
                f"number of problems up to {self.chunk:,}."
            )
        if self.reuse_rollouts and not self.chooses:
            raise CurateError(
                f"reuse_rollouts=True, but keep={keep!r} trains on the trainer's own prompts, to which no round has "
                "drawn responses: keep less of a chunk, or draw new ones."
            )
        self.selection: list[int] = []
        self.history: list[dict[str, Any]] = []
        self.used: list[dict[str, Any]] = []
        self.elapsed, self.training_rollouts = 0.0, 0
        self.judge: dict[str, Any] | None = None
        self._walk = Walk(len(pool), (seed, POOL))
        self._prompts = Walk(0, (seed, PROMPTS, 0))
        self._said: set[str] = set()
        self._digests: dict[str, str] = {}
        self._journal = Journal()

    def __repr__(self) -> str:
        asked = f"chunk={self.chunk}, keep={self.budget.asked!r}, every={self.every}"
        return f"<OnlineSelector({self.scorer!r}, {asked}: {len(self.history)} rounds)>"

    def _check_stopping(self, confidence: float) -> None:
        if not 0.5 < confidence < 1:
            raise CurateError(f"stop_early={confidence!r} is a confidence above 0.5 and below 1, such as 0.95.")
        if getattr(self.scorer, "statistic", None) != "t":
            raise CurateError(
                f"stop_early={confidence!r} needs a score whose spread is known: GradAlignScorer(validation=..., "
                f"statistic='t'), and the scorer is {self.scorer!r}."
            )
        if self.rollouts < 8:
            raise CurateError(
                f"stop_early={confidence!r} looks at half of the rollouts, and half of rollouts={self.rollouts} says "
                "nothing of their spread: give rollouts=8 or more."
            )

    # -- a round ------------------------------------------------------------------------------------------------------

    @property
    def chooses(self) -> bool:
        """Whether a round keeps less than its chunk."""
        return self.budget.rows(self.chunk) < self.chunk

    def due(self, step: int) -> bool:
        """Whether a round belongs before optimizer step `step`: none was yet, or a multiple of `every` has been
        reached since the last."""
        return not self.history or step // self.every > self.history[-1]["step"] // self.every

    def next_chunk(self) -> list[int]:
        """The rows of the pool that the next round scores, all different."""
        return self._walk.peek(self.chunk)

    def seed_of_round(self, stream: int = SAMPLING) -> int:
        """A seed for the next round alone."""
        words = np.random.SeedSequence([self.seed, stream, len(self.history)]).generate_state(2)
        return int(words[0]) << 31 | int(words[1]) >> 1

    def decided(
        self,
        step: int,
        scores: Sequence[float | None] | None,
        signal: Sequence[bool | None] | None = None,
        **costs: Any,
    ) -> dict[str, Any]:
        """The record of a round: which rows of `next_chunk()` are kept. Changes nothing; see `accept`.

        Args:
            step: optimizer steps so far.
            scores: of the chunk's rows, in their order; null or not finite is never kept. None: there are no scores,
                and chance decides.
            signal: whether each row's rewards differ, null where unknown. Where none do, chance decides.
            costs: what else the record says, as JSON (rollouts, seconds, policy).
        """
        rows = self.next_chunk()
        for what, values in (("scores", scores), ("signals", signal)):
            if values is not None and len(values) != len(rows):
                raise ScoreError(f"{len(values):,} {what} for the {len(rows):,} rows of the chunk: give one for each.")
        chance = scores is None or (signal is not None and not any(signal))
        known = np.array([np.nan if value is None else value for value in scores or [0.0] * len(rows)], dtype=float)
        if chance:
            order = preference(np.zeros(len(rows)), strategy="random", seed=self.seed_of_round(CHANCE))
        else:
            order = preference(known)
        if not len(order):
            raise ScoreError(f"none of the {len(rows):,} rows of the chunk has a score: there is nothing to keep.")
        kept = [rows[place] for place in order[: self.budget.rows(len(rows))]]
        return {
            "round": len(self.history),
            "step": step,
            "rows": rows,
            "scores": None if scores is None else [short(v) if np.isfinite(v) else None for v in known],
            "signal": None if signal is None else [None if value is None else bool(value) for value in signal],
            "kept": kept,
            "chance": chance,
            **costs,
        }

    def accept(self, record: dict[str, Any]) -> None:
        """Goes on with what `decided` returned, here or in another process of the same training."""
        if record["round"] != len(self.history) or record["rows"] != self.next_chunk():
            raise CurateError(
                f"the record is of round {record['round']}, and this selector has had {len(self.history)} rounds: "
                "processes of one training must decide together."
            )
        self._walk.take(self.chunk)
        self.selection = list(record["kept"])
        self._prompts = Walk(len(self.selection), (self.seed, PROMPTS, record["round"]))
        self.history.append(record)
        if record["chance"]:
            self._say_once(
                "chance",
                f"no problem of the chunk at step {record['step']}, or none of the validation set, is solved by some "
                "rollouts and not by others: nothing points anywhere, and the problems of this round were drawn by "
                "chance. It is in the history, and not said again.",
            )

    def take(self, count: int, step: int) -> list[int]:
        """Rows of the pool for a generation batch of `count` prompts: the selection in a seeded order, a new one for
        each time through; no row twice in a batch, unless the selection is smaller."""
        if not self.selection:
            raise CurateError("nothing is selected yet: a round comes first.")
        if len(self.selection) < count:
            self._say_once(
                "few",
                f"a generation batch takes {count:,} prompts and {len(self.selection):,} problems are selected: some "
                "come several times in a batch. Raise keep= or chunk=. It is not said again.",
            )
        rows = [self.selection[place] for place in self._prompts.take(count)]
        self.used.append({"step": step, "round": len(self.history) - 1, "rows": rows, "reused": 0})
        return rows

    def summary(self) -> dict[str, float]:
        """Of the last round: share of the chunk (and of what is kept) without signal, overlap (share of the selection
        that the one before held too), mean, lowest and highest score kept. What is unknown is left out."""
        last = self.history[-1]
        score = {} if last["chance"] else by_row(last, "scores")
        kept = [value for row in last["kept"] if (value := score.get(row)) is not None]
        found: dict[str, float] = {}
        if last["signal"] is not None:
            signal = by_row(last, "signal")
            found["without_signal"] = 1.0 - sum(map(bool, signal.values())) / len(signal)
            found["kept_without_signal"] = 1.0 - sum(bool(signal[row]) for row in last["kept"]) / len(last["kept"])
        if len(self.history) > 1:
            before = set(self.history[-2]["kept"])
            found["overlap"] = len(before & set(last["kept"])) / len(last["kept"])
        if kept:
            found |= {"score_mean": sum(kept) / len(kept), "score_min": min(kept), "score_max": max(kept)}
        return found

    @property
    def seconds(self) -> float:
        """Of all rounds so far."""
        return sum(record.get("seconds", 0.0) for record in self.history)

    def record(self) -> dict[str, Any]:
        """What was asked and what it cost, as JSON; the rounds themselves are in `history`."""
        from hf_curate.hub.manifest import versions

        return {
            "settings": self.settings(),
            "data": self.data(),
            "rounds": len(self.history),
            "rounds_by_chance": sum(record["chance"] for record in self.history),
            "seconds": {"selection": self.seconds, "all": self.elapsed},
            "selection_rollouts": sum(record.get("rollouts", 0) for record in self.history),
            "training_rollouts": self.training_rollouts,
            "verifier": self.judge,
            "versions": versions(),
        }

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(text, UserWarning, stacklevel=3)

    # -- state and history --------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What decides the selection beside policy, pool and verifier, as JSON."""
        return {
            "scorer": repr(self.scorer),
            "chunk": self.chunk,
            "keep": self.budget.asked,
            "every": self.every,
            "rollouts": self.rollouts,
            "validation_rollouts": self.validation_rollouts,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "reuse_rollouts": self.reuse_rollouts,
            "stop_early": self.stop_early,
        }

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON: a selector with the same settings continues exactly from it and `journal()`. It
        does not grow with the rounds."""
        return {
            "schema": SCHEMA,
            "settings": self.settings(),
            "data": self.data(),
            "walk": self._walk.state(),
            "prompts": self._prompts.state(),
            "journal": _digest(self.journal()),
            "elapsed": self.elapsed,
            "training_rollouts": self.training_rollouts,
        }

    def journal(self) -> str:
        """`history` and `used` as JSON lines, those of the rounds first; see `curriculum.journal`."""
        return self._journal.text(self.history, self.used)

    def data(self) -> dict[str, str]:
        """Pool and validation set, by their rows; read once."""
        if not self._digests:
            from hf_curate.hub.manifest import digest_rows

            data = {"pool": self.pool, "validation": getattr(self.scorer, "validation", None)}
            self._digests = {n: digest_rows(one, one.column_names) for n, one in data.items() if one is not None}
        return self._digests

    def load_state(self, state: dict[str, Any], journal: str) -> None:
        """Goes on where `state` and `journal` were taken. CurateError: they are of another selector or another pool,
        or not of one moment."""
        schema = state.get("schema") if isinstance(state, dict) else None
        if schema != SCHEMA:
            raise CurateError(f"this is no state of a selector: its schema is {schema!r}, not {SCHEMA!r}.")
        try:
            self._load(state, journal)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CurateError):
                raise
            raise CurateError(
                f"the state of a selector is damaged ({type(error).__name__}: {error}): take that of another "
                "checkpoint, or start without it."
            ) from error

    def _load(self, state: dict[str, Any], journal: str) -> None:
        ours, theirs = {**self.settings(), **self.data()}, {**state["settings"], **state["data"]}
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise CurateError(
                    f"the state was saved with {name}={theirs.get(name)!r}, and this selector has {name}={value!r}: "
                    "give it the same, or start without the state."
                )
        if (found := _digest(journal)) != state["journal"]:
            raise CurateError(
                f"the history beside the state has {found['lines']:,} lines (sha256 {found['sha256'][:12]}), and the "
                f"state was saved with {state['journal']['lines']:,} ({state['journal']['sha256'][:12]}): it was "
                "changed, or is of another checkpoint. Take both files of one checkpoint."
            )
        history, used = read_journal(journal)
        selection = list(history[-1]["kept"]) if history else []
        walk = Walk(len(self.pool), (self.seed, POOL))
        walk.load(state["walk"])
        prompts = Walk(len(selection), (self.seed, PROMPTS, len(history) - 1 if history else 0))
        prompts.load(state["prompts"])
        self.elapsed, self.training_rollouts = float(state["elapsed"]), int(state["training_rollouts"])
        self.history, self.used, self._journal = history, used, Journal()
        self.selection, self._walk, self._prompts = selection, walk, prompts

    def used_selection(self, source: str | None = None) -> Selection:
        """The problems that were trained on, as a `Selection` to save or to push with its card.

        Its rows are those of the pool that were used, with `online_uses` (int32, for how many groups of responses) and
        `online_steps` (list of int64, after which optimizer steps). source: where the pool came from, as for `select`.
        CurateError: nothing was used.
        """
        return used_selection(self, source)

    def history_dataset(self) -> Dataset:
        """The problems in the order in which they were trained on: the pool's columns, and `step` (int64, optimizer
        steps that the policy had when it was asked), `round` (int64), `source_row` (int64, in the pool) and `score`
        (float32, null where chance decided). One row for each group of responses. CurateError: nothing was used."""
        return history_dataset(self)


def _digest(journal: str) -> dict[str, Any]:
    return {"lines": journal.count("\n"), "sha256": hashlib.sha256(journal.encode()).hexdigest()}


def check_pool(pool: Any) -> None:
    from datasets import Dataset

    if not isinstance(pool, Dataset):
        raise CurateError(
            f"pool= is a {type(pool).__name__}, expected a datasets.Dataset: pass one split (dataset['train'])."
        )
    if not len(pool):
        raise CurateError("the pool is empty: there is nothing to select from.")


def counted(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CurateError(f"{name}={value!r} must be a whole number from 1 on.")
    return value
