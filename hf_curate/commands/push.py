"""`hf-curate push`: the configs of a saved folder to the Hub, in one commit."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_curate.errors import CurateError

HELP = """\
Push the configs of a saved folder to a dataset repo on the Hub, all in one commit; what else is there stays untouched.

  hf-curate push curated me/gsm8k-grace --dry-run
  hf-curate push curated me/gsm8k-grace --config grace-20pct --private
"""


def add_options(parser: argparse.ArgumentParser) -> None:
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


def run(arguments: argparse.Namespace) -> None:
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
    if arguments.alone:  # else a recipe says what comes next
        print(f'next: load_dataset("{arguments.repo_id}", "{wanted[0]}", split="{there[wanted[0]][0]}"{at})')
