"""`hf-curate verify`: a config held against what it claims."""

from __future__ import annotations

import argparse
import json

HELP = """\
Check what a config says of itself against its source, its model and its verifier; exit code 1 if a claim failed.

Row numbers and digests are held against the pinned source, a random sample is scored again with the pinned model, and
its rollouts are judged again by the recorded verifier. Each claim gets a verdict: verified, failed, or not checked and
why.

  hf-curate verify me/gsm8k-grace grace-20pct
  hf-curate verify curated grace-20pct --source traces.jsonl --model ./my-model --strict
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo_or_folder", metavar="REPO_OR_FOLDER", help="owner/name, or a dataset repo folder")
    parser.add_argument("config_name", metavar="CONFIG", help="config to check")
    parser.add_argument("--split", help="split of the config")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, tag or commit of a repo")
    parser.add_argument("--source", help="the rows it was chosen from, where the manifest names a local file")
    parser.add_argument("--model", metavar="FOLDER", help="where the manifest names a local model; others are refused")
    parser.add_argument("--direction", metavar="FILE", help="what --save-direction wrote, for scorers that have one")
    parser.add_argument("--rows", type=int, default=32, help="rows to score again, 0 for none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the rows that are drawn (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, help="difference of a score of 1 (default: 1e-4 in float32, 0.02 in 16 bits)"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 also if something could not be checked")
    parser.add_argument("--json", action="store_true", help="the verdicts as JSON")


def run(arguments: argparse.Namespace) -> int:
    import datasets
    from transformers.utils import logging

    from hf_curate.recheck.curated import verify_curated

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    named = ("split", "revision", "source", "model", "direction", "rows", "seed", "tolerance")
    options = {name: getattr(arguments, name) for name in named}
    verdicts = verify_curated(arguments.repo_or_folder, arguments.config_name, **options)
    print(json.dumps(verdicts.record(), indent=2) if arguments.json else verdicts)
    return int(not (verdicts.complete if arguments.strict else verdicts.ok))
