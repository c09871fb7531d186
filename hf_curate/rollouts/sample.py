"""Responses sampled from the policy itself, in this process, on a transformers model.

Responses that agree so far share one row of the key-value cache, and rows that ended leave the batch at once. The
random numbers of a rollout come from the seed, the prompt's key and the rollout's number alone: what is sampled beside
it, in what order and in batches of what size changes nothing but the rounding of the logits.

The distribution is softmax(logits / temperature), cut to the top_p nucleus. Nothing else is applied: the repetition
penalties, bad words, top_k and forced tokens of a `generation_config` would make it another policy than the one whose
gradients are scored.

Continuous batching (`generate_batch` of transformers) is not used: on a CPU it is slower, with 0.70 and 0.15 times the
tokens per processor second on two models (benchmarks/rollouts_over_generate.py --continuous), and its random numbers
belong to the batch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.batches import TALLY
from hf_curate.errors import CurateError, RowError
from hf_curate.memory import TokenBudget, as_budget, attempt
from hf_curate.models import LanguageModel, evaluating
from hf_curate.rollouts.cached import CachedTexts, check_cache, embeddings
from hf_curate.weights import ModelSource, context_length

if TYPE_CHECKING:
    import torch

DRAWN_AHEAD = 64
"""Random numbers that are drawn for a rollout at a time."""

DISTRIBUTION_BYTES = 2**28
"""Bytes of one float64 table of probabilities; larger batches are drawn from in slices."""


@dataclass(frozen=True)
class Sampled:
    """One response. ids: its tokens, with the end token if it came; finished: whether it came."""

    ids: list[int]
    finished: bool


def end_tokens(model: LanguageModel) -> set[int]:
    """The token ids that end a response: those of the model's generation_config, and the tokenizer's EOS."""
    named: Any = getattr(getattr(model.model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    own: Any = model.tokenizer.eos_token_id
    return {int(token) for token in (*several, own) if token is not None}


def named_ends(source: ModelSource) -> list[int] | None:
    """The ids that the generation_config of a folder or a live model calls ends, without loading weights; of a Hub
    model None: its commit settles them."""
    base, named = source.base, None
    path = Path(base.name) / "generation_config.json"
    if base.live is not None:
        named = getattr(getattr(base.live, "generation_config", None), "eos_token_id", None)
    elif base.kind == "folder" and path.is_file():
        with suppress(ValueError):  # no JSON: loading the model says so
            named = json.loads(path.read_text("utf-8")).get("eos_token_id")
    return None if named is None else sorted(named if isinstance(named, list) else [named])


def default_room(device: torch.device) -> int:
    """Rows times (prompt + new tokens) of one batch, where nobody says."""
    return 2**14 if device.type == "cpu" else 2**17


def sample(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    keys: Sequence[bytes | int],
    max_new_tokens: int,
    eos: set[int],
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_tokens: int | TokenBudget | None = None,
) -> list[list[Sampled] | RowError]:
    """`n` responses to each prompt (token ids), or why a prompt has none.

    keys: one for each prompt, what its random numbers are drawn by beside `seed` and the rollout's number; an int
    counts as its decimal digits. Equal prompts with equal keys get equal responses. The first responses of a larger
    `n`, and the first tokens of a larger `max_new_tokens`, are those of a smaller one. eos: ids that end a response.
    temperature: above 0, or 0 for the most likely token each time: n equal responses, computed once, whatever `top_p`.
    top_p: tokens are taken by falling probability, equal ones by their id, until their sum reaches it.
    batch_tokens: rows times (prompt + new tokens) of one batch, which bounds the key-value cache; 16,384 on a CPU,
    else 131,072. One row is always tried; a batch that does not fit into memory is tried again in smaller ones.

    RowError: "no prompt", "unknown token id", "too long" for the model's context, "not finite" logits, "out of memory"
    for one response by itself. ModelError: a model whose cached forward gives other logits than a plain one (checked
    on a few tokens at each call, so that models with their own kinds of cache are found out); prompts of a model that
    only goes wrong where rows are padded are batched by equal length. The model is in eval mode meanwhile, and as it
    was after.
    """
    import torch

    _check(n, prompts, keys, temperature, top_p, max_new_tokens, batch_tokens)
    found: list[list[Sampled] | RowError] = [_refused(model, ids, max_new_tokens) or [] for ids in prompts]
    fit = [index for index, refused in enumerate(found) if not isinstance(refused, RowError)]
    if not fit:
        return found
    budget = as_budget(batch_tokens or default_room(model.device))
    distinct = 1 if temperature == 0 else n
    lengths = {index: len(prompts[index]) for index in fit}
    to_do = deque((index, range(distinct)) for index in sorted(fit, key=lambda index: (-lengths[index], index)))

    def work(batch: list[tuple[int, range]]) -> list[list[Sampled] | RowError]:
        start = [prompts[index] for index, _ in batch]  # no name for the cache: it must go before the next comes
        streams = [[_stream(seed, keys[index], k) for k in rollouts] for index, rollouts in batch]
        made = _continue(CachedTexts(model, start), streams, eos, temperature, top_p, max_new_tokens)
        _count(start, made)
        return made

    with torch.inference_mode(), evaluating(model.model):
        padded = check_cache(model, padding=len(set(lengths.values())) > 1)
        while to_do:
            batch = _next_batch(to_do, lengths, max_new_tokens, budget.now, padded)
            rows, longest = sum(len(rollouts) for _, rollouts in batch), lengths[batch[0][0]]
            done = attempt(partial(work, batch))
            if done is not None:
                budget.fits()
                for (index, _), own in zip(batch, done[0], strict=True):
                    before = found[index]
                    if isinstance(before, list):  # a prompt's rollouts may be spread over batches
                        found[index] = own if isinstance(own, RowError) else before + own
            elif rows > 1:
                budget.shrink(rows * (longest + max_new_tokens))
                to_do.extendleft(reversed(batch))
            else:
                index, detail = batch[0][0], f"{longest:,} prompt tokens and {max_new_tokens:,} new ones"
                found[index] = RowError("out of memory", f"{detail}, one response in a batch of its own")
                while to_do and to_do[0][0] == index:
                    to_do.popleft()
    return found if distinct == n else [own if isinstance(own, RowError) else own * n for own in found]


def _check(n: int, prompts: Any, keys: Any, temperature: float, top_p: float, new: int, room: Any) -> None:
    """Raises for numbers that nothing can be sampled with."""
    room = room.now if isinstance(room, TokenBudget) else room
    for name, value in {"n": n, "max_new_tokens": new, "batch_tokens": 1 if room is None else room}.items():
        if value < 1:
            raise CurateError(f"{name}={value} must be 1 or more.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise CurateError(f"temperature={temperature} must be a number of 0 (the most likely token) or more.")
    if not 0 < top_p <= 1:
        raise CurateError(f"top_p={top_p} must be above 0 and at most 1 (the whole distribution).")
    if len(keys) != len(prompts):
        raise CurateError(f"{len(keys):,} keys for {len(prompts):,} prompts: give one for each.")


def _refused(model: LanguageModel, ids: Sequence[int], new: int) -> RowError | None:
    """Why nothing can be sampled after this prompt."""
    context, known = context_length(model.decoder.config), embeddings(model)
    if not ids:
        return RowError("no prompt", "it gives no token: nothing predicts the response")
    if strange := next((token for token in ids if not 0 <= token < known), None):
        return RowError("unknown token id", f"{strange:,}, and the model has {known:,} embeddings")
    if context is not None and len(ids) + new > context:
        return RowError("too long", f"{len(ids):,} prompt tokens and {new:,} new ones, the context is {context:,}")
    return None


def _stream(seed: int, key: bytes | int, rollout: int) -> np.random.Generator:
    """The random numbers of one rollout: Philox, a counter keyed by 128 bits of SHA-256."""
    digest = hashlib.sha256(key if isinstance(key, bytes) else str(key).encode()).digest()
    mixed = hashlib.sha256(b"%d %d " % (seed, rollout) + digest).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(mixed[:16], "little")))


def _next_batch(
    to_do: deque[tuple[int, range]], lengths: dict[int, int], new: int, room: int, padded: bool
) -> list[tuple[int, range]]:
    """Takes prompts (by index) with the rollouts to sample of each from the front, rows * tokens <= room.

    The longest prompts stand in front. The rollouts of a prompt that alone exceed the room are spread over batches.
    Unless `padded`, the prompts of a batch are of one length.
    """
    batch: list[tuple[int, range]] = []
    rows, longest = 0, lengths[to_do[0][0]]
    while to_do:
        index, rollouts = to_do[0]
        own = rollouts[: max(1, room // (lengths[index] + new))]
        full = (rows + len(own)) * (longest + new) > room
        if batch and (full or (not padded and lengths[index] != longest)):
            break
        to_do.popleft()
        batch.append((index, own))
        rows += len(own)
        if rest := rollouts[len(own) :]:
            to_do.appendleft((index, rest))
    return batch


def _count(prompts: Sequence[Sequence[int]], made: Sequence[list[Sampled] | RowError]) -> None:
    """Prompts once, however many responses continue them."""
    read = sum(map(len, prompts))
    new = sum(len(one.ids) for own in made if not isinstance(own, RowError) for one in own)
    TALLY.add(read + new, len(prompts) * max(map(len, prompts)) + new)


def _continue(
    texts: CachedTexts,
    streams: list[list[np.random.Generator]],
    eos: set[int],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[list[Sampled] | RowError]:
    """For each prompt of `texts` one response for each of its streams."""
    import torch

    device = texts.logits.device
    flat = [stream for own in streams for stream in own]
    owner = [prompt for prompt, own in enumerate(streams) for _ in own]
    responses: list[list[int]] = [[] for _ in flat]
    failed: dict[int, RowError] = {}
    ends = torch.tensor(sorted(eos), dtype=torch.int64, device=device)
    going = torch.arange(len(flat), device=device)  # the responses that have not ended
    row = torch.tensor(owner, device=device)  # and the row of `texts` that each has come to
    uniform = torch.empty(0)
    for step in range(max_new_tokens):
        if step % DRAWN_AHEAD == 0 and temperature > 0:
            drawn = [flat[response].random(DRAWN_AHEAD) for response in going.tolist()]
            uniform = torch.from_numpy(np.stack(drawn)).to(_exact(device))
        broken = ~texts.logits.amax(dim=-1).isfinite()[row]
        if temperature > 0:
            tokens = _draw(texts.logits, row, uniform[:, step % DRAWN_AHEAD], temperature, top_p)
        else:
            tokens = texts.logits.argmax(dim=-1)[row]
        for response, token, bad in zip(going.tolist(), tokens.tolist(), broken.tolist(), strict=True):
            if bad:
                detail = f"the model's logits after {step:,} new tokens are NaN or infinite"
                failed.setdefault(owner[response], RowError("not finite", detail))
            else:
                responses[response].append(token)
        on = ~(broken | torch.isin(tokens, ends))
        if step + 1 == max_new_tokens or not on.any():
            break
        going, uniform = going[on], uniform[on.to(uniform.device)] if temperature > 0 else uniform
        width = texts.logits.shape[-1]
        different, row = torch.unique(row[on] * width + tokens[on], return_inverse=True)
        texts.advance(different // width, different % width)
    rest = iter([Sampled(ids, bool(ids) and ids[-1] in eos) for ids in responses])
    groups = [[next(rest) for _ in own] for own in streams]
    return [failed.get(prompt, group) for prompt, group in enumerate(groups)]


def _exact(device: torch.device) -> torch.device:
    """Where float64 is: MPS has none."""
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def _draw(
    logits: torch.Tensor, row: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """[B, V] logits, [R] rows and [R] numbers in [0, 1) -> [R] tokens, by the inverse of the distribution function.

    Float64 throughout. Rows are not copied for the responses that share one.
    """
    import torch

    row, home = row.to(uniform.device), logits.device
    order = row.argsort(stable=True)
    shares = torch.bincount(row, minlength=len(logits))
    rank = torch.empty_like(row)  # of a response among those that share its row
    rank[order] = torch.arange(len(row), device=row.device) - (shares.cumsum(0) - shares)[row[order]]
    wanted = uniform.new_zeros(len(logits), int(shares.max()))
    wanted[row, rank] = uniform
    slice_rows = max(1, DISTRIBUTION_BYTES // (8 * logits.shape[1]))
    tokens = []
    for part, target in zip(logits.split(slice_rows), wanted.split(slice_rows), strict=True):
        upto = _probabilities(part.to(uniform.device), temperature, top_p).cumsum(dim=-1)
        total = upto[:, -1:].contiguous()
        last = torch.searchsorted(upto, total)  # the last token of any probability
        tokens.append(torch.searchsorted(upto, target * total, right=True).minimum(last))
    return torch.cat(tokens)[row, rank].to(home)


def _probabilities(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """[B, V] logits -> [B, V] float64 probabilities, up to a factor for each row; 0 outside the nucleus."""
    import torch

    below = logits.double() - logits.amax(dim=-1, keepdim=True)  # first, so that no temperature is too low
    probabilities = (below / temperature).softmax(dim=-1)
    if top_p == 1:
        return probabilities
    falling, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = falling.cumsum(dim=-1) - falling < top_p
    return torch.zeros_like(probabilities).scatter_(-1, tokens, falling * inside)
