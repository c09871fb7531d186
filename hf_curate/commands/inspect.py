"""`hf-curate inspect`: how rows are read, what a run holds, what a saved config claims."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_curate.errors import CurateError
from hf_curate.scoring import EITHER, add_columns

HELP = """\
Look before (or after) you leap: how the rows of a dataset are read, what a run holds, or what a saved config claims.

  hf-curate inspect traces.jsonl --rows 3   prompt, steps and answer as a scorer will read them
  hf-curate inspect rollouts.jsonl          prompt, responses and rewards, and whether they differ
  hf-curate inspect runs/gsm8k              scores and failures of a run
  hf-curate inspect curated --config grace-20pct    what was chosen and how, checked against the data
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="a source, a run folder, or a dataset repo folder")
    parser.add_argument("--rows", type=int, default=3, help="rows of a source to show (default: %(default)s)")
    parser.add_argument("--config", metavar="NAME", help="config of a dataset repo folder")
    parser.add_argument("--split", help="split of the config")
    parser.add_argument("--json", action="store_true", help="the whole manifest of the config, as JSON")
    add_columns(parser)


def run(arguments: argparse.Namespace) -> None:
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
