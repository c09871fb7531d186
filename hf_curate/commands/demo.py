"""`hf-curate demo`: the four verbs on what ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Score, select, save and load the small dataset that ships with hf_curate, with the small model that ships with it.
No network and no GPU; about a minute on two cores.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="hf-curate-demo", metavar="FOLDER", help="where to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random baseline (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from hf_curate.demo.run import run_demo

    logging.disable_progress_bar()  # the bars of weight loading would run through ours
    run_demo(Path(arguments.out), seed=arguments.seed)
