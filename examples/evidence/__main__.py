"""python -m evidence (with examples on PYTHONPATH): run a study, record it, write its page.

    PYTHONPATH=examples python -m evidence run small --folder evidence-runs/small --workers 2
    PYTHONPATH=examples python -m evidence record small --folder evidence-runs/small
    PYTHONPATH=examples python -m evidence page

`run` goes on where it was stopped. `record` gathers the cells of a run into results/<study>.json beside this file, and
`page` writes RESULTS.md and its pictures from what is recorded.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence", description="Does what a score selects help?")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="do the cells that are missing")
    record = verbs.add_parser("record", help="gather a run's cells into results/<study>.json")
    for verb in (run, record):
        verb.add_argument("study", choices=["small", "tiny", "gpu", "rl"])
        verb.add_argument("--folder", type=Path, required=True, help="where the run keeps its files")
    run.add_argument("--further", action="store_true", help="the scores that were tried after the main table")
    run.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    page = verbs.add_parser("page", help="write RESULTS.md and its pictures")
    page.add_argument("--out", type=Path, default=HERE)
    asked = parser.parse_args(arguments)
    if asked.verb == "run":
        return _run(asked.study, asked.folder, asked.workers, asked.further)
    if asked.verb == "record":
        print(_record(asked.study, asked.folder))
        return 0
    from evidence.page import quoted
    from evidence.page import write as write_page

    print(write_page(asked.out))
    print(f"The README quotes: {quoted()}")
    return 0


def _record(study: str, folder: Path) -> Path:
    from evidence import results

    if study != "rl":
        return results.record(study, folder)
    from evidence import rl

    return rl.record(folder, results.FOLDER)


def _run(study: str, folder: Path, workers: int, further: bool) -> int:
    """In this process, or in so many processes of one thread that share the cells between them."""
    if workers > 1:
        command = [sys.executable, "-m", "evidence", "run", study, "--folder", str(folder)]
        command += ["--further"] if further else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen(command, env=environment) for _ in range(workers)]
        return max(abs(process.wait()) for process in running)
    import torch
    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    from evidence.study import STUDIES

    warnings.filterwarnings("ignore", message=".*use_return_dict.*")
    logging.getLogger("hf_curate").setLevel(logging.ERROR)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    if study == "rl" or STUDIES[study].device == "cpu":
        torch.set_num_threads(1)
    if study == "rl":
        from evidence import rl

        done = rl.run_all(folder)
    else:
        from evidence.lab import Lab

        lab = Lab(STUDIES[study], folder)
        done = lab.run_further() if further else lab.run()
    print(f"{done} cells", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
