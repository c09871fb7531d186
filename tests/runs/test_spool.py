"""Streams: read once into the folder of a run, in little memory, and then a dataset like any other."""

from __future__ import annotations

import builtins
import errno
import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, IterableDataset, List, Value
from lengths import Lengths, files_of, texts
from test_resume import Full

from hf_curate import RandomScorer, score, select
from hf_curate.cli import main
from hf_curate.errors import ColumnsError, CurateError, ScoreError
from hf_curate.runs import spool
from hf_curate.runs.local import load_run
from hf_curate.runs.spool import head_of, read_once

ROWS = 2500


def stream_of(dataset: Dataset, seen: list[int] | None = None, cut: int | None = None, **options: Any) -> Any:
    """The rows one by one. seen: grows with each; cut: the number of the row at which the stream breaks."""

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(dataset):
            if number == cut:
                raise ConnectionError("the line is dead")
            if seen is not None:
                seen.append(number)
            yield dict(row)  # type: ignore[call-overload]

    return IterableDataset.from_generator(rows, **options)


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return texts(ROWS).map(lambda row: {"tags": ["a"] * (row["id"] % 3), "deep": {"half": row["id"] / 2}})


def results_of(folder: Path) -> dict[str, Any]:
    """What a run has computed, without what tells one reading of the same rows from another."""
    found = files_of(folder)
    record = json.loads(found["run.json"])
    del record["fingerprint"]
    kept = {name: content for name, content in found.items() if name.startswith("parts/") or name == "scored.parquet"}
    return {**kept, "plan.json": found["plan.json"], "run.json": record}


# -- the same as a dataset --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows without types", "rows with types", "tables", "a slice of tables"])
def test_a_stream_is_scored_as_the_same_rows_in_a_dataset_are(kind: str, pool: Dataset, tmp_path: Path) -> None:
    stream = {
        "rows without types": lambda: stream_of(pool),
        "rows with types": lambda: stream_of(pool, features=pool.features),
        "tables": lambda: pool.to_iterable_dataset(num_shards=3),
        "a slice of tables": lambda: (
            Dataset.from_list([*pool.to_list(), *pool.to_list()]).to_iterable_dataset().take(ROWS)
        ),
    }[kind]()
    scored = score(stream, Lengths(), out=tmp_path / "stream", batch_rows=100, source="a/b")
    wanted = score(pool, Lengths(), out=tmp_path / "dataset", batch_rows=100, source="a/b")
    assert scored.features == wanted.features
    assert scored.to_list() == wanted.to_list()
    assert results_of(tmp_path / "stream") == results_of(tmp_path / "dataset")
    picked = select(scored, Lengths(), "10%")
    assert picked.manifest["digests"] == select(wanted, Lengths(), "10%").manifest["digests"]


def test_its_rows_are_in_the_folder_and_mapped_into_memory(pool: Dataset, tmp_path: Path) -> None:
    score(stream_of(pool), Lengths(), out=tmp_path / "run", source="a/b")
    names = {name for name in files_of(tmp_path / "run") if name.startswith("rows/") and "cache-" not in name}
    assert names == {"rows/rows.arrow", "rows/rows.json"}
    record = json.loads((tmp_path / "run" / "rows" / "rows.json").read_bytes())
    assert (record["rows"], record["source"]) == (ROWS, "a/b")
    held = read_once(stream_of(pool), tmp_path / "run")
    assert held.cache_files == [{"filename": str(tmp_path / "run" / "rows" / "rows.arrow")}]
    assert held._fingerprint == read_once(stream_of(pool), tmp_path / "other")._fingerprint
    assert "streaming: true" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_an_endless_stream_has_a_beginning(tmp_path: Path) -> None:
    endless = IterableDataset.from_generator(lambda: ({"text": "a" * (n % 9), "id": n} for n in itertools.count()))
    assert len(score(endless.take(1234), Lengths(), out=tmp_path / "run")) == 1234
    assert head_of(endless, 2100)["id"][:] == list(range(2100))


def test_a_stream_that_is_mapped_has_the_types_of_what_comes_out(pool: Dataset, tmp_path: Path) -> None:
    stream = stream_of(pool, features=pool.features).map(lambda row: {"id": row["id"] + 0.5})
    assert stream.features is None
    assert score(stream, Lengths(), out=tmp_path / "run").features["id"] == Value("float64")


# -- once -------------------------------------------------------------------------------------------------------------


def test_it_is_read_once_and_a_later_call_looks_at_its_first_rows_alone(pool: Dataset, tmp_path: Path) -> None:
    seen: list[int] = []
    score(stream_of(pool, seen), Lengths(), out=tmp_path / "run")
    assert seen == list(range(ROWS))
    seen.clear()
    again = Lengths()
    scored = score(stream_of(pool, seen), again, out=tmp_path / "run")
    assert (len(scored), again.seen) == (ROWS, [])
    assert len(seen) <= spool.TOGETHER


def test_a_run_that_was_stopped_while_it_scored_goes_on_from_the_rows_that_were_read(
    pool: Dataset, tmp_path: Path
) -> None:
    def stop(batch: list[str]) -> None:
        if len(stopped.seen) == 3:
            raise KeyboardInterrupt

    stopped, seen, rest = Lengths(on_batch=stop), [], Lengths()
    with pytest.raises(KeyboardInterrupt):
        score(stream_of(pool), stopped, out=tmp_path / "run", batch_rows=500)
    score(stream_of(pool, seen), rest, out=tmp_path / "run", batch_rows=500)
    assert rest.seen == [500, 500]
    assert len(seen) <= spool.TOGETHER


def test_a_stream_that_breaks_is_read_again(pool: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="the line is dead"):
        score(stream_of(pool, cut=2000), Lengths(), out=tmp_path / "run")
    assert files_of(tmp_path / "run") == {}
    seen: list[int] = []
    assert score(stream_of(pool, seen), Lengths(), out=tmp_path / "run").num_rows == ROWS
    assert len(seen) == ROWS


def test_what_a_kill_leaves_is_read_again(pool: Dataset, tmp_path: Path) -> None:
    score(stream_of(pool), Lengths(), out=tmp_path / "whole")
    rows = (tmp_path / "whole" / "rows" / "rows.arrow").read_bytes()
    for name, size in ((".rows.arrow", 1000), ("rows.arrow", len(rows))):  # while it was written; before its record
        place = tmp_path / name / "rows"
        place.mkdir(parents=True)
        (place / name).write_bytes(rows[:size])
        score(stream_of(pool), Lengths(), out=tmp_path / name)
        assert results_of(tmp_path / name) == results_of(tmp_path / "whole")
        assert not (place / ".rows.arrow").exists()


def test_rows_that_were_cut_are_read_again_and_give_the_same(pool: Dataset, tmp_path: Path) -> None:
    score(stream_of(pool), Lengths(), out=tmp_path / "run")
    path = tmp_path / "run" / "rows" / "rows.arrow"
    whole = path.read_bytes()
    path.unlink()  # an earlier dataset is mapped from it
    path.write_bytes(whole[:5000])
    again = Lengths()
    score(stream_of(pool), again, out=tmp_path / "run")
    assert path.read_bytes() == whole
    assert again.seen == []


# -- a stream that has changed behind its first rows ------------------------------------------------------------------


def changed_after(rows: int, stop: int) -> Dataset:
    """So many rows as in `texts`, then others, `stop` in all."""
    return texts(stop).map(lambda row: row if row["id"] < rows else {"text": "x" * (1 + row["id"] % 5)})


@pytest.mark.parametrize(
    ("before", "after"),
    [(1000, 3000), (3000, 1000), (300, 257), (1000, 1000)],
    ids=["longer", "shorter", "within the first table", "as long"],
)
def test_rows_behind_the_first_are_read_anew_only_when_asked_for_and_the_others_are_told(
    before: int, after: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, run = texts(before), changed_after(spool.FIRST_ROWS, after), tmp_path / "run"
    with caplog.at_level(logging.WARNING, logger="hf_curate"):
        first = score(stream_of(old), Lengths(), out=run).to_list()
        assert "rows that it has read from the stream" not in caplog.text
        assert score(stream_of(new), Lengths(), out=run).to_list() == first
        assert (
            f"the run 'run' goes on with the {before:,} rows that it has read from the stream; a stream is known by "
            "its first 256 rows, types and source alone: to read it again, overwrite=True (--overwrite)."
        ) in caplog.text
        caplog.clear()
        scored = score(stream_of(new), Lengths(), out=run, overwrite=True)
        assert "rows that it has read from the stream" not in caplog.text
    assert scored.to_list() == score(new, Lengths(), out=tmp_path / "wanted").to_list()
    assert load_run(run).dataset.to_list() == scored.to_list()
    assert json.loads((run / "rows" / "rows.json").read_bytes())["rows"] == after
    assert results_of(run) == results_of(tmp_path / "wanted")


def test_rows_whose_bytes_have_changed_are_read_anew_when_asked_for(pool: Dataset, tmp_path: Path) -> None:
    wanted = score(stream_of(pool), Lengths(), out=tmp_path / "run").to_list()
    before, path = results_of(tmp_path / "run"), tmp_path / "run" / "rows" / "rows.arrow"
    whole = path.read_bytes()
    path.unlink()  # an earlier dataset is mapped from it
    at = whole.rindex(b"abab")
    path.write_bytes(whole[:at] + b"zzzz" + whole[at + 4 :])
    assert score(stream_of(pool), Lengths(), out=tmp_path / "run", overwrite=True).to_list() == wanted
    assert path.read_bytes() == whole
    assert results_of(tmp_path / "run") == before


def test_a_run_that_was_stopped_and_may_be_replaced_keeps_its_shards_if_the_rows_are_the_same(
    pool: Dataset, tmp_path: Path
) -> None:
    def stop(batch: list[str]) -> None:
        if len(stopped.seen) == 3:
            raise KeyboardInterrupt

    stopped, seen, rest, others = Lengths(on_batch=stop), [], Lengths(), Lengths()
    for folder in ("run", "other"):
        stopped.seen.clear()
        with pytest.raises(KeyboardInterrupt):
            score(stream_of(pool), stopped, out=tmp_path / folder, batch_rows=500)
    score(stream_of(pool, seen), rest, out=tmp_path / "run", batch_rows=500, overwrite=True)
    assert seen == list(range(ROWS))
    assert rest.seen == [500, 500]
    score(pool, Lengths(), out=tmp_path / "wanted", batch_rows=500)
    assert results_of(tmp_path / "run") == results_of(tmp_path / "wanted")
    longer = Dataset.from_list([*pool.to_list(), pool[0]], features=pool.features)
    score(stream_of(longer), others, out=tmp_path / "other", batch_rows=500, overwrite=True)
    assert others.seen == [500] * 5 + [1]
    score(longer, Lengths(), out=tmp_path / "wanted of others", batch_rows=500)
    assert results_of(tmp_path / "other") == results_of(tmp_path / "wanted of others")


def test_a_stream_that_breaks_while_it_is_read_anew_leaves_the_run_as_it_was(pool: Dataset, tmp_path: Path) -> None:
    score(stream_of(pool), Lengths(), out=tmp_path / "run")
    before = files_of(tmp_path / "run")
    with pytest.raises(ConnectionError, match="the line is dead"):
        score(stream_of(pool, cut=2000), Lengths(), out=tmp_path / "run", overwrite=True)
    assert files_of(tmp_path / "run") == before


# -- another stream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "text": "x"}, r"the first rows with the sha256 \w{12}, now \w{12}"),
        (lambda row: {"text": row["text"], "id": float(row["id"])}, r"columns text string, id int64, .*, now text s"),
    ],
)
def test_another_stream_is_an_error_with_both_values_unless_it_may_replace(
    change: Any, said: str, pool: Dataset, tmp_path: Path
) -> None:
    score(stream_of(pool), Lengths(), out=tmp_path / "run")
    before = results_of(tmp_path / "run")
    other = IterableDataset.from_generator(lambda: (change(row) for row in pool))
    with pytest.raises(CurateError, match=rf"'run' holds the rows of another stream \({said}"):
        score(other, Lengths(), out=tmp_path / "run")
    assert results_of(tmp_path / "run") == before
    scored = score(other, Lengths(), out=tmp_path / "run", overwrite=True)
    assert scored.select_columns(["text"])[0] == {"text": change(pool[0])["text"]}
    assert load_run(tmp_path / "run").dataset.to_list() == scored.to_list()


def test_another_source_is_an_error_with_both_names(pool: Dataset, tmp_path: Path) -> None:
    score(stream_of(pool), Lengths(), out=tmp_path / "run", source="a/b")
    with pytest.raises(CurateError, match="source a/b, now c/d"):
        score(stream_of(pool), Lengths(), out=tmp_path / "run", source="c/d")


def test_a_folder_of_somebody_else_is_left_alone(pool: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run" / "rows").mkdir(parents=True)
    (tmp_path / "run" / "rows" / "mine.csv").write_text("1,2")
    with pytest.raises(CurateError, match="'run' holds other files"):
        score(stream_of(pool), Lengths(), out=tmp_path / "run")
    assert files_of(tmp_path / "run") == {"rows/mine.csv": b"1,2"}


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_without_a_folder_it_is_an_error_that_says_what_to_type(pool: Dataset) -> None:
    with pytest.raises(ScoreError, match=r"give it one, out='runs/NAME'.*stream\.map\(scorer, batched=True\)"):
        score(stream_of(pool), Lengths())


def test_an_empty_stream_is_an_error(tmp_path: Path) -> None:
    for stream in (IterableDataset.from_generator(lambda: iter(())), texts(3).to_iterable_dataset().skip(3)):
        with pytest.raises(ScoreError, match="the stream is empty"):
            score(stream, Lengths(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_columns_are_checked_before_the_rest_is_read(pool: Dataset, tmp_path: Path) -> None:
    from hf_curate import AccuracyGreedyScorer

    seen: list[int] = []
    with pytest.raises(ColumnsError):
        score(stream_of(pool, seen), AccuracyGreedyScorer(), out=tmp_path / "run")
    assert len(seen) <= spool.TOGETHER
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ({"a": 1.5}, r"rows 1,000 to 1,099 of the stream do not fit the types of the first rows, a int64 \(Float"),
        ({"a": "x"}, r"do not fit the types of the first rows, a int64 \(Could not convert 'x'"),
        ({"a": 1, "b": 2}, "row 1,050 of the stream has a column 'b', and the rows before it have a: give all rows"),
    ],
)
def test_a_row_of_another_kind_is_an_error_that_says_where_and_leaves_nothing(
    late: dict[str, Any], said: str, tmp_path: Path
) -> None:
    stream = IterableDataset.from_generator(lambda: (late if n == 1050 else {"a": n} for n in range(1100)))
    with pytest.raises(ScoreError, match=said):
        score(stream, RandomScorer(seed=0), out=tmp_path / "run")
    assert files_of(tmp_path / "run") == {}


def test_types_that_are_said_take_the_rows_that_differ(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: ({"a": 1.5 if n == 1050 else None} for n in range(1100)))
    with pytest.raises(ScoreError, match=r"a null .*say the types, stream\.cast\(Features"):
        score(stream, RandomScorer(seed=0), out=tmp_path / "run")
    typed = stream.cast(Features({"a": Value("float32")}))
    assert score(typed, RandomScorer(seed=0), out=tmp_path / "run")["a"][1049:1052] == [None, 1.5, None]


def test_rows_that_do_not_fit_one_another_are_an_error(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"a": 1}, {"a": [2]}]))
    with pytest.raises(ScoreError, match="rows 0 to 1 of the stream do not fit one another"):
        score(stream, RandomScorer(seed=0), out=tmp_path / "run")


@pytest.mark.parametrize("room", [0, 2000, 60_000])
def test_a_full_disk_is_the_runs_own_error_and_the_stream_is_read_again_when_there_is_room(
    room: int, pool: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [room]

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        file = builtins.open(path, mode, **options)  # noqa: SIM115
        return Full(file, left) if "w" in mode else file

    monkeypatch.setattr(spool, "open", opened, raising=False)
    with pytest.raises(CurateError, match=r"the disk is full, and the run 'run' cannot go on \(No space left"):
        score(stream_of(pool), Lengths(), out=tmp_path / "run")
    assert files_of(tmp_path / "run") == {}
    monkeypatch.undo()
    assert len(score(stream_of(pool), Lengths(), out=tmp_path / "run")) == ROWS


def test_what_the_stream_itself_raises_is_not_taken_for_the_disks(pool: Dataset, tmp_path: Path) -> None:
    def rows() -> Iterator[Any]:
        yield from itertools.islice(pool, 1500)
        raise OSError(errno.ENOSPC, "the far disk")

    with pytest.raises(OSError, match="the far disk") as caught:
        score(IterableDataset.from_generator(rows), Lengths(), out=tmp_path / "run")
    assert not isinstance(caught.value, CurateError)


# -- memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import sys, threading
from pathlib import Path
import datasets
from datasets import IterableDataset, Features, Value
from hf_curate import score
datasets.disable_progress_bars()

class Sizes:
    columns = Features({"size_value": Value("float32"), "size_error": Value("string")})
    column, identity = "size_value", "sizes"
    def record(self):
        return {"name": "Sizes"}
    def __call__(self, rows):
        values = [len(text) if number % 2 else None for number, text in zip(rows["id"], rows["text"])]
        return {"size_value": values, "size_error": ["" if n % 2 else f"left out: {n:0200}" for n in rows["id"]]}

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

def run(rows, out):
    def made():
        for number in range(rows):
            yield {"id": number, "text": f"{number:02000}"}
    pool = IterableDataset.from_generator(made)
    if "file" in sys.argv:
        pool = datasets.Dataset.from_generator(made, cache_dir=out + "_cache")
    score(pool, Sizes(), out=out)

run(2000, sys.argv[1] + "/warm")
before, most, done = anonymous(), 0.0, threading.Event()
def watch():
    global most
    while not done.wait(0.01):
        most = max(most, anonymous())
thread = threading.Thread(target=watch)
thread.start()
run(50_000, sys.argv[1] + "/run")
done.set()
thread.join()
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_run_over_many_rows_takes_the_memory_of_a_few(kind: str, tmp_path: Path) -> None:
    """50,000 rows of 2 kB, half of them without a score for a reason of their own: 100 MB, and 5 MB of reasons."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_reads_its_source_as_a_stream_and_the_recipe_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = Dataset.from_dict({"prompt": ["1?"] * 30, "rewards": [[0.0, n % 2] for n in range(30)]})
    pool.to_parquet("rows.parquet")
    command = ["score", "rows.parquet", "--scorer", "accuracy-greedy", "--out"]
    assert main([*command, "streamed", "--streaming"]) == 0
    assert main([*command, "plain"]) == 0
    one, other = (load_run(folder) for folder in ("streamed", "plain"))
    assert one.dataset.to_list() == other.dataset.to_list()
    assert one.stored["source"] == other.stored["source"] == "local file rows.parquet"
    assert one.dataset.features["rewards"] == List(Value("float64"))
    capsys.readouterr()
    assert main(["run", "streamed/recipe.yaml"]) == 0
    assert "skipped, it is there (Accuracy greedy, 30 rows" in capsys.readouterr().out
    assert main(["score", "streamed", "--scorer", "random", "--out", "third", "--streaming"]) == 2
    assert "the rows of the run 'streamed' are in a file already: drop --streaming" in capsys.readouterr().err


def test_a_file_that_is_no_json_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    assert main(["score", "bad.jsonl", "--scorer", "random", "--out", "run", "--streaming"]) == 2
    assert "local file bad.jsonl cannot be read as a stream" in capsys.readouterr().err
    assert not Path("run").exists()
