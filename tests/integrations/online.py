"""A small policy in training, problems for it, and a reward that it earns in some of its answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import rollouts
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOConfig

from hf_curate import GradAlignScorer
from hf_curate.demo import world
from hf_curate.integrations.trl import OnlineSelector, SelectedGRPOTrainer


def problems(rows: int, seed: int = 0) -> Dataset:
    """Prompts of the demo's arithmetic, each with a digit to write (`digit`)."""
    rng = random.Random(seed)
    drawn = world.draw_problems(rows, rng, "traces")
    return Dataset.from_list([{"prompt": one.prompt, "digit": str(rng.randrange(10))} for one in drawn])


def reward(completions: list[str], digit: list[str], **_: Any) -> list[float]:
    """Whether the answer writes the digit: a policy of random weights does so in about half of its answers."""
    return [float(own in text) for text, own in zip(completions, digit, strict=True)]


def policy(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return rollouts.policy(**options)


def settings(folder: Path, **others: Any) -> GRPOConfig:
    """Two prompts with four answers of eight tokens in each step."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return GRPOConfig(**(given | others))


def selector(pool: Dataset | None = None, scorer: Any = None, **others: Any) -> OnlineSelector:
    """Six problems a round, two of them kept, a round every two steps."""
    scorer = GradAlignScorer(validation=problems(3, seed=1)) if scorer is None else scorer
    given: dict[str, Any] = {"chunk": 6, "keep": 2, "every": 2, "rollouts": 4, "validation_rollouts": 4}
    return OnlineSelector(scorer, problems(20) if pool is None else pool, **(given | others))


def trainer(folder: Path, chosen: OnlineSelector, model: Any = None, rewards: Any = reward, **others: Any) -> Any:
    tokenizer = rollouts.tokenizer()
    given = {name: others.pop(name) for name in ("peft_config", "eval_dataset", "callbacks") if name in others}
    return SelectedGRPOTrainer(
        policy() if model is None else model,
        rewards,
        settings(folder, **others),
        processing_class=tokenizer,
        selector=chosen,
        **given,
    )


def trained(folder: Path, chosen: OnlineSelector, *args: Any, **others: Any) -> Any:
    one = trainer(folder, chosen, *args, **others)
    one.train()
    return one


def losses(one: Any) -> list[tuple[float, float, float | None]]:
    """(loss, gradient's norm, reward where answers were drawn) of each step."""
    return [(e["loss"], e["grad_norm"], e.get("reward")) for e in one.state.log_history if "loss" in e]


def prompts(chosen: OnlineSelector) -> list[list[int]]:
    return [batch["rows"] for batch in chosen.used]
