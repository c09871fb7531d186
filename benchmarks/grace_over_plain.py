"""GRACE beside what one would write, on the CPU: its time, and the same numbers.

    python benchmarks/grace_over_plain.py

(a) padded batches in the dataset's order, the logits of every position, probabilities minus one-hot labels, and the
means of their products with the head; (b) one call of autograd for each step: the gradient of the mean loss of its
tokens with respect to the head's input. A Qwen3-shaped model with random weights, narrow, with the whole vocabulary
of 151,936; rows of log-normal length with 8 to 20 steps. (b) is so slow that it gets the first few rows, and GRACE
beside it the same. Writes results/grace_over_plain_<processor>.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from pool import Row, batch_of, make_lengths, make_model, make_rows
from side_by_side import Rounds, check_same, in_turn, show, write

from hf_curate.batches import bucket
from hf_curate.gradients.segments import segment_grams
from hf_curate.models import LanguageModel


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """[S * S] of one row's segments."""
    size = gram.diagonal().sqrt()
    return (gram / size / size[:, None]).flatten().double()


def by_grace(model: LanguageModel, rows: list[Row], batch_tokens: int) -> torch.Tensor:
    found: dict[int, torch.Tensor] = {}
    for group in bucket([len(ids) for ids, _ in rows], batch_tokens):
        ids, _, spans = batch_of([rows[i] for i in group])
        for index, (gram, _) in zip(group, segment_grams(model, ids, spans, "representation"), strict=True):
            found[index] = cosines(gram)
    return torch.cat([found[index] for index in range(len(rows))])


@torch.no_grad()
def by_full_logits(model: LanguageModel, rows: list[Row], batch_rows: int) -> torch.Tensor:
    found, causal_lm, weight = [], model.model, model.head.weight
    for start in range(0, len(rows), batch_rows):
        ids, _, all_spans = batch_of(rows[start : start + batch_rows])
        mask = torch.zeros_like(ids)
        for row, (own, _) in enumerate(rows[start : start + batch_rows]):
            mask[row, : len(own)] = 1
        probabilities = causal_lm(input_ids=ids, attention_mask=mask).logits.float().softmax(-1)
        for row, spans in enumerate(all_spans):
            gradients = []
            for span in spans:
                where = torch.tensor(span)
                residual = probabilities[row, where - 1]
                residual[torch.arange(len(span)), ids[row, where]] -= 1
                gradients.append(residual.mean(0) @ weight)
            both = torch.stack(gradients)
            found.append(cosines(both @ both.T))
    return torch.cat(found)


def by_autograd(model: LanguageModel, rows: list[Row]) -> torch.Tensor:
    found = []
    for own, spans in rows:
        ids = torch.tensor([own])
        with torch.no_grad():
            hidden = model.hidden(ids)[0]
        logits = torch.nn.functional.linear(hidden.requires_grad_(), model.head.weight.detach())
        gradients = []
        for span in spans:
            where = torch.tensor(span)
            loss = torch.nn.functional.cross_entropy(logits[where - 1].float(), ids[0, where])
            gradients.append(torch.autograd.grad(loss, hidden, retain_graph=True)[0].sum(0))
        both = torch.stack(gradients)
        found.append(cosines(both @ both.T))
    return torch.cat(found)


def compared(rounds: Rounds, tokens: int, base: str) -> tuple[dict[str, Any], list[Any]]:
    check_same(rounds.found, base, 1e-3)
    lines = [(way, f"{tokens:,}", f"{rounds.median(way):.2f}", rounds.over(way, base)) for way in rounds.seconds]
    return {"tokens": tokens, **rounds.record(base)}, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--few", type=int, default=3, help="rows for one call of autograd each step")
    parser.add_argument("--median", type=int, default=400, help="median row length in tokens")
    parser.add_argument("--longest", type=int, default=1500, help="full logits of more do not fit here")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of GRACE")
    parser.add_argument("--batch-rows", type=int, default=4, help="of the full logits")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    small = {"hidden_size": asked.width, "intermediate_size": 3 * asked.width, "num_attention_heads": 4}
    model = make_model(asked.layers, num_key_value_heads=2, head_dim=64, **small)
    rows = make_rows(make_lengths(asked.rows, asked.median, asked.longest))
    few = rows[: asked.few]
    full = in_turn(
        {
            "GRACE": lambda: by_grace(model, rows, asked.batch_tokens),
            "(a) padded batches, full logits": lambda: by_full_logits(model, rows, asked.batch_rows),
        },
        asked.rounds,
    )
    single = in_turn(
        {
            "GRACE, few rows": lambda: by_grace(model, few, asked.batch_tokens),
            "(b) autograd, one call a step": lambda: by_autograd(model, few),
        },
        asked.rounds,
        warm_up=0,
    )
    result, lines = {"settings": vars(asked)}, []
    for rounds, taken in ((full, rows), (single, few)):
        base, way = rounds.seconds
        result[way], more = compared(rounds, sum(len(ids) for ids, _ in taken), base)
        lines += more
    write("grace_over_plain", result)
    show("GRACE beside what one would write, float32", ("", "tokens", "seconds", "over GRACE"), lines)


if __name__ == "__main__":
    main()
