"""Texts that grow by a token at a time, with a key-value cache; and the proof that its logits are the model's own.

The caches of transformers are many: full, sliding and chunked attention, latent heads, convolutions and recurrent
states beside them. All of them select rows by `reorder_cache`, and few by `batch_select_indices`. Whether a model's
cache, positions and mask work together under padding and selection is not read from its name but measured.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_curate.errors import ModelError
from hf_curate.models import LanguageModel
from hf_curate.weights import first_line

if TYPE_CHECKING:
    import torch

INSTEAD = "Sample from it with a server that knows it, or give rollouts that were sampled elsewhere (response_ids=)."
GROWTH = (((0, 1, 1), (3, 4, 5)), ((2, 0), (6, 7)), ((0, 1), (8, 9)))
"""(parents, tokens) of the texts that a cache is proved on: a fork, a drop with a change of places, a plain step."""


class CachedTexts:
    """Texts side by side, one for each row of the cache; `logits` [B, V] predict the next token of each.

    Prompts of different length are padded on the left, masked, with positions that count from the first real token.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        import torch
        from transformers import DynamicCache

        takes = inspect.signature(model.decoder.forward).parameters
        self._cache_name = next((name for name in ("cache", "past_key_values", "cache_params") if name in takes), None)
        if self._cache_name is None:
            raise ModelError(f"{type(model.decoder).__name__} takes no cache. {INSTEAD}")
        self._positions = "position_ids" in takes  # others place tokens by the mask, or by their order
        self.model = model
        self._cache = DynamicCache(config=model.decoder.config)  # type: ignore[arg-type]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
        self._length = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        place = torch.arange(longest, device=model.device) - (longest - self._length)[:, None]
        self._mask = (place >= 0).long()
        self.logits = self._forward(ids, place.clamp_min(0))

    def advance(self, parents: torch.Tensor, tokens: torch.Tensor) -> None:
        """[R] rows and [R] tokens: row r becomes the text of row parents[r] and tokens[r]; the others are dropped."""
        import torch

        if not torch.equal(parents, torch.arange(len(self._mask), device=parents.device)):
            self._cache.reorder_cache(parents)  # type: ignore[arg-type]
            self._length, self._mask = self._length[parents], self._mask[parents]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._length = self._length + 1
        self.logits = self._forward(tokens[:, None], self._length[:, None] - 1)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        where = {"position_ids": positions} if self._positions else {}
        where |= {str(self._cache_name): self._cache}
        states = self.model.states(input_ids=ids, attention_mask=self._mask, use_cache=True, **where)
        return self.model.head.logits(states[:, -1]).to(ids.device)


def embeddings(model: LanguageModel) -> int:
    """Token ids that the model knows."""
    return int(model.decoder.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def check_cache(model: LanguageModel, *, padding: bool) -> bool:
    """Whether rows may be padded, which is tried where `padding`; raises where even rows of one length go wrong."""
    import torch

    half = torch.finfo(model.head.weight.dtype).eps > 1e-4
    allowed = 0.15 if half else 1e-3  # half precision carries 8 to 11 bits through all layers
    if padding and deviation(model, padded=True) <= allowed:
        return True
    if (found := deviation(model, padded=False)) <= allowed:
        return False
    raise ModelError(
        f"{type(model.decoder).__name__} gives other logits with a cache than without one: they differ by {found:.2g} "
        f"of their size, allowed is {allowed:g}. {INSTEAD}"
    )


def deviation(model: LanguageModel, *, padded: bool) -> float:
    """How far logits by way of the cache are from those of a plain forward, for two texts that grow by `GROWTH`.

    Relative to their spread; the median over a text's steps, of the text where it is larger. The median, since a
    router that tips the other way by rounding is no fault.
    """
    known = embeddings(model)
    rows = [[(7 * i + 1) % known for i in range(9)], [(5 * i + 2) % known for i in range(4 if padded else 9)]]
    errors: list[list[float]] = [[], []]
    whose = [0, 1]
    try:
        texts = CachedTexts(model, rows)
        for parents, tokens in GROWTH:
            rows = [[*rows[parent], token % known] for parent, token in zip(parents, tokens, strict=True)]
            whose = [whose[parent] for parent in parents]
            texts.advance(_ids(parents, model), _ids([row[-1] for row in rows], model))
            for logits, text, ids in zip(texts.logits, whose, rows, strict=True):
                plain = model.head.logits(model.hidden(_ids([ids], model))[0, -1:])[0].to(logits.device)
                errors[text].append(_error(logits, plain))
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{type(model.decoder).__name__} does not work with a DynamicCache: {first_line(error)} {INSTEAD}"
        ) from error
    return max(float(np.median(own)) for own in errors)


def _error(logits: torch.Tensor, plain: torch.Tensor) -> float:
    """Where the model itself gives no finite logits there is nothing to compare; a NaN of the cache's is infinite."""
    if not bool(plain.isfinite().all()):
        return 0.0
    error = float((logits - plain).norm() / (plain - plain.mean()).norm().clamp_min(1e-30))
    return math.inf if math.isnan(error) else error


def _ids(values: Sequence[int] | Sequence[list[int]], model: LanguageModel) -> torch.Tensor:
    import torch

    return torch.tensor(values, device=model.device)
