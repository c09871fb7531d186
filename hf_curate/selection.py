"""select(): from scores and a budget to a Selection: the kept rows, where they came from, and the manifest that says
how."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.budgets import MEASURED, STRATEGIES, Budget, parse_budget, preference, take
from hf_curate.errors import BudgetError, ColumnsError, CurateError
from hf_curate.hub.manifest import SCHEMA, SOURCE_ROW, digest_indices, digest_rows, versions
from hf_curate.sources import source_record
from hf_curate.stats import spearman

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import CommitInfo

    from hf_curate.hub.card import Card
    from hf_curate.hub.push import PushPlan
    from hf_curate.runs.local import AnyScorer

BINS = 40
ROLES = ("prompt", "completion", "answer", "steps", "messages")
LARGEST = 1e150
"""Scores beyond it count as infinite: the variance of larger ones overflows."""
OVERLAP_ROWS = 1000
"""Rows of the seeded sample on which the token overlap of steps and answer is measured (it needs the tokenizer)."""


@dataclass(frozen=True)
class Selection:
    """A subset and the account of how it was chosen.

    Attributes:
        dataset: the kept rows in source order: all source columns, the score columns, and `source_row` (int64).
        indices: [n] int64 rows of the scored dataset, ascending.
        manifest: JSON, see `hf_curate.hub.manifest`.
        problems: what data and manifest disagree about, when the selection was loaded; empty otherwise.
    """

    dataset: Dataset
    indices: np.ndarray
    manifest: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rows, budget = self.manifest["rows"], self.manifest["budget"]
        selector = self.manifest["selector"]["name"]
        return f"Selection({rows['kept']:,} of {rows['in']:,} rows by {selector}, budget {budget['asked']})"

    @property
    def baselines(self) -> dict[str, dict[str, int]]:
        """Baseline -> {"rows", "shared"}: how many kept rows it would have kept too at the same number of rows."""
        return self.manifest["baselines"]

    @property
    def card(self) -> Card:
        """The card's section for this selection, computed from the manifest."""
        from hf_curate.hub.card import Card

        return Card(self.manifest)

    def save(self, folder: str | Path, config_name: str, *, split: str = "train") -> Path:
        """Writes the files of a Hub dataset repo: parquet, manifest, plots and README.md; other configs stay
        untouched.

        Returns the folder. `load_dataset(folder, config_name, split=split)` loads it back.
        """
        from hf_curate.hub.files import save

        return save(self, Path(folder), config_name, split)

    def push_to_hub(
        self,
        repo_id: str,
        config_name: str,
        *,
        split: str = "train",
        private: bool | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        max_shard_size: int | str | None = None,
        token: str | bool | None = None,
        allow_gated: bool = False,
        dry_run: bool = False,
    ) -> CommitInfo | PushPlan:
        """Pushes the files that `save` writes to a dataset repo, in one commit; other configs stay untouched.

        Args:
            repo_id: "owner/name"; created if it is not there.
            config_name, split: what `load_dataset(repo_id, config_name, split=split)` will load.
            private: of a new repo; None is private where the source is private or gated.
            create_pr: open a pull request instead of committing.
            revision: branch to commit to, created if it is not there; None is the default branch.
            commit_message: None names the config.
            max_shard_size: bytes, or "500MB"; None is 500 MB.
            token: None takes the login or HF_TOKEN; it is never sent over plain http to another machine.
            allow_gated: whether rows of a gated source may be copied; refused otherwise.
            dry_run: send nothing, and return what would be sent.

        Returns:
            The commit, read back and compared; with `dry_run` a plan that prints as files, sizes and the README.

        Raises:
            HubError: the Hub refuses, gives no clear answer, or holds other rows than were sent. ConfigNameError.
        """
        from hf_curate.hub.push import push

        return push(
            {config_name: self},
            repo_id,
            split=split,
            private=private,
            create_pr=create_pr,
            revision=revision,
            commit_message=commit_message,
            max_shard_size=max_shard_size,
            token=token,
            allow_gated=allow_gated,
            dry_run=dry_run,
        )


def select(
    dataset: Dataset,
    scorer: AnyScorer | str,
    budget: str | int | None = None,
    *,
    strategy: str = "top",
    min_score: float | None = None,
    group: str | None = None,
    seed: int = 0,
    source: str | None = None,
) -> Selection:
    """Keeps the rows that a budget pays for, best first.

    Args:
        dataset: a scored dataset.
        scorer: the scorer that scored it, or the name of a column (higher is better).
        budget: "20%" (of all input rows, rounded up), 5000 or "5000 rows", or "2M tokens" (stops at the first row
            that does not fit). More than the rows that have a score is an error.
        strategy: "top"; "threshold" (all rows with at least `min_score`, no budget); "stratified" (top within each
            group of the column `group`, in proportion to its scored rows); or a baseline: "random", "longest",
            "most_steps", "lowest_loss", "highest_loss".
        min_score: rows below it are never kept.
        group: column of the strata.
        seed: of "random" and of the random baseline.
        source: where the rows came from, "org/name@revision:config/split"; None is recorded as "not recorded".

    Raises:
        BudgetError: a budget that cannot be read or filled. ColumnsError: no such column.
    """
    _check_dataset(dataset)
    budget, min_score, seed = _plain(budget), _plain(min_score), _plain(seed)
    if SOURCE_ROW in dataset.column_names:
        raise ColumnsError(
            f"the dataset already has a column {SOURCE_ROW!r} (is it a selection?): rename it first, "
            f"dataset.rename_column({SOURCE_ROW!r}, 'parent_row')."
        )
    record, added, column = _of_scorer(dataset, scorer)
    scores = _numbers(dataset, column)
    measures = _measures(dataset, column)
    _check_strategy(strategy, budget, min_score, group, seed, measures)
    eligible = scores if min_score is None else np.where(scores >= min_score, scores, np.nan)
    ranked = _rank_by(strategy, eligible, measures)
    groups = _groups(dataset, group) if group is not None else None
    order = preference(ranked, strategy=strategy, groups=groups, seed=seed)
    asked = None if strategy == "threshold" else parse_budget(budget)
    kept = np.sort(order if asked is None else take(order, asked, len(dataset), measures.get("tokens")))
    if not len(kept):
        raise BudgetError(_nothing(len(dataset), scores, min_score))
    subset = dataset.select(kept).add_column(SOURCE_ROW, kept.astype(np.int64))  # type: ignore[call-arg]
    sources = [name for name in dataset.column_names if name not in added]
    where = _source(source, dataset, sources)
    manifest = {
        "schema": SCHEMA,
        "config_name": None,
        "split": None,
        "source": where,
        "rows": _rows(dataset, column, scores, kept, record),
        "selector": _selector(record, column, strategy),
        "model": record.get("model"),
        "budget": _budget(asked, kept, scores, measures, strategy, min_score, group, seed),
        "scores": _summary(scores, kept),
        "confounds": _confounds(dataset, scorer, scores, measures, seed),
        "baselines": _baselines(eligible, measures, kept, seed),
        "columns": _column_types(subset, sources, added),
        "digests": {"source_row": digest_indices(kept), "rows": digest_rows(subset, sources)},
        "versions": versions(),
        "command": _command(record, column, budget, strategy, min_score, group, seed, where),
        "citations": ["grace"] if record.get("name") == "GRACE" else [],
    }
    return Selection(subset, kept.astype(np.int64), manifest)


def _nothing(rows: int, scores: np.ndarray, min_score: float | None) -> str:
    """Why a selection would be empty."""
    scored = scores[np.isfinite(scores)]
    if not rows:
        return "the dataset is empty: there is nothing to select."
    if not len(scored):
        return f"none of the {rows:,} rows has a score: look at why, hf-curate inspect RUN or the column <name>_error."
    return (
        f"no row reaches min_score={min_score!r}: the highest of {len(scored):,} scores is {scored.max():g}. Lower it."
    )


def _check_dataset(dataset: Any) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise CurateError(
            f"select() takes a scored datasets.Dataset, this is a {type(dataset).__name__}. One split of a "
            "DatasetDict: select(scored['train'], ...); an IterableDataset must be a Dataset first."
        )


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value that the manifest can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _of_scorer(dataset: Dataset, scorer: AnyScorer | str) -> tuple[dict[str, Any], list[str], str]:
    """(record, names of the score columns, column to rank by)."""
    if isinstance(scorer, str):
        record, column = {}, scorer
        prefix = _prefix(column)
        known = ("error", "value", "score", "tokens", "loss", "step_scores", "gram", "gram_tokens")
        added = [
            name
            for name in dataset.column_names
            if name == column or (prefix and name in {f"{prefix}_{k}" for k in known})
        ]
    elif not hasattr(scorer, "record"):
        raise CurateError(
            f"the second argument is a {type(scorer).__name__}: pass the scorer that scored the dataset, or the name "
            "of the column to rank by."
        )
    else:
        record = scorer.record()
        added = [name for name in scorer.columns if name in dataset.column_names]
        column = getattr(scorer, "column", None) or record.get("column") or next(iter(scorer.columns))
    if column not in dataset.column_names:
        fix = "Score it first: scored = score(dataset, scorer)."
        raise ColumnsError(f"there is no column {column!r} to rank by; {_there(column, dataset, fix)}")
    return record, added, column


def _column(dataset: Dataset, name: str) -> Any:
    """A whole column as an arrow array."""
    if name not in dataset.column_names:
        raise ColumnsError(f"there is no column {name!r}; {_there(name, dataset, 'Name one of these.')}")
    return dataset.select_columns([name]).with_format("arrow")[:][name].combine_chunks()


def _there(name: str, dataset: Dataset, fix: str) -> str:
    """The columns that there are, and the one that was meant if its name is close, else `fix`."""
    near = get_close_matches(name, dataset.column_names, n=1)
    listed = ", ".join(map(repr, dataset.column_names)) or "none"
    return f"the dataset has {listed}. " + (f"Did you mean {near[0]!r}?" if near else fix)


def _numbers(dataset: Dataset, name: str) -> np.ndarray:
    """[n] float64 with NaN for null, and for what is not finite: an infinite score says that something overflowed."""
    import pyarrow as pa

    array = _column(dataset, name)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if not _is_number(array.type):
        raise ColumnsError(
            f"column {name!r} holds {array.type}, and ranking needs numbers: pass the scorer or a column of scores."
        )
    numbers = np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _groups(dataset: Dataset, name: str) -> list[Any]:
    groups = _column(dataset, name).to_pylist()
    if any(isinstance(group, (list, dict)) for group in groups):
        kind = _type_name(dataset.features[name])
        raise ColumnsError(f"column {name!r} holds {kind}, and group= needs one value a row: text or a number.")
    return groups


def _prefix(column: str) -> str:
    """ "grace" of "grace_value": what the columns of one scorer have in common; "" where there is none."""
    return column.rpartition("_")[0]


def _measures(dataset: Dataset, column: str) -> dict[str, np.ndarray]:
    """Measures of the rows that lie beside the score: tokens, loss and steps, where the scorer wrote them.

    A column that is called alike and holds something else is somebody else's.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    prefix, found = _prefix(column), {}
    types = dataset.data.schema if prefix else pa.schema([])
    for measure in ("tokens", "loss"):
        name = f"{prefix}_{measure}"
        if name in types.names and _is_number(types.field(name).type):
            found[measure] = _numbers(dataset, name)
    name = f"{prefix}_step_scores"
    if name in types.names and (
        pa.types.is_list(types.field(name).type) or pa.types.is_large_list(types.field(name).type)
    ):
        lengths = pc.list_value_length(_column(dataset, name))  # type: ignore[attr-defined]
        found["steps"] = np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.float64)
    return found


def _check_strategy(
    strategy: str,
    budget: Any,
    min_score: float | None,
    group: str | None,
    seed: Any,
    measures: Mapping[str, np.ndarray],
) -> None:
    if strategy not in STRATEGIES:
        raise CurateError(f"strategy={strategy!r} is not one of {', '.join(map(repr, STRATEGIES))}.")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise CurateError(f"seed={seed!r} is not a whole number from 0 on: seed=0.")
    if min_score is not None and not (isinstance(min_score, (int, float)) and math.isfinite(min_score)):
        raise BudgetError(f"min_score={min_score!r} is not a finite number: min_score=0.5, or leave it out.")
    if strategy == "threshold" and (min_score is None or budget is not None):
        raise BudgetError(
            f"strategy='threshold' takes min_score and no budget; got min_score={min_score!r}, budget={budget!r}."
        )
    if strategy != "threshold" and budget is None:
        raise BudgetError(f"strategy={strategy!r} needs a budget, such as '20%', 5000 or '2M tokens'.")
    if (strategy == "stratified") != (group is not None):
        raise BudgetError(f"group=COLUMN goes with strategy='stratified'; got group={group!r}, strategy={strategy!r}.")
    if strategy in MEASURED and MEASURED[strategy][0] not in measures:
        raise ColumnsError(
            f"strategy={strategy!r} needs the {MEASURED[strategy][0]} of each row, and beside these scores there are "
            "none: rank by the column of a scorer that measures them, such as grace_value."
        )


def _rank_by(strategy: str, scores: np.ndarray, measures: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the strategy ranks by, NaN where a row may not be kept."""
    if strategy not in MEASURED:
        return scores
    measure, sign = MEASURED[strategy]
    return np.where(np.isnan(scores), np.nan, sign * measures[measure])


def _source(source: str | None, dataset: Dataset, columns: list[str]) -> dict[str, Any] | None:
    record = source_record(source, dataset)
    return None if record is None else {**record, "columns": columns}


def _rows(
    dataset: Dataset, column: str, scores: np.ndarray, kept: np.ndarray, record: Mapping[str, Any]
) -> dict[str, Any]:
    errors = f"{_prefix(column)}_error"
    failed: Counter[str] = Counter()
    if _prefix(column) and errors in dataset.column_names:
        reasons = _column(dataset, errors).to_pylist()
        failed.update(text.partition(":")[0] for text in reasons if text and isinstance(text, str))
    unexplained = int(np.isnan(scores).sum()) - sum(failed.values())
    if unexplained > 0:
        failed["null without a reason"] = unexplained
    return {
        "in": len(dataset),
        "scored": int((~np.isnan(scores)).sum()),
        "failed": dict(sorted(failed.items(), key=lambda item: (-item[1], item[0]))),
        "duplicate_prompts": _duplicates(dataset, record),
        "kept": len(kept),
    }


def _duplicates(dataset: Dataset, record: Mapping[str, Any]) -> int | None:
    """Rows whose prompt repeats that of an earlier row exactly; None where the columns are not known."""
    from hf_curate.rows import Columns, detect_columns, prompt_key

    try:
        asked = dict((record.get("settings") or {}).get("columns") or {})
        columns = Columns(**asked) if asked.get("level") else detect_columns(dataset.column_names, None, **asked)
    except (ValueError, TypeError):  # ours, or a foreign scorer's record that says "columns" about something else
        return None
    names = [n for n in (columns.messages, columns.prompt) if n is not None and n in dataset.column_names]
    if not names:
        return None
    needed = [n for n in vars(columns).values() if isinstance(n, str) and n in dataset.column_names]
    plain = dataset.select_columns(list(dict.fromkeys(needed))).with_format(None)
    seen = Counter(prompt_key(row, columns) for row in plain)  # type: ignore[arg-type]
    seen.pop("", None)
    return sum(count - 1 for count in seen.values())


def _selector(record: Mapping[str, Any], column: str, strategy: str) -> dict[str, Any]:
    return {
        "name": record.get("name") or f"column {column}",
        "class": record.get("class"),
        "algorithm_version": record.get("algorithm_version"),
        "identity": record.get("identity"),
        "column": column,
        "strategy": strategy,
        "settings": record.get("settings") or {},
        "audit": record.get("audit"),
    }


def _budget(
    asked: Budget | None,
    kept: np.ndarray,
    scores: np.ndarray,
    measures: Mapping[str, np.ndarray],
    strategy: str,
    min_score: float | None,
    group: str | None,
    seed: int,
) -> dict[str, Any]:
    by_score = strategy in ("top", "threshold")
    return {
        "asked": asked.asked if asked else f"min_score {min_score:g}",
        "unit": asked.unit if asked else "min_score",
        "rows": len(kept),
        "tokens": _total(measures["tokens"][kept]) if "tokens" in measures else None,
        "min_score": None if min_score is None else float(min_score),
        "threshold": float(scores[kept].min()) if by_score else None,
        "seed": int(seed),
        "group": group,
    }


def _total(tokens: np.ndarray) -> int | None:
    """None where a row has no number of tokens, so that the sum would be too small."""
    return int(tokens.sum()) if np.isfinite(tokens).all() else None


def _summary(scores: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    scored = scores[np.isfinite(scores)]
    if not len(scored):
        return {"all": None, "kept": None, "histogram": None}
    edges = _edges(scored)
    inside = np.zeros(len(scores), dtype=bool)
    inside[kept] = True
    counts = {
        name: np.histogram(scores[mask & np.isfinite(scores)], bins=edges)[0].tolist()
        for name, mask in (("kept", inside), ("dropped", ~inside))
    }
    return {
        "all": _quantiles(scored),
        "kept": _quantiles(scores[kept][np.isfinite(scores[kept])]),
        "histogram": {"edges": edges.tolist(), **counts},
    }


def _edges(values: np.ndarray) -> np.ndarray:
    """The bins of the histogram; values too close or too far apart for numpy's own get the nearest range that
    works."""
    low, high = float(values.min()), float(values.max())
    room = max(abs(low), abs(high), 1e-290) * 1e-12
    if high - low < room:
        low, high = low - room, high + room
    return np.histogram_bin_edges(values, bins=BINS, range=(low, high))


def _quantiles(values: np.ndarray) -> dict[str, float | int] | None:
    if not len(values):
        return None
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    named = {"min": values.min(), "p05": low, "median": median, "p95": high, "max": values.max()}
    named |= {"mean": values.mean(), "std": values.std()}
    return {"count": len(values), **{name: float(value) for name, value in named.items()}}


def _confounds(
    dataset: Dataset, scorer: Any, scores: np.ndarray, measures: Mapping[str, np.ndarray], seed: int
) -> dict[str, float | None]:
    """Spearman of the score with what it should not merely be: steps, tokens, loss, overlap of steps and answer."""
    found = {
        name: spearman(scores, measures[name]) if name in measures else None for name in ("steps", "tokens", "loss")
    }
    overlaps = getattr(scorer, "overlaps", None)
    if overlaps is None:
        return {**found, "overlap": None}
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(np.isfinite(scores)))[:OVERLAP_ROWS]
    return {**found, "overlap": spearman(scores[rows], overlaps(dataset.select(rows).with_format(None)))}


def _baselines(
    scores: np.ndarray, measures: Mapping[str, np.ndarray], kept: np.ndarray, seed: int
) -> dict[str, dict[str, int]]:
    found = {}
    for name in ("random", *MEASURED):
        if name in MEASURED and MEASURED[name][0] not in measures:
            continue
        ranked = _rank_by(name, scores, measures)
        chosen = preference(ranked, strategy=name, seed=seed)[: len(kept)]
        found[name] = {"rows": len(chosen), "shared": len(np.intersect1d(chosen, kept))}
    return found


def _column_types(subset: Dataset, sources: list[str], added: list[str]) -> dict[str, dict[str, str]]:
    types = {name: _type_name(subset.features[name]) for name in subset.column_names}
    return {
        "source": {name: types[name] for name in sources},
        "scores": {name: types[name] for name in added},
        "added": {SOURCE_ROW: types[SOURCE_ROW]},
    }


def _type_name(feature: Any) -> str:
    """float32, list<string>, struct<role: string>, or the feature's own name."""
    if isinstance(feature, dict):
        return f"struct<{', '.join(f'{name}: {_type_name(inner)}' for name, inner in feature.items())}>"
    if isinstance(feature, list):
        return f"list<{_type_name(feature[0])}>"
    if hasattr(feature, "feature"):
        return f"list<{_type_name(feature.feature)}>"
    return str(getattr(feature, "dtype", feature) or type(feature).__name__)


def _command(
    record: Mapping[str, Any],
    column: str,
    budget: Any,
    strategy: str,
    min_score: float | None,
    group: str | None,
    seed: int,
    source: Mapping[str, Any] | None,
) -> str:
    """The Python call that repeats the selection; model and source by what the manifest calls them, never by path."""
    model, settings = record.get("model") or {}, record.get("settings") or {}
    if record.get("class"):
        shown = {k: v for k, v in settings.items() if k in ("alpha", "history", "target", "proxy") and v is not None}
        shown |= {"split_steps": settings["split_steps"]} if settings.get("split_steps", "auto") != "auto" else {}
        shown |= {
            role: name for role, name in (settings.get("columns") or {}).items() if role in ROLES and name is not None
        }
        shown |= {"dtype": model["dtype"]} if model.get("dtype") else {}
        arguments = [repr(model.get("id")), *([f"revision={model['sha']!r}"] if model.get("sha") else [])]
        arguments += [
            f"{name}={tuple(value) if isinstance(value, list) else value!r}" for name, value in shown.items()
        ]
        ranked = f"{record['class']}({', '.join(arguments)})"
        lines = [f"scorer = {ranked}", "scored = score(dataset, scorer)"]
        call = "select(scored, scorer"
    else:
        lines, call = [], f"select(dataset, {column!r}"
    options = {"budget": budget, "strategy": strategy, "min_score": min_score, "group": group, "seed": seed}
    defaults = {"budget": None, "strategy": "top", "min_score": None, "group": None}
    call += "".join(
        f", {name}={value!r}" for name, value in options.items() if name == "seed" or value != defaults[name]
    )
    if source and source["revision"]:
        place = f"{source['config'] or ''}/{source['split']}" if source["split"] else source["config"]
        named = f"{source['id']}@{source['sha'] or source['revision']}" + (f":{place}" if place else "")
        call += f", source={named!r}"
    return "\n".join([*lines, call + ")"])
