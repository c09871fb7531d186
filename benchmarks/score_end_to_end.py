"""Where the time of `score()` goes: in the model, in reading and tokenising rows, in keeping shards.

    python benchmarks/score_end_to_end.py

GRACE, representation, on written traces of log-normal length with 8 to 20 steps, by a Qwen3-shaped model with random
weights and the whole vocabulary of 151,936, in a folder as users keep runs. Time in the model is that of the forward
and of all that comes after it on the model's device; reading is counted where it happens, whether the model is waiting
for it or not. The same rows without the model (its numbers are made up) tell what the host does for a token: a model
that takes less than nine times as long for it would be held up by more than 10 %.
Writes results/score_end_to_end_<processor>.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from pool import make_lengths, make_model
from side_by_side import show, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_curate import GraceScorer, score
from hf_curate.batches import TALLY, Tally
from hf_curate.gradients import segments
from hf_curate.scorers.traces import TraceReader

SAID = (
    "we take the number of boxes from before and add how many there are in all because each day brings more than it "
    "costs so that half of the rest is left over when the price per piece has been paid twice and nothing is lost"
)
WORDS = SAID.split()


def write_trace(rng: random.Random, words: int) -> dict[str, str]:
    """About so many words: a third of them in the prompt, the rest in 8 to 20 steps."""
    steps = rng.randint(8, 20)
    each = max(3, words * 2 // 3 // steps)
    said = [" ".join(rng.choices(WORDS, k=each)) for _ in range(steps)]
    sums = [(rng.randint(1, 99), rng.randint(1, 99)) for _ in range(steps)]
    lines = [
        f"Step {k}: {text}, {a} + {b} = {a + b}." for k, (text, (a, b)) in enumerate(zip(said, sums, strict=True), 1)
    ]
    return {
        "prompt": " ".join(rng.choices(WORDS, k=words // 3)) + "?\n",
        "completion": "\n".join(lines) + f"\n#### {sum(sums[-1])}",
    }


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as Qwen3's, learned from the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], key: str) -> Iterator[None]:
    """Adds up the seconds in a function while this lasts."""
    plain = getattr(owner, name)

    def with_time(*given: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(*given, **options)
        finally:
            spent[key] = spent.get(key, 0.0) + time.perf_counter() - start

    setattr(owner, name, with_time)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def made_up(model: Any, ids: torch.Tensor, rows: list[Any], *_: Any, **__: Any) -> list[tuple[Any, Any]]:
    """In place of the model: orthogonal gradients and a loss of 1."""
    return [
        (torch.eye(len(spans), dtype=torch.float64), torch.ones(len({p for span in spans for p in span})))
        for spans in rows
    ]


def one_run(
    pool: Dataset, folder: Path, asked: argparse.Namespace, without: Callable[..., Any] | None
) -> dict[str, float]:
    """Seconds of one run, where they went, and its tokens."""
    spent: dict[str, float] = {}
    given = segments.segment_grams
    counts, plain_add = [0, 0], Tally.add

    def add(self: Tally, tokens: int, padded: int) -> None:
        counts[0] += tokens
        counts[1] += padded
        plain_add(self, tokens, padded)

    with tempfile.TemporaryDirectory() as place:
        scorer = GraceScorer(folder, dtype="float32", device="cpu", batch_tokens=asked.batch_tokens)
        scorer.load()
        segments.segment_grams = without or given  # type: ignore[assignment]
        Tally.add = add  # type: ignore[method-assign]
        try:
            with timed(segments, "segment_grams", spent, "model"), timed(TraceReader, "read", spent, "reading"):
                start = time.perf_counter()
                scored = score(pool, scorer, out=Path(place) / "run")
                spent["all"] = time.perf_counter() - start
        finally:
            segments.segment_grams, Tally.add = given, plain_add  # type: ignore[method-assign]
        assert len(scored) == len(pool)
        assert not any(scored["grace_error"])
    TALLY.take()
    return {**spent, "tokens": counts[0], "padded": counts[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=32, help="for the model")
    parser.add_argument("--many", type=int, default=1024, help="rows without the model")
    parser.add_argument("--median", type=int, default=230, help="words; about 400 tokens")
    parser.add_argument("--longest", type=int, default=2300)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    datasets.disable_progress_bars()
    rng = random.Random(0)
    traces = [write_trace(rng, words) for words in make_lengths(asked.many, asked.median, asked.longest)]
    small = {"hidden_size": asked.width, "intermediate_size": 3 * asked.width, "num_attention_heads": 2}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model = make_model(asked.layers, num_key_value_heads=1, head_dim=64, **small)
        model.model.save_pretrained(folder)
        make_tokenizer([trace["completion"] for trace in traces[:200]]).save_pretrained(folder)
        many = Dataset.from_list(traces)
        few = many.select(range(asked.rows))
        runs = [one_run(few, folder, asked, None) for _ in range(asked.rounds)]
        hosts = [one_run(many, folder, asked, made_up) for _ in range(asked.rounds)]
    share = statistics.median(run["model"] / run["all"] for run in runs)
    padding = {name: 1 - own[0]["tokens"] / own[0]["padded"] for name, own in (("few", runs), ("many", hosts))}
    host = statistics.median((run["all"] - run["model"]) / run["tokens"] for run in hosts) * 1e6
    reading = statistics.median(run["reading"] / run["tokens"] for run in hosts) * 1e6
    result = {
        "share in the model": share,
        "padding": padding,
        "host, us a token": host,
        "reading, us a token": reading,
    }
    write("score_end_to_end", {"settings": vars(asked), **result, "runs": runs, "host": hosts})
    model_us = statistics.median(run["model"] / run["tokens"] for run in runs) * 1e6
    show(
        f"score(), {runs[0]['tokens']:,} tokens with a model of width {asked.width}; {hosts[0]['tokens']:,} without",
        ("", "microseconds a token", "share of the run", "padding"),
        [
            ("in the model", f"{model_us:.0f}", f"{share:.1%}", f"{padding['few']:.1%}"),
            ("reading, tokenising", f"{reading:.1f}", "", ""),
            ("all of the host", f"{host:.1f}", "", f"{padding['many']:.1%}"),
        ],
    )


if __name__ == "__main__":
    main()
