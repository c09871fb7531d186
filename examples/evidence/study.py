"""What is run: sizes, seeds and cells of a study. One code path for all; they differ in numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evidence.bases import Pretraining
from evidence.cells import Cell
from evidence.language import Language
from evidence.stack import Shape
from evidence.worlds import WORLDS

OWN = "own"


@dataclass(frozen=True)
class Study:
    """All numbers of a study.

    Attributes:
        shapes: backbone -> shape; "own" is the one that scores.
        bases: how many of the own backbone there are; seed s trains the base s modulo this.
        budgets, epochs: shares that are kept, and how often each set is gone through.
        rates: method -> learning rate, fixed on full, random and oracle alone.
        problems: of each target.
        pool: share of a world's usual number of rows.
        adapted, transferred: worlds that are also run with LoRA, and on the other backbones, both at the last budget
            and with the first ``fewer`` seeds alone.
        at_once: models in a stack at most.
    """

    name: str
    shapes: Mapping[str, Shape]
    pretraining: Pretraining = field(default_factory=Pretraining)
    language: Language = field(default_factory=Language)
    bases: int = 3
    seeds: tuple[int, ...] = tuple(range(9))
    worlds: tuple[str, ...] = tuple(WORLDS)
    budgets: tuple[float, ...] = (0.05, 0.20)
    epochs: int = 8
    batch: int = 8
    rates: Mapping[str, float] = field(default_factory=lambda: {"full": 2e-3, "lora": 5e-3})
    problems: int = 40
    pool: float = 1.0
    fewer: int = 5
    adapted: tuple[str, ...] = ("mixed",)
    transferred: tuple[str, ...] = ("mixed",)
    device: str = "cpu"
    at_once: int = 20

    def rows(self, world: str) -> int:
        """In a pool of this world."""
        return round(self.pool * WORLDS[world].rows)

    def updates(self, rows: int, regime: str, world: str) -> int:
        """Of a model that is trained on so many rows. "epochs": each set is gone through as often. "updates": as many
        as the largest budget takes that way, so that at this budget the two regimes differ in full alone."""
        if regime == "updates":
            rows = round(max(self.budgets) * self.rows(world))
        elif regime != "epochs":
            raise ValueError(f"unknown regime {regime!r}: epochs or updates")
        return self.epochs * -(-rows // self.batch)

    def cells(self) -> list[Cell]:
        """In the order in which they are run: what every table needs first, seed by seed."""
        last = max(self.budgets)
        found: list[Cell] = []
        for seed in self.seeds:
            for world in self.worlds:
                found += [Cell(world, seed, budget, "epochs") for budget in (last, *self.budgets[:-1])]
                found += [Cell(world, seed, 1.0, regime) for regime in ("epochs", "updates")]
        for seed in self.seeds:
            for world in self.worlds:
                found += [Cell(world, seed, budget, "updates") for budget in self.budgets if budget != last]
        others = [name for name in self.shapes if name != OWN]
        for seed in self.seeds[: self.fewer]:
            for world in self.transferred:
                found += [Cell(world, seed, b, "epochs", backbone=name) for name in others for b in (last, 1.0)]
            for world in self.adapted:
                found += [Cell(world, seed, b, "epochs", "lora") for b in (last, 1.0)]
        return found


SMALL = Study(
    "small",
    {OWN: Shape(), "wider": Shape(width=64, inner=160, head=16), "Llama": Shape("llama")},
)
"""Under 0.1 M parameters, on two cores."""

TINY = Study(
    "tiny",
    {OWN: Shape(width=16, inner=32, layers=1, head=4), "Llama": Shape("llama", width=16, inner=32, layers=1, head=4)},
    Pretraining(updates=3, rows=8, sorted_together=2),
    bases=1,
    seeds=(0, 1),
    worlds=("mixed",),
    problems=4,
    pool=0.1,
    epochs=1,
    at_once=7,
)
"""Seconds: what the tests run."""

GPU = Study(
    "gpu",
    {
        OWN: Shape(width=768, inner=2304, layers=8, heads=12, head=64, longest=256),
        "wider": Shape(width=1280, inner=3840, layers=16, heads=20, head=64, longest=256),
        "Llama": Shape("llama", width=768, inner=2304, layers=8, heads=12, head=64, longest=256),
    },
    Pretraining(updates=3000, rows=256, rate=6e-4),
    Language(modulus=100),
    rates={"full": 1e-4, "lora": 1e-3},
    problems=256,
    pool=8.0,
    batch=32,
    device="cuda",
    at_once=6,
)
"""50 to 300 M parameters and numbers to 99, on one GPU. Not measured."""

STUDIES = {study.name: study for study in (SMALL, TINY, GPU)}
