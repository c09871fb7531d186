"""What `hf-curate inspect` prints: how rows are read, what a run holds, what a saved config claims."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hf_curate.errors import ManifestError, RowError
from hf_curate.hub.markdown import visible

WIDTH = 100
LOOKED_AT = 1000
UNREADABLE = "cannot be scored"


def inspect_source(source: str, rows: int, columns: dict[str, str | None], split: str) -> str:
    """The first rows as a scorer reads them: prompt, steps, answer. Needs no model."""
    from hf_curate.rows import detect_columns
    from hf_curate.sources import load_source

    dataset, name = load_source(source)
    first = dataset[0] if len(dataset) else None
    found = detect_columns(dataset.column_names, first, **columns)
    named = ", ".join(
        f"{role}={_short(value)}"
        for role, value in found.record().items()
        if isinstance(value, str) and role != "level"
    )
    parts = [f"{name}: {len(dataset):,} rows\ncolumns: {named} (by {found.level})"]
    looked = min(len(dataset), max(rows, LOOKED_AT))
    texts = [_shown(index, dataset[index], found, split) for index in range(looked)]
    parts += texts[: max(rows, 0)]
    bad = [text for text in texts if UNREADABLE in text]
    parts.append(f"of the first {looked:,} rows {looked - len(bad):,} can be read" + (f"; {bad[0]}" if bad else ""))
    return "\n\n".join(parts)


def _shown(index: int, row: dict[str, Any], columns: Any, split: str) -> str:
    from hf_curate.rows import read_trace
    from hf_curate.steps import find_spans

    try:
        trace = read_trace(row, columns)
        spans = find_spans(trace.completion, gold=trace.gold, steps=trace.steps, split=split)
    except RowError as error:
        return f"row {index}: {UNREADABLE} ({visible(str(error))})"
    prompt = trace.prompt if isinstance(trace.prompt, str) else json.dumps(trace.prompt, ensure_ascii=False)
    lines = [
        f"row {index}: {len(spans.steps)} steps by {spans.splitter}, answer by {spans.answer_by}",
        f"  prompt   {_short(prompt)}",
    ]
    lines += [f"  step {k:<3} {_short(trace.completion[a:b])}" for k, (a, b) in enumerate(spans.steps, start=1)]
    start, stop = spans.answer
    return "\n".join([*lines, f"  answer   {_short(trace.completion[start:stop])}"])


def _short(text: str) -> str:
    """One printable line: control characters of the data must not reach the terminal."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1]}…"


def inspect_run(folder: Path) -> str:
    """Scores and failures of a run folder."""
    from hf_curate.runs.local import failed_rows, load_run

    run = load_run(folder)
    record = run.record()
    failures: Counter[str] = Counter()
    for reason, count in failed_rows(run.dataset, run).items():
        failures[reason.partition(":")[0]] += count
    model = record.get("model") or {}
    lines = [
        f"{record['name']} with {model.get('id')}, {len(run.dataset):,} rows of "
        f"{run.source or 'a source not recorded'}",
        f"warm-up: {'yes' if model.get('warm_up') else 'none'}; identity {record['identity'][:12]}",
    ]
    values = np.asarray(run.dataset.with_format("numpy")[:][run.column], dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values):
        quantiles = ", ".join(f"{q:.0%} {np.quantile(values, q):.3f}" for q in (0.0, 0.05, 0.5, 0.95, 1.0))
        lines.append(f"{run.column}: {len(values):,} scored; {quantiles}")
    lines += [f"not scored: {count:,} x {kind}" for kind, count in failures.most_common()]
    return visible("\n".join(lines), keep="\n")


def inspect_config(folder: Path, config_name: str | None, split: str | None) -> str:
    """The manifest of a saved config, and whether the data agrees with it; without a config, those there are."""
    from hf_curate.hub.load import curated_configs, load_curated

    configs = curated_configs(folder)
    if config_name is None:
        if not configs:
            raise ManifestError(f"{folder.name!r} holds neither a run nor a curated config.")
        if len(configs) > 1 or len(next(iter(configs.values()))) > 1:
            listed = "\n".join(f"  {name}: {', '.join(splits)}" for name, splits in configs.items())
            return f"{folder.name} holds these configs (choose with --config):\n{listed}"
        config_name = next(iter(configs))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the problems are printed below
        picked = load_curated(folder, config_name, split=split)
    verdict = (
        "data and manifest agree" if not picked.problems else "DATA AND MANIFEST DIFFER: " + "; ".join(picked.problems)
    )
    scores = {name: value for name, value in picked.manifest["scores"].items() if name != "histogram"}
    shown = json.dumps({**picked.manifest, "scores": scores}, indent=2, ensure_ascii=False)
    text = "\n".join([f"{config_name}: {picked!r}", verdict, shown])
    return visible(text, keep="\n")
