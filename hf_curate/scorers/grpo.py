"""GRPO by TRL's trainer, on a copy of a policy, in a process that is as before when it is over."""

from __future__ import annotations

import copy
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import CurateError
from hf_curate.models import LanguageModel, causal_lm
from hf_curate.scorers.checks import checked_seed
from hf_curate.scorers.warm_up import TINY, WARM_UP_STREAM, size_of

if TYPE_CHECKING:
    from hf_curate.scorers.policy_warm_up import Rewards


@dataclass(frozen=True)
class Recipe:
    """How the copy is trained: the arguments of `LearnAlignScorer.warmed_up`. Raises CurateError for others."""

    problems: int
    seed: int
    n: int
    temperature: float
    max_new_tokens: int
    method: str | None
    learning_rate: float
    beta: float
    clip: float
    updates: int
    batch_problems: int

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        for name, least in {"problems": 1, "n": 2, "max_new_tokens": 1, "updates": 1, "batch_problems": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CurateError(f"{name}={value!r} must be a whole number from {least} on.")
        for name in ("learning_rate", "temperature", "beta", "clip"):
            value, zero = getattr(self, name), name == "beta"
            real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not real or value < 0 or (value == 0 and not zero):
                raise CurateError(f"{name}={value!r} must be a finite number {'from 0 on' if zero else 'above 0'}.")


def train(
    model: Any,
    loaded: LanguageModel,
    prompts: Sequence[Any],
    order: Sequence[Sequence[int]],
    rewards: Rewards,
    recipe: Recipe,
) -> int:
    """Trains the model in place; the number of steps."""
    from datasets import Dataset
    from transformers import GenerationConfig
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    inner: Any = causal_lm(model)
    ends = getattr(inner.generation_config, "eos_token_id", None)
    inner.generation_config = GenerationConfig(eos_token_id=ends)  # no penalties, no top_k: the policy itself
    asked = [index for batch in order for index in batch]
    with tempfile.TemporaryDirectory(prefix="hf-curate-warm-up-") as folder:
        if recipe.beta and model is inner:  # TRL reads the reference policy again, from where the config says
            inner.save_pretrained(Path(folder) / "reference")
            inner.config._name_or_path = str(Path(folder) / "reference")
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=_settings(Path(folder) / "trainer", loaded, len(order[0]), recipe),
            train_dataset=Dataset.from_dict({"prompt": [prompts[index] for index in asked], "row": asked}),
            processing_class=copy.deepcopy(loaded.tokenizer),  # it is given a padding token
            callbacks=[_bar(len(order) * recipe.updates, rewards)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.state.global_step


def _settings(folder: Path, loaded: LanguageModel, size: int, recipe: Recipe) -> Any:
    """GRPO on batches of `size` problems: the rollouts of one problem at a time go forward and backward."""
    from trl.trainer.grpo_config import GRPOConfig

    cpu = loaded.device.type == "cpu"
    settings = GRPOConfig(
        output_dir=str(folder),
        seed=int(np.random.default_rng([recipe.seed, WARM_UP_STREAM, 2]).integers(2**31)),
        num_train_epochs=1,
        per_device_train_batch_size=recipe.n,
        gradient_accumulation_steps=size,
        num_generations=recipe.n,
        num_iterations=recipe.updates,
        max_completion_length=recipe.max_new_tokens,
        temperature=recipe.temperature,
        beta=recipe.beta,
        epsilon=recipe.clip,
        loss_type="grpo",
        scale_rewards="group",
        shuffle_dataset=False,
        disable_dropout=True,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=size_of(loaded) >= TINY,
        bf16=False,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
    )
    settings._n_gpu = min(1, settings.n_gpu)  # one device, also where several are visible
    return settings


def _bar(steps: int, rewards: Rewards) -> Any:
    """One bar for the training, with the last batch's mean reward."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.bar = tqdm(total=steps, desc="warm-up", unit="step")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.bar.update()
            mean = rewards.means[-1]
            self.bar.set_postfix(reward="none" if mean is None else f"{mean:.3f}")

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.bar.close()

    return Bar()


@contextmanager
def as_it_was() -> Iterator[None]:
    """Trainers seed every random number generator and share one accelerator in the process: after this block all of
    that is as it was before."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    chance, numbers = random.getstate(), np.random.get_state()
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    held = [dict(state) for state in shared]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(chance)
        np.random.set_state(numbers)
        for state, before in zip(shared, held, strict=True):
            state.clear()
            state.update(before)


def saved_generation(model: Any) -> Any:
    """The model's generation settings; where transformers would refuse to save those, only what ends a text."""
    from transformers import GenerationConfig

    settings = copy.deepcopy(model.generation_config)
    try:
        settings.validate(strict=True)
    except ValueError:
        return GenerationConfig(eos_token_id=settings.eos_token_id)
    return settings
