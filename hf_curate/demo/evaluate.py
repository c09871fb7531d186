"""How often the demo model's greedy rollouts end in the right answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_curate.demo import world

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
