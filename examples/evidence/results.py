"""What was recorded, and its statistics: means with standard errors over seeds, paired differences with intervals."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evidence.selectors import FULL, NAMES, ORACLE, RANDOM
from evidence.study import OWN, STUDIES
from evidence.worlds import WORLDS

FOLDER = Path(__file__).parent / "results"
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""
HEADROOM = 3.0
"""Standard errors that the oracle must be above random for a condition to count."""


def record(study: str, folder: Path, out: Path = FOLDER) -> Path:
    """Gathers the cells of a run, one on a line, with the bases and the versions: results/<study>.json."""
    import torch
    import transformers

    from hf_curate import __version__

    cells = [json.loads(path.read_text("utf-8")) for path in sorted((folder / "cells").glob("*.json"))]
    further = [json.loads(path.read_text("utf-8")) for path in sorted((folder / "further").glob("*.json"))]
    bases = [json.loads(path.read_text("utf-8")) for path in sorted((folder / "bases").glob("*/accuracy.json"))]
    versions = {
        "hf_curate": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    own = STUDIES[study]
    design = {"study": study, "seeds": own.seeds, "bases": own.bases, "budgets": own.budgets, "epochs": own.epochs}
    design |= {
        "batch": own.batch,
        "rates": own.rates,
        "problems": own.problems,
        "pretraining": asdict(own.pretraining),
    }
    design |= {"rows": {world: own.rows(world) for world in own.worlds}}
    found = {"bases": bases, "cells": cells, "further": further}
    lines = [f' "{key}": [\n{_lines(value)}\n ]' for key, value in found.items()]
    head = [f' "{key}": {json.dumps(value)}' for key, value in (("design", design), ("versions", versions))]
    path = out / f"{study}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join([*head, *lines]) + "\n}\n", encoding="utf-8")
    return path


def _lines(values: Sequence[Any]) -> str:
    return ",\n".join(f"  {json.dumps(value)}" for value in values)


@dataclass(frozen=True)
class Condition:
    """One column of a table: how much was kept, how long was trained, and what."""

    world: str
    budget: float
    regime: str = "epochs"
    method: str = "full"
    backbone: str = OWN

    @property
    def label(self) -> str:
        """Without the world: "5 %, equal updates", "20 %, LoRA", "20 %, trains Llama"."""
        parts = [f"{100 * self.budget:g} %"]
        parts += ["equal updates"] if self.regime == "updates" else []
        parts += ["LoRA"] if self.method == "lora" else []
        parts += [f"trains {self.backbone}"] if self.backbone != OWN else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Outcome:
    """A condition's accuracies, percent: selector -> [seeds, targets]; and shares of the kept: selector -> kind."""

    condition: Condition
    seeds: tuple[int, ...]
    targets: tuple[str, ...]
    accuracy: Mapping[str, np.ndarray]
    shares: Mapping[str, Mapping[str, float]]

    def mean(self, name: str) -> tuple[float, float]:
        """Accuracy over targets and seeds, and its standard error over seeds."""
        return mean_and_error(self.accuracy[name].mean(axis=1))

    def difference(self, name: str, other: str = RANDOM) -> tuple[float, float]:
        """Paired, seed by seed: mean and standard error."""
        return mean_and_error((self.accuracy[name] - self.accuracy[other]).mean(axis=1))

    def half_width(self, error: float) -> float:
        """Of a 95 % interval around a mean over the seeds."""
        return STUDENT[len(self.seeds) - 1] * error if len(self.seeds) > 1 else math.nan

    def ratio(self, name: str) -> float:
        """The authors' measure: mean over targets of the accuracy over that of the full pool, in percent."""
        full = self.accuracy[FULL].mean(axis=0)
        return float(100.0 * np.mean(self.accuracy[name].mean(axis=0) / np.maximum(full, 1e-9)))

    @property
    def informative(self) -> bool:
        """Whether the oracle is above random by more than three standard errors."""
        mean, error = self.difference(ORACLE)
        return bool(mean > HEADROOM * error)

    def verdict(self, name: str) -> int:
        """1 above random, -1 below, 0 where the interval holds no difference."""
        mean, error = self.difference(name)
        wide = self.half_width(error)
        return int(mean > wide) - int(mean < -wide)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error (NaN of one value)."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


class Results:
    """A recorded study."""

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        self.design: Mapping[str, Any] = recorded["design"]
        self.bases: Sequence[Mapping[str, Any]] = recorded["bases"]
        self.cells: Sequence[Mapping[str, Any]] = recorded["cells"]
        self.further: Sequence[Mapping[str, Any]] = recorded["further"]

    @classmethod
    def read(cls, study: str, folder: Path = FOLDER) -> Results:
        return cls(json.loads((folder / f"{study}.json").read_text("utf-8")))

    @property
    def worlds(self) -> list[str]:
        order = list(self.design["rows"])
        return sorted({cell["world"] for cell in self.cells}, key=order.index)

    def conditions(self, world: str) -> list[Condition]:
        """What was run in a world, the main conditions first; whole pools are no conditions of their own."""
        names = ("budget", "regime", "method", "backbone")
        found = {tuple(cell[name] for name in names) for cell in self.cells if cell["world"] == world}
        made = [Condition(world, *own) for own in found if own[0] < 1.0]
        return sorted(made, key=lambda c: (c.method != "full", c.backbone != OWN, c.backbone, c.regime, c.budget))

    def outcome(self, condition: Condition) -> Outcome:
        """Of the seeds for which both the selections and the whole pool are there."""
        own, whole = self._cells(condition, condition.budget), self._cells(condition, 1.0)
        seeds = tuple(sorted(set(own) & set(whole)))
        targets = tuple(own[seeds[0]]["accuracy"][RANDOM])
        of = {seed: {**own[seed]["accuracy"], **whole[seed]["accuracy"]} for seed in seeds}
        accuracy = {
            name: np.array([[of[seed][name][target] for target in targets] for seed in seeds])
            for name in NAMES
            if name in of[seeds[0]]
        }
        kept = {seed: {**own[seed]["shares"], **whole[seed]["shares"]} for seed in seeds}
        shares = {
            name: {kind: float(np.mean([kept[s][name][kind] for s in seeds])) for kind in kept[seeds[0]][name]}
            for name in accuracy
        }
        return Outcome(condition, seeds, targets, accuracy, shares)

    def outcomes(self) -> list[Outcome]:
        """All of them, world by world."""
        return [self.outcome(condition) for world in self.worlds for condition in self.conditions(world)]

    def before(self, world: str) -> tuple[float, float]:
        """Accuracy of the own bases over a world's targets before they are trained, on problems of one seed: mean and
        standard error over the bases."""
        ours = [base["accuracy"] for base in self.bases if base["backbone"] == OWN]
        targets = [f"{world}, {name}" for name in WORLDS[world].targets]
        return mean_and_error(np.array([np.mean([own[target] for target in targets]) for own in ours]))

    def tried(self, world: str, name: str, other: str) -> list[float]:
        """Paired differences of a score of `FURTHER` to a selector of the main table, in points, seed by seed."""
        own = {cell["seed"]: cell for cell in self.further if cell["world"] == world}
        budget = max(self.design["budgets"])
        main = self._cells(Condition(world, budget), budget)
        return [
            float(np.mean(list(own[seed]["accuracy"][name].values())))
            - float(np.mean(list(main[seed]["accuracy"][other].values())))
            for seed in sorted(set(own) & set(main))
        ]

    def _cells(self, condition: Condition, budget: float) -> dict[int, Mapping[str, Any]]:
        asked = {**asdict(condition), "budget": budget}
        return {cell["seed"]: cell for cell in self.cells if all(cell[name] == own for name, own in asked.items())}
