"""Small problems with rollouts and rewards of the demo's arithmetic, a tiny policy for them, explicit gradients."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import saved, tiny
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from hf_curate.demo import MODEL, world

sys.path.append(str(Path(__file__).parent / "oracles"))  # pytest does so only where that folder is collected
import policy_reference as reference

Row = dict[str, Any]
KINDS = (world.clean, world.propagated, world.wrong_answer)


@functools.cache
def tokenizer() -> Any:
    """The demo's: one token for each character, 20 of them."""
    return AutoTokenizer.from_pretrained(MODEL)


def policy(kind: str = "Qwen3", seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random model for that tokenizer whose predictions are far from uniform."""
    return tiny(kind, 20, seed, **({"initializer_range": 0.2} | options))


def saved_policy(folder: Path, kind: str = "Qwen3", seed: int = 0, **options: Any) -> Path:
    return saved(folder, policy(kind, seed, **options), tokenizer())


def solved(problems: int, rollouts: int = 4, seed: int = 0) -> list[Row]:
    """Problems of which the first response is right and the second wrong; rewards are 1 and 0, by the answers."""
    rng = random.Random(seed)
    rows = []
    for problem in world.draw_problems(problems, rng, "traces"):
        responses = [world.clean(problem), world.propagated(problem, rng)]
        while len(responses) < rollouts:
            kind = rng.choice(KINDS)
            responses.append(kind(problem) if kind is world.clean else kind(problem, rng))  # type: ignore[operator]
        right = [world.written_answer(text) == world.true_answer(problem.prompt) for text in responses]
        rows.append({"prompt": problem.prompt, "responses": responses[:rollouts], "rewards": list(map(float, right))})
    return rows


def rows_of_every_kind() -> list[Row]:
    """Twelve rows: five with a signal of the plain kind, then those below, by name."""
    rows = solved(5) + solved(7, seed=1)
    five, (right, wrong, twins, alone, pair, odd, double) = rows[:5], rows[5:]
    right["rewards"] = [1.0] * 4
    wrong["rewards"] = [0.0] * 4
    twins["responses"] = twins["responses"][:1] * 4
    alone |= {"responses": alone["responses"][:1], "rewards": alone["rewards"][:1]}
    pair |= {"responses": pair["responses"][:2], "rewards": pair["rewards"][:2]}
    odd["rewards"] = [-1.0, 0.25, 0.75, 2.0]
    double["responses"] = [double["responses"][i] for i in (0, 1, 0, 1)]
    double["rewards"] = [1.0, 0.0, 1.0, 1.0]
    return [*five, right, wrong, twins, alone, pair, odd, double]


SIGNAL = [True] * 5 + [False] * 4 + [True] * 3
"""Which of these have a policy gradient."""


def with_ids(rows: Sequence[Row]) -> list[Row]:
    """The same rows with the token ids of the responses in place of their text."""
    eos = tokenizer().eos_token_id
    ids = [[[*tokenizer()(text)["input_ids"], eos] for text in row["responses"]] for row in rows]
    return [
        {"prompt": row["prompt"], "response_ids": own, "rewards": row["rewards"]}
        for row, own in zip(rows, ids, strict=True)
    ]


def pool() -> Dataset:
    return Dataset.from_list(rows_of_every_kind())


def trusted() -> Dataset:
    """Four problems of other prompts, one of them without signal."""
    rows = solved(4, rollouts=5, seed=2)
    rows[2]["rewards"] = [0.0] * 5
    return Dataset.from_list(rows)


@contextmanager
def forwards(scorer: Any) -> Iterator[list[int]]:
    """A list that grows with every forward of the scorer's model."""
    seen: list[int] = []
    handle = scorer.load().decoder.register_forward_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        handle.remove()


def by_row(columns: dict[str, list[Any]]) -> list[Row]:
    """What a scorer returns for a batch, row by row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class Sometimes(torch.nn.Module):
    """Embeddings with a learned vector that only the character `*` is given."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rare = torch.nn.Parameter(torch.full((inner.weight.shape[1],), 0.1))  # type: ignore[index,union-attr]

    def forward(self, ids: Tensor) -> Tensor:
        times = tokenizer().convert_tokens_to_ids("*")
        return self.inner(ids) + (ids == times).unsqueeze(-1) * self.rare


def with_a_rare_parameter() -> tuple[PreTrainedModel, list[Row], list[Row]]:
    """A model with a parameter that some problems never reach; three problems that do, two that do not."""
    model = policy(tie_word_embeddings=False)
    inner = model.get_input_embeddings()
    model.model.embed_tokens = Sometimes(inner)
    model.get_input_embeddings = lambda: inner  # type: ignore[method-assign]
    rows = solved(30, seed=4)
    reached = [row for row in rows if "*" in row["prompt"]]
    return model, reached[:3], [row for row in rows if "*" not in row["prompt"]][:2]


# -- explicit gradients -----------------------------------------------------------------------------------------------


def rollout_vectors(scorer: Any, rows: Sequence[Row], which: str, model: Any = None) -> list[list[Tensor]]:
    """For each row the gradient of each rollout's mean log-probability, as one float64 vector over the set."""
    model = scorer.load().model if model is None else model
    names = reference.names_of(model, which)
    return [
        [
            reference.flat(reference.rollout_gradient(model, rollout), names)
            for rollout in scorer.reader.read(row).rollouts
        ]
        for row in rows
    ]


def gradients(vectors: Sequence[Sequence[Tensor]], rows: Sequence[Row]) -> list[Tensor]:
    """Policy gradients; exactly 0 where rewards, or responses, are all equal."""
    found = []
    for own, row in zip(vectors, rows, strict=True):
        gradient = reference.policy_gradient(own, reference.advantages_of(row["rewards"]))
        responses = row.get("responses") or list(map(tuple, row["response_ids"]))
        same = len(set(row["rewards"])) == 1 or len(set(responses)) == 1
        found.append(torch.zeros_like(gradient) if same else gradient)
    return found
