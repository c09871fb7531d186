"""select(): from scores and a budget to a Selection: the kept rows, where they came from, and the manifest that says
how."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.account import Choice, account
from hf_curate.budgets import MEASURED, STRATEGIES, keep, parse_budget
from hf_curate.errors import BudgetError, ColumnsError, CurateError
from hf_curate.hub.manifest import SOURCE_ROW
from hf_curate.measures import baseline, measures_of, rank_by
from hf_curate.scored import groups_of, numbers, prefix_of, there_are

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import CommitInfo

    from hf_curate.hub.card import Card
    from hf_curate.hub.push import PushPlan
    from hf_curate.runs.local import AnyScorer

SCORED = {
    "longest": ("LongestScorer", "longest"),
    "most_steps": ("MostStepsScorer", "most-steps"),
    "lowest_loss": ("LossScorer", "lowest-loss"),
    "highest_loss": ("LossScorer(prefer='highest')", "highest-loss"),
}
"""Baselines that a scorer of rows with rollouts measures: its name, and that on the command line."""


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
        from hf_curate.hub.card import how

        rows, asked, chosen = self.manifest["rows"], self.manifest["budget"]["asked"], how(self.manifest)
        chosen = " by" if chosen == "chosen by" else f", {chosen}"
        paid = asked.replace("min_score", "minimum score") if asked.startswith("min_score") else f"budget {asked}"
        selector = self.manifest["selector"]["name"]
        return f"Selection({rows['kept']:,} of {rows['in']:,} rows{chosen} {selector}, {paid})"

    @property
    def baselines(self) -> dict[str, dict[str, int]]:
        """Baseline -> {"rows", "shared"}: how many kept rows it would have kept too at the same number of rows."""
        return self.manifest["baselines"]

    @property
    def card(self) -> Card:
        """The card's section for this selection, computed from the manifest."""
        from hf_curate.hub.card import Card

        return Card(self.manifest)

    def with_training(self, run: Mapping[str, Any]) -> Selection:
        """The selection with the record of a training run on it: the one evidence that its card has for "helps".

        run: whatever says what was trained, on what, compared with what, in absolute numbers, and by which command; it
            is printed as it is, and nobody checks it.

        Raises CurateError for an empty record, or one that is no JSON.
        """
        from hf_curate.hub.evidence import claims

        try:
            record = json.loads(json.dumps(dict(run), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CurateError(f"the record of a training run must be JSON, names to values: {error}.") from error
        if not record:
            raise CurateError("the record of a training run is empty: say what was trained, and what came out.")
        manifest = {**self.manifest, "training": record}
        return replace(self, manifest={**manifest, "claims": claims(manifest)})

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
            private: of a new repo; None is private where the source is private or gated, and refuses a public repo
                that is there already.
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
            "most_steps", "lowest_loss", "highest_loss", and for rows with rollouts "accuracy_greedy" (success rate
            nearest 0.5) and "pass_rate_band" (neither 0 nor 1).
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
    scores = numbers(dataset, column)
    measures = measures_of(dataset, column, record)
    _check_strategy(strategy, budget, min_score, group, seed, measures)
    eligible = scores if min_score is None else np.where(scores >= min_score, scores, np.nan)
    ranked = rank_by(strategy, eligible, measures)
    groups = groups_of(dataset, group) if group is not None else None
    asked = None if strategy == "threshold" else parse_budget(budget)
    if asked is not None and asked.unit == "tokens" and "tokens" not in measures:
        raise BudgetError(
            f"budget {asked.asked!r} counts tokens, and no tokens were counted beside {column!r}: of the scorers here "
            "GraceScorer alone does (grace_tokens). Give rows (5000) or a share ('20%')."
        )
    if asked is None:
        kept = np.flatnonzero(np.isfinite(ranked))
    else:
        kept = keep(ranked, asked, measures.get("tokens"), strategy=strategy, groups=groups, seed=seed)
    if not len(kept):
        raise BudgetError(_nothing(len(dataset), scores, min_score))
    subset = _subset(dataset, kept)
    choice = Choice(dataset, column, scores, measures, kept, asked, strategy, min_score, group, seed, groups)
    manifest = account(choice, subset, scorer, record, added, source)
    return Selection(subset, kept.astype(np.int64), manifest)


def _subset(dataset: Dataset, kept: np.ndarray) -> Dataset:
    """The kept rows and their positions; a view of the dataset, unless it is one itself of rows in another order."""
    if dataset._indices is not None:  # adding a column would copy all its rows
        return dataset.select(kept).add_column(SOURCE_ROW, kept.astype(np.int64))  # type: ignore[call-arg]
    return dataset.add_column(SOURCE_ROW, np.arange(len(dataset))).select(kept)  # type: ignore[call-arg]


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
        prefix = prefix_of(column)
        known = ("error", "value", "score", "stderr", "tokens", "loss", "step_scores", "gram", "gram_tokens")
        written = {f"{prefix}_{k}" for k in known} if prefix else set()
        written |= {"learnability"} if prefix == "learnalign" else set()
        added = [name for name in dataset.column_names if name == column or name in written]
    elif not hasattr(scorer, "record"):
        raise CurateError(
            f"the second argument is a {type(scorer).__name__}: pass the scorer that scored the dataset, or the name "
            "of the column to rank by."
        )
    else:
        added = [name for name in scorer.columns if name in dataset.column_names]
        check = getattr(scorer, "check_columns", None)
        if check is not None:  # a scorer whose scores came from a cache has not seen the columns yet
            check([name for name in dataset.column_names if name not in added], None)
        record = scorer.record()
        earlier = record.get("earlier_columns")
        if isinstance(earlier, list):  # of earlier runs: they are not the source's either
            added += [n for n in earlier if n in dataset.column_names and n not in added]
        column = getattr(scorer, "column", None) or record.get("column") or next(iter(scorer.columns))
    if column not in dataset.column_names:
        fix = "Score it first: scored = score(dataset, scorer)."
        raise ColumnsError(f"there is no column {column!r} to rank by; {there_are(column, dataset, fix)}")
    return record, added, column


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
    if strategy in MEASURED and baseline(strategy, measures) is None:
        measure = MEASURED[strategy][0][0]
        if "rollouts" in measures and strategy in SCORED:
            name, option = SCORED[strategy]
            raise ColumnsError(
                f"strategy={strategy!r} needs the {measure} of each row, and beside these scores there are none: "
                f"score the rows with {name} (hf-curate score --scorer {option} ...) and rank by its column."
            )
        needed, such = ("rewards", "gradalign_score") if measure in ("off_half", "mixed") else (measure, "grace_value")
        raise ColumnsError(
            f"strategy={strategy!r} needs the {needed} of each row, and beside these scores there are none: rank by "
            f"the column of a scorer that measures them, such as {such}."
        )
