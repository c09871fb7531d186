"""`hf-curate report`: one HTML file to look at."""

from __future__ import annotations

import argparse

HELP = """\
Write one HTML file to look at: the plots, and rows with their steps coloured by score. It holds text of rows.

  hf-curate report runs/gsm8k                          what a budget of 20% would keep, and what it would drop
  hf-curate report curated --config grace-20pct        the kept rows of a saved config
  hf-curate report me/gsm8k-grace --config grace-20pct --out grace.html
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="folder of a run, a dataset repo folder, or owner/name")
    parser.add_argument("--config", metavar="NAME", help="config of a dataset repo (folder)")
    parser.add_argument("--split", help="split of the config")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, tag or commit of a repo")
    parser.add_argument("--budget", help="of a run: what would be kept (default: 20%%)")
    parser.add_argument("--rows", type=int, default=12, help="rows under each heading (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random rows (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="default: report.html in the folder, or here for a repo")


def run(arguments: argparse.Namespace) -> None:
    import datasets

    from hf_curate.report.write import write_report

    datasets.disable_progress_bars()
    print(
        write_report(
            arguments.target,
            arguments.config,
            split=arguments.split,
            revision=arguments.revision,
            budget=arguments.budget,
            rows=arguments.rows,
            seed=arguments.seed,
            out=arguments.out,
        )
    )
