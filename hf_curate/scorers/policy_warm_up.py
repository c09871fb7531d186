"""The warm-up before LearnAlign: a short GRPO training of the policy on random problems of the pool, through TRL.

LearnAlign's authors take rollouts and gradients of a policy after GRPO on 300 (GSM8K) or 1000 (DAPO-MATH-17K) random
problems, with learning rate 1e-6, KL coefficient 0.04, clip 0.2 and 8 rollouts at temperature 1.0. Their text leaves
open how many problems an update has, and whether rollouts serve more than one; ours: 8, and one. As published, GRPO
divides advantages by the standard deviation of their group, and takes the mean over a rollout's tokens first.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import ColumnsError, CurateError, MissingPackageError, RowError, ScoreError
from hf_curate.models import causal_lm
from hf_curate.scorers.fitting import has_signal
from hf_curate.scorers.grpo import Recipe, as_it_was, saved_generation, train
from hf_curate.scorers.warm_up import WARM_UP_STREAM, check_copy, trainable_copy, with_lora
from hf_curate.weights import WARM_UP_FILE

if TYPE_CHECKING:
    from hf_curate.scorers.learnalign import LearnAlignScorer

HOPELESS = 8
"""So many problems without a single verdict, and the training ends."""


def warm_up_policy(scorer: LearnAlignScorer, dataset: Any, out: Path, recipe: Recipe) -> None:
    """Trains a copy of the scorer's model and writes weights, tokenizer and `hf_curate_warm_up.json` to `out`.

    The scorer's `rollouts` say how prompts are read and who verifies. Raises ScoreError where no row drawn can be
    read, or the verifier judges none.
    """
    _check_packages()
    check_copy(scorer, out, recipe.method)
    _check_rows(scorer, dataset)
    _check_end(scorer.reader.tokenizer)
    rows, prompts, unreadable = _draw(scorer, dataset, recipe)
    loaded, method = trainable_copy(scorer, recipe.method)
    rewards = Rewards(scorer.rollouts, rows, recipe)
    with as_it_was():
        model, settings = loaded.model, {}
        if method == "lora":
            model, settings = with_lora(loaded, scorer.source.commit, recipe.seed)
        config, generation = copy.deepcopy(loaded.model.config), saved_generation(loaded.model)
        order = _order(len(rows), recipe)
        steps = train(model, loaded, prompts, order, rewards, recipe)
        inner = causal_lm(model)
        inner.config, inner.generation_config = config, generation  # without the padding that trainers put there
    if not rewards.with_signal:
        warnings.warn(_taught_nothing(rewards, recipe), UserWarning, stacklevel=3)
    out.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Any] = {"selected_adapters": ["default"]} if method == "lora" else {}  # TRL added its reference
    model.save_pretrained(out, **chosen)
    scorer.reader.tokenizer.save_pretrained(out)
    record = {
        "kind": "GRPO",
        "method": method,
        **settings,
        "base": {key: value for key, value in scorer.model_record().items() if key in ("id", "sha", "digest")},
        "rows": len(rows),
        "unreadable_rows": unreadable,
        "unverified_rows": len(rewards.unverified),
        "pool_rows": len(dataset),
        "pool_fingerprint": getattr(dataset, "_fingerprint", None),
        "seed": recipe.seed,
        "learning_rate": recipe.learning_rate,
        "beta": recipe.beta,
        "clip": recipe.clip,
        "n": recipe.n,
        "temperature": recipe.temperature,
        "max_new_tokens": recipe.max_new_tokens,
        "updates": recipe.updates,
        "batch_problems": len(order[0]),
        "optimizer": "AdamW, constant learning rate, gradient norm clipped at 1",
        "steps": steps,
        "groups": rewards.groups,
        "groups_with_signal": rewards.with_signal,
        "reward_first": rewards.means[0],
        "reward_last": rewards.means[-1],
        "verifier": scorer.rollouts.verifier.record(),
        "packages": {"trl": importlib.metadata.version("trl")},
    }
    (out / WARM_UP_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_packages() -> None:
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("trl", "trl", "a warm-up by GRPO") from error


def _check_rows(scorer: LearnAlignScorer, dataset: Any) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ScoreError(
            f"the warm-up draws from a datasets.Dataset, this is a {type(dataset).__name__}: pass one split "
            "(dataset['train']); Dataset.from_list(rows) makes one of rows."
        )
    if not len(dataset):
        raise ScoreError("the dataset to warm up on is empty: there is no problem to train on.")
    scorer.rollouts.check_columns(dataset.column_names, dataset[0])
    if not scorer._makes(dataset.column_names):
        raise ColumnsError(
            "the rows hold rollouts already, of a policy before this warm-up, and they would be scored instead of its "
            "own: dataset.remove_columns([...]) those of the responses and their rewards."
        )


def _check_end(tokenizer: Any) -> None:
    if tokenizer.eos_token_id is None:
        raise CurateError(
            "the tokenizer has no EOS token, and training by GRPO needs one to know where a response ends: set "
            "tokenizer.eos_token to the token that ends the model's texts, and pass it as tokenizer=."
        )


def _draw(scorer: LearnAlignScorer, dataset: Any, recipe: Recipe) -> tuple[list[Any], list[Any], int]:
    """(rows, their prompts as texts or messages, how many others of the draw could not be read)."""
    if len(dataset) < recipe.problems:
        warnings.warn(
            f"problems={recipe.problems}, and the pool has {len(dataset):,} rows: the warm-up trains on all of them.",
            UserWarning,
            stacklevel=4,
        )
    shuffled = np.random.default_rng([recipe.seed, WARM_UP_STREAM]).permutation(len(dataset))
    drawn = [dataset[int(index)] for index in np.sort(shuffled[: recipe.problems])]
    read = [_read(scorer, row, recipe.max_new_tokens) for row in drawn]
    good = [index for index, item in enumerate(read) if not isinstance(item, RowError)]
    if not good:
        raise ScoreError(
            f"none of the {len(read):,} rows drawn for the warm-up can be sampled for: {read[0]}. If they are too "
            f"long, lower max_new_tokens={recipe.max_new_tokens}."
        )
    return [drawn[index] for index in good], [read[index] for index in good], len(read) - len(good)


def _read(scorer: LearnAlignScorer, row: Mapping[str, Any], new: int) -> str | list[dict[str, str]] | RowError:
    """The prompt as TRL takes it."""
    reader = scorer.rollouts.reader
    problem = reader.read(row)
    if isinstance(problem, RowError):
        return problem
    if reader.max_length is not None and len(problem.ids) + new > reader.max_length:
        detail = f"{len(problem.ids):,} prompt tokens and {new:,} new ones, the context is {reader.max_length:,}"
        return RowError("too long", detail)
    return problem.asked if isinstance(problem.asked, str) else [dict(message) for message in problem.asked]


def _order(rows: int, recipe: Recipe) -> list[list[int]]:
    """Batches of equal size, at most `batch_problems`, with every row once; the last is filled up with the first."""
    order = np.random.default_rng([recipe.seed, WARM_UP_STREAM, 1]).permutation(rows).tolist()
    batches = math.ceil(rows / recipe.batch_problems)
    size = math.ceil(rows / batches)
    filled = order + order[: batches * size - rows]
    return [filled[start : start + size] for start in range(0, len(filled), size)]


class Rewards:
    """The verifier as TRL calls a reward function, on the rows themselves; keeps count of what it saw.

    A problem with a response that was not judged gives no signal: its rewards are all 0.
    """

    def __init__(self, rollouts: Any, rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> None:
        self.__name__ = rollouts.verifier.name
        self.verifier, self.tokenizer, self.rows, self.n = rollouts.verifier, rollouts.reader.tokenizer, rows, recipe.n
        self.means: list[float | None] = []
        """Mean reward of each batch of problems; None where nothing was judged."""
        self.groups = self.with_signal = 0
        self.unverified: dict[int, RowError] = {}

    def __call__(self, completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: Any) -> list[float | None]:
        rewards: list[float | None] = []
        judged: list[float] = []
        for start in range(0, len(row), self.n):
            index, ids = row[start], [list(own) for own in completion_ids[start : start + self.n]]
            self.groups += 1
            try:
                found = self._judged(self.rows[index], ids)
            except RowError as error:
                self.unverified[index] = error
                rewards += [0.0] * len(ids)
                continue
            self.with_signal += has_signal(np.array(found))
            rewards += found
            judged += found
        self.means.append(float(np.mean(judged)) if judged else None)
        if all(mean is None for mean in self.means) and len(self.unverified) >= min(HOPELESS, len(self.rows)):
            raise ScoreError(
                f"the verifier {self.verifier.name!r} judged none of the first {len(self.unverified):,} problems of "
                f"the warm-up: {next(iter(self.unverified.values()))}. Look at some rows and their responses first: "
                "dataset.map(Rollouts(model, verifier, n=2), batched=True)."
            )
        return rewards

    def _judged(self, row: Mapping[str, Any], ids: list[list[int]]) -> list[float]:
        """One finite reward for each response; RowError: one of them was not judged."""
        texts = [self.tokenizer.decode(own, skip_special_tokens=True) for own in ids]
        verdicts = self.verifier.verify(texts, [row] * len(texts), ids)
        if failed := next((verdict for verdict in verdicts if isinstance(verdict, RowError)), None):
            raise failed
        rewards = [float(verdict.reward) for verdict in verdicts]
        if len(rewards) != len(texts) or not np.isfinite(rewards).all():
            raise RowError("verifier failed", f"rewards {rewards}, expected {len(texts):,} finite numbers")
        return rewards


def _taught_nothing(rewards: Rewards, recipe: Recipe) -> str:
    return (
        f"the warm-up taught nothing: in none of {rewards.groups:,} groups did the rewards of a problem's {recipe.n} "
        f"rollouts differ (mean reward {rewards.means[0]}). Are problems too hard or too easy, responses cut at "
        f"max_new_tokens={recipe.max_new_tokens}, or answers written in another form than the verifier "
        f"{rewards.verifier.name!r} reads?"
    )
