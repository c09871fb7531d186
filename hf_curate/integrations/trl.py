"""GRPO with TRL on problems that the policy itself chooses while it trains.

`SelectedGRPOTrainer` is TRL's `GRPOTrainer` but for one thing: where a generation batch begins, its prompts are those
that an `OnlineSelector` chose. Rounds of selection take place at such a boundary too, before its prompts are drawn, so
that nothing that was generated is older than the policy that chose it.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

from hf_curate.curriculum.selector import OnlineSelector
from hf_curate.errors import CurateError, MissingPackageError
from hf_curate.integrations.checks import autocast_of, check_same, check_trainer, where_exact
from hf_curate.integrations.in_place import InPlace
from hf_curate.integrations.processes import Processes
from hf_curate.integrations.rewards import TrainerRewards
from hf_curate.models import prepared
from hf_curate.rollouts.verify import verifier
from hf_curate.scorers.policy import DirectedScorer

try:
    from trl.trainer.grpo_trainer import GRPOTrainer
except ImportError as error:
    raise MissingPackageError("trl", "trl", "SelectedGRPOTrainer") from error

Base: Any = GRPOTrainer
"""Its attributes are declared as None where there never is one while it trains."""

__all__ = ["OnlineSelector", "SelectedGRPOTrainer"]

STATE_FILE, HISTORY_FILE = "selector.json", "selector_history.jsonl"


class SelectedGRPOTrainer(Base):
    """GRPO on the problems that a selector chooses. Everything but the prompts is TRL's.

    Args:
        model, reward_funcs, args, and the rest: as for TRL's `GRPOTrainer`; `args.max_steps` must be set.
        train_dataset (`Dataset`, *optional*): the selector's pool, which it is by default.
        selector (`OnlineSelector`): which problems, and when to choose anew.

    Every `selector.every` optimizer steps, or at the first generation batch after, the policy as it is then answers
    the validation problems and the next chunk of the pool with a sampler of its own; the reward functions judge (or
    the selector's `verifier`, which is also needed where a reward is a model), the scorer scores, and the best are
    trained on until the next round, in a seeded order. Forward and backward passes of selection are under training's
    own autocast (`bf16`, which is TRL's default, or `fp16`), so that what is sampled and scored is what training
    computes; gradients are summed and compared in float32 all the same. Random numbers, gradients, modes, flags and
    caches are left as they were: a selector that keeps everything changes no loss. In several processes each scores a
    part, the first decides. Evaluation is not touched.

    The logs gain, for each round, `selection/seconds`, `selection/rollouts`, `selection/without_signal`,
    `selection/overlap` (with the selection before) and `selection/score_mean`, `_min` and `_max` of what is kept; and
    `selection/share_of_time`, selection's of all seconds so far. `selector.history` and `selector.history_dataset()`
    say what was chosen and used; `selection_record()` how.

    A checkpoint holds the selector's state (`selector.json`) and what it did (`selector_history.jsonl`). Training that
    is resumed from one that lies on a boundary between generation batches goes on with the same prompts; elsewhere TRL
    itself generates the rest of a batch anew, here from the prompts after it, and a warning says which `save_steps`
    avoid that.

    Raises: `CurateError` for a missing `max_steps`, for what cannot be sampled here (tools, environments,
    `rollout_func`, images), for policies in pieces (FSDP, ZeRO-3), and for `AsyncGRPOTrainer` as another base: its
    prompts are drawn before the policy that they are for exists.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(base.__name__ == "AsyncGRPOTrainer" for base in cls.__mro__):
            raise CurateError(
                "AsyncGRPOTrainer draws prompts ahead of the policy, and selection needs the policy as it is: use "
                "SelectedGRPOTrainer alone."
            )

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *others: Any,
        selector: OnlineSelector,
        **named: Any,
    ) -> None:
        if not isinstance(selector, OnlineSelector):
            raise CurateError(f"selector= is a {type(selector).__name__}, expected an OnlineSelector(scorer, pool).")
        if args is None or args.max_steps <= 0:
            steps = None if args is None else args.max_steps
            raise CurateError(f"max_steps={steps}: selection has no epochs, set it in GRPOConfig(max_steps=...).")
        if train_dataset is not None:
            check_same(train_dataset, selector.pool)
        super().__init__(
            model, reward_funcs, args, selector.pool if train_dataset is None else train_dataset, *others, **named
        )
        check_trainer(self, selector)
        self.selector = selector
        device = next(self.model.parameters()).device
        policy = prepared(self.model, self._tokenizer, device)
        if isinstance(selector.scorer, DirectedScorer):
            selector.scorer.bound_to(policy)  # raises now for what would fail at the first step
        contract = TrainerRewards(self) if selector.verifier is None else verifier(selector.verifier)
        selector.judge = contract.record()
        self._in_place = InPlace(
            selector,
            policy,
            contract,
            lambda prompt: self._tokenize_prompts([prompt])[0][0],
            self.max_completion_length,
            Processes(self.accelerator),
            autocast=autocast_of(self),
            narrow_head=not self.args.cast_lm_head_to_fp32,
            quiet=self.args.disable_tqdm,
        )
        self._seeded: list[list[int] | None] = []
        self._since: float | None = None
        self._warned = False

    # -- prompts ------------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return super()._generate_and_score_completions(self._chosen(inputs) if self.model.training else inputs)

    def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """This process's part of the generation batch: as many rows as it was given."""
        selector, step = self.selector, self.state.global_step
        self._tick()
        self._in_place.drawn = {}
        if selector.due(step):
            record = self._in_place.round(step)
            told = {name: record[name] for name in ("seconds", "rollouts", "saved") if name in record}
            told |= selector.summary()
            for name, value in told.items():
                self._metrics["train"][f"selection/{name}"].append(float(value))
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        selector.training_rollouts += len(inputs) * world
        if not selector.chooses:
            return inputs
        rows = selector.take(-(-len(inputs) * world // self.num_generations), step)
        whole = [row for row in rows for _ in range(self.num_generations)]
        seeded: list[list[int] | None] = []
        for row in rows:
            ids = self._in_place.drawn.pop(row, [])[: self.num_generations]  # one group for each problem
            selector.used[-1]["reused"] += bool(ids)
            selector.training_rollouts -= len(ids)
            seeded += ids or [None] * self.num_generations
        self._seeded = seeded[rank * len(inputs) : (rank + 1) * len(inputs)]
        return [dict(selector.pool[row]) for row in whole[rank * len(inputs) : (rank + 1) * len(inputs)]]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any, **named: Any) -> tuple[Any, Any]:
        """New responses, but where the round before this batch has drawn them already."""
        seeded, self._seeded = self._seeded, []
        if not self.model.training or not any(seeded):
            return super()._generate_single_turn(prompt_ids, *others, **named)
        lacking = [ids for ids, own in zip(prompt_ids, seeded, strict=True) if own is None]
        new = iter(super()._generate_single_turn(lacking, *others, **named)[0] if lacking else ())
        return [next(new) if own is None else list(own) for own in seeded], None

    # -- from beginning to end ----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *others: Any, **named: Any) -> Any:
        if not resume_from_checkpoint:
            self._check_begins()
        self._since = time.perf_counter()
        try:
            return super().train(resume_from_checkpoint, *others, **named)
        finally:
            self._tick()
            self._since = None

    def _check_begins(self) -> None:
        """Raises where the selection is of another policy: its next round would be too late, or never."""
        if self.selector.history:
            raise CurateError(
                f"this selector has had {len(self.selector.history)} rounds in another training, the last at step "
                f"{self.selector.history[-1]['step']}: make a new OnlineSelector(...), or go on with that training, "
                "train(resume_from_checkpoint=True)."
            )

    # -- account ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """The selector knows how long training has taken, earlier processes of it included."""
        if self._since is not None:
            now = time.perf_counter()
            self.selector.elapsed, self._since = self.selector.elapsed + now - self._since, now

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self.selector.history:
            self._tick()
            logs["selection/share_of_time"] = self.selector.seconds / max(self.selector.elapsed, 1e-9)
        super().log(logs, start_time)

    def selection_record(self) -> dict[str, Any]:
        """How this training's problems were chosen, and what it cost, as JSON."""
        self._tick()
        return self.selector.record()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        if self.args.should_save:
            self._tick()
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{step}"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / HISTORY_FILE, self.selector.journal())
            _write(folder / STATE_FILE, json.dumps(self.selector.state()) + "\n")
        if (
            self._step % (self.args.steps_per_generation * self.num_iterations)
            and step < self.state.max_steps
            and not self._warned
        ):
            self._warned = True
            warnings.warn(
                f"checkpoint-{step} lies within a generation batch: training that is resumed from it generates the "
                f"rest of the batch anew, with other prompts. {where_exact(self)}",
                UserWarning,
                stacklevel=2,
            )
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            self._check_begins()
            warnings.warn(
                f"{path.parent.name} holds no {STATE_FILE}: it is not of a SelectedGRPOTrainer, and selection begins "
                "anew.",
                UserWarning,
                stacklevel=2,
            )
            return
        history = path.with_name(HISTORY_FILE)
        if not history.is_file():
            raise CurateError(
                f"{path.parent.name} holds {STATE_FILE} and no {HISTORY_FILE}: both are needed to go on."
            )
        self.selector.load_state(json.loads(path.read_text("utf-8")), history.read_text("utf-8"))


def _write(path: Path, text: str) -> None:
    """The whole file or none."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
