"""How often the demo's models are right: greedy rollouts of the arithmetic model, sampled ones of the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_curate.demo import tasks, world
from hf_curate.errors import RowError, ScoreError
from hf_curate.rollouts.rollouts import Rollouts

MAX_NEW_TOKENS = 48  # a clean completion of 4 operations has at most 4 * 9 + 3 characters, and the end token


def greedy_rollouts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], batch_rows: int = 256
) -> list[str]:
    """One greedy completion for each prompt, at most ``MAX_NEW_TOKENS`` tokens, special tokens left out."""
    model.eval()
    generate = cast(Callable[..., torch.Tensor], model.generate)
    texts: list[str] = []
    for first in range(0, len(prompts), batch_rows):
        batch = tokenizer(prompts[first : first + batch_rows], padding=True, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            tokens = generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        texts += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def greedy_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: list[world.Problem]
) -> dict[str, float]:
    """The share (0 to 1) of problems whose greedy rollout writes exactly the right answer.

    Keys: ``"all"``, and each number of operations that occurs, as text.
    """
    rollouts = greedy_rollouts(model, tokenizer, [problem.prompt for problem in problems])
    right: dict[str, list[bool]] = {"all": []}
    for problem, rollout in zip(problems, rollouts, strict=True):
        hit = world.written_answer(rollout) == world.true_answer(problem.prompt)
        right["all"].append(hit)
        right.setdefault(str(len(problem.operations)), []).append(hit)
    return {key: sum(hits) / len(hits) for key, hits in sorted(right.items(), reverse=True)}


def pass_rates(
    model: Path | PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    n: int = 1,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """The share (0 to 1) of ``n`` completions that ``tasks.solved`` calls right: family -> level as text -> share.

    ``model`` is a folder, or a live model with its ``tokenizer``; the arithmetic is float32 for a folder. Temperature
    0 is greedy. ``rows`` are those of ``tasks.problems``; ``ScoreError`` where one of them cannot be judged.
    """
    dtype = "float32" if tokenizer is None else None
    options = {"temperature": temperature, "seed": seed, "max_new_tokens": tasks.LONGEST}
    rollouts = Rollouts(model, tasks.solved, n, tokenizer=tokenizer, dtype=dtype, **options)
    rewards: dict[str, dict[str, list[float]]] = {}
    for row, made in zip(rows, rollouts.score_rows(rows), strict=True):
        if isinstance(made, RowError) or made["rewards"] is None:
            why = made if isinstance(made, RowError) else made["rollouts_error"]
            raise ScoreError(f"the problem {row['prompt']!r} has no rewards: {why}.")
        rewards.setdefault(row["family"], {}).setdefault(str(row["level"]), []).extend(made["rewards"])
    return {
        family: {level: sum(own) / len(own) for level, own in levels.items()} for family, levels in rewards.items()
    }
