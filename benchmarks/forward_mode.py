"""What products and sums of a dual number and a constant cost, by torch and by `gradients.forward_mode`:

    python benchmarks/forward_mode.py        a minute, one thread

First operation by operation, then GradAlign's t over 24 problems x 8 rollouts of the shipped policy, which are turns
of both ways, five of each.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from torch.autograd import forward_ad

from hf_curate import GradAlignScorer, Rollouts, verifier
from hf_curate.demo import POLICY, tasks
from hf_curate.gradients import forward_mode as room


def microseconds(work: Callable[[], Any], times: int = 1000) -> float:
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times * 1e6


def operations() -> None:
    values, along, constant = torch.randn(8, 30, 24), torch.randn(8, 30, 24), torch.randn(30, 24)
    modes = {"torch": lambda: (torch.no_grad(), forward_ad.dual_level()), "by rule": lambda: (room.forward_mode(),)}
    for name, mode in modes.items():
        with _all(*mode()):
            dual = forward_ad.make_dual(values, along)
            found = {
                "dual * tensor": microseconds(lambda dual=dual: dual * constant),
                "dual + tensor": microseconds(lambda dual=dual: dual + constant),
                "dual * 2": microseconds(lambda dual=dual: dual * 2),
                "dual + 1": microseconds(lambda dual=dual: dual + 1),
            }
        print(f"{name:<8}" + "".join(f"{what}: {spent:.0f} us   " for what, spent in found.items()))


def scores() -> None:
    def sampled(split: str, count: int) -> Dataset:
        rows = Dataset.from_list(tasks.problems("chain", count, level=4, seed=1, split=split))
        made = Rollouts(POLICY, verifier(tasks.solved), n=8, max_new_tokens=48, dtype="float32", seed=5)
        return rows.map(made, batched=True, features=made.features(rows))

    rows, trusted = sampled("pool", 24), sampled("validation", 8)
    scorer = GradAlignScorer(POLICY, validation=trusted, dtype="float32", statistic="t").fit(trusted)
    real, spent, found = room._by_rule, {"torch": [], "by rule": []}, {}
    for _ in range(6):
        for name, rule in (("torch", lambda *_: None), ("by rule", real)):
            room._by_rule = rule
            start = time.process_time()
            found[name] = scorer(rows[:])["gradalign_score"]
            spent[name].append(time.process_time() - start)
    room._by_rule = real
    print(f"the same scores: {found['torch'] == found['by rule']}")
    for name, seconds in spent.items():
        print(f"{name:<8}{median(seconds[1:]):.2f} s ({min(seconds[1:]):.2f} - {max(seconds[1:]):.2f})")


def _all(*managers: Any) -> Any:
    from contextlib import ExitStack

    stack = ExitStack()
    for manager in managers:
        stack.enter_context(manager)
    return stack


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    disable_progress_bars()
    torch.set_num_threads(1)
    operations()
    scores()
