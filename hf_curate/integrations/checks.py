"""What a trainer must be like for selection, said before training begins."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from datasets import Dataset

from hf_curate.curriculum.selector import OnlineSelector
from hf_curate.errors import CurateError
from hf_curate.runs.digest import table_digest
from hf_curate.scorers.baselines import RewardScorer
from hf_curate.scorers.policy import DirectedScorer


def check_trainer(trainer: Any, selector: OnlineSelector) -> None:
    """Raises for what selection cannot do in this trainer, and warns of rounds that cannot be on time."""
    for name, value in (
        ("tools", trainer.tools),
        ("environment_factory", trainer.environment_factories),
        ("rollout_func", trainer.rollout_func),
        ("a processor of images", trainer._is_vlm),
    ):
        if value:
            raise CurateError(
                f"{name}: selection samples one answer in text to each prompt by itself, and this trainer does more "
                "than that. Select before training (select) instead."
            )
    check_data(trainer, selector)
    types = {parameter.dtype for parameter in trainer.model.parameters()}
    if trainer.args.cast_lm_head_to_fp32 and types != {torch.float32}:
        raise CurateError(
            "cast_lm_head_to_fp32=True gives the LM head another type than the layers before it, and selection's "
            "gradients need one: load the model in float32, or leave cast_lm_head_to_fp32 away."
        )
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        raise CurateError("FSDP and ZeRO-3 keep the policy in pieces, and selection needs it whole: use DDP.")
    check_rollouts(selector)
    if selector.reuse_rollouts:
        check_reuse(trainer, selector)
    steps = boundary_steps(trainer)
    if selector.every % steps:
        warnings.warn(
            f"every={selector.every} is no multiple of the {steps} optimizer steps from one generation batch to the "
            f"next: rounds wait for the next one. Give a multiple of {steps}.",
            UserWarning,
            stacklevel=3,
        )


def check_data(trainer: Any, selector: OnlineSelector) -> None:
    """Raises unless prompts can be drawn from the pool, and from the validation set where there is one."""
    for what, data in (("pool", selector.pool), ("validation set", getattr(selector.scorer, "validation", None))):
        if data is not None and "prompt" not in data.column_names:
            raise CurateError(
                f"the {what} has no column 'prompt', and its columns are {', '.join(data.column_names)}: TRL reads "
                "'prompt', rename the one that holds it (dataset.rename_column)."
            )
    prompts = trainer.args.generation_batch_size // trainer.num_generations
    if prompts > len(selector.pool):
        raise CurateError(
            f"a generation batch takes {prompts:,} prompts and the pool has {len(selector.pool):,}: TRL would end at "
            "step 0. Give a larger pool, or a smaller per_device_train_batch_size or steps_per_generation."
        )


def check_rollouts(selector: OnlineSelector) -> None:
    """Raises where every group of responses would be without signal: rewards of one response do not differ."""
    scorer, asked = selector.scorer, {}
    if isinstance(scorer, (DirectedScorer, RewardScorer)):
        asked["rollouts"] = selector.rollouts
    if getattr(scorer, "validation", None) is not None:
        asked["validation_rollouts"] = selector.validation_rollouts
    for name, count in asked.items():
        if count < 2:
            raise CurateError(
                f"{name}={count}: the rewards of one response do not differ, so no problem would have a signal for "
                f"{type(scorer).__name__} and every round be decided by chance: give 2 or more (the authors draw 16)."
            )


def check_same(train_dataset: Any, pool: Dataset) -> None:
    """Raises unless a dataset for the trainer holds the rows of the pool."""
    told: list[str] = []
    if not isinstance(train_dataset, Dataset):
        told = [f"is a {type(train_dataset).__name__}", "is a Dataset"]
    elif train_dataset.num_rows != len(pool):
        told = [f"has {train_dataset.num_rows:,} rows", f"has {len(pool):,}"]
    elif train_dataset._fingerprint != pool._fingerprint:
        digests = [table_digest(one.with_format(None)) for one in (train_dataset, pool)]
        if digests[0] != digests[1]:
            told = [f"holds other rows (sha256 {digests[0][:12]})", f"holds {digests[1][:12]}"]
    if told:
        raise CurateError(
            f"train_dataset {told[0]}, the selector's pool {told[1]}: prompts are taken from the pool, so pass the "
            "same dataset to both, or no train_dataset."
        )


def boundary_steps(trainer: Any) -> int:
    """Every so many optimizer steps a generation batch begins where a step does."""
    micro = trainer.args.steps_per_generation * trainer.num_iterations
    return micro // math.gcd(micro, trainer.args.gradient_accumulation_steps)


def autocast_of(trainer: Any) -> torch.dtype | None:
    """The type of training's products, where autocast makes it another than that of the weights."""
    with trainer.accelerator.autocast():
        kind = trainer.accelerator.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def where_exact(trainer: Any) -> str:
    """One sentence on which checkpoints lie on a boundary."""
    steps = boundary_steps(trainer)
    begun = trainer.state.global_step - trainer._step // trainer.args.gradient_accumulation_steps
    if begun % steps:
        return f"Boundaries are {steps} steps apart, counted from step {begun}, where this training was resumed."
    return f"Save at multiples of {steps} steps (save_steps={steps}) and it goes on exactly."


def check_reuse(trainer: Any, selector: OnlineSelector) -> None:
    """Raises unless selection draws from the distribution that training draws from."""
    args, new = trainer.args, trainer.max_completion_length
    pairs = {
        "temperature": (selector.temperature, args.temperature),
        "top_p": (selector.top_p, args.top_p),
        "max_new_tokens": (selector.max_new_tokens or new, new),
        "top_k": (0, args.top_k or 0),
        "min_p": (0.0, args.min_p or 0.0),
        "repetition_penalty": (1.0, args.repetition_penalty),
        "generation_kwargs": (None, args.generation_kwargs or None),
        "use_vllm": (False, args.use_vllm),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise CurateError(
                f"reuse_rollouts=True, but selection samples with {name}={ours} and training with {theirs}: responses "
                "of one are none of the other. Give both the same, or draw new ones."
            )
    looks = 1 if selector.stop_early is None else 2
    if selector.rollouts // looks < trainer.num_generations:
        raise CurateError(
            f"reuse_rollouts=True, but selection draws rollouts={selector.rollouts}"
            f"{' in two halves' if looks == 2 else ''} and a group of training has "
            f"num_generations={trainer.num_generations}: give rollouts={looks * trainer.num_generations} or more."
        )
