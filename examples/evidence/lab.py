"""The stages of a study: bases, scores, cells. Each keeps what it makes in the run's folder and is done once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence import bases, selectors, worlds
from evidence.cells import Cell, claimed, work, write_json
from evidence.evaluation import accuracies
from evidence.language import Row
from evidence.stack import Parameters, Stack
from evidence.study import OWN, Study
from evidence.training import Texts, encode, fine_tuned
from hf_curate.demo.world import Problem

WAIT = 2.0
"""Seconds between looks at what another process is making."""


class Lab:
    """A study in a folder."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder

    # -- bases --------------------------------------------------------------------------------------------------------

    def base(self, backbone: str, seed: int, wait: bool = True) -> Path:
        """The folder of a base, pretrained unless it is there. Only the own backbone has more than one."""
        number = self._number(backbone, seed)
        folder = self.folder / "bases" / f"{backbone}-{number}"
        self._once(folder / "accuracy.json", lambda: self._pretrain(backbone, number, folder), wait)
        return folder

    def _number(self, backbone: str, seed: int) -> int:
        return seed % self.study.bases if backbone == OWN else 0

    def _pretrain(self, backbone: str, number: int, folder: Path) -> dict[str, Any]:
        study, shape = self.study, self.study.shapes[backbone]
        parameters = bases.pretrain(shape, study.pretraining, number, study.language, study.device)
        bases.save(parameters, shape, folder)
        own = {
            f"{name}, {target}": self.problems(name, 0)[target]
            for name in study.worlds
            for target in worlds.WORLDS[name].targets
        }
        reader = bases.tokenizer(shape)
        [found] = accuracies(Stack(shape), parameters, reader, study.language, own)
        count = sum(value.numel() for value in parameters.values())
        return {"backbone": backbone, "number": number, "parameters": count, "accuracy": found}

    # -- scores -------------------------------------------------------------------------------------------------------

    def pool(self, world: str, seed: int) -> list[Row]:
        return worlds.draw_pool(worlds.WORLDS[world], self.study.language, seed, self.study.rows(world))

    def problems(self, world: str, seed: int) -> dict[str, list[Problem]]:
        """Target -> held-out problems."""
        return {
            name: worlds.draw_problems(target, self.study.language, self.study.problems, seed)
            for name, target in worlds.WORLDS[world].targets.items()
        }

    def scores(self, world: str, seed: int) -> dict[str, np.ndarray]:
        """Selector -> [rows] scores by the own base, made unless they are there."""
        path = self._scored(world, seed)
        return {name: np.array(own, dtype=np.float64) for name, own in json.loads(path.read_text("utf-8")).items()}

    def _scored(self, world: str, seed: int, wait: bool = True) -> Path:
        path = self.folder / "scores" / f"{world}-{seed}.json"
        self._once(path, lambda: self._score(world, seed), wait)
        return path

    def _score(self, world: str, seed: int) -> dict[str, list[float]]:
        warm = self.folder / "warm" / f"{world}-{seed}"
        shutil.rmtree(warm, ignore_errors=True)
        rate = self.study.rates["full"]
        found = selectors.scores(self.pool(world, seed), self.base(OWN, seed), warm, seed, rate)
        shutil.rmtree(warm)
        return {name: np.round(own, 7).tolist() for name, own in found.items()}

    # -- cells --------------------------------------------------------------------------------------------------------

    def run(self, cells: Sequence[Cell] | None = None) -> int:
        """Does what is missing, and returns how many cells that were."""
        wanted, folder = self.study.cells() if cells is None else cells, self.folder / "cells"
        self._prepare([cell for cell in wanted if not (folder / f"{cell.name}.json").exists()])
        return work(wanted, folder, self.do)

    def _prepare(self, cells: Sequence[Cell]) -> None:
        """Bases and scores before the cells that need them: processes that began with cells would wait for each
        other."""
        for backbone, seed in dict.fromkeys((c.backbone, self._number(c.backbone, c.seed)) for c in cells):
            self.base(backbone, seed, wait=False)
        for world, seed in dict.fromkeys((c.world, c.seed) for c in cells if c.budget < 1.0):
            self._scored(world, seed, wait=False)

    def do(self, cell: Cell) -> dict[str, Any]:
        """Trains on every selection of a cell: accuracy by selector and task, and shares of the kept by selector."""
        study, world = self.study, worlds.WORLDS[cell.world]
        pool = self.pool(cell.world, cell.seed)
        if cell.budget == 1.0:
            sets = {selectors.FULL: np.arange(len(pool))}
        else:
            sets = selectors.chosen(world, pool, self.scores(cell.world, cell.seed), cell.budget, cell.seed)
            del sets[selectors.FULL]
        accuracy = self.train(cell, pool, list(sets.values()))
        return {
            "updates": study.updates(len(next(iter(sets.values()))), cell.regime, cell.world),
            "accuracy": dict(zip(sets, accuracy, strict=True)),
            "shares": {
                name: {kind: round(share, 4) for kind, share in worlds.shares(world, pool, places).items()}
                for name, places in sets.items()
            },
        }

    def run_further(self) -> int:
        """The scores of `FURTHER` at the largest budget, in every world; the main cells are left as they are."""
        budget = max(self.study.budgets)
        cells = [
            Cell(world, seed, budget, "epochs")
            for seed in self.study.seeds[: self.study.fewer]
            for world in self.study.worlds
        ]
        return work(cells, self.folder / "further", self.do_further)

    def do_further(self, cell: Cell) -> dict[str, Any]:
        pool = self.pool(cell.world, cell.seed)
        values = selectors.further(self.scores(cell.world, cell.seed))
        sets = [selectors.kept(own, cell.budget) for own in values.values()]
        return {"accuracy": dict(zip(values, self.train(cell, pool, sets), strict=True))}

    def train(self, cell: Cell, pool: Sequence[Row], sets: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Target -> percent right, for each set of rows."""
        study, shape = self.study, self.study.shapes[cell.backbone]
        base = bases.load(self.base(cell.backbone, cell.seed), study.device)
        reader = bases.tokenizer(shape)
        texts, problems = encode(pool, reader, study.device), self.problems(cell.world, cell.seed)
        found: list[dict[str, float]] = []
        for first in range(0, len(sets), study.at_once):
            some = sets[first : first + study.at_once]
            models = self._fine_tuned(cell, Stack(shape), base, texts, some)
            found += accuracies(Stack(shape), models, reader, study.language, problems)
        return found

    def _fine_tuned(
        self, cell: Cell, stack: Stack, base: Parameters, texts: Texts, sets: Sequence[np.ndarray]
    ) -> Parameters:
        study = self.study
        return fine_tuned(
            stack,
            base,
            texts,
            sets,
            updates=study.updates(len(sets[0]), cell.regime, cell.world),
            batch=study.batch,
            rate=study.rates[cell.method],
            method=cell.method,
            seed=cell.seed,
        )

    def _once(self, path: Path, make: Callable[[], Any], wait: bool) -> None:
        """Makes what a JSON file records; where another process is making it, waits for it or leaves it to that."""
        while not path.exists():
            with claimed(path) as ours:
                if ours:
                    write_json(path, make())
                    return
            if not wait:
                return
            time.sleep(WAIT)
