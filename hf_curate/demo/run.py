"""`hf-curate demo`: the four verbs on the shipped model and traces, and what each selector does with damage."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_curate.demo import MODEL, TRACES, load_traces
from hf_curate.errors import CurateError
from hf_curate.report.write import FILE as REPORT
from hf_curate.report.write import report_of

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_curate.selection import Selection

BUDGET = "20%"
CONFIG = "grace-20pct"
BASELINES = ("random", "longest", "lowest_loss")


def run_demo(out: Path, *, seed: int = 0) -> None:
    """Scores, selects, saves and loads back; prints one table. `out` is replaced if an earlier demo wrote it."""
    from datasets import load_dataset

    from hf_curate.runs.progress import no_bars

    start = time.perf_counter()
    _make_room(out)
    traces = load_traces()
    damaged = sum(kind != "none" for kind in traces["damage"])
    print(f"1. score   {len(traces)} traces of chained arithmetic, {damaged} of them damaged on purpose", flush=True)
    with _one_thread():
        picked, scored = _pick(traces, seed)
    with no_bars():
        chosen = picked["GRACE, representation"]
        print(f"2. select  {chosen!r}")
        chosen.save(out, CONFIG)
        report = report_of(scored, chosen, f"{CONFIG} of the demo", out / REPORT)
        files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        print(f"3. save    {out}/: {', '.join(files)}")
        again = load_dataset(str(out), CONFIG, split="train")
        rows = len(again)  # type: ignore[arg-type]
        print(f"4. load    load_dataset({str(out)!r}, {CONFIG!r}, split='train') -> {rows} rows\n")
    print(_table(traces, picked))
    print(f"\nThe card: {out / 'README.md'}    The report, rows and all: {report}")
    print(f"({time.perf_counter() - start:.0f} s)")


def _pick(traces: Dataset, seed: int) -> tuple[dict[str, Selection], Dataset]:
    """(selector -> what it keeps, in the order of the table; the traces as the first proxy scored them)."""
    from hf_curate.gradients.alignment import PROXIES
    from hf_curate.runs.local import score
    from hf_curate.runs.progress import no_bars
    from hf_curate.scorers.grace import GraceScorer
    from hf_curate.selection import select

    picked: dict[str, Selection] = {}
    others: dict[str, Selection] = {}
    first: Dataset | None = None
    for proxy in PROXIES:
        scorer = GraceScorer(MODEL, proxy=proxy, dtype="float32")
        scored = score(traces, scorer, batch_rows=32 if proxy == "exact" else 256)
        with no_bars():
            picked[f"GRACE, {proxy}"] = select(scored, scorer, budget=BUDGET, seed=seed, source=str(TRACES))
            if first is None:
                first = scored
                for name in BASELINES:
                    chosen = select(scored, scorer, budget=BUDGET, strategy=name, seed=seed)
                    others[name.replace("_", " ")] = chosen
    assert first is not None  # there are proxies
    return {**picked, **others}, first


@contextmanager
def _one_thread() -> Iterator[None]:
    """For a model this small a second thread is no faster, and waits for its turn on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_room(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / CONFIG / "train.manifest.json").is_file()):
        raise CurateError(
            f"{out.name!r} exists and is not the folder of an earlier demo: give another one with --out."
        )
    shutil.rmtree(out / CONFIG, ignore_errors=True)
    for name in ("README.md", REPORT):
        (out / name).unlink(missing_ok=True)


def _table(traces: Dataset, picked: dict[str, Selection]) -> str:
    """Rows kept and damaged traces among them, by selector and kind of damage."""
    damage = np.array(traces["damage"])
    kinds = [kind for kind in dict.fromkeys(damage.tolist()) if kind != "none"]
    kinds.sort()
    width = max(map(len, picked)) + 2
    lines = [
        f"{'selector':<{width}}{'kept':>6}{'damaged':>9}" + "".join(f"{kind.replace('_', ' '):>14}" for kind in kinds)
    ]
    for name, selection in picked.items():
        counts = Counter(damage[selection.indices].tolist())
        bad = len(selection) - counts["none"]
        lines.append(f"{name:<{width}}{len(selection):>6}{bad:>9}" + "".join(f"{counts[kind]:>14}" for kind in kinds))
    pool = Counter(damage.tolist())
    share = round(len(next(iter(picked.values()))) / len(damage) * (len(damage) - pool["none"]))
    lines.append(f"\nOf {len(damage)} traces {len(damage) - pool['none']} are damaged, so chance keeps about {share}.")
    lines.append(
        "Fewer damaged traces is not yet a better training set. This shows what one small model's scores do to\n"
        "damage put there on purpose, on one dataset and one seed. The model was trained on undamaged traces of\n"
        "the same kind, which is why its plain loss finds the damage so well. Whether training on the kept rows\n"
        "helps is not measured here."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_demo(Path(sys.argv[1] if len(sys.argv) > 1 else "hf-curate-demo"))
