"""`hf-curate diff`: two configs compared."""

from __future__ import annotations

import argparse
import json

HELP = """\
Compare two configs: the rows they share, how their scores agree, and what was set otherwise.

  hf-curate diff curated:grace-20pct curated:random-20pct
  hf-curate diff me/gsm8k-grace@v1:grace-20pct me/gsm8k-grace:grace-20pct
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    what = "FOLDER:CONFIG, owner/name:CONFIG or owner/name@REVISION:CONFIG; /SPLIT at the end where there are several"
    parser.add_argument("one", metavar="A", help=what)
    parser.add_argument("other", metavar="B", help="likewise")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    import datasets

    from hf_curate.recheck.contrast import diff_curated

    datasets.disable_progress_bars()
    found = diff_curated(arguments.one, arguments.other)
    print(json.dumps(found.record(), indent=2) if arguments.json else found)
