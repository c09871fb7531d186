"""What `hf-curate inspect` prints: how rows are read, what a run holds, what a saved config claims."""

from __future__ import annotations

import html
import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import ManifestError, RowError
from hf_curate.hub.markdown import number, visible

if TYPE_CHECKING:
    from hf_curate.chat import Messages
    from hf_curate.groups import GroupColumns
    from hf_curate.rows import Columns
    from hf_curate.selection import Selection

WIDTH = 100
LOOKED_AT = 1000
RESPONSES = 3
UNREADABLE, READABLE = "cannot be scored", "can be read"
SIGNAL, NO_SIGNAL = "signal", "no signal: all rewards are equal"
OUTCOMES = ("right", "wrong", "could not parse")
TRY = "--model MODEL --out runs/"


def inspect_source(source: str, rows: int, columns: Mapping[str, str | None], split: str) -> str:
    """The first rows as a scorer reads them: prompt, steps and answer of a trace, or the rollouts. Needs no model.

    columns: names of columns by role (`hf_curate.scorers.either.ROLES`); roles may be left out.
    """
    from hf_curate.groups import detect_group_columns
    from hf_curate.rows import detect_columns
    from hf_curate.scorers.either import OF_ROLLOUTS, OF_TRACES, SHARED, holds_rollouts
    from hf_curate.sources import load_source

    dataset, name = load_source(source)
    first, names = (dataset[0] if len(dataset) else None), dataset.column_names
    rolled = holds_rollouts(names, columns)
    asked = {role: columns.get(role) for role in (*SHARED, *(OF_ROLLOUTS if rolled else OF_TRACES))}
    found = detect_group_columns(names, first, **asked) if rolled else detect_columns(names, first, **asked)
    named = ", ".join(
        f"{role}={_short(value)}"
        for role, value in found.record().items()
        if isinstance(value, str) and role != "level"
    )
    parts = [f"{name}: {len(dataset):,} rows\ncolumns: {named} (by {found.level})"]
    looked = min(len(dataset), max(rows, LOOKED_AT))
    shown = [_shown(index, dataset[index], found, split) for index in range(looked)]
    parts += [text for text, _ in shown[: max(rows, 0)]]
    bad = [text for text, state in shown if state == UNREADABLE]
    end = f"of the first {looked:,} rows {looked - len(bad):,} can be read" + (f"; {bad[0]}" if bad else "")
    if rolled:
        signals = sum(state == SIGNAL for _, state in shown)
        end += f"\n{signals:,} of them have a signal: rewards that differ"
        end += f"\n\n{_next(source, asked)}" if signals else ""
    elif looked and len(bad) == looked:
        command = f"hf-curate rollouts {visible(shlex.quote(source))} --model ./policy --verifier exact"
        end += f"\n\nAre they problems, to be solved by a policy? {command} --out runs/rolled"
    return "\n\n".join([*parts, end])


def _next(source: str, columns: Mapping[str, str | None]) -> str:
    """The commands that score these rows."""
    named = [f"--{role.replace('_', '-')} {shlex.quote(name)}" for role, name in columns.items() if name]
    start = visible(" ".join(["hf-curate score", shlex.quote(source), *named]))
    return (
        f"next: {start} --scorer learnalign {TRY}learnalign\n"
        f"  or: {start} --scorer gradalign --validation TRUSTED {TRY}gradalign"
    )


def _shown(index: int, row: dict[str, Any], columns: Columns | GroupColumns, split: str) -> tuple[str, str]:
    """The row in words, and its state: `UNREADABLE`, `READABLE`, and of rollouts `SIGNAL` or `NO_SIGNAL`."""
    from hf_curate.rows import Columns

    try:
        if isinstance(columns, Columns):
            return _shown_trace(index, row, columns, split), READABLE
        return _shown_group(index, row, columns)
    except RowError as error:
        return f"row {index}: {UNREADABLE} ({visible(str(error))})", UNREADABLE


def _shown_trace(index: int, row: dict[str, Any], columns: Columns, split: str) -> str:
    from hf_curate.rows import read_trace
    from hf_curate.steps import find_spans

    trace = read_trace(row, columns)
    spans = find_spans(trace.completion, gold=trace.gold, steps=trace.steps, split=split)
    lines = [
        f"row {index}: {len(spans.steps)} steps by {spans.splitter}, answer by {spans.answer_by}",
        f"  prompt   {_prompt(trace.prompt)}",
    ]
    lines += [f"  step {k:<3} {_short(trace.completion[a:b])}" for k, (a, b) in enumerate(spans.steps, start=1)]
    start, stop = spans.answer
    return "\n".join([*lines, f"  answer   {_short(trace.completion[start:stop])}"])


def _shown_group(index: int, row: dict[str, Any], columns: GroupColumns) -> tuple[str, str]:
    from hf_curate.groups import read_group
    from hf_curate.measures import differ

    group = read_group(row, columns)
    count, rewards = len(group.rewards), ", ".join(f"{reward:g}" for reward in group.rewards)
    state = SIGNAL if differ(group.rewards.min(), group.rewards.max()) else NO_SIGNAL
    texts = group.responses
    if texts is None:
        texts = [f"{len(ids):,} ids: {' '.join(map(str, ids[:WIDTH]))}" for ids in group.response_ids or ()]
    lines = [
        f"row {index}: {count:,} {'response' if count == 1 else 'responses'}, {state}",
        f"  prompt      {_prompt(group.prompt)}",
        f"  rewards     {_short(rewards)}",
    ]
    lines += [f"  response {k:<2} {_short(text)}" for k, text in enumerate(texts[:RESPONSES], start=1)]
    lines += [f"  and {count - RESPONSES:,} more"] if count > RESPONSES else []
    return "\n".join(lines), state


def _prompt(prompt: str | Messages) -> str:
    return _short(prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False))


def _short(text: str) -> str:
    """One printable line: control characters of the data must not reach the terminal."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1]}…"


def inspect_run(folder: Path) -> str:
    """Scores and failures of a run folder."""
    from hf_curate.comparisons import outcomes, silent_rows
    from hf_curate.runs.local import failed_rows, load_run

    run = load_run(folder)
    record = run.record()
    failures: Counter[str] = Counter()
    for reason, count in failed_rows(run.dataset, run).items():
        failures[reason.partition(":")[0]] += count
    lines = [
        f"{record['name']}{_with_model(record)}, {len(run.dataset):,} rows of {run.source or 'a source not recorded'}",
        f"{_warm_up(record)}identity {record['identity'][:12]}",
        *_direction(record),
    ]
    values = np.asarray(run.dataset.with_format("numpy")[:][run.column], dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values):
        quantiles = ", ".join(f"{q:.0%} {np.quantile(values, q):.4g}" for q in (0.0, 0.05, 0.5, 0.95, 1.0))
        lines.append(f"{run.column}: {len(values):,} scored; {quantiles}")
    if judged := outcomes(run.dataset):
        kinds = dict.fromkeys((*OUTCOMES, *judged))
        lines.append(f"rollouts: {', '.join(f'{judged.get(kind, 0):,} {kind}' for kind in kinds)}")
    if silent := silent_rows(run.dataset, run.column, record):
        lines.append(f"without signal (score 0): {silent:,}")
    lines += [f"not scored: {count:,} x {kind}" for kind, count in failures.most_common()]
    return visible("\n".join(lines), keep="\n")


def _with_model(record: Mapping[str, Any]) -> str:
    model = record.get("model")
    return f" with {model.get('id')}" if isinstance(model, Mapping) else ""


def _warm_up(record: Mapping[str, Any]) -> str:
    model = record.get("model")
    return f"warm-up: {'yes' if model.get('warm_up') else 'none'}; " if isinstance(model, Mapping) else "no model; "


def _direction(record: Mapping[str, Any]) -> list[str]:
    """What the scores were compared with, where they were compared with a direction."""
    direction = record.get("direction")
    rows = direction.get("rows") if isinstance(direction, Mapping) else None
    if not isinstance(direction, Mapping) or not isinstance(rows, Mapping):
        return []
    return [f"direction: {direction.get('kind')} of {rows.get('in')} problems, {rows.get('with_signal')} with signal"]


def inspect_config(folder: Path, config_name: str | None, split: str | None, whole: bool = False) -> str:
    """What a saved config claims in short, and whether the data agrees with it; without a config, those there are.

    whole: the manifest as JSON instead, and nothing else.
    """
    from hf_curate.hub.load import curated_configs, load_curated

    configs = curated_configs(folder)
    if config_name is None:
        if not configs:
            raise ManifestError(f"{folder.name!r} holds neither a run nor a curated config.")
        if len(configs) > 1 or len(next(iter(configs.values()))) > 1:
            listed = "\n".join(f"  {name}: {', '.join(splits)}" for name, splits in configs.items())
            text = f"{folder.name} holds these configs (choose with --config):\n{listed}"
            if whole:
                raise ManifestError(text)
            return text
        config_name = next(iter(configs))
    import warnings

    with warnings.catch_warnings():
        if not whole:
            warnings.simplefilter("ignore", UserWarning)  # the problems are printed below
        picked = load_curated(folder, config_name, split=split)
    if whole:
        return json.dumps(picked.manifest, indent=2)
    verdict = (
        "data and manifest agree" if not picked.problems else "DATA AND MANIFEST DIFFER: " + "; ".join(picked.problems)
    )
    manifest = picked.manifest
    more = f"the whole manifest: hf-curate inspect {shlex.quote(str(folder))} --config {config_name}"
    more += f" --split {split} --json" if split is not None else " --json"
    lines = [f"{config_name}: {_first_line(picked)}", verdict, *_summary(manifest), more]
    return visible("\n".join(lines), keep="\n")


def _first_line(picked: Selection) -> str:
    """That of the card, as plain text; a manifest that is not ours may say too little for one."""
    try:
        return html.unescape(picked.card.body)
    except ManifestError:
        return repr(picked)


def _summary(manifest: Mapping[str, Any]) -> list[str]:
    """Rows, budget, scores and rollouts in a few lines; what the manifest does not say is left out."""
    rows, budget = manifest["rows"], manifest["budget"]
    counts = [f"{_said(rows[name])} {name}" for name in ("in", "scored", "kept") if rows.get(name) is not None]
    lines = [f"rows: {', '.join(counts)}"]
    lines += [f"not scored: {_said(count)} x {kind}" for kind, count in _part(manifest, "rows", "failed").items()]
    paid = [f"{_said(budget[name])} {name}" for name in ("rows", "tokens") if budget.get(name) is not None]
    paid += [f"threshold {_said(budget['threshold'])}"] if budget.get("threshold") is not None else []
    lines.append(f"budget: {', '.join([budget['asked'], *paid])}")
    for label, key in (("all scored rows", "all"), ("kept rows", "kept")):
        if found := _part(manifest, "scores", key):
            spread = ", ".join(f"{name} {_said(found.get(name))}" for name in ("min", "median", "max"))
            lines.append(f"{manifest['selector'].get('column')} of {label}: {spread}")
    silent, every = (_part(manifest, "rollouts", name) for name in ("without_signal", "rows"))
    if silent and every:
        counts = [f"{_said(silent.get(part))} of {_said(every.get(part))} {part}" for part in ("scored", "kept")]
        lines.append(f"without signal: {' and '.join(counts)} rows")
    return lines


def _part(manifest: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A part of the manifest by its path; {} where there is none of the kind."""
    found: Any = manifest
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _said(value: Any) -> str:
    return html.unescape(number(value))
