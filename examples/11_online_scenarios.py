"""GRPO on problems that are chosen again every few steps: the three settings of GradAlign, small, trained to the end.

    python examples/11_online_scenarios.py                        one setting, a few steps
    python examples/11_online_scenarios.py --full --results DIR   all three, 101 steps, five seeds: an hour or two
    python examples/11_online_scenarios.py --many --results DIR   GradAlign with its authors' rollouts and shares
    python examples/11_online_scenarios.py --again DIR --plot online.png      the tables of what DIR has, and curves

The shipped policy of three task families is trained by `SelectedGRPOTrainer`; every 10 optimizer steps the next chunk
of the pool is scored with the policy as it is, and its best quarter is trained on. The settings: `noisy` (half of the
pool, chosen at random, has coin tosses for rewards), `unbalanced` and `low-utility` (see scenarios.py). Compared are
GradAlign by each statistic, LearnAlign, accuracy-greedy and random problems at equal optimizer steps, and random
problems once more with as many steps as all rollouts of GradAlign would pay for (`random, same rollouts`).

Printed are the accuracy on held-out problems (mean reward of 4 rollouts at temperature 1, true rewards) before and
after, the paired difference to random, and what share of the selection was bad (corrupted, or beside the point) at the
steps where a round took place. A seed draws pool, validation and evaluation problems, samples and order anew. Standard
errors are over the seeds. The learning rates were fixed on random problems alone, with another seed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset, disable_progress_bars
from sampling import one_thread
from scenarios import grpo, mean_and_error, parts, problems, sampled
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from hf_curate import AccuracyGreedyScorer, GradAlignScorer, LearnAlignScorer, RandomScorer, __version__
from hf_curate.demo import POLICY, tasks
from hf_curate.integrations.trl import OnlineSelector, SelectedGRPOTrainer

SETTINGS = ("noisy", "unbalanced", "low-utility")
ROLLOUTS = 4  # of each evaluation problem
MORE = "random, same rollouts"
REFERENCE = "GradAlign, cosine"
LEARNING_RATE = {"noisy": 3e-5, "unbalanced": 3e-4, "low-utility": 3e-5}


@dataclass(frozen=True)
class Design:
    """Pool, rounds and training; `every` and `steps` are optimizer steps of `prompts` x `answers` rollouts."""

    pool: int = 60
    share: float = 0.1
    chunk: int = 12
    keep: str = "25%"
    every: int = 1
    rollouts: int = 4
    validation: int = 4
    validation_rollouts: int = 8
    evaluation: int = 12
    steps: int = 2
    prompts: int = 3
    answers: int = 8
    curve: int = 2
    seeds: int = 1


FULL = Design(600, 0.1, 64, "25%", 10, 8, 16, 32, 200, 101, 4, 8, 25, 5)
MANY = {
    "noisy": replace(FULL, rollouts=64, validation=64, validation_rollouts=64, seeds=3),
    "unbalanced": replace(FULL, chunk=160, keep="5%", rollouts=16, validation=64, validation_rollouts=64, seeds=3),
    "low-utility": replace(FULL, rollouts=16, validation=64, validation_rollouts=64, seeds=3),
}
"""Rollouts of a candidate and shares kept as GradAlign's authors have them in each setting."""
STATISTIC = {"noisy": "t", "unbalanced": "cosine", "low-utility": "cosine"}
"""That `--many` scores with: what 04 and 08 found to be good in such a pool, where nothing was trained."""


class Rewards:
    """True rewards, and coin tosses where the problem's column `noisy` says so."""

    __name__ = "rewards"

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def __call__(self, *given: Any, noisy: list[bool], **columns: Any) -> list[float | None]:
        right = tasks.solved(*given, **columns)
        return [float(self.chance.random() < 0.5) if coin else own for own, coin in zip(right, noisy, strict=True)]


@dataclass
class World:
    """bad: [rows] bool, what should not be trained on."""

    pool: Dataset
    bad: np.ndarray
    validation: Dataset
    evaluation: list[dict[str, Any]]


def draw(setting: str, design: Design, seed: int) -> World:
    """Everything that a seed decides but the training."""
    useful, others = parts("low-utility" if setting == "noisy" else setting)
    count = design.pool if setting == "noisy" else round(design.share * design.pool)
    rows = problems(useful, count, seed, "pool")
    rows += problems(others, design.pool - count, seed, "pool") if count < design.pool else []
    order = np.random.default_rng([seed, design.pool]).permutation(design.pool)
    rows = [rows[index] for index in order]
    bad = np.random.default_rng([seed, 1]).permutation(design.pool) < design.pool // 2
    bad = bad if setting == "noisy" else order >= count
    pool = [{**row, "noisy": bool(own) and setting == "noisy"} for row, own in zip(rows, bad, strict=True)]
    trusted = [{**row, "noisy": False} for row in problems(useful, design.validation, seed, "validation")]
    return World(
        Dataset.from_list(pool),
        bad,
        Dataset.from_list(trusted, features=Dataset.from_list(pool).features),
        problems(useful, design.evaluation, seed, "held_out"),
    )


def scorers(validation: Dataset, seed: int) -> dict[str, Any]:
    """Name -> what ranks the chunk."""
    found: dict[str, Any] = {
        f"GradAlign, {name}": GradAlignScorer(validation=validation, statistic=name)
        for name in ("cosine", "dot", "t", "corr")
    }
    return {
        **found,
        "LearnAlign": LearnAlignScorer(),
        "accuracy-greedy": AccuracyGreedyScorer(),
        "random": RandomScorer(seed=seed),
    }


class Curve(TrainerCallback):
    """Held-out accuracy, percent, at steps that are multiples of `every`, and at the start."""

    def __init__(self, model: Any, evaluation: list[dict[str, Any]], every: int, seed: int) -> None:
        self.model, self.evaluation, self.every, self.seed = model, evaluation, every, seed
        self.points: dict[int, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        training = self.model.training
        self.model.eval()
        found = sampled(self.evaluation, ROLLOUTS, self.seed, self.model, AutoTokenizer.from_pretrained(POLICY))
        self.model.train(training)
        self.points[step] = 100.0 * float(np.mean(found["success_rate"]))


def run(
    world: World, scorer: Any, design: Design, learning_rate: float, seed: int, steps: int, folder: Path
) -> dict[str, Any]:
    """One training: accuracy by step, share of bad problems in each round's selection, rollouts, seconds."""
    start = time.perf_counter()
    selector = OnlineSelector(
        scorer,
        world.pool,
        chunk=design.chunk,
        keep=design.keep,
        every=design.every,
        rollouts=design.rollouts,
        validation_rollouts=design.validation_rollouts,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
    )
    settings = grpo(folder, steps, design.prompts, design.answers, learning_rate, seed)
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    curve = Curve(model, world.evaluation, design.curve, seed)
    trainer = SelectedGRPOTrainer(
        model,
        Rewards(seed),
        settings,
        processing_class=AutoTokenizer.from_pretrained(POLICY),
        selector=selector,
        callbacks=[curve],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    record = trainer.selection_record()
    return {
        "accuracy": curve.points,
        "bad": {one["step"]: 100.0 * float(world.bad[one["kept"]].mean()) for one in selector.history},
        "rollouts": record["selection_rollouts"] + record["training_rollouts"],
        "selection_rollouts": record["selection_rollouts"],
        "seconds": time.perf_counter() - start,
        "selection_seconds": record["seconds"]["selection"],
    }


def measure(setting: str, design: Design, alone: bool, folder: Path) -> list[dict[str, Any]]:
    """One record for each seed and each way to choose. alone: only one statistic, and random."""
    found = []
    for seed in range(design.seeds):
        world = draw(setting, design, seed)
        total, compared = 0, {**scorers(world.validation, seed), MORE: RandomScorer(seed=seed)}
        if alone:
            compared = {name: compared[name] for name in (f"GradAlign, {STATISTIC[setting]}", "random")}
        for name, scorer in compared.items():
            steps = total // (design.prompts * design.answers) if name == MORE else design.steps
            record = {"setting": setting, "seed": seed, "name": name, "steps": steps}
            record |= run(world, scorer, design, LEARNING_RATE[setting], seed, steps, folder)
            total = record["rollouts"] if name == REFERENCE else total
            first, last = min(record["accuracy"]), max(record["accuracy"])
            print(
                f"{setting}, seed {seed}, {name}: {record['accuracy'][first]:.1f} -> {record['accuracy'][last]:.1f} % "
                f"in {steps} steps, {record['rollouts']:,} rollouts, {record['seconds']:.0f} s "
                f"({record['selection_seconds']:.0f} s selection)",
                flush=True,
            )
            found.append(record)
    return found


def in_order(steps: dict[str, Any]) -> list[str]:
    """The steps of a record by number."""
    return sorted(steps, key=int)


def table(setting: str, found: list[dict[str, Any]]) -> str:
    """Name by name: accuracy after, the paired difference to random, and the share of bad problems by step."""
    names = list(dict.fromkeys(record["name"] for record in found))
    by_name = {name: [record for record in found if record["name"] == name] for name in names}
    steps = in_order(by_name[names[0]][0]["bad"])
    shown = [steps[0], steps[len(steps) // 2], steps[-1]]
    head = "".join(f"{f'bad, step {step}':>17}" for step in shown)
    lines = [f"\n{setting:<24}{'accuracy, %':>15}{'- random':>15}{head}{'bad, all rounds':>17}"]
    before = [record["accuracy"]["0"] for record in by_name["random"]]
    lines.append(f"{'before':<24}{mean_and_error(before):>15}")
    last = {name: np.array([r["accuracy"][in_order(r["accuracy"])[-1]] for r in own]) for name, own in by_name.items()}
    for name, own in by_name.items():
        paired = "" if name == "random" else mean_and_error(last[name] - last["random"])
        line = f"{name:<24}{mean_and_error(last[name]):>15}{paired:>15}"
        for step in shown:
            line += f"{mean_and_error([record['bad'][step] for record in own]):>17}"
        line += f"{mean_and_error([float(np.mean(list(record['bad'].values()))) for record in own]):>17}"
        lines.append(line)
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Learning curves at equal optimizer steps: points gained since step 0, mean over the seeds and standard error,
    one panel a setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = list(dict.fromkeys(record["setting"] for record in found))
    figure, panels = pyplot.subplots(1, len(settings), figsize=(4.2 * len(settings), 3.4), squeeze=False)
    names = [name for name in dict.fromkeys(record["name"] for record in found) if name != MORE]
    for panel, setting in zip(panels[0], settings, strict=True):
        for place, name in enumerate(names):
            own = [r["accuracy"] for r in found if r["setting"] == setting and r["name"] == name]
            steps = in_order(own[0])[:-1]  # the last is one step after the one before it
            values = np.array([[points[step] - points["0"] for step in steps] for points in own])
            error = values.std(axis=0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5
            at = np.array([int(step) for step in steps]) + 0.8 * (place - len(names) / 2)  # beside each other
            style = {"color": "0.45", "linestyle": "--"} if name == "random" else {"color": f"C{place}"}
            panel.errorbar(at, values.mean(axis=0), error, label=name, linewidth=1.5, elinewidth=0.8, **style)
        panel.set_title(setting, fontsize=10)
        panel.set_xlabel("optimizer steps")
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("held-out accuracy, points gained")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncol=len(names), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on problems that the policy itself chooses while it trains.")
    parser.add_argument("--full", action="store_true", help="larger pools, 101 steps, five seeds: an hour or two")
    parser.add_argument("--many", action="store_true", help="GradAlign alone, with many more rollouts, three seeds")
    parser.add_argument("--chunk", type=int, help="candidates of a round, instead of the design's")
    parser.add_argument("--keep", help="share of them that is trained on, instead of the design's")
    parser.add_argument("--end", help="of the records' names, as in online_noisy_many.json")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="only this one")
    parser.add_argument("--results", type=Path, help="also write each setting's record to this folder")
    parser.add_argument("--again", type=Path, help="train nothing: read the records of this folder")
    parser.add_argument("--plot", type=Path, help="also draw the learning curves")
    asked = parser.parse_args()
    settings = asked.setting or (SETTINGS if asked.full or asked.many or asked.again else SETTINGS[:1])
    end = asked.end if asked.end is not None else "_many" if asked.many else ""
    changed = {name: getattr(asked, name) for name in ("chunk", "keep") if getattr(asked, name) is not None}
    found = []
    disable_progress_bars()
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        for setting in settings:
            if asked.again:
                record = json.loads((asked.again / f"online_{setting}{end}.json").read_text("utf-8"))
            else:
                design = MANY[setting] if asked.many else FULL if asked.full else Design()
                record = recorded(setting, replace(design, **changed), asked.many, Path(folder))
            print(table(setting, record["found"]))
            print(
                f"{record['design']}, learning rate {record['learning_rate']}; {record['seconds']:.0f} s\n", flush=True
            )
            if asked.results:
                asked.results.mkdir(parents=True, exist_ok=True)
                text = json.dumps(record, indent=1) + "\n"
                (asked.results / f"online_{setting}{end}.json").write_text(text, encoding="utf-8")
            found += record["found"]
    if asked.plot:
        plot(found, asked.plot)


def recorded(setting: str, design: Design, alone: bool, folder: Path) -> dict[str, Any]:
    """All runs of one setting, with what made them."""
    start = time.perf_counter()
    found = json.loads(json.dumps(measure(setting, design, alone, folder)))  # step numbers as they are read back: text
    return {
        "design": asdict(design),
        "learning_rate": LEARNING_RATE[setting],
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {"hf_curate": __version__, "torch": torch.__version__, "trl": trl.__version__},
        "found": found,
    }


if __name__ == "__main__":
    main()
