"""How the time of a run grows: with its rows, their tokens, their steps, the vocabulary, and workers.

    python benchmarks/cost_curves.py

GRACE, representation, with models so small that what is not the model shows. Each curve is measured over at least
eightfold growth, sizes taking turns; the exponent is the slope of a straight line through the logarithms of the
medians: 1 is linear. Time is that of the processor, which other programs change less than that of the clock; for
workers it is the clock, without their start, and the curve is that of the work a worker gets. Writes
results/cost_curves_<processor>.json; --plot writes docs/cost_curves.png from it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from pool import batch_of, make_model, make_rows
from side_by_side import RESULTS, hardware, in_turn, show, write

from hf_curate import GraceScorer, RandomScorer, score
from hf_curate.batches import bucket
from hf_curate.demo import MODEL, load_traces
from hf_curate.gradients.segments import segment_grams

PICTURE = Path(__file__).parents[1] / "docs" / "cost_curves.png"
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def whole_run(scorer: Any, rows: int, **options: Any) -> Callable[[], None]:
    """score() of so many rows into a folder."""
    traces = load_traces()
    pool = traces.select([number % len(traces) for number in range(rows)])

    def run() -> None:
        with tempfile.TemporaryDirectory() as place:
            score(pool, scorer, out=Path(place) / "run", **options)

    return run


def grams(lengths: list[int], steps: int, vocabulary: int) -> Callable[[], None]:
    """The model and the inner products alone, over rows of these lengths and so many steps."""
    model = make_model(1, vocab_size=vocabulary, max_position_embeddings=16_384, **TINY)
    rows = make_rows(lengths, (steps, steps), vocabulary)

    def run() -> None:
        for group in bucket(lengths, 8192):
            ids, _, spans = batch_of([rows[i] for i in group])
            segment_grams(model, ids, spans, "representation")

    return run


def curves() -> dict[str, dict[int, Callable[[], None]]]:
    grace = GraceScorer(MODEL, dtype="float32", device="cpu")
    cheap, batch = RandomScorer(seed=0), {"batch_rows": 256}
    return {
        "rows, a scorer without a model": {n: whole_run(cheap, n) for n in (1000, 4000, 16_000, 64_000)},
        "rows, GRACE with the demo model": {n: whole_run(grace, n, **batch) for n in (500, 1000, 2000, 4000)},
        "tokens of a row": {n: grams([n] * 4, 12, 8192) for n in (256, 512, 1024, 2048, 4096)},
        "steps of a row": {n: grams([1024] * 4, n, 8192) for n in (4, 16, 64, 256)},
        "vocabulary": {n: grams([512] * 4, 12, n) for n in (9496, 18_992, 37_984, 75_968, 151_936)},
    }


def by_workers(rows: int, counts: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Seconds by the clock of a run of so many rows, by the number of worker processes of one thread each; without
    those of a run that has one small shard for each worker, which start likewise."""
    scorer = GraceScorer(MODEL, dtype="float32", device="cpu")
    ways = {str(n): whole_run(scorer, rows, workers=n, threads=1) for n in counts}
    ways |= {f"start of {n}": whole_run(scorer, 8 * n, shard_rows=8, workers=n, threads=1) for n in counts}
    taken = in_turn(ways, rounds, warm_up=0)
    return {n: taken.median(str(n)) - taken.median(f"start of {n}") for n in counts}


def apart(rows: int, counts: tuple[int, ...]) -> dict[int, float]:
    """Seconds by the clock of so many processes of one thread that know nothing of each other and begin together, each
    with its share of the rows in its own memory: what this machine gives to workers at most."""
    context, found = multiprocessing.get_context("spawn"), {}
    for count in counts:
        together, seconds = context.Barrier(count), context.Queue()
        running = [context.Process(target=_alone, args=(rows // count, together, seconds)) for _ in range(count)]
        for process in running:
            process.start()
        found[count] = max(seconds.get() for _ in running)
        for process in running:
            process.join()
    return found


def _alone(rows: int, together: Any, seconds: Any) -> None:
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    run = whole_run(GraceScorer(MODEL, dtype="float32", device="cpu"), rows, threads=1)
    whole_run(GraceScorer(MODEL, dtype="float32", device="cpu"), 256, threads=1)()  # the libraries, once
    together.wait()
    start = time.perf_counter()
    run()
    seconds.put(time.perf_counter() - start)


def exponent(seconds: dict[int, float]) -> float:
    """The slope of the logarithms; a time that hardly grows has one near 0."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    for axis, (name, curve) in zip(axes.flat, found.items(), strict=True):
        sizes, seconds = [int(size) for size in curve["seconds"]], list(curve["seconds"].values())
        linear = [seconds[-1] * (size / sizes[-1]) ** (-1 if name == "workers" else 1) for size in sizes]
        axis.loglog(sizes, linear, "--", color="0.6", linewidth=1, label="linear", base=2)
        axis.loglog(sizes, seconds, "o-", color="#1f5fa8", label=f"measured, exponent {curve['exponent']:.2f}", base=2)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(seconds) / 2 < t < 2 * max(seconds)]
        axis.set_yticks(ticks, [f"{tick:g} s" for tick in ticks], fontsize=8)
        axis.minorticks_off()
        axis.set_title(name, fontsize=10)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--apart", action="store_true", help="only what processes without workers' machinery take")
    parser.add_argument("--plot", action="store_true", help="draw what was measured last, and measure nothing")
    asked = parser.parse_args()
    path = RESULTS / f"cost_curves_{hardware()}.json"
    if asked.plot:
        plot(json.loads(path.read_text("utf-8"))["curves"], PICTURE)
        return
    if asked.apart:
        alone = apart(4000, (1, 2))
        print(f"{alone[1]:.2f} s in one process, {alone[2]:.2f} s in two: {alone[2] / alone[1]:.2f}")
        return
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore", UserWarning)  # no warm-up: it is of no matter for time
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)  # the products are small
    for name, sizes in curves().items():
        ways = {str(n): run for n, run in sizes.items()}
        taken = in_turn(ways, asked.rounds, warm_up=0 if "GRACE" in name else 1, clock=time.process_time)
        seconds = {n: taken.median(str(n)) for n in sizes}
        found[name] = {"seconds": seconds, "exponent": exponent(seconds)}
    counts = tuple(n for n in (1, 2, 4, 8) if n <= max(2, threads))
    seconds = by_workers(4000, counts, 1)
    found["workers"] = {"seconds": seconds, "exponent": exponent(seconds)}
    write("cost_curves", {"settings": vars(asked), "curves": found})
    show(
        "What a run takes as it grows (workers: by the clock, and -1 is linear)",
        ("", "from", "to", "seconds", "exponent"),
        [
            (
                name,
                f"{min(curve['seconds']):,}",
                f"{max(curve['seconds']):,}",
                " ".join(f"{value:.2f}" for value in curve["seconds"].values()),
                f"{curve['exponent']:.2f}",
            )
            for name, curve in found.items()
        ],
    )


if __name__ == "__main__":
    main()
