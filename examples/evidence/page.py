"""RESULTS.md, from what is recorded: every number on it is computed here, and a test compares the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evidence import figures, rl_page
from evidence.results import FOLDER, Condition, Outcome, Results, mean_and_error
from evidence.selectors import FULL, FURTHER, GRACE, NAMES, ORACLE, RANDOM
from evidence.study import OWN
from evidence.worlds import WORLDS

AUTHORS = {
    0.20: {FULL: 100.0, RANDOM: 101.4, "longest": 101.7, "most steps": 101.5, GRACE["representation"]: 108.8},
    0.05: {FULL: 100.0, RANDOM: 96.4, GRACE["representation"]: 100.2},
}
"""GRACE (arXiv 2605.13130): Qwen3-VL-2B-Instruct on MMathCoT-1M, mean of ratios over 10 benchmarks, single runs."""


def write(out: Path, recorded: Path = FOLDER) -> Path:
    """RESULTS.md and its pictures in the folder ``out``."""
    results = Results.read("small", recorded)
    outcomes = results.outcomes()
    main = [own for own in outcomes if _is_main(own)]
    last = max(own.condition.budget for own in main)
    figures.differences(main, out / "differences.png")
    for own in main:
        if own.condition.budget == last:
            figures.kept(own, out / f"kept_{own.condition.world}.png")
    path = out / "RESULTS.md"
    path.write_text(text(results, outcomes, recorded), encoding="utf-8")
    return path


def quoted(recorded: Path = FOLDER) -> str:
    """What the README has to quote."""
    main = [own for own in Results.read("small", recorded).outcomes() if _is_main(own)]
    return " ".join(sentences(main))


def _is_main(own: Outcome) -> bool:
    return own.condition.method == "full" and own.condition.backbone == OWN


def text(results: Results, outcomes: Sequence[Outcome], recorded: Path) -> str:
    """The whole page."""
    main = [own for own in outcomes if _is_main(own)]
    others = [own for own in outcomes if own not in main]
    parts = [
        INTRODUCTION,
        "## What holds, and what does not\n\n" + summary(main) + "\n",
        *([verdicts(main)] if any(own.informative for own in main) else []),
        "![Paired differences to random, selector by selector, a panel for each world](differences.png)\n",
        "## Next to the authors' numbers\n\n" + beside_authors(main),
        "## How it was done\n\n" + method(results),
        *(
            world(name, [own for own in main if own.condition.world == name], results.before(name))
            for name in results.worlds
        ),
    ]
    if others:
        parts.append("## LoRA, and other backbones\n\n" + ELSEWHERE + "\n\n" + accuracy_table(others))
    if results.further:
        parts.append("## Scores that were tried afterwards\n\n" + TRIED + "\n" + tried(results))
    parts += [rl_page.section(recorded), LARGE]
    return "\n".join(parts)


INTRODUCTION = """\
# Does what a score selects help?

Written by `PYTHONPATH=examples python -m evidence page` from `results/`; do not edit. The lab is
[README.md](README.md). Every accuracy is in percent of held-out problems, +- is one standard error over the seeds, and
[a, b] a 95 % interval of the paired difference to random (Student's t). All models have under 0.1 M parameters and
speak a language of arithmetic that the lab made up: what is true of them need not be true of yours. Where random rows
leave a base worse than it was, a selector may be above random because what it keeps teaches little and spoils little.
"""

TRIED = """\
Named with their predictions in [benchmarks/LOG.md](../../benchmarks/LOG.md) before they were run, at 20 % and equal
epochs. "GRACE less overlap" is the residual of GRACE's value over the token-overlap null; "GRACE of middle loss" ranks
by GRACE among the half of the rows whose loss is nearest the median. Points, paired, +- one standard error:
"""

ELSEWHERE = """\
The kept rows are those that the lab's own base chose. With LoRA the same base is trained by other means; the other
columns train another backbone (one base of each) on the rows that the first one chose."""

LARGE = """\
## The large study

Not measured: `make evidence-gpu` (50 to 300 M parameters, numbers to 99, on one GPU) takes the same code path, which
the tests run at tiny size on the CPU.
"""


# -- what holds -------------------------------------------------------------------------------------------------------


def summary(main: Sequence[Outcome]) -> str:
    """What the README quotes, and a few sentences more."""
    if not any(own.informative for own in main):
        return f"In none of {len(main)} conditions was there room for a selection to show itself: nothing can be said."
    return "\n".join([*sentences(main), *more_sentences(main)])


def sentences(main: Sequence[Outcome]) -> tuple[str, str]:
    """The two sentences that the README quotes."""
    told = [own for own in main if own.informative]
    name = GRACE["representation"]
    above, below = (sum(own.verdict(name) == sign for own in told) for sign in (1, -1))
    best = pooled(told, name)
    first = (
        f"In {len(told)} of {len(main)} conditions there was room for a selection to show itself (the oracle was "
        "above random by more than 3 standard errors); in these GRACE as its authors define it was above random "
        f"{above} {_times(above)}, below it {below} {_times(below)}, and {signed(best[0])} +- {best[1]:.1f} points "
        "from it on average."
    )
    ranked = sorted((name for name in NAMES if name not in (FULL, RANDOM, ORACLE)), key=lambda n: -pooled(told, n)[0])
    top, bottom, oracle = (pooled(told, n) for n in (ranked[0], ranked[-1], ORACLE))
    second = (
        f"The best selector on average was {ranked[0]} ({signed(top[0])} +- {top[1]:.1f}) and the worst {ranked[-1]} "
        f"({signed(bottom[0])} +- {bottom[1]:.1f}), where knowing the useful families gives {signed(oracle[0])} +- "
        f"{oracle[1]:.1f}."
    )
    return first, second


def more_sentences(main: Sequence[Outcome]) -> list[str]:
    told = [own for own in main if own.informative]
    found = []
    for name, other in (
        (GRACE["representation"], "GRACE, no warm-up"),
        (GRACE["representation"], "GRACE, no history"),
        (GRACE["representation"], "GRACE, no answer term"),
        (GRACE["exact"], GRACE["representation"]),
        (GRACE["representation"], "token overlap"),
    ):
        mean, error = pooled(told, name, other)
        found.append(f"{name} minus {other}: {signed(mean)} +- {error:.1f}")
    return [
        "Paired differences over the same conditions, in points: " + "; ".join(found) + ".",
        f"The error is over the {len({own.condition.world for own in told})} worlds and their seeds, conditions of "
        "one world and seed averaged first. Of many intervals of 95 % one in twenty leaves zero out by chance.",
    ]


def pooled(outcomes: Sequence[Outcome], name: str, other: str = RANDOM) -> tuple[float, float]:
    """Paired difference over several conditions: those of one world and seed are averaged, and then count as one."""
    own: dict[tuple[str, int], list[float]] = {}
    for outcome in outcomes:
        for seed, value in zip(
            outcome.seeds, (outcome.accuracy[name] - outcome.accuracy[other]).mean(axis=1), strict=True
        ):
            own.setdefault((outcome.condition.world, seed), []).append(float(value))
    return mean_and_error(np.array([np.mean(values) for values in own.values()]))


def verdicts(main: Sequence[Outcome]) -> str:
    """Selector by selector: above, below or within the interval of random, over the informative conditions."""
    told = [own for own in main if own.informative]
    rows = [["", "above random", "no difference shown", "below random", "- random, all together"]]
    for name in NAMES:
        if name == RANDOM:
            continue
        found = [own.verdict(name) for own in told]
        mean, error = pooled(told, name)
        rows.append([name, *(str(found.count(sign)) for sign in (1, 0, -1)), f"{signed(mean)} +- {error:.1f}"])
    return table(rows)


def beside_authors(main: Sequence[Outcome]) -> str:
    """The authors' measure, theirs and ours."""
    rows = [["mean of ratios to full, %", "budget", "authors", *dict.fromkeys(own.condition.world for own in main)]]
    for budget, theirs in AUTHORS.items():
        for name, number in theirs.items():
            if name == FULL:
                continue
            ours = [
                f"{own.ratio(name):.0f}"
                for own in main
                if own.condition.budget == budget and own.condition.regime == "epochs"
            ]
            rows.append([name, f"{100 * budget:g} %", f"{number:.1f}", *ours])
    return table(rows) + "\n" + DIFFERENCES


DIFFERENCES = """\
Theirs are single runs of Qwen3-VL-2B-Instruct on MMathCoT-1M over ten benchmarks, ours means of seeds of a model
40,000 times smaller on an invented language; theirs has at least 8 steps a trace (here only in `long`), LoRA (here
full fine-tuning, and LoRA in one world), and a pool of real traces whose families nobody knows. A ratio to the full
pool says little where the full pool's own accuracy on a task is low: read the absolute numbers below.
"""


# -- the worlds -------------------------------------------------------------------------------------------------------


def method(results: Results) -> str:
    design = results.design
    sizes = {base["backbone"]: base["parameters"] for base in results.bases}
    backbones = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    seeds = ", ".join(
        f"{world} {len(results.outcome(results.conditions(world)[0]).seeds)}" for world in results.worlds
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in design["rates"].items())
    return f"""\
`make evidence-small`. Bases: {design["bases"]} of the own backbone, pretrained by the lab with different seeds; seed s
draws a pool and a training order and trains base s modulo {design["bases"]}. Parameters: {backbones}. Seeds by world:
{seeds}. Rows in a pool: {", ".join(f"{world} {rows}" for world, rows in design["rows"].items())}. Equal epochs: each
set is gone through {design["epochs"]} times in batches of {design["batch"]}. Equal updates: every model takes as many
as {100 * max(design["budgets"]):g} % take that way, so that at this budget the two differ in `full` alone. AdamW; the
learning rates ({rates}) were fixed on full, random and oracle with another seed. Accuracy: greedy completions of
{design["problems"]} held-out problems a target, exactly the right answer.
Warm-up of GRACE: 5 % of the pool, with the same recipe. What was tried, expected and found:
[benchmarks/LOG.md](../../benchmarks/LOG.md).
"""


def world(name: str, outcomes: Sequence[Outcome], before: tuple[float, float]) -> str:
    """One world: what it is, whether there is room, and its tables."""
    error = "" if math.isnan(before[1]) else f" +- {before[1]:.1f}"
    lines = [f"## `{name}`: {WORLDS[name].about}\n"]
    lines.append(f"- The bases before any training: {before[0]:.1f}{error} % (over the bases, problems of one seed).")
    for own in outcomes:
        mean, error = own.difference(ORACLE)
        room = "informative" if own.informative else "**uninformative**"
        seeds = f"{len(own.seeds)} seeds"
        lines.append(f"- {own.condition.label}: oracle minus random {signed(mean)} +- {error:.1f} ({seeds}), {room}.")
    last = max(outcomes, key=lambda own: own.condition.budget)
    return "\n".join([*lines, "", accuracy_table(outcomes), detail_table(last), _picture(last.condition), ""])


def _picture(condition: Condition) -> str:
    return f"![What each selector keeps in the world {condition.world}](kept_{condition.world}.png)"


def accuracy_table(outcomes: Sequence[Outcome]) -> str:
    """Selector by condition: mean accuracy over the targets, and the paired difference to random."""
    mixed = len({own.condition.world for own in outcomes}) > 1
    head = [own.condition.label + (f" ({own.condition.world})" if mixed else "") for own in outcomes]
    head = [f"{label}; {len(own.seeds)} seeds" for label, own in zip(head, outcomes, strict=True)]
    rows = [["accuracy, %", *(part for label in head for part in (label, "- random"))]]
    for name in outcomes[0].accuracy:
        row = [name]
        for own in outcomes:
            mean, error = own.mean(name)
            row += [f"{mean:.1f} +- {error:.1f}", "" if name == RANDOM else interval(own, name)]
        rows.append(row)
    return table(rows)


def tried(results: Results) -> str:
    """World by world: what the further scores are above random, and above what they were made of."""
    rows = [["", "minus", *results.worlds]]
    for name, others in zip(FURTHER, ((RANDOM, GRACE["representation"]), (RANDOM, "middle loss")), strict=True):
        for other in others:
            found = [mean_and_error(np.array(results.tried(world, name, other))) for world in results.worlds]
            rows.append([name, other, *(f"{signed(mean)} +- {error:.1f}" for mean, error in found)])
    return table(rows)


def interval(own: Outcome, name: str) -> str:
    """The paired difference to random and its 95 % interval."""
    mean, error = own.difference(name)
    wide = own.half_width(error)
    return f"{signed(mean)} [{signed(mean - wide)}, {signed(mean + wide)}]"


def detail_table(own: Outcome) -> str:
    """One condition: accuracy by target, the mean of ratios, and the shares of the kept."""
    kinds = list(own.shares[RANDOM])
    outside = {name for name, target in WORLDS[own.condition.world].targets.items() if target.outside}
    head = [f"{target}{' (outside)' if target in outside else ''}" for target in own.targets]
    rows = [[f"at {own.condition.label}", *head, "mean of ratios", *(f"kept: {kind}" for kind in kinds)]]
    for name, found in own.accuracy.items():
        cells = []
        for place in range(len(own.targets)):
            mean, error = mean_and_error(found[:, place])
            cells.append(f"{mean:.0f} +- {error:.0f}")
        shares = [f"{100 * own.shares[name][kind]:.0f}" for kind in kinds]
        rows.append([name, *cells, f"{own.ratio(name):.0f}", *shares])
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table of Markdown, the first one its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def signed(value: float) -> str:
    """One decimal and a sign; zero has none of minus."""
    return f"{value:+.1f}".replace("-0.0", "+0.0")


def _times(count: int) -> str:
    return "time" if count == 1 else "times"
