"""hf-curate: rollouts | score | select | push | run | inspect | report | verify | diff | demo.

Options have the names of Python's arguments. Commands that read what is there are rooms of their own (`commands/`).
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from hf_curate.commands import demo, diff, inspect, push, report, verify
from hf_curate.errors import CurateError
from hf_curate.inputs import Rows, check_rows, first_rows, load_rows, rows_read_once, run_folder
from hf_curate.rollouts import command
from hf_curate.scoring import (
    DEFAULT,
    SCORE_HELP,
    SCORERS_HELP,
    add_model,
    add_options,
    check_policy,
    check_traces,
    fit_first,
    scorer_of,
)
from hf_curate.spelling import as_typed

RANKED = ("top", "threshold", "stratified")
"""The strategies that keep rows by their score."""
SELECT_HELP = """\
Keep the best rows of a scored run under a budget, and write them as one config of a Hub dataset repo.

  hf-curate select runs/gsm8k --budget 20% --out curated --config grace-20pct
  hf-curate select runs/gsm8k --budget "2M tokens" --strategy random --out curated --config random-2m
"""
RUN_HELP = """\
Carry out a recipe: rollouts, score, select and push in one YAML file. What is there already is skipped.

  hf-curate run examples/recipes/grace.yaml --dry-run
  hf-curate run examples/recipes/grace.yaml
  hf-curate run runs/gsm8k/recipe.yaml      go on with a run, or do it again, as it was typed
"""
RUN_MORE = """\
score:                            # each stage has the options of its command, with underscores
  source: traces.jsonl            # default: the out of rollouts, if there is one
  model: ./my-model
  out: runs/mine
select:
  out: curated                    # default: the folder curated in that of the run
  budgets:                        # one config each; more options in braces
    grace-5pct: 5%
    grace-20pct: 20%
    random-20pct: {budget: 20%, strategy: random}
push:
  repo_id: me/mine-curated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 1 for failed rows with --strict, 2 for an error that the message explains."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        _unknown(unknown, _own(parser, arguments))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *_: _say("warning", message, parser, arguments)
    logging.getLogger("hf_curate").setLevel(logging.INFO)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except CurateError as error:
        _say("error", error, parser, arguments)
        return 2
    except KeyboardInterrupt:
        kept = arguments.run in (_score, _rollouts, _run_recipe) and not getattr(arguments, "dry_run", False)
        goes_on = ": what is finished is kept, and the same command goes on from there" if kept else ""
        print(f"hf-curate: interrupted{goes_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone: nothing may be flushed at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code or 0


def _say(what: str, message: Exception | str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Errors and warnings as one sentence in the words of the command, without the line of code they came from."""
    print(f"hf-curate: {what}: {as_typed(str(message), _own(parser, arguments), arguments)}", file=sys.stderr)


def _own(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was given."""
    commands = next(one.choices for one in parser._actions if isinstance(one.choices, dict))
    return next(one for one in commands.values() if one.get_default("run") is arguments.run)


def _unknown(given: Sequence[str], parser: argparse.ArgumentParser) -> NoReturn:
    """Ends with an error over arguments that the command does not have, and names the nearest option."""
    options = [option for action in parser._actions for option in action.option_strings]
    names = {option.lstrip("-"): option for option in options}
    typed = [text.partition("=")[0].lstrip("-") for text in given if text.startswith("-")]
    near = [names[name] for text in typed for name in get_close_matches(text, names, n=1)]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    parser.error(f"unrecognized arguments: {shlex.join(given)}{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-curate", description="Choose which reasoning data to post-train on: score, select, save, load."
    )
    from hf_curate import __version__

    parser.add_argument("--version", action="version", version=f"hf_curate {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_rollouts(commands)
    _add_score(commands)
    _add_select(commands)
    _add_room(commands, push)
    _add_recipe(commands)
    for room in (inspect, report, verify, diff, demo):
        _add_room(commands, room)
    return parser


def _command(commands: Any, name: str, description: str, run: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=description.splitlines()[0],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, alone=True)
    return parser


def _add_room(commands: Any, room: ModuleType) -> None:
    """A command that lives in a room of its own: HELP, `add_options` and `run`."""
    room.add_options(_command(commands, room.__name__.rpartition(".")[2], room.HELP, room.run))


def _add_rollouts(commands: Any) -> None:
    parser = _command(commands, "rollouts", command.HELP, _rollouts)
    parser.epilog = command.VERIFIERS_HELP
    _add_run(parser)
    command.add_options(parser)
    add_model(parser.add_argument_group("model"))


def _add_score(commands: Any) -> None:
    parser = _command(commands, "score", SCORE_HELP, _score)
    parser.epilog = SCORERS_HELP
    _add_run(parser)
    add_options(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """What is read, and the folder that a run goes to."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="org/name@revision:config/split, a .jsonl, .json or .parquet file, or the folder of an earlier run",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a run of other settings in --out; one of the same settings goes on by itself",
    )
    parser.add_argument(
        "--shard-rows",
        type=int,
        metavar="N",
        help="rows kept at a time, and the most that a stop loses (default: a batch)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that score, one device each (default: this one alone)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the CPU, for each of them (default: all there are, divided between them)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        help="where --workers are: processes of this machine, or actors on a Ray cluster (default: local)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of a cluster that is there (default: what RAY_ADDRESS names, else one of this machine for this run)",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 if any row failed; the others are kept")
    parser.add_argument(
        "--streaming", action="store_true", help="read SOURCE once, as a stream, into --out; in little memory"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="score a few hundred rows, print what the run would take and its card, and write nothing to --out",
    )


def _add_select(commands: Any) -> None:
    parser = _command(commands, "select", SELECT_HELP, _select)
    parser.add_argument("run_folder", metavar="RUN", help="folder that `hf-curate score` wrote")
    parser.add_argument("--budget", help="'20%%' of all input rows, 5000, '5000 rows' or '2M tokens'")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="dataset repo folder; other configs in it stay")
    parser.add_argument("--config", required=True, metavar="NAME", help="config name, such as grace-20pct")
    parser.add_argument("--split", default="train", help="split name (default: %(default)s)")
    parser.add_argument(
        "--strategy",
        default="top",
        help="top, threshold, stratified, random, longest, most_steps, lowest_loss, highest_loss, accuracy_greedy or "
        "pass_rate_band (default: top)",
    )
    parser.add_argument("--min-score", type=float, help="rows below it are never kept")
    parser.add_argument("--group", metavar="COLUMN", help="strata of --strategy stratified")
    parser.add_argument("--seed", type=int, default=0, help="of random selections (default: %(default)s)")
    parser.add_argument("--source", help="what the card calls the source (default: what was scored)")


def _add_recipe(commands: Any) -> None:
    parser = _command(commands, "run", RUN_HELP, _run_recipe)
    parser.epilog = RUN_MORE
    parser.set_defaults(commands=commands)
    parser.add_argument("recipe", metavar="RECIPE", help="a .yaml file; its paths start where the command runs")
    parser.add_argument("--dry-run", action="store_true", help="print the stages and what is there, and do nothing")


def _quiet() -> None:
    """The bars of transformers' weight loading would run through ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _rollouts(arguments: argparse.Namespace) -> int:
    from hf_curate.comparisons import outcomes
    from hf_curate.measures import rollout_measures
    from hf_curate.runs.local import failed_rows, score

    _quiet()
    _check_in_and_out(arguments)
    rollouts = command.rollouts_of(arguments)
    if rollouts.server is not None:
        rollouts.server.record()  # asks it: one that does not answer leaves no folder behind
    rows = _rows(arguments, rollouts)
    rollouts.earlier = rows.earlier
    if arguments.dry_run:
        return _dry_run(arguments, rows, rollouts)
    rolled = score(rows.dataset, rollouts, source=rows.source, **_into(arguments, "rollouts"))
    failed = sum(failed_rows(rolled, rollouts).values())
    print(f"{len(rolled) - failed:,} of {len(rolled):,} rows have rollouts -> {arguments.out}")
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in (outcomes(rolled) or {}).items())
    signal = int((rollout_measures(rolled, rollouts.record())["signal"] == 1.0).sum())
    print(f"rollouts: {counts}; {signal:,} row{'' if signal == 1 else 's'} with a signal: rewards that differ")
    model = shlex.quote(arguments.model)
    _next(arguments, f"hf-curate score {arguments.out} --scorer learnalign --model {model} --out runs/learnalign")
    return int(arguments.strict and failed > 0)


def _into(arguments: argparse.Namespace, stage: str) -> dict[str, Any]:
    """What `score` is told of the folder that a run goes to."""
    from hf_curate.runs.replay import of_command

    named = {name: getattr(arguments, name) for name in ("out", "shard_rows", "threads", "overwrite")}
    workers = 1 if arguments.workers is None else arguments.workers
    where = {"engine": arguments.engine or "local", "ray_address": arguments.ray_address}
    return {**named, "workers": workers, **where, "recipe": of_command(stage, arguments)}


def _first_rows(arguments: argparse.Namespace) -> Rows:
    """The rows; with --streaming the first of them, to look at."""
    return (first_rows if arguments.streaming else load_rows)(arguments.source)


def _rows(arguments: argparse.Namespace, scorer: Any, found: Rows | None = None) -> Rows:
    """The rows; with --streaming those that are in --out. found: what `_first_rows` gave already."""
    if arguments.streaming and not arguments.dry_run:
        return rows_read_once(arguments.source, Path(arguments.out).expanduser(), scorer, arguments.overwrite)
    return found or _first_rows(arguments)


def _dry_run(arguments: argparse.Namespace, rows: Rows, scorer: Any) -> int:
    from hf_curate.runs.local import score

    asked = {name: getattr(arguments, name) for name in ("out", "shard_rows", "threads", "strict")}
    workers = 1 if arguments.workers is None else arguments.workers
    score(rows.stream or rows.dataset, scorer, source=rows.source, dry_run=True, workers=workers, **asked)
    return 0


def _next(arguments: argparse.Namespace, command: str) -> None:
    """Says what to type next, where that is not settled by a recipe."""
    if arguments.alone:
        print(f"next: {command}")


def _check_in_and_out(arguments: argparse.Namespace) -> None:
    """The source is there, and no run that is read is the folder that is written to."""
    check_rows(arguments.source)
    for source in (arguments.source, getattr(arguments, "validation", None)):
        folder = None if source is None else run_folder(source)
        if folder is not None and folder.resolve() == Path(arguments.out).expanduser().resolve():
            raise CurateError(f"the run {folder.name!r} would be read and written: give --out a folder of its own.")


def _score(arguments: argparse.Namespace) -> int:
    from hf_curate.comparisons import silent_rows
    from hf_curate.runs.local import check_folder, failed_rows, score

    _quiet()
    _check_in_and_out(arguments)
    rows = None
    if arguments.scorer is None:
        rows = _first_rows(arguments)
        check_traces(rows.dataset, rows.source, arguments)
    scorer, trusted = scorer_of(arguments)
    rows = _rows(arguments, scorer, rows)
    dataset, scorer.rolled_by, scorer.earlier = rows.dataset, rows.rolled_by(vars(arguments)), rows.earlier
    for read in (rows, trusted):
        if read is not None:
            check_policy(scorer, read, arguments)
    if arguments.dry_run:
        return _dry_run(arguments, rows, scorer)
    if trusted is not None or arguments.save_direction is not None:
        if Path(arguments.out).exists():  # what `score` would say after the fit
            scorer.expect(dataset)
            asked = {name: getattr(arguments, name) for name in ("shard_rows", "threads")}
            sizes = {name: size for name, size in asked.items() if size is not None}
            check_folder(Path(arguments.out), scorer, dataset, arguments.overwrite, sizes)
        fit_first(scorer, rows, trusted, arguments)
    scored = score(dataset, scorer, source=rows.source, **_into(arguments, "score"))
    failed = sum(failed_rows(scored, scorer).values())
    print(f"{len(scored) - failed:,} of {len(scored):,} rows scored -> {arguments.out}")
    silent = silent_rows(scored, scorer.column, scorer.record())
    if silent:
        print(f"{silent:,} row{'' if silent == 1 else 's'} without signal (score 0)")
    config = f"{_config(arguments)}-20pct"
    _next(arguments, f"hf-curate select {arguments.out} --budget 20% --out curated --config {config}")
    return int(arguments.strict and failed > 0)


def _config(arguments: argparse.Namespace) -> str:
    """What a config of this run may be called: by scorer and folder, so that two runs of one scorer are not one."""
    from hf_curate.hub.manifest import check_names

    scorer, folder = arguments.scorer or DEFAULT, Path(arguments.out).expanduser().resolve().name
    name = folder if scorer in folder else f"{scorer}-{folder}"
    try:
        check_names(f"{name}-20pct", "train")
    except CurateError:
        return scorer
    return name


def _select(arguments: argparse.Namespace) -> None:
    import datasets

    from hf_curate.runs.local import load_run
    from hf_curate.selection import select
    from hf_curate.sources import check_run

    check_run(arguments.run_folder)
    run = load_run(arguments.run_folder)
    datasets.disable_progress_bars()
    picked = select(
        run.dataset,
        run,
        arguments.budget,
        strategy=arguments.strategy,
        min_score=arguments.min_score,
        group=arguments.group,
        seed=arguments.seed,
        source=arguments.source or run.source,
    )
    there = Path(arguments.out).expanduser() / arguments.config / f"{arguments.split}.manifest.json"
    replaced = os.path.exists(there)  # False too for what can be no path
    picked.save(arguments.out, arguments.config, split=arguments.split)
    if arguments.strategy in RANKED and isinstance(run.record().get("verifier"), dict):
        print("these are rollouts, ranked by learnability: p (1 - p), p the share that is right; no gradient is in it")
    print(f"{picked!r} -> {arguments.out}{', in place of the config that was there' if replaced else ''}")
    _next(arguments, f'load_dataset("{arguments.out}", "{arguments.config}", split="{arguments.split}")')


def _run_recipe(arguments: argparse.Namespace) -> int:
    from hf_curate.recipe import read_recipe
    from hf_curate.stages import carry_out

    recipe = read_recipe(Path(arguments.recipe).expanduser(), arguments.commands.choices)
    _quiet()
    return carry_out(recipe, dry_run=arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
