"""select(): which rows, in which columns, and a manifest that is true of them and of nothing private."""

from __future__ import annotations

import datetime
import getpass
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, LargeList, List, Value, load_dataset
from pools import MODEL, Scorer, plain, pool

from hf_curate import select
from hf_curate.errors import BudgetError, ColumnsError, CurateError
from hf_curate.hub.manifest import digest_indices, digest_rows
from hf_curate.selection import Selection

NAN, INF = float("nan"), float("inf")
MEASURES = {"longest": ("grace_tokens", 1), "lowest_loss": ("grace_loss", -1), "highest_loss": ("grace_loss", 1)}


@pytest.fixture(scope="module")
def scored() -> Dataset:
    return pool()


@pytest.fixture(scope="module")
def picked(scored: Dataset) -> Selection:
    return select(scored, Scorer(), "20%", source=None)


def order_of(scored: Dataset, value: Callable[[dict[str, Any]], float]) -> list[int]:
    """Scored rows, the largest value first, ties by row: a plain sort."""
    rows = [(i, row) for i, row in enumerate(scored) if row["grace_value"] is not None]
    return [i for i, row in sorted(rows, key=lambda item: (-value(item[1]), item[0]))]


# -- which rows -----------------------------------------------------------------------------------------------------


def test_the_kept_rows_are_the_best_in_source_order_with_every_column(scored: Dataset, picked: Selection) -> None:
    expected = sorted(order_of(scored, lambda row: row["grace_value"])[:20])
    assert picked.indices.tolist() == expected
    assert picked.indices.dtype == np.int64
    assert len(picked) == len(picked.dataset) == 20
    assert picked.dataset.column_names == [*scored.column_names, "source_row"]
    assert picked.dataset["source_row"][:] == expected
    assert picked.dataset.features == Features({**scored.features, "source_row": Value("int64")})
    assert picked.dataset.remove_columns("source_row").to_list() == scored.select(expected).to_list()
    assert scored.column_names == pool().column_names
    assert picked.problems == []


def test_a_column_name_chooses_the_same_rows_as_the_scorer(scored: Dataset, picked: Selection) -> None:
    by_name = select(scored, "grace_value", "20%")
    assert by_name.indices.tolist() == picked.indices.tolist()
    assert by_name.manifest["selector"]["name"] == "column grace_value"
    assert by_name.manifest["selector"]["class"] is by_name.manifest["model"] is None
    assert by_name.manifest["columns"] == picked.manifest["columns"]
    assert by_name.manifest["digests"] == picked.manifest["digests"]
    assert by_name.baselines == picked.baselines


def test_a_threshold_keeps_every_row_that_reaches_it(scored: Dataset) -> None:
    kept = select(scored, Scorer(), strategy="threshold", min_score=0.5)
    values = scored["grace_value"][:]
    assert kept.indices.tolist() == [i for i, v in enumerate(values) if v is not None and v >= 0.5]
    assert kept.manifest["budget"] | {"tokens": 0} == {
        "asked": "min_score 0.5",
        "unit": "min_score",
        "rows": len(kept),
        "tokens": 0,
        "min_score": 0.5,
        "threshold": min(v for v in values if v is not None and v >= 0.5),
        "at_threshold": None,
        "seed": 0,
        "group": None,
    }


def test_min_score_limits_a_budget_of_any_strategy(scored: Dataset) -> None:
    for strategy in ("top", "random", "longest"):
        kept = select(scored, Scorer(), 10, strategy=strategy, min_score=0.5)
        assert len(kept) == 10
        assert min(kept.dataset["grace_value"][:]) >= 0.5
    with pytest.raises(BudgetError, match="below min_score"):
        select(scored, Scorer(), "90%", min_score=0.5)


def test_strata_keep_the_groups_shares_and_the_best_of_each(scored: Dataset) -> None:
    kept = select(scored, Scorer(), 30, strategy="stratified", group="topic")
    topics, values = scored["topic"][:], scored["grace_value"][:]
    for topic in set(topics):
        rows = [i for i in order_of(scored, lambda row: row["grace_value"]) if topics[i] == topic]
        mine = [i for i in kept.indices.tolist() if topics[i] == topic]
        assert sorted(rows[: len(mine)]) == mine
        assert abs(len(mine) - 30 * len(rows) / sum(v is not None for v in values)) < 1
    assert kept.manifest["budget"]["group"] == "topic"
    assert kept.manifest["budget"]["threshold"] is None


@pytest.mark.parametrize("strategy", [*MEASURES, "most_steps"])
def test_a_measured_baseline_sorts_by_its_measure(scored: Dataset, strategy: str) -> None:
    column, sign = MEASURES.get(strategy, ("", 1))
    expected = order_of(scored, lambda r: sign * r[column] if column else len(r["grace_step_scores"]))
    assert select(scored, Scorer(), 25, strategy=strategy).indices.tolist() == sorted(expected[:25])


def test_a_shuffled_and_cut_dataset_is_numbered_as_it_was_given(scored: Dataset) -> None:
    given = scored.shuffle(seed=1).select(range(10, 90))
    kept = select(given, Scorer(), 10)
    assert kept.dataset["completion"][:] == [given["completion"][:][i] for i in kept.indices]
    assert kept.dataset["source_row"][:] == kept.indices.tolist()
    assert kept.manifest["rows"]["in"] == 80


def test_the_format_of_the_dataset_changes_nothing(scored: Dataset, picked: Selection) -> None:
    for form in ("numpy", "torch", "pandas", "arrow"):
        kept = select(scored.with_format(form), Scorer(), "20%")
        assert kept.indices.tolist() == picked.indices.tolist()
        assert kept.manifest["digests"] == picked.manifest["digests"]
        assert kept.manifest["rows"] == picked.manifest["rows"]


def test_an_infinite_score_is_no_score(tmp_path: Path) -> None:
    kept = select(plain([1.0, INF, 2.0, -INF, NAN, 1e308, None]), "score", 2)
    assert kept.indices.tolist() == [0, 2]
    assert kept.manifest["rows"]["scored"] == 2
    assert kept.manifest["rows"]["failed"] == {"null without a reason": 5}
    kept.save(tmp_path / "infinite", "c")  # JSON knows no infinity
    with pytest.raises(BudgetError, match="Give 2 rows or fewer"):
        select(plain([1.0, INF, 2.0]), "score", 3)


@pytest.mark.parametrize(
    "scores",
    [[1.0, np.nextafter(1.0, 2), 1.0], [0.0, 5e-324, 0.0], [1e150, -1e150, 0.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0]],
)
def test_scores_that_lie_too_close_or_too_far_apart_still_have_a_histogram(scores: list[float]) -> None:
    manifest = select(plain(scores), "score", 1).manifest
    histogram = manifest["scores"]["histogram"]
    assert sum(histogram["kept"]) == 1
    assert sum(histogram["dropped"]) == 2
    json.dumps(manifest, allow_nan=False)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.float16(), pa.float32(), pa.bool_(), pa.int32()], ids=str)
def test_every_kind_of_number_can_be_ranked(kind: pa.DataType) -> None:
    values = pa.array([True, False, None]) if kind == pa.bool_() else pa.array([2, 1, None]).cast(kind)
    assert select(Dataset(pa.table({"score": values})), "score", 1).indices.tolist() == [0]


def test_integers_beyond_float_precision_are_ranked_and_not_an_arrow_error() -> None:
    assert select(plain([2**60 + 2**20, 2**60, 1]), "score", 1).indices.tolist() == [0]


# -- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, Callable[[], Any], type[CurateError], str]] = [
    ("unscored", lambda: select(plain(), Scorer(), 1), ColumnsError, "Score it first"),
    ("missing column", lambda: select(plain(), "scor", 1), ColumnsError, "'prompt', 'score'"),
    ("text column", lambda: select(plain(), "prompt", 1), ColumnsError, "holds string"),
    ("list column", lambda: select(pool(), "grace_step_scores", 1), ColumnsError, "needs numbers"),
    (
        "selection again",
        lambda: select(select(plain(), "score", 1).dataset, "score", 1),
        ColumnsError,
        "rename_column",
    ),
    ("strategy", lambda: select(plain(), "score", 1, strategy="best"), CurateError, "'top'"),
    ("group alone", lambda: select(plain(), "score", 1, group="prompt"), BudgetError, "strategy='stratified'"),
    ("strata alone", lambda: select(plain(), "score", 1, strategy="stratified"), BudgetError, "group=COLUMN"),
    ("no group column", lambda: select(plain(), "score", 1, strategy="stratified", group="x"), ColumnsError, "'x'"),
    (
        "group of lists",
        lambda: select(plain([1, 2], g=[[1], [2]]), "score", 1, strategy="stratified", group="g"),
        ColumnsError,
        "list<int64>",
    ),
    (
        "threshold and budget",
        lambda: select(plain(), "score", 1, strategy="threshold", min_score=1),
        BudgetError,
        "no",
    ),
    ("threshold alone", lambda: select(plain(), "score", strategy="threshold"), BudgetError, "takes min_score"),
    ("no budget", lambda: select(plain(), "score"), BudgetError, "needs a budget"),
    ("no measure", lambda: select(plain(), "score", 1, strategy="longest"), ColumnsError, "tokens of each row"),
    ("infinite min_score", lambda: select(plain(), "score", 1, min_score=-INF), BudgetError, "finite"),
    ("text min_score", lambda: select(plain(), "score", 1, min_score="1"), BudgetError, "finite"),  # type: ignore[arg-type]
    ("negative seed", lambda: select(plain(), "score", 1, seed=-1), CurateError, "seed=-1"),
    ("seed of None", lambda: select(plain(), "score", 1, seed=None), CurateError, "seed=None"),  # type: ignore[arg-type]
    ("too many", lambda: select(plain(), "score", 5), BudgetError, "Give 4 rows or fewer"),
    ("empty", lambda: select(plain().select([]), "score", "20%"), BudgetError, "dataset is empty"),
    (
        "all failed",
        lambda: select(pool(20, 0).map(lambda _: {"grace_value": None}), Scorer(), 1),
        BudgetError,
        "only 0",
    ),
    ("all null", lambda: select(plain([None, None]), "score", "50%"), BudgetError, "only 0"),
    (
        "too high",
        lambda: select(plain(), "score", strategy="threshold", min_score=9),
        BudgetError,
        "highest of 4 scores is 4",
    ),
    ("tokens of none", lambda: select(plain(), "score", "5 tokens"), BudgetError, "GraceScorer alone does"),
    ("dict", lambda: select(DatasetDict(train=plain()), "score", 1), CurateError, "DatasetDict"),  # type: ignore[arg-type]
    ("stream", lambda: select(plain().to_iterable_dataset(), "score", 1), CurateError, "Iterable"),  # type: ignore[arg-type]
    ("no scorer", lambda: select(plain(), None, 1), CurateError, "NoneType"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "kind", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_selection_that_makes_no_sense_is_refused(call: Callable[[], Any], kind: type, words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


# -- what lies beside the score -------------------------------------------------------------------------------------


def test_columns_of_others_that_are_called_like_ours_do_no_harm() -> None:
    data = plain([1.0, 2.0, 3.0]).rename_column("score", "m_score")
    data = data.add_column("m_error", [0.1, 0.2, 0.3]).add_column("m_tokens", [[1], [2], [3]])  # type: ignore[call-arg]
    data = data.add_column("m_step_scores", ["a", "b", "c"]).add_column("m_loss", ["x", "y", "z"])  # type: ignore[call-arg]
    kept = select(data, "m_score", 1)
    assert kept.indices.tolist() == [2]
    assert kept.manifest["confounds"] == {"steps": None, "tokens": None, "loss": None, "overlap": None}
    assert kept.manifest["rows"]["failed"] == {}
    bare = plain([1.0, None]).add_column("_error", ["", "no answer: x"]).add_column("_tokens", [5, 6])  # type: ignore[call-arg]
    manifest = select(bare, "score", 1).manifest
    assert manifest["budget"]["tokens"] is None
    assert manifest["columns"]["scores"] == {"score": "float64"}


def test_tokens_that_are_not_known_of_every_kept_row_are_not_added_up() -> None:
    data = plain([1.0, 2.0, 3.0], m_tokens=[5, None, 7]).rename_column("score", "m_score")
    assert select(data, "m_score", 2).manifest["budget"]["tokens"] is None
    assert select(data, "m_score", 1).manifest["budget"]["tokens"] == 7


# -- the manifest ---------------------------------------------------------------------------------------------------


def plain_types(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain_types(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain_types, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


@pytest.mark.parametrize(
    "options",
    [
        {"budget": np.int64(7), "seed": np.int32(3)},
        {"budget": "2k tokens", "min_score": np.float32(-0.5)},
        {"strategy": "threshold", "min_score": np.float64(0.25)},
        {"budget": "30%", "strategy": "stratified", "group": "topic"},
        {"budget": "30%", "strategy": "random", "source": "org/name@v1:main/train"},
    ],
)
def test_a_manifest_is_whole_and_made_of_plain_json(scored: Dataset, options: dict[str, Any]) -> None:
    manifest = select(scored, Scorer(), **options).manifest
    assert plain_types(manifest)
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert " ".join(manifest) == (
        "schema config_name split source rows selector model budget nested strata scores steps length pass_rate "
        "rollouts verification confounds baselines columns digests versions command citations training claims"
    )
    assert manifest["rollouts"] is None
    assert set(manifest["rows"]) == {
        *("in", "scored", "failed", "kept"),
        *("duplicate_prompts", "duplicate_prompts_kept"),
    }
    assert set(manifest["digests"]) == {"source_row", "rows"}
    assert set(manifest["versions"]) >= {"torch", "transformers", "datasets"}
    assert manifest["model"] == MODEL
    assert manifest["selector"]["identity"] == Scorer.identity
    assert "np." not in manifest["command"]


def test_the_rows_add_up_and_failures_are_counted_by_reason(scored: Dataset, picked: Selection) -> None:
    rows = picked.manifest["rows"]
    assert (rows["in"], rows["kept"]) == (100, 20)
    assert rows["in"] == rows["scored"] + sum(rows["failed"].values())
    assert set(rows["failed"]) == {"no answer", "too long"}
    assert rows["duplicate_prompts"] == 4
    budget = picked.manifest["budget"]
    assert budget["threshold"] == min(picked.dataset["grace_value"][:])
    assert budget["tokens"] == sum(picked.dataset["grace_tokens"][:])
    assert budget["asked"] == "20%"


def test_scores_are_summed_up_by_numpy_and_every_row_is_in_the_histogram(scored: Dataset, picked: Selection) -> None:
    values = np.array([v for v in scored["grace_value"][:] if v is not None], dtype=np.float64)
    found = picked.manifest["scores"]
    assert found["all"]["count"] == 92
    assert found["all"]["median"] == pytest.approx(np.median(values))
    assert found["all"]["std"] == pytest.approx(values.std())
    assert (found["all"]["min"], found["all"]["max"]) == (values.min(), values.max())
    assert found["kept"]["min"] == picked.manifest["budget"]["threshold"]
    histogram = found["histogram"]
    assert (sum(histogram["kept"]), sum(histogram["dropped"])) == (20, 72)
    assert len(histogram["edges"]) == len(histogram["kept"]) + 1


def slow_spearman(pairs: list[tuple[float, float]]) -> float:
    def place(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + sum(v == x for v in values) / 2 for x in values]

    a, b = place([x for x, _ in pairs]), place([y for _, y in pairs])
    return float(np.corrcoef(a, b)[0, 1])


def test_confounds_are_the_rank_correlations_with_what_the_scorer_measured(scored: Dataset, picked: Selection) -> None:
    rows = [row for row in scored if row["grace_value"] is not None]
    measures = {"steps": lambda row: len(row["grace_step_scores"]), "tokens": lambda row: row["grace_tokens"]}
    measures["loss"] = lambda row: row["grace_loss"]
    for name, measure in measures.items():
        expected = slow_spearman([(row["grace_value"], measure(row)) for row in rows])
        assert picked.manifest["confounds"][name] == pytest.approx(expected, abs=1e-9)
    assert picked.manifest["confounds"]["overlap"] is None


def test_overlap_is_measured_where_the_scorer_can_and_on_the_rows_asked_for(scored: Dataset) -> None:
    class WithOverlap(Scorer):
        def overlaps(self, rows: Any) -> np.ndarray:
            return np.array([row["grace_value"] ** 3 for row in rows])

    assert select(scored, WithOverlap(), 5).manifest["confounds"]["overlap"] == pytest.approx(1.0)


def test_baselines_share_the_rows_that_they_would_have_kept_too(scored: Dataset, picked: Selection) -> None:
    assert picked.baselines == picked.manifest["baselines"]
    assert set(picked.baselines) == {"random", "longest", "most_steps", "lowest_loss", "highest_loss"}
    for name, found in picked.baselines.items():
        other = select(scored, Scorer(), 20, strategy=name)
        shared = len(set(other.indices.tolist()) & set(picked.indices.tolist()))
        assert found == {"rows": 20, "shared": shared}, name
    assert select(scored, Scorer(), 20, strategy="random", seed=5).baselines["random"]["shared"] == 20


@pytest.mark.parametrize("tail", ["same end", "other end"])
def test_duplicate_prompts_are_counted_in_chats_too(tail: str) -> None:
    def chat(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows = [chat("a", "1"), chat("a", tail), chat("b", "1"), chat("a", "3")]
    data = Dataset.from_dict({"messages": rows, "score": [1.0, 2.0, 3.0, 4.0]})
    assert select(data, "score", 1).manifest["rows"]["duplicate_prompts"] == 2
    assert select(data.remove_columns("messages"), "score", 1).manifest["rows"]["duplicate_prompts"] is None


def test_a_foreign_scorers_record_may_mean_something_else_by_columns(scored: Dataset) -> None:
    for settings in (None, {"columns": ["prompt"]}, {"columns": {"level": 1, "other": 2}}, {"columns": "prompt"}):

        class Foreign(Scorer):
            def record(self) -> dict[str, Any]:
                return {"name": "mine", "settings": settings}  # noqa: B023 (used before the loop goes on)

        manifest = select(scored, Foreign(), 5).manifest
        assert manifest["selector"]["name"] == "mine"
        assert manifest["citations"] == []


def test_the_command_repeats_what_was_asked_and_parses(scored: Dataset) -> None:
    kept = select(scored, Scorer(), "2k tokens", seed=4, min_score=-1.0, source="org/name@v1:main/train")
    command = kept.manifest["command"]
    compile(command, "command", "exec")
    assert command.splitlines() == [
        "scorer = GraceScorer(...)",
        "scored = score(dataset, scorer)",
        "select(scored, scorer, budget='2k tokens', min_score=-1.0, seed=4, source='org/name@v1:main/train')",
    ]
    assert select(plain(), "score", 2).manifest["command"] == "select(dataset, 'score', budget='2 rows', seed=0)"


def test_baselines_choose_among_all_scored_rows_also_under_a_threshold() -> None:
    scores = [float(i) for i in range(100)]
    kept = select(plain(scores), "score", strategy="threshold", min_score=80.0)
    assert len(kept) == 20
    assert kept.baselines["random"]["rows"] == 20
    assert kept.baselines["random"]["shared"] < 20


def test_baselines_under_a_token_budget_spend_the_same_tokens(scored: Dataset) -> None:
    kept = select(scored, Scorer(), "1k tokens")
    tokens = np.asarray(scored["grace_tokens"], dtype=float)
    longest = np.sort(tokens[np.isfinite(np.asarray(scored["grace_value"], dtype=float))])[::-1]
    assert kept.baselines["longest"]["rows"] == int(np.searchsorted(np.cumsum(longest), 1000, side="right"))


def test_a_source_that_was_not_given_is_not_recorded_and_a_file_is_named_without_its_folders(scored: Dataset) -> None:
    assert select(scored, Scorer(), 5).manifest["source"] is None
    for source in ("/home/MARKER/x.jsonl", "~/MARKER/x.jsonl", "MARKER/x.jsonl", "C:\\MARKER\\x.jsonl"):
        manifest = select(scored, Scorer(), 5, source=source).manifest
        assert manifest["source"]["id"] == "local file x.jsonl"
        assert "MARKER" not in json.dumps(manifest)
        assert "source" not in manifest["command"]


def test_nothing_private_is_in_manifest_or_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_MARKERtoken")
    home = tmp_path / "MARKER"
    home.mkdir()
    file = home / "rows.parquet"
    pool(30).to_parquet(file)
    data = load_dataset("parquet", data_files=str(file), split="train")
    kept = select(data, Scorer(), 5, source=str(file))  # type: ignore[arg-type]
    kept.save(home / "repo", "c")
    text = json.dumps(kept.manifest) + kept.card.render() + (home / "repo" / "README.md").read_text("utf-8")
    text += (home / "repo" / "c" / "train.manifest.json").read_text("utf-8")
    assert "local file rows.parquet" in text
    for private in ("MARKER", str(tmp_path), str(Path.home()) + "/", f"/{getpass.getuser()}/"):
        assert private not in text


# -- digests --------------------------------------------------------------------------------------------------------

RICH = {
    "nested": [{"a": [1, None], "b": {"c": "x"}}, {"a": [], "b": {"c": None}}, {"a": [3], "b": {"c": "z"}}],
    "bytes": [b"\x00\xff", None, b""],
    "when": [datetime.datetime(2020, 1, 1, 12, 30, 5, 7), None, datetime.datetime(1969, 12, 31)],
    "day": [datetime.date(2020, 2, 29), None, datetime.date(1, 1, 1)],
    "price": [Decimal("1.10"), None, Decimal("-2.00")],
    "float": [NAN, None, -0.0],
    "text": ["e\u0301", "\u00e9", "\u2028 \u202e \x00 <b>"],
    "none": [None, None, None],
}


def rich() -> Dataset:
    table = pa.table({**RICH, "score": [3.0, 2.0, 1.0]})
    large = pa.array(["a" * 9, None, "c"]).cast(pa.large_string())
    ns = pa.array([1, None, 10**18 + 1], pa.timestamp("ns", "Europe/Paris"))
    return Dataset(
        table.append_column("large", large)
        .append_column("ns", ns)
        .append_column("second", ns.cast(pa.timestamp("s", "UTC"), safe=False))
    )


def test_digests_of_odd_values_survive_a_round_trip_through_parquet(tmp_path: Path) -> None:
    kept = select(rich(), "score", 2)
    kept.dataset.to_parquet(tmp_path / "x.parquet")
    again = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), split="train")
    columns = [name for name in rich().column_names if name != "score"]
    assert digest_rows(again, columns) == kept.manifest["digests"]["rows"]  # type: ignore[arg-type]
    assert again["nested"][:] == RICH["nested"][:2]  # type: ignore[index]
    assert digest_indices(kept.indices) == kept.manifest["digests"]["source_row"]


@pytest.mark.parametrize("column", [*RICH, "large", "ns"])
def test_any_changed_value_changes_the_digest(column: str) -> None:
    data = rich()
    before, columns = digest_rows(data, [column]), data.data.column(column)
    changed = pa.concat_arrays([columns.combine_chunks().take(pa.array([1, 0, 2]))])
    swapped = Dataset(pa.table({column: changed}))
    assert (digest_rows(swapped, [column]) == before) == (column == "none")


def test_the_digest_sees_order_and_names_and_not_chunks(scored: Dataset) -> None:
    columns = ["prompt", "completion"]
    whole = digest_rows(scored, columns)
    assert digest_rows(scored.select(range(99, -1, -1)), columns) != whole
    assert digest_rows(scored.rename_column("completion", "c"), ["prompt", "c"]) != whole
    assert digest_rows(scored, columns[::-1]) == whole
    rechunked = Dataset(pa.concat_tables([scored.data.table.slice(i, 7) for i in range(0, 100, 7)]))
    assert digest_rows(rechunked, columns) == whole


def test_a_dataset_of_scores_alone_can_be_selected(tmp_path: Path) -> None:
    kept = select(plain([1.0, 2.0]).remove_columns("prompt"), "score", 1)
    assert kept.manifest["columns"]["source"] == {}
    kept.save(tmp_path, "c")
    assert load_dataset(str(tmp_path), "c", split="train")["source_row"][:] == [1]  # type: ignore[index]


def test_images_are_digested_by_their_content_and_not_by_their_path(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        pillow.new("RGB", (2, 2), "red").save(tmp_path / place / "a.png")
    pillow.new("RGB", (2, 2), "blue").save(tmp_path / "a.png")

    def digest(file: Path) -> str:
        data = plain([1.0], image=[str(file)]).cast_column("image", Image())
        return select(data, "score", 1).manifest["digests"]["rows"]

    assert digest(tmp_path / "one" / "a.png") == digest(tmp_path / "two" / "a.png") != digest(tmp_path / "a.png")
    with pytest.raises(ColumnsError, match="cannot be read"):
        digest(tmp_path / "missing.png")


def test_column_types_are_named_for_readers() -> None:
    features = Features(
        {
            "chat": List({"role": Value("string"), "content": Value("string")}),
            "large": LargeList(Value("int8")),
            "score": Value("float32"),
        }
    )
    data = Dataset.from_dict({"chat": [[]], "large": [[1]], "score": [1.0]}, features=features)
    assert select(data, "score", 1).manifest["columns"] == {
        "source": {"chat": "list<struct<role: string, content: string>>", "large": "list<int8>"},
        "scores": {"score": "float32"},
        "added": {"source_row": "int64"},
    }


def test_a_selection_prints_as_one_line(picked: Selection) -> None:
    assert repr(picked) == "Selection(20 of 100 rows by GRACE, budget 20%)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 20, "strategy": "random"}, ", chosen at random among the rows scored by GRACE, budget 20 rows"),
        ({"budget": "20%", "strategy": "longest"}, ", the longest among the rows scored by GRACE, budget 20%"),
        ({"budget": "20%", "strategy": "stratified", "group": "topic"}, " by GRACE, budget 20%"),
        ({"strategy": "threshold", "min_score": 1.0}, " by GRACE, minimum score 1"),
    ],
)
def test_a_selector_that_did_not_choose_is_not_said_to_have_chosen(
    scored: Dataset, options: dict[str, Any], words: str
) -> None:
    kept = select(scored, Scorer(), **options)
    assert repr(kept) == f"Selection({len(kept)} of 100 rows{words})"


@pytest.mark.parametrize(
    ("scores", "budget", "ties"),
    [([1.0, 2.0, 2.0, None, 2.0], 2, (3, 2)), ([1.0, 2.0, 3.0], 2, (1, 1)), ([0.0, -0.0, 0.0], 1, (3, 1))],
)
def test_rows_that_share_the_threshold_score_are_counted(
    scores: list[float | None], budget: int, ties: tuple[int, int]
) -> None:
    found = select(plain(scores), "score", budget).manifest["budget"]["at_threshold"]
    assert found == {"scored": ties[0], "kept": ties[1]}
