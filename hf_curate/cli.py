"""hf-curate: rollouts | score | select | push | run | inspect | demo. Options have the names of Python's arguments."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_curate.errors import CurateError
from hf_curate.inputs import Rows, check_rows, first_rows, load_rows, rows_read_once, run_folder
from hf_curate.rollouts import command
from hf_curate.scoring import (
    DEFAULT,
    EITHER,
    SCORE_HELP,
    SCORERS_HELP,
    add_columns,
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
PUSH_HELP = """\
Push the configs of a saved folder to a dataset repo on the Hub, all in one commit; what else is there stays untouched.

  hf-curate push curated me/gsm8k-grace --dry-run
  hf-curate push curated me/gsm8k-grace --config grace-20pct --private
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
INSPECT_HELP = """\
Look before (or after) you leap: how the rows of a dataset are read, what a run holds, or what a saved config claims.

  hf-curate inspect traces.jsonl --rows 3   prompt, steps and answer as a scorer will read them
  hf-curate inspect rollouts.jsonl          prompt, responses and rewards, and whether they differ
  hf-curate inspect runs/gsm8k              scores and failures of a run
  hf-curate inspect curated --config grace-20pct    what was chosen and how, checked against the data
"""
DEMO_HELP = """\
Score, select, save and load the small dataset that ships with hf_curate, with the small model that ships with it.
No network and no GPU; about a minute on two cores.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 1 for failed rows with --strict, 2 for an error that the message explains."""
    parser = _parser()
    arguments = parser.parse_args(argv)
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
    commands = next(one.choices for one in parser._actions if isinstance(one.choices, dict))
    own = next(one for one in commands.values() if one.get_default("run") is arguments.run)
    print(f"hf-curate: {what}: {as_typed(str(message), own, arguments)}", file=sys.stderr)


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
    _add_push(commands)
    _add_recipe(commands)
    _add_inspect(commands)
    demo = _command(commands, "demo", DEMO_HELP, _demo)
    demo.add_argument(
        "--out", default="hf-curate-demo", metavar="FOLDER", help="where to write (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the random baseline (default: %(default)s)")
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


def _add_push(commands: Any) -> None:
    parser = _command(commands, "push", PUSH_HELP, _push)
    parser.add_argument("folder", metavar="FOLDER", help="folder that `hf-curate select` wrote")
    parser.add_argument("repo_id", metavar="REPO", help="owner/name; created if it is not there")
    parser.add_argument("--config", metavar="NAME", action="append", help="only this config (may be repeated)")
    parser.add_argument(
        "--private", action=argparse.BooleanOptionalAction, help="of a new repo (default: as the source)"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to")
    parser.add_argument("--commit-message", metavar="TEXT", help="default: names the configs")
    parser.add_argument("--allow-gated", action="store_true", help="copy rows of a gated source")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")


def _add_recipe(commands: Any) -> None:
    parser = _command(commands, "run", RUN_HELP, _run_recipe)
    parser.epilog = RUN_MORE
    parser.set_defaults(commands=commands)
    parser.add_argument("recipe", metavar="RECIPE", help="a .yaml file; its paths start where the command runs")
    parser.add_argument("--dry-run", action="store_true", help="print the stages and what is there, and do nothing")


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", INSPECT_HELP, _inspect)
    parser.add_argument("target", metavar="TARGET", help="a source, a run folder, or a dataset repo folder")
    parser.add_argument("--rows", type=int, default=3, help="rows of a source to show (default: %(default)s)")
    parser.add_argument("--config", metavar="NAME", help="config of a dataset repo folder")
    parser.add_argument("--split", help="split of the config")
    parser.add_argument("--json", action="store_true", help="the whole manifest of the config, as JSON")
    add_columns(parser)


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
    picked.save(arguments.out, arguments.config, split=arguments.split)
    if arguments.strategy in RANKED and isinstance(run.record().get("verifier"), dict):
        print("these are rollouts, ranked by learnability: p (1 - p), p the share that is right; no gradient is in it")
    print(f"{picked!r} -> {arguments.out}")
    _next(arguments, f'load_dataset("{arguments.out}", "{arguments.config}", split="{arguments.split}")')


def _push(arguments: argparse.Namespace) -> None:
    from hf_curate.hub.files import staged_in
    from hf_curate.hub.load import curated_configs
    from hf_curate.hub.push import PushPlan, push_staged

    folder = Path(arguments.folder).expanduser()
    there = curated_configs(folder)
    wanted = arguments.config or list(there)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise CurateError(
            f"{folder.name!r} holds {'no config ' + repr(missing[0]) if missing else 'no curated config'}; there are: "
            f"{', '.join(map(repr, there)) or 'none'}."
        )
    done = push_staged(
        [staged_in(folder, name, split) for name in wanted for split in there[name]],
        arguments.repo_id,
        private=arguments.private,
        create_pr=arguments.create_pr,
        revision=arguments.revision,
        commit_message=arguments.commit_message,
        allow_gated=arguments.allow_gated,
        dry_run=arguments.dry_run,
    )
    if isinstance(done, PushPlan):
        print(done)
        return
    print(done.pr_url or done.commit_url)
    revision = done.pr_revision or arguments.revision
    at = f', revision="{revision}"' if revision else ""
    _next(arguments, f'load_dataset("{arguments.repo_id}", "{wanted[0]}", split="{there[wanted[0]][0]}"{at})')


def _run_recipe(arguments: argparse.Namespace) -> int:
    from hf_curate.recipe import read_recipe
    from hf_curate.stages import carry_out

    recipe = read_recipe(Path(arguments.recipe).expanduser(), arguments.commands.choices)
    _quiet()
    return carry_out(recipe, dry_run=arguments.dry_run)


def _inspect(arguments: argparse.Namespace) -> None:
    from hf_curate.inspect import inspect_config, inspect_run, inspect_source
    from hf_curate.runs.local import RECORD_FILE

    path = Path(arguments.target).expanduser()
    if arguments.json and ((path / RECORD_FILE).is_file() or not path.is_dir()):
        raise CurateError(f"--json shows the manifest of a saved config, and {path.name!r} is no folder with one.")
    if (path / RECORD_FILE).is_file():
        text = inspect_run(path)
    elif path.is_dir():
        text = inspect_config(path, arguments.config, arguments.split, whole=arguments.json)
    else:
        columns = {role: getattr(arguments, role) for role in EITHER if role != "split_steps"}
        text = inspect_source(arguments.target, arguments.rows, columns, arguments.split_steps or "auto")
    print(text)


def _demo(arguments: argparse.Namespace) -> None:
    from hf_curate.demo.run import run_demo

    _quiet()
    run_demo(Path(arguments.out), seed=arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
