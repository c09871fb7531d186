"""The warm-up before scoring: a short supervised training on a random part of the pool, saved as safetensors.

GRACE's authors score with one checkpoint after a warm-up on a random 5 % of the pool. Its recipe is not in their
text; ours is their post-training one: LoRA of rank 8 and alpha 32 on all linear layers, learning rate 1e-4, one epoch.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import Example, bucket, pad
from hf_curate.errors import CurateError, MissingPackageError, ScoreError
from hf_curate.models import LanguageModel
from hf_curate.weights import WARM_UP_FILE

if TYPE_CHECKING:
    from hf_curate.scorers.grace import GraceScorer
    from hf_curate.scorers.model import ModelScorer

logger = logging.getLogger("hf_curate")

WARM_UP_STREAM = 1
"""The draw's own random stream: with that of a baseline or an audit, these would consist of rows trained on."""

TINY = 10_000_000
"""Under this many parameters the default is full fine-tuning."""


def warm_up(
    scorer: GraceScorer,
    dataset: Any,
    out: Path,
    *,
    fraction: float,
    seed: int,
    method: str | None,
    learning_rate: float,
    epochs: int,
    batch_rows: int,
) -> None:
    """Trains a copy of the scorer's model and writes weights, tokenizer and `hf_curate_warm_up.json` to `out`."""
    if not 0.0 < fraction <= 1.0:
        raise CurateError(f"fraction={fraction} must be above 0 and at most 1 (the authors use 0.05).")
    check_copy(scorer, out, method)
    _check_training(learning_rate, epochs, batch_rows)
    shuffled = np.random.default_rng([seed, WARM_UP_STREAM]).permutation(len(dataset))
    chosen = shuffled[: math.ceil(fraction * len(dataset))]
    read = [scorer.reader.read(dataset[int(index)]) for index in np.sort(chosen)]
    examples = [item for item in read if isinstance(item, Example)]
    if not examples:
        raise ScoreError(
            f"none of the {len(read)} rows drawn for the warm-up can be read: {read[0] if read else 'no rows'}"
        )
    loaded, method = trainable_copy(scorer, method)
    model, settings = with_lora(loaded, scorer.source.commit, seed) if method == "lora" else (loaded.model, {})
    losses = _train(model, loaded, examples, seed, learning_rate, epochs, batch_rows)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    scorer.reader.tokenizer.save_pretrained(out)
    record = {
        "method": method,
        **settings,
        "base": {key: value for key, value in scorer.model_record().items() if key in ("id", "sha", "digest")},
        "fraction": fraction,
        "rows": len(examples),
        "unreadable_rows": len(read) - len(examples),
        "pool_rows": len(dataset),
        "pool_fingerprint": getattr(dataset, "_fingerprint", None),
        "seed": seed,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_rows": batch_rows,
        "optimizer": "AdamW, 3 % linear warm-up, then constant, gradient norm clipped at 1",
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
    (out / WARM_UP_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_copy(scorer: ModelScorer, out: Path, method: str | None) -> None:
    """Raises where no copy of the scorer's model can be trained by this method, or not be saved in `out`."""
    if method not in (None, "lora", "full"):
        raise CurateError(f"method={method!r} is not 'lora' or 'full'.")
    source = scorer.source
    if source.base is not source or getattr(source.live, "peft_config", None):
        raise CurateError(
            f"{source.label!r} is an adapter, and only full weights can be warmed up: merge it first with "
            "model.merge_and_unload().save_pretrained(folder), save its tokenizer there, and pass that folder."
        )
    if method == "lora" and scorer.source.live is not None:
        raise CurateError(
            "a LoRA warm-up stores an adapter that names its base, and a live model has no name: pass a folder or a "
            "Hub id, or method='full'."
        )
    if out.exists() and any(out.iterdir()):
        raise CurateError(f"the folder {out.name!r} is not empty: give the warmed-up model a folder of its own.")


def _check_training(learning_rate: float, epochs: int, batch_rows: int) -> None:
    if epochs < 1 or batch_rows < 1 or not 0.0 < learning_rate < float("inf"):
        raise CurateError(
            f"learning_rate={learning_rate}, epochs={epochs}, batch_rows={batch_rows}: all three must be above 0."
        )


def trainable_copy(scorer: ModelScorer, method: str | None) -> tuple[LanguageModel, str]:
    """A copy of the scorer's model in a dtype that can be trained by the method, and that method, chosen by size where
    none is given."""
    import copy

    import torch

    from hf_curate.models import load_model, prepared

    arguments = {"dtype": scorer.dtype, "device": scorer.device, "model_kwargs": scorer.model_kwargs}
    loaded = load_model(scorer.source, scorer.reader.tokenizer, **arguments)
    if scorer.source.live is not None:
        loaded = prepared(copy.deepcopy(loaded.model), loaded.tokenizer, loaded.device)
    method = method or ("full" if size_of(loaded) < TINY else "lora")
    if loaded.model.dtype == torch.float16 or (method == "full" and loaded.model.dtype == torch.bfloat16):
        loaded = _widened(loaded)
    return loaded, method


def size_of(loaded: LanguageModel) -> int:
    """Parameters of the model."""
    return sum(parameter.numel() for parameter in loaded.model.parameters())


def _widened(loaded: LanguageModel) -> LanguageModel:
    """In float32: half precision weights cannot take small updates."""
    from hf_curate.models import prepared

    return prepared(loaded.model.float(), loaded.tokenizer, loaded.device)


def with_lora(loaded: LanguageModel, commit: str | None, seed: int) -> tuple[Any, dict[str, Any]]:
    """The model with an untrained LoRA adapter, whose random half is drawn with `seed`, and what the record says."""
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingPackageError("peft", "peft", "a LoRA warm-up") from error
    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(loaded.model, config)
    model.peft_config["default"].revision = commit  # so that the adapter loads onto this base and no later one
    return model, {"lora": {"r": 8, "alpha": 32, "target_modules": "all-linear"}}


def _train(
    model: Any,
    loaded: LanguageModel,
    examples: Sequence[Example],
    seed: int,
    learning_rate: float,
    epochs: int,
    batch_rows: int,
) -> list[float]:
    import torch
    from tqdm.auto import tqdm

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    generator = np.random.default_rng([seed, WARM_UP_STREAM, 1])  # the order is drawn apart from the rows
    total = epochs * math.ceil(len(examples) / batch_rows)
    losses: list[float] = []
    model.train()
    with torch.random.fork_rng(), tqdm(total=total, desc="warm-up", unit="step") as bar:
        torch.manual_seed(seed)
        for _ in range(epochs):
            order = generator.permutation(len(examples))
            for start in range(0, len(order), batch_rows):
                batch = [examples[i] for i in order[start : start + batch_rows]]
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * min(1.0, (len(losses) + 1) / max(1, math.ceil(0.03 * total)))
                losses.append(_step(model, batch, loaded))
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
    model.eval()
    return losses


def _step(model: Any, batch: Sequence[Example], loaded: LanguageModel) -> float:
    """Accumulates the gradient of the mean completion-token loss of one batch of rows, bucketed by length."""
    import torch

    targets = [_completion_labels(example) for example in batch]
    count, total = sum(map(len, targets)), 0.0
    limit = 8192 if loaded.device.type == "cpu" else 16384
    for group in bucket([len(example.input_ids) for example in batch], limit):
        ids = pad([batch[i] for i in group], loaded.device)
        labels = torch.full_like(ids, -100)
        for row, index in enumerate(group):
            where = torch.tensor(targets[index], device=ids.device)
            labels[row, where] = ids[row, where]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = (
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / count
        )
        loss.backward()
        total += float(loss.detach())
    return total


def _completion_labels(example: Example) -> list[int]:
    """Label positions of the completion's tokens."""
    return list(range(max(1, example.first_completion_token), len(example.input_ids)))
