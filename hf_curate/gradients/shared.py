"""Many responses behind one prompt in one forward and backward: the prompt's tokens are computed once.

Everything in a decoder looks at one token at a time, but for attention. While this lasts the model's attention is
replaced: the prompt attends to itself, and each response to the prompt and to itself, by the very function that the
model has otherwise. So a problem of K rollouts costs P + R_1 + ... + R_K tokens in place of K (P + R), and none is
padding.

What a rollout adds to a product with a direction through the prompt is its gradient at the prompt's keys and values
times their derivative along the direction, which is the same for all rollouts: one forward-mode pass over the prompt
(`PromptTangents`).

Covered: models whose attention is transformers' "sdpa" or "eager" interface, with grouped heads, sliding windows that
are told to the attention, soft caps, sinks, rotary or learned positions, on one device. Whether a model is one (no
state that runs along the row, no positions of its own) is found out by comparing the hidden states of a few tokens in
both layouts, once (`shares_prompts`). What so few tokens cannot show is refused by the config: windows and chunks that
are in masks alone, sparse attention, rotary positions that depend on the length of the row.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from hf_curate.batches import Rollout
from hf_curate.errors import RowError
from hf_curate.gradients.forward_mode import forward_mode
from hf_curate.gradients.layout import Padded, Shared
from hf_curate.memory import is_out_of_memory

if TYPE_CHECKING:
    from hf_curate.models import LanguageModel

logger = logging.getLogger("hf_curate")

NAME = "hf_curate_shared_prompt"
KNOWN = ("sdpa", "eager")
SAME = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Hidden states of both layouts may differ by this, relative to their size."""

Watch = Callable[[nn.Module, str, Tensor], None]
"""Told the gradient [K, H, P, D] at an attention's keys or values ("key", "value") of the prompt, for each rollout."""


class _Attention:
    """What the model's attention is replaced by during one pass."""

    def __init__(self, layout: Shared, usual: str, watch: Watch | None) -> None:
        self._layout, self._usual, self._watch = layout, usual, watch
        self._masks: dict[Any, Tensor] = {}
        self.windows = 0  # calls that were told one

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        layout, prompt = self._layout, self._layout.prompt
        attend = _usual(module, self._usual)
        window = options.get("sliding_window")
        self.windows += window is not None
        first = [item[:, :, :prompt] for item in (query, key, value)]
        mask = None if self._usual == "sdpa" and _wide(window, prompt) else self._mask(query, 0, window)
        told, _ = attend(module, *first, mask, **options)
        rows = len(layout.rollouts)
        behind = {"key": first[1].expand(rows, -1, -1, -1), "value": first[2].expand(rows, -1, -1, -1)}
        if self._watch is not None:
            for kind, item in behind.items():
                if item.requires_grad:
                    item.register_hook(lambda gradient, kind=kind: self._watch(module, kind, gradient))  # type: ignore[misc]
        keys = torch.cat([behind["key"], self._own(key)], dim=2)
        values = torch.cat([behind["value"], self._own(value)], dim=2)
        answered, _ = attend(module, self._own(query), keys, values, self._mask(query, prompt, window), **options)
        parts = [told[0], answered.flatten(0, 1)[layout.back]]
        if layout.spare:
            parts.append(told.new_zeros(layout.spare, *told.shape[2:]))
        return torch.cat(parts)[None], None

    def _own(self, item: Tensor) -> Tensor:
        """[1, H, L, D] -> [K, H, R, D] of the responses."""
        own = self._layout.own
        return item[0][:, own.flatten()].unflatten(1, own.shape).transpose(0, 1)

    def _mask(self, query: Tensor, prompt: int, window: int | None) -> Tensor:
        """Of the prompt with itself, or of the responses (prompt > 0) with the prompt and themselves."""
        kind = (prompt, window, query.dtype, query.device)
        if kind not in self._masks:
            stop = self._layout.prompt + (self._layout.own.shape[1] if prompt else 0)
            sees = _sees(prompt, stop, window, query.device)
            if self._usual == "eager":
                sees = _added(sees, query.dtype)
            self._masks[kind] = sees[None, None]
        return self._masks[kind]


class _OfPrompt:
    """Attention of the prompt alone, in forward mode: keeps the derivatives of its keys and values."""

    def __init__(self, usual: str) -> None:
        self._usual = usual
        self.found: dict[nn.Module, dict[str, Tensor]] = {}

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        self.found[module] = {"key": _tangent(key), "value": _tangent(value)}
        window, tokens = options.get("sliding_window"), query.shape[2]
        mask = _added(_sees(0, tokens, window, query.device), query.dtype)
        # the one of its kernels that has a derivative in forward mode
        only = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with only if self._usual == "sdpa" else nullcontext():
            told, _ = _usual(module, self._usual)(module, query, key, value, mask[None, None], **options)
        return told, None


def _sees(start: int, stop: int, window: int | None, device: torch.device) -> Tensor:
    """[stop - start, stop] whether the token at a place from `start` on sees the one at a place from 0 on."""
    at, seen = torch.arange(start, stop, device=device)[:, None], torch.arange(stop, device=device)
    return seen <= at if window is None else (seen <= at) & (seen > at - window)


def _added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of an attention."""
    return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)


def _tangent(item: Tensor) -> Tensor:
    found = forward_ad.unpack_dual(item).tangent
    return torch.zeros_like(item) if found is None else found.clone()


def _wide(window: int | None, tokens: int) -> bool:
    return window is None or window >= tokens


def _usual(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function that the module has otherwise."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[name]


_ACTIVE: dict[int, _Attention | _OfPrompt] = {}
"""By the id of the config that a decoder's attention modules hold; the backward of another thread finds it too."""


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    if attention_mask is not None:
        raise ValueError("the model has a mask of its own, which responses behind one prompt do not fit")
    return _ACTIVE[id(module.config)](module, query, key, value, **options)


RAISED = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, RowError)
"""Whatever a model's own modules raise that do not know positions, or are run by themselves with other tensors."""
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # type: ignore[type-arg]


@contextmanager
def _replaced(decoder: nn.Module, make: Callable[[str], _Attention | _OfPrompt]) -> Iterator[Any]:
    """make: from the name of the model's own attention. One thread at a time; others that want the same model wait."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config: Any = decoder.config
    with _LOCKS.setdefault(decoder, threading.RLock()):
        before = config._attn_implementation
        if before == NAME:
            raise RuntimeError("a pass behind one prompt has begun within another")
        attention = make(before)
        config._attn_implementation, _ACTIVE[id(config)] = NAME, attention
        try:
            yield attention
        finally:
            config._attn_implementation = before
            _ACTIVE.pop(id(config), None)


@contextmanager
def behind_one_prompt(
    model: LanguageModel, layout: Padded | Shared, watch: Watch | None = None
) -> Iterator[_Attention | None]:
    """Around the forward and backward over a `Shared` row; does nothing for padded ones."""
    if isinstance(layout, Padded):
        yield None
        return
    with _replaced(model.decoder, lambda usual: _Attention(layout, usual, watch)) as attention:
        yield attention


class PromptTangents:
    """Derivatives along a direction of what the responses see of their prompt, from one pass in forward mode.

    Args:
        model: the loaded model.
        prompt: its token ids.
        along: name of a decoder's parameter -> (parameter, tangent in its dtype); others stay as they are.
    """

    def __init__(self, model: LanguageModel, prompt: Tensor, along: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        inputs = {"input_ids": prompt[None], "position_ids": torch.arange(len(prompt), device=prompt.device)[None]}
        replaced = _replaced(model.decoder, _OfPrompt)
        with forward_mode(), replaced as attention, model.computing():
            moved = {name: forward_ad.make_dual(p.detach(), tangent) for name, (p, tangent) in along.items()}
            out = functional_call(model.decoder, moved, (), {**inputs, "use_cache": False}, tie_weights=False)
            self.last = _tangent(out.last_hidden_state[0, -1])
        self._found = attention.found

    def products(self, module: nn.Module, kind: str, gradient: Tensor) -> Tensor:
        """[K, H, P, D] gradients at the prompt's keys or values -> what each rollout adds to its product."""
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        tangent = self._found[module][kind].to(wide)
        return (gradient.to(wide) * tangent).reshape(len(gradient), -1).sum(dim=1)


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""By the attention that a decoder has: a live model's may be set anew."""


def shares_prompts(model: LanguageModel) -> bool:
    """Whether this model reads `Shared` rows as it reads `Padded` ones; found out once, on a few tokens."""
    usual = getattr(getattr(model.decoder, "config", None), "_attn_implementation", None)
    if usual not in KNOWN:
        return False
    known = _KNOWN.setdefault(model.decoder, {})
    if usual not in known:
        known[usual] = _compared(model)
    return known[usual]


def share_no_more(model: LanguageModel, why: object) -> None:
    """Padded rows from here on, for this model."""
    logger.info("each rollout with a prompt of its own from here on: %s", why)
    _KNOWN[model.decoder] = dict.fromkeys(KNOWN, False)


def _refused(config: Any) -> bool:
    """For what the comparison cannot show."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    told = [getattr(config, name, None) for name in ("attention_chunk_size", "index_topk")]
    return bool(
        config.sub_configs or kinds or any(told) or "longrope" in _ropes(config) or "dynamic" in _ropes(config)
    )


def _ropes(config: Any) -> set[str]:
    """The kinds of rotary positions, of all layers."""
    told = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [told, *(part for part in told.values() if isinstance(part, Mapping))]
    return {str(part.get("rope_type", part.get("type"))) for part in parts}


def _windows(config: Any) -> int:
    """Layers that see a window alone, as the config says it."""
    if kinds := getattr(config, "layer_types", None):
        return sum(kind == "sliding_attention" for kind in kinds)
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return config.num_hidden_layers if slides else 0


def _compared(model: LanguageModel) -> bool:
    config: Any = model.decoder.config
    if _refused(config):
        return False
    known = min(model.head.vocabulary, 64)
    prompt = [(7 * i + 3) % known for i in range(4)]
    ends = [[(5 * i + 11 * k + 1) % known for i in range(n)] for k, n in enumerate((3, 5, 1))]
    rollouts = [Rollout([*prompt, *end], len(prompt)) for end in ends]
    found, windows = [], 0
    try:
        for layout in (Padded(rollouts, model.device), Shared(rollouts, model.device)):
            with torch.no_grad(), behind_one_prompt(model, layout) as attention:
                found.append(model.states(**layout.inputs).flatten(0, 1)[layout.before.to(model.head.weight.device)])
            windows = 0 if attention is None else attention.windows
    except RAISED as error:
        if is_out_of_memory(error):
            raise
        logger.debug("a shared prompt: %s", error)
        return False
    apart, together = (item.double() if item.device.type != "mps" else item for item in found)
    missed = (apart - together).norm(dim=1) <= SAME[model.head.weight.dtype] * apart.norm(dim=1)
    return bool(missed.all()) and windows == _windows(config)


_DIMENSIONS: WeakKeyDictionary[nn.Module, frozenset[int]] = WeakKeyDictionary()


def dimensions(decoder: nn.Module) -> frozenset[int]:
    """Lengths that something in the decoder has besides its tokens."""
    if decoder not in _DIMENSIONS:
        counts = {value for value in vars(decoder.config).values() if type(value) is int}
        _DIMENSIONS[decoder] = frozenset(counts | {size for p in decoder.parameters() for size in p.shape})
    return _DIMENSIONS[decoder]
