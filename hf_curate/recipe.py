"""A recipe: rollouts, score, select and push in one YAML file, read with strict keys and checked before anything runs.

Each stage is a mapping with the options of the command of that name, with underscores; `rollouts` may be a list of
them. `select` has `budgets` in place of a budget and a config name: config name -> budget, or a mapping of the budget
and the options that differ for this config. What a stage writes is read by the next unless it says otherwise. YAML is
read as plain data; anchors and merges may be used.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hf_curate.budgets import STRATEGIES, parse_budget
from hf_curate.errors import CurateError
from hf_curate.plain_yaml import read_plain

STAGES = ("rollouts", "score", "select", "push")
OF_ONE = ("budget", "strategy", "min_score", "group", "seed")
"""Options of select that may differ from config to config."""
NOT_IN_A_RECIPE = {
    **dict.fromkeys(("rollouts", "score", "push"), ("dry_run",)),
    "select": ("config", "budget"),
}
MAPPINGS = {"verifier_option": "gold: solution", "server_extra": "top_k: 0"}
"""Options that are one text or several on the command line, and mappings here."""
CURATED = "curated"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_KINDS = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "text"},
    **{list: "a list", dict: "a mapping"},
}


@dataclass(frozen=True)
class Stage:
    """One command: its name, and its arguments as the command line would have them."""

    command: str
    arguments: argparse.Namespace

    @property
    def title(self) -> str:
        """What messages call it, such as "select grace-5pct -> curated"."""
        to = self.arguments.repo_id if self.command == "push" else self.arguments.out
        return f"{self.command}{f' {self.arguments.config}' if self.command == 'select' else ''} -> {to}"


@dataclass(frozen=True)
class Recipe:
    """The stages of a recipe in the order in which they run; one stage of select for each config."""

    stages: tuple[Stage, ...]


def read_recipe(path: Path, commands: Mapping[str, argparse.ArgumentParser]) -> Recipe:
    """Reads a recipe.

    Args:
        path: the file.
        commands: the parsers of the commands, which know what the options are called and what they hold.

    Raises:
        CurateError: it cannot be read as YAML, has a key twice, one that is none, a value of another type, or lacks
            one; with its place.
    """
    data, lines = read_plain(path, f"give it stages, {', '.join(STAGES)}")
    return Recipe(tuple(_Reading(path.name, lines, commands).stages(data)))


class _Reading:
    """Makes stages of plain values; every error has its place."""

    def __init__(self, name: str, lines: Mapping[str, int], commands: Mapping[str, argparse.ArgumentParser]) -> None:
        self.name, self.lines = name, lines
        self.actions = {
            stage: {
                action.dest: action
                for action in commands[stage]._actions
                if action.dest not in ("help", *NOT_IN_A_RECIPE.get(stage, ()))
            }
            for stage in STAGES
        }
        self.of_one = {one.dest: one for one in commands["select"]._actions if one.dest in OF_ONE}
        self.defaults = {
            stage: {action.dest: action.default for action in commands[stage]._actions if action.dest != "help"}
            | {name: commands[stage].get_default(name) for name in ("run", "alone")}
            for stage in STAGES
        }

    def stages(self, data: Any) -> list[Stage]:
        """The stages of a recipe, in order."""
        given = self._mapping(data, "", STAGES)
        if not given:
            raise self._error("", f"there is no stage: give it {', '.join(STAGES)}.")
        found: list[Stage] = []
        rolled = given.get("rollouts")
        several = rolled if isinstance(rolled, list) else [] if rolled is None else [rolled]
        for number, one in enumerate(several, 1):
            place = f"rollouts[{number}]" if isinstance(rolled, list) else "rollouts"
            found.append(self._stage("rollouts", one, place, {}))
        if "rollouts" in given and not found:
            raise self._error("rollouts", "it is empty: give it options, or drop it.")
        if "score" in given:
            before = {"source": found[0].arguments.out} if len(found) == 1 else {}
            found.append(self._stage("score", given["score"], "score", before))
        self._check_folders(found)
        if "select" in given:
            before = {"run_folder": found[-1].arguments.out} if "score" in given else {}
            found += self._selects(given["select"], before)
        if "push" in given:
            selected = [one for one in found if one.command == "select"]
            before = {"folder": selected[0].arguments.out} if selected else {}
            if selected and not (isinstance(given["push"], Mapping) and "folder" in given["push"]):
                before["config"] = [one.arguments.config for one in selected]
            found.append(self._stage("push", given["push"], "push", before))
        return found

    def _stage(self, stage: str, data: Any, place: str, before: Mapping[str, Any]) -> Stage:
        """before: what follows from the stages before, where nothing else is said."""
        actions = self.actions[stage]
        given = {**before, **self._values(self._mapping(data, place, list(actions)), place, actions)}
        for name, action in actions.items():
            if action.required and name not in given:
                raise self._error(place, f"{name} is missing ({(action.help or '').replace('%%', '%')}).")
        return Stage(stage, argparse.Namespace(**{**self.defaults[stage], **given, "alone": False}))

    def _selects(self, data: Any, before: Mapping[str, Any]) -> list[Stage]:
        data = self._mapping(data, "select", [*self.actions["select"], "budgets"])
        budgets = data.get("budgets")
        if not isinstance(budgets, Mapping) or not budgets:
            raise self._error("select", "budgets is missing: config name -> budget, such as {grace-20pct: 20%}.")
        common = {name: value for name, value in data.items() if name != "budgets"}
        run = common.get("run_folder", before.get("run_folder"))
        before = {"out": f"{run}/{CURATED}", **before}
        return [self._select(name, one, common, before) for name, one in budgets.items()]

    def _select(self, config: Any, data: Any, common: Mapping[str, Any], before: Mapping[str, Any]) -> Stage:
        from hf_curate.hub.manifest import check_names

        place = f"select.budgets.{config}"
        if not isinstance(config, str):
            raise self._error(place, f"the config name is {_named(config)}, expected text: put it in quotes.")
        stage = self._stage("select", common, "select", before)
        chosen = self._mapping(data, place, OF_ONE) if isinstance(data, Mapping) else {"budget": data}
        if not isinstance(data, Mapping) and data is None:
            raise self._error(place, "it is empty: give a budget, such as 20%, 5000 or 2M tokens.")
        given = {**vars(stage.arguments), **self._values(chosen, place, self.of_one), "config": config}
        strategy, budget = given["strategy"], given.get("budget")
        try:
            check_names(config, given["split"])
            if strategy not in STRATEGIES:
                near = get_close_matches(strategy, STRATEGIES, n=1)
                more = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(STRATEGIES)}."
                raise CurateError(f"there is no strategy {strategy!r}: {more}")
            if strategy != "threshold" or budget is not None:
                given["budget"] = parse_budget(budget).asked if isinstance(budget, int) else budget
                parse_budget(given["budget"])
        except CurateError as error:
            raise self._error(place, str(error)) from error
        return Stage("select", argparse.Namespace(**given))

    def _check_folders(self, runs: Sequence[Stage]) -> None:
        """No two runs write to one folder."""
        folders: dict[Path, Stage] = {}
        for one in runs:
            folder = Path(one.arguments.out).expanduser().resolve()
            if folder in folders:
                both = f"{folders[folder].command} and {one.command}"
                raise self._error("", f"{both} both write to {one.arguments.out!r}: give each run its own out.")
            folders[folder] = one

    # -- keys and values ----------------------------------------------------------------------------------------------

    def _mapping(self, data: Any, place: str, known: Sequence[str]) -> Mapping[str, Any]:
        if not isinstance(data, Mapping):
            what = place or "the top"
            raise self._error(place, f"{what} is {_named(data)}, expected a mapping of {', '.join(known)[:200]}.")
        for key in data:
            if key not in known:
                here = f"{place}.{key}" if place else str(key)
                raise self._error(here, f"there is no such key: {self._near(key, known)}")
        return data

    def _near(self, key: Any, known: Sequence[str]) -> str:
        near = get_close_matches(str(key).replace("-", "_"), known, n=1)
        if near:
            return f"did you mean {near[0]}?"
        homes = [stage for stage, actions in self.actions.items() if key in actions]
        homes += ["select, in budgets"] if key in OF_ONE else []
        if homes:
            return f"it belongs to {' and '.join(dict.fromkeys(homes))}."
        return f"the keys are {', '.join(known)}."

    def _values(self, data: Mapping[str, Any], place: str, actions: Mapping[str, argparse.Action]) -> dict[str, Any]:
        return {name: self._value(actions[name], data[name], f"{place}.{name}") for name in data}

    def _value(self, action: argparse.Action, value: Any, place: str) -> Any:
        """A value as the command line would give it."""
        if value is None:
            raise self._error(place, "it is empty: give a value, or drop the line.")
        if action.dest in MAPPINGS:
            return self._pairs(action, value, place)
        if isinstance(action, argparse._AppendAction):
            if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
                return value
            raise self._error(place, f"it is {_named(value)}, expected a list of texts.")
        if action.nargs == 0:  # a flag
            return self._of_type(bool, value, place)
        if action.dest == "budget" and type(value) is int:
            return value
        if action.type in (int, float):
            return self._of_type(action.type, value, place)
        text = self._of_type(str, value, place)
        try:
            return action.type(text) if callable(action.type) else text
        except argparse.ArgumentTypeError as error:
            raise self._error(place, f"{error}.") from error

    def _of_type(self, kind: Any, value: Any, place: str) -> Any:
        if type(value) is kind:
            return value
        if kind is float and (type(value) is int or (isinstance(value, str) and _EXPONENT.fullmatch(value))):
            return float(value)  # YAML 1.1 reads 1e-3 as text
        quotes = kind is str and isinstance(value, bool | int | float | datetime.date)
        fix = f": put it in quotes, {place.rpartition('.')[2]}: '...'" if quotes else ""
        raise self._error(place, f"it is {_named(value)}, expected {_KINDS[kind]}{fix}.")

    def _pairs(self, action: argparse.Action, value: Any, place: str) -> Any:
        """The text, or the texts, that the command line has for a mapping."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self._error(place, f"it is {_named(value)}, expected a mapping such as {{{MAPPINGS[action.dest]}}}.")
        try:
            if action.dest == "server_extra":
                return json.dumps(value)
            return [f"{key}={one if isinstance(one, str) else json.dumps(one)}" for key, one in value.items()]
        except (TypeError, ValueError, RecursionError) as error:
            raise self._error(place, f"it holds what is no JSON ({error}): put it in quotes.") from error

    def _error(self, place: str, why: str) -> CurateError:
        line = self.lines.get(place)
        where = f", line {line}" if line else ""
        return CurateError(f"{self.name}{where}: {f'{place}: ' if place else ''}{why}")


def _named(value: Any) -> str:
    """A value in an error: what it is, and itself where it is short."""
    if isinstance(value, Mapping | list):
        return _KINDS[dict if isinstance(value, Mapping) else list]
    if value is None:
        return "nothing"
    kind = "a date" if isinstance(value, datetime.date) else _KINDS.get(type(value), f"a {type(value).__name__}")
    return f"{kind} ({str(value)[:60]!r})" if isinstance(value, str) else f"{kind} ({str(value)[:60]})"
