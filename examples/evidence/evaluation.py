"""How often models are right: greedy completions of held-out problems, and exactly the right answer at their end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from evidence.language import Language, written
from evidence.stack import Parameters, Stack, greedy
from hf_curate.demo.tokenizer import EOS_ID
from hf_curate.demo.world import Problem, written_answer

ROOM = 1.75
"""Tokens of a completion at most, over those of a right and terse one: the verbose style has room."""


def right_answers(
    stack: Stack,
    parameters: Parameters,
    reader: PreTrainedTokenizerBase,
    language: Language,
    problems: Sequence[Problem],
) -> np.ndarray:
    """[models, problems] bool. Problems whose prompts are as long are worked on together."""
    together: dict[int, list[int]] = defaultdict(list)
    for place, problem in enumerate(problems):
        together[len(problem.prompt)].append(place)
    device = parameters["lm_head.weight"].device
    right = np.zeros((parameters["lm_head.weight"].shape[0], len(problems)), dtype=bool)
    for places in together.values():
        own = [problems[place] for place in places]
        prompts = torch.tensor(reader([problem.prompt for problem in own])["input_ids"], device=device)
        longest = max(len(written(language.work_out(problem))) for problem in own)
        found = greedy(stack, parameters, prompts, round(ROOM * longest) + 2, EOS_ID)
        answers = [language.answer(problem) for problem in own]
        for model, completions in enumerate(found.tolist()):
            right[model, places] = [
                ended(completion, reader) == answer for completion, answer in zip(completions, answers, strict=True)
            ]
    return right


def ended(completion: Sequence[int], reader: PreTrainedTokenizerBase) -> str | None:
    """What the answer line of a completion says; None without an end or an answer line."""
    if EOS_ID not in completion:
        return None
    return written_answer(str(reader.decode(list(completion[: list(completion).index(EOS_ID)]))))


def accuracies(
    stack: Stack,
    parameters: Parameters,
    reader: PreTrainedTokenizerBase,
    language: Language,
    tasks: Mapping[str, Sequence[Problem]],
) -> list[dict[str, float]]:
    """For each model: task -> percent right."""
    found = {
        name: 100.0 * right_answers(stack, parameters, reader, language, problems).mean(axis=1)
        for name, problems in tasks.items()
    }
    models = parameters["lm_head.weight"].shape[0]
    return [{name: round(float(values[model]), 2) for name, values in found.items()} for model in range(models)]
