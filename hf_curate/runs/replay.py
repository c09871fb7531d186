"""recipe.yaml of a run's folder: the stage of `hf-curate run` that does the same again, as it was typed.

Paths stand as they were given, and a key as the name of its environment variable.
"""

from __future__ import annotations

import inspect
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_curate.errors import CurateError
from hf_curate.scorers.base import Scorer
from hf_curate.sources import is_local, parse

HEAD = "# Does this run again, or goes on with it: hf-curate run, from the folder that paths were given from.\n"
LACKS = "# This run was begun from Python, and a recipe cannot hold all of it:\n"
KNOWN = "#\n# What it can hold; without '#' and with the rest it would be a recipe:\n"
UNTYPED = ("run", "alone", "overwrite")
"""What is in the arguments of a command and was not typed, or is for one time."""
ROLLED = (
    *("model", "revision", "tokenizer", "n", "temperature", "top_p", "max_new_tokens", "seed", "prompt", "messages"),
    *("dtype", "device", "batch_tokens"),
)
"""Arguments of `Rollouts` that `hf-curate rollouts` has under the same names."""


def of_command(stage: str, arguments: Namespace) -> str:
    """The recipe of `hf-curate score` or `hf-curate rollouts` with these arguments; those left out stay so."""
    given = {name: value for name, value in vars(arguments).items() if name not in UNTYPED}
    return HEAD + _yaml(stage, {name: _written(name, value) for name, value in given.items() if _is_given(value)})


def of_call(scorer: Any, run: Mapping[str, Any]) -> str:
    """The recipe of `score(dataset, scorer, ...)`; where something of it can stand in no recipe, comments that say
    what.

    run: source, out, sizes, workers, threads, streaming and strict, as they were given.
    """
    known, lacks = dict(run), []
    source, size = known.pop("source"), known.pop("batch_rows")
    if _is_source(source):
        known = {"source": source, **known}
    else:
        lacks.append(f"source: {'not given' if source is None else 'as given, it cannot be loaded'} (score(source=))")
    lacks += [] if size is None else [f"batch_rows: {size}"]
    stage, options, more = _of_scorer(scorer)
    known = {name: value for name, value in {**known, **options}.items() if _is_given(value)}
    if not (lacks := [*lacks, *more]):
        return HEAD + _yaml(stage, known)
    call = scorer.call() if isinstance(scorer, Scorer) else f"a {type(scorer).__name__}"
    told = "".join(f"#   {' '.join(text.split())}\n" for text in [*lacks, f"the scorer: {call}"])
    return LACKS + told + KNOWN + "".join(f"# {line}\n" for line in _yaml(stage, known).splitlines())


def _yaml(stage: str, options: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump({stage: dict(options)}, sort_keys=False, allow_unicode=True, width=1000)


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _written(name: str, value: Any) -> Any:
    """An argument of the command line as a recipe has it."""
    if name == "verifier_option":
        return dict(text.split("=", 1) for text in value)
    if name == "server_extra":
        return json.loads(value)
    return _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    """A value that YAML has a word for; None for others."""
    if isinstance(value, Path):
        return str(value)
    if type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if name == "history" and isinstance(value, tuple | list) and len(value) == 2:
        return f"{value[0]}:{value[1]}"
    return value if type(value) in (str, int, float, bool) else None


def _is_source(source: str | None) -> bool:
    """Whether a recipe can read it: what `score` is told may be any words."""
    try:
        return source is not None and (is_local(source) or bool(parse(source)))
    except CurateError:
        return False


def _of_scorer(scorer: Any) -> tuple[str, dict[str, Any], list[str]]:
    """(stage, options, what no option can say)."""
    given = getattr(scorer, "_arguments", None)
    if not isinstance(scorer, Scorer) or not type(scorer).__module__.startswith("hf_curate.") or given is None:
        return "score", {}, ["the scorer: none of those of the command line"]
    if type(scorer).__name__ == "Rollouts":
        options, lacks = _said(scorer, given, ROLLED, {"verifier", "server"})
        for more, lacking in (_of_verifier(scorer.verifier), _of_server(given["server"])):  # type: ignore[attr-defined]
            options, lacks = {**options, **more}, [*lacks, *lacking]
        return "rollouts", options, lacks
    from hf_curate.scoring import KINDS

    for name, kind in KINDS.items():
        if kind.name == type(scorer).__name__ and kind.fixed.items() <= given.items():
            options, lacks = _said(scorer, given, kind.options, set(kind.fixed))
            if getattr(scorer, "fitted", None) is not None and "direction" not in options:
                lacks += [] if getattr(scorer, "_implicit", True) else ["fit: on rows that Python held"]
            return "score", {"scorer": name, **options}, lacks
    return "score", {}, [f"the scorer: {type(scorer).__name__} is none of the command line"]


def _said(
    scorer: Any, given: Mapping[str, Any], names: Sequence[str], known: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """(those arguments that differ from their defaults and are options, those that are none)."""
    defaults = {name: one.default for name, one in inspect.signature(type(scorer).__init__).parameters.items()}
    options, lacks = {}, []
    for name, value in given.items():
        if name in known or value is None or value is defaults.get(name):
            continue
        plain = _plain(name, value)
        if plain is None or name not in names:
            lacks.append(f"{name}: a {type(value).__name__}")
        elif plain != defaults.get(name):
            options[name] = plain
    return options, lacks


def _of_verifier(verifier: Any) -> tuple[dict[str, Any], list[str]]:
    from hf_curate.rollouts.verify import NAMES, Checker, option_types

    if verifier.name not in NAMES or not isinstance(verifier, Checker):
        return {}, [f"verifier: {verifier.name}, a {type(verifier).__name__.lower()}"]
    defaults = {name: one.default for name, one in inspect.signature(type(verifier).__init__).parameters.items()}
    options = {name: value for name, value in verifier.options.items() if name in option_types(verifier.name)}
    chosen = {name: value for name, value in options.items() if value != defaults[name]}
    return {"verifier": verifier.name, **({"verifier_option": _as_json(chosen)} if chosen else {})}, []


def _of_server(server: Any) -> tuple[dict[str, Any], list[str]]:
    if server is None:
        return {}, []
    if not hasattr(server, "_arguments"):
        return {}, [f"server: a {type(server).__name__}"]
    renamed: dict[str, str] = {"base_url": "server", "model": "server_model", "extra": "server_extra"}
    defaults = {name: one.default for name, one in inspect.signature(type(server).__init__).parameters.items()}
    arguments: dict[str, Any] = server._arguments
    given = {name: value for name, value in arguments.items() if value != defaults[name]}
    given |= {"api_key_env": ""} if given.get("api_key_env", "") is None else {}  # no key is sent, whatever is set
    return {renamed.get(name, name): _as_json(value) for name, value in given.items()}, []


def _as_json(value: Any) -> Any:
    """A value of a record as YAML can write it too: tuples as lists, no classes of their own."""
    return json.loads(json.dumps(value))
